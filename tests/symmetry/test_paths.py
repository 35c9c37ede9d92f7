"""Path norms against a sum over every path, and what has none."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.paths import path_norm

X = jnp.ones((1, 3))


def network(features, activation="relu", seed=0):
    net = js.models.MLP(features, activation)
    return net, perturbed(jax.random.key(seed), net.init(jax.random.key(1), X), 1.0)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_it_is_a_sum_over_paths(activation, p):
    net, params = network((4, 5, 2), activation)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    kernels = [np.abs(np.asarray(layer["kernel"])) ** p for layer in layers]
    biases = [np.abs(np.asarray(layer["bias"])) ** p for layer in layers]
    total = sum(
        kernels[0][i, j] * kernels[1][j, k] * kernels[2][k, m]
        for i, j, k, m in itertools.product(range(3), range(4), range(5), range(2))
    )
    total += sum(
        biases[0][j] * kernels[1][j, k] * kernels[2][k, m]
        for j, k, m in itertools.product(range(4), range(5), range(2))
    )
    total += sum(biases[1][k] * kernels[2][k, m] for k, m in itertools.product(range(5), range(2))) + biases[2].sum()
    np.testing.assert_allclose(path_norm(net.apply, params, X, p=p), total ** (1 / p), rtol=1e-5)


def test_integers_among_the_inputs_have_none():
    with pytest.raises(ValueError, match="path_norm: inputs/0 has dtype int32, expected a floating one"):
        path_norm(lambda p, i: p["e"][i].sum(), {"e": jnp.ones((3, 2))}, jnp.array([0]))


@pytest.mark.parametrize("features", [(4, 2), (4, 5, 2)])
def test_no_rescaling_changes_it(features):
    net, params = network(features)
    sym = js.discover(net.apply, params, X)
    for seed in range(3):
        moved = sym.act(sym.sample(jax.random.key(seed), 1.0), params)
        np.testing.assert_allclose(path_norm(net.apply, moved, X), path_norm(net.apply, params, X), rtol=1e-5)
    wrong = jax.tree.map(lambda leaf: leaf, params)
    wrong["params"]["Dense_0"]["kernel"] *= 2  # the next layer is not divided
    assert abs(path_norm(net.apply, wrong, X) - path_norm(net.apply, params, X)) > 1e-2


def test_a_convolution_with_a_mean_at_its_end():
    def apply(params, x):
        y = jax.nn.relu(
            jax.lax.conv_general_dilated(x, params["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        return y.mean((1, 2)) @ params["w"]

    params = {
        "k": jax.random.normal(jax.random.key(0), (2, 2, 1, 3)),
        "w": jax.random.normal(jax.random.key(1), (3, 2)),
    }
    want = np.einsum("hwic,cm->", np.asarray(params["k"]) ** 2, np.asarray(params["w"]) ** 2)
    np.testing.assert_allclose(path_norm(apply, params, jnp.ones((1, 5, 5, 1))) ** 2, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        (lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], "the network has tanh"),
        (lambda p, x: jax.nn.relu(x @ p["a"] - 1.0) @ p["b"], "the network has sub"),
        (lambda p, x: jax.nn.relu(x @ p["a"] + -1.0) @ p["b"], "add by constants that are not positive"),
        (lambda p, x: jax.nn.relu6(x @ p["a"]) @ p["b"], "the network has"),
        (lambda p, x: jnp.maximum(x @ p["a"], 1.0) @ p["b"], "the network has max"),
        (lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"], "the network has"),
        (lambda p, x: (x @ p["a"]) ** 2 @ p["b"], "the network has"),
        (lambda p, x: ((x @ p["a"]) * (x @ p["a"])) @ p["b"], "mul of two values that depend on the inputs"),
        (lambda p, x: jnp.where(x @ p["a"] > 0, 0.0, x @ p["a"]) @ p["b"], "the network has select_n"),
        (lambda p, x: jnp.where(x @ p["a"] < 0, x @ p["a"], 0.0) @ p["b"], "the network has select_n"),
        (lambda p, x: (x @ p["a"]) @ p["b"] / p["b"].sum(), "the network has div of b|the network has div"),
    ],
)
def test_what_has_no_path_norm(apply, said):
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1))}
    with pytest.raises(ValueError, match=said):
        path_norm(apply, params, X)


def test_relu_by_choice_has_one():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1))}
    want = path_norm(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, X)
    for choice in (
        lambda z: jnp.where(z > 0, z, 0.0),
        lambda z: jnp.where(z <= 0, 0.0, z),
        lambda z: jnp.where(z > 0, z, 0.1 * z),
    ):
        assert path_norm(lambda p, x: choice(x @ p["a"]) @ p["b"], params, X) == pytest.approx(float(want))  # noqa: B023
    assert js.symmetry.path_norm is path_norm


def test_p():
    net, params = network((4, 2))
    with pytest.raises(ValueError, match=r"path_norm: p: got 0.5"):
        path_norm(net.apply, params, X, p=0.5)
