"""Merging: many networks in one, by one universe; references, weights; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.alignment import align, merge


@functools.cache
def network(activation="relu", widths=(6, 5, 2)):
    net, x = js.models.MLP(widths, activation), jax.random.normal(jax.random.key(9), (20, 3))
    sym = js.discover(net.apply, net.init(jax.random.key(0), x), x)
    return net, sym, x


def drawn(net, x, num, seed=0):
    """Networks with normal kernels and biases, stacked."""
    params = net.init(jax.random.key(0), x)
    shake = lambda key: jax.tree.unflatten(  # noqa: E731
        jax.tree.structure(params),
        [
            jax.random.normal(k, leaf.shape)
            for k, leaf in zip(
                jax.random.split(key, len(jax.tree.leaves(params))), jax.tree.leaves(params), strict=True
            )
        ],
    )
    return jax.vmap(shake)(jax.random.split(jax.random.key(seed), num))


def pick(stacked, number):
    return jax.tree.map(lambda leaf: leaf[number], stacked)


@pytest.mark.parametrize("reference", [None, 1])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_copies_of_one_network_merge_to_it(activation, reference):
    net, sym, x = network(activation)
    params = pick(drawn(net, x, 1), 0)
    copies = jax.jit(jax.vmap(lambda key: sym.act(sym.sample(key), params)))(jax.random.split(jax.random.key(1), 4))
    merged = merge(sym, copies, reference=reference)
    np.testing.assert_allclose(net.apply(merged.params, x), net.apply(params, x), rtol=1e-3, atol=1e-4)
    assert merged.history[-1] < 1e-6
    if reference is not None:
        for one, other in zip(jax.tree.leaves(merged.params), jax.tree.leaves(pick(copies, reference)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_all_ways_around_are_the_identity():
    """From c to a, from b to c and from a to b: each by the elements of one universe."""
    net, sym, x = network()
    stacked = drawn(net, x, 3)
    merged = merge(sym, stacked)
    a, b, c = (pick(merged.elements, i) for i in range(3))
    between = lambda one, other: sym.compose(sym.inverse(one), other)  # noqa: E731
    around = functools.reduce(sym.compose, (between(a, c), between(c, b), between(b, a)))
    for part, still in zip(around, sym.identity(), strict=True):
        np.testing.assert_allclose(part, still, atol=1e-6)


def test_the_average_is_that_of_the_moved_networks_and_its_spread_never_rises():
    net, sym, x = network()
    stacked = drawn(net, x, 4)
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    merged = merge(sym, stacked, weights=weights)
    moved = jax.jit(jax.vmap(sym.act))(merged.elements, stacked)
    for average, leaves in zip(jax.tree.leaves(merged.params), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(average, np.average(leaves, axis=0, weights=weights), rtol=1e-4, atol=1e-5)
    assert (np.diff(merged.history) <= 1e-9 * merged.history[0]).all()
    assert merged.history[-1] < merged.history[0]


def test_the_average_is_closer_than_without_moving():
    net, sym, x = network("tanh")
    stacked = drawn(net, x, 4, seed=3)
    spread = lambda networks: sum(float(jnp.var(leaf, axis=0).sum()) for leaf in jax.tree.leaves(networks))  # noqa: E731
    merged = merge(sym, stacked)
    moved = spread(jax.jit(jax.vmap(sym.act))(merged.elements, stacked))
    assert moved < spread(stacked)
    assert moved == pytest.approx(merged.history[-1], rel=1e-4)


def test_two_networks_onto_one_are_an_alignment():
    net, sym, x = network()
    stacked = drawn(net, x, 2)
    merged = merge(sym, stacked, reference=0)
    found = align(sym, pick(stacked, 0), pick(stacked, 1))
    for one, other, stays in zip(
        jax.tree.leaves(merged.params), jax.tree.leaves(found.params), jax.tree.leaves(pick(stacked, 0)), strict=True
    ):
        np.testing.assert_allclose(one, (other + stays) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reference": 2}, "merge: reference is 2, expected the number of one of the 2 networks"),
        ({"reference": True}, "merge: reference is True, expected the number of one"),
        ({"reference": 0.5}, "merge: reference is 0.5, expected the number of one"),
        ({"weights": [1.0]}, "merge: weights are .* expected 2 positive numbers"),
        ({"weights": [1.0, 0.0]}, "merge: weights are .* expected 2 positive numbers"),
        ({"weights": [1.0, 1e-17]}, "merge: weights are .* of which none is less than 1e-09 of their sum"),
        ({"weights": "equal"}, "merge: weights are 'equal', expected 2 positive numbers"),
    ],
)
def test_options_that_are_refused(options, said):
    net, sym, x = network()
    with pytest.raises(ValueError, match=said):
        merge(sym, drawn(net, x, 2), **options)


def test_networks_that_are_refused():
    net, sym, x = network()
    with pytest.raises(ValueError, match="merge: got 1 network"):
        merge(sym, drawn(net, x, 1))
    with pytest.raises(
        ValueError, match=r"merge: params/Dense_0/bias has shape \(6,\), expected \(networks, 6\): stack"
    ):
        merge(sym, pick(drawn(net, x, 2), 0))
    spoilt = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.inf), drawn(net, x, 2))
    with pytest.raises(ValueError, match=r"merge: network 1: params/Dense_0/bias .* NaN or infinite"):
        merge(sym, spoilt)
