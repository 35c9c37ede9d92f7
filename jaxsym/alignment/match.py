"""One network moved onto another by the whole group: the element that brings their parameters closest."""

import collections
import copy
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsym import tree
from jaxsym.alignment.blocks import Block, Scores, apart, assigned, best, blocks, inside, scores, sorted_distances
from jaxsym.alignment.similar import MEASURES, Similarity
from jaxsym.symmetry.canonical import canonicalize, gauged
from jaxsym.symmetry.checks import expect_finite, expect_group
from jaxsym.symmetry.group import Element, Symmetry
from jaxsym.symmetry.units import Leaves, Parts, floating, framed, gathered, slots

PASSES = 100
"""Over all blocks, at most."""
SETTLED = 1e-9
"""A pass that gains less than this part of the squared norms is the last."""
PLAIN = ("permutation", "sign", "scaling")
NESTED = 16
"""Units with units inside, such as heads, are tried in every place up to so many of them."""


class Alignment(NamedTuple):
    """A network moved onto another one."""

    element: Element
    params: PyTree
    """``sym.act(element, b)``."""
    distance: float
    """Of ``params`` and ``a``: Euclidean, over all leaves that hold real numbers."""
    history: np.ndarray
    """Minus half the squared distance where both networks are balanced, after each pass over the blocks; it never falls."""
    start: str
    """Where the ascent that won began: ``"identity"``, ``"sorted"``, ``"anchored"`` or ``"canonical"``."""


class Walk:
    """A network on its way along its orbit, on the host."""

    def __init__(self, sym: Symmetry, leaves: Leaves, element: Element) -> None:
        self.sym, self.element = sym, element
        self.leaves: Leaves = sym.leaves(sym.act(element, leaves))

    def go(self, steps: Iterable[Parts], leaves: Leaves) -> None:
        """Act with some factors, one step after the other, and come to ``leaves``."""
        self.leaves = leaves
        for parts in steps:
            step = tuple(parts.get(i, part) for i, part in enumerate(self.sym.still()))
            self.element = self.sym.compose(step, self.element)


def _value(a: Leaves, b: Leaves, paths: Iterable[str]) -> float:
    """Minus half the squared distance, over some leaves."""
    return -0.5 * sum(float(((a[path] - b[path]) ** 2).sum()) for path in paths if floating(a[path]))


