"""Nonlinearities by what they do: a function of one variable that several equations spell out is probed on a grid, in float64.

Where two operands meet (``x * sigmoid(x)``, ``where(x > 1, 1, where(x < -1, -1, x))``) the rules of the single primitives see less than there is. If both come from
one value, index by index, the sub-graph between is one function of it, and stands as one equation when it is odd, even, homogeneous, or
``f(x) - f(-x)`` is linear.
"""

import functools
import math
import operator
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsym.symmetry.elementwise import ELEMENTWISE
from jaxsym.symmetry.host import run
from jaxsym.symmetry.idioms import Producers, number, producers
from jaxsym.symmetry.trace import Equation, Program, Value

LONGEST = 40
"""Equations in one sub-graph, at most."""
CLIPPING = ("min", "max", "clamp", "select_n")
"""Not odd by themselves, but often in pairs."""
GRID = np.concatenate([np.geomspace(1e-3, 1e6, 97), np.linspace(0.0137, 8.0137, 161)])
NEAR = (1 / 16, 0.45, 0.93, 1.07, 2.2, 16.0)
"""A function may bend where a constant, its square or its root lies: it is probed on both sides."""
FACTORS = (0.37, 1.9, 41.0)
DEGREES = tuple(Fraction(k, 2) for k in range(-6, 9))


class Probe(NamedTuple):
    """What a function of one variable does."""

    degree: Fraction | None
    """For positive factors."""
    parity: str | None
    """``"odd"``, ``"even"`` or None."""
    slope: float
    """The value at 1."""
    skew: float
    """``(f(x) - f(-x)) / x`` where it is the same for all x, otherwise 0."""


def outline(program: Program) -> None:
    """Replace the last equation of every such sub-graph, in place; what nothing else uses can then be dropped."""
    made = producers(program)
    order = {equation: position for position, equation in enumerate(program.equations)}
    for position, equation in enumerate(program.equations):
        varying = {value for value in equation.inputs if number(value) is None}
        joins = len(varying) > 1 or (len(varying) == 1 and equation.primitive in CLIPPING)
        if equation.primitive not in ELEMENTWISE or not equation.bind or not joins:
            continue
        if np.issubdtype(equation.outputs[0].dtype, np.floating) and (found := _cut(made, order, equation)) is not None:
            source, body = found
            probe = _probed(source, body, equation.outputs[0])
            if (probe.degree, probe.parity) == (1, "odd"):
                linear = functools.partial(operator.mul, probe.slope)
                program.equations[position] = Equation(
                    "linear", [source], equation.outputs, {"slope": probe.slope}, linear
                )
            elif probe.degree is not None or probe.parity is not None or probe.skew:
                program.equations[position] = Equation("outlined", [source], equation.outputs, probe._asdict())


def _cut(made: Producers, order: dict[Equation, int], last: Equation) -> tuple[Value, list[Equation]] | None:
    """The nearest single value that everything in the last equation comes from, index by index, and the equations between."""
    body: list[Equation] = [last]
    border = {value for value in last.inputs if number(value) is None}
    alone = next(iter(border)) if len(border) == 1 else None
    while (len(border) > 1 or len(body) == 1) and len(body) < LONGEST:
        inner = [value for value in border if _open(made, value, last.outputs[0].shape)]
        if not inner:
            break
        latest = max(inner, key=lambda value: order[made[value]])
        border.discard(latest)
        body.append(made[latest])
        border |= {value for value in made[latest].inputs if number(value) is None}
    if len(border) > 1 and alone is not None:
        body, border = [last], {alone}
    (source, *more) = border
    if more or source.shape != last.outputs[0].shape or not np.issubdtype(source.dtype, np.floating):
        return None
    return source, sorted(set(body), key=order.__getitem__)


def _open(made: Producers, value: Value, shape: tuple[int, ...]) -> bool:
    return value in made and made[value].primitive in ELEMENTWISE and value.shape == shape


def _probed(source: Value, body: list[Equation], result: Value) -> Probe:

    def at(points: np.ndarray) -> np.ndarray:
        known = {source: points}
        for equation in body:
            inputs = [
                np.asarray(value.constant).flat[0] if value not in known else known[value] for value in equation.inputs
            ]
            filled: list[Any] = [np.broadcast_to(np.asarray(x), points.shape) for x in inputs]
            known[equation.outputs[0]] = np.asarray(run(equation, filled))
        return known[result]

    constants = [abs(c) for e in body for v in e.inputs if (c := number(v)) is not None and math.isfinite(c) and c]
    bends = [scale * power for c in constants for power in (c, c**2, c**0.5) for scale in NEAR]
    grid = np.concatenate([GRID, np.unique(np.array(bends))]) if bends else GRID
    with jax.enable_x64(True), np.errstate(all="ignore"):
        up, down = at(grid), at(-grid)
        slope, at_minus_one = (float(at(np.array([x]))[0]) for x in (1.0, -1.0))
        both, steps = np.concatenate([up, down]), np.concatenate([grid, -grid])
        if not np.isfinite(both).all() or not both.any():
            return Probe(None, None, 0.0, 0.0)
        parity = "odd" if _same(down, -up) else "even" if _same(down, up) else None
        scaled = [(factor, at(factor * steps)) for factor in FACTORS]
    fitting = (k for k in DEGREES if all(_same(values, factor ** float(k) * both) for factor, values in scaled))
    straight = (slope - float(at_minus_one)) * grid
    skewed = np.all(np.abs(up - down - straight) <= 1e-12 * (np.abs(up) + np.abs(down) + np.abs(straight)))
    return Probe(next(fitting, None), parity, slope, slope - at_minus_one if skewed else 0.0)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.all(np.abs(one - other) <= 1e-12 * np.maximum(np.abs(one), np.abs(other))))
