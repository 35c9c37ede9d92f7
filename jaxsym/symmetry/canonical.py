"""One point for each orbit: the same parameters for every network that the group cannot tell apart.

The group is undone from the outside in, so that what is done later keeps what was done before: translations and phases to the origin of their charts;
rescalings to the least norm; changes of basis to orthonormal rows; then units are put in the order of numbers that nothing of what is left can change
(permutations), axes are turned to the eigenvectors of a weighted Gram matrix (rotations, and what changes of basis leave), and signs are chosen last.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym.symmetry import frames
from jaxsym.symmetry.group import AFFINE, Element, Symmetry, expect_group
from jaxsym.symmetry.host import namespace, normal
from jaxsym.symmetry.scales import balancing_element, least, loose
from jaxsym.symmetry.signs import Choice, choices, choose
from jaxsym.symmetry.units import (
    TURNS,
    Leaves,
    Parts,
    act,
    close,
    coefficient,
    cover,
    even,
    extra,
    floating,
    framed,
    gathered,
    normalized,
    numbers,
    shifted,
    slots,
    spread,
    upright,
    weights,
)

SETTLED = 1e-9
"""A translation up to this is none, at the random point that the plan is made at."""
LEAST = 4
"""Bytes of a number, for units to be told apart."""
ROUNDS = 3
"""Of the numbers that order the units: each reads those of the units that a unit is joined to."""


class Canonical(NamedTuple):
    """The canonical parameters of a network, and how they were reached."""

    element: Element
    params: PyTree
    """``sym.act(element, given)``."""
    ties: tuple[Array, ...]
    """For each factor and unit ``[*copies, size]`` (in the canonical order) whether its place, axis or sign is not determined: duplicates."""


class _Plan(NamedTuple):
    """What depends on the group alone."""

    passes: int
    """How often all translations are undone in turn."""
    loose: tuple[int, ...]
    """Rescalings of nothing but what changes of basis move."""
    steps: tuple[frames.Step, ...]
    """Changes of basis in the order in which they are undone."""
    first: tuple[int, ...]
    """Rotations and changes of basis whose axes are found before units are ordered, as these axes tell the units apart."""
    turns: tuple[int, ...]
    """All others, in the order in which their axes are found."""
    ties: int
    """How many units and axes remain that tie at generic parameters."""
    rounds: int
    """Through how many leaves what tells the axes comes."""
    early: tuple[Choice, ...]
    """Signs that leave shifts behind, in the order in which they are found: before anything that would have to know these shifts."""
    late: tuple[Choice, ...]
    """All others, and those of the axes."""


def canonicalize(sym: Symmetry, params: PyTree) -> Canonical:
    """The point that stands for an orbit: equal for all parameters that the group takes into each other.

    Rescalings are balanced to zero charge (over the entries that no change of basis moves), changes of basis and rotations end in the axes of
    their Gram matrices, units are ordered by numbers that do not depend on the rest of the group, and each sign is that of a sum of a unit's entries.
    Continuous almost everywhere; where two units cannot be told apart ``ties`` says so, and the result may depend on the point.

    Parameters
    ----------
    sym
        The group.
    params
        Parameters, in float64 for more than a few digits; vmaps over leading axes. In float32 the units of a wide layer (a hundred and more) are too many to be
        told apart, and tie.

    Returns
    -------
    Canonical
        The element, the parameters that it leads to, and the ties.

    Raises
    ------
    TypeError
        If ``sym`` is no group.
    ValueError
        If the parameters do not fit it, it contains a user's own action, or changes of basis that hold each other in another way than layers behind one
        another do; rescalings that nothing but changes of basis tells apart.

    Notes
    -----
    *Source*: minimal vectors of Kempf, Ness 1979 for the rescalings, which are unique up to the compact part of the group; for changes of basis see
    :mod:`jaxsym.symmetry.frames`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net, x = js.models.MLP((3, 1), "tanh"), jnp.ones((5, 2))
    >>> params = net.init(jax.random.key(0), x)
    >>> sym = js.discover(net.apply, params, x)
    >>> moved = sym.act(sym.sample(jax.random.key(1)), params)
    >>> bool(orbit_distance(sym, params, moved) < 1e-6), any(tie.any() for tie in canonicalize(sym, params).ties)
    (True, False)
    """
    return _form(sym, params)[1]


def _form(sym: Symmetry, params: PyTree) -> tuple[_Plan, Canonical]:
    """The canonical form, and how it was planned."""
    expect_group(sym, "canonicalize")
    for path, leaf in sym.leaves(params).items():
        if path in sym.shapes and floating(leaf) and leaf.dtype.itemsize < LEAST:
            msg = f"canonicalize: {path} is of type {leaf.dtype}, expected float64, or float32: cast the parameters first."
            raise ValueError(msg)
    plan, form = _compiled(sym)
    return plan, form(params)


def orbit_distance(sym: Symmetry, a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The Euclidean distance between two canonical forms: 0 exactly when the group takes one network to the other, barring ties.

    A metric on the quotient by the group; never smaller than the distance of the two orbits. Ties are not seen here: where :func:`canonicalize` has some,
    as with more than about a hundred units a layer in float32, two networks of one orbit may be far apart.

    Parameters
    ----------
    sym
        The group.
    a, b
        Parameters; vmaps over leading axes.

    Raises
    ------
    TypeError, ValueError
        As :func:`canonicalize`; also if units tie at generic parameters, as where rotations and permutations hold each other.
    """
    found = [_form(sym, params) for params in (a, b)]
    if found[0][0].ties:
        msg = (
            f"orbit_distance: canonical forms of this group are not determined, as {found[0][0].ties} units or axes tie at generic parameters"
            " (the ties of canonicalize say which): leave a change of basis or a rotation out of the group: dataclasses.replace(sym, factors=...)."
        )
        raise ValueError(msg)
    ends = [sym.leaves(form.params) for _, form in found]
    pairs = zip(*(leaves.values() for leaves in ends), strict=True)
    return jnp.sqrt(sum(jnp.sum((x - y) ** 2) for x, y in pairs if floating(x)))


