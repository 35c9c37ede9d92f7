"""In what precision a function computes, and what rounding may do to it."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.extend.core import Literal as Constant
from jaxtyping import Array, PyTree

Precision = Literal["float64", "float32"]


def tolerance(dtype: Any) -> float:
    """What rounding may do to the outputs of a right group: 1e-9 in float64, 1e-4 in float32, 16 units in the last place below.

    >>> tolerance("float64"), tolerance("float32"), tolerance("bfloat16")
    (1e-09, 0.0001, 0.125)
    """
    eps = float(jnp.finfo(dtype).eps)
    if eps <= jnp.finfo("float64").eps:
        return 1e-9
    return max(1e-4, min(16 * eps, 0.25))  # beyond a quarter no wrong group would fail


def wide(tree: PyTree, dtype: Any = "float64") -> PyTree:
    """Floating leaves as float64, or another type; integers and keys as they are."""

    def widen(leaf: Any) -> Any:
        if (
            isinstance(leaf, jax.Array)
            and not isinstance(leaf, jax.core.Tracer)
            and jnp.issubdtype(leaf.dtype, jnp.floating)
        ):
            return jnp.asarray(np.asarray(leaf).astype(dtype))  # on the host, where nothing compiles
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(widen, tree)


def traced(
    apply: Callable[..., Any], params: PyTree, inputs: Any, precision: Precision
) -> tuple[ClosedJaxpr, PyTree, Precision]:
    """The jaxpr, parameters and inputs in this precision, or in float32 where the function refuses float64."""
    with jax.enable_x64(precision == "float64"):
        start = wide((params, tuple(inputs)), precision)
        try:
            return jax.make_jaxpr(apply)(start[0], *start[1]), jax.tree.map(_on_host, start), precision
        except TypeError:  # carries of a fixed type, for instance
            if precision == "float32":
                raise
    return traced(apply, params, inputs, "float32")


def _on_host(leaf: Array) -> Any:
    return np.asarray(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def narrowed(closed: ClosedJaxpr) -> Iterator[str]:
    """The floating types that an equation turns a finer one into, sub-jaxprs included."""
    for equation in equations(closed.jaxpr):
        sources = [_eps(v.aval.dtype) for v in equation.invars if not isinstance(v, Constant)]
        for variable in equation.outvars:
            if any(0 < source < _eps(variable.aval.dtype) for source in sources):
                yield variable.aval.dtype.name


def coarsest_type(taken: str, closed: ClosedJaxpr) -> str:
    """Of the type that a function is given, and those that it casts to."""
    return max((taken, *narrowed(closed)), key=_eps)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations that compute something: those that call a sub-jaxpr stand for its own."""
    for equation in jaxpr.eqns:
        inner = [value for value in jax.tree.leaves(equation.params) if isinstance(value, ClosedJaxpr | Jaxpr)]
        for value in inner:
            yield from equations(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
        if not inner:
            yield equation
