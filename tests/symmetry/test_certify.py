"""The oracles' table of kernels, and what is hidden where the group is not all there is."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.models import MLP, GatedMLP
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import ATTENTION, Stream, normal

ROWS = 2 * jax.random.normal(jax.random.key(0), (400, 4))
SEQUENCES = jax.random.normal(jax.random.key(0), (20, 7, 6))
KERNELS = {  # module, inputs, nullity, hidden
    "relu": (MLP((4, 2), "relu"), ROWS[:, :3], 4, 0),
    "tanh": (MLP((4, 2), "tanh"), ROWS[:, :3], 0, 0),
    "gelu": (MLP((4, 2), "gelu"), ROWS[:, :3], 0, 0),
    "square": (MLP((4, 2), "square"), ROWS[:, :3], 6, 2),
    "linear": (MLP((4, 2), "identity", use_bias=False), ROWS[:, :3], 14, 0),
    "swiglu": (GatedMLP(4, 2), ROWS[:, :3], 4, 0),
    "attention": (ATTENTION, SEQUENCES, 24, 0),
    "rms norm": (Stream(nn.RMSNorm), ROWS, 20, 0),
    "layer norm": (Stream(nn.LayerNorm), ROWS, 43, 0),
}


def certified(net, x, num=1, seed=3):
    params = perturbed(jax.random.key(seed), net.init(jax.random.key(0), x), 1.0)
    return params, js.certify(net.apply, js.discover(net.apply, params, x), params, x, num=num)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if "norm" in name else ()) for name in KERNELS]
)
def test_kernels(name):
    net, x, nullity, hidden = KERNELS[name]
    params, found = certified(net, x)
    assert (found.nullity, found.orbit_dim, found.hidden) == (nullity, nullity - hidden, hidden)
    assert found.num_params == sum(leaf.size for leaf in jax.tree.leaves(params)) == found.rank + nullity
    assert (found.on_data, found.local) == (0, 0)
    assert found.gap == math.inf if not nullity else found.gap > 1e4
    assert ("complete" in str(found)) == (hidden == 0)


@pytest.mark.parametrize(
    ("widths", "dimension"), [((1, 3, 1), 7), pytest.param((2, 3, 3, 1), 19, marks=pytest.mark.long)]
)
def test_functional_dimensions(widths, dimension):
    """The largest rank over parameters; no rank is larger."""
    net, x = MLP(widths[1:], "relu"), 2 * normal(2500, widths[0])
    found = [certified(net, x, seed=seed)[1] for seed in range(8)]
    assert max(one.rank for one in found) == dimension == js.count.functional_dimension(widths)
    assert all(one.nullity - one.hidden == sum(widths[1:-1]) for one in found)


def test_dead_units_are_hidden_and_named():
    """A unit that no input switches on: its incoming weights on these inputs, its outgoing ones everywhere near."""
    net, x = MLP((4, 2), "relu"), ROWS[:, :3]
    params = perturbed(jax.random.key(3), net.init(jax.random.key(0), x), 1.0)
    params["params"]["Dense_0"]["bias"] = params["params"]["Dense_0"]["bias"].at[0].set(-12.0)
    sym = js.discover(net.apply, params, x)
    found = js.certify(net.apply, sym, params, x, num=40)
    assert (found.orbit_dim, found.hidden, found.local) == (4, 4 + 2 - 1, 5)
    assert found.hidden == pytest.approx(sum(found.shares.values()))
    unit = np.asarray(found.directions["params"]["Dense_0"]["kernel"])[:, :, 1:]
    np.testing.assert_allclose(unit, 0, atol=1e-9)  # the other units are alive
    assert "params/Dense_0/kernel" in str(found)


def test_what_holds_on_these_inputs_only():
    """Four inputs cannot tell five weights."""
    net, x = MLP((1,), use_bias=False), normal(4, 5)
    _, found = certified(net, x)
    assert (found.nullity, found.orbit_dim, found.hidden, found.on_data) == (1, 0, 1, 1)


def test_hidden_directions_change_nothing():
    net, x, _, _ = KERNELS["square"]
    params, found = certified(net, x)
    with jax.enable_x64(True):
        params, x = wide(params), wide(x)
        sym = js.discover(net.apply, params, x)
        tangents = jax.tree.leaves(sym.tangents(params))
        orbit = np.concatenate([np.reshape(leaf, (sym.dim, -1)) for leaf in tangents], 1)
        for i in range(found.hidden):
            direction = jax.tree.map(lambda leaf, i=i: leaf[i], found.directions)
            _, change = jax.jvp(lambda p: net.apply(p, x), (params,), (direction,))
            flat, _ = ravel_pytree(direction)
            np.testing.assert_allclose(change, 0, atol=1e-9)
            np.testing.assert_allclose([flat @ flat, *(orbit @ flat)], [1, 0, 0, 0, 0], atol=1e-9)


def test_a_stabiliser_is_told_apart():
    """GL(4) has 16 dimensions, its orbit 14."""
    net, x, _, _ = KERNELS["linear"]
    params = net.init(jax.random.key(0), x)
    sym = js.discover(net.apply, params, x)
    assert (sym.dim, js.certify(net.apply, sym, params, x).orbit_dim) == (16, 14)


def test_a_wrong_group_is_refused():
    net, other = (MLP((4, 2), activation) for activation in ("relu", "tanh"))
    params = net.init(jax.random.key(0), ROWS[:, :3])
    with pytest.raises(ValueError, match="the orbit leaves the kernel"):
        js.certify(other.apply, js.discover(net.apply, params, ROWS[:, :3]), params, ROWS[:, :3])


def test_without_a_gap_it_refuses():
    """Singular values on both sides of the threshold and close to it: nothing is decided."""

    def apply(p, x):
        return x @ jnp.array([[1, 1, 1], [1, 1 + 2e-12, 1], [1, 1, 1 + 1e-12]]) @ p["w"]

    params = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"no clean gap in the singular values: rank \d of 3"):
        js.certify(apply, js.Symmetry((), (), {"w": (3,)}), params, jnp.eye(3))


def test_integers_and_unused_leaves():
    params = {"w": normal(3), "step": jnp.arange(2), "unused": normal(2)}
    apply = lambda p, x: x * p["w"] + p["step"][0]  # noqa: E731
    found = js.certify(apply, js.discover(apply, params, normal(5, 3)), params, normal(5, 3))
    assert (found.num_params, found.rank, found.hidden) == (5, 3, 2)
    assert found.shares == {"w": 0, "step": 0, "unused": pytest.approx(2)}
    assert "unused" in str(found)


def test_bad_input():
    net, x = MLP((80, 80, 2)), ROWS[:, :3]
    params = net.init(jax.random.key(0), x)
    sym = js.discover(net.apply, jax.eval_shape(lambda: params), x)
    with pytest.raises(ValueError, match=r"6962 parameters, expected at most 5000.*smaller widths"):
        js.certify(net.apply, sym, params, x)
    with pytest.raises(TypeError, match="sym is of type NoneType"):
        js.certify(net.apply, None, params, x)
    with pytest.raises(ValueError, match="is a shape without values"):
        js.certify(net.apply, sym, jax.eval_shape(lambda: params), x)
    with pytest.raises(ValueError, match=r"certify: apply\(params, \*inputs\) fails"):
        js.certify(net.apply, sym, {}, x)


def test_no_numbers_that_move():
    for params in ({}, {"k": jnp.array(2)}):
        found = js.certify(lambda p, x: x, js.discover(lambda p, x: x, params, jnp.ones(3)), params, jnp.ones(3))
        assert (found.num_params, found.rank, found.hidden) == (0, 0, 0)
