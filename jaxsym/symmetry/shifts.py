"""Shifts: what a value gains when parameters are translated, as exact symbolic terms.

A term is ``coefficient x broadcast(core)``: the core is a tensor computed from one :class:`Variable` (the translation of one leaf) by linear
operations whose coefficients are values of the program, and the map says which axis of the value each core axis lies on; along all others the shift is
constant. Two terms with one core and one map are equal, and cancel.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

from jaxsym.symmetry.facts import Fact
from jaxsym.symmetry.idioms import groups
from jaxsym.symmetry.trace import Value

Map = tuple[int | None, ...]
"""For every axis of a value the axis of the core that lies on it; None where the shift is constant."""


@dataclasses.dataclass(eq=False)
class Variable:
    """The translation of one leaf, constant along some axes, or along one axis a multiple of a given vector."""

    leaf: Value
    constant: frozenset[int]
    along: Value | None = None
    """The vector, on the one constant axis."""
    block: tuple[tuple[int, int, int], ...] = ()
    """Axis, start and stop, where only a block of the leaf is translated."""
    unit: Value | None = None
    """Gains that the translation is measured in."""
    flip: bool = False
    """No translation of a leaf, but 1 for every unit that a sign or a phase moves; the leaf stands for the units."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The axes of the leaf along which the translation varies."""
        return tuple(i for i in range(len(self.leaf.shape)) if i not in self.constant)

    @property
    def even(self) -> frozenset[int]:
        """The axes along which it is constant as a whole; a block of one index is not one of them."""
        return self.constant - {axis for axis, _, _ in self.block}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the core."""
        sizes = {axis: stop - start for axis, start, stop in self.block}
        return tuple(sizes.get(i, self.leaf.shape[i]) for i in self.kept)


class Einsum(NamedTuple):
    """A linear operation on labelled axes, with at most one coefficient tensor."""

    inputs: tuple[int, ...]  # a label per axis of the operand
    coefficient: Value | None
    labels: tuple[int | None, ...]  # a label per axis of the coefficient; None where it has only one index
    outputs: tuple[int, ...]
    sizes: tuple[int, ...]  # by label
    reciprocal: bool = False


class Reshape(NamedTuple):
    """Row-major."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Put(NamedTuple):
    """The operand becomes a block of a longer axis, with zeros elsewhere."""

    axis: int
    start: int
    rank: int
    before: int
    after: int


class Cut(NamedTuple):
    """A block of an axis."""

    axis: int
    start: int
    stop: int
    rank: int


class Centre(NamedTuple):
    """The mean over some axes is taken off: what is constant along them is gone."""

    axes: tuple[int, ...]


class Opaque(NamedTuple):
    """Any other linear operation; all that is known is along which axes of the result nothing varies."""

    where: Any
    operand: int
    shape: tuple[int, ...]
    constant: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Core:
    """A core tensor; made by :class:`Algebra`, compared by identity."""

    variable: Variable
    shape: tuple[int, ...]
    parametric: bool
    """Whether every coefficient is computed from parameters and constants alone."""
    op: Any = None
    child: "Core | None" = None
    child_map: Map = ()
    out_map: Map = ()
    multiplied: bool = True
    """Whether the coefficient of an :class:`Einsum` takes part, or sums to 1 and is left out."""

    @property
    def bare(self) -> bool:
        """The variable itself."""
        return self.op is None


Term = tuple[float, Core, Map]
Shift = dict[tuple[Core, Map], float]


