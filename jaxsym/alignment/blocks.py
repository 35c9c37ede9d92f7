"""Units that move together: how well those of one network fit those of another, and the best way to move them.

A block is a set of units with the permutation, signs and rotations that act on it. What is left of a group when translations, rescalings and changes of
basis have been undone (:func:`jaxsym.symmetry.gauged`) is compact, so that the distance of two networks is least where their inner product is largest.
With all other blocks held, that is a linear function of a block's permutation, signs or rotation: an assignment, or a Procrustes problem.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int

from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.units import TURNS, Leaves, Parts, cover, gathered, numbers, slots, upright


class Block(NamedTuple):
    """The factors that act on the same units."""

    classes: tuple[int, ...]
    mover: int | None = None
    """The number of the permutation."""
    sign: int | None = None
    turn: int | None = None
    """Of a rotation, or of a change of basis of which a rotation is left."""

    @property
    def roles(self) -> dict[str, int]:
        """Role -> number of the factor."""
        found = {"mover": self.mover, "sign": self.sign, "turn": self.turn}
        return {role: i for role, i in found.items() if i is not None}

    @property
    def members(self) -> list[int]:
        """The numbers of the factors."""
        return list(self.roles.values())


def blocks(sym: Symmetry) -> tuple[Block, ...]:
    """All blocks of a group, in the order in which their units appear in the parameters."""
    found: dict[tuple[Any, ...], Block] = {}
    roles = {"permutation": "mover", "sign": "sign"} | dict.fromkeys(TURNS, "turn")
    for i in numbers(sym, *roles):
        factor = sym.factors[i]
        key: tuple[Any, ...] = (factor.classes, factor.shape)
        role = roles[factor.kind]
        if factor.classes == (-1,) or (key in found and getattr(found[key], role) is not None):
            key = (*key, i)
        found[key] = Block(factor.classes, **(found.get(key, Block(())).roles | {role: i}))
    place = {path: position for position, path in enumerate(sym.shapes)}

    def first(block: Block) -> list[int]:
        return sorted(place[path] for _, path, _ in slots(sym, block.members))

    return tuple(sorted(found.values(), key=first))


def inside(block: Block, others: Sequence[Block]) -> list[Block]:
    """The blocks of units within the units of a block: those of which each of its units has copies."""
    return [other for other in others if block.mover is not None and block.classes[-1] in other.classes[:-1]]


class Place(NamedTuple):
    """The units of a block in one leaf, of many networks at once."""

    path: str
    slot: Slot
    factor: Factor
    odd: bool
    """Whether the block's sign moves them."""
    order: tuple[int, ...]
    """Of the axes of a leaf ``[networks, *leaf]``: those of the units first."""
    every: bool
    """Whether the units are all that there is on these axes, in order."""

    def units(self, leaf: Any) -> Any:
        """``[networks, *copies, size, rest]``, as rotations see them."""
        slot, first = self.slot, leaf.transpose(self.order)
        if not self.every:
            positions = math.prod(first.shape[1 : 1 + len(slot.axes)])
            first = first.reshape(len(leaf), positions, -1)[:, slot.where]
        return upright(self.factor, first.reshape(len(leaf), *slot.where.shape[:-1], -1))


def places(sym: Symmetry, block: Block, members: Iterable[int] | None = None) -> tuple[Place, ...]:
    """Where the units of a block are, each place once; those of some of its factors alone."""
    lead = next(i for i in (block.turn, block.mover, block.sign) if i is not None)
    odd = {_where(slot) for _, _, slot in slots(sym, [block.sign])} if block.sign is not None else set()
    found = {}
    for _, path, slot in slots(sym, block.members if members is None else members):
        shape = sym.shapes[path]
        ahead = tuple(1 + axis for axis in slot.axes)
        order = (0, *ahead, *(axis for axis in range(1, 1 + len(shape)) if axis not in ahead))
        every = slot.fills(math.prod(shape[axis] for axis in slot.axes))
        found[_where(slot)] = Place(path, slot, sym.factors[lead], _where(slot) in odd, order, every)
    return tuple(found.values())


class Scores(NamedTuple):
    """Inner products of the units of two networks, ``[*copies, size, size]``."""

    straight: Float[Array, "*copies n n"]
    """Over the entries that no sign of the block moves."""
    flipped: Float[Array, "*copies n n"]
    """Over those that it moves."""


