"""The symmetry group of a JAX function, read from its jaxpr: trace, tie, weigh, solve, verify."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxsym import tree
from jaxsym.symmetry.affine import affine
from jaxsym.symmetry.checks import checked
from jaxsym.symmetry.factors import Factor
from jaxsym.symmetry.group import Approximate, Symmetry
from jaxsym.symmetry.idioms import centre_variances, drop_unused, lift_slices
from jaxsym.symmetry.outline import outline
from jaxsym.symmetry.rules import CATALOGUE, unknown, weigh
from jaxsym.symmetry.solve import Solver
from jaxsym.symmetry.trace import Program, trace
from jaxsym.symmetry.verify import verify
from jaxsym.symmetry.weights import Shapes, up_to

EPSILON = 1e-3
"""A constant up to this size that is added is taken for the epsilon of a norm."""
NEARLY = 0.1
"""A factor that changes the outputs by more than this part is not even approximate."""


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
    TypeError
        If ``apply`` is not callable, or a leaf is not an array.
    ValueError
        If a parameter is complex or not finite, the parameters do not fit the function, it returns nothing, or its outputs are
        not finite.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.MLP((4, 2), activation="tanh")
    >>> x = jnp.ones((5, 3))
    >>> sym = discover(net.apply, net.init(jax.random.key(0), x), x)
    >>> sym.order  # 4! 2^4
    384
    """
    checked(apply, params, inputs)
    program = trace(apply, params, *inputs)
    shapes = tied(program)
    scalings, signs = (weigh(program, shapes, sign=sign) for sign in (False, True))
    solver = Solver(program, shapes, scalings, signs)
    factors, pinned = solver.result()
    relaxed = weigh(program, shapes, sign=False, small=EPSILON) if _small(program) else None
    approximate = [] if relaxed is None else [factor for _, _, factor in solver.further(relaxed, "scaling")]
    sizes = {path: value.shape for path, value in program.parameters.items()}
    factors = affine(program, shapes, solver, factors) + factors
    moved = {(slot.path, slot.axis) for factor in factors for slot in factor.slots}
    pinned = tuple(pin for pin in pinned if (pin.path, pin.axis) not in moved)
    sym = Symmetry(factors, pinned, sizes)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in tree.leaves((params, inputs)).values()):
        unmeasured = tuple(Approximate(factor, None) for factor in approximate)
        return dataclasses.replace(sym, approximate=unmeasured)
    return _verified(apply, sym, tuple(approximate), params, inputs)


def _verified(
    apply: Callable[..., Any], sym: Symmetry, approximate: tuple[Factor, ...], params: PyTree, inputs: tuple[Any, ...]
) -> Symmetry:
    """Keep what is verified, and the approximate factors with their residuals."""
    found = verify(apply, sym, params, *inputs)
    if not found.ok:
        wrong = [i for i, residual in enumerate(found.by_factor) if residual > found.tolerance]
        named = "; ".join(
            f"{sym.factors[i].kind} of {'/'.join(sym.factors[i].slots[0].path)} ({found.by_factor[i]:.1e})"
            for i in wrong
        )
        warnings.warn(
            f"discover: dropped what failed its verification, please report it: {named or 'all'}", stacklevel=3
        )
        kept = tuple(factor for i, factor in enumerate(sym.factors) if i not in wrong) if wrong else ()
        sym = dataclasses.replace(sym, factors=kept)
    measured: tuple[Approximate, ...] = ()
    if approximate:
        residuals = verify(
            apply, dataclasses.replace(sym, factors=approximate), params, *inputs, level="data"
        ).by_factor
        pairs = zip(approximate, residuals, strict=True)
        measured = tuple(Approximate(factor, residual) for factor, residual in pairs if residual < NEARLY)
    return dataclasses.replace(sym, verified=True, approximate=measured)


def _small(program: Program) -> bool:
    """Whether a small constant is added anywhere."""
    added = (value for e in program.equations if e.primitive == "add" for value in e.inputs)
    return any(up_to(value, EPSILON) and np.any(value.constant) for value in added)


def tied(program: Program) -> Shapes:
    """Write the program out, in place, walk its equations once and tie their axes."""
    centre_variances(program)
    lift_slices(program)
    outline(program)
    drop_unused(program)
    shapes = Shapes(program)
    for value, reason in program.still().items():
        shapes.pin(value, reason)
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
