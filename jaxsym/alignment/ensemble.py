"""All pairs of an ensemble: how far their orbits are apart, and how many different functions there are."""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from jaxtyping import Float, Int, PyTree

from jaxsym.alignment.ascent import Problem, Walks
from jaxsym.alignment.given import checked, narrow, unstacked
from jaxsym.alignment.match import balanced, canonical_form, canonical_way
from jaxsym.alignment.plan import Plan
from jaxsym.symmetry.group import Symmetry, expect_group
from jaxsym.symmetry.units import floating

ENTRIES = 10**7
"""Numbers in the networks that are on their way at once."""
ROUNDINGS = 4
"""Networks that are no further apart, in roundings of the coarsest type among the leaves, are one function."""


class Ensemble(NamedTuple):
    """Networks apart from their symmetries."""

    distances: Float[np.ndarray, "networks networks"]
    """Of every two, after one was moved as close to the other as can be, both balanced: Euclidean, over all leaves that hold real numbers."""
    functions: Int[np.ndarray, " networks"]
    """The same number for networks that are one function; numbered from 0 in the order in which they come. Leaves that hold no real numbers do not count: networks
    that differ in these must be told apart beforehand."""


def ensemble(sym: Symmetry, stacked: PyTree, within: float = 1e-3) -> Ensemble:
    """Move every network of an ensemble onto every other one, all pairs at once, and tell which are one function.

    What :func:`jaxsym.align` does by weights, with both ends where translations are undone, rescalings balanced and bases orthonormal: there the least distance does
    not depend on which of two networks is moved, nor on where on its orbit a network lies. What is found may: of networks that are far apart, an ascent ends in one of
    several places, some percent from another (recurrent and deep linear ones most). Of two the second is moved.

    Parameters
    ----------
    sym
        The group.
    stacked
        Parameters of two networks or more, leaves ``[networks, *leaf]``.
    within
        Networks are one function when a chain of networks leads from one to the other, each of which is no further from the next than this part of the root mean
        square of the norms of all (single linkage); a few roundings of the leaves' type at least. It is a part of all entries: functions that differ in a
        few small ones alone, such as those of a last layer which is small beside the others, need a smaller part to be told apart.

    Returns
    -------
    Ensemble
        The ``distances`` of all pairs, and ``functions``, the same number for networks that are one function.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, there is one network only, the parameters do not fit the group or are not finite, or ``within`` is negative.

    Notes
    -----
    *Source*: single linkage, Sibson 1973, "SLINK", The Computer Journal 16(1), by :func:`scipy.cluster.hierarchy.linkage`.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 1), "tanh"), jax.numpy.ones((5, 3))
    >>> two = [net.init(jax.random.key(seed), x) for seed in range(2)]
    >>> sym = js.discover(net.apply, two[0], x)
    >>> moved = [sym.act(sym.sample(jax.random.key(i)), two[i % 2]) for i in range(6)]
    >>> stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *moved)
    >>> ensemble(sym, stacked).functions.tolist()
    [0, 1, 0, 1, 0, 1]
    """
    expect_group(sym, "ensemble")
    if not (isinstance(within, numbers.Real) and within >= 0):
        msg = f"ensemble: within is {within!r}, expected a part of the networks' norm, from 0 on."
        raise ValueError(msg)
    networks, plan = unstacked(sym.shapes, stacked, "ensemble"), Plan.of(sym)
    with jax.enable_x64(True):
        given = [checked(sym, params, f"ensemble: network {i}") for i, params in enumerate(networks)]
        frames = [balanced(sym, leaves, f"ensemble: network {i}") for i, leaves in enumerate(given)]
        walks = Walks.begun(sym, given, frames)
        if plan.exact and narrow(stacked):
            walks = walks.narrowed()
        forms = [canonical_form(sym, leaves) for leaves in given] if plan.entangled else []
        pairs = np.stack(np.triu_indices(len(given), 1))
        found = []
        wanted = -(-pairs.shape[1] * walks.size // (ENTRIES * len(given)))
        for chunk in np.array_split(pairs, np.clip(wanted, 1, pairs.shape[1]), axis=1):
            first, second = chunk
            ways = lambda first=first, second=second: [  # noqa: E731
                canonical_way(sym, frames[i], forms[i], forms[j]) for i, j in zip(first, second, strict=True)
            ]
            problem = Problem(sym, walks[first].leaves)
            moved, _, _ = problem.solve(walks[second], [given[j] for j in second], ways)
            found.append(problem.values(moved.leaves))
        real = [leaf.reshape(len(given), -1) for leaf in walks.leaves.values() if floating(leaf)]
        norms = sum((leaf**2).sum(1, dtype=np.float64) for leaf in real)
    apart = np.sqrt(2 * np.abs(np.concatenate(found)))
    links = scipy.cluster.hierarchy.linkage(apart, "single")
    within = max(
        within,
        *(ROUNDINGS * float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(stacked) if floating(leaf)),
        0.0,
    )
    groups = scipy.cluster.hierarchy.fcluster(links, within * np.sqrt(norms.mean()), "distance")
    _, places, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return Ensemble(scipy.spatial.distance.squareform(apart), np.argsort(np.argsort(places))[inverse])
