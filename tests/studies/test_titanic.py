"""The study of the Titanic, run small: its facts by other routes, its summary from the file, its page from the summary."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym import cli, data
from jaxsym.models import MLP
from jaxsym.studies import load
from jaxsym.studies.titanic import Config
from jaxsym.training.initial import initializer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("titanic")
    options = "--quick --networks 5 --few 2 --splits 2 --converge-steps 120"
    cli.main(["run", "titanic", "--out", str(out), *options.split()])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("titanic").summary(results)
    by_hand = {
        "case0_cost_zeros_1000": results.case0_cost.sel(case0_start="zeros").values[:, -1].mean(),
        "case0_cost_random": results.case0_converged_cost.sel(case0_start="random").values[:, -1].mean(),
        "case1_cost_3000": results.case1_cost.values[:, -1].mean(),
        "case1_output_bias": results.case1_output_bias.values.mean(),
        "distinct_units_xavier": results.distinct_units.sel(initializer="xavier").values[:, -1].mean(),
        "test_accuracy_zeros": results.test_accuracy.sel(initializer="zeros").values.mean(),
        "net_steps_per_second": float(results.net_steps) / float(results.run_seconds),
    }
    for key, value in by_hand.items():
        assert summary[key] == pytest.approx(value, rel=1e-6)
    assert summary["networks"] == 2 * 2 * 5 + (2 + 5) + (7 * 5 + 2 * 2 + 8 * 2) + 2 * 3 * 2 + 2 * 2


def test_case0_by_gradient_descent_in_numpy(results):
    """Logistic regression from zero, by hand, in float64."""
    rows = data.titanic(1).train
    x, y = np.asarray(rows.inputs, np.float64), np.asarray(rows.targets)
    w, b = np.zeros(x.shape[1]), 0.0
    for _ in range(1000):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        w, b = w - 0.001 * x.T @ error / len(y), b - 0.001 * error.mean()
    z = x @ w + b
    cost = np.mean(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - y * z)
    assert results.case0_cost.sel(case0_start="zeros").values[0, -1] == pytest.approx(cost, rel=1e-5)


def test_case0_meets_at_the_optimum_of_newton(summary):
    rows = data.titanic(1).train
    x = np.concatenate([rows.inputs, np.ones((len(rows.inputs), 1))], axis=1).astype(np.float64)
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ w))
        w += np.linalg.lstsq(x.T @ (x * (p * (1 - p))[:, None]), x.T @ (rows.targets - p), rcond=1e-10)[0]
    best = -np.mean(np.log(np.where(np.asarray(rows.targets) == 1, p, 1 - p)))
    assert summary["case0_cost_zeros"] == pytest.approx(best, abs=2e-3)
    assert summary["case0_cost_random_1000"] > summary["case0_cost_zeros_1000"] + 0.1


def test_case1_moves_only_the_output_bias(results, summary):
    assert summary["case1_max_abs_kernel"] == 0.0
    assert summary["case1_max_abs_hidden_bias"] == 0.0
    share = float(np.mean(np.asarray(data.titanic(1).train.targets)))
    assert summary["case1_output_bias"] == pytest.approx(np.log(share / (1 - share)), abs=2e-3)
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert summary["case1_cost_first"] == pytest.approx(np.log(2), abs=1e-6)
    assert summary["case1_cost_3000"] == pytest.approx(entropy, abs=1e-4)
    assert (results.case1_cost == results.case1_cost[0]).all()


def test_what_breaks_symmetry(results, summary):
    assert summary["case2_cost_3000"] < 0.5 < summary["case1_cost_3000"]
    for name in ("zeros", "constant"):
        assert summary[f"distinct_units_{name}"] == 1
    for name in ("tied", "normal", "xavier", "he", "orthogonal"):
        assert summary[f"distinct_units_{name}"] == 4
    assert (results.distinct_units.sel(initializer="tied")[:, 0] == 1).all()
    ends = results.tie_distinct_units.isel(adam_step=-1).mean("few")
    assert ends.sel(tie="constant units, random output") == 4
    assert ends.sel(tie="tied units, constant output") == 1
    assert summary["largest_distance_of_equal_units"] < 1e-6 < 1e-2 < summary["smallest_distance_of_distinct_units"]


def test_tied_gradients_differ_by_the_output_weights_alone():
    """The explanation on the page: the gradient of unit j's incoming weights is B_j times the same vector."""
    rows = data.titanic(1).train
    net = MLP((4, 1), kernel_init=initializer("tied"))
    params = net.init(jax.random.key(0), rows.inputs[:1])

    def cost(params):
        z = net.apply(params, rows.inputs)[:, 0]
        return jnp.mean(jax.nn.softplus(z) - rows.targets * z)

    grads = jax.grad(cost)(params)["params"]["Dense_0"]["kernel"]
    ratio = grads / params["params"]["Dense_1"]["kernel"][:, 0]
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones((1, 4)), rtol=1e-3)


