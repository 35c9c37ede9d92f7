"""Pages in a browser, at the width of a desktop and of a phone: they fit, their tables sort, and nothing goes wrong."""

import dataclasses

import pytest
import xarray as xr

from jaxsym import plots, report, studies
from jaxsym.studies.study import Picture, Section, Study, Table
from jaxsym.sweep import store
from tests.browser.chromium import open_page
from tests.sweep_page import fakes

pytestmark = pytest.mark.browser

SORT = """
  const table = document.querySelector("table.sortable");
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const column = heads.findIndex(head => head.textContent === NAME);
  const head = heads[column], button = head.querySelector("button");
  const order = () => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
  const states = () => [order(), head.getAttribute("aria-sort")];
  const seen = [states()];
  button.focus();
  const focused = document.activeElement === button;
  for (let i = 0; i < 2; i++) { button.click(); seen.push(states()); }
  heads[0].querySelector("button").click();
  return { seen, focused, other: head.getAttribute("aria-sort"), sorted: document.querySelectorAll("[aria-sort]").length };
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return fakes.publish_all(tmp_path_factory.mktemp)


def fits(seen, width):
    assert seen.width == width
    assert seen.scrolled <= width
    assert seen.failures == []
    assert seen.console == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", fakes.SWEEPS)
def test_a_page_fits_and_its_tables_sort(pages, tmp_path, name, width):
    seen = open_page(pages[name] / "report.html", tmp_path, width, SORT.replace("NAME", "'median'"))
    fits(seen, width)
    (before, no_sort), (up, ascending), (down, descending) = seen.found["seen"]
    assert (no_sort, ascending, descending) == (None, "ascending", "descending")
    assert seen.found["focused"]
    assert (seen.found["other"], seen.found["sorted"]) == (None, 1)
    known = [text for text in before if text != "–"]
    missing = ["–"] * (len(before) - len(known))
    assert len(missing) == (3 if name == "cross" else 0)
    assert before != up
    assert up == sorted(known, key=float) + missing
    assert [float(text) for text in down[: len(known)]] == sorted(map(float, known), reverse=True)
    assert down[len(known) :] == missing


def test_text_and_numbers_sort_as_such(pages, tmp_path):
    page = pages["cross"] / "report.html"
    (_, _), (up, _), (down, _) = open_page(page, tmp_path, 1280, SORT.replace("NAME", "'activation'")).found["seen"]
    assert up == ["relu"] * 6 + ["tanh"] * 6 == down[::-1]
    (before, _), (up, _), _ = open_page(page, tmp_path, 1280, SORT.replace("NAME", "'finite'")).found["seen"]
    assert before[-3:] == up[-3:] == ["not done"] * 3
    assert up[:2] == ["12 of 16"] * 2


def test_the_page_of_a_study_fits(tmp_path, monkeypatch):
    figure, _ = plots.panels(2, width=11)
    picture = Picture("wide", figure, "A caption.", "A wide picture.")
    table = Table([f"heading {i}" for i in range(20)], [["number"] * 20], "A wide table.")
    sections = [Section("A section", ["word " * 100 + "x" * 300], [table], [picture])]
    config = dataclasses.make_dataclass("Config", [("networks", int, 3)], frozen=True)()
    study = Study(
        "a study", config, config, lambda config, progress: None, lambda data: {"k" * 90: 1.5}, lambda data: sections
    )
    monkeypatch.setattr(studies, "load", lambda name: study)
    attributes = {
        "study": "made",
        "config": "{}",
        "written": "today",
        "versions": "{}",
        "device": "cpu",
        "git_revision": "1",
    }
    store.write_dataset(tmp_path / report.RESULTS, xr.Dataset({"x": 1.0}, attrs=attributes))
    page = report.publish(tmp_path)
    for width in (1280, 390):
        fits(open_page(page, tmp_path, width, 'document.querySelector("details").open = true'), width)


def test_what_goes_wrong_on_a_page_is_seen(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(
        '<!doctype html><html><head></head><body><div style="width: 600px">wide</div>'
        "<script>console.error('said'); throw new Error('thrown');</script></body></html>"
    )
    seen = open_page(page, tmp_path, 390)
    assert seen.scrolled == 608
    assert any("thrown" in failure for failure in seen.failures)
    assert any("said" in line for line in seen.console)
    assert any("thrown" in line for line in seen.console)


def test_a_missing_browser_is_a_failure_that_says_what_to_do(pages, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="scripts/test --browser"):
        open_page(pages["zip"] / "report.html", tmp_path, 390)
