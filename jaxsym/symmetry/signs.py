"""Which sign is the canonical one: that of a weighted sum of entries which change sign with one unit alone."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int

from jaxsym.symmetry.factors import Slot
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.units import (
    Leaves,
    Parts,
    act,
    close,
    extra,
    gathered,
    inclined,
    normalized,
    shifted,
    slots,
    spread,
    straight,
    weights,
)

Unknown = dict[int, Bool[np.ndarray, "*copies size"]]
"""Number of a factor -> of which of its units the sign is not known yet."""
Anchors = tuple[tuple[str, Slot, Float[np.ndarray, "*copies size rest"]], ...]


class Choice(NamedTuple):
    """One step: the signs of some units of a factor."""

    number: int
    units: Bool[np.ndarray, "*copies size"]
    anchors: Anchors
    """Where the entries are that change with these signs alone, and 1 for each. Without any the signs are free: the group has elements that change
    nothing, and others that can be chosen to fit."""
    again: bool = False
    """A second look, when all other signs are known, at those whose anchors were all 0."""


def choices(sym: Symmetry, asked: Sequence[int], later: Iterable[int]) -> tuple[Choice, ...]:
    """An order in which all signs of the factors ``asked`` are known, while those ``later`` are not."""
    others = {i: np.ones(sym.factors[i].shape, bool) for i in later}
    unknown = {i: np.ones(sym.factors[i].shape, bool) for i in asked}
    found: list[Choice] = []
    while any(left.any() for left in unknown.values()):
        best, score = None, 0
        for i, left in unknown.items():
            anchors = _anchors(sym, i, unknown | others)
            if anchors and left.any():
                entries = np.max(
                    [alone.sum(axis=-1)[..., extra(sym.factors[i], slot) :] for _, slot, alone in anchors], axis=0
                )
                known = left & (entries > 0)
                least = entries[known].min(initial=np.iinfo(int).max) if known.any() else 0
                if least > score:
                    best, score = Choice(i, known, anchors), least
        if best is None:
            best = _free(sym, unknown)
        found.append(best)
        unknown[best.number] = unknown[best.number] & ~best.units
    everything = {i: np.ones(sym.factors[i].shape, bool) for i in asked}
    again = [Choice(i, left, _anchors(sym, i, others | {i: left}), again=True) for i, left in everything.items()]
    return (*found, *again)


def choose(
    sym: Symmetry, order: Sequence[Choice], leaves: Leaves, mixing: Sequence[int]
) -> tuple[Parts, dict[int, Array]]:
    """Signs that make the sums positive, and which are unclear; sums over units that the ``mixing`` factors mix are even."""
    chosen: Parts = {}
    unclear: dict[int, Array] = {}
    for i, units, anchors, again in order:
        factor = sym.factors[i]
        total, mass = _sums(sym, i, anchors, normalized(straight(sym, leaves)), mixing)
        asked = unclear[i] if again else jnp.asarray(units)
        weak = asked & (abs(total) <= close(total) * jnp.maximum(mass, 1))  # leaves are about 1; below is rounding
        sign = jnp.where(asked & ~weak & (total < 0), -1.0, 1.0).astype(total.dtype)
        unclear[i] = weak & (mass > close(mass)) if again else unclear.get(i, False) | weak & bool(anchors)
        part = sign if factor.kind == "sign" else sign[..., None] * np.eye(factor.size)
        leaves = act(sym, {i: part}, leaves)
        if i in chosen:
            part = chosen[i] * part if factor.kind == "sign" else chosen[i] @ part
        chosen[i] = part
    return chosen, unclear


def _sums(
    sym: Symmetry, i: int, anchors: Anchors, seen: Leaves, mixing: Sequence[int]
) -> tuple[Float[Array, "*copies size"], Float[Array, "*copies size"]]:
    """Weighted sums over the anchors of each unit, and of their absolute values."""
    factor = sym.factors[i]
    total: Any = jnp.zeros(factor.shape)
    mass: Any = jnp.zeros(factor.shape)
    for path, slot, alone in anchors:
        heavy = gathered(np.broadcast_to(weights(sym, path, mixing), sym.shapes[path]), slot)
        units = (gathered(seen[path], slot) * heavy * alone)[..., extra(factor, slot) :, :]
        total, mass = total + units.sum(-1), mass + abs(units).sum(-1)
    return total, mass


def _anchors(sym: Symmetry, i: int, unknown: Unknown) -> Anchors:
    blocked = shifted(sym, [j for j, left in unknown.items() if left.any()])
    found = []
    for path in sym.shapes:
        for slot in (slot for _, slot in _acting(sym, path, [i]) if path not in blocked):
            signs = list(_signs(sym, path, unknown))
            axis = inclined(sym).get(path)
            count = sum((_odd(signs, k).astype(int) for k in range(len(signs))), np.zeros(sym.shapes[path], int))
            for k, (j, other, own) in enumerate(signs):  # what differs along an inclined axis is no sign there
                if axis is not None and not extra(sym.factors[j], other):
                    count += 2 * (_odd(signs, k) & (own != own.take([0], axis))).any(axis, keepdims=True)
            mine = [k for k, (j, other, _) in enumerate(signs) if j == i and _same(other, slot)]
            alone = gathered((count == 1) & _odd(signs, mine[0], first=False), slot)
            if alone.any():
                found.append((path, slot, alone.astype(float)))
    return tuple(found)


def _same(one: Slot, other: Slot) -> bool:
    return one.where is other.where and one.axes == other.axes


def _signs(sym: Symmetry, path: str, unknown: Unknown) -> Iterator[tuple[int, Slot, Int[np.ndarray, "..."]]]:
    """Factor, slot and, for every entry of a leaf in its frame, the number of the unknown sign that changes it; -1 where there is none."""
    first = dict(zip(unknown, np.cumsum([0, *(left.size for left in unknown.values())]), strict=False))
    shape = sym.shapes[path]
    for j, slot in _acting(sym, path, unknown):
        yield j, slot, np.broadcast_to(_labels(slot, shape, unknown[j], int(first[j])), shape)


def _acting(sym: Symmetry, path: str, some: Iterable[int]) -> Iterator[tuple[int, Slot]]:
    """The slots of a leaf in its frame: its own, and those of the gains that it is multiplied by."""
    some = list(some)
    for j, own, slot in slots(sym, some):
        if own == path:
            yield j, slot
    frames = {
        (slot.frame[0], slot.axis) for _, own, slot in slots(sym, range(len(sym.factors))) if own == path and slot.frame
    }
    for gain, axis in sorted(frames):
        for j, own, slot in slots(sym, some):
            if own == gain:
                yield j, slot._replace(path=tuple(path.split("/")), axis=axis, axes=(axis,))


def _labels(slot: Slot, shape: tuple[int, ...], left: Bool[np.ndarray, "*copies size"], first: int) -> Any:
    labels = np.where(left, first + np.arange(left.size).reshape(left.shape), -1)
    if slot.where.shape[-2] > left.shape[-1]:  # the sum of all, which a rotation leaves alone, comes first
        labels = np.concatenate([np.full((*left.shape[:-1], 1), -1), labels], axis=-1)
    return spread(labels, slot, shape, -1)


def _odd(
    signs: list[tuple[int, Slot, Int[np.ndarray, "..."]]], k: int, *, first: bool = True
) -> Bool[np.ndarray, "..."]:
    """Where the k-th sign is one that changes the entry, as it does not occur an even number of times; with ``first``, at its first place."""
    own = signs[k][2]
    same = [own == other for *_, other in signs]
    odd = (own >= 0) & (np.sum(same, axis=0) % 2 == 1)
    return odd & ~np.any(same[:k], axis=0) if first and k else odd


def _free(sym: Symmetry, unknown: Unknown) -> Choice:
    """The first sign of the smallest factor in each set of signs that are joined by entries: as there is no anchor, any will do."""
    sizes = {j: left.size for j, left in unknown.items()}
    offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    pairs: list[Any] = [np.zeros((2, 0), int)]
    for path in sym.shapes:
        labels = [own.ravel() for *_, own in _signs(sym, path, unknown)]
        pairs += [np.unique(np.stack([a, b])[:, (a >= 0) & (b >= 0)], axis=1) for a in labels[:1] for b in labels[1:]]
    rows, columns = np.concatenate(pairs, axis=1)
    total = sum(sizes.values())
    graph = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), (total, total))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    i = min((j for j in unknown if unknown[j].any()), key=lambda j: sizes[j])
    own = component[offsets[i] : offsets[i] + sizes[i]]
    left = np.flatnonzero(unknown[i])
    _, firsts = np.unique(own[left], return_index=True)
    units = np.zeros(sizes[i], bool)
    units[left[firsts]] = True
    return Choice(i, units.reshape(unknown[i].shape), ())
