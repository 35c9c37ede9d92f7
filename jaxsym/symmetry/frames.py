"""Undoing changes of basis: what the fixed ends of a network reach becomes orthonormal, what is left over is taken apart from it.

A change of basis ``A`` of the units ``i`` acts on the slots of one side by ``A`` and on those of the other by its dual. The columns of a leaf that only ``A``
moves are vectors of the units' space, and so are their images through leaves that join ``i`` to other units. Where all these vectors span the space,
they fix ``A`` up to a rotation (the rows of the matrix that they make become orthonormal). Where they do not, neither from one side nor from the other, as
in linear layers wider than both the inputs and the outputs, the complement of the span is chosen such that nothing reads it: the network falls into a part
that computes and one that does not, and the latter is a chain of plain matrices, which Gaussian elimination takes to identities.

*Source*: the canonical structure of Kalman 1963 (reachable and observable parts), and the normal form of representations of a path (Gabriel 1972).
"""

import graphlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxsym.symmetry.factors import Slot
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.host import index, namespace
from jaxsym.symmetry.units import Leaves, Parts, act, close, cover, framed, gathered, labels, numbers, slots, spread


class Side(NamedTuple):
    """How one change of basis is undone."""

    number: int
    exponent: int
    """The sign of the exponent of the slots that hold the vectors."""
    rank: int
    """Of the vectors, at generic parameters."""


class Step(NamedTuple):
    """Changes of basis that are undone together."""

    sides: tuple[Side, ...]
    """One, or several that hold each other, each before those that it feeds."""
    rounds: int
    """Through how many leaves vectors come."""


class Edge(NamedTuple):
    """A leaf that joins two changes of basis."""

    path: str
    one: int
    other: int
    exponents: tuple[int, int]
    where: np.ndarray
    """``[units of one, units of the other, taps]``: positions in the leaf, flattened."""


Vectors = dict[tuple[int, int], Any]
"""For a change of basis and a sign of the exponent, ``[*copies, n, count]``."""


def planned(sym: Symmetry, leaves: Leaves, loose: Sequence[int]) -> tuple[Step, ...]:
    """An order in which changes of basis can be undone by what the ``loose`` factors leave alone, at generic parameters; refuses those that have none."""
    left, steps = numbers(sym, "general_linear"), []
    seen = framed(sym, leaves)
    while left:
        step = _whole(sym, seen, left, loose) or _deficient(sym, seen, left, loose)
        steps.append(step)
        left = [i for i in left if i not in [side.number for side in step.sides]]
    _check(sym, steps, leaves, loose)
    return tuple(steps)


def straightened(
    sym: Symmetry, steps: Sequence[Step], leaves: Leaves, loose: Sequence[int]
) -> tuple[Parts, dict[int, Any]]:
    """Changes of basis after which only rotations are left of what computes, and which of them have less than their generic rank here.

    Units that compute nothing come first.
    """
    parts: Parts = {}
    less: dict[int, Any] = {}
    later = [side.number for step in steps for side in step.sides]
    for sides, rounds in steps:
        vectors = _vectors(sym, framed(sym, leaves), later, rounds, loose)
        later = later[len(sides) :]
        own: Parts = {}
        for i, exponent, rank in sides:
            matrix, less[i] = _orthonormal(vectors[i, exponent], rank)
            own[i] = _part(exponent, matrix)
        leaves = act(sym, own, leaves)
        for i, exponent, rank in reversed(sides):  # what a unit feeds is taken apart before it
            if rank < sym.factors[i].size:
                read = _read(sym, framed(sym, leaves), sides, i, [*later, *loose])
                shear = _part(exponent, _shear(read, sym.factors[i].size - rank))
                leaves = act(sym, {i: shear}, leaves)
                own[i] = shear @ own[i]
        parts |= own
    return parts, less


def computing(sym: Symmetry, steps: Sequence[Step], leaves: Leaves) -> Leaves:
    """The leaves without the chains between units that nothing reads."""
    kept = dict(leaves)
    for path, slot, unread in _unread(sym, steps):
        kept[path] = kept[path] * spread(1.0 - unread, slot, sym.shapes[path], 1)
    return kept


