"""The study of symmetry breaking, run small: exchanges by hand, ties that no rule for all entries breaks, and those that noise does."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym import cli
from jaxsym.studies import load, symmetry_breaking
from jaxsym.studies import symmetry_breaking_networks as networks
from jaxsym.studies.study import tally
from jaxsym.studies.symmetry_breaking import Config, problem
from jaxsym.studies.symmetry_breaking_networks import NETS, PAIRED, TIED_UNITS, UNITS, WAYS
from jaxsym.studies.symmetry_breaking_summary import claims

NOISY = {"random", "dropout", "noise_weights", "noise_gradients"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run, of perceptrons alone."""
    out = tmp_path_factory.mktemp("symmetry_breaking")
    cli.main(["run", "symmetry_breaking", "--out", str(out), "--quick", "--networks", "2", "--kinds", "mlp"])
    return out


def started(name, random, rows=5):
    """A network and inputs, in float64."""
    net, shape = NETS[name], (rows, 2, 8, 8) if name in PAIRED else (rows, 8, 8)
    x = jax.random.uniform(jax.random.key(3), shape, jnp.float64)
    return net, networks.start(net, x)(jax.random.key(1), random=random, constant=0.1), x


@pytest.mark.parametrize("name", NETS)
def test_an_exchange_of_two_units_is_no_change(name):
    """And every other pair of hidden units is moved by its own exchange, which is its own inverse."""
    size = TIED_UNITS.get(name, UNITS)
    with jax.enable_x64(True):
        net, params, x = started(name, 1.0)
        moved = networks.transpositions(js.discover(net.apply, params, x), params, size)
        flat, restore = ravel_pytree(params)
        assert len(moved) == size * (size - 1) // 2
        for exchange in (moved[0], moved[-1]):
            assert (exchange[exchange] == np.arange(flat.size)).all()
            assert (exchange != np.arange(flat.size)).any()
            np.testing.assert_allclose(net.apply(restore(flat[exchange]), x), net.apply(params, x), atol=1e-12)
        assert int(networks.distinct(networks.apart(params, moved), size)) == size
        tied = started(name, 0.0)[1]
        assert int(networks.distinct(networks.apart(tied, moved), size)) == 1


def test_exchanges_of_a_perceptron_by_hand():
    with jax.enable_x64(True):
        net, params, x = started("mlp", 1.0)
        moved = networks.transpositions(js.discover(net.apply, params, x), params, UNITS)
        layers = params["params"]
        units = np.concatenate(
            [layers["Dense_0"]["kernel"], layers["Dense_0"]["bias"][None], layers["Dense_1"]["kernel"].T]
        ).T
        pairs = itertools.combinations(range(UNITS), 2)
        expected = [
            np.linalg.norm(units[i] - units[j]) * 2**0.5 / np.hypot(*np.linalg.norm(units[[i, j]], axis=1))
            for i, j in pairs
        ]
        np.testing.assert_allclose(networks.apart(params, moved), expected, rtol=1e-12)


def test_a_group_without_such_units_is_refused():
    with jax.enable_x64(True):
        net, params, x = started("mlp", 1.0)
        with pytest.raises(ValueError, match="got 0 permutations of 7 units"):
            networks.transpositions(js.discover(net.apply, params, x), params, 7)


@pytest.mark.parametrize("way", WAYS)
def test_one_step_of_each_way(way):
    """From equal units the gradient is equal in all units, unless something is drawn for each of them."""
    with jax.enable_x64(True):
        net, params, x = started("mlp", 0.0)
        rows = js.data.Rows(jnp.concatenate([x] * 8), jnp.arange(40) % 10)
        hyper = networks.hyperparameters(WAYS[way], jnp.array([0.5]), jnp.array([0.1]))
        own = {name: hyper[name][0] for name in networks.NEUTRAL if name not in ("random", "momentum", "adam")}
        kernel = jax.grad(networks.loss(net))(params, rows, jax.random.key(5), **own)["params"]["Dense_0"]["kernel"]
        spread = float(jnp.ptp(kernel, axis=1).max() / jnp.abs(kernel).max())
        assert (spread > 1e-3) == (way in NOISY - {"random"})
        assert spread > 1e-3 or spread < 1e-12


