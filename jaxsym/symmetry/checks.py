"""What discovery refuses before it starts: each error names the leaf, what was got, what was expected and what to do."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsym import tree

_SHOWN = 8  # leaves in a message
_LENGTH = 400  # characters of somebody else's message


def checked(
    apply: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...], who: str = "discover"
) -> tuple[str, ...]:
    """Refuse what no group can be found for, and name the leaves that no group moves.

    ``None`` is a pytree without leaves, as in a partitioned Equinox model: it is named only where ``apply`` fails.

    Parameters
    ----------
    apply, params, inputs
        As for :func:`jaxsym.discover`.
    who
        Begins each message.

    Returns
    -------
    tuple of str
        The paths of the parameters that are no floating numbers: integers, booleans and keys.

    Raises
    ------
    TypeError
        If ``apply`` is not callable, or a leaf is not an array.
    ValueError
        If a parameter is complex or not finite, or ``apply`` fails on the parameters and inputs or returns nothing.

    Examples
    --------
    >>> checked(lambda params, x: params["w"] * x, {"w": jnp.ones(3), "step": 0}, (jnp.ones(3),))
    ('step',)
    """
    try:
        _check(apply, params, inputs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from error.__cause__
    return tuple(path for path, leaf in tree.leaves(params).items() if not jnp.issubdtype(_dtype(leaf), jnp.floating))


def expect_real(params: PyTree, who: str) -> None:
    """Refuse parameters without a gradient flow: integers, and complex numbers."""
    for path, leaf in tree.leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            dtype = jnp.result_type(leaf)
            advice = "keep its real and imaginary parts as parameters" if jnp.iscomplexobj(leaf) else "close over it"
            msg = f"{who}: {path or 'params'} has dtype {dtype}, expected a floating one; {advice}."
            raise TypeError(msg)


def expect_values(params: PyTree, inputs: tuple[Any, ...], who: str) -> None:
    """Refuse shapes without values."""
    for path, leaf in tree.leaves({"params": params, "inputs": inputs}).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            msg = f"{who}: {path} is a shape without values, expected an array."
            raise ValueError(msg)


def expect_concrete(path: str, leaf: Any) -> None:
    """Refuse what is being traced."""
    if isinstance(leaf, jax.core.Tracer):
        msg = f"{path} is a tracer: this runs on the host, call it outside of jit, grad and vmap."
        raise TypeError(msg)


def expect_finite(
    path: str, leaf: Any, advice: str = "look for the step at which training diverged, or initialise it again"
) -> None:
    """Refuse NaN and infinity."""
    wrong = int(np.sum(~np.isfinite(np.asarray(leaf, float))))
    if wrong:
        msg = f"{path} ({_described(leaf)}) has {wrong} entries that are NaN or infinite, expected finite numbers; {advice}."
        raise ValueError(msg)


def _check(apply: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> None:
    if not callable(apply):
        msg = f"apply is {_kind(apply)}, expected a function apply(params, *inputs){_hint(apply)}."
        raise TypeError(msg)
    leaves, others = tree.leaves(params), {f"inputs/{path}": leaf for path, leaf in tree.leaves(inputs).items()}
    for path, leaf in (leaves | others).items():
        _check_array(path, leaf)
    for path, leaf in leaves.items():
        _check_numbers(path, leaf)
    _check_outputs(apply, params, inputs)


def _check_array(path: str, leaf: Any) -> None:
    dtype = _dtype(leaf)
    expect_concrete(path, leaf)
    if dtype is None or getattr(dtype, "kind", "") in tuple("OUSMm"):  # keys have no kind
        msg = f"{path} is {_kind(leaf)}, expected an array or a jax.ShapeDtypeStruct; close over what is no number{_module_hint(leaf)}."
        raise TypeError(msg)


def _check_numbers(path: str, leaf: Any) -> None:
    """Complex parameters, NaN and infinity."""
    dtype = _dtype(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        msg = (
            f"{path} is {_described(leaf)}, expected real numbers; complex parameters are not supported:"
            " pass real and imaginary part as two leaves."
        )
        raise ValueError(msg)
    if not isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(dtype, jnp.floating):
        expect_finite(path, leaf)


def _check_outputs(apply: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> None:
    """By shapes alone."""
    try:
        outputs = jax.eval_shape(apply, params, *inputs)
    except Exception as error:
        raise ValueError(_failure(error, apply, params, inputs)) from error
    refuse_empty([leaf.shape for leaf in jax.tree.leaves(outputs)])


def refuse_empty(shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse outputs of these shapes when there is no number in them."""
    if not sum(map(math.prod, shapes)):
        got = f"outputs of shape {', '.join(map(str, shapes))}: no numbers" if shapes else "nothing"
        msg = f"apply returns {got}; expected at least one number as output{', from a batch that is not empty' if shapes else ''}."
        raise ValueError(msg)


def _failure(error: Exception, apply: Any, params: PyTree, inputs: tuple[Any, ...]) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= _LENGTH else f"{said[:_LENGTH]}..."
    nothing = [path for path, leaf in _leaves_and_none(params).items() if leaf is None]
    missing = f" None stands in place of {_listed(nothing)}." if nothing else ""
    shapes = [f"{path} {_described(leaf)}" for path, leaf in tree.leaves(params).items()]
    given = [_described(leaf) for leaf in jax.tree.leaves(inputs)]
    return (
        f"apply(params, *inputs) fails: {type(error).__name__}: {said} It was given params: {_listed(shapes)};"
        f" inputs: {_listed(given)}.{missing} Pass parameters and inputs that fit this function{_hint(apply)}."
    )


def _leaves_and_none(params: PyTree) -> dict[str, Any]:
    pairs = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: leaf is None)
    return {tree.name(path): leaf for path, leaf in pairs}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def _hint(apply: Any) -> str:
    return "; of a module pass its .apply" if hasattr(apply, "apply") else ""


def _module_hint(leaf: Any) -> str:
    return " (of an Equinox module take eqx.partition(module, eqx.is_inexact_array))" if callable(leaf) else ""


def _dtype(leaf: Any) -> Any:
    """NumPy's or JAX's dtype; None of what is no array."""
    if isinstance(leaf, bool | int | float | complex):
        return np.asarray(leaf).dtype
    return leaf.dtype if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else None


def _described(leaf: Any) -> str:
    """A leaf as ``float32[3,4]``."""
    return f"{_dtype(leaf)}[{','.join(map(str, np.shape(leaf)))}]"


def _kind(thing: Any) -> str:
    if isinstance(thing, str):
        return f"the text {thing!r}"
    if isinstance(thing, np.ndarray):
        return f"an array of dtype {thing.dtype}"
    return f"of type {type(thing).__name__}"
