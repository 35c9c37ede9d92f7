"""Formulas that hide what they compute, written out: the fast variance ``E x^2 - (E x)^2`` is ``E (x - E x)^2``.

An algebraic identity, so nothing is assumed; but on the right-hand side every rule sees that a constant added to ``x`` drops out, and that only
a sum of squares is left.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxsym.symmetry.trace import Equation, Program, Value

Producers = dict[Value, Equation]
PASSING = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "convert_element_type", "stop_gradient", "copy")


def producers(program: Program) -> Producers:
    """Value -> the equation that makes it."""
    return {output: equation for equation in program.equations for output in equation.outputs if equation.bind}


def peel(made: Producers, value: Value) -> Value:
    """The value before broadcasts, unit axes and conversions."""
    while value in made and made[value].primitive in PASSING:
        inner = made[value].inputs[0]
        if made[value].primitive == "reshape" and _wide(inner.shape) != _wide(value.shape):
            break
        value = inner
    return value


def _wide(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def number(value: Value) -> float | None:
    """The number that a constant is filled with; None for any other value."""
    known = value.constant
    if known is None or not known.size or not np.issubdtype(known.dtype, np.number):
        return None
    first = known.flat[0]
    return float(first) if np.ndim(known) == 0 or np.all(known == first) else None


def mean_of(made: Producers, value: Value) -> tuple[Value, tuple[int, ...]] | None:
    """What a value is the mean of, and over which axes."""
    equation = made.get(peel(made, value))
    if equation is None or equation.primitive not in ("div", "mul"):
        return None
    divisor = number(equation.inputs[1])
    total = made.get(peel(made, equation.inputs[0]))
    if divisor is None or total is None or total.primitive != "reduce_sum":
        return None
    axes = tuple(total.params["axes"])
    size = math.prod(total.inputs[0].shape[axis] for axis in axes)
    if equation.primitive == "mul":
        return (total.inputs[0], axes) if math.isclose(divisor * size, 1, rel_tol=1e-6) else None
    return (total.inputs[0], axes) if divisor == size else None


def square_of(made: Producers, value: Value) -> Value | None:
    """What a value is the square of."""
    equation = made.get(peel(made, value))
    if equation is None:
        return None
    if equation.primitive == "square" or (equation.primitive == "integer_pow" and equation.params["y"] == 2):
        return equation.inputs[0]
    return equation.inputs[0] if equation.primitive == "mul" and equation.inputs[0] is equation.inputs[1] else None


def centre_variances(program: Program) -> None:
    """Rewrite every ``mean(x^2) - mean(x)^2`` as ``mean((x - mean(x))^2)``, in place."""
    made = producers(program)
    equations: list[Equation] = []
    for equation in program.equations:
        found = _variance(made, equation) if equation.primitive == "sub" and equation.bind else None
        equations += [equation] if found is None else _centred(equation, *found)
    program.equations[:] = equations


def drop_unused(program: Program) -> None:
    """Leave out the equations that no output depends on, in place."""
    needed, kept = set(program.outputs), []
    for equation in reversed(program.equations):
        if not equation.outputs or needed.intersection(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    program.equations[:] = reversed(kept)


def _variance(made: Producers, equation: Equation) -> tuple[Value, tuple[int, ...], Value] | None:
    """Of ``mean(x^2) - mean(x)^2``: x, the axes, and mean(x)."""
    squares, squared = mean_of(made, equation.inputs[0]), square_of(made, equation.inputs[1])
    if squares is None or squared is None:
        return None
    (inner, axes), mean = squares, mean_of(made, squared)
    value = square_of(made, inner)
    if mean is None or value is None or peel(made, mean[0]) is not peel(made, value) or mean[1] != axes:
        return None
    return value, axes, squared


def _centred(equation: Equation, value: Value, axes: tuple[int, ...], mean: Value) -> Iterator[Equation]:
    """The equations of ``mean((value - mean)^2)``."""
    (output,) = equation.outputs
    kept = tuple(i for i in range(len(value.shape)) if i not in axes)
    slim = tuple(1 if i in axes else size for i, size in enumerate(value.shape))
    summed = tuple(value.shape[i] for i in kept)

    def new(shape: tuple[int, ...]) -> Value:
        return Value(shape, value.dtype, "equation", loops=output.loops)

    wide, centred, squared, total = new(slim), new(value.shape), new(value.shape), new(summed)
    count = Value((), value.dtype, "constant", constant=np.asarray(math.prod(value.shape[i] for i in axes), np.float32))
    flat = mean
    yield Equation("reshape", [flat], [wide], {"new_sizes": slim}, lambda m: jnp.reshape(m, slim))
    yield Equation("sub", [value, wide], [centred], {}, jnp.subtract)
    yield Equation("square", [centred], [squared], {}, jnp.square)
    yield Equation("reduce_sum", [squared], [total], {"axes": axes}, lambda x: jnp.sum(x, axes))
    last = total
    if total.shape != output.shape:  # the mean kept its axes
        last = new(output.shape)
        yield Equation("reshape", [total], [last], {"new_sizes": output.shape}, lambda x: jnp.reshape(x, output.shape))
    yield Equation("div", [last, count], [output], {}, jnp.divide)
