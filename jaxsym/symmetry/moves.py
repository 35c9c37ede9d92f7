"""Translations as actions: the symbolic shift of every leaf, evaluated at given parameters."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array

from jaxsym.symmetry.host import namespace, run
from jaxsym.symmetry.idioms import groups
from jaxsym.symmetry.shifts import Centre, Core, Cut, Einsum, Map, Put, Reshape, Shift, Variable
from jaxsym.symmetry.trace import Equation, Program, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Translation:
    """What one translation does to every leaf that it moves."""

    variable: Variable
    moves: tuple[tuple[str, Shift], ...]
    """Path -> shift."""
    equations: tuple[Equation, ...]
    """What computes the coefficients from the parameters, in order."""
    leaves: tuple[tuple[Value, str], ...]
    """The parameters that the coefficients depend on."""
    contrast: frozenset[int] = frozenset()
    """Axes of the variable's core along which it adds up to 0; an element has one number fewer there."""
    frame: tuple["Translation", ...] = ()
    """Translations whose coefficients this one changes; it acts where their coordinates are 0, so that it commutes with them."""

    def act(self, part: Array, params: Mapping[str, Array]) -> dict[str, Array]:
        """The leaves that move, moved by ``part``, of :attr:`shape`."""
        now = dict(params)
        own: list[Any] = [0.0] * len(self.frame)
        for _ in range(self._passes):
            for i, other in enumerate(self.frame):
                coordinate = other.chart(now)
                now |= other.act(-coordinate, now)
                own[i] = own[i] + coordinate
        now |= self._shifted(part, now)
        for other, coordinate in zip(reversed(self.frame), reversed(own), strict=True):
            now |= other.act(coordinate, now)
        return now

    @property
    def _passes(self) -> int:
        """How often the frame must be undone in turn: more than once where one of it moves the leaf that another is measured on."""
        moved = [{path for path, _ in other.moves} for other in self.frame]
        crossed = any(one.own in paths for i, one in enumerate(self.frame) for j, paths in enumerate(moved) if i != j)
        return len(self.frame) if crossed else 1

    def _coefficients(self, params: Mapping[str, Array]) -> Callable[[Value], Array]:
        known: dict[Value, Array] = {value: params[path] for value, path in self.leaves}
        for equation in self.equations:
            known[equation.outputs[0]] = run(equation, [_read(known, value) for value in equation.inputs])
        return functools.partial(_read, known)

    def chart(self, params: Mapping[str, Array]) -> Array:
        """A coordinate of the parameters that this translation moves by exactly its ``part``."""
        variable = self.variable
        leaf = params[variable.leaf.path]
        if variable.along is not None:
            (axis,) = (i for i in variable.constant if leaf.shape[i] != 1)
            vector = self._coefficients(params)(variable.along)
            leaf = leaf / vector.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
        if variable.unit is not None:
            leaf = leaf / self._coefficients(params)(variable.unit)
        blocks = {axis: slice(start, stop) for axis, start, stop in variable.block}
        window = tuple(blocks.get(i, slice(None)) for i in range(leaf.ndim))
        return self._narrow(leaf[window].mean(axis=tuple(variable.constant))).reshape(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an element."""
        return tuple(n - (i in self.contrast) for i, n in enumerate(self.variable.shape)) or (1,)

    def _widen(self, part: Array) -> Array:
        """The core from an element."""
        core = part.reshape(self.shape if self.variable.shape else ())
        for axis in self.contrast:
            core = _along(scipy.linalg.helmert(core.shape[axis] + 1).T, core, axis)
        return core

    def _narrow(self, core: Array) -> Array:
        """The element from a core."""
        for axis in self.contrast:
            core = _along(scipy.linalg.helmert(core.shape[axis]), core, axis)
        return core

    def _shifted(self, part: Array, params: Mapping[str, Array]) -> dict[str, Array]:
        read = self._coefficients(params)
        moved = {}
        for path, shift in self.moves:
            leaf = params[path]
            total = leaf
            for (core, place), coefficient in shift.items():
                change = _evaluate(core, self._widen(part), read)
                total = total + (coefficient * _on(change, place)).astype(leaf.dtype)
            moved[path] = total
        return moved

    @property
    def touched(self) -> dict[str, Shift]:
        """Every leaf that moves: those of the frame, too, that are taken back with other coefficients than they came with."""
        moved = dict(self.moves)
        for other in self.frame:
            for path, shift in other.moves:
                if path not in moved and not other._read_by(shift).isdisjoint(moved):
                    moved[path] = shift
        return moved

    def _read_by(self, shift: Shift) -> set[str]:
        """The leaves that the coefficients of a shift depend on."""
        made = {equation.outputs[0]: equation for equation in self.equations}
        paths, queue = dict(self.leaves), [value for core, _ in shift for value in _coefficients(core)]
        reached: set[Value] = set()
        while queue:
            value = queue.pop()
            if value not in reached:
                reached.add(value)
                queue += made[value].inputs if value in made else []
        return {paths[value] for value in reached if value in paths}

    @property
    def own(self) -> str:
        """The leaf that the elements are translations of."""
        return self.moves[0][0]

    @property
    def gain(self) -> str | None:
        """The leaf of gains whose reciprocal is the vector that this is a multiple of."""
        return dict(self.leaves).get(self._gain) if self.variable.along is not None else None

    @property
    def _gain(self) -> Value:
        return next(e for e in self.equations if self.variable.along in e.outputs).inputs[0]

    @property
    def unit(self) -> str | None:
        """The leaf of gains that this is measured in."""
        return dict(self.leaves).get(self.variable.unit) if self.variable.unit is not None else None

    def carried(self, part: Array, move: Callable[[Array, frozenset[int]], Array]) -> Array:
        """``part`` after the other factors' action ``move(tensor, constant axes)`` on its own leaf."""
        variable = self.variable
        if variable.flip:
            return move(part, frozenset())
        rank, kept = len(variable.leaf.shape), variable.kept
        place = tuple(kept.index(i) if i in kept else None for i in range(rank))
        tensor = _on(self._widen(part), place)
        blocks = {axis: (start, stop) for axis, start, stop in variable.block}
        margins = [
            (start, variable.leaf.shape[i] - stop)
            for i in range(rank)
            for start, stop in [blocks.get(i, (0, variable.leaf.shape[i]))]
        ]
        tensor = move(namespace(tensor).pad(tensor, margins) if blocks else tensor, variable.even)
        window = tuple(slice(*blocks[i]) if i in blocks else slice(None) for i in range(rank))
        core = tensor[window].reshape(variable.shape)
        return self._narrow(core).reshape(part.shape)


def _along(matrix: np.ndarray, tensor: Array, axis: int) -> Array:
    """A matrix times a tensor along an axis."""
    xp = namespace(tensor)
    return xp.moveaxis(xp.tensordot(xp.asarray(matrix, tensor.dtype), tensor, axes=(1, axis)), 0, axis)


def _coefficients(core: Core | None) -> list[Value]:
    """What the operations of a core multiply with."""
    found = []
    while core is not None:
        if isinstance(core.op, Einsum) and core.op.coefficient is not None and core.multiplied:
            found.append(core.op.coefficient)
        core = core.child
    return found


class Recipes:
    """Which equations and which leaves a coefficient is computed from."""

    def __init__(self, program: Program, derived: Iterable[Equation]) -> None:
        equations = [*program.equations, *derived]
        self.paths = {value: path for path, value in program.parameters.items()}
        self.order = {equation: number for number, equation in enumerate(equations)}
        self.made = {v: e for e in equations for v in e.outputs if v.origin == "equation"}

    def translation(self, variable: Variable, moves: Mapping[Value, Shift]) -> Translation:
        """Collect what is needed to act with one variable."""
        queue: list[Value] = []
        for shift in moves.values():
            for core, _ in shift:
                queue += _coefficients(core)
        needed: set[Value] = set()
        while queue:
            value = queue.pop()
            if value not in needed:
                needed.add(value)
                queue += self.made[value].inputs if value in self.made else []
        equations = sorted({self.made[v] for v in needed if v in self.made}, key=lambda e: self.order[e])
        ordered = sorted(moves, key=lambda value: value is not variable.leaf)
        leaves = tuple((value, self.paths[value]) for value in self.paths if value in needed)
        return Translation(variable, tuple((self.paths[v], moves[v]) for v in ordered), tuple(equations), leaves)


def commuting(found: Sequence[Translation]) -> list[Translation]:
    """The translations in frames in which they commute."""
    done: list[Translation] = []
    for one in found:
        done.append(framed(one, done))
    return done


def framed(one: Translation, others: Sequence[Translation]) -> Translation:
    """A translation, or what a sign leaves to be taken up, in a frame in which it commutes with all others."""
    inside = {i for i, other in enumerate(others) if _clash(one, other)}
    while more := {
        i
        for i, other in enumerate(others)
        if i not in inside and any(path == others[j].own for path, _ in other.moves for j in inside)
    }:
        inside |= more  # what moves the leaf that one of the frame is measured on belongs to the frame
    return dataclasses.replace(one, frame=tuple(others[i] for i in sorted(inside)))


def _clash(one: Translation, other: Translation) -> bool:
    """Whether one moves what the other's coefficients depend on."""
    moved = [{path for path, _ in side.moves} for side in (one, other)]
    read = [{path for _, path in side.leaves} for side in (one, other)]
    return bool(moved[0] & read[1] or moved[1] & read[0])


def _read(known: Mapping[Value, Array], value: Value) -> Any:
    return np.asarray(value.constant) if value.constant is not None else known[value]


def _on(array: Array, place: Map) -> Array:
    """A core on the axes of its value; size 1 where it is constant."""
    order = [c for c in place if c is not None]
    sizes = [1 if c is None else array.shape[c] for c in place]
    return array.transpose(order).reshape(sizes)


def _off(array: Array, outer: Map) -> Array:
    """The core of a tensor that is constant (and of size 1) along the other axes."""
    order = [i for i, c in enumerate(outer) if c is not None]
    kept = array.reshape([array.shape[i] for i in order])
    return kept.transpose([[outer[i] for i in order].index(c) for c in range(len(order))])


def _evaluate(core: Core, part: Array, read: Callable[[Value], Array]) -> Array:
    if core.bare:
        return part
    assert core.child is not None
    child, op = _evaluate(core.child, part, read), core.op
    if isinstance(op, Einsum):
        return _einsum(op, core, child, read)
    tensor = _on(child, core.child_map)
    if isinstance(op, Reshape):
        tensor = _reshape(op, tensor, core.child_map)
    elif isinstance(op, Put):
        shape = tuple(op.before if i == op.axis else size for i, size in enumerate(tensor.shape))
        margins = [(op.start, op.after - op.start - op.before) if i == op.axis else (0, 0) for i in range(op.rank)]
        xp = namespace(tensor)
        tensor = xp.pad(xp.broadcast_to(tensor, shape), margins)
    elif isinstance(op, Cut):
        tensor = tensor[(slice(None),) * op.axis + (slice(op.start, op.stop),)]
    elif isinstance(op, Centre):
        tensor = tensor - tensor.mean(op.axes, keepdims=True)
    return _off(tensor, core.out_map)


def _einsum(op: Einsum, core: Core, child: Array, read: Callable[[Value], Array]) -> Array:
    label_of = {c: label for c, label in zip(core.child_map, op.inputs, strict=True) if c is not None}
    operands: list[Any] = [child, [label_of[c] for c in range(child.ndim)]]
    present = set(operands[1])
    if op.coefficient is not None and core.multiplied:
        factor = read(op.coefficient)
        labels = [label for label in op.labels if label is not None]
        factor = factor.reshape(
            [size for size, label in zip(factor.shape, op.labels, strict=True) if label is not None]
        )
        operands += [1 / factor if op.reciprocal else factor, labels]
        present.update(labels)
    shown = [label for label, c in zip(op.outputs, core.out_map, strict=True) if c is not None]
    wanted = [label for label in shown if label in present]
    if namespace(*operands[::2]) is np:
        result = np.einsum(*operands, wanted)
    else:
        result = jnp.einsum(*operands, wanted, precision="highest")
    order = [c for c in core.out_map if c is not None]
    return result.transpose([order.index(c) for c in range(len(order))])


def _reshape(op: Reshape, tensor: Array, place: Map) -> Array:
    full, after = list(tensor.shape), [1] * len(op.after)
    for before, target in groups(op.before, op.after):
        if any(place[i] is not None for i in before):
            for i in before:
                full[i] = op.before[i]
            for j in target:
                after[j] = op.after[j]
    return namespace(tensor).broadcast_to(tensor, full).reshape(after)