def _compiled(sym: Symmetry) -> tuple[_Plan, Callable[[PyTree], Canonical]]:
    """The canonical form of one group: planned and compiled once, and kept with it."""
    kept = vars(sym)
    if "canonical form" not in kept:
        with jax.ensure_compile_time_eval():  # on the host, even where this is traced
            plan = _planned(sym)

        def form(params: PyTree) -> Canonical:
            with jax.default_matmul_precision("highest"):
                return _canonical(sym, plan, params)

        kept["canonical form"] = plan, jax.jit(form)
    return kept["canonical form"]


class _Walk:
    """A point that moves along its orbit, and the element that has brought it there."""

    def __init__(self, sym: Symmetry, leaves: Leaves) -> None:
        self.sym, self.leaves = sym, sym.leaves(leaves)
        self.element = sym.identity()
        self.ties: dict[int, Any] = {}

    def go(self, parts: Parts) -> None:
        """Act with some factors."""
        self.leaves = act(self.sym, parts, self.leaves)
        if parts:
            step = tuple(parts.get(i, part) for i, part in enumerate(self.sym.identity()))
            self.element = self.sym.compose(step, self.element)

    def balance(self, counted: dict[str, Any], moving: Sequence[int]) -> None:
        """Some rescalings to the least norm."""
        scaled, slope = least(self.sym, self.leaves, counted, moving, pinned=True)
        self.ties |= {i: jnp.abs(slope[i]) > close(slope[i]) for i in slope}
        self.go(scaled)

    def order(self, turns: Sequence[int]) -> None:
        """Units into their order, where the axes of some turns are not known yet."""
        ordered, ties = _ordered(self.sym, self.leaves, turns)
        self.ties |= ties
        self.go(ordered)


