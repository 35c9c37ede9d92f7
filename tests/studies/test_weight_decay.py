"""The study of weight decay, run small: minima by other ways, errors by sampling, its sentences from its figures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import jaxsym as js
from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.study import interval
from jaxsym.studies.weight_decay import PENALTIES, STRENGTHS, TRUE, Config, closed_ridge, drawn, measured, proximal
from jaxsym.studies.weight_decay_summary import chosen, claims, hindsight, on_axis, regret, rises


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("weight_decay")
    small = ["--draws", "6", "--sizes", "20,60", "--steps", "300"]
    cli.main(["run", "weight_decay", "--out", str(out), "--quick", *small])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("weight_decay").summary(results)
    few = results.sel(size=20)
    train, test, judge, zeros = (
        few[f"{name}"].values for name in ("train_error", "test_error", "validation_error", "zeros")
    )
    gaps, shares = {}, {}
    for place, penalty in enumerate(results["penalty"].values):
        best = judge[:, place].argmin(axis=-1)
        draws = np.arange(len(best))
        gaps[penalty] = np.mean(test[draws, place, best] - train[draws, place, best])
        shares[penalty] = np.mean(zeros[draws, place, best])
    assert summary["gap_none"] == pytest.approx(np.mean(test[:, 0, 0] - train[:, 0, 0]))
    assert summary["gap_l2"] == pytest.approx(gaps["L2"])
    assert summary["zeros_l1"] == pytest.approx(shares["L1"])
    assert summary["zeros_l2"] == pytest.approx(shares["L2"])
    assert summary["claims_that_failed"] == [claim for claim, _, holds in claims(results) if holds is False]


def test_without_a_penalty_all_penalties_are_one(results):
    free = results.sel(strength=0.0)
    for name in ("train_error", "test_error", "zeros", "noise_norm"):
        np.testing.assert_array_equal(free[name].sel(penalty="L1"), free[name].sel(penalty="both"))
        np.testing.assert_array_equal(free[name].sel(penalty="L1"), free[name].sel(penalty="L2"))


def test_l1_leaves_nothing_from_the_largest_slope_on(results):
    """The lasso is 0 exactly where the strength is at least the largest slope at 0: at 10 in all draws."""
    draws = drawn(0, 6, 60 + 50, 0.1)
    slopes = np.abs(np.einsum("rnp,rn->rp", draws.inputs[:, :20], draws.targets[:, :20]) / 20).max(axis=-1)
    own = results["zeros"].sel(size=20, penalty="L1").values
    above = slopes[:, None] < STRENGTHS
    assert above[:, -1].all()
    assert (own[above] == 1).all()
    assert (own[~above] < 1).all()


def trained(x, y, threshold, decay, steps=4000):
    def loss(weights, rows, key):
        return jnp.mean((rows[0] @ weights - rows[1]) ** 2) / 2 + decay / 2 * weights @ weights

    rate = 1 / (np.linalg.eigvalsh(x.T @ x / len(x))[-1] + decay)
    start = jnp.zeros(x.shape[1])
    train = js.make_train(lambda key: start, loss, proximal(rate, threshold), (x, y), steps=steps, record_every=steps)
    return np.asarray(jax.jit(train)(jax.random.key(0)).params)


def test_proximal_descent_is_coordinate_descent():
    """The elastic net by another algorithm: one weight after the other is set to its own minimum."""
    draws = drawn(3, 1, 30, 0.1)
    x, y = draws.inputs[0][:, :12], draws.targets[0]
    threshold, decay = 0.2, 0.05
    weights = np.zeros(12)
    for _ in range(500):
        for j in range(12):
            slope = x[:, j] @ (y - x @ weights + x[:, j] * weights[j]) / len(x)
            weights[j] = np.sign(slope) * max(abs(slope) - threshold, 0) / (x[:, j] @ x[:, j] / len(x) + decay)
    with jax.enable_x64(True):
        found = trained(x, y, threshold, decay)
    np.testing.assert_allclose(found, weights, atol=1e-12)
    assert ((found == 0) == (weights == 0)).all()
    assert 0 < (found == 0).sum() < 12


def test_a_threshold_that_comes_after_nothing_gives_no_zeros():
    """The subgradient step of plain SGD, which the proximal step replaces, has no exact zero."""
    draws = drawn(3, 1, 30, 0.1)
    x, y = draws.inputs[0][:, :12], draws.targets[0]
    weights, rate = jnp.zeros(12), 0.05
    slope = jax.jit(jax.grad(lambda w: jnp.mean((x @ w - y) ** 2) / 2 + 0.2 * jnp.abs(w).sum()))
    for _ in range(400):
        weights = optax.apply_updates(weights, -rate * slope(weights))
    assert (weights != 0).all()


def test_closed_ridge_solves_its_equations():
    draws = drawn(1, 3, 20, 0.1)
    ridge = closed_ridge(draws.inputs, draws.targets, [0.0, 0.5])
    for x, y, (free, held) in zip(draws.inputs, draws.targets, ridge, strict=True):
        np.testing.assert_allclose(np.linalg.solve(x.T @ x / 20 + 0.5 * np.eye(100), x.T @ y / 20), held, atol=1e-12)
        np.testing.assert_allclose(np.linalg.lstsq(x, y)[0], free, atol=1e-12)


def test_the_test_error_is_that_of_new_rows():
    draws = drawn(2, 1, 20, 0.1)
    weights = np.zeros((1, len(PENALTIES), len(STRENGTHS), 100))
    weights[..., :7] = 0.3
    found = measured(weights, draws, 20, 10, 0.1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100000, 100))
    y = x @ draws.weights[0] + 0.1 * rng.normal(size=len(x))
    errors = (x @ weights[0, 0, 0] - y) ** 2
    assert found["test_error"][0, 0, 0] == pytest.approx(errors.mean(), abs=4 * errors.std() / np.sqrt(len(x)))
    assert found["noise_norm"][0, 0, 0] == pytest.approx(0.3 * np.sqrt(7 - TRUE))
    assert found["zeros"][0, 0, 0] == pytest.approx(0.93)


def test_weights_that_are_no_minimum_are_found_out():
    draws = drawn(2, 2, 20, 0.1)
    strengths, shape = STRENGTHS, (2, len(PENALTIES), len(STRENGTHS), 100)
    ridge = closed_ridge(draws.inputs, draws.targets, strengths)
    found = measured(np.broadcast_to(ridge[:, None], shape).copy(), draws, 20, 10, 0.1)
    l1, l2 = list(PENALTIES).index("L1"), list(PENALTIES).index("L2")
    assert found["residual"][:, l2].max() < 1e-12
    assert found["ridge_error"].max() == 0
    assert found["residual"][:, l1, 1:].min() > 1e-5


def minimum(hessian, centre, strength):
    """With L1, two weights: the least of the loss over all patterns of signs."""
    best = None
    for signs in np.ndindex(3, 3):
        signs = np.array(signs) - 1
        on = signs != 0
        weights = np.zeros(2)
        if on.any():
            weights[on] = np.linalg.solve(hessian[np.ix_(on, on)], (hessian @ centre)[on] - strength * signs[on])
        value = (weights - centre) @ hessian @ (weights - centre) / 2 + strength * np.abs(weights).sum()
        if best is None or value < best[0]:
            best = value, weights
    return best[1]


def test_two_weights_are_at_their_minima(results):
    fractions = results["fraction"].values
    for draw in range(results.sizes["draw"]):
        hessian, centre = results["pair_hessian"].values[draw], results["pair_centre"].values[draw]
        most = np.abs(hessian @ centre).max()
        for place in (0, 10, 25, 38):
            strength = fractions[place] * most
            l1, l2 = results["pair"].values[draw, :, place]
            np.testing.assert_allclose(l1, minimum(hessian, centre, strength), atol=1e-6)
            expected = np.linalg.solve(hessian + strength * np.eye(2), hessian @ centre)
            np.testing.assert_allclose(l2, expected, atol=1e-6)


def test_l1_meets_an_axis_and_l2_does_not(results, summary):
    first = results["pair"].sel(pair_penalty="L1").isel(draw=0).values
    assert (first[-6:-1, 0] == 0).all()
    assert (first[-6:-1, 1] > 0).all()
    assert (results["pair"].sel(pair_penalty="L2") != 0).all()
    assert summary["pairs_on_axis_l2"] == 0
    assert on_axis(results, "L1")[0] > 0.5


def errors(**values):
    """A dataset of one number of rows and one penalty, with errors ``[draw, strength]``."""
    dims = ("size", "draw", "penalty", "strength")
    named = {name: (dims, np.array(each, float)[None, :, None]) for name, each in values.items()}
    return xr.Dataset(named, coords={"size": [20], "penalty": ["L1"]})


def test_the_best_in_hindsight_and_the_regret_by_hand():
    data = errors(test_error=[[4, 2, 3], [1, 5, 8]], validation_error=[[5, 6, 1], [3, 1, 2]])
    assert chosen(data).values.ravel().tolist() == [2, 1]
    assert hindsight(data).values.ravel().tolist() == [1, 0]
    assert regret(data).values.ravel().tolist() == [0.5, 4]


def test_it_is_the_training_error_that_rises():
    data = errors(train_error=[[1, 2, 1], [3, 3, 4]], test_error=[[3, 1, 2], [2, 3, 1]])
    assert rises(data).values[0, :, 0].tolist() == [[True, False], [True, True]]


def test_the_interval_of_a_mean_is_students():
    """Of 1, 2, 3, 4: the standard error is the root of 5/12, and 3.182446 the quantile of t with 3 degrees of freedom."""
    reach = 3.182446 * (5 / 12) ** 0.5
    np.testing.assert_allclose(interval(np.arange(1.0, 5)), [2.5, 2.5 - reach, 2.5 + reach], rtol=1e-6)


def test_the_norm_is_a_trace(results, summary):
    assert summary["trace_error_max"] == results["trace_error"].values.max() < 1e-13


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"is {summary['gap_none']:.3g} without a penalty, {summary['gap_l2']:.3g} with L2" in page
    assert "--sizes 20,60" in page
    assert page.count("<img ") == 5 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    for claim in summary["claims_that_failed"]:
        assert claim in page


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("draws", 1, "1"),
        ("noise", 1e39, "1e\\+39"),
        ("validation", 0, "0"),
        ("steps", 5, "5"),
        ("noise", 0.0, "0.0"),
        ("noise", float("nan"), "nan"),
        ("sizes", "50,100", "'50,100'"),
        ("sizes", "20,20", "'20,20'"),
        ("sizes", "few", "'few'"),
    ],
)
def test_bad_config(name, value, got):
    with pytest.raises(ValueError, match=f"{name}: got {got}"):
        Config(**{name: value})


@pytest.mark.long
def test_findings(tmp_path):
    """At the quick setting: L1 finds few weights and predicts better; L2's smaller gap is all training error."""
    cli.main(["run", "weight_decay", "--out", str(tmp_path / "run"), "--quick"])
    with xr.open_dataset(tmp_path / "run" / "results.nc", engine="h5netcdf") as data:
        found = load("weight_decay").summary(data.load())
    assert found["gap_l1"] < 0.6 * found["gap_none"]
    assert found["test_error_l1"] < 0.6 * found["test_error_none"]
    assert found["gap_l2"] < found["gap_none"]
    assert found["test_error_l2"] > 0.98 * found["test_error_none"]
    assert found["zeros_l1"] > 0.7
    assert found["zeros_l2"] < 0.05
    assert found["ridge_error_max"] < 1e-9
