"""A black box that knows only gradients counts the laws of the oracles, and agrees with the charges of the group."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.dynamics import charges, find_laws

KEY = jax.random.key(0)


def two_layers(n, m, r, act=lambda x: x, bias=False):
    """Loss and sampler of ``act(x U) V'`` on three rows: U is [n, r] and V is [m, r]."""

    def apply(params, x):
        hidden = x @ params["U"] + (params["b"] if bias else 0)
        return act(hidden) @ params["V"].T

    def sample(key):
        keys = jax.random.split(key, 5)
        params = {"U": jax.random.normal(keys[0], (n, r)), "V": jax.random.normal(keys[1], (m, r))}
        if bias:
            params["b"] = jax.random.normal(keys[2], (r,))
        return params, (jax.random.normal(keys[3], (3, n)), jax.random.normal(keys[4], (3, m)))

    return apply, (lambda params, data: jnp.sum((apply(params, data[0]) - data[1]) ** 2)), sample


def attention(d):
    def apply(params, x):
        return jax.nn.softmax((x @ params["Q"]) @ (x @ params["K"]).T) @ x @ params["V"] @ params["O"]

    def sample(key):
        keys = jax.random.split(key, 6)
        params = {name: jax.random.normal(k, (d, d)) for name, k in zip("QKVO", keys, strict=False)}
        return params, (jax.random.normal(keys[4], (3, d)), jax.random.normal(keys[5], (3, d)))

    return apply, (lambda params, data: jnp.sum((apply(params, data[0]) - data[1]) ** 2)), sample


