"""Does a group leave a function unchanged? Random elements of every factor, random parameters, float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsym.symmetry.group import Symmetry


class Verification(NamedTuple):
    """The worst relative residual ``max|f(g.theta) - f(theta)| / max(1, max|f(theta)|)``, one per factor, and the verdict."""

    residual: float
    by_factor: tuple[float, ...]
    ok: bool
    tolerance: float


def verify(
    apply: Callable[..., Any],
    sym: Symmetry,
    params: PyTree,
    *inputs: Any,
    key: Array | None = None,
    level: str = "function",
    num: int = 3,
) -> Verification:
    """Act with random elements of every factor, and of all together, and compare the outputs in float64.

    Parameters
    ----------
    apply, params, inputs
        As for :func:`jaxsym.discover`; the parameters are perturbed, so that biases are not zero.
    sym
        The group.
    key
        Of the elements, the perturbations and the inputs; a fixed one when None.
    level
        ``"function"``: at other inputs too; ``"data"``: at these inputs only.
    num
        How many parameters, elements and inputs are tried.

    Returns
    -------
    Verification
        ``ok`` when the worst residual is at most the tolerance: 1e-9, or 1e-4 for a function that works in float32 only.

    Raises
    ------
    ValueError
        If the level is unknown, or the outputs are empty or not finite.
    """
    if level not in ("function", "data"):
        msg = f"level: got {level!r}, expected 'function' or 'data'."
        raise ValueError(msg)
    key = jax.random.key(0) if key is None else key
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        start = wide((params, inputs))
        tolerance = 1e-9
        try:
            jax.eval_shape(apply, start[0], *start[1])
        except TypeError:  # carries of a fixed type, for instance: the function does not work in float64
            start, tolerance = (params, inputs), 1e-4
        worst = np.zeros(len(sym.factors) + 1)
        run = jax.jit(functools.partial(_outputs, apply, sym))
        for trial in jax.random.split(key, num):
            own_key, input_key, element_key = jax.random.split(trial, 3)
            params, inputs = perturbed(own_key, start[0]), start[1]
            inputs = perturbed(input_key, inputs) if level == "function" else inputs
            element, still = sym.sample(element_key), sym.identity()
            alone = [(*still[:i], part, *still[i + 1 :]) for i, part in enumerate(element)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), still, element, *alone)
            expected, *moved = np.asarray(run(stacked, params, inputs))
            if expected.size == 0:
                msg = "verify: apply returns nothing; expected at least one array."
                raise ValueError(msg)
            if not (np.isfinite(expected).all() and np.isfinite(moved).all()):
                msg = (
                    "verify: the outputs are not finite; choose parameters and inputs at which the function is defined."
                )
                raise ValueError(msg)
            scale = max(1.0, np.abs(expected).max())
            worst = np.maximum(worst, [np.abs(got - expected).max() / scale for got in moved])
    residual = float(worst.max())
    return Verification(residual, tuple(float(w) for w in worst[1:]), residual <= tolerance, tolerance)


def _outputs(apply: Callable[..., Any], sym: Symmetry, elements: PyTree, params: PyTree, inputs: PyTree) -> Array:
    """All outputs in one vector, for every element."""

    def flat(element: Any) -> Array:
        outputs = jax.tree.leaves(apply(sym.act(element, params), *inputs))
        return jnp.concatenate([jnp.zeros(0), *(jnp.ravel(leaf).astype(float) for leaf in outputs)])

    return jax.lax.map(flat, elements) if sym.factors else jnp.stack([flat(()), flat(())])


def wide(tree: PyTree) -> PyTree:
    """Floating leaves as float64."""

    def widen(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(widen, tree)


def perturbed(key: Array, tree: PyTree, scale: float = 0.3) -> PyTree:
    """Floating leaves plus noise, so that none is zero by accident; positive ones stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    noise = scale * jax.random.normal(key, (sum(leaf.size for leaf in leaves),))
    moved, start = [], 0
    for leaf in map(jnp.asarray, leaves):
        own = noise[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
            leaf = jnp.where(jnp.all(leaf > 0), leaf * jnp.exp(own), leaf + own).astype(leaf.dtype)
        moved.append(leaf)
    return jax.tree.unflatten(structure, moved)
