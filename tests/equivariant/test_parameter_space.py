"""Parameters of a network as a representation: against the group's own action, and dimensions by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.equivariant import EquivariantDense, basis, parameter_space
from jaxsym.models import CNN, MLP


def network(net, shape, kinds=None):
    x = jax.random.normal(jax.random.key(0), shape)
    params = jax.tree.map(lambda leaf: leaf + 0.3, jax.jit(net.init)(jax.random.key(1), x))
    sym = js.discover(net.apply, params, x)
    return sym, params, parameter_space(sym, kinds)


@pytest.mark.parametrize(
    ("activation", "kinds", "equivariant", "invariant"),
    [
        ("gelu", None, 75, 7),
        ("relu", ("permutation",), 75, 7),
        (
            "tanh",
            None,
            15,
            1,
        ),  # 9 of three times three signed units, 1 of the middle kernel, 4 of what is on the second layer, 1 of the output bias
        ("relu", None, 13, 1),  # units that are rescaled: 9, then 1 each
    ],
)
def test_dimensions_of_a_small_network(activation, kinds, equivariant, invariant):
    _, _, space = network(MLP((3, 4, 1), activation), (5, 2), kinds)
    assert basis(space.rep, space.rep).dimension == equivariant
    assert basis(space.rep, space.group.scalar).dimension == invariant


@pytest.mark.parametrize("activation", ["gelu", "tanh", "relu", "sigmoid"])
def test_maps_and_invariants_follow_the_action_on_parameters(activation):
    sym, params, space = network(MLP((3, 4, 1), activation), (5, 2))
    maps, fixed = basis(space.rep, space.rep), basis(space.rep, space.group.scalar)
    assert maps.residual < 1e-12
    random = np.random.default_rng(0)
    matrix = np.tensordot(random.standard_normal(maps.dimension), maps.vectors, 1)
    flat = lambda tree: np.asarray(ravel_pytree(tree)[0])  # noqa: E731
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(float), params)
        back, far = ravel_pytree(params)[1], []
        for key in jax.random.split(jax.random.key(5), 4):
            g = sym.sample(key)
            moved = flat(sym.act(g, params))
            np.testing.assert_allclose(matrix @ moved, flat(sym.act(g, back(matrix @ flat(params)))), atol=1e-9)
            np.testing.assert_allclose(fixed.vectors[:, 0] @ moved, fixed.vectors[:, 0] @ flat(params), atol=1e-9)
            far.append(np.abs(moved - flat(params)).max())
    assert max(far) > 0.01


def test_leaves_are_representations_of_their_own():
    _, _, space = network(MLP((3, 4, 1), "gelu"), (5, 2))
    units = space.leaves["params/Dense_1/bias"]
    assert units.size == 4
    assert basis(units, units).dimension == 2
    assert basis(units, space.leaves["params/Dense_0/bias"]).dimension == 1
    assert space.rep.size == sum(leaf.size for leaf in space.leaves.values()) == 30
    _, _, shifted = network(MLP((3, 4, 1), "sigmoid"), (5, 2))  # a flip adds to the next bias
    assert set(space.leaves) - set(shifted.leaves) == {"params/Dense_1/bias", "params/Dense_2/bias"}


def test_other_networks_and_networks_without_a_group():
    _, _, space = network(CNN((3, 4), 2), (2, 8, 8, 1))
    assert basis(space.rep, space.group.scalar).dimension > 0
    _, _, still = network(MLP((2,)), (5, 3))
    assert basis(still.rep, still.rep).dimension == still.rep.size**2


def test_a_network_that_reads_networks():
    net = MLP((3, 4, 1), "gelu")
    sym, params, space = network(net, (5, 2))
    units = space.leaves["params/Dense_0/bias"]
    first, last = EquivariantDense(space.rep, 2 * units), EquivariantDense(2 * units, space.group.scalar)

    def read(weights, params):
        return last.apply(weights[1], jnp.tanh(first.apply(weights[0], ravel_pytree(params)[0])))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(float), params)
        one, two = jax.random.split(jax.random.key(3))
        weights = first.init(one, jnp.ones(30)), last.init(two, jnp.ones(6))
        said = read(weights, params)
        for key in jax.random.split(jax.random.key(4), 3):
            np.testing.assert_allclose(read(weights, sym.act(sym.sample(key), params)), said, atol=1e-9)
        wrong = jax.tree.map(lambda leaf: leaf[..., ::-1], params)
        assert np.abs(read(weights, wrong) - said).max() > 1e-3


def test_bad_input_says_what_was_got():
    with pytest.raises(TypeError, match="parameter_space: sym is of type int"):
        parameter_space(3)
    made = js.Symmetry.from_action(lambda t, p: p, 1)
    with pytest.raises(ValueError, match="made from an action"):
        parameter_space(made)
    sym, _, _ = network(MLP((3, 4, 1), "gelu"), (5, 2))
    with pytest.raises(ValueError, match="kinds has 'rotation', expected some of permutation"):
        parameter_space(sym, ("rotation",))
    with pytest.raises(ValueError, match="kinds has 'rotation'"):
        parameter_space(sym, "rotation")
    with pytest.raises(ValueError, match="kinds is empty"):
        parameter_space(sym, ())
    assert parameter_space(sym) is parameter_space(sym)
    some, one = (parameter_space(sym, kinds) for kinds in ((kind for kind in ["permutation"]), "permutation"))
    assert some.group.num_finite == one.group.num_finite == 4
    with pytest.raises(
        ValueError,
        match=r"a translation of 3 units, params/Dense_0/bias.* does not move parameters linearly; keep the factors that do, such as kinds=\('general_linear',\)",
    ):
        network(MLP((3, 4, 1), "identity"), (5, 2))
    _, _, space = network(MLP((3, 4, 1), "identity"), (5, 2), ("general_linear",))
    assert basis(space.rep, space.group.scalar).dimension == 1


def test_what_is_no_number_is_no_linear_action():
    """A rotation of what a norm reads, at a point where the norm has none."""

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.LayerNorm()(nn.Dense(3)(x)))

    with pytest.raises(ValueError, match="does not move parameters linearly"):
        network(Normed(), (4, 3), ("orthogonal",))
