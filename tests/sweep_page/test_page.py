"""Pages of sweeps that were never run: what they say, what they leave out and say so, and that they stand alone."""

import json
import re
import tomllib

import numpy as np
import pytest

from jaxsym.sweep_page import build
from tests.sweep_page import fakes


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return fakes.publish_all(tmp_path_factory.mktemp)


def said(page):
    return " ".join(paragraph for section in page.sections for paragraph in section.paragraphs)


def captions(page):
    return {picture.name: picture.caption for section in page.sections for picture in section.pictures}


def table(page, title):
    (found,) = [section for section in page.sections if section.title == title]
    return found.tables[0]


def test_the_summary_is_what_the_dataset_says(pages):
    data, _ = fakes.cross()
    medians = {}
    for width, activation in ((4, "relu"), (4, "tanh"), (8, "relu")):
        for rate in data["learning_rate"].values:
            point = data.sel(width=width, activation=activation, learning_rate=rate)
            last = point["test_accuracy"].isel(step=-1).where(point["finite"])
            medians[f"width {width}, activation {activation}, learning_rate {rate:g}"] = float(last.median())
    best, worst = max(medians, key=medians.get), min(medians, key=medians.get)
    assert json.loads((pages["cross"] / "summary.json").read_text()) == {
        "target": "nets:mlp",
        "cells": 4,
        "cells_done": 3,
        "cells_failed": 1,
        "cells_missing": 0,
        "points": 12,
        "points_done": 9,
        "seeds": 16,
        "networks": 144,
        "networks_nonfinite": 8,
        "seconds": 2.5 + 3.5 + 4.5,
        "metric": "test_accuracy",
        "direction": "maximize",
        "best": best,
        "best_cell": 2,
        "best_median": pytest.approx(medians[best]),
        "worst": worst,
        "worst_cell": 0,
        "worst_median": pytest.approx(medians[worst]),
        "difference": pytest.approx(medians[best] - medians[worst]),
    }


def test_the_summary_of_a_search(pages):
    data, _ = fakes.search()
    summary = json.loads((pages["search"] / "summary.json").read_text())
    assert summary["best_trial"] == int(np.argmin(data["objective"].values))
    assert summary["best_objective"] == pytest.approx(float(data["objective"].min()))
    assert (summary["trials"], summary["trials_done"], summary["direction"]) == (64, 64, "minimize")


def test_the_first_paragraphs_say_what_is_done_lost_failed_and_best(pages):
    page = (pages["cross"] / "report.html").read_text()
    for sentence in (
        "3 of 4 cells are done, 1 failed: 9 points with 16 seeds each, 144 networks.",
        "8 networks are not finite: 4 of 16 at width 4, activation relu, learning_rate 1; 4 of 16 at width 8",
        "Failed: cells/0003 (width 8, activation tanh): ValueError: a width of 8 &lt;is&gt; too wide."
        " Its log is cells/0003/log.txt.",
        "The main metric is test_accuracy: the first there is of test_accuracy, accuracy",
        "higher is better",
        "in cell 0002: median test_accuracy 0.9879 (over 12 of 16 networks)",
        "are over the finite ones",
    ):
        assert sentence in page


def test_other_figures_make_other_sentences():
    data, cells = fakes.cross()
    before = said(build(data, cells))
    flipped = data.assign(test_accuracy=1 - data["test_accuracy"], finite=data["finite"] | True)
    after = said(build(flipped, cells))
    assert "All of them are finite." in after
    assert "All of them are finite." not in before
    assert re.search(r"The best point is ([^:]*)", before)[1] != re.search(r"The best point is ([^:]*)", after)[1]


@pytest.mark.parametrize("name", fakes.SWEEPS)
def test_a_page_stands_alone(pages, name):
    page = (pages[name] / "report.html").read_text()
    loaded = re.findall(r"src=\"([^\"]*)\"|<link[^>]*href=\"([^\"]*)\"", page)
    assert all(place.startswith("data:") for pair in loaded for place in pair if place)
    links = set(re.findall(r"<a href=\"([^\"]*)\"", page))
    assert links
    assert all(re.fullmatch(r"cells/\d{4}/(data\.nc|log\.txt)", link) for link in links)
    pictures = {path.stem for path in (pages[name] / "figures").iterdir()}
    assert page.count("<img ") == len(re.findall(r"alt=\"[^\"]{40,}\"", page)) == len(pictures)
    assert page.count("<figcaption>") == len(pictures)
    assert all((pages[name] / "figures" / f"{stem}.{kind}").is_file() for stem in pictures for kind in ("png", "svg"))


def test_every_kind_of_sweep_has_its_pictures(pages):
    drawn = {name: {path.stem for path in (folder / "figures").iterdir()} for name, folder in pages.items()}
    assert drawn == {
        "cross": {"distributions", "curves", "heat_map"},
        "zip": {"distributions", "curves", "heat_map"},
        "search": {"distributions", "curves", "best_so_far", "parallel_coordinates"},
    }


