"""Networks on their way along their orbits towards others, many at once, on the host: block after block to where it fits best, never further away."""

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsym.alignment.blocks import Block, Place, Scores, assigned, best, scores, sorted_distances
from jaxsym.alignment.plan import Plan
from jaxsym.symmetry.group import Element, Symmetry
from jaxsym.symmetry.units import GOLDEN, Leaves, Parts, floating, framed, spread

PASSES = 100
"""Over all blocks, at most."""
SETTLED = 1e-3
"""A pass that gains less than this part of what is left is the last, where nothing else is said."""
ROUNDING = 1e4
"""A step that gains less than so many roundings of what it moves gains nothing."""
DOUBTED = 16
"""Units that are no further apart, in roundings of the squares of the largest, are not told apart by their weights."""
NESTED = 16
"""Units with units inside, such as heads, are tried in every place up to so many of them."""


class Walks:
    """Networks on their way: leaves ``[networks, *leaf]``, and the elements that have brought them there."""

    def __init__(self, sym: Symmetry, leaves: Leaves, elements: Sequence[Element]) -> None:
        self.sym, self.leaves, self.elements = sym, leaves, list(elements)

    @classmethod
    def begun(cls, sym: Symmetry, networks: Sequence[Leaves], elements: Sequence[Element]) -> "Walks":
        """After each network was moved by its element."""
        moved = [
            leaves if g is Plan.of(sym).identity else sym.leaves(sym.act(g, leaves))
            for g, leaves in zip(elements, networks, strict=True)
        ]
        return cls(sym, stack(moved), elements)

    def narrowed(self) -> "Walks":
        """In float32."""
        leaves = {path: leaf.astype(np.float32) if floating(leaf) else leaf for path, leaf in self.leaves.items()}
        return Walks(self.sym, leaves, self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def size(self) -> int:
        """How many numbers the networks are made of."""
        return sum(leaf.size for leaf in self.leaves.values())

    def copy(self) -> "Walks":
        """Another one from here."""
        return Walks(self.sym, self.leaves, self.elements)

    def __getitem__(self, which: Sequence[int] | Int[np.ndarray, " some"]) -> "Walks":
        chosen = {path: leaf[which] for path, leaf in self.leaves.items()}
        return Walks(self.sym, chosen, [self.elements[i] for i in which])

    def put(self, which: Sequence[int] | Int[np.ndarray, " some"], walks: "Walks") -> None:
        """Some networks are where others are; in place."""
        for place, i in enumerate(which):
            self.elements[i] = walks.elements[place]
            for path, leaf in self.leaves.items():
                leaf[i] = walks.leaves[path][place]

    def go(self, steps: Iterable[Parts], leaves: Leaves, moved: Bool[np.ndarray, " networks"] | None = None) -> None:
        """Some networks act with some factors, one step after the other, and come to ``leaves``."""
        self.leaves = leaves
        for parts in steps:
            for i in range(len(self)) if moved is None else np.flatnonzero(moved):
                own = {number: part[i] for number, part in parts.items()}
                self.elements[i] = self.sym.then(own, self.elements[i])


def stack(networks: Sequence[Leaves]) -> Leaves:
    """Leaves ``[networks, *leaf]``; of one network views."""
    if len(networks) == 1:
        return {path: np.asarray(leaf)[None] for path, leaf in networks[0].items()}
    return {path: np.stack([np.asarray(leaves[path]) for leaves in networks]) for path in networks[0]}


def first(leaves: Leaves) -> Leaves:
    """Those of the first network."""
    return {path: leaf[0] for path, leaf in leaves.items()}


def closeness(some: Leaves, others: Leaves, paths: Iterable[str]) -> Float[np.ndarray, " networks"]:
    """Minus half the squared distance of leaves ``[networks, *leaf]``, over some of them."""
    total: Any = np.zeros(len(next(iter(others.values()))))
    for path in paths:
        apart = (some[path] - others[path]).reshape(len(total), -1)
        total -= 0.5 * np.vecdot(apart, apart)
    return total


class Problem:
    """Networks to be moved onto, in frames where what is left of the group is compact: one for all walks, or one for each."""

    def __init__(self, sym: Symmetry, a: Leaves) -> None:
        self.sym, self.plan = sym, Plan.of(sym)
        self.a, self.seen = a, self._framed(a)
        self.real = [path for path, leaf in a.items() if floating(leaf)]
        self._units: dict[int, Any] = {}

    def towards(self, a: Leaves) -> "Problem":
        """The same group, with other networks to be moved onto."""
        return Problem(self.sym, a)

    def _framed(self, leaves: Leaves) -> Leaves:
        if self.plan.local:
            return leaves
        count = len(next(iter(leaves.values())))
        return stack([framed(self.sym, {path: leaf[i] for path, leaf in leaves.items()}) for i in range(count)])

    def values(self, leaves: Leaves, paths: Iterable[str] | None = None) -> Float[np.ndarray, " networks"]:
        """Minus half the squared distance, over some leaves."""
        return closeness(self.a, leaves, self.real if paths is None else paths)

    def solve(
        self,
        walks: Walks,
        networks: Sequence[Leaves],
        canonical: Callable[[], Sequence[Element]] | None = None,
        further: Sequence[Element] = (),
        settled: float = SETTLED,
    ) -> tuple[Walks, list[list[float]], list[str]]:
        """The best of several starts: the networks that were moved, the values on their ways, and where each began.

        Of a plain group the start that is nearest is followed; of others, and with ``further`` ones, all of them.
        """
        anchored, still = self.anchored(walks)
        starts = {"identity": walks, "anchored": anchored}
        if not self.plan.moored:
            starts["sorted"] = self._sorted(walks)
        if canonical is not None and self.plan.entangled:
            starts["canonical"] = Walks.begun(self.sym, networks, canonical())
        for number, element in enumerate(further):
            mixed = self._compact(element)
            elements = [self.sym.compose(mixed, own) for own in walks.elements]
            starts[f"restart {number}"] = Walks.begun(self.sym, networks, elements)
        names, ways = list(starts), [walk.copy() for walk in starts.values()]
        if self.plan.entangled or further:
            histories = [self.ascend(way, settled=settled) for way in ways]
            winners = np.argmax([[history[-1] for history in each] for each in histories], axis=0)
            return _chosen(ways, winners), [histories[k][i] for i, k in enumerate(winners)], [names[k] for k in winners]
        values = np.array([self.values(way.leaves) for way in ways])
        winners = values.argmax(axis=0)
        chosen, found = _chosen(ways, winners), [names[k] for k in winners]
        still = still if set(found) == {"anchored"} else set()
        return chosen, self.ascend(chosen, values.max(axis=0), settled, still=still), found

    def _compact(self, element: Element) -> Element:
        """The permutations, signs and rotations of an element alone; of a change of basis the rotation that is in it."""
        movers = {i for block in self.plan.blocks for i in block.members}
        parts: list[Any] = [
            np.asarray(part) if i in movers else self.plan.identity[i] for i, part in enumerate(element)
        ]
        for block in self.plan.blocks:
            if block.turn is not None:
                left, _, right = np.linalg.svd(parts[block.turn])
                parts[block.turn] = left @ right
        return tuple(parts)

    def ascend(
        self,
        walks: Walks,
        values: Float[np.ndarray, " networks"] | None = None,
        settled: float = SETTLED,
        free: Mapping[Block, Block] | None = None,
        still: Collection[Block] = (),
    ) -> list[list[float]]:
        """Move block after block until a pass gains nothing more; the values of each network's objective, the first of which may be known.

        A pass goes back along the order of the anchored start, in which the last blocks have seen the most. Blocks that share no leaf do not see one
        another: one after the other is the same as at once. Of some blocks parts alone may be ``free``; some may be where they are best, and are left
        ``still`` until another one moves that they see.
        """
        free = {block: block for block, _ in reversed(self.plan.anchored)} if free is None else free
        values = self.values(walks.leaves) if values is None else values
        history = [[value] for value in values.tolist()]
        going = np.ones(len(walks), bool)
        stale = {block: bool(part.members) and block not in still for block, part in free.items()}
        for _ in range(PASSES):
            for block, part in free.items():
                if stale[block]:
                    moved = self.move(block, part, walks, going)
                    stale[block] = moved and not self.plan.linear[block]
                    if moved:
                        stale |= {
                            other: bool(free[other].members) for other in self.plan.stirred[block] if other in free
                        }
            before, values = values, np.maximum(values, self.values(walks.leaves))  # where it falls it is by rounding
            for i in np.flatnonzero(going):
                history[i].append(float(values[i]))
            going &= values - before > -settled * values
            if not going.any() or not any(stale.values()):
                break
        return history

    def move(self, block: Block, free: Block, walks: Walks, going: Bool[np.ndarray, " networks"]) -> bool:
        """Move what is free of a block to where it is best, in those networks that go on and come nearer; whether there are any."""
        if self.plan.linear[block]:
            found = self._scores(block, walks.leaves)
            if found is None:
                return False
            parts = best(free, found)
            better = going & _gained(free, found, parts)
            steps = [self._kept(parts, better)]
            moved = self.along(steps, walks.leaves) if better.any() else {}
        else:
            steps = self._steps(block, free, walks.leaves)
            moved = self.along(steps, walks.leaves)
            paths = [path for path in self.real if moved[path] is not walks.leaves[path]]
            better = going & (self.values(moved, paths) > self.values(walks.leaves, paths))
            moved = {path: _where(better, leaf, walks.leaves[path]) for path, leaf in moved.items()}
        if better.any():
            walks.go(steps, moved, better)
        return bool(better.any())

    def _kept(self, parts: Parts, better: Bool[np.ndarray, " networks"]) -> Parts:
        """The identity in those networks that are no better."""
        return parts if better.all() else {i: _where(better, part, self.plan.identity[i]) for i, part in parts.items()}

    def along(self, steps: Iterable[Parts], leaves: Leaves) -> Leaves:
        """The leaves after some steps; those that do not move are the same objects."""
        for parts in steps:
            leaves = leaves | (self._plainly if all(i in self.plan.axes for i in parts) else self._anyhow)(
                parts, leaves
            )
        return leaves

    def _plainly(self, parts: Parts, leaves: Leaves) -> Leaves:
        """Along whole axes; signs before permutations, as a group acts."""
        moved: Leaves = {}
        for i in sorted(parts):
            for path, axis in self.plan.axes[i]:
                leaf: Any = moved.get(path, leaves[path])
                shape = [len(leaf), *([1] * (axis - 1)), -1, *([1] * (leaf.ndim - axis - 1))]
                if self.sym.factors[i].kind == "sign":
                    moved[path] = leaf * parts[i].reshape(shape)
                elif len(leaf) == 1:
                    moved[path] = leaf.take(parts[i][0], axis)
                else:
                    moved[path] = np.take_along_axis(leaf, parts[i].reshape(shape), axis)
        return moved

    def _anyhow(self, parts: Parts, leaves: Leaves) -> Leaves:
        order = tuple(sorted(parts))
        some = self.plan.part(order)
        return stack(
            [
                some.act(tuple(parts[j][i] for j in order), {path: leaves[path][i] for path in some.shapes})
                for i in range(len(next(iter(leaves.values()))))
            ]
        )

    def _scores(self, block: Block, leaves: Leaves, known: Iterable[str] | None = None) -> Scores | None:
        """Over all leaves, or some; None where they hold no real numbers."""
        known = self.real if known is None else known
        some = [place for place in self.plan.places[block] if place.path in self.real and place.path in known]
        return scores(some, self._stayed, self._framed(leaves)) if some else None

    def _stayed(self, place: Place) -> Any:
        """Units of the networks that stay."""
        if id(place) not in self._units:
            self._units[id(place)] = place.units(self.seen[place.path])
        return self._units[id(place)]

    def _steps(self, block: Block, free: Block, leaves: Leaves) -> list[Parts]:
        """The best that what is free of a block can do, all others held but what is inside its units."""
        inner = self.plan.inside[block]
        if free.mover is None or not inner or self.sym.factors[block.members[0]].size > NESTED:
            found = self._scores(block, leaves)
            return [] if found is None else [best(free, found)]
        outer = self._outer(block, inner, leaves)
        return [outer, *self._inner(inner, self.along([outer], leaves))]

    def _inner(self, inner: Sequence[Block], leaves: Leaves) -> list[Parts]:
        """The best of what is inside some units, one block after the other."""
        found: list[Parts] = []
        for other in inner:
            steps = self._steps(other, other, leaves)
            leaves = self.along(steps, leaves)
            found += steps
        return found

    def _outer(self, block: Block, inner: Sequence[Block], leaves: Leaves) -> Parts:
        """The order of units of which each is tried in every place, with what is inside it moved as is best there."""
        mover = block.mover
        assert mover is not None
        factor, count = self.sym.factors[mover], len(next(iter(leaves.values())))
        rows, gain = np.arange(factor.size), np.zeros((count, *factor.shape, factor.size))
        for turn in rows:
            order = np.broadcast_to((rows + turn) % factor.size, (count, *factor.shape))
            moved = self.along([{mover: order}], leaves)
            there = self._framed(self.along(self._inner(inner, moved), moved))
            for sorting in self.plan.sortings(block):
                place = sorting.place
                if place.path in self.real:
                    met = place.units(self.seen[place.path]) * place.units(there[place.path])
                    gain[..., rows, (rows + turn) % factor.size] += met.sum(-1)
        return {mover: assigned(gain)}

    def _sorted(self, walks: Walks) -> Walks:
        """After each permutation from distances that no other one changes: outer ones first, then those of what is inside."""
        walks = walks.copy()
        for some in self.deeper():
            there = self._framed(walks.leaves)
            found = {block.mover: self._order(block, there) for block in some}
            parts: Parts = {i: order for i, order in found.items() if i is not None and order is not None}
            walks.go([parts], self.along([parts], walks.leaves))
        return walks

    def _order(self, block: Block, there: Leaves) -> Int[np.ndarray, "networks *copies n"] | None:
        """Of a permutation, by distances that no other one changes."""
        some = [sorting for sorting in self.plan.sortings(block) if sorting.place.path in self.real]
        return assigned(-sorted_distances(some, self.seen, there)) if some else None

    def deeper(self) -> Iterator[list[Block]]:
        """The blocks with a permutation: first those of units inside no others, then those inside these, and so on."""
        movers = [block for block in self.plan.blocks if block.mover is not None]
        for depth in sorted({len(block.classes) for block in movers}):
            yield [block for block in movers if len(block.classes) == depth]

    def matched(self, walks: Walks, similar: Callable[[Leaves, Sequence[Block]], Mapping[Block, Scores]]) -> Walks:
        """Permutations and signs by what units compute, outer ones before what is inside them; then by weights what is not seen there."""
        free = {block: block for block in self.plan.blocks}
        for some in self.deeper():
            found = similar(first(walks.leaves), some)
            parts: Parts = {}
            for block, alike in found.items():
                seen = alike.flipped.any()
                parts |= best(block if seen else block._replace(sign=None), alike)
                free[block] = block._replace(mover=None, sign=None if seen else block.sign)
            walks.go([parts], self.along([parts], walks.leaves))
            self.ascend(walks, free={block: block for block in some if block not in found})
        self.ascend(walks, free=free)
        return walks

    def anchored(self, walks: Walks) -> tuple[Walks, set[Block]]:
        """After block upon block by what is known of it: the leaves that no block moves which is still to come, but for units that could not be told apart.

        Blocks with such units are taken up again at the end, by all leaves, of which the units that are still in doubt say nothing. Returned with the blocks of
        which all was known: they are where they are best.
        """
        walks, clear, still = walks.copy(), self, set()
        doubted: dict[Block, Bool[np.ndarray, "networks *copies n"]] = {}
        for block, known in self.plan.anchored:
            found = clear._scores(block, walks.leaves, known)
            parts: Parts = {}
            if found is not None:
                parts = best(block, found)
                if known != self.plan.paths[block]:  # blocks to come see its units too
                    doubtful = clear._doubtful(block, known)
                    if doubtful is not None:
                        doubted[block] = doubtful
                        clear = clear._without({block: doubtful})
                elif clear is self and self.plan.linear[block]:
                    still.add(block)
            elif block.mover is not None and (order := self._order(block, self._framed(walks.leaves))) is not None:
                parts = {block.mover: order}
            if parts:
                walks.go([parts], self.along([parts], walks.leaves))
        for block in self._again(walks, doubted):
            still.difference_update(self.plan.stirred[block])
        return walks, still

    def _again(self, walks: Walks, doubted: Mapping[Block, Bool[np.ndarray, "networks *copies n"]]) -> set[Block]:
        """Take up blocks with units in doubt, as long as there are fewer of them each time, then as they are; those that moved. In place."""
        moved, left, before = set(), dict(doubted), np.inf
        while left and (count := sum(int(units.sum()) for units in left.values())) < before:
            before = count
            for block in list(left):
                units = left.pop(block)
                clear = self._without(left)
                doubtful = clear._doubtful(block, self.plan.paths[block])
                if clear.move(block, block, walks, _any(units, len(walks))):
                    moved.add(block)
                if doubtful is not None and (doubtful & units).any():
                    left[block] = doubtful & units
        moved |= {block for block, units in left.items() if self.move(block, block, walks, _any(units, len(walks)))}
        return moved

    def _doubtful(self, block: Block, known: Iterable[str]) -> Bool[np.ndarray, "networks *copies n"] | None:
        """The units of the networks that stay of which so little is known that rounding decides: nothing, not their sign, or nearly the same as of another one.

        What an assignment gains by the right order of two units is half their squared distance. Only those next to each other by one number for each are compared.
        """
        if block.turn is not None:
            return None
        found = [place for place in self.plan.places[block] if place.path in self.real and place.path in known]
        marks: list[Any] = [0.0, 0.0]
        sizes: list[Any] = [0.0, 0.0]
        for number, place in enumerate(found):
            units = self._stayed(place)
            marks[place.odd] = marks[place.odd] + units @ _line(number, units.shape[-1], units.dtype)
            sizes[place.odd] = sizes[place.odd] + np.vecdot(units, units)
        mark, size = marks[0] + np.abs(marks[1]), sizes[0] + sizes[1]
        rounding = DOUBTED * np.finfo(size.dtype).eps
        least = np.broadcast_to(rounding * size.max(-1, keepdims=True), size.shape)
        doubtful = (size if block.sign is None else sizes[1]) <= least
        if block.mover is not None:
            order = np.argsort(mark, axis=-1)
            gaps = np.diff(np.take_along_axis(mark, order, axis=-1), axis=-1)
            *where, rank = np.nonzero(gaps <= 2 * np.sqrt(rounding) * np.abs(mark).max(-1, keepdims=True))
            if rank.size:
                one, other = ((*where, order[(*where, rank + step)]) for step in (0, 1))
                same = self._apart(found, one, other) <= least[one]
                for which in (one, other):
                    doubtful[tuple(axis[same] for axis in which)] = True
        return doubtful if doubtful.any() else None

    def _apart(self, some: Iterable[Place], one: Any, other: Any) -> Float[np.ndarray, " pairs"]:
        """The squared distances of pairs of units of the networks that stay, up to their signs."""
        straight: Any = np.zeros(len(one[-1]))
        sizes, met = straight, straight
        for place in some:
            units, others = (self._stayed(place)[which] for which in (one, other))
            if place.odd:
                sizes, met = sizes + np.vecdot(units, units) + np.vecdot(others, others), met + np.vecdot(units, others)
            else:
                straight = straight + np.vecdot(units - others, units - others)
        return straight + sizes - 2 * np.abs(met)

    def _without(self, doubted: Mapping[Block, Bool[np.ndarray, "networks *copies n"]]) -> "Problem":
        """The same problem, in which some units say nothing."""
        if not doubted:
            return self
        seen = dict(self.seen)
        for block, units in doubted.items():
            for place in self.plan.places[block]:
                leaf, shape = seen[place.path], self.sym.shapes[place.path]
                told = [spread(np.where(own, 0.0, 1.0), place.slot, shape, 1.0) for own in units]
                seen[place.path] = np.stack([one * own for one, own in zip(leaf, told, strict=True)]).astype(leaf.dtype)
        other = copy.copy(self)
        other.seen, other._units = seen, {}
        return other


def _any(units: Bool[np.ndarray, "networks *copies n"], count: int) -> Bool[np.ndarray, " networks"]:
    """The networks with some of these units; one network broadcasts."""
    return np.broadcast_to(units.reshape(len(units), -1).any(axis=1), count)


@functools.lru_cache
def _line(number: int, size: int, dtype: np.dtype) -> Float[np.ndarray, " size"]:
    """So many numbers that tell units apart, others at each place."""
    line = (1 + number) * (0.5 + ((1 + number + np.arange(size)) * GOLDEN) % 1)
    return line.astype(dtype)


def _gained(block: Block, found: Scores, parts: Parts) -> Bool[np.ndarray, " networks"]:
    """Whether a step of a block on which the objective is linear gains more than rounding."""
    straight, flipped = found
    before = np.einsum("...ii->...i", straight) + np.einsum("...ii->...i", flipped)
    if block.mover is None:
        after = np.einsum("...ii->...i", straight + np.abs(flipped))
    else:
        order = parts[block.mover][..., None]
        after = sum(np.take_along_axis(one, order, axis=-1)[..., 0] for one in (straight, np.abs(flipped)))
    change = np.subtract(after, before, dtype=np.float64).reshape(len(after), -1)
    size = np.where(change != 0, np.abs(after).reshape(change.shape), 0)
    return change.sum(1) > ROUNDING * np.finfo(straight.dtype).eps * size.sum(1)


def _where(better: Bool[np.ndarray, " networks"], one: Any, other: Any) -> Any:
    """For each network one of two arrays."""
    if one is other or better.all():
        return one
    return np.where(better.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def _chosen(walks: Sequence[Walks], which: Int[np.ndarray, " networks"]) -> Walks:
    """For each network one of several ways."""
    if (which == which[0]).all():
        return walks[which[0]]
    rows = np.arange(len(which))
    leaves = {path: np.stack([walk.leaves[path] for walk in walks])[which, rows] for path in walks[0].leaves}
    return Walks(walks[0].sym, leaves, [walks[k].elements[i] for i, k in enumerate(which)])
