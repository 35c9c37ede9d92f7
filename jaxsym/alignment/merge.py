"""Many networks in one: each moved by its own element to where they agree best, then averaged."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.alignment.match import Problem, Walk, balanced, canonical_start, checked, restored, shown
from jaxsym.symmetry.checks import expect_group
from jaxsym.symmetry.group import Element, Symmetry
from jaxsym.symmetry.units import Leaves, floating

ROUNDS = 50
"""Over all networks, at most."""


class Merge(NamedTuple):
    """The average of networks that were moved onto each other."""

    params: PyTree
    elements: Element
    """Of every network, ``[networks, ...]``; ``jax.vmap(sym.act)(elements, stacked)`` are the networks that were averaged. From ``j`` to ``i`` leads
    ``compose(inverse(elements[i]), elements[j])``, so that all ways around a circle are the identity."""
    history: np.ndarray
    """The weighted sum of squared distances to the average where all are balanced, after each round; it never rises."""


def merge(
    sym: Symmetry, stacked: PyTree, weights: Float[Array, " networks"] | None = None, reference: int | None = None
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

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, there is one network only, the parameters do not fit the group or are not finite, or the weights or the reference are none.

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
    networks = _networks(sym, stacked)
    share = _shares(weights, len(networks))
    if reference is not None and not 0 <= reference < len(networks):
        msg = f"merge: reference is {reference}, expected the number of one of the {len(networks)} networks, from 0."
        raise ValueError(msg)
    with jax.enable_x64(True):
        given = [checked(sym, params, f"merge: network {i}") for i, params in enumerate(networks)]
        frames = [balanced(sym, leaves) for leaves in given]
        centre = reference or 0
        problem = Problem(sym, sym.leaves(sym.act(frames[centre], given[centre])))
        walks = [
            Walk(sym, leaves, frame)
            if i == centre
            else problem.solve(
                leaves, frame, functools.partial(canonical_start, sym, frames[centre], given[centre], leaves)
            )[0]
            for i, (leaves, frame) in enumerate(zip(given, frames, strict=True))
        ]
        history = [_spread(walks, share)]
        while reference is None and len(history) <= ROUNDS:
            for i, walk in enumerate(walks):
                others = [(other, part) for j, (other, part) in enumerate(zip(walks, share, strict=True)) if j != i]
                problem.towards(_mean([other.leaves for other, _ in others], [part for _, part in others])).ascend(walk)
            history.append(_spread(walks, share))
            if history[-2] - history[-1] <= 1e-9 * history[0]:
                break
        elements = [walk.element for walk in walks]
        if reference is not None:
            elements = [sym.compose(sym.inverse(frames[reference]), element) for element in elements]
        moved = [sym.leaves(sym.act(element, leaves)) for element, leaves in zip(elements, given, strict=True)]
        average = _mean(moved, share)
    parts = tuple(np.stack(parts) for parts in zip(*elements, strict=True))
    return Merge(
        restored(networks[centre], average),
        shown(parts),
        np.array(history),
    )


def _networks(sym: Symmetry, stacked: PyTree) -> list[PyTree]:
    """The networks one by one."""
    counts = {}
    for path, leaf in tree.leaves(stacked).items():
        shape = np.shape(leaf)
        if path in sym.shapes and shape[1:] == sym.shapes[path] and shape:
            counts[path] = shape[0]
        elif path in sym.shapes:
            msg = (
                f"merge: {path} has shape {shape}, expected (networks, {', '.join(map(str, sym.shapes[path]))}): stack the networks,"
                " jax.tree.map(lambda *leaves: jnp.stack(leaves), one, another)."
            )
            raise ValueError(msg)
    sizes = set(counts.values())
    if len(sizes) != 1 or max(sizes) < 2:
        msg = f"merge: got {', '.join(map(str, sorted(sizes))) or 'no'} network(s), expected the same number, two or more, in every leaf."
        raise ValueError(msg)
    host = jax.device_get(stacked)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(sizes.pop())]


def _shares(weights: Any, count: int) -> np.ndarray:
    share = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if share.shape != (count,) or not (np.isfinite(share) & (share > 0)).all():
        msg = f"merge: weights are {weights!r}, expected {count} positive numbers, one a network."
        raise ValueError(msg)
    return share / share.sum()


def _mean(networks: list[Leaves], share: Any) -> Leaves:
    """Weighted; leaves that hold no real numbers are those of the first."""
    total = float(sum(share))
    return {
        path: sum(part / total * leaves[path] for part, leaves in zip(share, networks, strict=True))
        if floating(leaf)
        else leaf
        for path, leaf in networks[0].items()
    }


def _spread(walks: list[Walk], share: Any) -> float:
    mean = _mean([walk.leaves for walk in walks], share)
    return float(
        sum(
            part * ((walk.leaves[path] - leaf) ** 2).sum()
            for walk, part in zip(walks, share, strict=True)
            for path, leaf in mean.items()
            if floating(leaf)
        )
    )