def test_only_cells_that_are_done_have_data(pages):
    page = (pages["cross"] / "report.html").read_text()
    assert "cells/0002/data.nc" in page
    assert "cells/0003/data.nc" not in page
    assert 'href="cells/0003/log.txt"' in page


@pytest.mark.parametrize("name", fakes.SWEEPS)
def test_the_file_on_the_page_is_the_config(pages, name):
    data, _ = fakes.SWEEPS[name]()
    page = (pages[name] / "report.html").read_text()
    assert f"jaxsym sweep sweep.toml --out {pages[name].name}" in page
    (text,) = re.findall(r"<pre><code>(\[sweep\].*?)</code>", page, re.DOTALL)
    config = json.loads(data.attrs["config"])
    config["sweep"] = {key: value for key, value in config["sweep"].items() if value is not None} | {"seeds": 16}
    assert tomllib.loads(text.replace("&#34;", '"')) == config


def test_the_table_has_all_figures_of_each_point():
    data, cells = fakes.lose(*fakes.cross(), {3: "failed"})
    found = table(build(data, cells), "Every point")
    assert found.sortable
    assert found.groups == [("", 5), ("test_accuracy", 5), ("loss", 5)]
    assert sum(columns for _, columns in found.groups) == len(found.header) == len(found.rows[0])
    row = dict(zip(found.header[:10], found.rows[8][:10], strict=True))
    assert row["width"].value == 8
    assert row["finite"].text == "12 of 16"
    assert row["cell"].href == "cells/0002/data.nc"
    point = data.isel(width=1, activation=0, learning_rate=2)
    last = point["test_accuracy"].isel(step=-1).where(point["finite"])
    for name, share in (("min", 0), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("max", 1)):
        assert row[name].value == pytest.approx(float(last.quantile(share)))
    assert found.rows[9][4].text == "not done"
    assert np.isnan(found.rows[9][5].value)


def test_many_variables_have_their_medians_and_the_rest_is_named():
    data, cells = fakes.cross()
    page = build(data.assign({f"norm_{i}": data["loss"] for i in range(30)}), cells)
    found = table(page, "Every point")
    assert len(found.header) == 5 + 3 * 5 + 6 == len(found.rows[0])
    assert "In the data, but not in this table: norm_7," in said(page)
    assert "and 14 more." in said(page)


def test_what_is_left_out_of_a_large_sweep_is_said():
    data, cells = fakes.grid(a=list(range(30)), b=list(range(20)))
    page = build(data, cells)
    assert len(table(page, "Every point").rows) == len(table(page, "Every cell").rows) == 500
    assert "The 500 best of 600 points by test_accuracy are shown; 100 are left out" in said(page)
    assert "100 more cells are left out" in said(page)
    assert "24 of 600 points are drawn" in captions(page)["distributions"]
    assert "8 of 600 points are drawn" in captions(page)["curves"]


def test_no_more_lines_than_colours():
    data, cells = fakes.search()
    page = build(data, cells)
    (curves,) = [p for section in page.sections for p in section.pictures if p.name == "curves"]
    lines = [line for ax in curves.figure.axes for line in ax.lines]
    assert len(lines) == 8 == len({line.get_color() for line in lines})
    assert "8 of 60 trials are drawn: by objective the best, the worst, and evenly between." in curves.caption


def test_a_panel_for_each_cell_with_a_common_scale():
    data, cells = fakes.cross()
    (curves,) = [p for section in build(data, cells).sections for p in section.pictures if p.name == "curves"]
    assert [ax.get_title() for ax in curves.figure.axes] == [
        f"width {width}, activation {name}" for width in (4, 8) for name in ("relu", "tanh")
    ]
    assert len({ax.get_ylim() for ax in curves.figure.axes}) == 1
    (line, *_) = curves.figure.axes[0].lines
    np.testing.assert_allclose(
        line.get_ydata(), data["test_accuracy"].isel(width=0, activation=0, learning_rate=0).median("seed")
    )


def test_a_sweep_without_a_finite_network_has_a_page():
    data, cells = fakes.cross()
    page = build(data.assign(finite=data["finite"] & False), cells)
    assert "192 networks are not finite: 16 of 16 at" in said(page)
    assert "No finished network has a finite value of it" in said(page)
    assert not captions(page)
    assert "best" not in page.summary


def test_a_metric_may_be_finite_where_another_variable_is_not():
    data, cells = fakes.search()
    page = build(data.assign(finite=data["finite"] & False), cells)
    assert set(captions(page)) == {"best_so_far", "parallel_coordinates"}
    assert page.summary["best_median"] != page.summary["best_median"]  # NaN: there is no finite network


