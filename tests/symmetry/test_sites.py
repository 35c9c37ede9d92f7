"""What units compute: also behind a loop, and in copies."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsym as js
from jaxsym.symmetry.sites import activations


def test_units_behind_a_loop_are_seen():
    def hidden(p, x):
        state, _ = jax.lax.scan(lambda h, row: (jnp.tanh(row @ p["a"] + h @ p["r"]), None), jnp.zeros((5, 3)), x)
        return jnp.tanh(state @ p["b"])

    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=shape) for name, shape in {"a": (2, 3), "r": (3, 3), "b": (3, 4), "c": (4, 1)}.items()
    }
    x = rng.normal(size=(6, 5, 2))
    with jax.enable_x64(True):
        apply = lambda p, x: hidden(p, x) @ p["c"]  # noqa: E731
        sym = js.discover(apply, params, x)
        (number,) = (i for i, factor in enumerate(sym.factors) if factor.kind == "permutation" and factor.size == 4)
        (found,) = activations(apply, sym, params, x)(params, x)[number]
        np.testing.assert_allclose(found, hidden(params, x).T, rtol=1e-12)


def test_units_in_copies_are_seen_copy_by_copy():
    """Three experts of four hidden units."""
    hidden = lambda p, x: jnp.tanh(jnp.einsum("bi,eih->beh", x, p["a"]))  # noqa: E731
    apply = lambda p, x: jnp.einsum("beh,eho->bo", hidden(p, x), p["b"])  # noqa: E731
    rng = np.random.default_rng(0)
    params, x = {"a": rng.normal(size=(3, 2, 4)), "b": rng.normal(size=(3, 4, 1))}, rng.normal(size=(7, 2))
    with jax.enable_x64(True):
        sym = js.discover(apply, params, x)
        (number,) = (i for i, factor in enumerate(sym.factors) if factor.kind == "permutation" and factor.size == 4)
        (found,) = activations(apply, sym, params, x)(params, x)[number]
        np.testing.assert_allclose(found, hidden(params, x).transpose(1, 2, 0), rtol=1e-12)


def test_constants_that_are_made_in_the_program():
    """Such as causal masks."""
    hidden = lambda p, x: jnp.tanh(jnp.einsum("st,btf->bsf", jnp.tril(jnp.ones((5, 5))), x @ p["a"]))  # noqa: E731
    apply = lambda p, x: hidden(p, x) @ p["b"]  # noqa: E731
    rng = np.random.default_rng(0)
    params, x = {"a": rng.normal(size=(2, 4)), "b": rng.normal(size=(4, 1))}, rng.normal(size=(7, 5, 2))
    with jax.enable_x64(True):
        sym = js.discover(apply, params, x)
        (number,) = (i for i, factor in enumerate(sym.factors) if factor.kind == "permutation")
        before, after = activations(apply, sym, params, x)(params, x)[
            number
        ]  # where the mask reads them, and the last layer
        np.testing.assert_allclose(before, (x @ params["a"]).reshape(35, 4).T, rtol=1e-12)
        np.testing.assert_allclose(after, hidden(params, x).reshape(35, 4).T, rtol=1e-12)


def test_units_that_stay_inside_a_loop_are_not_seen():
    def apply(p, x):
        step = lambda h, layer: (h + jnp.tanh(h @ layer["a"]) @ layer["b"], None)  # noqa: E731
        return jax.lax.scan(step, x, p)[0]

    rng = np.random.default_rng(0)
    params, x = {"a": rng.normal(size=(3, 2, 4)), "b": rng.normal(size=(3, 4, 2))}, rng.normal(size=(7, 2))
    with jax.enable_x64(True):
        sym = js.discover(apply, params, x)
        (number,) = (i for i, factor in enumerate(sym.factors) if factor.kind == "permutation")
        assert sym.factors[number].shape == (3, 4)
        assert activations(apply, sym, params, x)(params, x)[number] == []