def test_shifts_move_images_by_at_most_a_pixel():
    images = jax.random.uniform(jax.random.key(0), (20, 6, 5))
    np.testing.assert_array_equal(networks.shifted(images, jax.random.key(1), 0.0), images)
    moved = np.asarray(networks.shifted(images, jax.random.key(1), 1.0))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    for image, one in zip(moved, padded, strict=True):
        assert any((image == one[i : i + 6, j : j + 5]).all() for i in range(3) for j in range(3))
    assert (moved != np.asarray(images)).any(axis=(1, 2)).sum() > 10


def test_the_optimizer_is_momentum_or_adam():
    import optax

    params, grads = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1])
    for adam, other in ((0.0, optax.sgd(0.1, 0.9)), (1.0, optax.adam(0.1))):
        ours = networks.optimizer(learning_rate=0.1, momentum=0.9, adam=adam)
        state, theirs = ours.init(params), other.init(params)
        for _ in range(3):
            (step, state), (expected, theirs) = ours.update(grads, state), other.update(grads, theirs)
            np.testing.assert_allclose(step, expected, rtol=1e-6)


def test_half_of_the_pairs_show_one_digit():
    rows = js.data.digits().train
    pairs = problem("twins", rows, 40, jax.random.key(0))
    assert pairs.inputs.shape == (40, 2, 8, 8)
    assert int(pairs.targets.sum()) == 20
    assert problem("mlp", rows, 40, jax.random.key(0)).inputs.shape == (40, 8, 8)


def only_threes(num):
    """So many training rows, all of class 3, and four to test on, of which one is."""
    images = jax.random.uniform(jax.random.key(0), (num, 8, 8))
    return js.data.Rows(images, jnp.full(num, 3)), js.data.Rows(images[:4], jnp.array([3, 0, 5, 9]))


def test_the_accuracy_is_that_of_the_test_rows():
    """After a step everything is taken for a 3, which all training rows are and a quarter of the test rows is."""
    train, test = only_threes(6)
    one = symmetry_breaking.training("mlp", train, test, 1)
    hyper = networks.hyperparameters(WAYS["nothing"], jnp.zeros(1), jnp.full(1, 0.5))
    found = jax.jit(one)(jax.random.key(0), {name: each[0] for name, each in hyper.items()} | {"constant": 0.1})
    assert float(found["accuracy"]) == 0.25
    assert float(found["loss"]) < np.log(10)


def test_the_accuracy_of_softmax_regression_is_that_of_the_test_rows():
    train, test = only_threes(symmetry_breaking.REGRESSION_BATCH)
    one = symmetry_breaking._softmax(js.data.Split(train, test, (), ()), 1)
    assert float(jax.jit(one)(jax.random.key(0), 0.0, 0.0)) == 0.25


def test_the_error_of_linear_regression_is_relative_to_the_true_weights(monkeypatch):
    """Where nothing is learned: 1 from zeros, by hand from 0.1."""
    monkeypatch.setattr(symmetry_breaking, "REGRESSION_RATE", 0.0)
    one = jax.jit(symmetry_breaking._linear(1))
    weights = np.asarray(jax.random.normal(jax.random.split(jax.random.key(1))[1], (8, 1)))
    assert float(one(jax.random.key(0), 0.0, 0.0)) == pytest.approx(1)
    expected = np.sum((weights - 0.1) ** 2) / np.sum(weights**2)
    assert float(one(jax.random.key(0), 0.1, 0.0)) == pytest.approx(expected, rel=1e-5)


def test_penalties_and_noise_on_inputs_by_hand():
    with jax.enable_x64(True):
        net, params, x = started("mlp", 1.0)
        rows, key = js.data.Rows(x, jnp.arange(5)), jax.random.key(5)
        names = [name for name in networks.NEUTRAL if name not in ("random", "momentum", "adam")]

        value = jax.jit(networks.loss(net))

        def loss(rows=rows, **own):
            return float(value(params, rows, key, **(dict.fromkeys(names, 0.0) | own)))

        kernels = [np.asarray(layer["kernel"]) for layer in params["params"].values()]
        assert len(kernels) == 2
        absolute, squared = (sum(np.sum(np.abs(kernel) ** power) for kernel in kernels) for power in (1, 2))
        assert loss(l1=0.3) - loss() == pytest.approx(0.3 * absolute)
        assert loss(l2=0.3) - loss() == pytest.approx(0.15 * squared)
        noise = jax.random.normal(jax.random.split(key, 6)[1], x.shape, jnp.float32)
        moved = loss(rows._replace(inputs=x + 0.3 * noise))
        assert loss(noise_inputs=0.3) == pytest.approx(moved, rel=1e-7)
        assert abs(moved - loss()) > 1e-3


