"""What is known of a group before any parameters are: its blocks, which of them meet, and the order in which they become known."""

import collections
import functools
import math
from collections.abc import Iterable

from jaxsym.alignment.blocks import Block, Sorting, blocks, inside, places, sortings
from jaxsym.symmetry.factors import Factor
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.units import slots

MOORED = 8
"""So many numbers must be known of each unit, from fixed ends and earlier blocks, if sorted weights are to be of no use."""
PLAIN = ("permutation", "sign", "scaling")


class Plan:
    """What is known of a group before any parameters are."""

    def __init__(self, sym: Symmetry) -> None:
        self.sym, self.identity = sym, sym.still()
        self.blocks = blocks(sym)
        self.inside = {block: inside(block, self.blocks) for block in self.blocks}
        self.places = {block: places(sym, block) for block in self.blocks}
        self.paths = {block: {place.path for place in self.places[block]} for block in self.blocks}
        self.local = _local(sym.factors)
        """Whether every factor acts on its own leaves alone, and reads no others."""
        self.linear = {block: self._linear(block) for block in self.blocks}
        self.stirred = {
            block: [other for other in self.blocks if other is not block and self._meet(block, other)]
            for block in self.blocks
        }
        """The blocks for which another place may be best once a block has moved."""
        self.axes = {i: found for i in range(len(sym.factors)) if (found := self._axes(i)) is not None}
        """The leaves and axes of the factors that move or flip all of an axis, unit by unit."""
        others = any(factor.kind not in PLAIN or factor.whole is not None for factor in sym.factors)
        paths = [[slot.path for slot in factor.units] for factor in sym.factors]
        self.entangled = others or any(self.inside.values()) or any(len(set(own)) < len(own) for own in paths)
        """Whether there is more in the group than permutations, signs and rescalings of units that are not inside others, or meet themselves in a leaf."""
        self.exact = all(self.linear.values()) and not self.entangled
        """Whether every step is an assignment whose gain is known without acting: float32 is enough to find it."""
        self.finite = self.local and all(factor.kind in ("permutation", "sign") for factor in sym.factors)
        """Whether there is nothing to balance."""
        self._parts: dict[tuple[int, ...], Symmetry] = {}
        self._sortings: dict[Block, tuple[Sorting, ...]] = {}

    @classmethod
    def of(cls, sym: Symmetry) -> "Plan":
        """Made once for each group, and kept with it."""
        kept = vars(sym)
        if "alignment" not in kept:
            kept["alignment"] = cls(sym)
        return kept["alignment"]

    def _linear(self, block: Block) -> bool:
        """Whether the inner product is linear in the block's permutation and signs, all others held."""
        axes = collections.defaultdict(set)
        for place in self.places[block]:
            axes[place.path].add(place.slot.axes)
        return self.local and block.turn is None and not self.inside[block] and all(len(a) == 1 for a in axes.values())

    def _meet(self, block: Block, other: Block) -> bool:
        touched = self.paths[block].union(*(self.paths[inner] for inner in self.inside[block]))
        return not self.local or not touched.isdisjoint(self.paths[other])

    def _axes(self, number: int) -> list[tuple[str, int]] | None:
        factor = self.sym.factors[number]
        found = []
        for slot in factor.units:
            name = "/".join(slot.path)
            alone = len(slot.axes) == 1 and slot.where.shape[-1] == 1
            if not alone or not slot.fills(self.sym.shapes[name][slot.axis]) or slot.frame is not None:
                return None
            found.append((name, 1 + slot.axis))
        simple = factor.kind in ("permutation", "sign") and len(factor.shape) == 1 and factor.whole is None
        return found if simple else None

    def part(self, order: tuple[int, ...]) -> Symmetry:
        """Some factors, on the leaves that they touch."""
        if order not in self._parts:
            factors = tuple(self.sym.factors[i] for i in order)
            touched = {path for _, path, _ in slots(self.sym, order)} if _local(factors) else self.sym.shapes.keys()
            shapes = {path: shape for path, shape in self.sym.shapes.items() if path in touched}
            self._parts[order] = Symmetry(factors, (), shapes)
        return self._parts[order]

    def sortings(self, block: Block) -> tuple[Sorting, ...]:
        """How the places of a block's permutation are told apart whatever the other blocks do."""
        if block not in self._sortings:
            self._sortings[block] = sortings(self.sym, block)
        return self._sortings[block]

    @functools.cached_property
    def moored(self) -> bool:
        """Whether enough is known of each block when its turn comes."""
        return all(self._entries(known) >= MOORED * self._units(block) for block, known in self.anchored)

    def _entries(self, paths: Iterable[str]) -> int:
        return sum(math.prod(self.sym.shapes[path]) for path in paths)

    def _units(self, block: Block) -> int:
        return math.prod(self.sym.factors[block.members[0]].shape)

    @functools.cached_property
    def anchored(self) -> list[tuple[Block, set[str]]]:
        """The blocks in an order in which most is known of each: with the leaves that no block moves which is still to come."""
        holders = collections.Counter(path for block in self.blocks for path in self.paths[block])
        left, found = list(self.blocks), []
        while left:
            known = {block: {path for path in self.paths[block] if holders[path] == 1} for block in left}
            block = max(left, key=lambda one: self._entries(known[one]) / max(1, self._entries(self.paths[one])))
            found.append((block, known[block]))
            left.remove(block)
            holders.subtract(self.paths[block])
        return found


def _local(factors: Iterable[Factor]) -> bool:
    """Whether factors read no leaves but those that they act on: coefficients and gains may be in others."""
    return all(factor.whole is None and all(slot.frame is None for slot in factor.slots) for factor in factors)
