"""The study of propagation, run small: its figures by plain NumPy, its bounds by the product itself, wrong bounds that are caught."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxsym import cli
from jaxsym.studies import load, propagation
from jaxsym.studies.propagation import (
    ACTIVATIONS,
    ARCHITECTURES,
    DEPTHS,
    INITIALIZERS,
    LAYERS,
    NORMALIZED,
    PLAIN,
    RESIDUAL,
    Config,
    chosen_activation,
    draw,
    extreme_values,
    layer,
)
from jaxsym.studies.propagation_summary import _kept, best, claims, inner, power, training, violations
from jaxsym.studies.study import network_keys

WIDTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a tiny run."""
    out = tmp_path_factory.mktemp("propagation")
    options = "--networks 6 --width 6 --rows 5 --few 2 --chains 60 --trained 2 --steps 10"
    cli.main(["run", "propagation", "--out", str(out), "--quick", *options.split()])
    return out


def kernels_of(name, network=0):
    """The kernels and inputs of a network of the run."""
    keys = jax.random.split(network_keys(0, 6)[network], 3)
    kernels = draw(keys[0], jnp.array(list(INITIALIZERS).index(name)), LAYERS, (WIDTH, WIDTH))
    return np.asarray(kernels), np.asarray(jax.random.normal(keys[1], (5, WIDTH)))


@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_variance_and_singular_values_by_numpy(results, architecture):
    with jax.enable_x64(True):
        kernels, hidden = kernels_of("he")
    own = results.isel(network=0).sel(architecture=architecture, activation="tanh", initializer="he")
    product, largest, smallest = np.eye(WIDTH), 1.0, 1.0
    for number, kernel in enumerate(kernels[:5]):
        z = hidden @ kernel
        extra = np.eye(WIDTH) if architecture == "residual" else 0
        jacobian = extra + np.diag(1 - np.tanh(z[0]) ** 2) @ kernel.T
        values = np.linalg.svd(jacobian, compute_uv=False)
        product, largest, smallest = jacobian @ product, largest * values[0], smallest * values[-1]
        hidden = np.tanh(z) + (hidden if architecture == "residual" else 0)
        assert 10 ** float(own.variance[number]) == pytest.approx(hidden.var(), rel=1e-5)
    at = own.sel(depth=5)
    values = np.linalg.svd(product, compute_uv=False)
    found = [10 ** float(at[name]) for name in ("largest", "smallest", "largest_bound", "smallest_bound")]
    np.testing.assert_allclose(found, [values[0], values[-1], largest, smallest], rtol=1e-9)


def test_gradients_of_a_linear_chain_by_products_of_kernels(results):
    with jax.enable_x64(True):
        kernels, hidden = kernels_of("xavier", network=1)
        outputs = np.asarray(jax.random.normal(jax.random.split(network_keys(0, 2)[1], 3)[2], hidden.shape))
    back = [outputs / len(outputs)]
    for kernel in kernels[:0:-1]:
        back.append(back[-1] @ kernel.T)
    own = results.isel(network=1).sel(architecture="plain", activation="identity", initializer="xavier")
    norms = np.array([np.linalg.norm(each) for each in back[::-1]])
    np.testing.assert_allclose(10.0**own.gradient, norms, rtol=1e-5)
    assert float(own.gradient_ratio[-1]) == pytest.approx(np.log10(norms[0] / norms[-1]), abs=1e-5)


def test_extreme_values_against_the_product_itself():
    with jax.enable_x64(True):
        factors = np.eye(4) + 0.1 * np.asarray(jax.random.normal(jax.random.key(0), (LAYERS, 4, 4)))
        found = jax.tree.map(lambda leaf: 10.0 ** np.asarray(leaf), extreme_values(jnp.array(factors)))
    values = np.linalg.svd(factors, compute_uv=False)
    for index, depth in enumerate(DEPTHS):
        product = np.linalg.svd(np.linalg.multi_dot(factors[:depth][::-1]), compute_uv=False)
        assert found["largest"][index] == pytest.approx(product[0], rel=1e-10)
        assert found["smallest"][index] == pytest.approx(product[-1], rel=1e-8)
        assert found["largest_bound"][index] == pytest.approx(values[:depth, 0].prod(), rel=1e-10)
        assert found["smallest_bound"][index] == pytest.approx(values[:depth, -1].prod(), rel=1e-10)
    first = np.linalg.svd(factors[1] @ factors[0], compute_uv=False)
    assert first[-1] < values[:2, -2].prod()  # the second smallest are no bound
    assert first[0] > values[:2, 1].prod()