def test_each_way_turns_on_what_it_is_called():
    """From the least strength to the largest of its range; all else is neutral."""
    own = {
        "weight_decay_l1": ("l1", 1e-4, 1e-2),
        "weight_decay_l2": ("l2", 1e-4, 1e-2),
        "noise_inputs": ("noise_inputs", 0.03, 0.5),
        "noise_weights": ("noise_weights", 0.01, 0.1),
        "noise_gradients": ("noise_gradients", 1e-3, 1e-1),
        "dropout": ("dropout", 0.1, 0.5),
    }
    for way, (name, low, high) in own.items():
        found = networks.hyperparameters(WAYS[way], jnp.array([0.0, 0.5, 1.0]), jnp.full(3, 0.2))
        np.testing.assert_allclose(found[name], [low, (low * high) ** 0.5, high], rtol=1e-5)
        np.testing.assert_allclose(found["learning_rate"], 0.2)
        assert {key for key in networks.NEUTRAL if np.any(found[key])} == {name}


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("symmetry_breaking").summary(results)
    for way in WAYS:
        counts = []
        for pairs in results.apart.sel(way=way).isel(start=0).values:
            equal = np.eye(UNITS, dtype=bool)
            equal[np.triu_indices(UNITS, 1)] = pairs < 1e-4
            counts.append(sum(not equal[:j, j].any() for j in range(UNITS)))
        assert summary[f"distinct_{way}"] == np.mean(counts)
    for start, name in (("zeros", "zero"), ("random", "random")):
        expected = results.softmax_accuracy.sel(regression_start=start).values.mean()
        assert summary[f"softmax_{name}_init_accuracy"] == pytest.approx(expected)


def test_only_what_draws_for_each_unit_separates(results, summary):
    for way in WAYS:
        assert summary[f"distinct_{way}"] == (UNITS if way in NOISY else 1)
    tied = [way for way in WAYS if way not in NOISY]
    assert (results.kind_distinct.sel(way=tied) == 1).all()
    assert float(results.apart.sel(way=tied).max()) < 1e-10
    assert set(summary["still_at_zero"]) == set(WAYS) - {"random", "noise_weights", "noise_gradients"}
    assert summary["softmax_zero_init_accuracy"] > 0.85
    assert summary["distinct_from_zeros_nothing"] == 1


@pytest.mark.long
def test_other_kinds_of_networks(tmp_path):
    """Channels, cells and heads as perceptrons; twins part, but not the units within each."""
    cli.main(["run", "symmetry_breaking", "--out", str(tmp_path), "--quick", "--kinds", ",".join(NETS)])
    with xr.open_dataset(tmp_path / "results.nc", engine="h5netcdf") as data:
        results = data.load()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert results.architecture.values.tolist() == list(NETS)
    assert (results.kind_distinct.sel(way=[way for way in WAYS if way not in NOISY]) == 1).all()
    assert summary["tower_distance_siamese"] == 0 < summary["tower_distance_twins"]
    assert (results.place_distinct > 1).any("image").all()
    assert (results.place_units == 1).all()
    page = (tmp_path / "report.html").read_text()
    assert "positions differ in their activations" in page
    assert f"part by {summary['tower_distance_twins']:.2g} of their norm" in page
    assert page.count("<img ") == 3 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_the_page_says_the_figures(folder, results, summary):
    page = (folder / "report.html").read_text()
    found = claims(results)
    assert tally(found) in page
    assert all(claim in page for claim, _, _ in found)
    assert f"a test accuracy of {summary['softmax_zero_init_accuracy']:.3f} from zeros" in page
    assert page.count("<img ") == 2 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(
    ("name", "value"), [("networks", 1), ("few", 1), ("few", 1000), ("steps", 3), ("rows", 5), ("kinds", "cnn,rnn")]
)
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value!r}"):
        Config(**{name: value})


def test_a_kind_that_there_is_not():
    with pytest.raises(ValueError, match="lstn"):
        Config(kinds="mlp,lstn")
