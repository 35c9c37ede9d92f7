"""Units that move together: how well those of one network fit those of another, and the best way to move them.

A block is a set of units with the permutation, signs and rotations that act on it. What is left of a group when translations, rescalings and changes of
basis have been undone (:func:`jaxsym.symmetry.gauged`) is compact, so that the distance of two networks is least where their inner product is largest.
With all other blocks held, that is a linear function of a block's permutation, signs or rotation: an assignment, or a Procrustes problem.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int

from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.units import TURNS, Leaves, Parts, cover, floating, gathered, numbers, slots, upright


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


def apart(sym: Symmetry, some: Sequence[Block]) -> list[list[Block]]:
    """The blocks in groups of which no two share a leaf, so that they can be moved at once."""
    groups: list[tuple[set[str], list[Block]]] = []
    for block in some:
        paths = {path for _, path, _ in slots(sym, block.members)}
        free = next((group for group in groups if group[0].isdisjoint(paths)), None)
        if free is None:
            groups.append((paths, [block]))
        else:
            free[0].update(paths)
            free[1].append(block)
    return [members for _, members in groups]


class Scores(NamedTuple):
    """Inner products of the units of two networks, ``[*copies, size, size]``."""

    straight: Float[Array, "*copies n n"]
    """Over the entries that no sign of the block moves."""
    flipped: Float[Array, "*copies n n"]
    """Over those that it moves."""


def scores(sym: Symmetry, block: Block, a: Leaves, b: Leaves) -> Scores:
    """How well each unit of ``a`` goes with each of ``b``, in their frames; where a leaf holds the units on two axes, to first order."""
    lead = block.turn if block.turn is not None else block.mover
    lead = block.sign if lead is None else lead
    assert lead is not None
    factor = sym.factors[lead]
    odd = {_place(slot) for _, _, slot in slots(sym, [block.sign])} if block.sign is not None else set()
    units = {_place(slot): (path, slot) for _, path, slot in slots(sym, block.members)}
    straight: Any = np.zeros((*factor.shape, factor.size))
    flipped: Any = np.zeros((*factor.shape, factor.size))
    for place, (path, slot) in units.items():
        if path in a and floating(a[path]):
            one, other = (upright(factor, gathered(leaves[path], slot)) for leaves in (a, b))
            product = one @ other.swapaxes(-1, -2)
            straight, flipped = (straight, flipped + product) if place in odd else (straight + product, flipped)
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
    """For each row the column that it is assigned to, at the largest sum (:func:`scipy.optimize.linear_sum_assignment`)."""
    flat = gain.reshape(-1, *gain.shape[-2:])
    rows = [scipy.optimize.linear_sum_assignment(matrix, maximize=True)[1] for matrix in flat]
    return np.array(rows).reshape(gain.shape[:-1])


def sorted_distances(sym: Symmetry, block: Block, a: Leaves, b: Leaves) -> Float[np.ndarray, "*copies n n"]:
    """Squared distances between sorted weight vectors, which no permutation or sign of another block changes."""
    assert block.mover is not None
    others = [i for i in numbers(sym, "permutation", "sign", *TURNS) if i not in block.members]
    moved, flips, turned = (cover(sym, some) for some in (others, numbers(sym, "sign"), numbers(sym, *TURNS)))
    own = cover(sym, [block.mover])
    shape = sym.factors[block.mover].shape
    total: Any = np.zeros((*shape, shape[-1]))
    for _, path, slot in slots(sym, [block.mover]):
        if not floating(a[path]):
            continue
        one, other = (np.asarray(gathered(leaves[path], slot)) for leaves in (a, b))
        if gathered(flips[path], slot).any():
            one, other = np.abs(one), np.abs(other)
        if gathered(turned[path], slot).any():
            one, other = (np.sqrt((side**2).sum(-1, keepdims=True)) for side in (one, other))
        elif gathered(moved[path], slot).any() or gathered(own[path], slot).max(initial=0) > 1:
            one, other = np.sort(one, axis=-1), np.sort(other, axis=-1)
        squares = (one**2).sum(-1)[..., :, None] + (other**2).sum(-1)[..., None, :]
        total = total + squares - 2 * one @ other.swapaxes(-1, -2)
    return total


def _place(slot: Any) -> tuple[Any, ...]:
    return (slot.path, slot.axis, slot.span)
