"""Rules of the operations that move, sum and contract axes; see :mod:`~jaxsym.symmetry.rules`."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxsym.symmetry.atoms import Atom, cut, direct_sum, factors, pin, product, split
from jaxsym.symmetry.elementwise import Rule, larger, nothing, same
from jaxsym.symmetry.trace import Equation
from jaxsym.symmetry.weights import Shapes, Weights

# --- structure -------------------------------------------------------------------------------------------------------


def _reshape_shape(shapes: Shapes, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    whole = product([factor for axis in shapes.axes(value) for factor in factors(axis)])
    axes = split(whole, output.shape)
    if axes is None:
        reason = f"reshape {value.shape} -> {output.shape} cuts through an axis"
        shapes.pin(value, reason)
        shapes.fresh(output, reason)
    else:
        shapes.give(output, axes)


def _reshape_weigh(weights: Weights, equation: Equation) -> None:
    weights.equal_in_order(equation.inputs[0], equation.outputs[0])


def _transpose_shape(shapes: Shapes, equation: Equation) -> None:
    axes = shapes.axes(equation.inputs[0])
    shapes.give(equation.outputs[0], [axes[i] for i in equation.params["permutation"]])


def _transpose_weigh(weights: Weights, equation: Equation) -> None:
    order = equation.params["permutation"]
    weights.equal(equation.outputs[0], equation.inputs[0], dict(enumerate(order)))


def _broadcast_shape(shapes: Shapes, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    axes = [Atom(size) for size in output.shape]
    for axis, target in enumerate(equation.params["broadcast_dimensions"]):
        if value.shape[axis] == output.shape[target]:
            axes[target] = shapes.axes(value)[axis]
    shapes.give(output, axes)


def _broadcast_weigh(weights: Weights, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    kept = {
        target: axis
        for axis, target in enumerate(equation.params["broadcast_dimensions"])
        if value.shape[axis] == output.shape[target]
    }
    weights.equal(output, value, kept)


def _kept(equation: Equation, removed: Any) -> list[int]:
    return [axis for axis in range(len(equation.inputs[0].shape)) if axis not in set(removed)]


def _drop_shape(parameter: str) -> Callable[[Shapes, Equation], None]:
    def shape(shapes: Shapes, equation: Equation) -> None:
        axes = shapes.axes(equation.inputs[0])
        for output in equation.outputs:
            shapes.give(output, [axes[i] for i in _kept(equation, equation.params[parameter])])

    return shape


def _drop_weigh(parameter: str) -> Callable[[Weights, Equation], None]:
    """Reductions and squeezes: kept axes pass, weights along what is reduced must be none."""

    def weigh(weights: Weights, equation: Equation) -> None:
        for output in equation.outputs:
            kept = dict(enumerate(_kept(equation, equation.params[parameter])))
            weights.equal(output, equation.inputs[0], kept)

    return weigh


def _largest_weigh(weights: Weights, equation: Equation) -> None:
    if weights.sign:
        nothing(weights, equation)
    else:
        _drop_weigh("axes")(weights, equation)


def _argmax_shape(shapes: Shapes, equation: Equation) -> None:
    for axis in equation.params["axes"]:
        pin(shapes.axes(equation.inputs[0])[axis], f"{equation.primitive} gives positions on this axis")
    _drop_shape("axes")(shapes, equation)


def _part_shape(shapes: Shapes, equation: Equation) -> None:
    """``slice``: a whole axis, or a term of it; strides and cuts through a factor pin."""
    value, output = equation.inputs[0], equation.outputs[0]
    strides = equation.params["strides"] or (1,) * len(value.shape)
    axes: list[Atom] = []
    for axis, start, stop, stride in zip(
        shapes.axes(value), equation.params["start_indices"], equation.params["limit_indices"], strides, strict=True
    ):
        parts = cut(axis, sorted({0, start, stop, axis.size})) if stride == 1 and start < stop else None
        if parts is None:
            reason = f"{equation.primitive} takes positions {start} to {stop} of {axis.size} by steps of {stride}"
            pin(axis, reason)
            axes.append(Atom(output.shape[len(axes)], reason=reason))
        else:
            axes.append(parts[1 if start > 0 else 0])
    shapes.give(output, axes)


def _part_weigh(weights: Weights, equation: Equation) -> None:
    value, output = equation.inputs[0], equation.outputs[0]
    strides = equation.params["strides"] or (1,) * len(value.shape)
    spans = list(zip(equation.params["start_indices"], equation.params["limit_indices"], strict=True))
    weights.equal_part(output, value, spans, [stride == 1 for stride in strides])


def _split_shape(shapes: Shapes, equation: Equation) -> None:
    axis, value = equation.params["axis"], equation.inputs[0]
    ends = [0, *(int(end) for end in np.cumsum(equation.params["sizes"]))]
    parts = cut(shapes.axes(value)[axis], ends)
    for number, output in enumerate(equation.outputs):
        axes = list(shapes.axes(value))
        if parts is None:
            pin(axes[axis], "split cuts through a factor of this axis")
            axes[axis] = Atom(output.shape[axis], reason="split cuts through a factor of this axis")
        else:
            axes[axis] = parts[number]
        shapes.give(output, axes)


def _split_weigh(weights: Weights, equation: Equation) -> None:
    axis, value = equation.params["axis"], equation.inputs[0]
    ends = [0, *(int(end) for end in np.cumsum(equation.params["sizes"]))]
    for start, stop, output in zip(ends, ends[1:], equation.outputs, strict=False):
        spans = [(start, stop) if i == axis else (0, size) for i, size in enumerate(value.shape)]
        weights.equal_part(output, value, spans, [True] * len(spans))


def _join_shape(shapes: Shapes, equation: Equation) -> None:
    axis, output = equation.params["dimension"], equation.outputs[0]
    axes = list(shapes.axes(equation.inputs[0]))
    for value in equation.inputs[1:]:
        for i, other in enumerate(shapes.axes(value)):
            if i != axis:
                shapes.tie(axes[i], other)
    axes[axis] = direct_sum([shapes.axes(value)[axis] for value in equation.inputs])
    shapes.give(output, axes)


def _join_weigh(weights: Weights, equation: Equation) -> None:
    axis, output, start = equation.params["dimension"], equation.outputs[0], 0
    for value in equation.inputs:
        stop = start + value.shape[axis]
        spans = [(start, stop) if i == axis else (0, size) for i, size in enumerate(output.shape)]
        weights.equal_part(value, output, spans, [True] * len(spans))
        start = stop


# --- contractions ----------------------------------------------------------------------------------------------------


def dot_axes(equation: Equation) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int], list[int]]:
    """Pairs of contracted axes, pairs of batch axes, and the free axes of either operand."""
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    contracted, batch = list(zip(left, right, strict=True)), list(zip(left_batch, right_batch, strict=True))
    one, other = equation.inputs
    free = [i for i in range(len(one.shape)) if i not in {*left, *left_batch}]
    other_free = [i for i in range(len(other.shape)) if i not in {*right, *right_batch}]
    return contracted, batch, free, other_free


def _dot_shape(shapes: Shapes, equation: Equation) -> None:
    contracted, batch, free, other_free = dot_axes(equation)
    one, other = (shapes.axes(value) for value in equation.inputs)
    for i, j in (*contracted, *batch):
        shapes.tie(one[i], other[j])
    shapes.give(
        equation.outputs[0], [*(one[i] for i, _ in batch), *(one[i] for i in free), *(other[j] for j in other_free)]
    )


def _dot_weigh(weights: Weights, equation: Equation) -> None:
    contracted, batch, free, other_free = dot_axes(equation)
    one, other = equation.inputs
    weights.contract(
        equation.outputs[0],
        one,
        other,
        contracted=contracted,
        batch=[(position, i, j) for position, (i, j) in enumerate(batch)],
        free=[(len(batch) + position, i) for position, i in enumerate(free)],
        other_free=[(len(batch) + len(free) + position, j) for position, j in enumerate(other_free)],
    )


def _convolution_shape(shapes: Shapes, equation: Equation) -> None:
    """Channels are contracted, group by group; positions keep their order."""
    value, kernel = equation.inputs
    output = equation.outputs[0]
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    reason = "positions under a convolution keep their order"
    axes, kernel_axes = shapes.axes(value), shapes.axes(kernel)
    result = [Atom(size, reason=reason) for size in output.shape]
    for spatial in numbers.lhs_spec[2:]:
        pin(axes[spatial], reason)
    for spatial in numbers.rhs_spec[2:]:
        pin(kernel_axes[spatial], reason)
    channels, outputs, inputs = (
        axes[numbers.lhs_spec[1]],
        kernel_axes[numbers.rhs_spec[0]],
        kernel_axes[numbers.rhs_spec[1]],
    )
    batches = equation.params["batch_group_count"]
    parts = split(channels, (groups, inputs.size)) if groups > 1 else [Atom(1), channels]
    filters = split(outputs, (groups, outputs.size // groups)) if groups > 1 else [Atom(1), outputs]
    if batches > 1 or parts is None or filters is None:
        for atom in (channels, outputs, inputs, axes[numbers.lhs_spec[0]]):
            pin(atom, "the groups of this convolution cut through its channels")
    else:
        shapes.tie(parts[0], filters[0])
        shapes.tie(parts[1], inputs)
    if batches == 1:
        result[numbers.out_spec[0]] = axes[numbers.lhs_spec[0]]
    result[numbers.out_spec[1]] = outputs
    shapes.give(output, result)


def _convolution_weigh(weights: Weights, equation: Equation) -> None:
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    if equation.params["batch_group_count"] > 1:
        nothing(weights, equation)
        return
    value, kernel = equation.inputs
    weights.convolve(equation.outputs[0], value, kernel, numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec, groups)


# --- positions -------------------------------------------------------------------------------------------------------


def _ordered(
    axes_of: Callable[[Equation], Any], why: str, weigh: Callable[[Weights, Equation], None], *, linear: bool = False
) -> Rule:
    """Some axes keep their order (and lose their weights), the others pass."""

    def shape(shapes: Shapes, equation: Equation) -> None:
        value = equation.inputs[0]
        special = {axis % len(value.shape) for axis in axes_of(equation)}
        for axis in special:
            pin(shapes.axes(value)[axis], why)
        for output in equation.outputs:
            shapes.give(
                output,
                [
                    Atom(output.shape[i], reason=why) if i in special and output.shape[i] != atom.size else atom
                    for i, atom in enumerate(shapes.axes(value))
                ],
            )

    def passing(weights: Weights, equation: Equation) -> None:
        value = equation.inputs[0]
        special = {axis % len(value.shape) for axis in axes_of(equation)}
        if weigh is nothing or (weigh is larger and weights.sign):
            nothing(weights, equation)
            return
        for output in equation.outputs:
            weights.equal(output, value, {i: i for i in range(len(value.shape)) if i not in special})

    return Rule(shape, passing, linear)


def _along(equation: Equation) -> list[int]:
    return [equation.params["axis"]]


def _reversed(equation: Equation) -> list[int]:
    return list(equation.params["dimensions"])


def _windowed(equation: Equation) -> list[int]:
    return [
        i
        for i, (a, b) in enumerate(zip(equation.inputs[0].shape, equation.outputs[0].shape, strict=True))
        if a != b or _window(equation)[i] != 1
    ]


def _window(equation: Equation) -> tuple[int, ...]:
    return equation.params["window_dimensions"]


def _padded(equation: Equation) -> list[int]:
    return [axis for axis, config in enumerate(equation.params["padding_config"]) if tuple(config) != (0, 0, 0)]


def padding(equation: Equation) -> bool:
    """Whether a pad writes anything but zeros."""
    filler = equation.inputs[1].constant
    return filler is None or bool(np.any(filler))


def _pad_weigh(weights: Weights, equation: Equation) -> None:
    value = equation.inputs[0]
    if padding(equation):
        nothing(weights, equation)
        return
    special = set(_padded(equation))
    weights.equal(equation.outputs[0], value, {i: i for i in range(len(value.shape)) if i not in special})


def _gather_shape(shapes: Shapes, equation: Equation) -> None:
    """Rows by index: axes that are taken whole pass, the others keep their order."""
    value, indices = equation.inputs[:2]
    output, numbers = equation.outputs[0], equation.params["dimension_numbers"]
    axes = [Atom(size, reason="looked up by index") for size in output.shape]
    batch = [i for i in range(len(output.shape)) if i not in numbers.offset_dims]
    whole = gathered_whole(equation)
    for position, atom in zip(batch, shapes.axes(indices)[:-1], strict=False):
        axes[position] = atom
    for own, its in along(equation):
        shapes.tie(shapes.axes(value)[own], shapes.axes(indices)[its])
    pin(shapes.axes(indices)[-1], "looked up by index")
    for i, atom in enumerate(shapes.axes(value)):
        if i in whole:
            axes[whole[i]] = atom
        else:
            pin(atom, "looked up by index")
    shapes.give(output, axes)


def gathered_whole(equation: Equation) -> dict[int, int]:
    """Axis of the operand -> axis of the output, where the slice is the whole axis."""
    value, numbers = equation.inputs[0], equation.params["dimension_numbers"]
    hidden = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    sliced = [i for i in range(len(value.shape)) if i not in hidden]
    sizes = equation.params["slice_sizes"]
    return {
        i: target
        for i, target in zip(sliced, numbers.offset_dims, strict=True)
        if sizes[i] == value.shape[i] and i not in numbers.start_index_map
    }


def along(equation: Equation) -> list[tuple[int, int]]:
    """Axes of the operand and of the indices of a gather that run together."""
    numbers = equation.params["dimension_numbers"]
    pairs = (getattr(numbers, f"{name}_batching_dims", ()) for name in ("operand", "start_indices"))
    return list(zip(*pairs, strict=True))


def filled(equation: Equation) -> float | None:
    """What a gather puts in place of rows that do not exist; None where that is NaN or nothing, as if all existed."""
    fill = equation.params.get("fill_value")
    if "FILL" not in str(equation.params.get("mode")) or fill is None or np.isnan(fill):
        return None
    return float(np.abs(fill))


def _gather_weigh(weights: Weights, equation: Equation) -> None:
    value, indices = equation.inputs[:2]
    if filled(equation):
        nothing(weights, equation)
        return
    weights.none(indices)
    whole = gathered_whole(equation)
    weights.equal(equation.outputs[0], value, {target: i for i, target in whole.items()})


def _dynamic_slice_whole(equation: Equation) -> list[int]:
    return [
        i for i, (a, b) in enumerate(zip(equation.inputs[0].shape, equation.outputs[0].shape, strict=True)) if a != b
    ]


def _dynamic_slice_weigh(weights: Weights, equation: Equation) -> None:
    special = set(_dynamic_slice_whole(equation))
    value = equation.inputs[0]
    weights.equal(equation.outputs[0], value, {i: i for i in range(len(value.shape)) if i not in special})
    for index in equation.inputs[1:]:
        weights.none(index)


SPECIAL: dict[str, Callable[[Equation], Iterable[int]]] = {
    "rev": _reversed,
    "cumsum": _along,
    "reduce_window_sum": _windowed,
    "pad": _padded,
    "dynamic_slice": _dynamic_slice_whole,
}
"""The axes of the first operand along which an operation does something."""


def pinned_result(why: str) -> Rule:
    """Everything that it touches is pinned."""

    def shape(shapes: Shapes, equation: Equation) -> None:
        for value in equation.inputs:
            shapes.pin(value, why)
        for output in equation.outputs:
            shapes.fresh(output, why)

    return Rule(shape, nothing)


def _scan_in_shape(shapes: Shapes, equation: Equation) -> None:
    loop, *rest = shapes.axes(equation.inputs[0])
    shapes.tie(loop, shapes.loop(equation.params["loop"]))
    shapes.give(equation.outputs[0], rest)


def _scan_in_weigh(weights: Weights, equation: Equation) -> None:
    rank = len(equation.outputs[0].shape)
    weights.equal(equation.outputs[0], equation.inputs[0], {i: i + 1 for i in range(rank)})


def _scan_out_shape(shapes: Shapes, equation: Equation) -> None:
    shapes.give(equation.outputs[0], [shapes.loop(equation.params["loop"]), *shapes.axes(equation.inputs[0])])


def _scan_out_weigh(weights: Weights, equation: Equation) -> None:
    rank = len(equation.inputs[0].shape)
    weights.equal(equation.outputs[0], equation.inputs[0], {i + 1: i for i in range(rank)})


def _tie_shape(shapes: Shapes, equation: Equation) -> None:
    known = [value for value in equation.inputs if shapes.knows(value)]
    for value in equation.inputs:
        if not shapes.knows(value):
            shapes.give(value, [Atom(size) for size in value.shape])
    for value in [*known, *equation.inputs]:
        for one, other in zip(shapes.axes(equation.inputs[0]), shapes.axes(value), strict=True):
            shapes.tie(one, other)


def _tie_weigh(weights: Weights, equation: Equation) -> None:
    first, *others = [value for value in equation.inputs if not weights.anything(value)] or equation.inputs
    for value in others:
        weights.equal(first, value)


def _no_shape(shapes: Shapes, equation: Equation) -> None:
    pass


LAYOUT: dict[str, Rule] = {
    "reshape": Rule(_reshape_shape, _reshape_weigh, linear=True),
    "transpose": Rule(_transpose_shape, _transpose_weigh, linear=True),
    "broadcast_in_dim": Rule(_broadcast_shape, _broadcast_weigh, linear=True),
    **dict.fromkeys(("squeeze",), Rule(_drop_shape("dimensions"), _drop_weigh("dimensions"), linear=True)),
    "reduce_sum": Rule(_drop_shape("axes"), _drop_weigh("axes"), linear=True),
    **dict.fromkeys(("reduce_max", "reduce_min"), Rule(_drop_shape("axes"), _largest_weigh)),
    **dict.fromkeys(("reduce_prod", "reduce_and", "reduce_or", "reduce_xor"), Rule(_drop_shape("axes"), nothing)),
    **dict.fromkeys(("argmax", "argmin"), Rule(_argmax_shape, nothing)),
    "slice": Rule(_part_shape, _part_weigh, linear=True),
    "split": Rule(_split_shape, _split_weigh, linear=True),
    "concatenate": Rule(_join_shape, _join_weigh, linear=True),
    "dot_general": Rule(_dot_shape, _dot_weigh, linear=True),
    "conv_general_dilated": Rule(_convolution_shape, _convolution_weigh, linear=True),
    "rev": _ordered(_reversed, "reversed: its order matters", same, linear=True),
    "cumsum": _ordered(_along, "a cumulative operation runs along it", same, linear=True),
    **dict.fromkeys(("cummax", "cummin"), _ordered(_along, "a cumulative operation runs along it", larger)),
    **dict.fromkeys(("cumprod", "cumlogsumexp"), _ordered(_along, "a cumulative operation runs along it", nothing)),
    "reduce_window_sum": _ordered(_windowed, "positions under a window keep their order", same, linear=True),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_min"),
        _ordered(_windowed, "positions under a window keep their order", larger),
    ),
    "pad": Rule(_ordered(_padded, "padded: its order matters", same).shape, _pad_weigh, linear=True),
    "gather": Rule(_gather_shape, _gather_weigh, linear=True),
    "dynamic_slice": Rule(
        _ordered(_dynamic_slice_whole, "a slice at a computed place", same).shape, _dynamic_slice_weigh, linear=True
    ),
    **dict.fromkeys(
        (
            "iota",
            "random_bits",
            "random_wrap",
            "random_unwrap",
            "random_seed",
            "random_split",
            "random_fold_in",
            "random_clone",
            "threefry2x32",
            "shift_left",
            "shift_right_logical",
            "shift_right_arithmetic",
            "bitcast_convert_type",
        ),
        pinned_result("positions, bits or random numbers: every index is another"),
    ),
    "scan_in": Rule(_scan_in_shape, _scan_in_weigh, linear=True),
    "scan_out": Rule(_scan_out_shape, _scan_out_weigh, linear=True),
    "tie": Rule(_tie_shape, _tie_weigh, linear=True),
    "branch": Rule(_no_shape, nothing),
}
