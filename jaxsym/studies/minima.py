"""Minima modulo a finite group: polished by Newton's method, compared by canonical forms, and by every element of the group."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree
from scipy.sparse import csgraph
from scipy.spatial import distance

from jaxsym.data import Rows, Split
from jaxsym.models import MLP
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.factors import Factor
from jaxsym.symmetry.group import Element, Symmetry

EXACT = 1e-12
"""Distances below this are rounding, and count as this."""
FLAT = 1e-8
"""A minimum's Hessian has no eigenvalue below this; a saddle's has one below its negative."""
PUSH = 0.1
"""How far to leave a saddle along its direction of descent, at first."""
DAMPING = 1e-3  # at first; divided or multiplied by 4 after each step


class Polished(NamedTuple):
    """A critical point, and what kind it is."""

    params: Float[Array, " P"]
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    curvature: Float[Array, ""]
    """The smallest eigenvalue of the Hessian."""
    saddles: Int[Array, ""]
    """How often the way led into a saddle that had to be left."""
    steps: Int[Array, ""]


class _Point(NamedTuple):
    params: Float[Array, " P"]
    loss: Float[Array, ""]
    gradient: Float[Array, " P"]
    values: Float[Array, " P"]
    vectors: Float[Array, "P P"]
    """Of the Hessian, as its eigenvalues are."""


class _State(NamedTuple):
    at: _Point
    damping: Float[Array, ""]
    push: Float[Array, ""]
    saddles: Int[Array, ""]
    step: Int[Array, ""]


def polish(loss: Callable[[Array], Array], start: Float[Array, " P"], *, gradient_norm: float, steps: int) -> Polished:
    """Descend to a minimum by damped Newton steps ``-(|H| + mu)^-1 g``; only those that lower the loss are taken.

    The absolute values turn away from saddles; one that is reached all the same is left along its direction of most negative curvature.

    Parameters
    ----------
    loss
        Twice differentiable; in float64.
    start
        The parameters in a vector.
    gradient_norm
        What the gradient's norm has to come to.
    steps
        At most; those that are refused count.

    Notes
    -----
    *Source*: Dauphin et al. 2014, arXiv:1406.2572 (the absolute values); Marquardt 1963 (the damping).
    """
    hessian = jax.hessian(loss)

    def at(params: Array) -> _Point:
        value, gradient = jax.value_and_grad(loss)(params)
        return _Point(params, value, gradient, *jnp.linalg.eigh(hessian(params)))

    def going(state: _State) -> Array:
        point = state.at
        return ((_norm(point) > gradient_norm) | (point.values[0] < -FLAT)) & (state.step < steps)

    def body(state: _State) -> _State:
        point = state.at
        stuck = _norm(point) <= gradient_norm
        newton = point.vectors @ ((point.vectors.T @ point.gradient) / (jnp.abs(point.values) + state.damping))
        trial = at(point.params + jnp.where(stuck, state.push * point.vectors[:, 0], -newton))
        # beside a minimum the loss is level to the last digit, and the gradient says which point is better
        level = jnp.abs(trial.loss - point.loss) <= 8 * jnp.finfo(trial.loss.dtype).eps * jnp.abs(point.loss)
        better = jnp.where(level & ~stuck, _norm(trial) < _norm(point), trial.loss < point.loss)
        damping = jnp.clip(jnp.where(better, state.damping / 4, state.damping * 4), 1e-15, 1e6)
        return _State(
            jax.tree.map(lambda new, old: jnp.where(better, new, old), trial, point),
            damping=jnp.where(stuck, DAMPING, damping),
            push=jnp.where(stuck & ~better, state.push / 4, PUSH),
            saddles=state.saddles + (stuck & better),
            step=state.step + 1,
        )

    zero = jnp.zeros((), int)
    first = _State(at(start), damping=jnp.array(DAMPING), push=jnp.array(PUSH), saddles=zero, step=zero)
    last = jax.lax.while_loop(going, body, first)
    point = last.at
    return Polished(point.params, point.loss, _norm(point), point.values[0], last.saddles, last.step)


def _norm(point: _Point) -> Float[Array, ""]:
    return jnp.linalg.norm(point.gradient)


def elements(sym: Symmetry) -> Element:
    """Every element of a finite group, stacked: leaves ``[order, *shape]``, the identity first.

    Raises
    ------
    ValueError
        If the group has factors other than permutations and signs, or more than a million elements.
    """
    for factor in sym.factors:
        if factor.kind not in ("permutation", "sign"):
            msg = f"elements: the group has a {factor.kind}, expected permutations and signs alone: others cannot be enumerated."
            raise ValueError(msg)
    if sym.order > 10**6:
        msg = f"elements: the group has {sym.order} elements, expected at most a million."
        raise ValueError(msg)
    every = list(itertools.product(*(_parts(factor) for factor in sym.factors)))
    return tuple(jnp.asarray(np.stack(parts)) for parts in zip(*every, strict=True))


def _parts(factor: Factor) -> list[np.ndarray]:
    """Every element of one factor."""
    one: list[tuple[int, ...]] = (
        list(itertools.permutations(range(factor.size)))
        if factor.kind == "permutation"
        else list(itertools.product((1, -1), repeat=factor.size))
    )
    return [np.array(rows).reshape(factor.shape) for rows in itertools.product(one, repeat=factor.copies)]


def copies(sym: Symmetry, every: Element, params: PyTree) -> Float[Array, "order P"]:
    """What all elements make of a network, each in a vector."""
    moved = jax.vmap(sym.act, in_axes=(0, None))(every, params)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(moved)], axis=1)


def orbit_distances(
    moved: Float[np.ndarray, "N order P"], points: Float[np.ndarray, "N P"]
) -> Float[np.ndarray, " pairs"]:
    """Of all pairs ``i < j`` the distance of the nearest copy of ``i`` to ``j``: exact, as no copy is left out."""
    num = len(points)
    rows = [distance.cdist(moved[i], points[i + 1 :]).min(axis=0) for i in range(num - 1)]
    return np.concatenate(rows) if rows else np.zeros(0)


def classes(distances: Float[np.ndarray, " pairs"], num: int, tolerance: float) -> Int[np.ndarray, " N"]:
    """A label ``0, 1, ...`` for each of ``num`` points: those that a chain of steps below the tolerance joins share one.

    >>> classes(np.array([1e-9, 2.0, 2.0]), 3, 1e-3)  # of the pairs 0-1, 0-2, 1-2
    array([0, 0, 1], dtype=int32)
    """
    if num < 2:
        return np.zeros(num, np.int32)
    return csgraph.connected_components(distance.squareform(distances < tolerance, checks=False), directed=False)[1]


class Gap(NamedTuple):
    """Where distances that are rounding end, and those of different minima begin."""

    below: float
    above: float

    @property
    def tolerance(self) -> float:
        """In the middle, on a logarithmic scale; at the lower end if there is no upper one."""
        return math.sqrt(self.below * self.above) if math.isfinite(self.above) else self.below * 2

    @property
    def ratio(self) -> float:
        """How wide it is."""
        return self.above / self.below


def gap(distances: Float[np.ndarray, " n"], reach: float) -> Gap:
    """The gap around the distance that two approximations of one minimum can have at most.

    Parameters
    ----------
    distances
        Of any pairs.
    reach
        A point with gradient ``g`` is about ``|H^-1 g|`` from its minimum, so two of one minimum are no farther apart than twice the largest
        ``|g| / smallest eigenvalue``.
    """
    reach = max(reach, EXACT)
    near, far = distances[distances <= reach], distances[distances > reach]
    return Gap(
        float(max(near.max(), EXACT)) if near.size and far.size else reach,
        float(far.min()) if far.size else math.inf,
    )


class Followed(NamedTuple):
    """Which copy of a minimum a path is nearest to."""

    nearest: Int[np.ndarray, " records"]
    """The number of the element; of copies that coincide, the first."""
    distance: Float[np.ndarray, " records"]
    radius: float
    """Half the distance of a copy to the next one: within it the path is in the neighbourhood of one copy and of no other."""
    next: int
    """The element of a copy that is next to the minimum itself."""


def follow(path: Float[np.ndarray, "records P"], moved: Float[np.ndarray, "order P"], tolerance: float) -> Followed:
    """The nearest copy at each point of a path; the group moves by isometries, so the copies are equally far apart everywhere."""
    _, first = np.unique(classes(distance.pdist(moved), len(moved), tolerance), return_index=True)
    first = np.sort(first)
    to_copies = distance.cdist(path, moved[first])
    others = np.linalg.norm(moved[first[1:]] - moved[0], axis=1)
    radius, following = (others.min() / 2, first[1:][others.argmin()]) if others.size else (math.inf, 0)
    return Followed(first[to_copies.argmin(axis=1)], to_copies.min(axis=1), float(radius), int(following))


def jumps(nearest: Int[np.ndarray, " records"], near: Float[np.ndarray, " records"], radius: float) -> int:
    """How often a path leaves the neighbourhood of one copy and next enters that of another.

    >>> jumps(np.array([3, 1, 1, 2, 2]), np.array([9.0, 0.5, 9.0, 9.0, 0.5]), 1.0)  # 3 was never settled in
    1
    """
    settled = nearest[near < radius]
    return int((settled[1:] != settled[:-1]).sum())


def cost(net: MLP, params: PyTree, rows: Rows) -> Float[Array, ""]:
    """Mean cross-entropy of a sigmoid output, in nats."""
    logits = net.apply(params, rows.inputs)[:, 0]
    return jnp.mean(jax.nn.softplus(logits) - rows.targets * logits)


def objective(net: MLP, params: PyTree, rows: Rows, weight_decay: Any) -> Float[Array, ""]:
    """The cost with half the weight decay times the squared norm of all parameters."""
    return cost(net, params, rows) + weight_decay / 2 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def wide(pytree: PyTree) -> PyTree:
    """In float64, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pytree)


