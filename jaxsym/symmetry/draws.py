"""Random vectors of any length from few compiled programs, and points near given ones: to compile a normal draw takes longer than most of what uses it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

SHRINK = (1.0, 1 / 4, 1 / 16, 0.0)
"""A trial that decides nothing is repeated with its perturbation so much smaller; at last with none."""
LARGEST = 1e4
"""What an entry adds at most to the size of its leaf."""


def normal(key: Array, size: int) -> Float[Array, " size"] | Float[np.ndarray, " size"]:
    """What ``jax.random.normal(key, (size,))`` draws; outside a trace as an array of NumPy's, with which nothing compiles.

    >>> bool((normal(jax.random.key(0), 19) == jax.random.normal(jax.random.key(0), (19,))).all())
    True
    """
    return _beginning(jax.random.normal, key, size)


def uniform(key: Array, size: int) -> Float[Array, " size"] | Float[np.ndarray, " size"]:
    """What ``jax.random.uniform(key, (size,))`` draws, in the same way."""
    return _beginning(jax.random.uniform, key, size)


def _beginning(draw: Callable[..., Array], key: Array, size: int) -> Array | np.ndarray:
    """The first of a power of two of numbers, which JAX draws each from the key and its place alone."""
    drawn = draw(key, (1 << max(4, (size - 1).bit_length()),))
    return (drawn if isinstance(drawn, jax.core.Tracer) else np.asarray(drawn))[:size]


def perturbed(key: Array, tree: PyTree, scale: float = 0.3) -> PyTree:
    """Floating leaves plus noise, so that none is zero by accident; positive ones stay positive, integers and keys as they are.

    The noise has ``scale`` times the root mean square of its leaf, or of what an initialiser would give a leaf that is zero.
    """
    tree = jax.tree.map(jnp.asarray, tree)
    noise = normal(key, sum(leaf.size for leaf in jax.tree.leaves(tree)))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (noise, *jax.tree.leaves(tree))):
        return jax.tree.map(lambda leaf, own: shifted(leaf, own, scale), tree, like(tree, noise))

    def moved(leaf: Array, own: np.ndarray) -> Array:  # on the host, where nothing compiles
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(shifted(np.asarray(leaf), own, scale)) if floating else leaf

    return jax.tree.map(moved, tree, like(tree, np.asarray(noise)))


def like(tree: PyTree, noise: Any) -> PyTree:
    """Cut one draw into leaves."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])
    return jax.tree.unflatten(
        structure, [noise[end - leaf.size : end].reshape(leaf.shape) for end, leaf in zip(ends, leaves, strict=True)]
    )


def shifted(leaf: Any, noise: Any, scale: float) -> Any:
    """For NumPy arrays too, which need no compilation."""
    if not (jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size):
        return leaf
    xp = leaf.__array_namespace__()
    finite = xp.where(xp.isfinite(leaf), xp.clip(leaf, -LARGEST, LARGEST), 0)  # masks hold minus infinity
    unit = xp.maximum(xp.sqrt(xp.mean(finite**2)), max(leaf.shape, default=1) ** -0.5)
    grown = leaf * xp.exp(min(scale, 1) * noise)
    return xp.where(xp.all(leaf > 0), grown, leaf + scale * unit * noise).astype(leaf.dtype)


def nudged(leaf: Any, noise: Any, eps: float) -> Any:
    """One unit in the last place up or down."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return (leaf * np.where(noise < 0, 1 - eps, 1 + eps)).astype(leaf.dtype)
