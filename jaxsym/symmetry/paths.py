"""The squared-weights network: path norms, which no rescaling of ReLU units changes.

With positive weights and inputs a ReLU network is linear, and its outputs add up over the paths from inputs (and biases) to outputs. Fed with
``|w|^p`` and ones it returns the sum over all paths of the product of ``|w|^p`` along each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.symmetry.checks import checked
from jaxsym.symmetry.trace import Value, trace

_POSITIVE = frozenset(  # positive in, positive out, and linear
    [
        "add",
        "add_any",
        "concatenate",
        "conv_general_dilated",
        "convert_element_type",
        "copy",
        "cumsum",
        "dot_general",
        "expand_dims",
        "gather",
        "mul",
        "pad",
        "reduce_sum",
        "reduce_window_sum",
        "reshape",
        "rev",
        "slice",
        "squeeze",
        "transpose",
        "broadcast_in_dim",
        "dynamic_slice",
        "stop_gradient",
    ]
)


def path_norm(apply: Callable[..., PyTree], params: PyTree, *inputs: PyTree, p: float = 2) -> Float[Array, ""]:
    """The path norm of a ReLU network, ``(sum over paths of prod |w|^p)^(1/p)``; biases begin paths of their own.

    Parameters
    ----------
    apply, params
        ``apply(params, *inputs)``: sums, products with parameters, and ReLU or leaky ReLU, in any architecture. Every floating leaf is a weight;
        constants (as in a mean) multiply paths as they are, whatever ``p``.
    inputs
        For their shapes; ones are fed in their place, so that a batch of ``N`` rows counts ``N`` times: give one row.
    p
        At least 1.

    Raises
    ------
    ValueError
        If something in the network has no path norm, or an input is no floating number: it is named.

    Notes
    -----
    *Source*: Neyshabur, Tomioka, Srebro 2015 (arXiv:1503.00036), equation 7.

    Examples
    --------
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([[3.0], [1.0]])}
    >>> float(path_norm(apply, params, jnp.ones((1, 1))) ** 2)  # 1 * 9 + 4 * 1
    13.0
    """
    if not p >= 1:
        msg = f"path_norm: p: got {p}, expected at least 1."
        raise ValueError(msg)
    expect_paths(apply, params, *inputs)
    with jax.default_matmul_precision("highest"):
        outputs = apply(powered(params, p), *jax.tree.map(lambda leaf: jnp.ones_like(jnp.asarray(leaf)), inputs))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(outputs)) ** (1 / p)


def powered(params: PyTree, p: float) -> PyTree:
    """``|w|^p`` of the floating leaves."""

    def one(leaf: Any) -> Any:
        return jnp.abs(leaf) ** p if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(one, params)


def expect_paths(apply: Callable[..., PyTree], params: PyTree, *inputs: PyTree, who: str = "path_norm") -> None:
    """Refuse networks that are not linear where weights and inputs are positive.

    Raises
    ------
    ValueError
        Naming the primitive.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, inputs))
    checked(apply, shapes[0], shapes[1], who)
    for path, leaf in tree.leaves(inputs).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            msg = f"{who}: inputs/{path} has dtype {jnp.result_type(leaf)}, expected a floating one, for ones are fed in its place; close over it."
            raise ValueError(msg)
    program = trace(apply, shapes[0], *shapes[1])
    depends = {id(value) for value in [*program.parameters.values(), *program.inputs]}
    fed = {id(value) for value in program.inputs}
    # signs of values that are compared, as leaky ReLU does, and which of two cases is taken where the values are positive
    signs: dict[int, int] = {}
    for equation in program.equations:
        name, operands = equation.primitive, equation.inputs
        moving = [value for value in operands if id(value) in depends]
        constants = [value for value in operands if value.constant is not None]
        if not moving:
            continue
        if (
            name in ("gt", "ge", "lt", "le")
            and all(np.all(value.constant == 0) for value in constants)
            and len(constants) == 1
        ):
            upwards = (name in ("gt", "ge")) == (operands[0].constant is None)
            signs |= {id(value): int(upwards) for value in equation.outputs}
            continue
        twice = name in ("mul", "dot_general", "conv_general_dilated") and all(id(value) in fed for value in operands)
        if any(id(value) in fed for value in operands):
            fed.update(id(value) for value in equation.outputs)
        depends.update(id(value) for value in equation.outputs)
        if (
            name == "select_n"
            and id(operands[0]) in signs
            and all(_fits(value) for value in operands[1:])
            and operands[1 + signs[id(operands[0])]].constant is None
        ):
            continue
        if name == "max" and all(np.all(value.constant == 0) for value in constants) and constants:
            continue
        if name == "div" and id(operands[1]) not in depends and _fits(operands[1]):
            continue
        if name == "integer_pow" and equation.params["y"] == 1:
            continue
        if name not in _POSITIVE or twice or not all(map(_fits, constants)):
            wrong = " of two values that depend on the inputs" if twice else " by constants that are not positive"
            what = name + wrong * (name in _POSITIVE)
            named = [value.path for value in moving if value.path]
            at = f" of {', '.join(named)}" if named else ""
            msg = (
                f"{who}: the network has {what}{at}; expected sums, products and ReLU alone, which are linear where weights and inputs"
                " are positive: for other networks there is no path norm."
            )
            raise ValueError(msg)
    if not any(id(value) in depends for value in program.outputs):
        msg = f"{who}: the outputs do not depend on {', '.join(tree.leaves(params)) or 'any parameter'}."
        raise ValueError(msg)


def _fits(value: Value) -> bool:
    """Whether a value is no constant, or a constant without negative entries."""
    return value.constant is None or bool(np.all(np.asarray(value.constant) >= 0))
