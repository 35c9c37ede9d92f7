"""Layers with weights and running statistics, found in the jaxpr: which leaves they are, and which of their entries belong to which unit."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxsym.symmetry.idioms import PASSING
from jaxsym.symmetry.sites import READERS, computed, dependent, makers, seen
from jaxsym.symmetry.trace import Equation, Program, Value

Units = Int[np.ndarray, "..."]
"""Of every entry of a value the number of its unit; of size 1 along the axes that hold the samples of one unit."""


class Leaf(NamedTuple):
    """A leaf of the parameters on its way to a value: reshaped, transposed, broadcast, scaled."""

    path: str
    entries: Units
    """Which entry of the flattened leaf lies at each place of the value."""
    factor: float = 1.0
    """The number by which it is multiplied on its way."""


class Statistics(NamedTuple):
    """``(x - mean) / sqrt(variance + epsilon)``, both leaves."""

    value: Value  # x
    units: Units
    mean: Leaf
    variance: Leaf


class Layer(NamedTuple):
    """``x @ kernel + bias`` or the same with a convolution, both leaves."""

    value: Value
    units: Units
    kernel: Leaf
    columns: Units
    """The unit to which each entry of the flattened kernel belongs."""
    bias: Leaf | None


class Network:
    """A program, read for layers."""

    def __init__(self, program: Program) -> None:
        self.program, self.made = program, makers(program)
        self.uses: dict[Value, list[Equation | None]] = defaultdict(list)
        for equation in program.equations:
            for value in equation.inputs:
                self.uses[value].append(equation)
        for value in program.outputs:
            self.uses[value].append(None)
        weights = [value for value in program.parameters.values() if _real(value)]
        self.varying, self.moving = dependent(self.made, program.inputs), dependent(self.made, weights)

    def statistics(self) -> list[Statistics]:
        """In the program's order."""
        return [found for equation in self._of("sub") if (found := self._normalized(equation)) is not None]

    def layers(self) -> list[Layer]:
        """Those that another layer reads, in the program's order."""
        before = self._read()
        found = (self._linear(equation) for equation in self._of(*READERS) if equation.outputs[0] in before)
        return [layer for layer in found if layer is not None]

    def moments(self, places: list[tuple[Value, Units]]) -> Callable[..., list[tuple[Any, Any]]]:
        """``(params, *inputs)`` to mean and biased variance of every unit of some values, ``[units]``, in float64."""

        def compute(known: dict[Value, Any]) -> list[tuple[Any, Any]]:
            return [_moments(computed(known, self.made, value), units) for value, units in places]

        return seen(self.program, compute)

    def _of(self, *names: str) -> Iterator[Equation]:
        return (e for e in self.program.equations if e.primitive in names and not e.outputs[0].loops)

    def _normalized(self, equation: Equation) -> Statistics | None:
        value, difference = equation.inputs[0], equation.outputs[0]
        mean = self._leaf(equation.inputs[1])
        units = mean and _units(mean.entries, difference.shape)
        variance = self._divisor(difference)
        if mean is None or variance is None or units is None or value not in self.varying:
            return None
        other = _units(variance.entries, difference.shape)
        if other is None or other.shape != units.shape or math.prod(units.shape) == math.prod(difference.shape):
            return None
        return Statistics(value, units, mean._replace(entries=units), variance._replace(entries=other))

    def _divisor(self, difference: Value) -> Leaf | None:
        """The variance by whose root a difference is divided, at once or after gains."""
        value = difference
        while (equation := self._only_use(value)) is not None and value.shape == difference.shape:
            if equation.primitive == "mul" or (equation.primitive == "div" and value is equation.inputs[0]):
                other = equation.inputs[1 if value is equation.inputs[0] else 0]
                found = self._root(other, -0.5 if equation.primitive == "mul" else 0.5)
                if found is not None or other in self.varying:
                    return found
            elif equation.primitive not in ("convert_element_type", "stop_gradient", "copy"):
                return None
            value = equation.outputs[0]
        return None

    def _root(self, value: Value, power: float) -> Leaf | None:
        """The leaf of which the value is ``(leaf + epsilon) ** power``, times gains."""
        equation = self._made_once(value)
        if equation is None:
            return None
        name, inputs = equation.primitive, equation.inputs
        found = None
        if _passes(equation):
            found = self._root(inputs[0], power)
        elif name in ("mul", "div"):
            found = self._root(inputs[0], power) or self._root(inputs[1], power if name == "mul" else -power)
        elif name == "integer_pow" and equation.params["y"] == -1:
            found = self._root(inputs[0], -power)
        elif {"rsqrt": -0.5, "sqrt": 0.5}.get(name) == power or (name == "pow" and inputs[1].constant == power):
            found = self._raised(inputs[0])
        return found and found._replace(entries=_after(equation, found.entries))

    def _raised(self, value: Value) -> Leaf | None:
        """The leaf of which the value is the sum with an epsilon."""
        equation = self._made_once(value)
        if equation is not None and _passes(equation):
            found = self._raised(equation.inputs[0])
        elif equation is not None and equation.primitive == "add":
            left, right = equation.inputs
            found = (
                self._leaf(left)
                if _number(right) is not None
                else self._leaf(right)
                if _number(left) is not None
                else None
            )
        else:
            return None
        return found and found._replace(entries=_after(equation, found.entries))

    def _linear(self, equation: Equation) -> Layer | None:
        for side in (1, 0) if equation.primitive == "dot_general" else (1,):
            kernel = self._leaf(equation.inputs[side])
            if kernel is None or equation.inputs[1 - side] not in self.varying:
                continue
            columns, there = _columns(equation, side)
            entries = kernel.entries.ravel()
            owner = np.full(entries.shape, -1)
            owner[entries] = columns.ravel()
            value, units, bias = self._biased(equation.outputs[0], there)
            if units is not None and (owner >= 0).all():  # the kernel is not broadcast
                return Layer(value, units, kernel, owner, bias)
        return None

    def _biased(self, value: Value, units: Units) -> tuple[Value, Units | None, Leaf | None]:
        """The sum of a value and a bias, and where the units are in it; the value itself where no bias follows."""
        total, there = value, units
        while (equation := self._only_use(total)) is not None and _passes(equation):
            there, total = _after(equation, there), equation.outputs[0]
        if equation is not None and equation.primitive == "add":
            bias = self._leaf(equation.inputs[1 if total is equation.inputs[0] else 0])
            total = equation.outputs[0]
            kept = _units(there, total.shape)
            added = bias and _units(bias.entries, total.shape)
            if bias is not None and added is not None and kept is not None and added.shape == kept.shape:
                return total, kept, bias._replace(entries=added)
        return value, _units(units, value.shape), None

    def _leaf(self, value: Value) -> Leaf | None:
        """The leaf that a value is, but for its shape and a number in front, when it is used for nothing else."""
        if len(self.uses[value]) != 1 or not _real(value):
            return None
        if value.origin == "parameter":
            return Leaf(value.path, np.arange(math.prod(value.shape)).reshape(value.shape))
        equation = self.made.get(value)
        if equation is None:
            return None
        source, number = equation.inputs[0], 1.0
        if equation.primitive in ("mul", "div"):
            left, right = equation.inputs
            if equation.primitive == "mul" and _number(left) is not None:
                left, right = right, left
            source, number = left, _number(right) or 0.0
            if equation.primitive == "div" and number:
                number = 1 / number
        elif not _passes(equation):
            return None
        found = self._leaf(source) if number else None
        return found and Leaf(found.path, _after(equation, found.entries), found.factor * number)

    def _only_use(self, value: Value) -> Equation | None:
        uses = self.uses[value]
        first = uses[0] if len(uses) == 1 else None
        return first if first is not None and first.bind is not None and not first.outputs[0].loops else None

    def _made_once(self, value: Value) -> Equation | None:
        return self.made.get(value) if len(self.uses[value]) == 1 and value not in self.varying else None

    def _read(self) -> set[Value]:
        """The values that a linear map with weights, or a loop, depends on."""
        fixed = self.moving.keys() - self.varying.keys()
        readers = [e for e in self.program.equations if e.primitive in READERS and fixed.intersection(e.inputs)]
        readers += [e for e in self.program.whole if e.primitive != "cond"]
        todo, found = [value for equation in readers for value in equation.inputs], set()
        while todo:
            value = todo.pop()
            if value not in found:
                found.add(value)
                todo += self.made[value].inputs if value in self.made else []
        return found


