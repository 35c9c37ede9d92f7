"""The study of conservation, run small: its figures from the file, its laws by hand, its sentences from its figures."""

import re

import numpy as np
import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.conservation import DECAY, LAW_RATE, Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run of two kinds."""
    out = tmp_path_factory.mktemp("conservation")
    cli.main(["run", "conservation", "--out", str(out), "--quick", "--kinds", "relu 4-8-3,linear 3-5-4"])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("conservation").summary(results)
    assert summary["charges"] == [8, 15] == results["count"].values.tolist()
    assert results.without.values.tolist() == [0, 10]
    middle = np.log(results.drift.median("network").values)
    rates = np.log(results.rate.values)
    slopes = [
        ((rates - rates.mean()) * (line - line.mean())).sum() / ((rates - rates.mean()) ** 2).sum() for line in middle
    ]
    assert summary["drift_slopes"] == pytest.approx(slopes)
    assert 0.8 < summary["drift_slope"] < 1.3
    assert summary["step_law_max_error"] < 1e-13
    assert summary["momentum_law_max_error"] < 1e-13
    assert summary["flow_drift_over_sgd"] < 0.05
    assert summary["adam_drift_over_sgd"] > 2


def test_charges_fall_by_decay_and_rise_by_gradients(results):
    """The exact law leaves (1 - lr wd)^2 of a charge, and what squared gradients add: of first order in the rate."""
    charges = results.charges.sel(kind="relu 4-8-3").values[..., :8]
    steps = charges.shape[1] - 1
    shrunk = charges[:, 0] * (1 - LAW_RATE * DECAY) ** (2 * steps)
    assert np.abs(charges[:, -1] - shrunk).max() < 0.3 * np.abs(charges).max()
    assert np.abs(charges[:, -1] - charges[:, 0]).max() > 1e-3


def test_the_page_says_the_figures_and_needs_nothing_else(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"to the power {summary['drift_slope']:.2f}" in page
    assert f"at most {summary['step_law_max_error']:.1e}" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img ") == 3 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_sentences_follow_the_figures(results):
    def text(dataset):
        return " ".join(paragraph for section in load("conservation").page(dataset) for paragraph in section.paragraphs)

    assert "in float64: rounding." in text(results)
    changed = results.copy(deep=True)
    changed["law_error"][:] = 1e-3
    assert "more than rounding" in text(changed)


@pytest.mark.parametrize(("name", "value"), [("networks", 1), ("law_steps", 2), ("flow_steps", 0)])
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})