def reduced(sym: Symmetry, steps: Sequence[Step], leaves: Leaves) -> Parts:
    """Changes of basis that take the chains between units that nothing reads to identities."""
    parts: Parts = {}
    for sides, _ in steps:
        chain = _chain(sym, sides)
        if not chain:
            continue
        spare = [sym.factors[i].size - rank for i, _, rank in sides]
        maps = [_tap(leaves, edge)[..., : spare[k], : spare[k + 1], 0] for k, edge in enumerate(chain)]
        for (i, exponent, rank), basis in zip(sides, _identities(maps, spare), strict=True):
            xp, above = namespace(basis), len(basis)
            matrix = xp.concatenate([xp.linalg.inv(basis).T, xp.zeros((rank, above))])
            matrix = xp.concatenate([matrix, xp.eye(above + rank)[:, above:]], axis=1)
            matrix = xp.where(xp.isfinite(matrix).all(), matrix, xp.eye(above + rank))  # of less than the generic rank
            parts[i] = _part(exponent, matrix).reshape(*sym.factors[i].shape, -1)
    return parts


def _whole(sym: Symmetry, seen: Leaves, left: Sequence[int], loose: Sequence[int]) -> Step | None:
    """A change of basis whose vectors span the space, through as few leaves as possible."""
    before: list[int] = []
    for rounds in itertools.count():
        vectors = _vectors(sym, seen, left, rounds, loose)
        ranks = {key: _rank(found) for key, found in vectors.items()}
        for (i, exponent), rank in ranks.items():
            if rank == sym.factors[i].size:
                return Step((Side(i, exponent, rank),), rounds)
        if list(ranks.values()) == before:
            return None
        before = list(ranks.values())
    raise AssertionError  # the ranks grow no more


def _deficient(sym: Symmetry, seen: Leaves, left: Sequence[int], loose: Sequence[int]) -> Step:
    """Changes of basis that hold each other, from the side from which more is reached."""
    joined = edges(sym, left)
    together, todo = {left[0]: 1}, [left[0]]
    for i in todo:
        for edge in joined:
            for (j, e), (k, f) in itertools.permutations(zip((edge.one, edge.other), edge.exponents, strict=True)):
                sign = -together[i] * e * f if j == i else 0
                if sign and together.setdefault(k, sign) != sign:
                    raise _refusal(sym, together)
                if sign and k not in todo:
                    todo.append(k)
    vectors = _vectors(sym, seen, left, len(together), loose)
    found = {side: {i: _rank(vectors[i, side * exponent]) for i, exponent in together.items()} for side in (1, -1)}
    side = max(found, key=lambda side: sum(found[side].values()))
    signs = {i: side * exponent for i, exponent in together.items()}
    feeds: dict[int, set[int]] = {i: set() for i in signs}
    for _, one, other, (_, f), _ in joined:
        if one in signs:
            source, target = (one, other) if signs[other] == f else (other, one)
            feeds[target].add(source)
    try:
        order = list(graphlib.TopologicalSorter(feeds).static_order())
    except graphlib.CycleError:
        raise _refusal(sym, together) from None
    return Step(tuple(Side(i, signs[i], found[side][i]) for i in order), len(together))


def _refusal(sym: Symmetry, together: Iterable[int]) -> ValueError:
    named = ", ".join("/".join(sym.factors[i].slots[0].path) for i in together)
    return ValueError(
        f"canonicalize: the changes of basis of {named} hold each other: neither what reaches them nor what reads them spans their units."
        " Entries that a rescaling moves do not count where nothing else tells its factor."
        " Make these layers no wider than what they read or what reads them, or leave all but one out of the group:"
        " dataclasses.replace(sym, factors=...)."
    )


def _check(sym: Symmetry, steps: Sequence[Step], leaves: Leaves, loose: Sequence[int]) -> None:
    """Refuse where, at generic parameters, units that nothing should read do not come apart."""
    moved = act(sym, straightened(sym, steps, leaves, loose)[0], leaves)
    for step in steps:
        spare = [side for side in step.sides if side.rank < sym.factors[side.number].size]
        single = len(spare) < 2 or _chain(sym, step.sides)
        touched = {path: np.zeros(shape, int) for path, shape in sym.shapes.items()}
        for path, slot, unread in _unread(sym, [step]):
            touched[path] += spread(unread, slot, sym.shapes[path], 0).astype(int)
        apart = all(
            np.abs(moved[path][count == 1]).max(initial=0) < math.sqrt(close(moved[path]))
            for path, count in touched.items()
        )
        if not (single and apart):
            raise _refusal(sym, [side.number for side in step.sides])


def _unread(sym: Symmetry, steps: Sequence[Step]) -> list[tuple[str, Slot, Any]]:
    """The slots of units of which some are not reached, or not read, and which."""
    spare = {side.number: sym.factors[side.number].size - side.rank for step in steps for side in step.sides}
    return [
        (path, slot, np.broadcast_to(np.arange(sym.factors[i].size) < spare[i], slot.where.shape[:-1]).astype(float))
        for i, path, slot in slots(sym, [i for i in spare if spare[i]])
    ]