CASES = {  # widths n, r, m of the oracles' second paragraph
    "linear 2,2,2": (lambda: two_layers(2, 2, 2), (3, 3, 0)),
    "linear 1,3,1": (lambda: two_layers(1, 1, 3), (9, 5, 0)),
    "relu 2,3,2": (lambda: two_layers(2, 2, 3, jax.nn.relu), (3, 3, 0)),
    "relu 2,3,2 with biases": (lambda: two_layers(2, 2, 3, jax.nn.relu, bias=True), (3, 3, 0)),
    "tanh 2,3,1": (lambda: two_layers(2, 1, 3, jnp.tanh), (0, 0, 0)),
    "attention 2": (lambda: attention(2), (6, 6, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_of_the_oracles(name):
    build, want = CASES[name]
    _, loss, sample = build()
    found = find_laws(loss, sample, KEY)
    assert found[:3] == want
    assert found.residual < 1e-9
    assert len(found.readable) == want[0]


@pytest.mark.parametrize(
    ("n", "m", "r"),
    [(2, 2, 4), pytest.param(2, 2, 5, marks=pytest.mark.long), pytest.param(2, 2, 6, marks=pytest.mark.long)],
)
def test_independent_laws_of_linear_networks(n, m, r):
    """Marcotte et al. 2023: k (2 r + 1 - k) / 2 with k = min(r, n + m), not r (r + 1) / 2."""
    _, loss, sample = two_layers(n, m, r)
    k = min(r, n + m)
    assert find_laws(loss, sample, KEY).independent == k * (2 * r + 1 - k) // 2


@pytest.mark.parametrize("name", ["linear 2,2,2", "relu 2,3,2 with biases", "attention 2"])
def test_it_agrees_with_the_charges_of_the_group(name):
    """Where both speak: every charge is one of the laws that were found."""
    apply, loss, sample = CASES[name][0]()
    found = find_laws(loss, sample, KEY)
    with jax.enable_x64(True):
        params, (x, _) = sample(jax.random.key(1))
        kept = charges(js.discover(apply, params, x))
        at, back = ravel_pytree(params)
        at = np.asarray(at)
        curved = np.asarray(jax.jit(jax.hessian(lambda at: kept(back(at))))(at))
    as_laws = []
    for matrix in curved:  # of a quadratic charge, as coefficients of monomials
        terms = {}
        for i, j in itertools.combinations_with_replacement(range(len(at)), 2):
            terms[i, j] = matrix[i, j] / (2 if i == j else 1)
        as_laws.append([terms.get(tuple(np.repeat(np.arange(len(at)), e)), 0.0) for e in found.exponents])
    both = np.concatenate([found.coefficients, as_laws])
    assert np.linalg.matrix_rank(found.coefficients, tol=1e-6) == np.linalg.matrix_rank(both, tol=1e-6) == len(kept)


def test_what_symmetry_does_not_explain():
    """A sum of two parameters that enter only together is kept as a difference, whatever the group says."""

    def sample(key):
        a, b, y = jax.random.normal(key, (3,))
        return {"a": a, "b": b}, y

    found = find_laws(lambda p, y: jnp.sin(p["a"] + p["b"] - y), sample, KEY)
    assert found[:3] == (2, 1, 1)  # the difference, and its square
    assert "a - b" in found.readable
    cubic = find_laws(lambda p, y: (p["a"] * p["b"] ** 2 - y) ** 2, sample, KEY, degree=2)
    assert cubic.readable == ("a^2 - 1/2 b^2",)


def test_degrees():
    def sample(key):
        a, b, y = jax.random.normal(key, (3,))
        return {"a": a, "b": b}, y

    quartic = find_laws(lambda p, y: (p["a"] * p["b"] - y) ** 2, sample, KEY, degree=4)
    assert quartic[:3] == (2, 1, 0)  # a^2 - b^2, and its square
    assert find_laws(lambda p, y: (p["a"] * p["b"] - y) ** 2, sample, KEY, degree=1)[:3] == (0, 0, 0)


def test_the_precision_of_the_draws_does_not_matter():
    def sample(key):
        a, b, x, y = (
            jax.random.normal(k, shape, "float32") for k, shape in zip(jax.random.split(key, 4), SHAPES, strict=True)
        )
        return {"a": a, "b": b}, (x, y)

    def loss(p, data):
        return jnp.sum((jax.nn.relu(data[0] @ p["a"]) @ p["b"] - data[1]) ** 2)

    assert find_laws(loss, sample, KEY)[:3] == (3, 3, 0)
    with pytest.raises(ValueError, match="find_laws: the loss computes in float32 somewhere"):
        find_laws(lambda p, data: loss(p, data).astype("float32"), sample, KEY)


SHAPES = ((2, 3), (3, 2), (4, 2), (4, 2))


def test_small_coefficients_are_shown():
    def sample(key):
        a, b, y = jax.random.normal(key, (3,))
        return {"a": a, "b": b}, y

    assert find_laws(lambda p, y: jnp.sin(p["a"] + 3e6 * p["b"] - y), sample, KEY, degree=1).readable == (
        "a - 3.33333e-07 b",
    )


def test_bad_input():
    with pytest.raises(ValueError, match="sample returns no parameters"):
        find_laws(lambda p, _: 0.0, lambda key: ({}, None), KEY)
    sample = lambda key: ({"a": jax.random.normal(key, (3,))}, None)  # noqa: E731
    with pytest.raises(ValueError, match=r"loss returns .*expected a real scalar"):
        find_laws(lambda p, _: p["a"], sample, KEY)
    with pytest.raises(ValueError, match="degree: got 0"):
        find_laws(lambda p, _: p["a"].sum(), sample, KEY, degree=0)
    with pytest.raises(TypeError, match="a is of type int"):
        find_laws(lambda p, _: p["a"].sum() * 1.0, lambda key: ({"a": jnp.arange(3)}, None), KEY)
    with pytest.raises(TypeError, match="a is of type complex"):
        find_laws(lambda p, _: jnp.abs(p["a"]).sum(), lambda key: ({"a": 1j * jnp.ones(3)}, None), KEY)
    with pytest.raises(ValueError, match=f"100 parameters have {math.comb(102, 2) - 1} monomials"):
        find_laws(lambda p, _: p["a"].sum(), lambda key: ({"a": jnp.ones(100)}, None), KEY)
    with pytest.raises(ValueError, match="gradients are not finite"):
        find_laws(lambda p, _: jnp.log(p["a"]).sum() * 0, lambda key: ({"a": jnp.zeros(2)}, None), KEY)
    with pytest.raises(TypeError, match="sample returns dict"):
        find_laws(lambda p, _: 0.0, lambda key: {"a": jnp.ones(2)}, KEY)
