"""Balancing: the point of an orbit of rescalings with the least norm, where every conserved charge of them is 0."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsym.symmetry.group import Element, Symmetry, expect_group
from jaxsym.symmetry.units import Parts, gathered, labels, numbers, slots, spread

STEPS = 200
"""At most; a dozen do, unless the factors are far from 1."""
AWAY = 0.1
"""A unit whose logarithm moves by more in a step of Newton's method, though its gradient is rounding, has no balance."""
RIDGE = 32
"""Roundings of a unit's own curvature that are added to it: rescalings that do the same to all that is not 0 stay where they are."""
SWEEPS = 1000
"""Of equal ranges, at most."""


def loose(sym: Symmetry, counted: Mapping[str, Any]) -> list[int]:
    """The rescalings that change no counted entry; refuses where several change them all alike."""
    moving = numbers(sym, "scaling")
    first = dict(zip(moving, np.cumsum([0, *(math.prod(sym.factors[i].shape) for i in moving)]), strict=False))
    size = sum(math.prod(sym.factors[i].shape) for i in moving)
    told = np.zeros((size, size))  # exponents of pairs of units, over all entries
    for path in {path for _, path, _ in slots(sym, moving)}:
        own = []
        for i, where, slot in slots(sym, moving):
            if where == path:
                label = labels(slot, sym.shapes[path])
                own.append((float(slot.exponent), np.where(counted[path] & (label >= 0), first[i] + label, -1).ravel()))
        for (e, one), (f, other) in itertools.product(own, own):
            both = (one >= 0) & (other >= 0)
            np.add.at(told, (one[both], other[both]), e * f)
    still = told.diagonal() == 0
    found = [i for i in moving if still[first[i] : first[i] + math.prod(sym.factors[i].shape)].any()]
    if np.linalg.matrix_rank(told[~still][:, ~still], hermitian=True) < (~still).sum():
        msg = "canonicalize: several rescalings of this group meet changes of basis, and nothing else tells them apart; leave one of them out."
        raise ValueError(msg)
    return found


def least(
    sym: Symmetry, params: Mapping[str, Array], counted: Mapping[str, Any], moving: Sequence[int], *, pinned: bool
) -> tuple[Parts, Parts]:
    """Some rescalings, to the least sum of squares over the counted entries, and the gradient that is left; what shares no leaf by itself."""
    found = [_least(sym, params, counted, group, pinned=pinned) for group in _groups(sym, moving)]
    return {i: part for point, _ in found for i, part in point.items()}, {
        i: part for _, left in found for i, part in left.items()
    }


def _groups(sym: Symmetry, moving: Sequence[int]) -> list[list[int]]:
    """The factors, those together that share a leaf, and those that share one with these."""
    groups: list[tuple[set[str], list[int]]] = []
    for i in moving:
        paths, members = {path for _, path, _ in slots(sym, [i])}, [i]
        for group in [group for group in groups if group[0] & paths]:
            groups.remove(group)
            paths, members = paths | group[0], [*group[1], *members]
        groups.append((paths, members))
    return [sorted(members) for _, members in groups]


