"""Formulas that hide what they compute, written out: the fast variance ``E x^2 - (E x)^2`` is ``E (x - E x)^2``, a slice of a reshape a reshape of a slice.

An algebraic identity, so nothing is assumed; but on the right-hand side every rule sees that a constant added to ``x`` drops out, and that only
a sum of squares is left.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsym.symmetry.trace import Equation, Program, Value

Producers = dict[Value, Equation]
PASSING = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "convert_element_type", "stop_gradient", "copy")


def producers(program: Program) -> Producers:
    """Value -> the equation that makes it."""
    return {output: equation for equation in program.equations for output in equation.outputs if equation.bind}


Place = tuple[int | None, ...]
"""For every axis of a value, the axis of another that lies on it; None where the value is constant."""


def descend(made: Producers, value: Value) -> tuple[Value, Place]:
    """The value before broadcasts, unit axes and conversions, and where its axes lie."""
    place: Place = tuple(range(len(value.shape)))
    while value in made and made[value].primitive in PASSING:
        equation = made[value]
        inner = equation.inputs[0]
        if equation.primitive == "broadcast_in_dim":
            axes = {target: i for i, target in enumerate(equation.params["broadcast_dimensions"])}
            where = {t: i for t, i in axes.items() if inner.shape[i] == value.shape[t]}
        elif inner.shape == value.shape:
            where = {i: i for i in range(len(value.shape))}
        elif wide(inner.shape) == wide(value.shape):
            sides = ([i for i, size in enumerate(v.shape) if size != 1] for v in (value, inner))
            where = dict(zip(*sides, strict=True))
        else:
            break
        place = tuple(None if i is None else where.get(i) for i in place)
        value = inner
    return value, place


def same_value(made: Producers, one: Value, other: Value) -> bool:
    """Whether two values are one, but for conversions and unit axes that are added in the same way."""
    return descend(made, one) == descend(made, other)


def total_of(made: Producers, value: Value) -> tuple[Value, tuple[int, ...], Place] | None:
    """What a value is the sum of, over which axes, and which axis of the summed value lies on each of its own."""
    inner, place = descend(made, value)
    equation = made.get(inner)
    if equation is None or equation.primitive != "reduce_sum":
        return None
    source, axes = equation.inputs[0], tuple(equation.params["axes"])
    kept = [i for i in range(len(source.shape)) if i not in axes]
    return source, axes, tuple(None if i is None else kept[i] for i in place)


def beside(source: Value, axes: Sequence[int], place: Place) -> bool:
    """Whether a sum over some axes lies, broadcast, beside what it is the sum of, axis by axis."""
    return len(place) == len(source.shape) and all(
        place[i] == (None if i in axes or size == 1 else i) or size == 1 for i, size in enumerate(source.shape)
    )


def wide(shape: Sequence[int]) -> list[int]:
    """The sizes that are not 1: a reshape that leaves them alone only adds and takes away unit axes."""
    return [size for size in shape if size != 1]


def number(value: Value) -> float | None:
    """The number that a constant is filled with; None for any other value."""
    known = value.constant
    if known is None or not known.size or not np.issubdtype(known.dtype, np.number) or np.iscomplexobj(known):
        return None
    first = known.flat[0]
    return float(first) if np.ndim(known) == 0 or np.all(known == first) else None


def mean_of(made: Producers, value: Value) -> tuple[Value, tuple[int, ...], Place] | None:
    """What a value is the mean of, over which axes, and which axis of the averaged value lies on each of its own."""
    inner, outer = descend(made, value)
    equation = made.get(inner)
    if equation is None or equation.primitive not in ("div", "mul"):
        return None
    divisor, total = number(equation.inputs[1]), total_of(made, equation.inputs[0])
    if divisor is None or total is None:
        return None
    source, axes, place = total
    size = math.prod(source.shape[axis] for axis in axes)
    close = 4 * float(jnp.finfo(value.dtype).eps) if jnp.issubdtype(value.dtype, jnp.floating) else 0
    if not math.isclose(divisor * size if equation.primitive == "mul" else divisor / max(size, 1), 1, rel_tol=close):
        return None
    return source, axes, tuple(None if i is None else place[i] for i in outer)


def square_of(made: Producers, value: Value) -> tuple[Value, Place] | None:
    """What a value is the square of, and where the axes of that lie."""
    inner, place = descend(made, value)
    equation = made.get(inner)
    if equation is None:
        return None
    power = equation.primitive == "square" or (equation.primitive == "integer_pow" and equation.params["y"] == 2)
    if power or (equation.primitive == "mul" and equation.inputs[0] is equation.inputs[1]):
        return equation.inputs[0], place
    return None


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
        if not (equation.outputs or equation.bind) or needed.intersection(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    program.equations[:] = reversed(kept)


def _variance(made: Producers, equation: Equation) -> tuple[Value, tuple[int, ...], Value] | None:
    """Of ``mean(x^2) - mean(x)^2``: x, the axes, and mean(x)."""
    squares, squared = mean_of(made, equation.inputs[0]), square_of(made, equation.inputs[1])
    if squares is None or squared is None:
        return None
    (inner, axes, place), (root, outer), mean = squares, squared, mean_of(made, squared[0])
    value = square_of(made, inner)
    if mean is None or value is None or value[1] != tuple(range(len(inner.shape))):
        return None
    below = tuple(None if i is None else mean[2][i] for i in outer)
    if mean[1] != axes or below != place or not same_value(made, mean[0], value[0]):
        return None
    count = math.prod(size for i, size in enumerate(inner.shape) if i not in axes)
    if not math.prod(root.shape) == math.prod(equation.outputs[0].shape) == count:
        return None
    return value[0], axes, root


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
    yield Equation("reshape", [mean], [wide], {"new_sizes": slim}, lambda m: jnp.reshape(m, slim))
    yield Equation("sub", [value, wide], [centred], {}, jnp.subtract)
    yield Equation("square", [centred], [squared], {}, jnp.square)
    yield Equation("reduce_sum", [squared], [total], {"axes": axes}, lambda x: jnp.sum(x, axes))
    last = total
    if total.shape != output.shape:  # the mean kept its axes
        last = new(output.shape)
        yield Equation("reshape", [total], [last], {"new_sizes": output.shape}, lambda x: jnp.reshape(x, output.shape))
    yield Equation("div", [last, count], [output], {}, jnp.divide)


def lift_slices(program: Program) -> None:
    """Slice before an axis is taken apart, not after, in place: ``(x W).reshape(.., 3, H, K)[.., 0, :, :]`` reads a block of W's columns."""
    made, equations = producers(program), []
    for equation in program.equations:
        current = equation
        after: list[Equation] = []
        while current.primitive == "slice" and (found := _lifted(made, current)) is not None:
            current, later = found
            after.insert(0, later)
        equations += [current, *after]
    program.equations[:] = equations


