"""Layers with shared weights: they commute with their group, gradients of linked weights add up, discovery works on networks of them."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.equivariant import SO, EquivariantDense, S, SignedPermutations, TiedDense, TiedQuadratic, basis, colours
from jaxsym.equivariant.colours import linear

LAYERS = {
    "tied": (TiedDense(), (4, 5)),
    "tied, channels": (TiedDense(3), (4, 2, 5)),
    "tied, no bias": (TiedDense(3, use_bias=False), (4, 2, 5)),
    "quadratic": (TiedQuadratic(), (4, 5)),
    "of S(5)": (EquivariantDense(S(5).vector, 2 * S(5).vector), (4, 5)),
    "of S(5), channels": (EquivariantDense(S(5).vector, S(5).vector, features=3), (4, 2, 5)),
}


def noisy(layer, shape):
    """Parameters without zeros, and inputs."""
    start, more, data = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(data, shape)
    params = layer.init(start, x)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(more, len(leaves))
    return jax.tree.unflatten(
        structure, [leaf + jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys, strict=True)]
    ), x


@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_permutations(name):
    layer, shape = LAYERS[name]
    with jax.enable_x64(True):
        params, x = noisy(layer, shape)
        y = layer.apply(params, x)
        for key in jax.random.split(jax.random.key(1), 3):
            order = jax.random.permutation(key, shape[-1])
            moved = layer.apply(params, x[..., order])
            copies = y.reshape(*y.shape[:-1], -1, shape[-1])[..., order].reshape(y.shape)
            np.testing.assert_allclose(moved, copies, atol=1e-12)
            assert np.abs(moved - y).max() > 1e-3


@pytest.mark.parametrize("group", [SO(3), SignedPermutations(4), S(4)], ids=str)
def test_equivariant_layers_commute_with_their_group(group):
    V = group.vector
    layer = EquivariantDense(V * V, V * V + group.scalar)
    with jax.enable_x64(True):
        params, x = noisy(layer, (6, V.size**2))
        g = group.sample(jax.random.key(2))
        moved = layer.apply(params, x @ (V * V).matrix(g).T)
        np.testing.assert_allclose(moved, layer.apply(params, x) @ layer.rep_out.matrix(g).T, atol=1e-10)


def test_tied_layers_are_all_there_is():
    """Their functions span the bases: linear in parameters, and as many independent ones as the dimension says."""
    with jax.enable_x64(True):
        for n, quadratic in ((1, 3), (2, 6), (3, 7), (5, 7)):
            x = jax.random.normal(jax.random.key(0), (50, n))
            for layer, number in ((TiedDense(), min(n, 2) + 1), (TiedQuadratic(), quadratic)):
                params = layer.init(jax.random.key(0), x)
                slopes = jax.jit(jax.jacobian(lambda p, layer=layer, x=x: layer.apply(p, x)))(params)
                matrix = np.concatenate([np.reshape(s, (50 * n, -1)) for s in jax.tree.leaves(slopes)], axis=1)
                assert np.linalg.matrix_rank(matrix) == number
                assert isinstance(layer, TiedDense) or matrix.shape[1] == number


def test_linked_weights_update_together():
    """The gradient of a shared weight is the sum of those of the entries that it stands for."""
    n = 5
    found = colours(linear(n))
    with jax.enable_x64(True):
        x, y = jax.random.normal(jax.random.key(0), (2, 20, n))
        params = {"params": {"alpha": jnp.array(0.7), "beta": jnp.array(-0.4)}}
        layer = TiedDense(use_bias=False)
        shared = jax.grad(lambda p: jnp.mean((layer.apply(p, x) - y) ** 2))(params)["params"]
        values = jnp.array([0.7 - 0.4, -0.4])  # on the diagonal, and off it
        entries = jax.grad(lambda w: jnp.mean((x @ w.T - y) ** 2))(values[found.tensor])
        sums = np.bincount(found.tensor.ravel(), np.ravel(entries))
        np.testing.assert_allclose(shared["alpha"], sums[0], rtol=1e-12)
        np.testing.assert_allclose(shared["beta"], sums.sum(), rtol=1e-12)
        # one step of gradient descent on the colours keeps them, and is the step of the linked entries
        linked = values - 0.1 * sums
        by_colour = jax.grad(lambda v: jnp.mean((x @ v[found.tensor].T - y) ** 2))(values)
        np.testing.assert_allclose(values - 0.1 * by_colour, linked, rtol=1e-12)


class Sets(nn.Module):
    """A network on sets of vectors: two layers, then a mean."""

    layers: tuple[nn.Module, nn.Module]

    @nn.compact
    def __call__(self, x):
        first, second = self.layers
        return nn.Dense(2)(second(nn.relu(first(x))).mean(-1))


NETWORKS = {
    "tied": (Sets((TiedDense(4), TiedDense(3))), (6, 2, 5)),
    "by a basis": (
        Sets((EquivariantDense(S(5).vector, S(5).vector, 4), EquivariantDense(S(5).vector, S(5).vector, 3))),
        (6, 2, 5),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_discovery_finds_the_channels_of_networks_of_them(name):
    net, shape = NETWORKS[name]
    params, x = noisy(net, shape)
    sym = js.discover(net.apply, params, x)
    assert sym.order == 24
    kinds = sorted((factor.kind, factor.size) for factor in sym.factors)
    assert ("permutation", 4) in kinds
    assert ("scaling", 4) in kinds
    assert js.verify(net.apply, sym, params, x).ok


def test_single_layers_move_nothing():
    for layer, shape in LAYERS.values():
        params, x = noisy(layer, shape)
        sym = js.discover(layer.apply, params, x)
        assert (sym.order, sym.dim) == (1, 0)
        assert js.verify(layer.apply, sym, params, x).ok


def test_they_nest_vmap_and_jit():
    net = nn.Sequential([TiedDense(4), nn.tanh, EquivariantDense(S(5).vector, S(5).vector, 3), TiedQuadratic()])
    x = jax.random.normal(jax.random.key(0), (3, 2, 5))
    many = jax.vmap(net.init, in_axes=(0, None))(jax.random.split(jax.random.key(1), 7), x)
    outputs = jax.jit(jax.vmap(net.apply, in_axes=(0, None)))(many, x)
    assert outputs.shape == (7, 3, 3, 5)
    order = jnp.array([4, 2, 0, 1, 3])
    moved = jax.vmap(net.apply, in_axes=(0, None))(many, x[..., order])
    np.testing.assert_allclose(moved, outputs[..., order], atol=1e-4)


def test_outputs_are_of_the_size_of_the_inputs_at_the_start():
    V = S(8).vector
    layer = EquivariantDense(V, V * V, features=16)
    x = jax.random.normal(jax.random.key(0), (200, 32, 8))
    y, _ = layer.init_with_output(jax.random.key(1), x)
    assert 0.5 < float(jnp.std(y)) < 2


BAD = {
    "no axis": (TiedDense(), jnp.ones(()), r"TiedDense: inputs have shape \(\), expected \[..., n\]"),
    "no channels": (TiedDense(3), jnp.ones(4), r"expected \[..., channels, n\]"),
    "another size": (
        EquivariantDense(S(5).vector, S(5).vector),
        jnp.ones((2, 4)),
        r"EquivariantDense from vector: inputs have shape \(2, 4\), expected \[..., 5\]",
    ),
    "no points": (TiedQuadratic(), jnp.ones((3, 0)), r"shape \(3, 0\), expected \[..., n\]"),
    "minus one channel": (TiedDense(-1), jnp.ones((2, 5)), "features is -1, expected a positive integer"),
    "half a channel": (EquivariantDense(S(5).vector, S(5).vector, 2.5), jnp.ones((2, 5)), "features is 2.5"),
    "no map": (
        EquivariantDense(SO(3).vector, SO(3).scalar),
        jnp.ones(3),
        "no map but 0 from vector to scalar commutes",
    ),
    "two groups": (EquivariantDense(S(5).vector, S(4).vector), jnp.ones(5), "take Product of both"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_was_got(case):
    layer, x, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        layer.init(jax.random.key(0), x)


def test_parameters_are_made_a_row_first():
    V = S(3).vector
    with pytest.raises(TypeError, match=r"inputs are a dict, expected an array; .*ravel_pytree"):
        EquivariantDense(V, V).init(jax.random.key(0), {"a": jnp.ones(3)})


def test_memory_is_passed_on():
    V = S(12).vector
    with pytest.raises(ValueError, match="expected at most 1e-05"):
        EquivariantDense(V * V, V, memory=1e-5).init(jax.random.key(0), jnp.ones(144))


def test_a_bias_only_where_something_stays():
    with_none = EquivariantDense(SO(3).vector, SO(3).vector)
    assert set(with_none.init(jax.random.key(0), jnp.ones(3))["params"]) == {"coefficients"}
    V = S(3).vector
    assert basis(S(3).scalar, V).dimension == 1
    assert [p for p, _ in itertools.groupby(sorted(EquivariantDense(V, V).init(jax.random.key(0), jnp.ones(3))["params"]))] == ["bias", "coefficients"]  # fmt: skip


def test_integers_lists_and_half_precision():
    V = S(5).vector
    layer = EquivariantDense(V, V)
    params = layer.init(jax.random.key(0), jnp.arange(5))
    np.testing.assert_allclose(layer.apply(params, [0, 1, 2, 3, 4]), layer.apply(params, np.arange(5.0)), rtol=1e-6)
    assert TiedDense().init_with_output(jax.random.key(0), jnp.ones(5, jnp.bfloat16))[0].dtype == jnp.bfloat16
