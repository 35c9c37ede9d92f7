"""Gated units, mixtures and radial networks against their formulas."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym.models import MLP, GatedMLP, Radial, SoftMixture, activation

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (7, 3))


def made(net):
    """Random parameters, biases, too; cheaper to compile than the initializers."""
    keys = map(functools.partial(jax.random.fold_in, KEY), itertools.count())
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), jax.eval_shape(net.init, KEY, X))


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


@pytest.mark.parametrize("gate", ["silu", "sigmoid", "gelu", "relu", "identity", jnp.sin])
@pytest.mark.parametrize("use_bias", [True, False])
def test_gate(gate, use_bias):
    net = GatedMLP(4, 2, gate, use_bias)
    params = made(net)
    p = params["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(p)) == 2 * (3 + use_bias) * 4 + (4 + use_bias) * 2
    act = activation.CATALOGUE[gate] if isinstance(gate, str) else gate
    expected = dense(p["out"], act(dense(p["gates"], X)) * dense(p["values"], X))
    np.testing.assert_allclose(net.apply(params, X), expected, rtol=1e-4, atol=1e-5)


def test_unknown_gate():
    with pytest.raises(ValueError, match="unknown gate 'slu': did you mean silu"):
        GatedMLP(4, 2, "slu")


def test_mixture_is_a_loop_over_experts():
    net = SoftMixture(3, 4, 2, activation="tanh")
    params = made(net)
    p = params["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(p)) == (3 + 1) * 3 + 3 * ((3 + 1) * 4 + (4 + 1) * 2)
    weights = np.exp(dense(p["gate"], X))
    weights = weights / weights.sum(-1, keepdims=True)
    expert = MLP((4, 2), "tanh")
    expected = 0
    for e in range(3):
        own = jax.tree.map(lambda leaf, e=e: leaf[e], p["mlps"])
        expected += weights[:, e, None] * expert.apply({"params": own}, X)
    np.testing.assert_allclose(net.apply(params, X), expected, rtol=1e-4, atol=1e-5)


def test_experts_start_apart():
    kernel = SoftMixture(3, 4, 2).init(KEY, X)["params"]["mlps"]["Dense_0"]["kernel"]
    assert len(np.unique(np.asarray(kernel))) == kernel.size


def test_radial():
    net = Radial(4, 2)
    params = made(net)
    p = params["params"]
    assert set(p["Dense_0"]) == {"kernel"}
    z = np.asarray(X @ p["Dense_0"]["kernel"])
    expected = dense(p["Dense_1"], np.tanh(np.linalg.norm(z, axis=-1, keepdims=True)) * z)
    np.testing.assert_allclose(net.apply(params, X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["rotation", "shear"])
def test_radial_passes_rotations_only(change):
    net = Radial(4, 2)
    params = made(net)
    a = jax.random.normal(jax.random.key(2), (4, 4))
    matrix = jnp.linalg.qr(a)[0] if change == "rotation" else jnp.eye(4).at[0, 1].set(1.0)
    p = params["params"]
    moved = {
        "Dense_0": {"kernel": p["Dense_0"]["kernel"] @ matrix},
        "Dense_1": p["Dense_1"] | {"kernel": jnp.linalg.inv(matrix) @ p["Dense_1"]["kernel"]},
    }
    out, other = net.apply(params, X), net.apply({"params": moved}, X)
    assert bool(jnp.allclose(out, other, atol=1e-4)) == (change == "rotation")


def test_radial_has_a_gradient_at_zero():
    net = Radial(4, 2)
    params = made(net)
    gradient = jax.grad(lambda params: net.apply(params, 0 * X).sum())(params)
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), gradient))