def test_singular_factors_have_a_smallest_value_of_nothing():
    """A unit that is off, and a reflection that the identity cancels: from the layer on where it is."""
    with jax.enable_x64(True):
        reflection = np.eye(4) + np.diag([1, 1, 1, -1.0])[[1, 2, 3, 0]].T @ np.diag([1, 1, 1, 1.0])
        assert abs(np.linalg.det(np.eye(4) + np.roll(np.eye(4), 1, 0))) < 1e-12
        for singular in (np.diag([1, 1, 1, 0.0]), np.eye(4) + np.roll(np.eye(4), 1, 0)):
            factors = np.tile(np.eye(4), (LAYERS, 1, 1))
            factors[7] = singular
            found = extreme_values(jnp.array(factors))
            np.testing.assert_array_equal(np.isneginf(found["smallest"]), [False, False, True, True, True])
            np.testing.assert_array_equal(np.isneginf(found["smallest_bound"]), [False, False, True, True, True])
        factors[7] = reflection  # invertible: nothing is given up
        assert np.isfinite(extreme_values(jnp.array(factors))["smallest"]).all()


@pytest.mark.parametrize("architecture", [PLAIN, RESIDUAL, NORMALIZED])
def test_a_layer_by_numpy(architecture):
    with jax.enable_x64(True):
        h, kernel = (np.asarray(jax.random.normal(jax.random.key(i), (5, 5))) for i in range(2))
        act = chosen_activation(jnp.array(ACTIVATIONS.index("tanh")))
        found = layer(jnp.array(h), jnp.array(kernel), jnp.array(architecture), act)
    z = h @ kernel
    if architecture == NORMALIZED:
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    np.testing.assert_allclose(found, np.tanh(z) + (h if architecture == RESIDUAL else 0), atol=1e-12)


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("propagation").summary(results)
    assert summary["bound_violations"] == 0
    assert summary["bounds_checked"] == 6 * 2 * 30 * 5 * 2 + 2 * 30 * 5
    for activation in ("tanh", "relu"):
        own = results.sel(architecture="plain", activation=activation)
        variance = own.variance.values[:, :, -1].astype(float) - own.variance.values[:, :, 0]
        gradient = own.gradient.values[:, :, 0].astype(float) - own.gradient.values[:, :, -1]
        drift = np.median(np.abs(variance) + np.abs(gradient), axis=0)
        assert list(INITIALIZERS)[int(drift.argmin())] == summary[f"best_initializer_{activation}"]
        assert drift.min() == pytest.approx(summary[f"best_drift_{activation}"], abs=1e-4)
    assert summary["claims_that_failed"] == [claim for claim, _, holds in claims(results) if holds is False]


def test_a_violation_is_counted(results):
    """Also where a figure is not a number, or a bound is beyond by little more than the tolerance."""
    for amount in (1e-8, np.nan):
        wrong = results.copy(deep=True)
        wrong["largest"][0, 0, 1, 2, 3] = wrong["largest_bound"][0, 0, 1, 2, 3] + amount
        assert violations(wrong)["violated"] == 1
        wrong["smallest"][0, 0, 0, 4, 3] = wrong["smallest_bound"][0, 0, 0, 4, 3] - amount
        assert violations(wrong)["violated"] == 2
    assert any("lie between" in claim for claim, _, holds in claims(wrong) if not holds)


def test_bounds_of_orthogonal_chains_are_met(results):
    own = results.sel(architecture="plain", activation="identity", initializer=["orthogonal", "orthogonal x 1.41"])
    for name in ("largest", "smallest"):
        np.testing.assert_allclose(own[name], own[f"{name}_bound"], atol=1e-12)
    np.testing.assert_allclose(
        own["largest"].sel(initializer="orthogonal x 1.41").mean("network"), np.array(DEPTHS) * np.log10(2) / 2
    )


def test_the_lower_bound_fails_only_where_the_inner_width_is_the_largest(results):
    shares = dict(zip(results.inner_width.values, inner(results)["lower"], strict=True))
    assert [shares[width] for width in (1, 2, 3)] == [0, 0, 0]
    assert 0 < shares[4] < shares[16]
    assert max(inner(results)["upper"]) == 0
    assert float(results.composed_to_nothing) == 0
    np.testing.assert_allclose(results.inner_lower.sel(inner_width=1), 1)  # one number times another


def test_slopes_and_ratios_of_gradients_by_numpy(monkeypatch):
    """A chain of four tanh layers, forward and backward by hand."""
    small = {"LAYERS": 4, "DEPTHS": (2, 4), "ARCHITECTURES": ("plain",), "ACTIVATIONS": ("tanh",)}
    small |= {"INITIALIZERS": {"xavier": INITIALIZERS["xavier"]}, "chosen_activation": lambda number: jnp.tanh}
    for name, value in small.items():
        monkeypatch.setattr(propagation, name, value)
    with jax.enable_x64(True):
        key = jax.random.key(2)
        found = jax.jit(propagation._signals(Config(width=3, rows=4)))(key)
        keys = jax.random.split(key, 3)
        kernels = np.asarray(draw(keys[0], jnp.array(0), 4, (3, 3)))
        inputs, outputs = (np.asarray(jax.random.normal(own, (4, 3))) for own in keys[1:])
    hidden = [inputs]
    for kernel in kernels:
        hidden.append(np.tanh(hidden[-1] @ kernel))
    slopes = [1 - each**2 for each in hidden[1:]]
    np.testing.assert_allclose(found["slope"][0, 0, 0], [np.sqrt(np.mean(each**2)) for each in slopes])
    for place, depth in enumerate((2, 4)):
        back, by_kernel, by_output = outputs / 4, [], []
        for number in reversed(range(depth)):
            by_output.append(np.linalg.norm(back))
            by_kernel.append(np.linalg.norm(hidden[number].T @ (back * slopes[number])))
            back = back * slopes[number] @ kernels[number].T
        for name, norms in (("gradient_ratio", by_output), ("weight_gradient_ratio", by_kernel)):
            assert float(found[name][0, 0, 0, place]) == pytest.approx(np.log10(norms[-1] / norms[0]))
            assert norms[-1] != pytest.approx(norms[0], rel=1e-2)