def test_one_cell_of_one_point():
    data, cells = fakes.grid(width=[4])
    page = build(data, cells)
    assert "1 of 1 cell is done: 1 point with 16 seeds each, 16 networks." in said(page)
    middle = float(data["test_accuracy"].isel(step=-1).median())
    assert f"There is one point: median test_accuracy {middle:.4g}." in said(page)
    assert set(captions(page)) == {"distributions", "curves"}


def test_equal_points_are_not_ranked_against_each_other():
    data, cells = fakes.cross()
    page = build(data.assign(test_accuracy=data["test_accuracy"] * 0 + 0.5), cells)
    assert "All 12 points are equal: median test_accuracy 0.5." in said(page)
    higher = data["test_accuracy"] * 0 + 0.5 + 0.1 * (data["width"] == 8)
    few = said(build(data.assign(test_accuracy=higher), cells))
    assert "median test_accuracy 0.6, as 5 other points have." in few
    assert "as 5 other points have. They are 0.1 apart" in few


@pytest.mark.parametrize(
    ("widths", "best", "end"),
    [
        ([2, 4, 8, 16], 16, "upper end of 2 to 16"),
        ([16, 2, 8, 4], 2, "lower end of 2 to 16"),
        ([2, 4, 8, 16], 8, None),
        ([2, 4], 4, None),  # two values have no inside
        (["a", "b", "c"], "c", None),
    ],
)
def test_the_end_of_a_range_is_pointed_out(widths, best, end):
    data, cells = fakes.grid(width=widths)
    score = data["test_accuracy"] * 0 + 0.5 + 0.1 * (data["width"] == best)
    text = said(build(data.assign(test_accuracy=score), cells))
    assert (f"The best point has width {best} at the {end}; beyond" in text) if end else ("beyond" not in text)


def test_the_end_of_a_searched_range_is_on_its_scale():
    data, cells = fakes.search()
    objective = np.full(data.sizes["trial"], 1.0)
    for value, end in ((9e-1, "upper"), (1.1e-4, "lower"), (2e-2, None)):
        rates = np.full(data.sizes["trial"], 1e-2)
        rates[3], objective[3] = value, 0.5
        fields = {
            "learning_rate": ("trial", rates),
            "momentum": ("trial", 0 * rates + 0.5),
            "hidden_steps": ("trial", np.full(rates.shape, 3)),
        }
        text = said(build(data.assign_coords(fields).assign(objective=("trial", objective)), cells))
        assert (f"at the {end} end of 0.0001 to 1; beyond" in text) if end else ("beyond" not in text)


def test_an_axis_of_which_one_value_is_done_makes_no_difference_to_report():
    data, cells = fakes.grid(a=[1, 2], b=[1, 2, 3])
    text = said(build(*fakes.lose(data, cells, dict.fromkeys((3, 4, 5), "missing"))))
    assert re.search(r"differs by at most [\d.]+ over b\.", text)
    text = said(build(*fakes.lose(data, cells, dict.fromkeys(range(1, 6), "missing"))))
    assert "No axis has more than one value with a finite test_accuracy yet." in text


def test_nothing_to_show_for_each_network():
    data, cells = fakes.cross()
    page = build(data[["weights", "finite"]], cells)
    assert "No variable has one number, or one series, for each network." in said(page)
    assert "metric" not in page.summary


def test_the_record_of_a_study_has_no_axes_but_seeds():
    data, cells = fakes.grid(networks=[4])
    data = data.isel(networks=0, drop=True)
    config = {"sweep": {"study": "titanic", "seeds": [2, 3, 5]}, "static": {}, "traced": {}}
    counts = {name: ("seed", np.arange(16.0)) for name in ("networks", "net_steps", "compile_seconds", "run_seconds")}
    page = build(data.assign(counts).assign_attrs(config=json.dumps(config)), cells)
    assert not any(name in str(page) for name in counts if name != "networks")
    assert page.title == "sweep of the study titanic"
    assert "2, 3, 5" in str(table(page, "The axes").rows)


def test_names_with_dollars_and_length_are_drawn_as_they_are(tmp_path, monkeypatch):
    data, cells = fakes.grid(kind=["$\\frac", "_under", "<b>&", "x" * 90, "网络"], b=[1, 2])
    page = fakes.publish(tmp_path, monkeypatch, data, cells).read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "x" * 90 in page


def test_many_failures_are_named_up_to_ten():
    data, cells = fakes.grid(a=list(range(30)))
    page = build(*fakes.lose(data, cells, dict.fromkeys(range(5, 30), "failed")))
    assert said(page).count("Failed: ") == 10
    assert "15 more failed; the last table has them." in said(page)
    states = [row[2] for row in table(page, "Every cell").rows]
    assert states == ["done"] * 5 + ["failed"] * 25