def gauged(sym: Symmetry, params: PyTree) -> Element:
    """The element after which only permutations, signs and rotations are left: translations at their origin, rescalings balanced, bases orthonormal.

    Two networks of one orbit differ by an element of a compact group then, up to changes of basis of what computes nothing (:mod:`jaxsym.symmetry.frames`).

    Raises
    ------
    TypeError, ValueError
        As :func:`canonicalize`.
    """
    expect_group(sym, "gauged")
    kept = vars(sym)
    if "gauge" not in kept:
        compact = {factor.kind for factor in sym.factors} <= {"permutation", "sign", "scaling"} and not _crooked(sym)
        if compact:
            kept["gauge"] = jax.jit(functools.partial(balancing_element, sym, pinned=True))
        else:
            plan, _ = _compiled(sym)
            kept["gauge"] = jax.jit(lambda params: _upright(sym, plan, params).element)
    with jax.default_matmul_precision("highest"):
        return kept["gauge"](params)


def _upright(sym: Symmetry, plan: _Plan, params: PyTree) -> _Walk:
    """What is not compact in the group is undone."""
    walk = _Walk(sym, params)
    walk.go(_origin(sym, walk.leaves, plan.passes))
    walk.balance(_unmixed(sym), [i for i in numbers(sym, "scaling") if i not in plan.loose])
    if plan.early:
        chosen, unclear = choose(sym, plan.early, walk.leaves, numbers(sym, "permutation", *TURNS))
        walk.ties |= unclear
        walk.go(chosen)
        walk.go(_origin(sym, walk.leaves, plan.passes))
    straight, less = frames.straightened(sym, plan.steps, walk.leaves, plan.loose)
    walk.ties |= {i: jnp.broadcast_to(less[i][..., None], sym.factors[i].shape) for i in less}
    walk.go(straight)
    return walk


def _canonical(sym: Symmetry, plan: _Plan, params: PyTree) -> Canonical:
    walk = _upright(sym, plan, params)
    walk.leaves = frames.computing(sym, plan.steps, walk.leaves)
    walk.balance(_turned(sym, plan.loose), plan.loose)
    movers, turns = numbers(sym, "permutation"), [*plan.first, *plan.turns]
    for position, i in enumerate(turns):
        if position == len(plan.first):
            walk.order(plan.turns)
        unresolved = [*turns[position:], *(movers if i in plan.first else ())]
        turned, tied = _axes(sym, i, unresolved, walk.leaves, plan.rounds)
        walk.ties[i] = walk.ties.get(i, False) | tied
        walk.go({i: turned})
    if len(turns) == len(plan.first):
        walk.order(())
    chosen, unclear = choose(sym, plan.late, walk.leaves, ())
    walk.ties |= {i: walk.ties.get(i, False) | unclear[i] for i in unclear}
    walk.go(chosen)
    walk.leaves = sym.leaves(sym.act(walk.element, params))
    walk.go(frames.reduced(sym, plan.steps, walk.leaves))
    walk.go(_origin(sym, walk.leaves, plan.passes))
    form = sym.act(walk.element, params)
    finite = [jnp.isfinite(leaf).all() for leaf in sym.leaves(form).values() if floating(leaf)]
    lost = ~functools.reduce(jnp.logical_and, finite, jnp.asarray(True))
    ties = tuple(walk.ties.get(i, False) | lost | jnp.zeros(f.shape, bool) for i, f in enumerate(sym.factors))
    return Canonical(walk.element, form, ties)


