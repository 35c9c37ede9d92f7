"""The study of connectivity, run small: barriers by hand, merged networks by hand, its summary from the file, its page from the summary."""

import html
import json
import re

import jax
import numpy as np
import pytest
import xarray as xr

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.mode_connectivity import Config, numbers, permutations
from jaxsym.studies.mode_connectivity_summary import MOVES, claims
from jaxsym.studies.study import tally

WIDTHS, COUNTS = (4, 8), (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("mode_connectivity")
    options = "--quick --pairs 2 --widths 4,8 --merged 2,3 --merged-width 6 --epochs 2 --rows 256 --points 5"
    cli.main(["run", "mode_connectivity", "--out", str(out), *options.split()])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("mode_connectivity").summary(results)
    for width in WIDTHS:
        for move in MOVES:
            lines = results.loss.sel(activation="relu", width=width, move=move).values
            chord = lines[:, :1] + np.linspace(0, 1, 5) * (lines[:, -1:] - lines[:, :1])
            assert summary[f"barrier_{move}_{width}"] == pytest.approx((lines - chord).max(1).mean(), abs=1e-6)
        errors = results.error.sel(activation="relu", width=width, move="activations").values
        assert summary[f"midpoint_accuracy_{width}"] == pytest.approx(1 - errors[:, 2].mean())
        assert summary[f"endpoint_accuracy_{width}"] == pytest.approx(1 - errors[:, [0, 4]].mean())
    last = results.merged_accuracy.sel(count=COUNTS[-1], way="into a universe")
    assert summary[f"merged{COUNTS[-1]}_accuracy"] == pytest.approx(float(last))
    assert summary["networks"] == 2 * 2 * 4 + 3


def test_a_network_that_was_moved_is_the_same_function(results):
    """The ends of every line have one loss and one error, however the second network was moved."""
    for name, tolerance in (("loss", 1e-4), ("error", 1e-6)):
        ends = results[name].isel(point=[0, -1])
        assert float(abs(ends - ends.sel(move="naive")).max()) < tolerance


def test_matching_by_weights_brings_networks_closer(results):
    distance = results.distance.transpose("move", ...)
    assert bool((distance.sel(move="weights") < distance.sel(move="naive")).all())
    assert bool((distance.sel(move="permutations") <= distance.sel(move="naive")).all())


def test_along_the_orbit_the_loss_stays(results, summary):
    assert summary["orbit_path_loss_range"] < 1e-9
    assert summary["orbit_path_loss_range"] == float(np.ptp(results.orbit_loss.values, axis=-1).max())
    assert "Along a curve inside an orbit the loss does not change" not in summary["claims_that_failed"]


def test_claims_can_come_out_either_way(results):
    worse = results.assign(
        barrier=results.barrier.where(results.move == "naive", results.barrier.sel(move="naive") + 1)
    )
    verdicts = {claim: holds for claim, _, holds in claims(worse)}
    assert verdicts["Moved onto each other by weights, networks have a lower barrier than as they are"] is False
    bent = results.assign(orbit_loss=results.orbit_loss + xr.DataArray(np.arange(results.sizes["step"]), dims="step"))
    assert {claim: holds for claim, _, holds in claims(bent)}[
        "Along a curve inside an orbit the loss does not change"
    ] is False


def test_the_page_says_the_figures(folder, results, summary):
    page = (folder / "report.html").read_text()
    assert f"{summary['barrier_naive_8']:.3g} nats as they are" in page
    assert html.escape(tally(claims(results))) in page
    assert page.count("<img ") == 4 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_permutations_alone():
    from tests.alignment.test_match import mlp

    _, sym, params = mlp((3, 5, 2), "relu")
    alone = permutations(sym)
    assert (alone.order, alone.dim) == (120, 0)
    moved = alone.act(jax.device_get(alone.sample(jax.random.key(0))), params)
    given, other = (np.asarray(tree["params"]["Dense_0"]["kernel"]) for tree in (params, moved))
    np.testing.assert_array_equal(np.sort(given.sum(0)), np.sort(other.sum(0)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": 1}, "pairs: got 1"),
        ({"widths": "64,16"}, "widths: got '64,16', expected numbers from 2 on in rising order"),
        ({"merged": "1,2"}, "merged: got '1,2'"),
        ({"merged": "two"}, "merged: got 'two'"),
        ({"points": 2}, "points: got 2"),
        ({"rows": 10}, "rows: got 10"),
        ({"epochs": 0}, "epochs: got 0"),
    ],
)
def test_bad_config(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)


def test_numbers():
    assert numbers("widths", "16, 64", 2) == [16, 64]


@pytest.mark.long
def test_findings(tmp_path):
    """At the quick setting: matching takes most of the barrier away, more so where networks are wide."""
    cli.main(["run", "mode_connectivity", "--quick", "--out", str(tmp_path / "run")])
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert figures["barrier_activations_64"] < 0.3 * figures["barrier_naive_64"]
    assert figures["barrier_weights_64"] < 0.3 * figures["barrier_naive_64"]
    assert figures["barrier_activations_64"] < figures["barrier_activations_16"]
    assert figures["merged8_accuracy"] > figures["merged_accuracies_naive"][-1] + 0.3
