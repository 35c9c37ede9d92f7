"""One network moved onto another by the whole group: the element that brings their parameters closest."""

import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jaxsym.alignment.ascent import SETTLED, Problem, Walks, closeness, first, stack
from jaxsym.alignment.given import batches, checked, expect_alike, expect_kept, narrow, restored, shown, whole
from jaxsym.alignment.nearest import nearest as closest
from jaxsym.alignment.plan import Plan
from jaxsym.alignment.similar import MEASURES, Similarity
from jaxsym.symmetry.canonical import canonicalize, gauged
from jaxsym.symmetry.group import Element, Symmetry, expect_group
from jaxsym.symmetry.units import Leaves

LARGE = 300
"""Logarithms of rescalings beyond this leave float64."""


class Alignment(NamedTuple):
    """A network moved onto another one."""

    element: Element
    params: PyTree
    """``sym.act(element, b)``."""
    distance: float
    """Of ``params`` and ``a``: Euclidean, over all leaves that hold real numbers."""
    history: np.ndarray
    """Minus half the squared distance where both networks are balanced, at the start and after each pass over the blocks; it never falls. By activations: before
    and after, where it may fall."""
    start: str
    """Where the ascent that won began: ``"identity"``, ``"anchored"``, ``"sorted"``, ``"canonical"``, ``"restart 0"``; or ``"activations"``."""


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
    nearest: bool = False,
    settled: float = SETTLED,
) -> Alignment:
    """Move ``b`` along its orbit as close to ``a`` as can be.

    Both networks are brought to a frame where only permutations, signs and rotations are left (rescalings are balanced, bases orthonormal, translations at
    their origin); there block after block of units is moved to where it fits best; then back to the frame of ``a``.
    It starts where ``b`` is, from what fixed ends tell of one layer after the other, from permutations by sorted weight vectors where the ends tell too little,
    and, where the group has more than permutations, signs and rescalings of plain layers, from the canonical forms. Of plain layers the nearest start is followed,
    else, and with ``restarts``, each of them to its end; the best wins. On the host.

    Parameters
    ----------
    sym
        The group: of :func:`jaxsym.discover`, or of :meth:`jaxsym.Symmetry.from_spec`.
    a, b
        Parameters of two networks, both of the shapes that the group was found on.
    objective
        ``"weights"``: the least distance of the parameters. ``"activations"``: after that, permutations by what the units compute, and signs where what they compute is turned
        around by them; all else by weights: other signs, rotations, and units that never leave a loop.
    apply, inputs
        For activations: the function that the group was found for (of a network with running statistics that in training), and the inputs of
        ``apply(params, *inputs)`` as a tuple, or a list of such tuples, batches of one shape.
    measure
        Of activations: ``"correlation"``, or ``"distance"`` (mean squared).
    key, restarts
        So many further starts, from random elements.
    nearest
        Go on in the frame of ``a`` to the closest point over rescalings, changes of basis, rotations and translations (:func:`jaxsym.alignment.nearest`), which
        the balanced frames find for networks of one orbit alone. ``history`` stays that of the balanced frames.
    settled
        The ascent ends with a pass that gains less than this part of what is left; with 0 it goes on until nothing moves, which brings networks that are not of one orbit
        closer by some thousandths, in about twice as many passes.

    Returns
    -------
    Alignment
        The ``element`` and the moved ``params``, their ``distance`` from ``a``, the ``history`` of the objective, and where the ascent that won had its ``start``.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group or contains a user's own action, the parameters do not fit it or are not finite, an option is none of those above, or ``apply`` computes
        something else once a network is moved.

    Notes
    -----
    ``nearest`` is off by default: of ReLU networks trained on digits it brings the parameters closer by 2 to 5 percent, and the barrier of the loss changes as little, to either
    side (mean of 3 pairs, width 16: .66 without, .63 with it; width 64: .131 and .124, of which two rose). With changes of basis it is worth its seconds: linear 64-16-16-10
    networks are 7.6, 17.5 and 9.1 apart without, 4.7, 5.0 and 4.9 with it, and their barriers no higher.

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
    _expect(objective, apply, inputs, measure, key, restarts, settled)
    with jax.enable_x64(True):
        plan = Plan.of(sym)
        short = plan.exact and narrow(a) and narrow(b)
        one, two = (
            checked(sym, params, f"align: {name}", narrowly=short and plan.finite)
            for name, params in (("a", a), ("b", b))
        )
        expect_alike("align", one, two)
        similar = None
        if objective == "activations" and apply is not None:
            similar = Similarity(apply, sym, a, batches(inputs, "align"), measure)
            advice = "pass the function that the group was found for; of a network with running statistics that is the one in training."
            expect_kept(apply, sym, a, similar.batches[0], "align: apply", advice)
        frames = [balanced(sym, leaves, f"align: {name}") for name, leaves in (("a", one), ("b", two))]
        ends = [Walks.begun(sym, [own], [g]) for own, g in zip((one, two), frames, strict=True)]
        if short and not plan.finite:
            ends = [end.narrowed() for end in ends]
        problem, walks = Problem(sym, ends[0].leaves), ends[1]
        further = (
            [jax.device_get(sym.sample(each)) for each in jax.random.split(key, restarts)] if key is not None else []
        )
        start_of = lambda: [canonical_way(sym, frames[0], *(canonical_form(sym, own) for own in (one, two)))]  # noqa: E731
        walks, (history,), (start,) = problem.solve(walks, [two], start_of, further, settled)
        if similar is not None:
            still = first(problem.a)
            problem.matched(walks, lambda leaves, some: similar.scores(still, leaves, some))
            history, start = [problem.values(leaves)[0] for leaves in (ends[1].leaves, walks.leaves)], "activations"
        if plan.finite:
            element, moved, close = walks.elements[0], first(walks.leaves), history[-1]
        else:
            element = sym.compose(sym.inverse(frames[0]), walks.elements[0])
            element = closest(sym, one, two, element) if nearest else element
            moved = sym.leaves(sym.act(element, two))
            close = closeness(stack([one]), stack([moved]), problem.real)[0]
    return Alignment(shown(element), restored(b, moved), float(np.sqrt(2 * abs(close))), np.array(history), start)


def _expect(objective: str, apply: Any, inputs: Any, measure: str, key: Any, restarts: int, settled: float) -> None:
    """Refuse options that say nothing, or contradict each other."""
    for name, value, known in (("objective", objective, ("weights", "activations")), ("measure", measure, MEASURES)):
        if value not in known:
            msg = f"align: {name} is {value!r}, expected {' or '.join(map(repr, known))}."
            raise ValueError(msg)
    if objective == "activations" and (not callable(apply) or inputs is None):
        msg = "align: activations need apply, the network's function, and inputs, a tuple of what it is given."
        raise ValueError(msg)
    if not (isinstance(settled, numbers.Real) and 0 <= settled < 1):
        msg = f"align: settled is {settled!r}, expected a part of what is left, from 0 to less than 1."
        raise ValueError(msg)
    if not whole(restarts) or (restarts and key is None):
        msg = f"align: got {restarts!r} restarts and {'no' if key is None else 'a'} key, expected a whole number from 0 on, and a key for random starts."
        raise ValueError(msg)


def canonical_form(sym: Symmetry, leaves: Leaves) -> Element:
    """The element that brings a network to its canonical form, on the host."""
    return jax.device_get(canonicalize(sym, leaves).element)


def canonical_way(sym: Symmetry, frame: Element, one: Element, other: Element) -> Element:
    """From a network to the frame of another, by way of the canonical forms."""
    return functools.reduce(sym.compose, (frame, sym.inverse(one), other))


def balanced(sym: Symmetry, leaves: Leaves, who: str) -> Element:
    """:func:`jaxsym.symmetry.gauged`, on the host; refuses a network that has no such frame."""
    plan = Plan.of(sym)
    if plan.finite:
        return plan.identity
    element = jax.device_get(gauged(sym, leaves))
    for factor, part in zip(sym.factors, element, strict=True):
        if not (np.abs(part) < (LARGE if factor.kind == "scaling" else np.inf)).all():
            paths = ", ".join(dict.fromkeys("/".join(slot.path) for slot in factor.slots))
            msg = f"{who}: no {factor.kind} of {paths} balances them: a layer whose weights are all 0 leaves it open; give it other weights."
            raise ValueError(msg)
    return element