class Problem:
    """A network to be moved onto, in a frame where what is left of the group is compact."""

    def __init__(self, sym: Symmetry, a: Leaves) -> None:
        self.sym, self.blocks = sym, blocks(sym)
        self.groups = apart(sym, self.blocks)
        self.inside = {block: inside(block, self.blocks) for block in self.blocks}
        self._some: dict[tuple[int, ...], Symmetry] = {}
        self._aim(a)

    def _aim(self, a: Leaves) -> None:
        self.a, self.seen = a, framed(self.sym, a)
        self.scale = sum(float((leaf**2).sum()) for leaf in a.values() if floating(leaf))

    def towards(self, a: Leaves) -> "Problem":
        """The same with another network to be moved onto."""
        other = copy.copy(self)
        other._aim(a)
        return other

    def solve(
        self,
        leaves: Leaves,
        frame: Element,
        canonical: Callable[[], Element] | None = None,
        further: Sequence[Element] = (),
    ) -> tuple[Walk, list[float], str]:
        """The best of several starts: the network that was moved, the values on its way, and where it began."""
        starts: dict[str, Callable[[], Walk]] = {
            "identity": lambda: Walk(self.sym, leaves, frame),
            "sorted": lambda: self._sorted(Walk(self.sym, leaves, frame)),
            "anchored": lambda: self._anchored(Walk(self.sym, leaves, frame)),
        }
        if canonical is not None and self._entangled:
            starts["canonical"] = lambda: Walk(self.sym, leaves, canonical())
        for number, element in enumerate(further):
            mixed = self._compact(element)
            starts[f"restart {number}"] = lambda mixed=mixed: Walk(self.sym, leaves, self.sym.compose(mixed, frame))  # type: ignore[misc]
        found = []
        for start, begin in starts.items():
            walk = begin()
            found.append((walk, self.ascend(walk), start))
        return max(found, key=lambda one: one[1][-1])

    def _compact(self, element: Element) -> Element:
        """The permutations, signs and rotations of an element alone; of a change of basis the rotation that is in it."""
        movers = {i for block in self.blocks for i in block.members}
        still = self.sym.still()
        parts: list[Any] = [np.asarray(part) if i in movers else still[i] for i, part in enumerate(element)]
        for block in self.blocks:
            if block.turn is not None:
                left, _, right = np.linalg.svd(parts[block.turn])
                parts[block.turn] = left @ right
        return tuple(parts)

    @property
    def _entangled(self) -> bool:
        """Whether there is more in the group than permutations, signs and rescalings of units that are not inside others, or meet themselves in a leaf."""
        others = any(factor.kind not in PLAIN or factor.whole is not None for factor in self.sym.factors)
        paths = [[slot.path for slot in factor.units] for factor in self.sym.factors]
        return others or any(self.inside.values()) or any(len(set(own)) < len(own) for own in paths)

    def ascend(self, walk: Walk) -> list[float]:
        """Move block after block, those at once that share no leaf, until a pass gains nothing; the values of the objective."""
        values = [_value(self.a, walk.leaves, self.a)]
        for _ in range(PASSES):
            for group in self.groups:
                self._move(group, walk)
            values.append(_value(self.a, walk.leaves, self.a))
            if values[-1] - values[-2] <= SETTLED * self.scale:
                break
        return values

    def _move(self, group: Sequence[Block], walk: Walk) -> None:
        """Together if that is better, one by one otherwise."""
        each = [self._steps(block, walk.leaves) for block in group]
        steps = [functools.reduce(operator.or_, parts) for parts in itertools.zip_longest(*each, fillvalue={})]
        moved = self._along(steps, walk.leaves)
        paths = {path for path, leaf in moved.items() if leaf is not walk.leaves[path]}
        if _value(self.a, moved, paths) > _value(self.a, walk.leaves, paths):
            walk.go(steps, moved)
        elif len(group) > 1:
            for block in group:
                self._move([block], walk)

    def _along(self, steps: Iterable[Parts], leaves: Leaves) -> Leaves:
        """The leaves after some steps; those that do not move are the same objects."""
        for parts in steps:
            order = tuple(sorted(parts))
            if order not in self._some:
                self._some[order] = self._part(order)
            some = self._some[order]
            moved = some.act(tuple(parts[i] for i in order), {path: leaves[path] for path in some.shapes})
            leaves = leaves | moved
        return leaves

    def _part(self, order: Sequence[int]) -> Symmetry:
        """Some factors, on the leaves that they touch."""
        factors = tuple(self.sym.factors[i] for i in order)
        touched = {path for _, path, _ in slots(self.sym, order)}
        if any(factor.whole is not None for factor in factors) or any(
            slot.frame is not None for factor in factors for slot in factor.slots
        ):
            touched = set(self.sym.shapes)  # coefficients and gains are read from other leaves
        shapes = {path: shape for path, shape in self.sym.shapes.items() if path in touched}
        return dataclasses.replace(self.sym, factors=factors, shapes=shapes)

    def _steps(self, block: Block, leaves: Leaves) -> list[Parts]:
        """The best that a block can do, all others held but what is inside its units."""
        inner = self.inside[block]
        if not inner or self.sym.factors[block.members[0]].size > NESTED:
            return [best(block, scores(self.sym, block, self.seen, framed(self.sym, leaves)))]
        outer = self._outer(block, inner, leaves)
        return [outer, *self._inner(inner, self._along([outer], leaves))]

    def _inner(self, inner: Sequence[Block], leaves: Leaves) -> list[Parts]:
        """The best of what is inside some units, one block after the other."""
        found: list[Parts] = []
        for other in inner:
            steps = self._steps(other, leaves)
            leaves = self._along(steps, leaves)
            found += steps
        return found

    def _outer(self, block: Block, inner: Sequence[Block], leaves: Leaves) -> Parts:
        """The order of units of which each is tried in every place, with what is inside it moved as is best there."""
        assert block.mover is not None
        factor = self.sym.factors[block.mover]
        rows, gain = np.arange(factor.size), np.zeros((*factor.shape, factor.size))
        for turn in rows:
            order = np.broadcast_to((rows + turn) % factor.size, factor.shape)
            moved = self._along([{block.mover: order}], leaves)
            there = framed(self.sym, self._along(self._inner(inner, moved), moved))
            for _, path, slot in slots(self.sym, [block.mover]):
                if floating(self.seen[path]):
                    met = gathered(self.seen[path], slot) * gathered(there[path], slot)
                    gain[..., rows, (rows + turn) % factor.size] += met.sum(-1)
        return {block.mover: assigned(gain)}

    def _sorted(self, walk: Walk) -> Walk:
        """After each permutation from distances that no other one changes: outer ones first, then those of what is inside."""
        movers = [block for block in self.blocks if block.mover is not None]
        for depth in sorted({len(block.classes) for block in movers}):
            there = framed(self.sym, walk.leaves)
            parts = {
                block.mover: assigned(-sorted_distances(self.sym, block, self.seen, there))
                for block in movers
                if block.mover is not None and len(block.classes) == depth
            }
            walk.go([parts], self._along([parts], walk.leaves))
        return walk

    def matched(self, walk: Walk, similar: Callable[[Leaves], Mapping[int, np.ndarray]]) -> Walk:
        """Permutations and signs by what units compute, outer ones before what is inside them; then rotations by weights."""
        movers = [block for block in self.blocks if block.mover is not None]
        for depth in sorted({len(block.classes) for block in movers}):
            found = similar(walk.leaves)
            parts: Parts = {}
            for block in movers:
                alike: Any = found.get(block.mover) if block.mover is not None and len(block.classes) == depth else None
                if alike is not None:
                    none = np.zeros_like(alike)
                    parts |= best(block, Scores(alike, none) if block.sign is None else Scores(none, alike))
            walk.go([parts], self._along([parts], walk.leaves))
        for block in self.blocks:
            if block.turn is not None:
                self._move([block], walk)
        return walk

    def _anchored(self, walk: Walk) -> Walk:
        """After block upon block by what is known of it: the leaves that no block moves which is still to come."""
        paths = {block: {path for _, path, _ in slots(self.sym, block.members)} for block in self.blocks}
        holders = collections.Counter(path for block in self.blocks for path in paths[block])
        left = list(self.blocks)
        while left:
            known = {block: {path for path in paths[block] if holders[path] == 1} for block in left}
            size = lambda some: sum(math.prod(self.sym.shapes[path]) for path in some)  # noqa: E731
            block = max(left, key=lambda one: size(known[one]) / max(1, size(paths[one])))
            there = framed(self.sym, walk.leaves)
            if known[block]:
                parts = best(block, scores(self.sym, block, {path: self.seen[path] for path in known[block]}, there))
            elif block.mover is not None:
                parts = {block.mover: assigned(-sorted_distances(self.sym, block, self.seen, there))}
            else:
                parts = {}
            if parts:
                walk.go([parts], self._along([parts], walk.leaves))
            left.remove(block)
            holders.subtract(paths[block])
        return walk


