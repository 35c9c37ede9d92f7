"""Probes: pure functions of a training :class:`~jaxsym.training.loop.Snapshot`, recorded along the run."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxsym import tree
from jaxsym.training.loop import Snapshot

TOLERANCE = 1e-4
"""Units whose distance is below this fraction of the larger one's norm count as equal."""


def params(seen: Snapshot) -> PyTree:
    """The parameters themselves."""
    return seen.params


def gradient_norm(seen: Snapshot) -> Float[Array, ""]:
    """Euclidean norm of the gradient."""
    return optax.tree.norm(seen.grads)


def parameter_norm(seen: Snapshot) -> Float[Array, ""]:
    """Euclidean norm of the parameters."""
    return optax.tree.norm(seen.params)


def largest_entries(seen: Snapshot) -> dict[str, Float[Array, ""]]:
    """The largest absolute entry of every leaf, by its path."""
    return {name: jnp.max(jnp.abs(leaf)) for name, leaf in tree.leaves(seen.params).items()}


CATALOGUE: dict[str, Callable[[Snapshot], Any]] = {
    "params": params,
    "gradient_norm": gradient_norm,
    "parameter_norm": parameter_norm,
    "largest_entries": largest_entries,
}


def unit_distances(layer: dict[str, Array], *, signs: bool = True) -> Float[Array, "h h"]:
    """Distances between the units of a dense layer, relative to the larger norm.

    A unit is what it reads, ``u_j = (A_j, b_j)``. ``d_ij = min(|u_i - u_j|, |u_i + u_j|) / max(|u_i|, |u_j|)``; two units
    that are both zero are equal.

    Parameters
    ----------
    layer
        ``kernel`` ``[in, h]`` and, if there is one, ``bias`` ``[h]``.
    signs
        Whether ``u`` and ``-u`` are the same unit, as they are for an odd activation.

    Returns
    -------
    Array
        ``[h, h]``, symmetric, zero on the diagonal.
    """
    kernel = layer["kernel"]
    units = jnp.concatenate([kernel, layer["bias"][None]]) if "bias" in layer else kernel
    one, other = units[:, :, None], units[:, None, :]
    apart = jnp.linalg.norm(one - other, axis=0)
    if signs:
        apart = jnp.minimum(apart, jnp.linalg.norm(one + other, axis=0))
    norms = jnp.linalg.norm(units, axis=0)
    scale = jnp.maximum(norms[:, None], norms[None, :])
    return apart / jnp.where(scale == 0, 1, scale)


def count_distinct(distances: Float[Array, "h h"], tolerance: float = TOLERANCE) -> Int[Array, ""]:
    """Number of units that equal none before them.

    >>> int(count_distinct(jnp.array([[0.0, 1e-6, 1.0], [1e-6, 0.0, 1.0], [1.0, 1.0, 0.0]])))
    2
    """
    before = jnp.tril(distances < tolerance, k=-1)
    return jnp.sum(~jnp.any(before, axis=1))


def distinct_units(
    layer: str = "Dense_0", *, signs: bool = True, tolerance: float = TOLERANCE
) -> Callable[[Snapshot], Int[Array, ""]]:
    """A probe that counts the distinct units of one dense layer of ``params["params"]``.

    Examples
    --------
    >>> layer = {"kernel": jnp.array([[1.0, -1.0, 2.0]]), "bias": jnp.zeros(3)}
    >>> at = Snapshot(jnp.array(0), {"params": {"Dense_0": layer}}, None, jnp.array(0.0))
    >>> int(distinct_units()(at)), int(distinct_units(signs=False)(at))
    (2, 3)
    """

    def probe(seen: Snapshot) -> Int[Array, ""]:
        return count_distinct(unit_distances(seen.params["params"][layer], signs=signs), tolerance)

    return probe
