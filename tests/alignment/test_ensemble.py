"""All pairs of an ensemble: distances as those of single alignments, and the number of different functions."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.alignment import align, ensemble
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS


def orbits(name, functions, copies, noise=0.0):
    """Networks of a few functions, each moved at random several times, one function after the other."""
    network = BUILDERS[name]()
    sym = js.discover(network.apply, network.params, *network.inputs)
    params = wide(network.params)
    moved = []
    for copy, function in itertools.product(range(copies), range(functions)):
        own = jax.device_get(perturbed(jax.random.key(function), params, 1.0))
        key = jax.random.key(100 * copy + function)
        own = sym.act(jax.device_get(sym.sample(key)), own)
        shake = lambda leaf, key=key: leaf + noise * np.asarray(jax.random.normal(key, leaf.shape))  # noqa: E731
        moved.append(jax.tree.map(shake, own))
    return sym, jax.tree.map(lambda *leaves: np.stack(leaves), *moved)


@pytest.mark.parametrize(
    "name", ["relu", "tanh", *(pytest.param(name, marks=pytest.mark.long) for name in ("attention", "rnn"))]
)
def test_networks_of_one_orbit_are_one_function(name):
    with jax.enable_x64(True):
        sym, stacked = orbits(name, functions=3, copies=3)
        found = ensemble(sym, stacked)
    assert found.functions.tolist() == [0, 1, 2] * 3
    same = found.functions[:, None] == found.functions
    scale = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(stacked)))
    assert found.distances[same].max() < 1e-8 * scale
    assert found.distances[~same].min() > 1e-2 * scale / 3
    np.testing.assert_array_equal(found.distances, found.distances.T)


def test_distances_are_those_of_single_alignments(monkeypatch):
    """Also when few networks are on their way at once: a pruned one, whose unit nothing tells, and one that is near another as it is, say nothing of the others."""
    with jax.enable_x64(True):
        sym, stacked = orbits("tanh", functions=5, copies=1)
        near = lambda leaf: np.stack([*leaf[:4], leaf[0] + 0.1 * leaf[4]])  # noqa: E731
        stacked = jax.tree.map(near, stacked)
        for leaf in stacked["params"]["Dense_0"].values():
            leaf[1, ..., 2] = 0
        found = ensemble(sym, stacked).distances
        monkeypatch.setattr(sys.modules["jaxsym.alignment.ensemble"], "ENTRIES", 100)
        np.testing.assert_array_equal(ensemble(sym, stacked).distances, found)
        monkeypatch.setattr(sys.modules["jaxsym.alignment.ensemble"], "ENTRIES", 1)  # less than a pair
        np.testing.assert_array_equal(ensemble(sym, stacked).distances, found)
        for i, j in itertools.combinations(range(5), 2):
            one, other = (jax.tree.map(lambda leaf, k=k: leaf[k], stacked) for k in (i, j))
            assert found[i, j] == pytest.approx(align(sym, one, other).distance, rel=1e-9)


def test_rescaled_networks_keep_their_distance():
    with jax.enable_x64(True):
        sym, stacked = orbits("relu", functions=4, copies=2)
        found = ensemble(sym, stacked).distances
    np.testing.assert_allclose(found[:4, :4], found[4:, 4:], rtol=1e-6)
    np.testing.assert_allclose(found[:4, 4:], found[:4, :4], rtol=1e-6, atol=1e-6)


def test_within_is_a_part_of_the_norm():
    """Noise joins a function or makes many of it."""
    with jax.enable_x64(True):
        sym, stacked = orbits("tanh", functions=2, copies=3, noise=1e-2)
        assert ensemble(sym, stacked, within=0.1).functions.tolist() == [0, 1] * 3
        assert ensemble(sym, stacked, within=1e-6).functions.tolist() == list(range(6))


def test_what_is_refused():
    net, x = js.models.MLP((4, 1), "tanh"), jnp.ones((5, 3))
    params = net.init(jax.random.key(0), x)
    sym = js.discover(net.apply, params, x)
    one = jax.tree.map(lambda leaf: leaf[None], params)
    with pytest.raises(ValueError, match=r"ensemble: got 1 network\(s\), expected the same number, two or more"):
        ensemble(sym, one)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    for within in (-1, "near", jnp.nan):
        with pytest.raises(ValueError, match=r"ensemble: within is .*, expected a part of the networks' norm"):
            ensemble(sym, two, within=within)
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), two)
    with pytest.raises(ValueError, match=r"ensemble: network 1: .* has .* entries that are NaN"):
        ensemble(sym, broken)