def align(
    sym: Symmetry,
    a: PyTree,
    b: PyTree,
    *,
    objective: str = "weights",
    apply: Callable[..., Any] | None = None,
    inputs: tuple[Any, ...] | list[tuple[Any, ...]] | None = None,
    measure: str = "correlation",
    key: Array | None = None,
    restarts: int = 0,
) -> Alignment:
    """Move ``b`` along its orbit as close to ``a`` as can be.

    Both networks are brought to a frame where only permutations, signs and rotations are left (rescalings are balanced, bases orthonormal, translations at
    their origin); there block after block of units is moved to where it fits best, those at once that share no leaf; then back to the frame of ``a``.
    It starts where ``b`` is, from permutations by sorted weight vectors, from what fixed ends tell of one layer after the other, and, where the group has more
    than permutations, signs and rescalings of plain layers, from the canonical forms; the best end wins. On the host.

    Parameters
    ----------
    sym
        The group: of :func:`jaxsym.discover`, or of :meth:`jaxsym.Symmetry.from_spec`.
    a, b
        Parameters of two networks, both of the shapes that the group was found on.
    objective
        ``"weights"``: the least distance of the parameters. ``"activations"``: permutations and signs by what the units compute, rotations by weights.
    apply, inputs
        For activations: the function, and the inputs of ``apply(params, *inputs)`` as a tuple, or a list of such tuples, batches of one shape.
    measure
        Of activations: ``"correlation"``, or ``"distance"`` (mean squared).
    key, restarts
        So many further starts, from random elements.

    Returns
    -------
    Alignment

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group or contains a user's own action, the parameters do not fit it or are not finite, or an option is none of those above.

    Notes
    -----
    *Source*: matching of weights, Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836, algorithm 1, which moves permutations only.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 5, 1), "relu"), jax.numpy.ones((5, 3))
    >>> params = net.init(jax.random.key(0), x)
    >>> sym = js.discover(net.apply, params, x)
    >>> moved = sym.act(sym.sample(jax.random.key(1)), params)
    >>> align(sym, params, moved).distance < 1e-5
    True
    """
    expect_group(sym, "align")
    _expect(objective, apply, inputs, measure, key, restarts)
    with jax.enable_x64(True):
        one, two = (checked(sym, params, f"align: {name}") for name, params in (("a", a), ("b", b)))
        frames = [balanced(sym, leaves) for leaves in (one, two)]
        problem = Problem(sym, sym.leaves(sym.act(frames[0], one)))
        if objective == "activations" and apply is not None:
            similar = Similarity(apply, sym, a, _batches(inputs), measure)
            walk = Walk(sym, two, frames[1])
            history = [_value(problem.a, walk.leaves, one)]
            problem.matched(walk, lambda leaves: similar.between(problem.a, leaves))
            history, start = [*history, _value(problem.a, walk.leaves, one)], "activations"
        else:
            further = (
                [jax.device_get(sym.sample(each)) for each in jax.random.split(key, restarts)]
                if key is not None
                else []
            )
            walk, history, start = problem.solve(
                two, frames[1], lambda: canonical_start(sym, frames[0], one, two), further
            )
        element = sym.compose(sym.inverse(frames[0]), walk.element)
        moved = sym.leaves(sym.act(element, two))
        distance = float(np.sqrt(-2 * _value(one, moved, one)))
    return Alignment(shown(element), restored(b, moved), distance, np.array(history), start)


