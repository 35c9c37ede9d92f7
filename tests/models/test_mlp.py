"""The activations by their defining properties, and the MLP against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym.models import MLP, activation

X = np.linspace(-8, 8, 33)
BY_HAND = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
    "prelu": lambda x: np.where(x < 0, 0.01 * x, x),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sin": np.sin,
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "relu6": lambda x: np.clip(x, 0, 6),
    "abs": np.abs,
}


def test_the_catalogue_is_complete():
    assert set(activation.CATALOGUE) == set(BY_HAND)


@pytest.mark.parametrize("name", activation.CATALOGUE)
def test_activation(name):
    """An MLP with unit weights computes the activation itself."""
    net = MLP((1, 1), activation=name, kernel_init=jax.nn.initializers.ones)
    params = net.init(jax.random.key(0), jnp.zeros((1, 1)))
    got = net.apply(params, jnp.asarray(X[:, None], jnp.float32))[:, 0]
    np.testing.assert_allclose(got, BY_HAND[name](X), rtol=2e-5, atol=2e-6)
    assert (name == "prelu") == ("PReLU_0" in params["params"])


def test_formula_with_biases():
    net = MLP((5, 4, 2), activation="tanh", bias_init=jax.nn.initializers.normal(1.0))
    x = jax.random.normal(jax.random.key(1), (7, 3))
    params = net.init(jax.random.key(0), x)
    p = jax.tree.map(np.asarray, params["params"])
    h = np.tanh(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    h = np.tanh(h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"])
    expected = h @ p["Dense_2"]["kernel"] + p["Dense_2"]["bias"]
    np.testing.assert_allclose(net.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_without_bias():
    net = MLP((4, 1), use_bias=False)
    assert set(net.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]["Dense_0"]) == {"kernel"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ()}, "expected at least one width"),
        ({"features": (4, 0)}, "all positive"),
        ({"features": (4, 1), "activation": "tahn"}, "did you mean tanh"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        MLP(**options)
