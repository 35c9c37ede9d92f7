"""What a primitive does to a shift: passes it, turns it, or blocks it. What is not listed blocks."""

import itertools
from collections.abc import Sequence

import numpy as np

from jaxsym.symmetry.idioms import beside, descend, mean_of, number
from jaxsym.symmetry.layout import dot_axes, filled, gathered_whole
from jaxsym.symmetry.shifts import Centre, Core, Cut, Einsum, Map, Opaque, Put, Reshape
from jaxsym.symmetry.trace import Equation, Value
from jaxsym.symmetry.translations import Search, ShiftRule

IDENTITIES = (
    "neg",
    "copy",
    "copy_p",
    "stop_gradient",
    "convert_element_type",
    "reduce_precision",
    "optimization_barrier",
)
INFINITE = -1e9
"""A logit at or below this is a mask: no shift moves it."""

Parts = list[tuple[float, Core, Map]]


def _moved(search: Search, value: Value, axes: Sequence[int | None], factor: float = 1.0) -> Parts:
    """The shift of a value, its axes rearranged: for each axis of the result the axis of the operand, or None."""
    return [
        (factor * c, core, tuple(None if a is None else place[a] for a in axes))
        for (core, place), c in search.shift(value).items()
    ]


def _aligned(value: Value, output: Value) -> list[int | None]:
    """Axes of an elementwise operand."""
    if len(value.shape) != len(output.shape):
        return [None] * len(output.shape)
    return [i if size == value.shape[i] else None for i, size in enumerate(output.shape)]


def _add_rule(search: Search, equation: Equation) -> None:
    (one, other), output = equation.inputs, equation.outputs[0]
    mean = mean_of(search.known.made, other) if equation.primitive == "sub" else None
    if mean is not None and mean[0] is one and beside(*mean):
        search.put(output, search.through(Centre(mean[1]), one))
        return
    sign = -1.0 if equation.primitive == "sub" else 1.0
    search.put(
        output, _moved(search, one, _aligned(one, output)) + _moved(search, other, _aligned(other, output), sign)
    )


def _pass_rule(search: Search, equation: Equation) -> None:
    (value,), output = equation.inputs[:1], equation.outputs[0]
    if not np.issubdtype(output.dtype, np.inexact):
        search.block(value)
        return
    factor = -1.0 if equation.primitive == "neg" else equation.params.get("slope", 1.0)
    search.put(output, _moved(search, value, range(len(output.shape)), factor))


def _multiply_rule(search: Search, equation: Equation) -> None:
    (one, other), output = equation.inputs, equation.outputs[0]
    divide = equation.primitive == "div"
    if one is other or divide:
        search.block(other)
    if search.shift(one) and search.shift(other):
        search.products.append((search.shift(one), search.shift(other)))
    rank = len(output.shape)
    parts: Parts = []
    for value, factor in ((one, other), (other, one)):
        if not search.shift(value):
            continue
        known = number(factor)
        if known is not None:
            parts += _moved(search, value, _aligned(value, output), 1 / known if divide else known)
            continue
        base, labels = _labelled(search, factor, _aligned(factor, output))
        inputs = tuple(range(rank)) if len(value.shape) == rank else ()
        op = Einsum(inputs, base, labels, tuple(range(rank)), output.shape, divide)
        parts += search.through(op, value)
    search.put(output, parts)


def _labelled(search: Search, value: Value, labels: Sequence[int | None]) -> tuple[Value, tuple[int | None, ...]]:
    """A coefficient before its broadcasts, with a label per axis; values about which a fact is known stay as they are."""
    if value in search.known.facts:
        return value, tuple(label if value.shape[i] != 1 else None for i, label in enumerate(_shortened(value, labels)))
    base, place = search.known.base(value)
    by_axis = {c: label for c, label in zip(place, _shortened(value, labels), strict=True) if c is not None}
    return base, tuple(by_axis.get(c) if base.shape[c] != 1 else None for c in range(len(base.shape)))


def _shortened(value: Value, labels: Sequence[int | None]) -> Sequence[int | None]:
    return labels if len(labels) == len(value.shape) else [None] * len(value.shape)


def _dot_rule(search: Search, equation: Equation) -> None:
    contracted, batch, free, other_free = dot_axes(equation)
    one, other = equation.inputs
    sizes: list[int] = []
    left, right = [0] * len(one.shape), [0] * len(other.shape)
    for i, j in (*batch, *contracted):
        left[i] = right[j] = len(sizes)
        sizes.append(one.shape[i])
    for value, labels, axes in ((one, left, free), (other, right, other_free)):
        for i in axes:
            labels[i] = len(sizes)
            sizes.append(value.shape[i])
    outputs = tuple([left[i] for i, _ in batch] + [left[i] for i in free] + [right[j] for j in other_free])
    if search.shift(one) and search.shift(other):
        if one is other:
            search.block(one)
        search.products.append((search.shift(one), search.shift(other)))
    parts: Parts = []
    for value, labels, factor, factor_labels in ((one, left, other, right), (other, right, one, left)):
        base, base_labels = _labelled(search, factor, factor_labels)
        parts += search.through(Einsum(tuple(labels), base, base_labels, outputs, tuple(sizes)), value)
    search.put(equation.outputs[0], parts)


