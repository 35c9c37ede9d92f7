"""The study of rescue, run small: remedies by hand, checkpoints that come back to the bit, shares by hand, and its sentences from its figures."""

import json
import math
import operator
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from scipy import stats

from jaxsym import cli
from jaxsym.data import digits, flattened
from jaxsym.studies import load
from jaxsym.studies.rescue import RATES, Config, _resumed, remedies, sgd, squares, training
from jaxsym.studies.rescue_pieces import Checkpoints, Programs
from jaxsym.studies.rescue_summary import FINITE, FIRST, HEALTHY, LOST, MIDWAY, NEAR, claims, rescues, share
from jaxsym.studies.study import Clock, network_keys, silent
from jaxsym.training import Run

NETWORKS, STEPS, EVERY = 4, 30, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("rescue")
    sizes = {"networks": NETWORKS, "steps": STEPS, "checkpoint-every": EVERY, "rate": 2.0}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    cli.main(["run", "rescue", "--out", str(out), "--quick", *options])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("rescue").summary(results)
    plain = results.sweep_accuracy.values[:, 0]
    reference = np.median(plain, axis=1).max()
    assert summary["reference_accuracy"] == pytest.approx(reference)
    away = ~results.checkpoint_finite.sel(kind=FIRST).values[-1]
    assert summary["diverged"] == away.mean() == 1
    ways = results.way.values.tolist()
    for way, key in (
        ("clipping", "clipping"),
        ("lower rate", "lower_rate"),
        ("warm-up", "warm_up"),
        ("Adam", "optimizer"),
        ("unchanged", "unchanged"),
        ("Adam at the same rate", "optimizer_same_rate"),
    ):
        row = ways.index(way)
        fine = np.isfinite(results.start_loss.values[row]) & (
            results.start_accuracy.values[row] >= NEAR * summary["reference_accuracy"]
        )
        assert summary[f"recovered_{key}"] == fine[away].mean()
    for kind, key in ((FIRST, "roll_back"), (MIDWAY, "roll_back_midway")):
        away = results.diverged.sel(kind=kind).values
        own = results.sel(kind=kind, point=FINITE, remedy="lower rate").isel(network=np.flatnonzero(away))
        fine = np.isfinite(own.late_loss) & (own.late_accuracy >= NEAR * summary["reference_accuracy"])
        assert summary[f"recovered_{key}"] == float(fine.mean())
    assert summary["claims_that_failed"] == [claim for claim, _, holds in claims(results) if holds is False]


def test_the_shares_have_exact_intervals():
    found = share(np.arange(20) < 17)
    assert found.value == 17 / 20
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 17, 4))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 18, 3))
    assert math.isnan(share(np.array([], bool)).value)


def test_what_the_interval_does_not_tell_is_not_decided(results):
    some = lambda rescued, of: rescues(share(np.arange(of) < rescued))  # noqa: E731
    assert (some(20, 20), some(0, 20), some(11, 20), some(0, 0)) == (True, False, None, None)
    calm = results.assign(diverged=xr.zeros_like(results.diverged))
    first, *others = [holds for *_, holds in claims(calm)]
    assert first is (None if NETWORKS < 6 else False)
    assert others == [None] * len(others)  # no run diverged


def test_what_was_restored_is_what_was_saved(results, summary):
    assert summary["restored_bit_equal"]
    assert results.restored_equal.values.all()
    assert summary["checkpoints_restored"] >= 2
    for kind in (FIRST, MIDWAY):
        points = results.point_step.sel(kind=kind).values[:, results.diverged.sel(kind=kind).values]
        assert set(results.restored_step.values[results.restored_kind.values == kind]) == set(points.ravel())


