"""The study of invariant optimizers, run small: its figures from the file, its sentences from its figures."""

import re

import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.invariant_optimizers import OPTIMIZERS, Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("invariant_optimizers")
    cli.main(["run", "invariant_optimizers", "--out", str(out), "--quick", "--steps", "20"])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("invariant_optimizers").summary(results)
    assert summary["path_sgd_commutation_error"] == float(results.commutation_error.sel(optimizer="path-SGD").max())
    assert summary["path_sgd_commutation_error"] < 1e-12
    assert summary["sgd_commutation_error"] > 1e-2
    assert summary["balanced_output_error"] < 1e-12
    assert summary["balanced_charge_max"] < 1e-12
    for name, rates in OPTIMIZERS.items():
        assert summary[f"{name.lower().replace(' ', '_').replace('-', '_')}_rate"] in rates


def test_what_sees_no_rescaling_learns_the_same_from_both_starts(results):
    for name in ("path-SGD", "balanced SGD"):
        apart = results.loss.sel(optimizer=name, start="balanced") - results.loss.sel(
            optimizer=name, start="unbalanced"
        )
        assert float(abs(apart).median()) < 1e-4
    apart = results.loss.sel(optimizer="SGD", start="balanced") - results.loss.sel(optimizer="SGD", start="unbalanced")
    assert float(abs(apart.isel(record=-1)).min()) > 1e-4


def test_the_page_says_the_figures_and_sentences_follow_them(folder, results, summary):
    page = (folder / "report.html").read_text()
    assert f"differ by at most {summary['path_sgd_commutation_error']:.1e}" in page
    assert page.count("<img ") == 2 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    changed = results.copy(deep=True)
    changed["commutation_error"][:] = 1e-3
    text = " ".join(p for section in load("invariant_optimizers").page(changed) for p in section.paragraphs)
    assert "more than rounding" in text


@pytest.mark.parametrize(("name", "value"), [("networks", 1), ("steps", 2), ("spread", 0.0)])
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})