def _chain(sym: Symmetry, sides: Sequence[Side]) -> list[Edge]:
    """The leaves from each of some units to the next; none where that is not what joins them."""
    joined = edges(sym, [side.number for side in sides])
    pairs = list(itertools.pairwise(side.number for side in sides))
    path = [edge for pair in pairs for edge in joined if {edge.one, edge.other} == set(pair)]
    if len(joined) != len(pairs) or len(path) != len(pairs) or any(edge.where.shape[-1] != 1 for edge in joined):
        return []
    return [
        edge if edge.one == source else edge._replace(one=source, other=target, where=edge.where.swapaxes(0, 1))
        for edge, (source, target) in zip(path, pairs, strict=True)
    ]


def _identities(maps: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Bases, in rows, in which every matrix of a chain ``[size, next size]`` is an identity that is cut off or filled up with zeros."""
    if not sizes:
        return []
    xp = namespace(*maps) if maps else np
    least = int(np.argmin(sizes))
    count = sizes[least]
    through: list[Any] = [xp.eye(count)] * len(sizes)  # what passes the narrowest place
    rest: list[Any] = [xp.zeros((0, count))] * len(sizes)
    for k in range(least, len(sizes) - 1):
        through[k + 1] = through[k] @ maps[k]
    for k in range(least + 1, len(sizes)):
        rest[k] = _complement(through[k])
    for k in range(len(sizes) - 2, least, -1):
        image = rest[k] @ maps[k] @ xp.linalg.inv(xp.concatenate([through[k + 1], rest[k + 1]]))
        rest[k] = rest[k] - image[:, :count] @ through[k]
    after = [xp.eye(count)]  # from each place before the narrowest to it
    for k in range(least - 1, -1, -1):
        after.insert(0, maps[k] @ after[0])
    for k in range(least):
        through[k] = xp.linalg.pinv(after[0]) if k == 0 else through[k - 1] @ maps[k - 1]
        rest[k] = _complement(after[k].T)
    bases = [xp.concatenate(pair) for pair in zip(through, rest, strict=True)]
    inner = [(rest[k] @ maps[k] @ xp.linalg.inv(bases[k + 1]))[:, count:] for k in range(len(maps))]
    left = [size - count for size in sizes]
    inside = [
        *_identities(inner[: max(least - 1, 0)], left[:least]),
        xp.zeros((0, 0)),
        *_identities(inner[least + 1 :], left[least + 1 :]),
    ]
    return [xp.concatenate([through[k], inside[k] @ rest[k]]) for k in range(len(sizes))]


def _complement(rows: Float[Array, "k n"]) -> Float[Array, "n-k n"]:
    """An orthonormal basis of what is perpendicular to some independent rows."""
    return namespace(rows).linalg.qr(rows.T, mode="complete")[0].T[len(rows) :]


def _part(exponent: int, matrix: Float[Array, "*copies n n"]) -> Float[Array, "*copies n n"]:
    """The element that moves the slots of this sign by the matrix."""
    return matrix if exponent > 0 else namespace(matrix).linalg.inv(matrix).swapaxes(-1, -2)


def _orthonormal(vectors: Float[Array, "*copies n p"], rank: int) -> tuple[Float[Array, "*copies n n"], Any]:
    """The matrix that makes all singular values of the vectors 1, up to a rotation of the last ``rank`` coordinates; the first are 0.

    And where their rank is less, ``[*copies]``; singular values that are 0 stay so there.
    """
    xp = namespace(vectors)
    basis, values, _ = xp.linalg.svd(_compressed(vectors), full_matrices=True)
    across, values = basis.swapaxes(-1, -2), values[..., :rank]
    good = values > close(values) * values.max(axis=-1, keepdims=True, initial=0)
    scaled = across[..., :rank, :] / xp.where(good, values, 1)[..., None]
    return xp.concatenate([across[..., rank:, :], scaled], axis=-2), ~good.all(axis=-1)


def _shear(read: Float[Array, "*copies n q"], spare: int) -> Float[Array, "*copies n n"]:
    """The matrix whose dual makes the first rows of what is read from units 0, by adding the others."""
    xp, size = namespace(read), read.shape[-2]
    below = (read[..., :spare, :] @ xp.linalg.pinv(read[..., spare:, :])).swapaxes(-1, -2)
    eye = xp.broadcast_to(xp.eye(size), (*read.shape[:-2], size, size))
    lower = xp.concatenate([below, eye[..., spare:, spare:]], axis=-1)
    return xp.concatenate([eye[..., :spare, :], lower], axis=-2)


def _read(sym: Symmetry, seen: Leaves, sides: Sequence[Side], i: int, later: Sequence[int]) -> Any:
    """What fixed ends, and the reached units that ``i`` feeds, read from the units ``i``."""
    together = {side.number: side for side in sides}
    own = together[i]
    found = [_ends(sym, seen, i, -own.exponent, [*later, *(j for j in together if j != i)])]
    for edge in edges(sym, list(together)):
        for (j, e), (k, f), taps in ways(edge, seen):
            if j == i and e == -own.exponent and f == together[k].exponent:
                spare = sym.factors[k].size - together[k].rank
                found.append(taps[:, spare:].reshape(*sym.factors[i].shape, -1))
    return namespace(*found).concatenate(found, axis=-1)


def _vectors(sym: Symmetry, seen: Leaves, left: Sequence[int], rounds: int, loose: Sequence[int]) -> Vectors:
    """Vectors that come from fixed ends through so many leaves at most."""
    signs = [(i, exponent) for i in left for exponent in (1, -1)]
    ends = {(i, e): _ends(sym, seen, i, e, [*loose, *(j for j in left if j != i)]) for i, e in signs}
    vectors, joined = ends, edges(sym, left, loose) if rounds else []
    for _ in range(rounds):
        found = {key: [end] for key, end in ends.items()}
        for edge in joined:
            for one, (k, f), taps in ways(edge, seen):
                come = vectors[k, -f].reshape(sym.factors[k].size, -1)
                image = namespace(taps).einsum("ijt,jp->ipt", taps, come)
                found[one].append(image.reshape(*sym.factors[one[0]].shape, -1))
        vectors = {key: _compressed(namespace(*some).concatenate(some, axis=-1)) for key, some in found.items()}
    return vectors


def _ends(sym: Symmetry, seen: Leaves, i: int, exponent: int, others: Iterable[int]) -> Any:
    """The units of slots on one side of a change of basis that it moves once and none of the others does, ``[*copies, n, entries]``."""
    own, blocked = cover(sym, [i]), cover(sym, others)
    units = [
        gathered(seen[path], slot)
        for _, path, slot in slots(sym, [i])
        if slot.exponent * exponent > 0
        and not gathered(blocked[path], slot).any()
        and gathered(own[path], slot).max() == 1
    ]
    return namespace(*units).concatenate(units, axis=-1) if units else np.zeros((*sym.factors[i].shape, 0))


def _compressed(vectors: Float[Array, "*copies n p"]) -> Float[Array, "*copies n q"]:
    """At most ``n`` vectors with the same Gram matrix of rows."""
    if vectors.shape[-1] <= vectors.shape[-2]:
        return vectors
    return namespace(vectors).linalg.qr(vectors.swapaxes(-1, -2), mode="r").swapaxes(-1, -2)


def _rank(vectors: Float[np.ndarray, "*copies n p"]) -> int:
    return int(np.linalg.matrix_rank(vectors).min()) if vectors.size else 0


def edges(sym: Symmetry, some: Sequence[int], loose: Sequence[int] = ()) -> list[Edge]:
    """The leaves that join two of some changes of basis without copies, or one to itself; none that a loose factor moves."""
    plain = [
        (i, path, slot) for i, path, slot in slots(sym, some) if math.prod(slot.where.shape[:-1]) == sym.factors[i].size
    ]
    counts = cover(sym, [*some, *loose])
    found = []
    for (i, path, slot), (j, other, its) in itertools.combinations(plain, 2):
        if path != other:
            continue
        first, second = (labels(one, sym.shapes[path]).ravel() for one in (slot, its))
        both = np.flatnonzero((first >= 0) & (second >= 0) & (counts[path].ravel() == 2))
        sizes = sym.factors[i].size, sym.factors[j].size
        if len(both) and len(both) % math.prod(sizes) == 0:
            where = both[np.lexsort((both, second[both], first[both]))].reshape(*sizes, -1)
            signs = (1 if slot.exponent > 0 else -1), (1 if its.exponent > 0 else -1)
            found.append(Edge(path, i, j, signs, where))
    return found


def _tap(leaves: Leaves, edge: Edge) -> Any:
    """The entries of a leaf between two kinds of units, ``[units, other units, taps]``."""
    return leaves[edge.path].ravel()[index(edge.where, leaves[edge.path])]


def ways(edge: Edge, leaves: Leaves) -> list[tuple[tuple[int, int], tuple[int, int], Any]]:
    """Both directions of a leaf: units and exponent at its end, those where it begins, and entries ``[end, begin, taps]``."""
    ends = list(zip((edge.one, edge.other), edge.exponents, strict=True))
    taps = _tap(leaves, edge)
    return [(ends[0], ends[1], taps), (ends[1], ends[0], taps.swapaxes(0, 1))]
