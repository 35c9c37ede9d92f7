"""Many networks in one: each moved by its own element to where they agree best, then averaged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.alignment.ascent import Problem, Walks, stack
from jaxsym.alignment.given import checked, restored, shares, shown, unstacked, whole
from jaxsym.alignment.match import balanced, canonical_form, canonical_way
from jaxsym.alignment.repair import mended
from jaxsym.symmetry.group import Element, Symmetry, expect_group
from jaxsym.symmetry.units import Leaves, floating

ROUNDS = 50
"""Over all networks, at most."""
SETTLED = 1e-5
"""A round that gains less than this part of what is left is the last."""


class Merge(NamedTuple):
    """The average of networks that were moved onto each other."""

    params: PyTree
    elements: Element
    """Of every network, ``[networks, ...]``; ``jax.vmap(sym.act)(elements, stacked)`` are the networks that were averaged. From ``j`` to ``i`` leads
    ``compose(inverse(elements[i]), elements[j])``, so that all ways around a circle are the identity."""
    history: np.ndarray
    """The weighted sum of squared distances to the average where all are balanced, after each round; it never rises."""


def merge(
    sym: Symmetry,
    stacked: PyTree,
    weights: Float[Array, " networks"] | None = None,
    reference: int | None = None,
    *,
    apply: Callable[..., Any] | None = None,
    inputs: tuple[Any, ...] | list[tuple[Any, ...]] | None = None,
    repair: bool = False,
) -> Merge:
    """Move networks onto one another by the whole group, and average them.

    Parameters
    ----------
    sym
        The group.
    stacked
        Parameters of two networks or more, leaves ``[networks, *leaf]``.
    weights
        Of the average, positive; equal when None.
    reference
        The number of a network that stays, and onto which all others are moved. When None, each network in turn is moved onto the average of all others until
        nothing moves, and the result lies where rescalings are balanced.
    apply, inputs
        With the function and inputs, ``apply(params, *inputs)``, as a tuple, or a list of tuples, batches of one shape: running statistics of the average
        are those of these inputs (:func:`jaxsym.alignment.reestimated`). The group must then be that of the network in training, where each batch has its own statistics.
    repair
        Before that, bring hidden units to the spread that they have in the networks (:func:`jaxsym.alignment.repaired`).

    Returns
    -------
    Merge
        The average ``params``, the ``elements`` that move every network to where they are averaged, and the ``history`` of how far they are apart there.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, there is one network only, the parameters do not fit the group or are not finite, the weights or the reference are none, or
        there is something to mend and no function or no inputs, or there are no running statistics, or the group is none when they are computed anew.

    Notes
    -----
    *Source*: Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836, algorithm 3 (MergeMany); the consistency of cycles by a common universe, Crisostomi et al.
    2024, arXiv:2405.17897.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 1), "tanh"), jax.numpy.ones((5, 3))
    >>> params = net.init(jax.random.key(0), x)
    >>> sym = js.discover(net.apply, params, x)
    >>> copies = jax.vmap(lambda key: sym.act(sym.sample(key), params))(jax.random.split(jax.random.key(1), 5))
    >>> merged = merge(sym, copies)
    >>> bool(abs(net.apply(merged.params, x) - net.apply(params, x)).max() < 1e-6)
    True
    """
    expect_group(sym, "merge")
    networks = unstacked(sym.shapes, stacked, "merge")
    share = shares(weights, len(networks), "merge")
    if reference is not None and not (whole(reference) and reference < len(networks)):
        msg = f"merge: reference is {reference!r}, expected the number of one of the {len(networks)} networks, from 0."
        raise ValueError(msg)
    if (apply is None) != (inputs is None) or (repair and apply is None):
        msg = "merge: repair and running statistics need both apply, the network's function, and inputs, a tuple of what it is given."
        raise ValueError(msg)
    with jax.enable_x64(True):
        given = [checked(sym, params, f"merge: network {i}") for i, params in enumerate(networks)]
        frames = [balanced(sym, leaves, f"merge: network {i}") for i, leaves in enumerate(given)]
        centre, every = reference or 0, np.arange(len(given))
        walks = Walks.begun(sym, given, frames)
        problem, rest = Problem(sym, walks[[centre]].leaves), np.delete(every, centre)

        def ways() -> list[Element]:
            form = canonical_form(sym, given[centre])
            return [canonical_way(sym, frames[centre], form, canonical_form(sym, given[i])) for i in rest]

        found, _, _ = problem.solve(walks[rest], [given[i] for i in rest], ways, settled=0.0)
        walks.put(rest, found)
        history = [_spread(walks, share)]
        while reference is None and len(history) <= ROUNDS:
            mean = _mean(walks.leaves, share)
            for i in range(len(given)):
                walk = walks[[i]]
                problem.towards(stack([_without(mean, walk.leaves, share[i])])).ascend(walk, settled=0.0)
                change = {path: walk.leaves[path][0] - walks.leaves[path][i] for path in problem.real}
                mean |= {path: mean[path] + share[i] * moved for path, moved in change.items()}
                walks.put([i], walk)
            history.append(_spread(walks, share))
            if history[-2] - history[-1] <= SETTLED * history[-1]:
                break
        elements = walks.elements
        if reference is not None:
            elements = [sym.compose(sym.inverse(frames[reference]), element) for element in elements]
        moved = Walks.begun(sym, given, elements).leaves
    average = restored(networks[centre], _mean(moved, share))
    if apply is not None and inputs is not None:
        average = mended(apply, average, tree.put(stacked, moved), inputs, share, sym=sym, repair=repair)
    parts = tuple(np.stack(parts) for parts in zip(*elements, strict=True))
    return Merge(average, shown(parts), np.array(history))


def _mean(leaves: Leaves, share: np.ndarray) -> Leaves:
    """Weighted, over the leading axis; leaves that hold no real numbers are those of the first."""
    return {path: np.tensordot(share, leaf, 1) if floating(leaf) else leaf[0] for path, leaf in leaves.items()}


def _without(mean: Leaves, one: Leaves, part: float) -> Leaves:
    """The average of all others."""
    return {path: (leaf - part * one[path][0]) / (1 - part) if floating(leaf) else leaf for path, leaf in mean.items()}


def _spread(walks: Walks, share: np.ndarray) -> float:
    mean = _mean(walks.leaves, share)
    real = [path for path, leaf in mean.items() if floating(leaf)]
    squares = [((walks.leaves[path] - mean[path]) ** 2).reshape(len(walks), -1).sum(1) for path in real]
    return float(share @ sum(squares))