def _planned(sym: Symmetry) -> _Plan:
    """Refuse what has no canonical form here, and find an order in which each step is determined, at a random point."""
    if numbers(sym, "action"):
        msg = "canonicalize: the group contains a user's own action, of which only the motion is known; use a group that discover found."
        raise ValueError(msg)
    bent = [i for i in numbers(sym, "sign") if sym.factors[i].whole is not None]
    plain = [i for i in numbers(sym, "sign", *TURNS) if i not in bent]
    random = {path: normal(f"plan {path}", math.prod(shape)).reshape(shape) for path, shape in sym.shapes.items()}
    passes = _passes(sym, random)
    leaves = act(sym, _origin(sym, random, passes), random)
    loosened = tuple(loose(sym, _unmixed(sym)))
    steps = frames.planned(sym, leaves, loosened)
    leaves = act(sym, frames.straightened(sym, steps, leaves, loosened)[0], leaves)
    leaves = frames.computing(sym, steps, leaves)
    turns = numbers(sym, *TURNS)
    plans = []
    for rounds in (0, ROUNDS):
        _, told = _ordered(sym, leaves, turns)
        unclear = sum(np.asarray(tie).sum() for tie in told.values())
        first, moved, _ = (
            _turned_in_order(sym, leaves, turns, rounds, numbers(sym, "permutation")) if unclear else ([], leaves, 0)
        )
        if first:
            left = [i for i in turns if i not in first]
            unclear = sum(np.asarray(tie).sum() for tie in _ordered(sym, moved, left)[1].values())
        late, _, tied = _turned_in_order(sym, moved, [i for i in turns if i not in first], rounds, None)
        plans.append((unclear + tied, rounds, first, late))
        if not unclear + tied:
            break
    ties, rounds, first, late = min(plans)
    return _Plan(
        passes,
        loosened,
        steps,
        tuple(first),
        tuple(late),
        int(ties),
        rounds,
        choices(sym, bent, plain),
        choices(sym, plain, ()),
    )


def _turned_in_order(
    sym: Symmetry, leaves: Leaves, turns: Sequence[int], rounds: int, movers: Sequence[int] | None
) -> tuple[list[int], Leaves, int]:
    """Turns in an order in which the clearest comes first, the leaves after them, and how many axes tie; before the ``movers`` only those that are clear."""
    done, rest, ties = [], list(turns), 0
    while rest:
        found = {i: _axes(sym, i, [*rest, *(movers or ())], leaves, rounds) for i in rest}
        best = min(rest, key=lambda i: found[i][1].sum())
        if movers is not None and found[best][1].any():
            break
        ties += int(found[best][1].sum())
        leaves = act(sym, {best: found[best][0]}, leaves)
        done.append(best)
        rest.remove(best)
    return done, leaves, ties


def _origin(sym: Symmetry, leaves: Leaves, passes: int) -> Parts:
    """Translations to the origin of their charts; phases until the bias is within a quarter of a period of 0."""
    parts: Parts = {}
    for i in numbers(sym, *AFFINE) * passes:
        factor = sym.factors[i]
        if factor.kind == "translation":
            step = -factor.whole.chart(leaves)
        else:
            path = factor.whole.moves[0][0]
            period = factor.whole.act(np.ones(factor.shape), leaves)[path] - leaves[path]
            step = -namespace(period).round(leaves[path] / period).reshape(factor.shape)
        parts[i] = parts.get(i, 0) + step
        leaves = act(sym, {i: step}, leaves)
    return parts


def _passes(sym: Symmetry, leaves: Leaves) -> int:
    """How often all translations must be undone in turn, as one may move the chart of another."""
    for passes in range(1, 2 + len(sym.factors)):
        leaves = act(sym, _origin(sym, leaves, 1), leaves)
        if all(np.abs(step).max(initial=0) < SETTLED for step in _origin(sym, leaves, 1).values()):
            return passes
    msg = "canonicalize: the translations of this group have no common origin; please report it."
    raise ValueError(msg)


def _unmixed(sym: Symmetry) -> dict[str, np.ndarray]:
    """The entries whose squares keep their sum under all factors but the rescalings."""
    unmixed = {path: counts == 0 for path, counts in cover(sym, numbers(sym, "general_linear")).items()}
    return {path: own & (path not in _crooked(sym)) for path, own in unmixed.items()}


def _turned(sym: Symmetry, loosened: Sequence[int]) -> dict[str, np.ndarray]:
    """The entries of these rescalings whose squares keep their sum under rotations."""
    return {path: (own > 0) & (path not in _crooked(sym)) for path, own in cover(sym, loosened).items()}


def _crooked(sym: Symmetry) -> set[str]:
    """The leaves whose sum of squares is none that the group keeps: they are turned in a frame of gains, or signs shift them."""
    turned = {path for _, path, slot in slots(sym, range(len(sym.factors))) if slot.frame is not None}
    return turned | shifted(sym, numbers(sym, "sign"))


