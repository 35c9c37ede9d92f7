"""Random vectors of any length from few compiled programs: to compile a normal draw takes longer than most of what uses it."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float


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
