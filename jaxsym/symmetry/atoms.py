"""Axes as index sets: sums and row-major products of atoms, tied by union-find and refined where two shapes meet.

An :class:`Atom` is a finite index set. It is a leaf, a product (``reshape`` made it of several axes) or a sum (``concatenate`` put
several behind one another). Atoms that must carry the same permutation are tied into one; where one side of a tie is finer, the other is
refined to it. A leaf with a reason is *pinned*: its order means something.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Atom:
    """A finite index set; compare by :meth:`root`, never by identity."""

    __slots__ = ("_parent", "children", "form", "reason", "size")

    def __init__(
        self, size: int, form: str = "leaf", children: Sequence["Atom"] = (), reason: str | None = None
    ) -> None:
        self.size = int(size)
        self.form = form
        self.children = list(children)
        self.reason = reason
        self._parent: Atom | None = None

    def root(self) -> "Atom":
        """The representative of everything tied to this atom."""
        atom = self
        while atom._parent is not None:
            if atom._parent._parent is not None:
                atom._parent = atom._parent._parent
            atom = atom._parent
        return atom

    def become(self, other: "Atom") -> None:
        """Tie this root to another one, which stands for both from now on."""
        self._parent = other


def product(atoms: Sequence[Atom]) -> Atom:
    """The row-major product."""
    atoms = [atom for atom in atoms if atom.size != 1]
    if len(atoms) == 1:
        return atoms[0]
    return Atom(math.prod(atom.size for atom in atoms), "product" if atoms else "leaf", atoms)


def direct_sum(atoms: Sequence[Atom]) -> Atom:
    """Several index sets behind one another."""
    atoms = [atom for atom in atoms if atom.size != 0]
    if len(atoms) == 1:
        return atoms[0]
    return Atom(sum(atom.size for atom in atoms), "sum", atoms)


def factors(atom: Atom) -> list[Atom]:
    """The factors of a product, none of them a product; sums are opaque here. Trivial factors are left out."""
    atom = atom.root()
    if atom.form == "product":
        return [factor for child in atom.children for factor in factors(child)]
    return [atom] if atom.size != 1 else []


def terms(atom: Atom) -> list[Atom]:
    """The terms of a sum, none of them a sum; a product whose leading factor is a sum is opened too."""
    atom = atom.root()
    if atom.form == "sum":
        return [term for child in atom.children for term in terms(child)]
    if atom.form == "product":
        leading, *rest = factors(atom)
        if leading.form == "sum":
            return [product([term, *rest]) for term in terms(leading)]
    return [atom]


def pin(atom: Atom, reason: str) -> None:
    """Give a reason to every leaf below that has none yet."""
    atom = atom.root()
    if atom.form == "leaf":
        atom.reason = atom.reason or reason
    for child in atom.children:
        pin(child, reason)


def tie(one: Atom, other: Atom) -> None:
    """Make two index sets of one size the same, refining either to the other. What cannot be refined is pinned."""
    one, other = one.root(), other.root()
    if one is other or one.size == 1:
        return
    if one.form == "leaf" or other.form == "leaf":
        leaf, rest = (one, other) if one.form == "leaf" else (other, one)
        if leaf.reason is not None:
            pin(rest, leaf.reason)
        leaf.become(rest)
    elif one.form == other.form == "sum":
        _tie_sums(one, other)
    elif one.form == other.form == "product":
        _tie_products(one, other)
    else:
        total, factored = (one, other) if one.form == "sum" else (other, one)
        _tie_sum_to_product(total, factored)


def split(atom: Atom, sizes: Sequence[int]) -> list[Atom] | None:
    """Refine an index set to a product of the given sizes; None, and nothing changed, where it does not factor so."""
    queue, parts = factors(atom), []
    if 0 in (atom.size, *sizes):
        return None
    for size in sizes:
        taken: list[Atom] = []
        need = size
        while need > 1:
            if not queue:
                return None
            head = queue.pop(0)
            if need % head.size == 0:
                taken.append(head)
                need //= head.size
            elif head.size % need == 0 and head.form == "leaf":
                first, second = Atom(need, reason=head.reason), Atom(head.size // need, reason=head.reason)
                head.form, head.children, head.reason = "product", [first, second], None
                taken.append(first)
                queue.insert(0, second)
                need = 1
            else:
                return None
        parts.append(product(taken) if taken else Atom(1))
    return None if queue else parts


def cut(atom: Atom, boundaries: Sequence[int]) -> list[Atom] | None:
    """Refine an index set to a sum with cuts at the given positions (0 and its size included); None where it cannot be."""
    atom = atom.root()
    if len(boundaries) == 2:
        return [atom]
    queue, parts, position = terms(atom), [], 0
    for start, stop in itertools.pairwise(boundaries):
        if start == stop:
            parts.append(Atom(0))
            continue
        taken = []
        while position < stop:
            head = queue.pop(0)
            if position + head.size > stop:
                pieces = _halve(head, stop - position)
                if pieces is None:
                    return None
                head, rest = pieces
                queue.insert(0, rest)
            taken.append(head)
            position += head.size
        parts.append(direct_sum(taken))
    return parts


def _halve(atom: Atom, at: int) -> list[Atom] | None:
    """Cut a leaf, or a product in its leading factor, in two."""
    atom = atom.root()
    if atom.form == "leaf":
        atom.children = [Atom(at, reason=atom.reason), Atom(atom.size - at, reason=atom.reason)]
        atom.form, atom.reason = "sum", None
        return atom.children
    parts = factors(atom)
    inner = math.prod(part.size for part in parts[1:])
    if at % inner:
        return None
    leading = cut(parts[0], (0, at // inner, parts[0].size))
    return None if leading is None else [product([part, *parts[1:]]) for part in leading]


def _give_up(one: Atom, other: Atom) -> None:
    for atom in (one, other):
        pin(atom, "two incompatible factorings of one axis meet here")


def _tie_sums(one: Atom, other: Atom) -> None:
    ends = sorted({0} | {int(end) for atom in (one, other) for end in np.cumsum([term.size for term in terms(atom)])})
    ours, theirs = cut(one, ends), cut(other, ends)
    if ours is None or theirs is None:
        _give_up(one, other)
        return
    for a, b in zip(ours, theirs, strict=True):
        tie(a, b)


def _tie_products(one: Atom, other: Atom) -> None:
    found = _refined(one, other)
    if found is None:
        _give_up(one, other)
        return
    ours, theirs = found
    if [atom.size for atom in ours] != [
        atom.size for atom in theirs
    ]:  # they share a leaf: refining one refined the other
        _tie_products(one, other)
        return
    for a, b in zip(ours, theirs, strict=True):
        tie(a, b)


def _refined(one: Atom, other: Atom) -> tuple[list[Atom], list[Atom]] | None:
    """The factors of both, the coarser one's refined to the other's."""
    if (ours := split(one, [factor.size for factor in factors(other)])) is not None:
        return ours, factors(other)
    if (theirs := split(other, [factor.size for factor in factors(one)])) is not None:
        return factors(one), theirs
    sizes = _common(one, other)
    refined = (split(one, sizes), split(other, sizes)) if sizes else (None, None)
    return None if refined[0] is None or refined[1] is None else (refined[0], refined[1])


def _common(one: Atom, other: Atom) -> list[int]:
    """Sizes of the coarsest common refinement of two factorings; empty where there is none."""

    def strides(atom: Atom) -> set[int]:
        sizes = [factor.size for factor in factors(atom)]
        return {math.prod(sizes[i:]) for i in range(len(sizes) + 1)}

    chain = sorted(strides(one) | strides(other), reverse=True)
    if any(a % b for a, b in itertools.pairwise(chain)):
        return []
    return [a // b for a, b in itertools.pairwise(chain)]


def _tie_sum_to_product(total: Atom, factored: Atom) -> None:
    ends = [0, *(int(end) for end in np.cumsum([term.size for term in terms(total)]))]
    parts = cut(factored, ends)
    if parts is None:
        _give_up(total, factored)
        return
    for a, b in zip(terms(total), parts, strict=True):
        tie(a, b)


class Place(NamedTuple):
    """One block of an axis: which leaves span it, as numbers into :func:`leaves`, and where their indices lie on the axis."""

    numbers: tuple[int, ...]
    positions: Int[np.ndarray, "..."]  # one axis per leaf


def leaves(atom: Atom) -> list[Atom]:
    """All non-trivial leaves of an axis in order; one occurs as often as it is used. Equal axes have equal lists."""
    found = []
    for term in terms(atom):
        for factor in factors(term):
            found += [factor] if factor.form == "leaf" else leaves(factor)
    return found


def spans(atom: Atom) -> list[tuple[int, int]]:
    """For each of :func:`leaves` the positions of the term that it belongs to."""
    found, start = [], 0
    for term in terms(atom):
        size = term.root().size
        found += [(start, start + size)] * len(leaves(term))
        start += size
    return found


def places(atom: Atom) -> list[Place]:
    """The blocks of an axis: one for a product of leaves, several where sums are involved."""

    def blocks_of(atom: Atom, number: int) -> tuple[list[Place], int]:
        blocks, start = [], 0
        for term in terms(atom):
            found = [Place((), np.asarray(0))]
            for factor in factors(term):
                if factor.form == "leaf":
                    inner, number = [Place((number,), np.arange(factor.size))], number + 1
                else:
                    inner, number = blocks_of(factor, number)
                found = [_times(block, place, factor.size) for block in found for place in inner]
            blocks += [Place(block.numbers, block.positions + start) for block in found]
            start += term.root().size
        return blocks, number

    return blocks_of(atom, 0)[0]


def _times(block: Place, place: Place, size: int) -> Place:
    """The block of a product from blocks of its leading part and of its last factor, which has ``size`` indices."""
    outer = block.positions.reshape(block.positions.shape + (1,) * place.positions.ndim)
    return Place(block.numbers + place.numbers, outer * size + place.positions)
