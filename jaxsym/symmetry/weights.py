"""What rules write to: :class:`Shapes`, the axes of every value, and :class:`Weights`, a linear system for its powers of c.

If unit i of an index set is multiplied by c_i, a value that has this index set on an axis is multiplied, along it, by c_i to the power of its
*weight* there. A weight belongs to one leaf of one axis of one value; next to them every value has one *global* weight, for one c that
multiplies the whole tensor. Weights of different index sets never meet, so that each index set has a linear system of its own.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxsym.symmetry.atoms import Atom, leaves, pin, spans, tie
from jaxsym.symmetry.trace import Program, Value

Slot = tuple[Value, int, int]  # value, axis (-1: global), number of the leaf on the axis
Row = dict[Slot, Fraction]


LARGE = 10**6
"""Denominators up to this are cleared."""


class Shapes:
    """The axes of every value as atoms."""

    def __init__(self, program: Program) -> None:
        self._axes: dict[Value, list[Atom]] = {}
        self._loops = {number: Atom(size, reason="iterations of a loop") for number, size in program.loops.items()}

    def loop(self, number: int) -> Atom:
        """The iterations of a loop."""
        return self._loops[number]

    def knows(self, value: Value) -> bool:
        """Whether the value has axes already."""
        return value in self._axes

    def axes(self, value: Value) -> list[Atom]:
        """The axes of a value; parameters begin free, inputs and uneven constants pinned."""
        if value not in self._axes:
            reason = None
            if value.origin == "input":
                reason = "an input"
            elif value.origin == "constant" and not _even(value):
                reason = "a constant"
            elif value.origin == "equation":
                reason = "unknown"
            self._axes[value] = [Atom(size, reason=reason) for size in value.shape]
        return self._axes[value]

    def give(self, value: Value, axes: Sequence[Atom]) -> None:
        """State the axes of a result, or tie them to what it has."""
        if value in self._axes:
            for one, other in zip(self._axes[value], axes, strict=True):
                tie(one, other)
        else:
            self._axes[value] = list(axes)

    def fresh(self, value: Value, reason: str) -> None:
        """New axes, pinned."""
        self.give(value, [Atom(size, reason=reason) for size in value.shape])

    def pin(self, value: Value, reason: str) -> None:
        """Pin all axes of a value."""
        for atom in self.axes(value):
            pin(atom, reason)

    def tie(self, one: Atom, other: Atom) -> None:
        """Make two index sets one."""
        tie(one, other)

    def elementwise(self, output: Value, inputs: Sequence[Value]) -> None:
        """Tie operands of one shape; axes of size 1 are broadcast."""
        axes = []
        for i, size in enumerate(output.shape):
            here = [self.axes(value)[i] for value in inputs if len(value.shape) > i and value.shape[i] == size]
            for one, other in itertools.pairwise(here):
                tie(one, other)
            axes.append(here[0] if here else Atom(size))
        self.give(output, axes)


def _even(value: Value) -> bool:
    known = value.constant
    return known is not None and known.size > 0 and bool(np.all(known == known.flat[0]))


def up_to(value: Value, size: float) -> bool:
    """Whether a value is a constant, and no entry is larger than this."""
    known = value.constant
    return known is not None and np.issubdtype(known.dtype, np.floating) and bool(np.all(np.abs(known) <= size))


class Weights:
    """Linear relations between weights; equal ones are merged at once, the rest is solved per index set.

    ``small``: constants up to this size vanish where they are added. ``bend``: what a sign may do that leaves a shift to be taken up, ``"shifted"``
    (a sigmoid counts as odd), ``"phase"`` (a sine may change its sign while its argument does not) or ``"skewed"`` (a ReLU counts as even).
    """

    def __init__(
        self, shapes: Shapes, program: Program, *, sign: bool, small: float = 0.0, bend: str | None = None
    ) -> None:
        self.sign, self.small, self.bend = sign, small, bend
        self._shapes = shapes
        self._parents: dict[Slot, Slot | None] = {}  # None: the weight is nought
        self._rows: list[Row] = []
        self._leaves: dict[tuple[Value, int], list[Atom]] = {}
        for value in (*program.inputs, *program.outputs, *program.still()):
            self.none(value)

    # the vocabulary of the rules

    def slots(self, value: Value, axis: int) -> list[Slot]:
        """The weights of one axis."""
        return [(value, axis, number) for number in range(len(self.leaves(value, axis)))]

    def leaves(self, value: Value, axis: int) -> list[Atom]:
        """The index sets of one axis."""
        if (value, axis) not in self._leaves:
            self._leaves[value, axis] = leaves(self._shapes.axes(value)[axis])
        return self._leaves[value, axis]

    def none(self, value: Value) -> None:
        """Nothing multiplies this value."""
        if self.anything(value):
            return
        self._nought((value, -1, 0))
        for axis in range(len(value.shape)):
            self._nought(*self.slots(value, axis))

    def equal(self, output: Value, value: Value, axes: Mapping[int, int] | None = None) -> None:
        """Equal weights, on axes that correspond (output -> operand; by position where nothing is said).

        Along other axes there is none: the output is constant there, or the operand was summed over, or indices are mixed.
        """
        if axes is None:
            axes = self._aligned(output, value)
        if self.anything(value) or self.anything(output):
            return
        self._merge((output, -1, 0), (value, -1, 0))
        for axis in range(len(output.shape)):
            if axis in axes:
                self._pairs(self.slots(output, axis), self.slots(value, axes[axis]))
            else:
                self._nought(*self.slots(output, axis))
        for axis in set(range(len(value.shape))) - set(axes.values()):
            self._nought(*self.slots(value, axis))

    def equal_in_order(self, value: Value, output: Value) -> None:
        """Equal weights, leaf by leaf in row-major order: a reshape."""
        if self.anything(value):
            return
        self._merge((value, -1, 0), (output, -1, 0))
        before, after = (
            [slot for axis in range(len(v.shape)) for slot in self.slots(v, axis)] for v in (value, output)
        )
        if self._match(before, after):
            self._pairs(before, after)
            return
        for atom in {self.atom(slot): None for slot in (*before, *after)}:  # a sum times a set: the set, for each term
            sides = [[slot for slot in side if self.atom(slot) is atom] for side in (before, after)]
            if min(map(len, sides)) == 1:
                for slot in sides[1]:
                    self._merge(sides[0][0], slot)
                for slot in sides[0]:
                    self._merge(slot, sides[1][0])
            else:
                self._nought(*sides[0], *sides[1])

    def equal_part(self, part: Value, whole: Value, ranges: Sequence[tuple[int, int]], passing: Sequence[bool]) -> None:
        """Equal weights where ``part`` is a block of ``whole``, given by the range of positions on each axis."""
        if self.anything(part) or self.anything(whole):
            return
        self._merge((part, -1, 0), (whole, -1, 0))
        for axis, (start, stop) in enumerate(ranges):
            outer, inner = self.slots(whole, axis), self.slots(part, axis)
            if (start, stop) != (0, whole.shape[axis]):
                limits = list(zip(outer, spans(self._shapes.axes(whole)[axis]), strict=True))
                outer = [slot for slot, (a, b) in limits if start <= a and b <= stop]
                self._nought(*(slot for slot, (a, b) in limits if a < stop and start < b and slot not in outer))
            if passing[axis]:
                self._pairs(inner, outer)
            else:
                self._nought(*self.slots(whole, axis), *inner)

    def combine(self, output: Value, operands: Sequence[tuple[Any, Value]]) -> None:
        """The output's weight is a combination of the operands' weights, axis by axis: products and powers."""
        if any(self.anything(value) for _, value in operands):
            return
        self._relate((output, -1, 0), [(power, (value, -1, 0)) for power, value in operands])
        for axis in range(len(output.shape)):
            slots = self.slots(output, axis)
            present = [(power, value) for power, value in operands if axis in self._aligned(output, value)]
            sides = [(power, self.slots(value, axis)) for power, value in present]
            if any(not self._match(slots, side) for _, side in sides):
                self._nought(*slots, *(slot for _, side in sides for slot in side))
                continue
            for number, slot in enumerate(slots):
                self._relate(slot, [(power, side[number]) for power, side in sides])

    def contract(
        self,
        output: Value,
        one: Value,
        other: Value,
        *,
        contracted: Sequence[tuple[int, int]],
        batch: Sequence[tuple[int, int, int]],
        free: Sequence[tuple[int, int]],
        other_free: Sequence[tuple[int, int]],
    ) -> None:
        """A product summed over some axes: weights cancel there, add up along batches, and pass along the rest."""
        if self.anything(one) or self.anything(other):
            return
        self._relate((output, -1, 0), [(1, (one, -1, 0)), (1, (other, -1, 0))])
        for i, j in contracted:
            self._cancel(self.slots(one, i), self.slots(other, j))
        for target, i, j in batch:
            self._sum(self.slots(output, target), self.slots(one, i), self.slots(other, j))
        for pairs, value in ((free, one), (other_free, other)):
            for target, i in pairs:
                self._pairs(self.slots(output, target), self.slots(value, i))

    def convolve(
        self,
        output: Value,
        value: Value,
        kernel: Value,
        lhs: Sequence[int],
        rhs: Sequence[int],
        out: Sequence[int],
        groups: int,
    ) -> None:
        """A convolution: channels of a group are contracted, groups are a batch, positions carry no weight."""
        if self.anything(value) or self.anything(kernel):
            return
        self._relate((output, -1, 0), [(1, (value, -1, 0)), (1, (kernel, -1, 0))])
        for side, spec in ((value, lhs), (kernel, rhs), (output, out)):
            for axis in spec[2:]:
                self._nought(*self.slots(side, axis))
        self._pairs(self.slots(output, out[0]), self.slots(value, lhs[0]))
        channels, filters, results = self.slots(value, lhs[1]), self.slots(kernel, rhs[0]), self.slots(output, out[1])
        inner = self.slots(kernel, rhs[1])
        leading = 0  # leaves of the group index
        if groups > 1:
            size = 1
            for atom in self.leaves(value, lhs[1]):
                if size >= groups:
                    break
                size *= atom.size
                leading += 1
            if size != groups:
                self._nought(*channels, *filters, *results, *inner)
                return
        self._sum(results[:leading], channels[:leading], filters[:leading])
        self._cancel(channels[leading:], inner)
        self._pairs(results[leading:], filters[leading:])

    # the system

    def solve(self) -> dict[Atom | None, list[dict[Slot, Fraction]]]:
        """A basis of all solutions per index set (None: the global weights), as weights of every slot that has one."""
        groups: dict[Atom | None, dict[Slot, None]] = defaultdict(dict)  # in order, unlike sets
        for slot in [slot for row in self._rows for slot in row]:
            self._root(slot)
        for slot in list(self._parents):
            root = self._root(slot)
            if root is not None:
                groups[self.atom(root)][root] = None
        rows: dict[Atom | None, list[Row]] = defaultdict(list)
        for row in self._rows:
            reduced: Row = defaultdict(Fraction)
            for slot, power in row.items():
                root = self._root(slot)
                if root is not None:
                    reduced[root] += power
            reduced = {slot: power % 2 if self.sign else power for slot, power in reduced.items()}
            reduced = {slot: power for slot, power in reduced.items() if power}
            if reduced:
                rows[self.atom(next(iter(reduced)))].append(reduced)
        members: dict[Slot, list[Slot]] = defaultdict(list)
        for slot in list(self._parents):
            root = self._root(slot)
            if root is not None:
                members[root].append(slot)
        solutions: dict[Atom | None, list[dict[Slot, Fraction]]] = {}
        for atom, variables in groups.items():
            order = sorted(variables, key=_order)
            basis = _null_space(rows[atom], order, modulo=2 if self.sign else None)
            solutions[atom] = [
                {slot: weight for root, weight in _oriented(vector).items() for slot in members[root]}
                for vector in basis
            ]
        return solutions

    def atom(self, slot: Slot) -> Atom | None:
        """The index set that a weight belongs to."""
        value, axis, number = slot
        return None if axis < 0 else self.leaves(value, axis)[number].root()

    def touch(self, value: Value) -> None:
        """Make a value's weights part of the system even where no relation speaks of them."""
        for slot in [(value, -1, 0), *(slot for axis in range(len(value.shape)) for slot in self.slots(value, axis))]:
            self._root(slot)

    def negligible(self, value: Value) -> bool:
        """A constant so small that, where it is added, it may be taken for zero."""
        return bool(self.small) and up_to(value, self.small)

    def anything(self, value: Value) -> bool:
        """Zero (and, for positive factors, infinity) times c is itself."""
        known = value.constant
        if known is None or known.size == 0 or known.dtype == bool:
            return False
        if not np.issubdtype(known.dtype, np.number):
            return False
        zero = known == 0
        return bool(np.all(zero)) if self.sign else bool(np.all(zero | np.isinf(known)))

    def _aligned(self, output: Value, value: Value) -> dict[int, int]:
        if len(value.shape) != len(output.shape):
            return {}
        return {i: i for i, (a, b) in enumerate(zip(output.shape, value.shape, strict=True)) if a == b}

    def _root(self, slot: Slot) -> Slot | None:
        path = []
        current: Slot | None = slot
        while current is not None:
            if current not in self._parents:
                self._parents[current] = None if current[0].origin in ("constant", "input") else current
            parent = self._parents[current]
            if parent == current:
                break
            path.append(current)
            current = parent
        for passed in path:
            self._parents[passed] = current
        return current

    def _merge(self, one: Slot, other: Slot) -> None:
        a, b = self._root(one), self._root(other)
        if a == b:
            return
        if a is None or b is None:
            self._parents[a if a is not None else b] = None  # type: ignore[index]
        else:
            self._parents[a] = b

    def _nought(self, *slots: Slot) -> None:
        for slot in slots:
            root = self._root(slot)
            if root is not None:
                self._parents[root] = None

    def _match(self, ours: Sequence[Slot], theirs: Sequence[Slot]) -> bool:
        return [self.atom(slot) for slot in ours] == [self.atom(slot) for slot in theirs]

    def _pairs(self, ours: Sequence[Slot], theirs: Sequence[Slot]) -> None:
        if self._match(ours, theirs):
            for a, b in zip(ours, theirs, strict=True):
                self._merge(a, b)
        else:
            self._nought(*ours, *theirs)

    def _cancel(self, ours: Sequence[Slot], theirs: Sequence[Slot]) -> None:
        if self._match(ours, theirs):
            for a, b in zip(ours, theirs, strict=True):
                self._rows.append({a: Fraction(1), b: Fraction(1)} if a != b else {a: Fraction(2)})
        else:
            self._nought(*ours, *theirs)

    def _sum(self, results: Sequence[Slot], ours: Sequence[Slot], theirs: Sequence[Slot]) -> None:
        if self._match(results, ours) and self._match(results, theirs):
            for slot, a, b in zip(results, ours, theirs, strict=True):
                self._relate(slot, [(1, a), (1, b)])
        else:
            self._nought(*results, *ours, *theirs)

    def _relate(self, slot: Slot, operands: Sequence[tuple[Any, Slot]]) -> None:
        """Slot = sum of power x operand."""
        present = [
            (Fraction(power), operand) for power, operand in operands if self._root(operand) is not None and power
        ]
        if not present:
            self._nought(slot)
        elif len(present) == 1 and present[0][0] == 1:
            self._merge(slot, present[0][1])
        else:
            row: Row = defaultdict(Fraction)
            row[slot] -= 1
            for power, operand in present:
                row[operand] += power
            self._rows.append(dict(row))