def vectors(params: PyTree) -> Float[np.ndarray, "N P"]:
    """One row for each of the stacked networks."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


class Problem(NamedTuple):
    """A network on rows with two classes, in float64, with all elements of its group."""

    net: MLP
    sym: Symmetry
    every: Element
    unravel: Callable[[Array], PyTree]
    train: Rows
    test: Rows

    @classmethod
    def of(cls, net: MLP, params: PyTree, data: Split) -> "Problem":
        """Inside ``jax.enable_x64(True)``."""
        train, test = (Rows(jnp.asarray(wide(rows.inputs)), jnp.asarray(wide(rows.targets))) for rows in data[:2])
        sym = discover(net.apply, params, data.train.inputs[:5])
        return cls(net, sym, elements(sym), ravel_pytree(wide(params))[1], train, test)

    def objective(self, vector: Float[Array, " P"], weight_decay: Any) -> Float[Array, ""]:
        """Of parameters in a vector."""
        return objective(self.net, self.unravel(vector), self.train, weight_decay)

    def polish(self, start: Float[Array, " P"], weight_decay: Any, gradient_norm: float, steps: int) -> Polished:
        """The minimum that Newton's method descends to."""
        return polish(
            lambda vector: self.objective(vector, weight_decay), start, gradient_norm=gradient_norm, steps=steps
        )

    def copies(self, vector: Float[Array, " P"]) -> Float[Array, "order P"]:
        """What all elements make of a network."""
        return copies(self.sym, self.every, self.unravel(vector))
