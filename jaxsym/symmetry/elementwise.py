"""Rules of the operations that work number by number; see :mod:`~jaxsym.symmetry.rules`."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxsym.symmetry.trace import Equation
from jaxsym.symmetry.weights import Shapes, Weights


class Rule(NamedTuple):
    """``shape(shapes, equation)`` gives the outputs their axes; ``weigh(weights, equation)`` states the linear relations."""

    shape: Callable[[Shapes, Equation], None]
    weigh: Callable[[Weights, Equation], None]
    linear: bool = False
    """Linear in its operands jointly (or in each contraction), index by index: a change of basis may pass."""


def _elementwise_shape(shapes: Shapes, equation: Equation) -> None:
    for output in equation.outputs:
        shapes.elementwise(output, equation.inputs)


def same(weights: Weights, equation: Equation) -> None:
    """All operands weigh the same, and so does the result: addition, choice, concatenation."""
    (output,) = equation.outputs
    for value in equation.inputs:
        if not weights.negligible(value):
            weights.equal(output, value)


def _choose(weights: Weights, equation: Equation) -> None:
    weights.none(equation.inputs[0])  # a truth value: whatever decided it has spoken already
    for value in equation.inputs[1:]:
        weights.equal(equation.outputs[0], value)


def larger(weights: Weights, equation: Equation) -> None:
    """Maximum and minimum: positive factors pass, a sign does not."""
    if weights.sign:
        nothing(weights, equation)
    else:
        same(weights, equation)


def _compare(weights: Weights, equation: Equation) -> None:
    """The answer does not change when both sides are multiplied by one positive factor."""
    weights.none(equation.outputs[0])
    if weights.sign:
        nothing(weights, equation)
    else:
        weights.equal(equation.inputs[0], equation.inputs[1])


def _times(power: int) -> Callable[[Weights, Equation], None]:
    def weigh(weights: Weights, equation: Equation) -> None:
        one, other = equation.inputs
        weights.combine(equation.outputs[0], [(1, one), (power, other)])

    return weigh


def nothing(weights: Weights, equation: Equation) -> None:
    """No weight passes."""
    for value in (*equation.inputs, *equation.outputs):
        weights.none(value)


def _unary(degree: Fraction | int | None, parity: str | None) -> Rule:
    """A function of one variable: ``f(c x) = c^degree f(x)`` for c > 0, and odd, even or neither."""
    parities: dict[str | None, Fraction | int | None] = {"odd": 1, "even": 0, None: None}

    def weigh(weights: Weights, equation: Equation) -> None:
        (value,), (output,) = equation.inputs, equation.outputs
        power = parities[parity] if weights.sign else degree
        if power is None:
            nothing(weights, equation)
        else:
            weights.combine(output, [(power, value)])

    return Rule(_elementwise_shape, weigh, linear=(degree, parity) == (1, "odd"))


SHIFTED = {"logistic": 1.0, "erfc": 2.0}
"""Functions with ``f(x) + f(-x)`` constant, and the constant."""
PERIODIC = ("sin", "cos")
"""Functions with ``f(x + pi) = -f(x)``."""


def _bending(rule: Rule, bend: str) -> Rule:
    """A function that is odd but for a constant, or that changes its sign with half a period."""

    def weigh(weights: Weights, equation: Equation) -> None:
        (value,), (output,) = equation.inputs, equation.outputs
        if weights.bend != bend:
            rule.weigh(weights, equation)
        elif bend == "shifted":
            weights.combine(output, [(1, value)])
        else:
            weights.none(value)
            weights.touch(output)

    return rule._replace(weigh=weigh)


def _outlined_weigh(weights: Weights, equation: Equation) -> None:
    """A function of one variable that was probed."""
    (value,), (output,) = equation.inputs, equation.outputs
    power = {"odd": 1, "even": 0, None: None}[equation.params["parity"]] if weights.sign else equation.params["degree"]
    if weights.bend == "skewed" and equation.params["skew"]:
        power = 0
    if power is None:
        nothing(weights, equation)
    else:
        weights.combine(output, [(power, value)])


def _power_weigh(weights: Weights, equation: Equation) -> None:
    exponent = equation.params.get("y")
    if exponent is None:
        known = equation.inputs[1].constant
        exponent = None if known is None or known.ndim else float(known)
    if exponent is None:
        nothing(weights, equation)
    elif not weights.sign:
        simple = Fraction(exponent).limit_denominator(64)
        weights.combine(
            equation.outputs[0], [(simple if float(simple) == exponent else Fraction(exponent), equation.inputs[0])]
        )
    elif float(exponent).is_integer():
        weights.combine(equation.outputs[0], [(int(exponent) % 2, equation.inputs[0])])
    else:
        nothing(weights, equation)


def _convert_weigh(weights: Weights, equation: Equation) -> None:
    if np.issubdtype(equation.outputs[0].dtype, np.integer) or equation.outputs[0].dtype == bool:
        nothing(weights, equation)
    else:
        same(weights, equation)


HALF = Fraction(1, 2)
LINEAR = Rule(_elementwise_shape, same, linear=True)
GENERIC = _unary(None, None)

ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(("add", "sub", "add_any"), LINEAR),
    "mul": Rule(_elementwise_shape, _times(1)),
    "div": Rule(_elementwise_shape, _times(-1)),
    **dict.fromkeys(("max", "min"), Rule(_elementwise_shape, larger)),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), Rule(_elementwise_shape, _compare)),
    **dict.fromkeys(
        ("rem", "atan2", "nextafter", "and", "or", "xor", "not", "clamp"), Rule(_elementwise_shape, nothing)
    ),
    "select_n": Rule(_elementwise_shape, _choose),
    **dict.fromkeys(
        ("neg", "copy", "copy_p", "stop_gradient", "real", "reduce_precision", "optimization_barrier"), _unary(1, "odd")
    ),
    "convert_element_type": Rule(_elementwise_shape, _convert_weigh, linear=True),
    **dict.fromkeys(("abs",), _unary(1, "even")),
    "sign": _unary(0, "odd"),
    "is_finite": _unary(0, "even"),
    "square": _unary(2, "even"),
    "sqrt": _unary(HALF, None),
    "rsqrt": _unary(-HALF, None),
    "cbrt": _unary(Fraction(1, 3), "odd"),
    **dict.fromkeys(("integer_pow", "pow"), Rule(_elementwise_shape, _power_weigh)),
    **dict.fromkeys(
        ("tanh", "sin", "tan", "sinh", "asin", "asinh", "atan", "atanh", "erf", "erf_inv"), _unary(None, "odd")
    ),
    **dict.fromkeys(("cos", "cosh"), _unary(None, "even")),
    **dict.fromkeys(
        (
            "exp",
            "exp2",
            "log",
            "log1p",
            "expm1",
            "logistic",
            "erfc",
            "lgamma",
            "digamma",
            "acos",
            "acosh",
            "floor",
            "ceil",
            "round",
        ),
        GENERIC,
    ),
}
ELEMENTWISE["outlined"] = Rule(_elementwise_shape, _outlined_weigh)
ELEMENTWISE["linear"] = _unary(1, "odd")
ELEMENTWISE |= {name: _bending(ELEMENTWISE[name], "shifted") for name in SHIFTED}
ELEMENTWISE |= {name: _bending(ELEMENTWISE[name], "phase") for name in PERIODIC}