def test_large_scales_saturate_and_zero_is_zero_at_every_depth(results):
    start = results.scale_saturation.isel(adam_step=0).mean(("few", "bias"))
    assert start.sel(scale=0.01) == 0
    assert start.sel(scale=10.0) > 0.8
    assert float(results.depth_zeros_largest.max()) == 0.0
    assert float(results.depth_zeros_output_bias.min()) > 0.4


def test_the_group_and_the_minima(folder, results, summary):
    assert (summary["group_order"], summary["group_dim"]) == (384, 0) == (js.count.order((12, 4, 1), "tanh"), 0)
    assert sorted(results.factor.values) == ["permutation", "sign"]
    assert summary["minima"] == 2
    points, canonical = results.minimum_params.values, results.minimum_canonical.values
    assert summary["distinct_naive"] == 1 + (np.linalg.norm(points[0] - points[1]) > summary["minima_tolerance"])
    same = np.linalg.norm(canonical[0] - canonical[1]) < summary["minima_tolerance"]
    assert summary["distinct_modulo_symmetry"] == 2 - same
    assert same == (abs(float(results.minimum_loss[0] - results.minimum_loss[1])) < 1e-12)
    assert "384 elements" in (folder / "report.html").read_text()


def test_the_record(results):
    assert results.attrs["study"] == "titanic"
    config = json.loads(results.attrs["config"])
    assert config == {"networks": 5, "few": 2, "splits": 2, "converge_steps": 120, "test_fraction": 0.2, "seed": 1}
    assert "jax" in json.loads(results.attrs["versions"])
    assert results.attrs["device"]
    assert results.attrs["git_revision"]
    assert all(array.attrs["long_name"] for name, array in results.data_vars.items() if array.ndim)
    assert not any(str(dim).startswith("dim_") for dim in results.dims)


def test_the_page_says_the_figures_and_needs_nothing_else(folder, summary):
    page = (folder / "report.html").read_text()
    for key in ("case0_cost_zeros_1000", "case1_cost_3000", "case2_cost_3000"):
        assert f"{summary[key]:.4f}" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert (
        page.count("<img ")
        == len(list((folder / "figures").glob("*.png")))
        == len(list((folder / "figures").glob("*.svg")))
    )
    assert page.count("<img ") == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    assert "--networks 5 --few 2" in page


def test_sentences_follow_the_figures(results, summary):
    """A page made from other figures says something else."""
    page = load("titanic").page

    def text(dataset):
        return " ".join(paragraph for section in page(dataset) for paragraph in section.paragraphs)

    assert "they meet" in text(results)
    assert "the output layer that decides" in text(results)
    changed = results.copy(deep=True)
    changed["case0_converged_cost"][0] += 1
    changed["tie_distinct_units"][:] = 4
    assert "they do not meet" in text(changed)
    assert "the output layer that decides" not in text(changed)


def test_report_writes_the_same_page_again(folder):
    before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".nc"}
    cli.main(["report", str(folder)])
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".nc"}


@pytest.mark.parametrize("name", ["networks", "few", "splits", "converge_steps"])
def test_bad_config(name):
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        Config(**{name: 0})
