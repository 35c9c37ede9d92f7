"""What units compute: also behind a loop."""

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