@pytest.mark.parametrize("kind", [FIRST, MIDWAY])
def test_points_are_the_last_healthy_the_last_finite_and_the_next(results, kind):
    results = results.sel(kind=kind)
    finite, losses = results.checkpoint_finite.values, results.checkpoint_loss.values
    assert results.diverged.any()
    for network in np.flatnonzero(results.diverged):
        last = max(i for i in range(len(finite)) if finite[i, network])
        healthy = max(i for i in range(len(finite)) if finite[i, network] and losses[i, network] <= losses[0, network])
        steps = [int(results.point_step.sel(point=point)[network]) for point in (HEALTHY, FINITE, LOST)]
        assert steps == [healthy * EVERY, last * EVERY, (last + 1) * EVERY]
        assert not finite[last + 1 :, network].any()
        assert last * EVERY >= (0 if kind == FIRST else STEPS // 2)


def test_nothing_helps_from_what_is_not_finite_and_unchanged_runs_diverge_again(results, summary):
    assert not np.isfinite(results.late_loss.sel(point=LOST)).any()
    assert not np.isfinite(results.late_loss.sel(point=FINITE, remedy="unchanged")).any()
    results = results.sel(kind=FIRST)
    assert summary["recovered_roll_back_unchanged"] == 0
    assert summary["recovered_late_clipping"] == summary["recovered_late_lower_rate"] == 0
    assert np.isfinite(results.late_loss.sel(point=HEALTHY, remedy="clipping")).all()
    assert summary["recovered_clipping"] > 0 == summary["recovered_unchanged"]


def test_rolled_back_and_unchanged_is_the_same_run(results):
    """Records before and after the checkpoint are those of the run that was never interrupted."""
    for network in range(NETWORKS):
        once = results.start_history.sel(way="unchanged").values[network]
        again = results.late_history.sel(kind=FIRST, point=FINITE, remedy="unchanged").values[network]
        early = results.record.values <= int(results.point_step.sel(kind=FIRST, point=FINITE)[network])
        np.testing.assert_allclose(again[early], once[early], rtol=1e-2)


@pytest.mark.parametrize("name", ["unchanged", "clipping", "lower rate", "warm-up"])
def test_remedies_are_what_they_are_called(name):
    config = Config(steps=50)
    hyper = remedies(config, 2.0)[name]
    gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    optimizer = sgd(**hyper)
    state = optimizer.init(gradient)
    for step in range(12):
        updates, state = optimizer.update(gradient, state)
        factor = {
            "unchanged": -2.0,
            "clipping": -2.0 * 0.3 / 13,
            "lower rate": -0.2,
            "warm-up": -2.0 * min(1.0, (step + 1) / 10),
        }[name]
        np.testing.assert_allclose(updates["a"], factor * gradient["a"], rtol=1e-6)
        np.testing.assert_allclose(updates["b"], factor * gradient["b"], rtol=1e-6)


@pytest.fixture(scope="module")
def pieces():
    """Three networks at a rate at which they diverge, with their first eight steps in pieces."""
    split = flattened(digits(0))
    train = training(split, 8).then(lambda trained: {"loss": squares(trained.params, split.train)})
    programs = Programs(Clock(silent, 100), train, network_keys(3, 3))
    start = programs.start({"learning_rate": 2.0, "max_norm": np.inf, "warm_up": 1.0})
    return programs, start, programs.advance(start, 0, 8)


def test_a_checkpoint_comes_back_to_the_bit(pieces, tmp_path):
    programs, start, end = pieces
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(end.params))
    kept = Checkpoints(tmp_path, 3, lambda params: (squares(params, programs.train.data), jnp.array(True)))
    kept.save(0, start)
    kept.save(8, end)
    for index, saved in enumerate((start, end)):
        for back, leaf in zip(jax.tree.leaves(kept.restore(index)), jax.tree.leaves(saved), strict=True):
            assert back.dtype == leaf.dtype
            assert back.tobytes() == leaf.tobytes()
    assert kept.restored == {0: True, 1: True}
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file() and file.suffix != ".json" and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        kept.restore(1)