def _lifted(made: Producers, equation: Equation) -> tuple[Equation, Equation] | None:
    """A slice of a reshaped or transposed value as the same of a slice."""
    (whole,), (output,) = equation.inputs, equation.outputs
    inner = made.get(whole)
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"]
    if inner is None or inner.primitive not in ("reshape", "transpose") or (strides and set(strides) != {1}):
        return None
    (source,) = inner.inputs
    ranges = list(zip(starts, stops, strict=True))
    if inner.primitive == "transpose":
        order = inner.params["permutation"]
        limits = [ranges[order.index(i)] for i in range(len(order))]
        params, bind = {"permutation": order}, lambda x: jnp.transpose(x, order)
    else:
        found = _before_reshape(source.shape, whole.shape, ranges)
        if found is None:
            return None
        limits = found
        params, bind = {"new_sizes": output.shape}, lambda x: jnp.reshape(x, output.shape)
    low, high = tuple(a for a, _ in limits), tuple(b for _, b in limits)
    part = Value(tuple(b - a for a, b in limits), source.dtype, "equation", loops=output.loops)
    cut = {"start_indices": low, "limit_indices": high, "strides": None}
    sliced = Equation("slice", [source], [part], cut, lambda x: jax.lax.slice(x, low, high))
    return sliced, Equation(inner.primitive, [part], [output], params, bind)


def _before_reshape(
    before: tuple[int, ...], after: tuple[int, ...], ranges: Sequence[tuple[int, int]]
) -> list[tuple[int, int]] | None:
    """The ranges of a slice that comes before a reshape; None where it would not be one block of one axis."""
    limits = []
    for left, right in groups(before, after):
        wide = [j for j in right if after[j] != 1]
        partial = [j for j in right if ranges[j] != (0, after[j])]
        inside = [i for i in left if before[i] != 1]
        if partial and (partial != wide[:1] or len(inside) != 1):
            return None
        row = math.prod(after[j] for j in wide[1:])
        for i in left:
            a, b = ranges[partial[0]] if partial and i in inside else (0, before[i])
            limits.append((a * row, b * row) if partial and i in inside else (0, before[i]))
    return limits


def groups(before: Sequence[int], after: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """The finest groups of axes with equal products; trailing axes of size 1 go to the last group."""
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [], []
        a = b = 1
        while True:
            if (a <= b or j == len(after)) and i < len(before):
                a *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                b *= after[j]
                right.append(j)
                j += 1
            if (a == b and a != 1) or (i == len(before) and j == len(after)):
                break
        yield left, right