def _expect(objective: str, apply: Any, inputs: Any, measure: str, key: Any, restarts: int) -> None:
    """Refuse options that say nothing, or contradict each other."""
    for name, value, known in (("objective", objective, ("weights", "activations")), ("measure", measure, MEASURES)):
        if value not in known:
            msg = f"align: {name} is {value!r}, expected {' or '.join(map(repr, known))}."
            raise ValueError(msg)
    if objective == "activations" and (not callable(apply) or not inputs):
        msg = "align: activations need apply, the network's function, and inputs, a tuple of what it is given."
        raise ValueError(msg)
    if restarts < 0 or (restarts and key is None):
        msg = f"align: got {restarts} restarts and {'no' if key is None else 'a'} key, expected a number from 0 on, and a key for random starts."
        raise ValueError(msg)


def _batches(inputs: Any) -> list[tuple[Any, ...]]:
    return list(inputs) if isinstance(inputs, list) else [inputs]


def canonical_start(sym: Symmetry, frame: Element, a: Leaves, b: Leaves) -> Element:
    """The element that takes ``b`` to where the canonical forms of both agree."""
    forms = [jax.device_get(canonicalize(sym, leaves).element) for leaves in (a, b)]
    return functools.reduce(sym.compose, (frame, sym.inverse(forms[0]), forms[1]))


def balanced(sym: Symmetry, leaves: Leaves) -> Element:
    """:func:`jaxsym.symmetry.gauged`, on the host."""
    return jax.device_get(gauged(sym, leaves))


def restored(params: PyTree, leaves: Leaves) -> PyTree:
    """Leaves as parameters of the types that were given."""
    named = {
        path: jnp.asarray(leaves[path].astype(np.asarray(leaf).dtype)) for path, leaf in tree.leaves(params).items()
    }
    return tree.put(params, named)


def shown(element: Iterable[Any]) -> Element:
    """In the precision that is switched on."""
    return tuple(jnp.asarray(part, jnp.result_type(float)) if floating(part) else jnp.asarray(part) for part in element)


def checked(sym: Symmetry, params: PyTree, name: str) -> Leaves:
    """The leaves on the host, in float64; refuses those of another network, NaN and infinity."""
    try:
        leaves = jax.device_get(sym.leaves(params))
    except ValueError as error:
        msg = f"{name}: {error} Networks of two widths have no group in common: train both with one architecture."
        raise ValueError(msg) from error
    for path, leaf in leaves.items():
        if floating(leaf):
            expect_finite(f"{name}: {path}", leaf)
    return {path: leaf.astype(np.float64) if floating(leaf) else leaf for path, leaf in leaves.items()}
