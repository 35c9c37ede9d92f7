"""The study of dropout, run small: what masks do, by hand; disturbances that are nothing at 0; figures by other routes."""

import html
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsym import cli
from jaxsym.data import Rows
from jaxsym.models import MLP
from jaxsym.studies import dropout, load
from jaxsym.studies.classifying import Parts
from jaxsym.studies.classifying import load as load_data
from jaxsym.studies.dropout import RATES, STRENGTHS, Config, strengths
from jaxsym.studies.dropout_network import CHAPTER, KINDS, factor, forward, left_on, make_loss, parts, program
from jaxsym.studies.dropout_summary import claims, identifier
from jaxsym.studies.study import tally


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("dropout")
    options = "--quick --data digits --rows 60 --networks 4 --width 8 --steps 40 --longer 2 --members 2"
    cli.main(["run", "dropout", "--out", str(out), *options.split()])
    return out


@pytest.fixture(scope="module")
def case():
    """A network with biases that are not zero, and rows."""
    net = MLP((7, 6, 4), "relu")
    x = jax.random.normal(jax.random.key(0), (9, 5))
    params = net.init(jax.random.key(1), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    return net, params, Rows(x, jnp.arange(9) % 4)


@pytest.mark.parametrize("kind", KINDS)
def test_rate_0_is_the_plain_network(case, kind):
    net, params, rows = case
    plain = net.apply(params, rows.inputs)
    np.testing.assert_allclose(forward(params, rows.inputs)[-1], plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        forward(params, rows.inputs, jax.random.key(2), (0.0, 0.0), kind)[-1], plain, rtol=1e-5, atol=1e-6
    )
    disturbed = forward(params, rows.inputs, jax.random.key(2), (0.2, 0.5), kind)[-1]
    assert np.abs(disturbed - plain).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_factors_have_mean_1_and_dropouts_variance(kind):
    drawn = np.asarray(factor(kind, jax.random.key(0), 0.3, (200, 1000)))
    assert drawn.mean() == pytest.approx(1, abs=0.01)
    assert drawn.var() == pytest.approx(0.3 / 0.7, rel=0.02)
    if kind != "Gaussian noise":
        np.testing.assert_allclose(np.unique(drawn), [0, 1 / 0.7], rtol=1e-6)


def test_forward_by_hand(case):
    """Dropout has a mask for every unit of every row, DropConnect one for every weight that leaves a layer."""
    _, params, rows = case
    layers = [jax.tree.map(np.asarray, params["params"][f"Dense_{i}"]) for i in range(3)]
    key, rates = jax.random.key(5), (0.2, 0.5)
    masks = [
        np.asarray(jax.random.bernoulli(jax.random.fold_in(key, i), 1 - r, (9, n))) / (1 - r)
        for i, (r, n) in enumerate(zip(rates, (7, 6), strict=True))
    ]
    h = np.asarray(rows.inputs)
    for i in range(2):
        h = np.maximum(h @ layers[i]["kernel"] + layers[i]["bias"], 0) * masks[i]
    expected = h @ layers[2]["kernel"] + layers[2]["bias"]
    np.testing.assert_allclose(forward(params, rows.inputs, key, rates)[-1], expected, rtol=1e-5, atol=1e-6)

    h = np.asarray(rows.inputs)
    weights = [1.0]
    weights += [
        np.asarray(jax.random.bernoulli(jax.random.fold_in(key, i), 1 - r, layers[i + 1]["kernel"].shape)) / (1 - r)
        for i, r in enumerate(rates)
    ]
    for i in range(3):
        h = h @ (layers[i]["kernel"] * weights[i]) + layers[i]["bias"]
        h = np.maximum(h, 0) if i < 2 else h
    np.testing.assert_allclose(forward(params, rows.inputs, key, rates, "DropConnect")[-1], h, rtol=1e-5, atol=1e-6)


def test_decay_and_smoothing_by_hand(case):
    net, params, rows = case
    logits = np.asarray(net.apply(params, rows.inputs), float)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = 0.9 * np.eye(4)[np.asarray(rows.targets)] + 0.1 / 4
    squares = sum(float(jnp.sum(layer["kernel"] ** 2)) for layer in params["params"].values())
    value = make_loss("dropout")(params, rows, jax.random.key(0), decay=jnp.array(0.3), smoothing=jnp.array(0.1))
    assert float(value) == pytest.approx(-(labels * logs).sum(axis=1).mean() + 0.15 * squares, rel=1e-5)
    noisy = make_loss("dropout")(params, rows, jax.random.key(0), input_noise=jnp.array(0.5))
    assert abs(float(noisy) + (np.eye(4)[np.asarray(rows.targets)] * logs).sum(axis=1).mean()) > 1e-3


def test_masks_left_on_are_averaged(case):
    """Probabilities of 4 masks by hand; without dropout any number of masks is the network itself."""
    net, params, rows = case
    key = jax.random.key(8)
    found = jax.jit(left_on(rows, (1, 4), *CHAPTER))(key, params)
    chances = [jax.nn.softmax(forward(params, rows.inputs, jax.random.fold_in(key, i), CHAPTER)[-1]) for i in range(4)]
    for place, num in enumerate((1, 4)):
        mean = np.mean(chances[:num], axis=0)
        loss = -np.log(mean[np.arange(9), np.asarray(rows.targets)]).mean()
        assert float(found["loss"][0, place]) == pytest.approx(loss, rel=1e-5)
        assert float(found["error"][0, place]) == pytest.approx(
            100 * np.mean(mean.argmax(1) != np.asarray(rows.targets)), abs=1e-4
        )
    calm = jax.jit(left_on(rows, (1, 4), 0.0, 0.0))(key, params)["loss"]
    plain = jax.nn.log_softmax(net.apply(params, rows.inputs))[jnp.arange(9), rows.targets].mean()
    np.testing.assert_allclose(calm, -plain, rtol=1e-5)


def test_variance_is_over_rows_and_its_mean_over_units():
    """After a step, by hand: a unit's own level is no part of it."""
    rows = Rows(jax.random.normal(jax.random.key(0), (6, 3)), jnp.arange(6) % 2)
    one = program(Parts(rows, rows, rows), 4, 2, kind="dropout", steps=1, batch_size=3, rate=0.1, records=1)
    key, rates = jax.random.key(1), (0.2, 0.5)
    found = jax.jit(one)(key, dict(zip(("first", "second"), rates, strict=True)))
    for disturbed, own in enumerate(((), (jax.random.fold_in(key, 3), rates))):
        for layer, hidden in enumerate(forward(found["params"], rows.inputs, *own)[:2]):
            by_unit = np.asarray(hidden).var(axis=0)
            assert found["variance"][-1, layer, disturbed] == pytest.approx(by_unit.mean(), rel=1e-4)
            assert by_unit.mean() < 0.99 * np.asarray(hidden).var()


def test_an_ensemble_averages_probabilities():
    """Two groups of two networks, one row of class 0: in the first one of them all but excludes it, which logits would not forget."""
    chances = np.array([[[1e-4, 0.45, 0.5499], [0.8, 0.1, 0.1]], [[0.3, 0.6, 0.1], [0.2, 0.6, 0.2]]])
    rows = Rows(jnp.zeros((1, 3)), jnp.array([0]))
    logits = jnp.asarray(np.log(chances).reshape(1, 1, 4, 1, 3))
    grids = {f"{part}_logits": logits for part in ("train", "test")}
    found = dropout._ensembles(Config(networks=4, members=2), Parts(rows, rows, rows), grids)
    for part in ("train", "test"):
        np.testing.assert_allclose(found[f"ensemble_{part}_loss"][1], -np.log([0.40005, 0.25]), rtol=1e-5)
        np.testing.assert_array_equal(found[f"ensemble_{part}_error"][1], [0, 100])


def test_images_are_made_smaller():
    large = parts(load_data("mnist_5k"), 20)
    assert large.train.inputs.shape == (20, 196)
    image = np.asarray(load_data("mnist_5k").train.inputs[3])
    by_hand = [image[i : i + 2, j : j + 2].mean() for i in range(0, 28, 2) for j in range(0, 28, 2)]
    np.testing.assert_allclose(large.train.inputs[3], by_hand, atol=1e-6)
    assert parts(load_data("digits"), 20).validation.inputs.shape == (20, 64)
    with pytest.raises(ValueError, match="rows: got 3000, expected at most 2000"):
        parts(load_data("mnist_5k"), 3000)


def test_settings_that_are_the_same_have_the_same_networks(results):
    """The chapter's rates are in the grid and among the strengths of dropout; both have the same keys."""
    grid = results.sel(first=CHAPTER[0], second=CHAPTER[1])
    place = STRENGTHS["dropout"].index(CHAPTER[1])
    for key in ("test_loss", "train_loss", "test_error"):
        tuned = results[f"tuned_{key}"].sel(remedy="dropout")
        np.testing.assert_allclose(tuned.isel(choice=place), grid[f"grid_{key}"], rtol=1e-4)
        assert not np.allclose(tuned.isel(choice=-1), grid[f"grid_{key}"], rtol=1e-3)
    for name, pair in (("none", (0.0, 0.0)), ("dropout", CHAPTER), ("swapped", CHAPTER[::-1])):
        long = results.long_train_loss.sel(length=name, step=40)
        short = results.grid_train_loss.sel(first=pair[0], second=pair[1])
        np.testing.assert_allclose(long, short, rtol=1e-3)
    assert set(strengths("weight decay", 0.1)) == set(strengths("dropout", 0.1))


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("dropout").summary(results)
    error = results.grid_test_error.values
    at = {(a, b): error[RATES.index(a), RATES.index(b)].astype(float) for a in RATES for b in RATES}
    swap = at[0.5, 0.2] - at[0.2, 0.5]
    assert summary["swap_effect"] == pytest.approx(swap.mean(), abs=1e-5)
    expected = stats.t.interval(0.95, len(swap) - 1, swap.mean(), stats.sem(swap))
    np.testing.assert_allclose(summary["swap_effect_interval"], expected, atol=1e-5)
    decay = STRENGTHS["weight decay"].index(summary["weight_decay_chosen"])
    validation = results.tuned_validation_loss.sel(remedy="weight decay").mean("network").values
    assert decay == validation.argmin()
    tuned = {
        name: results.tuned_test_error.sel(remedy=name).values[decay].astype(float)
        for name in ("weight decay", "dropout and decay")
    }
    term = tuned["dropout and decay"] - tuned["weight decay"] - at[0.2, 0.5] + at[0.0, 0.0]
    expected = stats.t.interval(0.95, len(term) - 1, term.mean(), stats.sem(term))
    np.testing.assert_allclose(summary["interaction_interval"], expected, atol=1e-5)
    for remedy in STRENGTHS:
        place = STRENGTHS[remedy].index(summary[f"{identifier(remedy)}_chosen"])
        found = results.tuned_test_loss.sel(remedy=remedy).values[place]
        assert summary[f"{identifier(remedy)}_test_loss"][0] == pytest.approx(found.mean(), rel=1e-5)


def test_early_stopping_stops_at_the_least_validation_loss(results):
    """Along the longer run of the same networks, up to the end of the ordinary one."""
    along = results.sel(length="none").where(results.step <= 40, drop=True)
    best = along.long_validation_loss.argmin("step")
    np.testing.assert_allclose(along.long_test_loss.isel(step=best), results.stopped_test_loss, rtol=1e-3)


def test_an_ensemble_is_no_worse_than_its_members_in_the_mean(results):
    """Jensen: the loss of mean probabilities is at most the mean loss."""
    for part in ("train", "test"):
        single = results[f"grid_{part}_loss"].sel(first=0, second=0).values.reshape(2, 2).mean(axis=1)
        assert (results[f"ensemble_{part}_loss"].values <= single + 1e-5).all()


def test_variance_on_is_that_of_the_masks(results):
    """In the first layer a mask cannot make the variance smaller in the mean; without rates on and off are the same."""
    variance = results.variance.isel(step=-1)
    none = variance.sel(length="none")
    np.testing.assert_allclose(none.sel(disturbed=True), none.sel(disturbed=False), rtol=1e-5)
    first = variance.sel(length="swapped", layer=1).mean("network")
    assert float(first.sel(disturbed=True)) > float(first.sel(disturbed=False))


def test_variance_ratios_are_those_at_the_end_of_the_ordinary_training(results, summary):
    assert results.attrs["steps"] == 40
    steps = results.step.values.tolist()
    for layer in (0, 1):
        plain = results.variance.values[0, :, steps.index(40), layer, 0].astype(float)
        for disturbed, name in enumerate(("off", "on")):
            own = results.variance.values[1, :, steps.index(40), layer, disturbed]
            logs = np.log(own / plain)
            low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
            expected = np.exp([logs.mean(), low, high])
            np.testing.assert_allclose(summary[f"variance_ratio_{layer + 1}_{name}"], expected, rtol=1e-4)


def test_claims_can_come_out_either_way(summary):
    clear = summary | {
        "swap_effect_interval": [0.2, 0.4],
        "interaction_interval": [0.1, 0.3],
        "gap_change": [0.2, 0.1, 0.3],
    }
    held = {claim: holds for claim, _, holds in claims(clear)}
    assert held["A lower rate near the input is better than the same rates swapped."] is True
    assert held["What dropout and weight decay do to the test error adds up."] is False
    assert held["Dropout narrows the gap between training and test."] is False
    unclear = clear | {"swap_effect_interval": [-0.1, 0.4], "gap_change": [0.2, -0.1, 0.3]}
    assert {claims(unclear)[place][2] for place in (0, 2)} == {None}
    assert summary["claims_that_failed"] == [claim for claim, _, holds in claims(summary) if holds is False]


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    low, high = summary["swap_effect_interval"]
    assert (
        f"changes the test error by {summary['swap_effect']:+.2f} [{low:+.2f}, {high:+.2f}] percentage points" in page
    )
    assert html.escape(tally(claims(summary))) in page
    assert page.count("<img ") == 6 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": 3}, "networks: got 3"),
        ({"networks": 6}, "networks: got 6, expected at least 8"),
        ({"steps": 25}, "steps: got 25, expected a multiple of 10"),
        ({"batch_size": 501}, "batch_size: got 501"),
        ({"rate": 0.0}, "rate: got 0.0"),
        ({"rate": math.inf}, "rate: got inf, expected a number above 0 and at most 1"),
        ({"width": 3}, "width: got 3"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


@pytest.mark.long
def test_a_quick_run_finds_what_must_be_so(tmp_path):
    cli.main(["run", "dropout", "--out", str(tmp_path), "--quick"])
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["gap_change"][2] < 0
    assert figures["on_error_probabilities_1"][1] > 0
    losses = [figures[f"on_loss_probabilities_{num}"][0] for num in (1, 4, 16, 64)]
    assert losses == sorted(losses, reverse=True)
    assert figures["variance_ratio_1_off"][0] < figures["variance_ratio_1_on"][0]