def test_pieces_and_roll_back_are_the_run_that_was_not_cut(pieces):
    programs, start, end = pieces
    half = programs.advance(start, 0, 4)
    for one, other in zip(jax.tree.leaves(programs.advance(half, 4, 4)), jax.tree.leaves(end), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_is_that_of_a_loop_by_hand(pieces):
    programs, start, _ = pieces
    rows = programs.train.data
    params = jax.tree.map(lambda leaf: leaf[0], start.params)
    key = jax.random.wrap_key_data(start.order_key[0])
    order = jax.random.permutation(jax.random.fold_in(key, 0), len(rows.targets))
    gradient = jax.jit(jax.grad(squares))
    for step in range(2):
        batch = jax.tree.map(operator.itemgetter(order[32 * step : 32 * (step + 1)]), rows)
        params = jax.tree.map(lambda p, g: p - 2.0 * g, params, gradient(params, batch))
    found = jax.tree.map(lambda leaf: leaf[0], programs.advance(start, 0, 2).params)
    apart = optax.tree.norm(optax.tree.sub(found, params)) / optax.tree.norm(params)
    assert float(apart) < 1e-4


class Ledger:
    """Programs that train nothing: the history of a run is the learning rate of every step that it has made."""

    def __init__(self, networks, steps):
        self.networks, self.steps, self.clock = networks, steps, types.SimpleNamespace(networks=0)
        self.train = types.SimpleNamespace(start=lambda key: jax.tree.map(operator.itemgetter(0), self.start({})))

    def start(self, hyper):
        optimizer = {name: np.full(self.networks, value) for name, value in hyper.items()}
        none, history = np.zeros(self.networks, int), np.zeros((self.networks, self.steps))
        return Run(none, none, optimizer, None, none, none, {}, {"loss": history})

    def advance(self, run, first, steps, count):
        assert (run.step == first).all()
        history = run.history["loss"].copy()
        history[:, first : first + steps] = run.optimizer["learning_rate"][:, None]
        return run._replace(step=run.step + steps, history={"loss": history})

    def finish(self, run):
        calm = {"max_norm": np.full(self.networks, np.inf), "warm_up": np.ones(self.networks)} | run.optimizer
        return {"loss": calm["max_norm"], "accuracy": calm["warm_up"], "history": run.history["loss"]}

    def say(self, label):
        pass


@pytest.mark.parametrize(("kind", "rate"), [(FIRST, 0.7), (MIDWAY, 2.0)])
def test_runs_go_on_where_they_were_at_the_rate_that_made_them_diverge(kind, rate):
    """Every remedy, Adam too, makes the steps after its checkpoint and no others; midway the rate is the raised one."""
    config, ledger, places = Config(networks=3, steps=10, checkpoint_every=2), Ledger(3, 10), [[1, 2, 0], [2, 4, 0]]

    def restore(index):
        run = ledger.start(remedies(config, rate)["unchanged"])
        return run._replace(step=np.full(3, 2 * index), history={"loss": np.full((3, 10), -1.0)})

    checkpoints = types.SimpleNamespace(
        points=lambda: np.array([*places, places[1]]),
        diverged=lambda: np.array([True, True, False]),
        steps=list(range(0, 11, 2)),
        restore=restore,
    )
    found = {name: values for name, (_, values, _) in _resumed(config, kind, ledger, ledger, checkpoints).items()}
    rates = [rate, rate, rate / 10, rate, 0.003]
    for point, network in np.ndindex(2, 2):
        step = 2 * places[point][network]
        for remedy, own in enumerate(rates):
            history = found["late_history"][point, remedy, network]
            np.testing.assert_allclose(history, [-1] * step + [own] * (10 - step), rtol=1e-6)
        np.testing.assert_allclose(found["late_loss"][point, :, network], [np.inf, 0.3, *[np.inf] * 3], rtol=1e-6)
        np.testing.assert_allclose(found["late_accuracy"][point, :, network], [1, 1, 1, 2, 1])
    assert np.isnan(found["late_history"][:, :, 2]).all()


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"where {summary['diverged']:.1%} diverge" in page
    assert f"{summary['reference_accuracy']:.1%} at a rate of {summary['reference_rate']:g}" in page
    assert "was what had been saved, to the bit" in page
    assert page.count("<img ") == 6 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": 1}, "networks: got 1, expected at least 2"),
        ({"steps": 5}, "steps: got 5"),
        ({"rate": 0.6}, "rate: got 0.6, expected one of 0.05, 0.1"),
        ({"checkpoint_every": 0}, "checkpoint_every: got 0"),
        ({"checkpoint_every": 300}, "checkpoint_every: got 300, expected at most half"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_config(changes, message):
    assert 0.7 in RATES
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.long
def test_quick(tmp_path):
    cli.main(["run", "rescue", "--out", str(tmp_path), "--quick"])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["diverged"] > 0.5
    assert found["recovered_clipping"] > 0.5
    assert found["recovered_optimizer"] > 0.5
    assert found["recovered_roll_back_unchanged"] < 0.2
    assert found["recovered_late_clipping"] == 0
