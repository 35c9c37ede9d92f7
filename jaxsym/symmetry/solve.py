"""From tied axes and weights to factors: who may move, with how many independent copies, and what absorbs what."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxsym.symmetry.atoms import Atom, leaves, places
from jaxsym.symmetry.bases import Bases, bases
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.facts import known
from jaxsym.symmetry.group import Pinned
from jaxsym.symmetry.layout import dot_axes
from jaxsym.symmetry.trace import Program, Value
from jaxsym.symmetry.weights import Shapes, Weights

Solution = dict[Any, Fraction]  # weight slot -> weight


class Block(NamedTuple):
    """One block of one value: for every axis, the leaves that span it there."""

    leaves: tuple[tuple[int, int, Atom], ...]  # axis, number on the axis, leaf


class Solver:
    """What is computed once about a program."""

    def __init__(self, program: Program, shapes: Shapes, scalings: Weights, signs: Weights) -> None:
        self.program, self.shapes = program, shapes
        self.known = known(program)
        self.scalings, self.signs = scalings.solve(), signs.solve()
        self.blocks = {value: _blocks(shapes, value) for value in program.parameters.values()}
        self.present: dict[Atom, list[tuple[Value, int, int]]] = defaultdict(list)
        for value, blocks in self.blocks.items():
            for place in dict.fromkeys(place for block in blocks for place in block.leaves):
                axis, number, atom = place
                self.present[atom].append((value, axis, number))
        self.depends = _dependencies(program, shapes, self.present)
        self._moved: dict[int, tuple[list[Value], Solution]] = {}  # the parameters that a solution moves
        self.numbers = {atom: number for number, atom in enumerate(self.present)}

    def result(self) -> tuple[tuple[Factor, ...], tuple[Pinned, ...]]:
        """The factors and the pinned axes."""
        whole = bases(self.program, self.shapes, self.known, self.scalings)
        still = {*((gain, 0) for gain in whole.gains), *whole.frames}
        found: list[Factor] = []
        absorbed: set[Atom] = set()
        copied = {outer for atom in self.present if atom.reason is None for outer in self.depends[atom]}
        for atom in self.present:
            if atom in copied:  # what is independent for every index does not mix them
                continue
            if atom.reason is None and atom in whole.linear:
                found.append(self._factor("general_linear", atom, whole.linear[atom]))
                absorbed.add(atom)
            elif atom.reason is None and atom in whole.orthogonal:
                found.append(_rotation(self._factor("orthogonal", atom, {}), atom in whole.upright, whole))
                absorbed.add(atom)
        for kind, solutions, modulo in (("scaling", self.scalings, None), ("sign", self.signs, 2)):
            free = {atom: _apart(own, still, modulo) if atom in absorbed else own for atom, own in solutions.items()}
            for target, solution in self._independent(solutions, free, modulo):
                if target is None or target not in absorbed or target in whole.orthogonal:
                    found.append(self._named(kind, target, solution))
        movable = [atom for atom in self.present if atom.reason is None and atom not in absorbed]
        movable.sort(key=lambda atom: -len(self.depends[atom]))
        found += [self._factor("permutation", atom, {}) for atom in movable]
        factors = tuple(factor for factor in found if factor.slots)
        return factors, self._pinned(factors)

    def further(self, relaxed: Weights, kind: str) -> list[tuple[Atom | None, Solution, Factor]]:
        """What only a relaxed system has: the index set, the weights, and the factor."""
        exact, modulo = (self.scalings, None) if kind == "scaling" else (self.signs, 2)
        solutions, found = relaxed.solve(), []
        order = sorted(self.present, key=lambda atom: -len(self.depends[atom]))
        for target in (*order, None):
            span = _Span(modulo)
            inner = [atom for atom in self.present if target is None or target in self.depends[atom]]
            for system in (exact, solutions):
                for atom in (*inner, *((target,) if system is exact else ())):
                    for solution in system.get(atom, ()):
                        span.add(self._seen_from(target, atom, solution))
            new = [own for own in solutions.get(target, ()) if span.add(self._seen_from(target, target, own))]
            found += [(target, own, self._named(kind, target, own)) for own in new]
        return [entry for entry in found if entry[2].slots]

    def _independent(
        self,
        solutions: dict[Atom | None, list[Solution]],
        free: dict[Atom | None, list[Solution]],
        modulo: int | None,
    ) -> list[tuple[Atom | None, Solution]]:
        """The free solutions that move something, without those that finer ones already contain."""
        kept: list[tuple[Atom | None, Solution]] = []
        order = sorted(self.present, key=lambda atom: -len(self.depends[atom]))
        for target in (*order, None):
            span = _Span(modulo)
            for atom in (atom for atom in self.present if target is None or target in self.depends[atom]):
                for solution in solutions.get(atom, ()):
                    span.add(self._seen_from(target, atom, solution))
            own = free.get(target, ())
            kept += [(target, solution) for solution in own if span.add(self._seen_from(target, target, solution))]
        return kept

    def _seen_from(self, target: Atom | None, atom: Atom | None, solution: Solution) -> dict[Any, Fraction]:
        """What a weight solution of ``atom``, the same for all its indices, does to the parameters, per index of ``target``."""
        vector: dict[Any, Fraction] = defaultdict(Fraction)
        if id(solution) not in self._moved:
            slots = (slot for slot, weight in solution.items() if weight and slot[0] in self.blocks)
            self._moved[id(solution)] = list(dict.fromkeys(value for value, _, _ in slots)), solution
        for value in self._moved[id(solution)][0]:
            for block in self.blocks[value]:
                if atom is None:
                    vector[value, block] += solution.get((value, -1, 0), 0)
                    continue
                anchors = [(axis, number) for axis, number, leaf in block.leaves if leaf is target]
                for axis, number, leaf in block.leaves:
                    weight = solution.get((value, axis, number), 0) if leaf is atom else 0
                    if weight and target is None:
                        vector[value, block] += weight
                    elif weight:
                        vector[value, block, (axis, number) if atom is target else anchors[0]] += weight
        return {key: weight for key, weight in vector.items() if weight}

    def _named(self, kind: str, target: Atom | None, solution: Solution) -> Factor:
        return self._global(kind, solution) if target is None else self._factor(kind, target, solution)

    def _factor(self, kind: str, atom: Atom, solution: Solution) -> Factor:
        copies = sorted(self.depends[atom], key=self.numbers.__getitem__)
        shape = (*(copy.size for copy in copies), atom.size)
        slots = []
        for value, axis, number in self.present[atom]:
            weight = solution.get((value, axis, number), Fraction(0))
            if kind != "orthogonal" and kind != "permutation" and not weight:
                continue
            slots.append(slot_of(self.shapes, value, axis, number, copies, float(weight) if weight else 1.0))
        classes = tuple(self.numbers[a] for a in (*copies, atom))
        return Factor(kind, atom.size, int(np.prod(shape[:-1], dtype=int)), tuple(slots), shape, classes)

    def _global(self, kind: str, solution: Solution) -> Factor:
        """One factor that multiplies whole leaves."""
        slots = []
        for path, value in self.program.parameters.items():
            weight = solution.get((value, -1, 0))
            if weight:
                size = value.shape[0] if value.shape else 1
                axes = (0,) if value.shape else ()
                where = np.arange(size).reshape(1, size) if value.shape else np.zeros((1, 1), int)
                slots.append(Slot(_parts(path), 0, (0, size), float(weight), axes, where))
        return Factor(kind, 1, 1, tuple(slots), (1,), (-1,))

    def _pinned(self, factors: Sequence[Factor]) -> tuple[Pinned, ...]:
        moved = {(slot.path, slot.axis) for factor in factors for slot in factor.slots if factor.classes != (-1,)}
        pinned = []
        for path, value in self.program.parameters.items():
            for axis, atom in enumerate(self.shapes.axes(value)):
                if (_parts(path), axis) not in moved:
                    reasons = dict.fromkeys(leaf.reason for leaf in leaves(atom) if leaf.reason)
                    text = "; ".join(reasons) or ("a single index" if atom.size == 1 else "nothing acts on it")
                    pinned.append(Pinned(_parts(path), axis, text))
        return tuple(pinned)


def _rotation(factor: Factor, upright: bool, whole: Bases) -> Factor:
    """Rotations leave gains alone, and move what reads after them in their frame."""
    gains = {_parts(value.path) for value in whole.gains}
    frames = {(_parts(leaf.path), axis): (gain.path, power) for (leaf, axis), (gain, power) in whole.frames.items()}
    slots = tuple(
        slot._replace(frame=frames.get((slot.path, slot.axis))) for slot in factor.slots if slot.path not in gains
    )
    if not upright:
        return factor._replace(slots=slots)
    size = factor.size - 1  # on the complement of (1, ..., 1)
    return factor._replace(slots=slots, size=size, shape=(*factor.shape[:-1], size))


def _apart(solutions: Sequence[Solution], still: set[tuple[Value, int]], modulo: int | None) -> list[Solution]:
    """The combinations that leave alone all parameters but gains and what reads after them: these commute with rotations."""
    kept: list[Solution] = []
    pivots: list[tuple[Any, Solution]] = []
    for solution in solutions:
        current = dict(solution)
        for pivot, row in pivots:
            factor = current.get(pivot, Fraction(0)) / row[pivot]
            current = {
                k: current.get(k, Fraction(0)) - factor * row.get(k, Fraction(0))
                for k in dict.fromkeys((*current, *row))
            }
            current = {k: w % modulo if modulo else w for k, w in current.items()}
        moved = [k for k, w in current.items() if w and k[0].origin == "parameter" and k[:2] not in still]
        if moved:
            pivots.append((moved[0], current))
        elif any(current.values()):
            kept.append({k: w for k, w in current.items() if w})
    return kept


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))


def _blocks(shapes: Shapes, value: Value) -> list[Block]:
    axes = []
    for axis, atom in enumerate(shapes.axes(value)):
        found = leaves(atom)
        axes.append([[(axis, number, found[number]) for number in place.numbers] for place in places(atom)])
    return [Block(tuple(itertools.chain.from_iterable(choice))) for choice in itertools.product(*axes)]


def slot_of(shapes: Shapes, value: Value, axis: int, number: int, copies: Sequence[Atom], weight: float) -> Slot:
    """Find the units, and the copies that they depend on, in a leaf or another value."""
    involved = [axis]
    for copy in copies:
        for other, atom in enumerate(shapes.axes(value)):
            if (
                other != axis
                and any(leaf is copy for leaf in leaves(atom))
                and not _beside(shapes, value, axis, number, copy)
            ):
                involved.append(other)
    involved = sorted(set(involved))
    shape = [value.shape[a] for a in involved]
    collected = []
    for choice in itertools.product(*(places(shapes.axes(value)[a]) for a in involved)):
        labels: list[tuple[int, int, Atom]] = []
        flat = np.asarray(0)
        for a, place, size in zip(involved, choice, shape, strict=True):
            found = leaves(shapes.axes(value)[a])
            labels += [(a, n, found[n]) for n in place.numbers]
            flat = flat.reshape(flat.shape + (1,) * place.positions.ndim) * size + place.positions
        unit = [i for i, (a, n, _) in enumerate(labels) if (a, n) == (axis, number)]
        if not unit:
            continue
        order = [next(i for i, (_, _, leaf) in enumerate(labels) if leaf is copy) for copy in copies] + unit
        rest = [i for i in range(len(labels)) if i not in order]
        arranged = flat.transpose(order + rest)
        collected.append(arranged.reshape(*arranged.shape[: len(order)], -1))
    where = np.concatenate(collected, axis=-1)
    along = np.unravel_index(where.ravel(), shape)[involved.index(axis)]
    span = (int(along.min()), int(along.max()) + 1)
    return Slot(_parts(value.path), axis, span, weight, tuple(involved), where)


def _beside(shapes: Shapes, value: Value, axis: int, number: int, copy: Atom) -> bool:
    """Whether the copies lie on the same axis as the units."""
    found = leaves(shapes.axes(value)[axis])
    return any(
        number in place.numbers and any(found[n] is copy for n in place.numbers)
        for place in places(shapes.axes(value)[axis])
    )


def _dependencies(program: Program, shapes: Shapes, present: Iterable[Atom]) -> dict[Atom, set[Atom]]:
    """For every leaf the leaves that it may depend on: they accompany it in every value, and are not summed over without it."""
    values = dict.fromkeys([*program.parameters.values(), *program.inputs, *program.outputs])
    for equation in program.equations:
        values.update(dict.fromkeys([*equation.inputs, *equation.outputs]))
    company: dict[Atom, set[Atom]] = {}

    def restrict(atom: Atom, others: set[Atom]) -> None:
        company[atom] = company[atom] & others if atom in company else set(others)

    for value in values:
        axes = [(leaves(atom), places(atom)) for atom in shapes.axes(value)]
        everywhere = [
            set.intersection(*({found[n] for n in place.numbers} for place in blocks)) for found, blocks in axes
        ]
        loops = {shapes.loop(number).root() for number in value.loops}
        counted: dict[Atom, int] = defaultdict(int)
        for found, _ in axes:
            for leaf in found:
                counted[leaf] += 1
        for i, (found, blocks) in enumerate(axes):
            elsewhere = set().union(*(everywhere[j] for j in range(len(axes)) if j != i)) | loops
            repeated = {leaf for j in range(len(axes)) if j != i for leaf in axes[j][0] if axes[j][0].count(leaf) > 1}
            for place in blocks:
                here = [found[n] for n in place.numbers]
                for leaf in here:
                    spread = counted[leaf] - found.count(leaf) + here.count(leaf) > 1
                    others = {leaf_ for leaf_ in {*here, *elsewhere} if leaf_ is not leaf and here.count(leaf_) < 2}
                    doubled = {o for o in others if (o in here) + (o in elsewhere) > 1}
                    restrict(leaf, set() if spread else others - repeated - doubled)
    for equation in program.equations:
        if equation.primitive != "dot_general":
            continue
        contracted, batch, _, _ = dot_axes(equation)
        one = equation.inputs[0]
        together = {leaf for i, _ in (*contracted, *batch) for leaf in leaves(shapes.axes(one)[i])}
        together |= {shapes.loop(number).root() for value in equation.outputs for number in value.loops}
        for i, _ in contracted:
            for leaf in leaves(shapes.axes(one)[i]):
                restrict(leaf, together)
    chosen = set(present)
    result: dict[Atom, set[Atom]] = {atom: company.get(atom, set()) & chosen for atom in present}
    for atom in present:  # where two accompany each other, the later one is the inner
        for other in list(result[atom]):
            if atom in result[other]:
                result[atom].discard(other)
    return result


class _Span:
    """A growing space of sparse vectors; :meth:`add` tells whether a vector was new."""

    def __init__(self, modulo: int | None) -> None:
        self.modulo = modulo
        self.pivots: dict[Any, dict[Any, Fraction]] = {}

    def add(self, vector: dict[Any, Fraction]) -> bool:
        current = self._clean(vector)
        while current:
            pivot = next((key for key in current if key in self.pivots), None)
            if pivot is None:
                break
            factor = current[pivot] / self.pivots[pivot][pivot] if not self.modulo else Fraction(1)
            for key, value in self.pivots[pivot].items():
                current[key] = current.get(key, Fraction(0)) - factor * value
            current = self._clean(current)
        if not current:
            return False
        pivot = next(iter(current))
        for owner, row in self.pivots.items():
            if pivot in row:
                factor = row[pivot] / current[pivot] if not self.modulo else Fraction(1)
                merged = dict(row)
                for key, value in current.items():
                    merged[key] = merged.get(key, Fraction(0)) - factor * value
                self.pivots[owner] = self._clean(merged)
        self.pivots[pivot] = current
        return True

    def _clean(self, vector: dict[Any, Fraction]) -> dict[Any, Fraction]:
        values = {key: value % self.modulo if self.modulo else value for key, value in vector.items()}
        return {key: value for key, value in values.items() if value}
