"""An optimizer that sees no rescaling: path-SGD."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsym.symmetry.checks import expect_real
from jaxsym.symmetry.paths import expect_paths, powered


def path_sgd(apply: Callable[..., PyTree], lr: Any, *inputs: PyTree) -> optax.GradientTransformationExtraArgs:
    """``w <- w - lr g / kappa``: steepest descent in the geometry of the path norm, which commutes with every rescaling of a ReLU network.

    ``kappa = d[1' f_{w^2}(1)] / d(w^2)``, half the second derivative of the squared path norm by a weight: by automatic differentiation of the network itself,
    not by layers. In the precision of the parameters: where the product of all squares on a path underflows, its weights stay.

    Parameters
    ----------
    apply
        ``apply(params, *inputs)``: sums, products with parameters, and ReLU or leaky ReLU.
    lr
        The learning rate, or a schedule of the number of updates.
    inputs
        For their shapes: one row (a batch of ``N`` rows counts ``N`` times).

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its state is a counter. Weights on no path (``kappa = 0``) stay.

    Raises
    ------
    TypeError
        At ``init`` if a parameter is an integer or complex.
    ValueError
        At ``init`` if something in the network has no path norm: it is named; in ``update`` without parameters.

    Notes
    -----
    *Source*: Neyshabur, Salakhutdinov, Srebro 2015 (arXiv:1506.02617), equation 5 and algorithm 1, for p = 2.

    Examples
    --------
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> params = {"a": jnp.array([[2.0]]), "b": jnp.array([[1.0]])}
    >>> opt = path_sgd(apply, 1.0, jnp.ones((1, 1)))
    >>> opt.update({"a": jnp.ones((1, 1)), "b": jnp.ones((1, 1))}, opt.init(params), params)[0]  # kappa of b is a^2
    {'a': Array([[-1.]], dtype=float32), 'b': Array([[-0.25]], dtype=float32)}
    """
    rate = lr if callable(lr) else (lambda _: lr)

    def init(params: PyTree) -> Array:
        expect_real(params, "path_sgd")
        expect_paths(apply, params, *inputs, who="path_sgd")
        return jnp.zeros([], int)

    def update(updates: PyTree, state: Array, params: PyTree | None = None, **_: Any) -> tuple[PyTree, Array]:
        if params is None:
            msg = "path_sgd: update needs the parameters: update(grads, state, params)."
            raise ValueError(msg)
        ones = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), jnp.result_type(leaf)), inputs)

        def paths(squares: PyTree) -> Array:
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(apply(squares, *ones)))  # type: ignore[return-value]

        with jax.default_matmul_precision("highest"):
            kappa = jax.grad(paths)(powered(params, 2))
        now = rate(state)

        def one(g: Array, k: Array) -> Array:
            return (-now * jnp.where(k > 0, g / jnp.where(k > 0, k, 1), 0)).astype(g.dtype)

        return jax.tree.map(one, updates, kappa), state + 1

    return optax.GradientTransformationExtraArgs(init, update)