def _least(
    sym: Symmetry, params: Mapping[str, Array], counted: Mapping[str, Any], moving: Sequence[int], *, pinned: bool
) -> tuple[Parts, Parts]:
    """Some rescalings, to the least sum of squares over the counted entries, and the gradient that is left.

    That sum is convex in the logarithms of the factors (a geometric programme). A unit that could shrink for ever, as its entries all grow with one
    factor, gets squares that add up to 1 where ``pinned`` (:func:`_targets`), and stays as it is otherwise. So do units that can only shrink together, as those of a
    recurrent layer that nothing reads: there the gradient vanishes while the steps of Newton's method do not.

    Notes
    -----
    Newton with the step of Sun, Tran-Dinh 2019, arXiv:1703.04599, equation 9: the sum is generalised self-concordant of order 2 with the constant 2 in the seminorm
    ``max |log of the factor of an entry|``.
    """
    paths = dict.fromkeys(path for _, path, _ in slots(sym, moving))
    sizes = {path: jnp.where(counted[path], jnp.abs(params[path]), 0) for path in paths}
    dtype = jnp.promote_types(jnp.result_type(*sizes.values()), jnp.float32)
    eps = jnp.finfo(dtype).eps
    sizes = {path: size.astype(dtype) for path, size in sizes.items()}
    there = {path: (size > 0).astype(dtype) for path, size in sizes.items()}
    grow = _each(sym, there, moving, lambda exponent: max(exponent, 0.0))
    shrink = _each(sym, there, moving, lambda exponent: max(-exponent, 0.0))
    one_sided = {i: (shrink[i] == 0) * 1.0 - (grow[i] == 0) * 1.0 for i in moving}
    free = {i: (one_sided[i] == 0) | pinned for i in moving}
    target = _targets(sym, there, {i: jnp.where(grow[i] + shrink[i] > 0, one_sided[i], 0) for i in moving})

    def logs(point: Parts) -> dict[str, Array]:
        """The logarithm of each entry's factor."""
        total = dict.fromkeys(sizes, jnp.zeros((), dtype))
        for i, path, slot in slots(sym, moving):
            total[path] = total[path] + slot.exponent * spread(point[i], slot, sym.shapes[path], 0)
        return total

    def scaled(point: Parts) -> tuple[dict[str, Array], Array]:
        """Each entry's square, in units of the largest, and the logarithm of that unit: nothing overflows."""
        moved = logs(point)
        each = [(jnp.log(sizes[path]) + moved[path]).max(initial=-jnp.inf) for path in sizes]
        most = jax.lax.stop_gradient(functools.reduce(jnp.maximum, each))
        most = jnp.where(jnp.isfinite(most), most, 0)
        return {path: (sizes[path] * jnp.exp(moved[path] - most)) ** 2 for path in sizes}, 2 * most

    def gradient(point: Parts) -> Parts:
        squares, unit = scaled(point)
        found = _each(sym, squares, moving, lambda exponent: exponent)
        return {i: found[i] - target[i] * jnp.exp(-unit) for i in moving}

    def relative(slope: Parts, squares: Mapping[str, Array]) -> Parts:
        mass = _each(sym, squares, moving, abs)
        return {i: jnp.where(mass[i] > 0, slope[i] / jnp.where(mass[i] > 0, mass[i], 1), 0) for i in moving}

    def newton(point: Parts, held: Parts) -> tuple[Parts, Array, Array]:
        """A step, how far it moves the logarithm of an entry at most, and the gradient as a part of what it consists of."""
        alone = lambda v: {i: jnp.where(held[i], 0, v[i]) for i in moving}  # noqa: E731
        slope, product = jax.linearize(lambda at: alone(gradient(at)), point)
        squares, _ = scaled(point)
        diagonal = _each(sym, squares, moving, lambda exponent: 2 * exponent**2)
        precondition = lambda v: {i: v[i] / jnp.where(diagonal[i] > 0, diagonal[i], 1) for i in moving}  # noqa: E731
        ridge = {i: RIDGE * eps * diagonal[i] for i in moving}
        hessian = lambda v: {i: own + ridge[i] * v[i] for i, own in product(alone(v)).items()}  # noqa: E731
        step, _ = jax.scipy.sparse.linalg.cg(hessian, jax.tree.map(jnp.negative, slope), tol=1e-10, M=precondition)
        moves = logs(step)
        size = [jnp.where(sizes[path] > 0, jnp.abs(moves[path]), 0).max(initial=0) for path in sizes]
        left = [jnp.abs(one).max(initial=0) for one in relative(slope, squares).values()]
        return step, functools.reduce(jnp.maximum, size), functools.reduce(jnp.maximum, left)

    def descend(start: Parts, held: Parts) -> tuple[Parts, Parts]:
        """Newton's method, and which units run away: what drives them has vanished, and their steps have not."""

        def body(state: tuple[Parts, Parts, Array, Array, Array]) -> tuple[Parts, Parts, Array, Array, Array]:
            point, _, _, _, count = state
            step, size, left = newton(point, held)
            length = jnp.where(size > 0, jnp.log1p(2 * size) / jnp.where(size > 0, 2 * size, 1), 1)
            return {i: point[i] + length * step[i] for i in moving}, step, size, left, count + 1

        def going(state: tuple[Parts, Parts, Array, Array, Array]) -> Array:
            _, _, size, left, count = state
            return (size > 8 * eps) & ~((size > AWAY) & (left < 32 * eps)) & (count < STEPS)

        large = jnp.array(jnp.inf, dtype)
        point, step, _, left, _ = jax.lax.while_loop(going, body, (start, start, large, large, jnp.array(0)))
        return point, {i: (jnp.abs(step[i]) > AWAY) & (left < 32 * eps) for i in moving}

    still = {i: jnp.zeros(sym.factors[i].shape, dtype) for i in moving}

    def again(state: tuple[Parts, Parts], _: None) -> tuple[tuple[Parts, Parts], None]:
        point, held = state
        point, away = descend(point, held)
        lost = functools.reduce(jnp.logical_or, [one.any() for one in away.values()])
        return ({i: jnp.where(lost, 0, point[i]) for i in moving}, {i: held[i] | away[i] for i in moving}), None

    (point, _), _ = jax.lax.scan(again, (still, {i: ~free[i] for i in moving}), length=2)
    slope = relative(gradient(point), scaled(point)[0])
    return point, {i: jnp.where(free[i], slope[i], 0) for i in moving}