def _sum_rule(search: Search, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    labels = tuple(range(len(value.shape)))
    kept = tuple(i for i in labels if i not in equation.params["axes"])
    search.put(output, search.through(Einsum(labels, None, (), kept, value.shape), value))


def _extreme_rule(search: Search, equation: Equation) -> None:
    """A maximum moves with what is constant along its axes."""
    value, axes = equation.inputs[0], set(equation.params["axes"])
    search.split(value, sorted(axes))
    search.put(equation.outputs[0], _moved(search, value, [i for i in range(len(value.shape)) if i not in axes]))


def _position_rule(search: Search, equation: Equation) -> None:
    search.split(equation.inputs[0], equation.params["axes"])


def _larger_rule(search: Search, equation: Equation) -> None:
    one, other = equation.inputs
    for value, bound in ((one, other), (other, one)):
        known = number(bound)
        if known is not None and known == (-np.inf if equation.primitive == "max" else np.inf):
            search.put(equation.outputs[0], _moved(search, value, _aligned(value, equation.outputs[0])))
            return
    search.block(one, other)


def _select_rule(search: Search, equation: Equation) -> None:
    which, *cases = equation.inputs
    output = equation.outputs[0]
    inner, place = descend(search.known.made, which)
    finite = search.known.made.get(inner) if place == tuple(range(len(inner.shape))) else None
    for value, other in itertools.permutations(cases, 2) if len(cases) == 2 else ():
        known = number(other)
        guard = finite is not None and finite.primitive == "is_finite" and finite.inputs[0] is value
        if known is not None and (guard or known <= INFINITE):
            search.put(output, _moved(search, value, _aligned(value, output)))
            if not guard and np.isfinite(known):
                search.masked[output].append(search.shift(value))
            return
    search.block(which, *cases)


def _transpose_rule(search: Search, equation: Equation) -> None:
    search.put(equation.outputs[0], _moved(search, equation.inputs[0], equation.params["permutation"]))


def _broadcast_rule(search: Search, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    targets = list(enumerate(equation.params["broadcast_dimensions"]))
    kept = tuple(axis for axis, target in targets if value.shape[axis] == output.shape[target])
    labels = tuple(range(len(value.shape)))
    parts = search.through(
        Einsum(labels, None, (), kept, value.shape), value
    )  # what grows is of size 1: its sum is itself
    source = {target: kept.index(axis) for axis, target in targets if axis in kept}
    order = [source.get(target) for target in range(len(output.shape))]
    search.put(output, [(c, core, tuple(None if i is None else place[i] for i in order)) for c, core, place in parts])


def _reshape_rule(search: Search, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    search.put(output, search.through(Reshape(value.shape, output.shape), value))


def _slice_rule(search: Search, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    search.split(value, [i for i, stride in enumerate(strides) if stride != 1])
    ranges = {i: (a, b) for i, (a, b) in enumerate(zip(starts, stops, strict=True)) if (a, b) != (0, value.shape[i])}
    search.put(output, _cut(search, value, {i: r for i, r in ranges.items() if strides[i] == 1}))


def _cut(search: Search, value: Value, ranges: dict[int, tuple[int, int]]) -> Parts:
    parts = [(c, core, place) for (core, place), c in search.shift(value).items()]
    for axis, (start, stop) in ranges.items():
        op = Cut(axis, start, stop, len(value.shape))
        cut = [(c, search.algebra.apply(op, core, place)) for c, core, place in parts]
        parts = [(c * term[0], term[1], term[2]) for c, term in cut if term is not None]
    return parts


def _split_rule(search: Search, equation: Equation) -> None:
    value, start = equation.inputs[0], 0
    for output, size in zip(equation.outputs, equation.params["sizes"], strict=True):
        search.put(output, _cut(search, value, {equation.params["axis"]: (start, start + size)}))
        start += size


def _join_rule(search: Search, equation: Equation) -> None:
    axis, output, start, parts = equation.params["dimension"], equation.outputs[0], 0, []
    for value in equation.inputs:
        op = Put(axis, start, len(output.shape), value.shape[axis], output.shape[axis])
        parts += search.through(op, value)
        start += value.shape[axis]
    search.put(output, parts)


def _gather_rule(search: Search, equation: Equation) -> None:
    """Rows by index: of shifts that differ from row to row only the kind is followed."""
    value, output = equation.inputs[0], equation.outputs[0]
    if filled(equation) is not None:
        search.block(value)
    numbers = equation.params["dimension_numbers"]
    batch = [i for i in range(len(output.shape)) if i not in numbers.offset_dims]
    from_output = {target: axis for axis, target in gathered_whole(equation).items()}
    for axis, row in zip(
        getattr(numbers, "operand_batching_dims", ()), getattr(numbers, "start_indices_batching_dims", ()), strict=True
    ):
        from_output[batch[row]] = axis
    looked_up = [i for i in range(len(value.shape)) if i not in from_output.values()]
    parts: Parts = []
    for (core, place), c in search.shift(value).items():
        if all(place[i] is None for i in looked_up):
            parts.append(
                (
                    c,
                    core,
                    tuple(None if i not in from_output else place[from_output[i]] for i in range(len(output.shape))),
                )
            )
            continue
        even = tuple(target for target, axis in from_output.items() if place[axis] is None)
        term = search.algebra.apply(Opaque(output, 0, output.shape, even), core, place)
        parts += [] if term is None else [(c * term[0], term[1], term[2])]
    search.put(output, parts)


def _dynamic_slice_rule(search: Search, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    search.split(value, [i for i, size in enumerate(output.shape) if size != value.shape[i]])
    search.put(output, _moved(search, value, range(len(output.shape))))


def _window_rule(search: Search, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    window, padding = equation.params["window_dimensions"], equation.params["padding"]
    largest = equation.primitive == "reduce_window_max"
    if any(step != 1 for step in equation.params["base_dilation"]):  # zeros, or minus infinities, between
        search.block(value)
    search.split(value, [i for i, size in enumerate(window) if size != 1 or output.shape[i] != value.shape[i]])
    if not largest and any(tuple(pair) != (0, 0) for pair in padding):
        search.block(value)
    search.put(output, _moved(search, value, range(len(output.shape)), 1.0 if largest else float(np.prod(window))))


def _convolution_rule(search: Search, equation: Equation) -> None:
    """Shifts that are the same at every position pass where no padding interrupts them; a kernel's shift is only followed in kind."""
    (value, kernel), output = equation.inputs, equation.outputs[0]
    numbers, params = equation.params["dimension_numbers"], equation.params
    simple = params["feature_group_count"] == params["batch_group_count"] == 1
    if search.shift(value) and search.shift(kernel):
        search.products.append((search.shift(value), search.shift(kernel)))
    parts: Parts = []
    if search.shift(value):
        padded = any(tuple(pair) != (0, 0) for pair in params["padding"]) or any(d != 1 for d in params["lhs_dilation"])
        if padded or not simple:
            search.block(value)
        search.split(value, numbers.lhs_spec[2:])
        (batch, channel), rank = numbers.lhs_spec[:2], len(output.shape)
        labels: list[int | None] = [None] * rank
        labels[numbers.rhs_spec[0]], labels[numbers.rhs_spec[1]] = 2, 1
        for k, axis in enumerate(numbers.rhs_spec[2:]):
            labels[axis] = 3 + k
        outer = [3 + rank + k for k in range(rank)]
        outer[numbers.out_spec[0]], outer[numbers.out_spec[1]] = 0, 2
        sizes = [0] * (3 + 2 * rank)
        sizes[:3] = value.shape[batch], value.shape[channel], output.shape[numbers.out_spec[1]]
        op = Einsum((0, 1), kernel, tuple(labels), tuple(outer), tuple(sizes))
        for (core, place), c in search.shift(value).items():
            term = search.algebra.apply(op, core, (place[batch], place[channel]))
            parts += [] if term is None else [(c * term[0], term[1], term[2])]
    for (core, place), c in search.shift(kernel).items():
        even = place[numbers.rhs_spec[0]] is None and simple
        op_ = Opaque(equation.outputs[0], 1, output.shape, (numbers.out_spec[1],) if even else ())
        term = search.algebra.apply(op_, core, place)
        parts += [] if term is None else [(c * term[0], term[1], term[2])]
    search.put(output, parts)


def _no_rule(search: Search, equation: Equation) -> None:
    """What does not look at the numbers."""


CATALOGUE: dict[str, ShiftRule] = {
    **dict.fromkeys(("add", "sub", "add_any"), _add_rule),
    **dict.fromkeys((*IDENTITIES, "linear"), _pass_rule),
    **dict.fromkeys(("mul", "div"), _multiply_rule),
    **dict.fromkeys(("max", "min"), _larger_rule),
    **dict.fromkeys(("reduce_max", "reduce_min"), _extreme_rule),
    **dict.fromkeys(("argmax", "argmin"), _position_rule),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape_rule),
    "is_finite": _no_rule,
    "select_n": _select_rule,
    "reduce_sum": _sum_rule,
    "dot_general": _dot_rule,
    "transpose": _transpose_rule,
    "broadcast_in_dim": _broadcast_rule,
    "slice": _slice_rule,
    "split": _split_rule,
    "concatenate": _join_rule,
    "gather": _gather_rule,
    "dynamic_slice": _dynamic_slice_rule,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max"), _window_rule),
    "conv_general_dilated": _convolution_rule,
}
