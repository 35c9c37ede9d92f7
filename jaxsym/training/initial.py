"""Initializers by name: factories that return ``(key, shape, dtype) -> array``, as Flax and JAX use them.

Kernels have shape ``[..., in, out]``: a column of the last axis is what one unit reads.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from jaxsym.catalogue import find


def zeros() -> initializers.Initializer:
    """All zero: every unit equal, and no signal passes in either direction."""
    return initializers.zeros


def constant(c: float = 0.1) -> initializers.Initializer:
    """All entries ``c``: every unit equal, but signals pass."""
    return initializers.constant(c)


def normal(stddev: float = 0.01) -> initializers.Initializer:
    """Independent ``N(0, stddev^2)``; small by default, as in the classic recipe."""
    return initializers.normal(stddev)


def tied(scale: float = 1.0) -> initializers.Initializer:
    """Random, but with all units of a layer equal: one LeCun-normal column (Klambauer et al. 2017), repeated.

    The columns are equal, their entries are not; so the rows of the *next* layer's kernel, tied too, differ.
    """

    def draw(key: Array, shape: Sequence[Any], dtype: Any = None, out_sharding: Any = None) -> Float[Array, "..."]:  # noqa: ARG001
        column = scale * initializers.lecun_normal()(key, (*shape[:-1], 1), dtype)
        return jnp.broadcast_to(column, shape)

    return draw


CATALOGUE: dict[str, Callable[..., initializers.Initializer]] = {
    "zeros": zeros,
    "constant": constant,
    "normal": normal,
    "tied": tied,
    "xavier_uniform": initializers.xavier_uniform,
    "xavier_normal": initializers.xavier_normal,
    "he_uniform": initializers.he_uniform,
    "he_normal": initializers.he_normal,
    "lecun_uniform": initializers.lecun_uniform,
    "lecun_normal": initializers.lecun_normal,
    "orthogonal": initializers.orthogonal,
}


def initializer(name: str, **options: Any) -> initializers.Initializer:
    """An initializer of the catalogue by its name.

    Raises
    ------
    ValueError
        If the name or one of the options is unknown.

    Examples
    --------
    >>> import jax
    >>> initializer("constant", c=2.0)(jax.random.key(0), (2, 2)).tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """
    factory = find(CATALOGUE, name, "initializer")
    known = inspect.signature(factory).parameters
    for option in options:
        find(known, option, f"option of the initializer {name!r}")
    return factory(**options)