def _ordered(sym: Symmetry, leaves: Leaves, turns: Sequence[int]) -> tuple[Parts, Parts]:
    """Permutations into the order of numbers of the units that no sign and none of these turns changes, and which of them tie."""
    movers = numbers(sym, "permutation")
    signs = [i for i in numbers(sym, "sign") if sym.factors[i].whole is None]
    base, counts = (
        {path: weights(sym, path, [*movers, *turns]) for path in sym.shapes},
        cover(sym, [*signs, *numbers(sym, *TURNS)]),
    )
    read: dict[str, dict[bool, Array]] = {}
    for path, unit in normalized(framed(sym, leaves)).items():
        if path in sym.shapes:
            square = unit**2 + jnp.where(counts[path] == 0, unit, 0)
            read[path] = {True: square, False: jnp.where(counts[path] == 1, unit, 0)}
    keys: Parts = {}
    for _ in range(ROUNDS):
        heavy = dict(base)
        for i, path, slot in even(sym, keys, turns):
            heavy[path] = heavy[path] * spread(1 + keys[i], slot, sym.shapes[path], 1)
        found: Parts = {}
        for i, path, slot in slots(sym, (*movers, *signs)):
            if path in read:
                entries = gathered(heavy[path] * read[path][i in movers], slot)
                found[i] = found.get(i, 0) + coefficient(path, slot) * entries.sum(-1)
        keys = {i: _normalized(abs(number)) for i, number in found.items()}
    order = {i: jnp.argsort(keys[i], axis=-1) for i in movers}
    return order, {i: _tied(jnp.take_along_axis(keys[i], order[i], axis=-1)) for i in movers}


def _normalized(number: Array) -> Array:
    """Over the largest."""
    largest = number.max()
    return number / jnp.where(largest > 0, largest, 1)


def _tied(ascending: Float[Array, "*copies size"]) -> Any:
    """Which of some numbers, the largest about 1, have an equal neighbour."""
    xp = namespace(ascending)
    near = ascending[..., 1:] - ascending[..., :-1] < close(ascending)
    none = xp.zeros((*ascending.shape[:-1], 1), bool)
    return xp.concatenate([near, none], axis=-1) | xp.concatenate([none, near], axis=-1)


def _axes(sym: Symmetry, i: int, unresolved: Sequence[int], leaves: Leaves, rounds: int) -> tuple[Array, Array]:
    """The rotation to the eigenvectors of a weighted Gram matrix, and which eigenvalues tie."""
    gram = _gram(sym, i, unresolved, framed(sym, leaves), rounds)
    values, vectors = namespace(gram).linalg.eigh(gram)
    largest = values.max(axis=-1, keepdims=True)
    values = values / namespace(values).where(largest > 0, largest, 1)
    return vectors.swapaxes(-1, -2), _tied(values) & (values > close(values))


def _gram(sym: Symmetry, i: int, unresolved: Sequence[int], seen: Leaves, rounds: int) -> Any:
    """Weighted products of the rows of a turn, and those of other turns that leaves join it to, through so many leaves."""
    # signs along an inclined axis do not act entry by entry
    mixing = [
        *unresolved,
        *(i for i, _, slot in slots(sym, numbers(sym, "orthogonal")) if extra(sym.factors[i], slot)),
    ]
    gram: Any = 0.0
    for _, path, slot in slots(sym, [i]):
        units = upright(sym.factors[i], gathered(seen[path], slot))
        heavy = gathered(np.broadcast_to(weights(sym, path, mixing), sym.shapes[path]), slot)
        gram = gram + coefficient(path, slot) * (units * heavy[..., :1, :]) @ units.swapaxes(-1, -2)
    turns = [j for j in unresolved if sym.factors[j].kind in TURNS]
    for edge in frames.edges(sym, turns) if rounds else []:
        for (end, _), (j, _), taps in frames.ways(edge, seen):
            if end == i:
                other = _gram(sym, j, unresolved, seen, rounds - 1).reshape(taps.shape[1], -1)
                gram = gram + namespace(taps).einsum("ijt,jk,lkt->il", taps, other, taps).reshape(gram.shape)
    return gram