def _targets(sym: Symmetry, there: Mapping[str, Array], one_sided: Parts) -> Parts:
    """What the squares of units that could shrink for ever add up to, weighted by exponents; 0 for others.

    It is 1 for each alone. Where several share entries, as a gain that a rescaling of its unit moves and one of the whole stream, not all can have 1: there it is
    what entries would give of which those of each unit add up to 1, the units with the fewest first.
    """
    left, reference = dict(there), {path: jnp.zeros_like(entries) for path, entries in there.items()}
    fewest = sorted(one_sided, key=lambda i: sum(slot.where.size for slot in sym.factors[i].slots) / one_sided[i].size)
    for i in fewest:
        own = _each(sym, left, [i], abs)[i]
        part = jnp.where((one_sided[i] != 0) & (own > 0), 1 / jnp.where(own > 0, own, 1), 0)
        for _, path, slot in slots(sym, [i]):
            share = left[path] * spread(part, slot, sym.shapes[path], 0)
            reference[path] = jnp.maximum(reference[path], share)
        left = {path: jnp.where(reference[path] > 0, 0, entries) for path, entries in left.items()}
    found = _each(sym, reference, list(one_sided), lambda exponent: exponent)
    return {i: jnp.where(one_sided[i] != 0, found[i], 0).astype(found[i].dtype) for i in one_sided}


def balance(sym: Symmetry, params: PyTree, norm: float = 2) -> PyTree:
    """The point of the orbit of all rescalings at which what comes in balances what goes out.

    With ``norm=2`` every rescaling charge is 0: the sum of squares is the least on the orbit (equi-normalisation). With ``norm=inf`` the largest
    entry that grows with a unit's factor equals the largest that shrinks (cross-layer equalisation), so that all ranges are equal. Units whose entries all
    grow, or all shrink, or that can only shrink together for ever, have no such point and stay.

    Parameters
    ----------
    sym
        The group; all but its scalings is left alone.
    params
        The parameters; vmaps over leading axes.
    norm
        2 or infinity.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, the norm is another, or the parameters do not fit the group.

    Notes
    -----
    *Source*: Stock, Graham, Gribonval, Jegou 2019, arXiv:1902.10416; Nagel et al. 2019, arXiv:1906.04721 (infinity).

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 1), "relu"), jax.numpy.ones((5, 3))
    >>> params = net.init(jax.random.key(0), x)
    >>> even = balance(js.discover(net.apply, params, x), params)["params"]
    >>> into, out = (even["Dense_0"]["kernel"] ** 2).sum(0), (even["Dense_1"]["kernel"] ** 2).sum(1)
    >>> bool(abs(into - out).max() < 1e-5)
    True
    """
    expect_group(sym, "balance")
    element = balancing_element(sym, params, norm)
    return sym.act(element, params) if numbers(sym, "scaling") else params


