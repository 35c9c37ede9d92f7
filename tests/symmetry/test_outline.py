"""Nonlinearities are recognised by what they do, however they are spelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js

X = jax.ShapeDtypeStruct((5, 3), jnp.float32)
PARAMS = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in {"a": (3, 4), "b": (4,), "c": (4, 2)}.items()
}
FUNCTIONS = {
    "hard tanh": (jax.nn.hard_tanh, {"sign"}),
    "clip": (lambda x: jnp.clip(x, -1, 1), {"sign"}),
    "uneven clip": (lambda x: jnp.clip(x, -1, 2), set()),
    "difference of two squares": (lambda x: jax.nn.relu(x) ** 2 - jax.nn.relu(-x) ** 2, {"scaling", "sign"}),
    "soft sign": (jax.nn.soft_sign, {"sign"}),
    "x |x|": (lambda x: x * jnp.abs(x), {"scaling", "sign"}),
    "gate by a comparison": (lambda x: x * (x > 0), {"scaling"}),
    "log cosh": (lambda x: jnp.logaddexp(x, -x), {"sign"}),
    "odd piecewise": (lambda x: jnp.where(jnp.abs(x) < 1, x**3, jnp.sign(x)), {"sign"}),
    "a ceiling far away": (lambda x: jnp.clip(x, -1000, 2000), set()),
    "gelu": (jax.nn.gelu, set()),
    "mish": (jax.nn.mish, set()),
    "relu6": (jax.nn.relu6, set()),
}


def through(function):
    return lambda p, x: function(x @ p["a"] + p["b"]) @ p["c"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_kinds_of_one_layer(name):
    function, kinds = FUNCTIONS[name]
    sym = js.discover(through(function), PARAMS, X)
    assert {factor.kind for factor in sym.factors} == kinds | {"permutation"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_kinds_are_what_the_function_does(name):
    """By definition, at points that the grid of the probe does not have."""
    function, kinds = FUNCTIONS[name]
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (1000,)) * 10 ** jax.random.uniform(
            jax.random.key(1), (1000,), maxval=4
        )
        up, down, double = (np.asarray(function(y)) for y in (x, -x, 2 * x))
    odd_or_even = np.allclose(down, -up, rtol=1e-12) or np.allclose(down, up, rtol=1e-12)
    homogeneous = any(np.allclose(double, 2**degree * up, rtol=1e-12) for degree in (1, 2))
    assert odd_or_even == ("sign" in kinds)
    assert homogeneous == ("scaling" in kinds)


def test_the_identity_in_disguise_is_linear():
    sym = js.discover(through(lambda x: jax.nn.relu(x) - jax.nn.relu(-x)), PARAMS, X)
    assert [factor.kind for factor in sym.factors] == ["general_linear"]
