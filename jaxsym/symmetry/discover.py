"""The symmetry group of a JAX function, read from its jaxpr: trace, tie, weigh, solve, verify."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from jaxsym import tree
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.rules import CATALOGUE, unknown
from jaxsym.symmetry.solve import solve
from jaxsym.symmetry.trace import Program, trace
from jaxsym.symmetry.verify import verify
from jaxsym.symmetry.weights import Shapes, Weights


def discover(apply: Callable[..., Any], params: PyTree, *inputs: Any) -> Symmetry:
    """Find the group that acts on ``params`` and leaves ``apply(params, *inputs)`` unchanged, for all inputs.

    The jaxpr says which axes must carry one permutation, which weights of a scaling or sign cancel, and where a whole change of
    basis passes. It is sound before it is complete: what no rule vouches for is pinned, with the reason, and every factor is
    verified in float64 before it is returned.

    Parameters
    ----------
    apply
        A pure function, ``apply(params, *inputs) -> outputs``: a Flax module's ``apply``, an Equinox closure, plain ``jax.numpy``.
    params, inputs
        Pytrees of arrays or ``jax.ShapeDtypeStruct``. With shapes alone nothing is verified, and ``verified`` is False.

    Returns
    -------
    Symmetry
        With ``factors``, ``pinned``, ``order`` and ``dim``; ``str`` of it is a table.

    Raises
    ------
    ValueError
        If ``apply`` returns nothing.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.MLP((4, 2), activation="tanh")
    >>> x = jnp.ones((5, 3))
    >>> sym = discover(net.apply, net.init(jax.random.key(0), x), x)
    >>> sym.order  # 4! 2^4
    384
    """
    program = trace(apply, params, *inputs)
    if not program.outputs:
        msg = "discover: apply returns nothing; expected at least one array as output."
        raise ValueError(msg)
    shapes = _tie(program)
    scalings, signs = (_weigh(program, shapes, sign=sign) for sign in (False, True))
    factors, pinned = solve(program, shapes, scalings, signs)
    sizes = {path: value.shape for path, value in program.parameters.items()}
    sym = Symmetry(factors, pinned, sizes)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in tree.leaves((params, inputs)).values()):
        return sym
    checked = verify(apply, sym, params, *inputs)
    wrong = [i for i, residual in enumerate(checked.by_factor) if residual > checked.tolerance]
    if wrong or not checked.ok:
        named = "; ".join(
            f"{factors[i].kind} of {factors[i].slots[0].path} ({checked.by_factor[i]:.1e})" for i in wrong
        )
        warnings.warn(
            f"discover: dropped what failed its verification, please report it: {named or 'all'}", stacklevel=2
        )
        kept = tuple(factor for i, factor in enumerate(factors) if i not in wrong) if wrong else ()
        sym = dataclasses.replace(sym, factors=kept)
    return dataclasses.replace(sym, verified=True)


def _tie(program: Program) -> Shapes:
    """Walk the equations once and tie their axes."""
    shapes = Shapes(program)
    for value in (*program.parameters.values(), *program.inputs):
        shapes.axes(value)
    for equation in program.equations:
        rule = CATALOGUE.get(equation.primitive)
        if rule is None:
            warnings.warn(
                f"discover: no rule for the primitive {equation.primitive}; what it touches is pinned", stacklevel=3
            )
            rule = unknown(equation.primitive)
        rule.shape(shapes, equation)
    for output in program.outputs:
        shapes.pin(output, "an output")
    return shapes


def _weigh(program: Program, shapes: Shapes, *, sign: bool) -> Weights:
    weights = Weights(shapes, program, sign=sign)
    for equation in program.equations:
        CATALOGUE.get(equation.primitive, unknown(equation.primitive)).weigh(weights, equation)
    return weights