def test_the_learning_rate_is_chosen_by_the_training_loss():
    """Not by the accuracy on the test rows, and not one at which networks diverge."""
    by_rate = {"training_loss": [0.5, 0.1, 0.01], "accuracy": [0.9, 0.6, 0.8], "diverged": [False, False, True]}
    dims = "architecture", "trained_activation", "initializer", "rate", "trained"
    data = {name: (dims, np.tile(np.array(each)[:, None], (2, 1, 3, 1, 4))) for name, each in by_rate.items()}
    found = training(xr.Dataset(data))
    assert found.accuracy.sizes == {"architecture": 2, "trained_activation": 1, "initializer": 3, "trained": 4}
    assert (found.accuracy == 0.6).all()
    np.testing.assert_allclose(found.diverged, 1 / 3)


def test_it_is_the_squared_gradient_whose_mean_is_kept():
    """By a factor of 6.3 for all networks gradients are kept, and their squares are not; by 2.5 both are."""
    cells = {"activation": ["identity", "tanh", "relu"], "initializer": ["xavier", "he"]}
    dims = ("network", "architecture", *cells)
    none = xr.DataArray(np.zeros((20, 1, 3, 2)), dims=dims, coords={"architecture": ["plain"], **cells})

    def verdicts(ratios):
        return [(said, holds) for claim, said, holds in _kept(none, ratios) if "squared gradient" in claim]

    assert verdicts(none + 0.4) == [("mean factors 1 and 6.3 from end to end", True)] * 3
    assert verdicts(none + 0.8) == [("mean factors 1 and 40 from end to end", False)] * 3
    few = none - 0.5 * xr.DataArray(np.arange(20) >= 6, dims="network")  # whose squares 8.9 of 20 carry
    assert verdicts(few) == [("mean factors 1 and 0.37 from end to end; 8.9 of 20 networks carry them", None)] * 3


def test_a_tie_is_called_one(results):
    same = results.copy(deep=True)
    for name in ("variance", "gradient_ratio"):
        same[name].loc[{"initializer": "he"}] = same[name].sel(initializer="orthogonal")
        same[name].loc[{"initializer": "orthogonal x 1.41"}] = same[name].sel(initializer="orthogonal")
        same[name].loc[{"initializer": "xavier"}] = same[name].sel(initializer="orthogonal")
    assert best(same, "identity").tied
    assert not best(results, "identity").tied


def test_batch_normalisation_hides_the_scale_of_kernels(results):
    """Xavier's and He's differ by a factor, which the statistics of the batch take away but for their epsilon."""
    own = results.sel(architecture="batch norm", activation=["identity", "tanh"])
    for name in ("variance", "gradient_ratio"):
        np.testing.assert_allclose(
            own[name].sel(initializer="xavier").median("network").isel({own[name].dims[-1]: -1}),
            own[name].sel(initializer="he").median("network").isel({own[name].dims[-1]: -1}),
            atol=0.1,
        )
    assert float(results.normalized_null.max()) < 1e-12


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"0 violations in {summary['bounds_checked']} comparisons" in page
    assert f"with ReLU by {summary['batch_norm_growth_relu']:.3f} a layer" in page
    assert f"{summary['best_initializer_tanh']}, by {summary['best_drift_tanh']:.2f} orders of magnitude" in page
    assert page.count(">no</td>") == len(summary["claims_that_failed"])
    assert page.count("<img ") == 7 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_powers():
    assert [power(value) for value in (0, 1, 3, -4.25, -np.inf)] == ["1", "10", "10^3.0", "10^-4.2", "0"]


@pytest.mark.parametrize(("name", "value"), [("networks", 5), ("width", 1), ("few", 0), ("steps", 0), ("seed", -1)])
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})


@pytest.mark.long
def test_quick_findings(tmp_path):
    cli.main(["run", "propagation", "--out", str(tmp_path), "--quick"])
    import json

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bound_violations"] == 0
    assert summary["best_initializer_tanh"] in ("he", "orthogonal x 1.41")
    assert summary["best_initializer_relu"] in ("he", "orthogonal x 1.41")
    assert summary["best_initializer_identity"] == "orthogonal"
    assert 1.1 < summary["batch_norm_growth_relu"] < 1.5
    assert "Batch normalisation keeps gradients near 1 at initialisation." in summary["claims_that_failed"]
    assert "Gradients vanish in deep sigmoid networks." not in summary["claims_that_failed"]
    assert len(ARCHITECTURES) == 3
