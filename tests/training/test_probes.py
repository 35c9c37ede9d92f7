"""Probes on networks whose answer is known, and the conformance of the catalogue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsym.training import Snapshot, probes


def snapshot():
    params = {"params": {"Dense_0": {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([0.0, 12.0])}}}
    return Snapshot(jnp.array(2), params, jax.tree.map(lambda leaf: 2 * leaf, params), jnp.array(0.5))


@pytest.mark.parametrize("name", probes.CATALOGUE)
def test_every_probe_is_pure_and_jits(name):
    probe = probes.CATALOGUE[name]
    jax.tree.map(np.testing.assert_array_equal, jax.jit(probe)(snapshot()), probe(snapshot()))


def test_norms_and_largest():
    assert float(probes.parameter_norm(snapshot())) == 13
    assert float(probes.gradient_norm(snapshot())) == 26
    assert probes.largest_entries(snapshot()) == {"params/Dense_0/bias": 12, "params/Dense_0/kernel": 4}


@settings(max_examples=4)
@given(
    originals=st.integers(1, 4),
    copies=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=5),
    seed=st.integers(0, 100),
)
def test_planted_copies_are_counted_once(originals, copies, seed):
    base = np.asarray(jax.random.normal(jax.random.key(seed), (4, originals)))
    planted = [base[:, which % originals] * (-1 if flip else 1) for which, flip in copies]
    units = np.stack([*base.T, *planted], axis=1)
    units = units[:, np.asarray(jax.random.permutation(jax.random.key(seed), units.shape[1]))]
    layer = {"kernel": jnp.asarray(units[:3]), "bias": jnp.asarray(units[3])}
    both, one = jax.jit(
        lambda layer: [probes.count_distinct(probes.unit_distances(layer, signs=signs)) for signs in (True, False)]
    )(layer)
    assert int(both) == originals
    flipped = {(which % originals, flip) for which, flip in copies} | {(i, False) for i in range(originals)}
    assert int(one) == len(flipped)


def test_zero_units_are_equal_and_near_ones_are_told_apart():
    layer = {"kernel": jnp.array([[0.0, 0.0, 1.0, 1.0 + 3e-5, 1.0 + 3e-3]])}
    distances = probes.unit_distances(layer)
    assert float(distances[0, 1]) == 0
    assert int(probes.count_distinct(distances)) == 3
    assert int(probes.count_distinct(distances, tolerance=1e-6)) == 4