class Algebra:
    """Makes terms; equal ones are one object."""

    def __init__(self, parametric: set[Value], facts: dict[Value, dict[int, Fact]]) -> None:
        self.parametric, self.facts = parametric, facts
        self._cores: dict[Any, Core] = {}

    def own(self, variable: Variable) -> tuple[Core, Map]:
        """The shift of a variable's own leaf."""
        core, kept = self._core(variable, variable.shape, True, None, None, (), ()), variable.kept
        rank, shape = len(variable.leaf.shape), variable.leaf.shape
        place: Map = tuple(kept.index(i) if i in kept else None for i in range(rank))
        for axis, start, stop in variable.block:
            _, core, place = self._block(Put(axis, start, rank, stop - start, shape[axis]), core, place)  # type: ignore[misc]
        if variable.unit is not None:
            _, core, place = self._einsum(Einsum((0,), variable.unit, (0,), (0,), shape), core, place)  # type: ignore[misc]
        if variable.along is not None:
            (axis,) = (i for i in variable.constant if shape[i] != 1)
            labels = tuple(i for i in range(rank) if i != axis)
            op = Einsum(labels, variable.along, (axis,), tuple(range(rank)), shape)
            _, core, place = self._outer(op, core, tuple(place[i] for i in labels))
        return core, place

    def _core(
        self,
        variable: Variable,
        shape: tuple[int, ...],
        parametric: bool,
        op: Any,
        child: Core | None,
        inner: Map,
        outer: Map,
        multiplied: bool = True,
    ) -> Core:
        key = (variable if child is None else child, op, inner)
        if key not in self._cores:
            self._cores[key] = Core(variable, shape, parametric, op, child, inner, outer, multiplied)
        return self._cores[key]

    def apply(self, op: Any, core: Core, place: Map) -> Term | None:
        """A linear operation on a term; None where the result is 0."""
        if isinstance(op, Einsum):
            return self._einsum(op, core, place)
        if isinstance(op, Reshape):
            return self._reshape(op, core, place)
        if isinstance(op, Put | Cut):
            return self._block(op, core, place)
        if isinstance(op, Centre):
            if all(place[axis] is None for axis in op.axes):
                return None
            order = [i for i, c in enumerate(place) if c is not None]
            outer = tuple(order.index(i) if i in order else None for i in range(len(place)))
            shape = tuple(core.shape[place[i]] for i in order)  # type: ignore[index]
            return 1.0, self._core(core.variable, shape, core.parametric, op, core, place, outer), outer
        kept = [i for i in range(len(op.shape)) if i not in op.constant and op.shape[i] != 1]
        outer = tuple(kept.index(i) if i in kept else None for i in range(len(op.shape)))
        shape = tuple(op.shape[i] for i in kept)
        return 1.0, self._core(core.variable, shape, False, op, core, place, outer), outer

    def _outer(self, op: Einsum, core: Core, place: Map) -> Term:
        """The product with a vector on a new axis."""
        order = [label for label in op.outputs if label in op.labels or place[op.inputs.index(label)] is not None]
        outer = tuple(order.index(label) if label in order else None for label in op.outputs)
        shape = tuple(op.sizes[label] for label in order)
        return 1.0, self._core(core.variable, shape, core.parametric, op, core, place, outer), outer

    def _einsum(self, op: Einsum, core: Core, place: Map) -> Term | None:
        if isinstance(core.op, Put):
            pushed = self._push(op, core, place)
            if pushed is not None:
                return pushed[0]
        coefficient, factor, weight = 1.0, op.coefficient, None
        label_of = {place[i]: label for i, label in enumerate(op.inputs) if place[i] is not None}
        mine = [label_of[c] for c in range(len(core.shape))]
        theirs = [label for label in op.labels if label is not None] if factor is not None else []
        summed = [label for label in op.inputs if label not in op.outputs]
        for label in summed:
            fact = None
            if factor is not None and label in theirs and not op.reciprocal:
                fact = self.facts.get(factor, {}).get(op.labels.index(label))
            if fact is None:
                continue
            constant = label not in mine and fact.along is None
            if constant and fact.total == 1:
                factor, theirs, summed = None, [], [other for other in summed if other != label]
                break
            hit = constant or (
                fact.along is not None and self._is_along(core, mine.index(label) if label in mine else -1, fact.along)
            )
            if hit and fact.total == 0:
                if fact.offset is None:
                    return None
                weight = (label, fact.offset)
                break
        if weight is not None:
            return self._annihilated(op, core, place, *weight)
        for label in summed:
            if label not in mine and label not in theirs:
                coefficient *= op.sizes[label]
        present = {*mine, *theirs}
        outputs = [label for label in op.outputs if label in present]
        outer = tuple(outputs.index(label) if label in present else None for label in op.outputs)
        if factor is None and set(mine) <= set(outputs):
            return coefficient, core, tuple(mine.index(label) if label in mine else None for label in op.outputs)
        known = factor is None or factor in self.parametric
        if known and (swapped := self._swapped(op, core, place)) is not None:
            return coefficient * swapped[0], swapped[1], swapped[2]
        parametric = core.parametric and known
        shape = tuple(op.sizes[label] for label in outputs)
        op, place = _canonical(op, place)
        made = self._core(core.variable, shape, parametric, op, core, place, outer, factor is not None)
        return coefficient, made, outer

    def _swapped(self, op: Einsum, core: Core, place: Map) -> Term | None:
        """Coefficients that depend on the inputs are multiplied last: ``(x A) B`` is ``x (A B)``; None where nothing is to be swapped."""
        outer = core.op
        if not isinstance(outer, Einsum) or outer.coefficient in self.parametric or not core.multiplied:
            return None
        assert core.child is not None
        label_of = {c: op.inputs[i] for i, c in enumerate(place) if c is not None}
        names = {label: label_of[c] for label, c in zip(outer.outputs, core.out_map, strict=True) if c is not None}
        sizes = list(op.sizes)
        for label in range(len(outer.sizes)):
            if label not in names:
                names[label] = len(sizes)
                sizes.append(outer.sizes[label])
        late = tuple(None if label is None else names[label] for label in outer.labels)
        if any(label in late for label in op.inputs if label not in op.outputs):
            return None
        early = tuple(names[label] for label in outer.inputs)
        present = [label for label, c in zip(early, core.child_map, strict=True) if c is not None]
        present += [label for label in op.labels if label is not None and op.coefficient is not None]
        gone = {*op.inputs} - {*op.outputs}
        between = tuple(label for label in dict.fromkeys(present) if label not in gone)
        first = op._replace(inputs=early, outputs=between, sizes=tuple(sizes))
        inner = self._einsum(first, core.child, core.child_map)
        if inner is None:
            return None
        last = outer._replace(inputs=between, labels=late, outputs=op.outputs, sizes=tuple(sizes))
        result = self._einsum(last, inner[1], inner[2])
        return None if result is None else (inner[0] * result[0], result[1], result[2])

    def _push(self, op: Einsum, core: Core, place: Map) -> tuple[Term | None] | None:
        """Of an operation on a block: the block of the operation; None where it mixes the block's axis."""
        put = core.op
        label = op.inputs[place.index(core.out_map[put.axis])]
        if label not in op.outputs or (op.coefficient is not None and label in op.labels):
            return None
        assert core.child is not None
        shared = {c: core.child_map[position] for position, c in enumerate(core.out_map) if c is not None}
        sizes = tuple(put.before if other == label else size for other, size in enumerate(op.sizes))
        term = self._einsum(
            op._replace(sizes=sizes), core.child, tuple(None if c is None else shared[c] for c in place)
        )
        if term is None:
            return (None,)
        target = Put(op.outputs.index(label), put.start, len(op.outputs), put.before, put.after)
        _, wide, where = self._block(target, term[1], term[2])  # type: ignore[misc]
        return ((term[0], wide, where),)

    def _is_along(self, core: Core, axis: int, vector: Value) -> bool:
        """Whether a core is an outer product with this vector on this axis."""
        return (
            isinstance(core.op, Einsum)
            and core.op.coefficient is vector
            and core.out_map.index(axis) == core.op.outputs.index(core.op.labels[0])
        )

    def _annihilated(self, op: Einsum, core: Core, place: Map, label: int, offset: Value) -> Term | None:
        """A sum along an axis that is known: the coefficient collapses to a number."""
        kept = [i for i, other in enumerate(op.inputs) if other != label]
        if label in [
            op.inputs[i] for i in range(len(place)) if place[i] is not None
        ]:  # outer product with the vector: take it off
            child = core.child
            assert child is not None
            axis_of = {c: i for i, c in enumerate(place) if c is not None}  # core axis -> operand axis
            inner: list[int | None] = [None] * len(op.inputs)
            for position, c in enumerate(core.child_map):
                outer_label = core.op.inputs[position]
                target = core.out_map[core.op.outputs.index(outer_label)]
                if c is not None and target is not None:
                    inner[axis_of[target]] = c
            core, place = child, tuple(inner)
        slim = Einsum(tuple(op.inputs[i] for i in kept), offset, (), op.outputs, op.sizes)
        return self._einsum(slim, core, tuple(place[i] for i in kept))

    def _reshape(self, op: Reshape, core: Core, place: Map) -> Term:
        if isinstance(core.op, Put):
            pushed = self._reshape_block(op, core, place)
            if pushed is not None:
                return pushed
        mapped: list[int | None] = [None] * len(op.after)
        whole = True
        for before, after in groups(op.before, op.after):
            inside = [i for i in before if place[i] is not None]
            wide = [j for j in after if op.after[j] != 1]
            if len(inside) == len(wide) == 1 and inside == [i for i in before if op.before[i] != 1]:
                mapped[wide[0]] = place[inside[0]]
            elif inside:
                whole = False
        if whole:
            return 1.0, core, tuple(mapped)
        varying = set()
        for before, after in groups(op.before, op.after):
            if any(place[i] is not None for i in before):
                varying |= {j for j in after if op.after[j] != 1}
        order = sorted(varying)
        outer = tuple(order.index(j) if j in varying else None for j in range(len(op.after)))
        shape = tuple(op.after[j] for j in order)
        return 1.0, self._core(core.variable, shape, core.parametric, op, core, place, outer), outer

    def _reshape_block(self, op: Reshape, core: Core, place: Map) -> Term | None:
        """A block of whole rows stays a block when its axis is taken apart."""
        put = core.op
        axis = place.index(core.out_map[put.axis])
        before, after = next(group for group in groups(op.before, op.after) if axis in group[0])
        wide = [j for j in after if op.after[j] != 1]
        if [i for i in before if op.before[i] != 1] != [axis] or not wide:
            return None
        row = op.before[axis] // op.after[wide[0]]
        if put.start % row or put.before % row:
            return None
        assert core.child is not None
        shared = {c: core.child_map[position] for position, c in enumerate(core.out_map) if c is not None}
        small = Reshape(
            tuple(put.before if i == axis else size for i, size in enumerate(op.before)),
            tuple(put.before // row if j == wide[0] else size for j, size in enumerate(op.after)),
        )
        _, inner, where = self._reshape(small, core.child, tuple(None if c is None else shared[c] for c in place))
        target = Put(wide[0], put.start // row, len(op.after), put.before // row, op.after[wide[0]])
        return self._block(target, inner, where)

    def _block(self, op: Any, core: Core, place: Map) -> Term | None:
        if isinstance(op, Cut) and place[op.axis] is None:
            return 1.0, core, place
        if isinstance(op, Cut) and isinstance(core.op, Put) and core.out_map.index(place[op.axis]) == core.op.axis:
            return self._cut_block(op, core, place)
        new = op.stop - op.start if isinstance(op, Cut) else op.after
        order = [i for i in range(op.rank) if place[i] is not None or i == op.axis]
        outer = tuple(order.index(i) if i in order else None for i in range(op.rank))
        shape = tuple(new if i == op.axis else core.shape[place[i]] for i in order)  # type: ignore[index]
        return 1.0, self._core(core.variable, shape, core.parametric, op, core, place, outer), outer

    def _cut_block(self, op: Cut, core: Core, place: Map) -> Term | None:
        """Of a block on an axis, what a cut of that axis leaves: a block again, where it is not all of the cut."""
        put = core.op
        start, stop = max(op.start, put.start), min(op.stop, put.start + put.before)
        if stop <= start:
            return None
        assert core.child is not None
        shared = {c: core.child_map[position] for position, c in enumerate(core.out_map) if c is not None}
        found, place = core.child, tuple(None if c is None else shared[c] for c in place)
        if stop - start != put.before:
            inside = self._block(Cut(op.axis, start - put.start, stop - put.start, op.rank), found, place)
            if inside is None:
                return None
            _, found, place = inside
        if stop - start != op.stop - op.start:
            target = Put(op.axis, start - op.start, op.rank, stop - start, op.stop - op.start)
            _, found, place = self._block(target, found, place)  # type: ignore[misc]
        return 1.0, found, place


def _canonical(op: Einsum, place: Map) -> tuple[Einsum, Map]:
    """The same operation, its operand's axes in the order of the coefficient's and labels in the order in which they occur."""

    def rank(axis: int) -> tuple[int, int]:
        label = op.inputs[axis]
        if label in op.labels:
            return 0, op.labels.index(label)
        return (1, op.outputs.index(label)) if label in op.outputs else (2, axis)

    order = sorted(range(len(op.inputs)), key=rank)
    met = dict.fromkeys([*(op.inputs[i] for i in order), *(k for k in op.labels if k is not None), *op.outputs])
    number = {label: position for position, label in enumerate(met)}
    return Einsum(
        tuple(number[op.inputs[i]] for i in order),
        op.coefficient,
        tuple(None if label is None else number[label] for label in op.labels),
        tuple(number[label] for label in op.outputs),
        tuple(op.sizes[label] for label in met),
        op.reciprocal,
    ), tuple(place[i] for i in order)


def covers(one: Map, other: Map) -> bool:
    """Whether ``one`` varies wherever ``other`` does."""
    return all(b is None or a is not None for a, b in zip(one, other, strict=True))


def patterns(shape: tuple[int, ...]) -> list[frozenset[int]]:
    """Along which axes the translation of a leaf may be constant; of leaves with many axes only the simple ones."""
    trivial = {i for i, size in enumerate(shape) if size == 1}
    axes = [i for i in range(len(shape)) if i not in trivial]
    sizes = range(len(axes) + 1) if len(axes) <= 3 else (0, 1, len(axes) - 1, len(axes))
    return [frozenset(chosen) | trivial for size in sizes for chosen in itertools.combinations(axes, size)]
