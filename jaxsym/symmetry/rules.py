"""One primitive, one rule: how it ties the axes of its operands, and how it passes weights.

A rule speaks to a :class:`~jaxsym.symmetry.weights.Shapes` first (``shape``: which index sets are one) and to a
:class:`~jaxsym.symmetry.weights.Weights` later (``weigh``: if the operands are multiplied by powers of c, what is the result multiplied by?).
Weights are asked for twice: over the rationals for c > 0 (``scaling``) and modulo 2 for c = -1 (``sign``). What a rule does not know it
pins; pinning too much is sound, tying too little is not.
"""

from jaxsym.symmetry.elementwise import ELEMENTWISE, Rule
from jaxsym.symmetry.layout import LAYOUT, pinned_result
from jaxsym.symmetry.trace import Program
from jaxsym.symmetry.weights import Shapes, Weights

CATALOGUE: dict[str, Rule] = {**ELEMENTWISE, **LAYOUT}


def weigh(program: Program, shapes: Shapes, *, sign: bool, small: float = 0.0, bend: str | None = None) -> Weights:
    """The linear system of a program; see :class:`~jaxsym.symmetry.weights.Weights`."""
    weights = Weights(shapes, program, sign=sign, small=small, bend=bend)
    for equation in program.equations:
        CATALOGUE.get(equation.primitive, unknown(equation.primitive)).weigh(weights, equation)
    for value in program.parameters.values():
        weights.touch(value)
    return weights


def unknown(primitive: str) -> Rule:
    """What is done with a primitive that has no rule: everything it touches is pinned."""
    return pinned_result(f"no rule for the primitive {primitive}")
