"""The study of teleportation, run small: the published numbers, its figures from the file, its sentences from its figures."""

import re

import numpy as np
import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.teleportation import PLANES, Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run of one task and one optimizer."""
    out = tmp_path_factory.mktemp("teleportation")
    cli.main(["run", "teleportation", "--out", str(out), "--quick"])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("teleportation").summary(results)
    assert summary["booth_plain"] == pytest.approx(2.2025, abs=1e-4)
    assert summary["booth_teleport"] == pytest.approx(9.45e-4, rel=0.01)
    assert summary["rosenbrock_plain"] == pytest.approx(0.11134, abs=1e-5)
    assert summary["rosenbrock_teleport_median"] < 1e-6
    assert summary["rosenbrock_random_median"] < 0.1 * summary["rosenbrock_plain"]
    assert summary["teleport_loss_change_max"] < 1e-12


def test_plane_functions_are_those_of_the_paper():
    for x, y in ((0.3, -1.2), (1.0, 3.0)):
        p = np.array([x, y])
        booth = (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2
        rosenbrock = 100 * (x**2 - y) ** 2 + (x - 1) ** 2
        for name, value in (("booth", booth), ("rosenbrock", rosenbrock)):
            assert float(PLANES[name].loss(p)) == pytest.approx(value, rel=1e-5)
            np.testing.assert_allclose(PLANES[name].back(PLANES[name].to(p)), p, atol=1e-5)


def test_before_the_first_teleport_runs_are_the_same(results):
    for task in results.task.values:
        steps = results[f"{task}_step"].values
        early = steps <= int(results[f"{task}_every"])
        curves = results[f"{task}_loss"].values[..., early]
        np.testing.assert_allclose(curves[:, 0], curves[:, 1], rtol=1e-5)
        late = results[f"{task}_loss"].values[..., -1]
        assert (late[:, 0] != late[:, 1]).all()


def test_the_page_says_the_figures_and_sentences_follow_them(folder, results, summary):
    page = (folder / "report.html").read_text()
    assert f"{summary['booth_plain']:.5g} without and {summary['booth_teleport']:.3g} with it" in page
    count = 1 + results.sizes["task"]
    assert page.count("<img ") == count == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    changed = results.copy(deep=True)
    task = str(results.task.values[0])
    changed[f"{task}_loss"][:, 1] *= 100
    text = " ".join(p for section in load("teleportation").page(changed) for p in section.paragraphs)
    assert "lower with teleports for none of the optimizers" in text


@pytest.mark.parametrize(
    ("name", "value"), [("networks", 1), ("share", 0.0), ("tasks", "none"), ("optimizers", "none")]
)
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=value if isinstance(value, str) else f"{name}: got {value}"):
        Config(**{name: value})