def scores(some: Iterable[Place], a: Callable[[Place], Any], b: Leaves) -> Scores:
    """How well each unit of one network goes with each of another, in their frames; where a leaf holds the units on two axes, to first order.

    Parameters
    ----------
    some
        The places that count.
    a
        Of a place, the units ``[networks, *copies, size, rest]`` of the networks that stay; one network broadcasts.
    b
        Leaves ``[networks, *leaf]`` of those that move.
    """
    sums: list[Any] = [None, None]
    for place in some:
        product = a(place) @ place.units(b[place.path]).swapaxes(-1, -2)
        sums[place.odd] = product if sums[place.odd] is None else sums[place.odd] + product
    some_sum = next(total for total in sums if total is not None)
    straight: Any
    flipped: Any
    straight, flipped = [np.zeros_like(some_sum) if total is None else total for total in sums]
    return Scores(straight, flipped)


def best(block: Block, found: Scores) -> Parts:
    """The permutation and signs, or the rotation, of the largest inner product."""
    straight, flipped = (np.asarray(score) for score in found)
    parts: Parts = {}
    if block.turn is not None:
        left, _, right = np.linalg.svd(straight + flipped)
        return {block.turn: left @ right}
    if block.mover is None:
        assert block.sign is not None
        diagonal = np.einsum("...ii->...i", flipped)
        return {block.sign: np.where(diagonal < 0, -1.0, 1.0)}
    order = assigned(straight + np.abs(flipped))
    parts[block.mover] = order
    if block.sign is not None:
        met = np.take_along_axis(flipped, order[..., None], axis=-1)[..., 0]
        signs = np.ones(order.shape)
        np.put_along_axis(signs, order, np.where(met < 0, -1.0, 1.0), axis=-1)
        parts[block.sign] = signs  # of the units before they are permuted
    return parts


def assigned(gain: Float[np.ndarray, "*copies n n"]) -> Int[np.ndarray, "*copies n"]:
    """For each row the column that it is assigned to, at the largest sum (:func:`scipy.optimize.linear_sum_assignment`).

    It is found sooner without what all of a row or of a column have in common, and when rows with much to lose come first; the best remains the best.
    """
    flat = gain.reshape(-1, *gain.shape[-2:])
    flat = flat - flat.max(-1, keepdims=True, initial=-np.inf)
    flat -= flat.max(-2, keepdims=True, initial=-np.inf)
    found = np.empty(flat.shape[:-1], int)
    for order, matrix in zip(found, flat, strict=True):
        rows = np.argsort(matrix.sum(-1), kind="stable")
        order[rows] = scipy.optimize.linear_sum_assignment(matrix[rows], maximize=True)[1]
    return found.reshape(gain.shape[:-1])


class Sorting(NamedTuple):
    """How a place is made such that no permutation or sign of another block changes it."""

    place: Place
    unsigned: bool
    length: bool
    """Rotations act on it: its length alone is left."""
    ordered: bool

    def invariant(self, leaf: Any) -> Any:
        """``[networks, *copies, size, rest]``."""
        units = self.place.units(leaf)
        units = np.abs(units) if self.unsigned else units
        if self.length:
            return np.sqrt((units**2).sum(-1, keepdims=True))
        return np.sort(units, axis=-1) if self.ordered else units


def sortings(sym: Symmetry, block: Block) -> tuple[Sorting, ...]:
    """Of all places of a block's permutation."""
    assert block.mover is not None
    others = [i for i in numbers(sym, "permutation", "sign", *TURNS) if i not in block.members]
    moved, flips, turned = (cover(sym, some) for some in (others, numbers(sym, "sign"), numbers(sym, *TURNS)))
    own = cover(sym, [block.mover])
    found = []
    for place in places(sym, block, [block.mover]):
        unsigned, length, mixed = (bool(gathered(of[place.path], place.slot).any()) for of in (flips, turned, moved))
        again = bool(gathered(own[place.path], place.slot).max(initial=0) > 1)
        found.append(Sorting(place._replace(factor=sym.factors[block.mover]), unsigned, length, mixed or again))
    return tuple(found)


def sorted_distances(some: Iterable[Sorting], a: Leaves, b: Leaves) -> Float[np.ndarray, "networks *copies n n"]:
    """Squared distances between sorted weight vectors, which no permutation or sign of another block changes."""
    total: Any = 0
    for sorting in some:
        one, other = (sorting.invariant(leaves[sorting.place.path]) for leaves in (a, b))
        squares = (one**2).sum(-1)[..., :, None] + (other**2).sum(-1)[..., None, :]
        total = total + squares - 2 * one @ other.swapaxes(-1, -2)
    return total


def _where(slot: Slot) -> tuple[Any, ...]:
    return (slot.path, slot.axis, slot.span)
