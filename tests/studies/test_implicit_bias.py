"""The study of implicit bias, run small: starts that are one function, predictions by hand, its sentences from its figures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsym as js
from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.implicit_bias import DECAYS, FITTED, KINDS, SINGULAR, Config, predicted, unbalanced
from jaxsym.symmetry.precision import wide


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("implicit_bias")
    cli.main(["run", "implicit_bias", "--out", str(out), "--quick"])
    return out


@pytest.mark.parametrize("name", KINDS)
def test_unbalanced_starts_are_one_function(name):
    kind = KINDS[name]
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (9, kind.inputs))
        params = wide(kind.net.init(jax.random.key(1), x))
        sym = js.discover(kind.net.apply, params, x)
        kept = js.dynamics.charges(sym)
        moved = unbalanced(sym, params, jnp.array(1.5))
        np.testing.assert_allclose(kind.net.apply(moved, x), kind.net.apply(params, x), atol=1e-12)
        ratio = moved["params"]["Dense_0"]["kernel"] / params["params"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(ratio, np.exp(1.5), rtol=1e-10)
        assert jnp.linalg.norm(kept(moved)) > 3 * jnp.linalg.norm(kept(params))


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("implicit_bias").summary(results)
    for kind, value in zip(results.kind.values, summary["charge_test_error_correlations"], strict=True):
        within = []
        for network in range(results.sizes["network"]):
            own = results.sel(kind=kind).isel(network=network)
            ok = (own.loss < FITTED).values
            if ok.sum() > 2:
                within.append(stats.spearmanr(own.charge.values[ok], own.test_error.values[ok]).statistic)
        assert value == pytest.approx(np.mean(within))
    assert summary["charge_test_error_correlation"] == pytest.approx(np.mean(summary["charge_test_error_correlations"]))


def test_decay_leaves_as_many_singular_values_as_it_must(results, summary):
    assert [predicted(decay) for decay in DECAYS] == [5, 4, 3, 2, 1, 0]
    assert SINGULAR == (2.0, 1.0, 0.5, 0.3, 0.1)
    assert summary["collapse_agreement"] == 1
    assert (results.alive.values == [5, 4, 3, 2, 1, 0]).all()
    assert (results.units.values == [5, 4, 3, 2, 1, 0]).all()
    assert (np.diff(results.directions.mean("network")) <= 0).all()
    assert int(results.directions.isel(decay=-1).max()) < 5


def test_noise_moves_the_ratio_towards_the_balance_of_gradients(results):
    """From both sides: the logarithm of |u|^2 / v^2 comes nearer to that of the number of inputs."""
    first, last = np.log(results.noise_start) - np.log(4), np.log(results.noise_end) - np.log(4)
    far = np.abs(first.values) > 1
    assert (np.abs(last.values) < np.abs(first.values))[far].all()
    np.testing.assert_allclose(results.noise_product, 1, atol=0.6)


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert "implicit_bias, a quick run: too small" in page
    assert "jaxsym run implicit_bias --out runs/implicit_bias --quick" in page
    assert f"at {summary['noise_ratio']:.2f} in the (geometric) mean" in page
    assert page.count("<img ") == 3 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(("name", "value"), [("networks", 1), ("steps", 2), ("noise_steps", 0)])
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})