def balancing_element(sym: Symmetry, params: PyTree, norm: float = 2, *, pinned: bool = False) -> Element:
    """The element of :func:`balance`; ``pinned`` for that of :func:`least`, in which a unit without balance has a size, too."""
    if norm not in (2, math.inf):
        msg = f"balance: norm is {norm!r}, expected 2 or math.inf."
        raise ValueError(msg)
    moving = numbers(sym, "scaling")
    if not moving:
        return sym.identity()
    leaves = sym.leaves(params)
    if norm == 2:
        parts, _ = least(sym, leaves, dict.fromkeys(sym.shapes, np.True_), moving, pinned=pinned)
    else:
        parts = _equal_ranges(sym, leaves, moving)
    return tuple(parts.get(i, part) for i, part in enumerate(sym.identity()))


def _each(
    sym: Symmetry, entries: Mapping[str, Array], moving: Sequence[int], weight: Callable[[float], float]
) -> Parts:
    """For each unit of some scalings the sum of its entries, weighted by a function of the exponent."""
    dtype = jnp.result_type(*entries.values()) if entries else None
    found = {i: jnp.zeros(sym.factors[i].shape, dtype) for i in moving}
    for i, path, slot in slots(sym, found):
        found[i] = found[i] + weight(slot.exponent) * gathered(entries[path], slot).sum(-1)
    return found


def _equal_ranges(sym: Symmetry, params: Mapping[str, Array], moving: Sequence[int]) -> Parts:
    """One factor after the other, until none moves."""

    def crossing(i: int, logs: Mapping[str, Array]) -> Array:
        """Where the largest entries that grow meet the largest that shrink: of all pairs of slots."""
        sides: dict[bool, list[tuple[float, Array]]] = {True: [], False: []}
        for _, path, slot in slots(sym, [i]):
            sides[slot.exponent > 0].append((slot.exponent, gathered(logs[path], slot).max(-1)))
        if not (sides[True] and sides[False]):
            return jnp.zeros(sym.factors[i].shape, dtype)
        rows = [[(down - up) / (grows - falls) for falls, down in sides[False]] for grows, up in sides[True]]
        met = functools.reduce(jnp.minimum, [functools.reduce(jnp.maximum, row) for row in rows])
        return jnp.where(jnp.isfinite(met), met, 0)

    def body(state: tuple[Parts, dict[str, Array], Array, Array]) -> tuple[Parts, dict[str, Array], Array, Array]:
        point, logs, _, count = state
        point, logs, size = dict(point), dict(logs), jnp.zeros((), dtype)
        for i in moving:
            step = crossing(i, logs)
            for _, path, slot in slots(sym, [i]):
                logs[path] = logs[path] + slot.exponent * spread(step, slot, sym.shapes[path], 0)
            point[i] = point[i] + step
            size = jnp.maximum(size, jnp.abs(step).max(initial=0))
        return point, logs, size, count + 1

    def going(state: tuple[Parts, dict[str, Array], Array, Array]) -> Array:
        _, logs, size, count = state
        eps = jnp.finfo(jnp.result_type(*logs.values())).eps
        return (size > 8 * eps) & (count < SWEEPS)

    dtype = jnp.result_type(*(params[path] for _, path, _ in slots(sym, moving)))
    start = {i: jnp.zeros(sym.factors[i].shape, dtype) for i in moving}
    logs = {path: jnp.log(jnp.abs(params[path])).astype(dtype) for _, path, _ in slots(sym, moving)}
    return jax.lax.while_loop(going, body, (start, logs, jnp.array(jnp.inf, dtype), jnp.array(0)))[0]