def _real(value: Value) -> bool:
    return bool(jax.dtypes.issubdtype(value.dtype, np.floating))


def _number(value: Value) -> float | None:
    """The one number that a constant is filled with."""
    if value.constant is None or not value.constant.size or (value.constant != value.constant.flat[0]).any():
        return None
    return float(value.constant.flat[0])


def _passes(equation: Equation) -> bool:
    return equation.primitive in (*PASSING, "transpose")


def _after(equation: Equation, entries: Units) -> Units:
    """What lies at each place of the result, when it is known for the operand."""
    shape = equation.outputs[0].shape
    if equation.primitive == "transpose":
        return entries.transpose(equation.params["permutation"])
    if equation.primitive == "broadcast_in_dim":
        axes = equation.params["broadcast_dimensions"]
        entries = entries.reshape([entries.shape[axes.index(i)] if i in axes else 1 for i in range(len(shape))])
    elif _passes(equation):
        return entries.reshape(shape)
    return np.broadcast_to(entries, shape)


def _units(entries: Units, shape: tuple[int, ...]) -> Units | None:
    """One of all that are equal along an axis; None where an entry is then left more than once, or not all of them."""
    units = np.broadcast_to(entries, shape)
    for axis in range(len(shape)):
        first = units.take([0], axis)
        if units.strides[axis] == 0 or (units == first).all():
            units = first
    return units if np.array_equal(np.sort(units.ravel()), np.arange(entries.max() + 1)) else None


def _columns(equation: Equation, side: int) -> tuple[Units, Units]:
    """The number of the unit for each entry of the kernel, and where the units lie in the result."""
    kernel, result = equation.inputs[side].shape, equation.outputs[0].shape
    if equation.primitive == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        own, there = [numbers.rhs_spec[0]], [numbers.out_spec[1]]
    else:
        contracted, batch = (dims[side] for dims in equation.params["dimension_numbers"])
        own = [*batch, *(i for i in range(len(kernel)) if i not in (*contracted, *batch))]
        free = len(own) - len(batch)
        there = [*range(len(batch)), *(i + (len(result) - free if side else len(batch)) for i in range(free))]
    numbered = np.arange(math.prod(kernel[i] for i in own)).reshape([kernel[i] for i in own])
    return _laid(numbered, own, kernel), _laid(numbered, there, result)


def _laid(numbers: Units, axes: Sequence[int], shape: tuple[int, ...]) -> Units:
    """Numbers along some axes of a shape, the same along all others."""
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return np.broadcast_to(numbers.transpose(np.argsort(axes)).reshape(sizes), shape)


def _moments(x: Any, units: Units) -> tuple[Float[Any, " units"], Float[Any, " units"]]:
    axes = [axis for axis, size in enumerate(units.shape) if size == 1]
    mean = x.mean(axes, keepdims=True)
    order = np.argsort(units.ravel())
    return mean.ravel()[order], ((x - mean) ** 2).mean(axes).ravel()[order]