def _order(slot: Slot) -> tuple[Any, ...]:
    """Parameters last, so that solutions are expressed by them."""
    value, axis, number = slot
    return (value.origin == "parameter", value.path, axis, number)


def _oriented(vector: dict[Slot, Fraction]) -> dict[Slot, Fraction]:
    """Scaled to coprime integers where these are moderate, else to 1; the first parameter's positive."""
    first = min(vector, key=lambda slot: (slot[0].origin != "parameter", slot[0].path, slot[1], slot[2]))
    unit = math.lcm(*(weight.denominator for weight in vector.values()))
    unit_over = Fraction(unit, math.gcd(*(int(weight * unit) for weight in vector.values())))
    if unit > LARGE:
        unit_over = 1 / abs(vector[first])
    return {slot: weight * unit_over * (1 if vector[first] > 0 else -1) for slot, weight in vector.items()}


def _null_space(rows: Sequence[Row], order: Sequence[Slot], modulo: int | None) -> list[dict[Slot, Fraction]]:
    """A basis of the null space by exact elimination, over the rationals or over the integers modulo 2."""

    def reduced(row: Row) -> Row:
        values = {slot: (value % modulo if modulo else value) for slot, value in row.items()}
        return {slot: value for slot, value in values.items() if value}

    position = {slot: number for number, slot in enumerate(order)}
    pivots: dict[Slot, Row] = {}
    uses: dict[Slot, dict[Slot, None]] = defaultdict(dict)  # slot -> pivots in whose row it stands
    for row in rows:
        current = dict(row)
        for slot in list(current):
            if slot in pivots and slot in current:
                factor = current[slot]
                for other, value in pivots[slot].items():
                    current[other] = current.get(other, Fraction(0)) - factor * value
        current = reduced(current)
        if not current:
            continue
        pivot = min(current, key=position.__getitem__)
        scale = current[pivot]
        current = reduced({slot: value / scale for slot, value in current.items()})
        for owner in list(uses[pivot]):
            factor = pivots[owner].get(pivot, Fraction(0))
            if factor:
                merged = dict(pivots[owner])
                for other, value in current.items():
                    merged[other] = merged.get(other, Fraction(0)) - factor * value
                pivots[owner] = reduced(merged)
                for other in pivots[owner]:
                    uses[other][owner] = None
        pivots[pivot] = current
        for other in current:
            uses[other][pivot] = None
    basis = []
    for slot in order:
        if slot in pivots:
            continue
        vector = {slot: Fraction(1)}
        for owner in uses[slot]:
            value = -pivots[owner].get(slot, Fraction(0))
            value = value % modulo if modulo else value
            if owner in pivots and value:
                vector[owner] = value
        basis.append(vector)
    return basis
