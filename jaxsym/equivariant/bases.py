"""All linear maps that commute with a group: invariants of ``rep_out * rep_in.dual``.

First the generators that permute entries and flip their signs: their invariants are constant, but for signs, on orbits, which are connected components.
What other generators leave of these is a null space, of a matrix that has a column for each orbit.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Array, Float, Int

from jaxsym.equivariant.representations import Representation, Signed, as_sparse, together

NOUGHT = 1e-9
"""Singular values of the equations up to this, relative to the largest, are 0."""
GAP = 1e4
"""What is not 0 is larger than ``NOUGHT`` by at least this factor: between is no clean gap."""


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """An orthonormal basis of the linear maps ``[rep_out.size, rep_in.size]`` that commute with a group.

    Entry ``e`` of basis map ``d``, counted row by row, is ``weights[e] mix[orbits[e], d]``.

    Attributes
    ----------
    dimension
        Of the space, an integer.
    residual
        The largest entry, over all generators and basis maps ``B``, of ``g_out B g_in^-1 - B`` or ``X_out B - B X_in``, recomputed from the result.
    """

    rep_in: Representation
    rep_out: Representation
    orbits: Int[np.ndarray, " entries"]
    weights: Float[np.ndarray, " entries"]
    mix: Float[np.ndarray, "num_orbits dimension"]
    residual: float

    @property
    def dimension(self) -> int:
        """Of the space."""
        return self.mix.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of a map: outputs, inputs."""
        return self.rep_out.size, self.rep_in.size

    @functools.cached_property
    def vectors(self) -> Float[np.ndarray, "dimension outputs inputs"]:
        """The basis maps themselves, all of them as dense matrices."""
        if not self.dimension:
            return np.zeros((0, *self.shape))
        return (self.weights[:, None] * self.mix[self.orbits]).T.reshape(self.dimension, *self.shape)

    def map(self, coefficients: Float[Array, "*more dimension"]) -> Float[Array, "*more outputs inputs"]:
        """The maps of coordinates in this basis; a gather, so that no dense basis is made. Of JAX, and differentiable."""
        if jnp.shape(coefficients)[-1:] != (self.dimension,):
            msg = f"map: got coefficients of shape {jnp.shape(coefficients)}, expected [..., {self.dimension}], the dimension."
            raise ValueError(msg)
        coefficients = jnp.asarray(coefficients)
        dtype, leading = coefficients.dtype, coefficients.shape[:-1]
        each = coefficients @ jnp.asarray(self.mix.T, dtype)
        if not len(self.mix):
            return jnp.zeros((*leading, *self.shape), dtype)
        return (jnp.asarray(self.weights, dtype) * each[..., self.orbits]).reshape(*leading, *self.shape)

    def coefficients(self, matrix: Float[Array, "outputs inputs"]) -> Float[np.ndarray, " dimension"]:
        """Coordinates of the orthogonal projection of a map."""
        found = np.asarray(matrix, float)
        if found.shape != self.shape:
            msg = f"coefficients: a map of shape {found.shape}, expected {self.shape}: outputs, inputs."
            raise ValueError(msg)
        sums = np.bincount(self.orbits, self.weights * found.ravel(), minlength=len(self.mix))
        return self.mix.T @ sums[: len(self.mix)]

    def project(self, matrix: Float[Array, "outputs inputs"]) -> Float[np.ndarray, "outputs inputs"]:
        """The nearest map that commutes with the group: the projector, applied."""
        if not self.dimension:
            return np.zeros(self.shape)
        each = self.mix @ self.coefficients(matrix)
        return (self.weights * each[self.orbits]).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Basis of dimension {self.dimension}: {self.rep_in.text()} -> {self.rep_out.text()} of {self.rep_out.group.name}"


def basis(rep_in: Representation, rep_out: Representation, memory: float = 4.0) -> Basis:
    """The linear maps that commute with a group: ``g_out B = B g_in`` for all its elements.

    Parameters
    ----------
    rep_in, rep_out
        Representations of one group, or of factors of one product.
    memory
        Gibibytes that it may take.

    Returns
    -------
    Basis
        With ``dimension``, ``vectors`` and ``residual``.

    Raises
    ------
    TypeError
        If one is not a representation.
    ValueError
        If they are of different groups, the memory would not do, or zeros of the equations are not clearly told from other numbers.

    Notes
    -----
    *Source*: Finzi, Welling, Wilson 2021, theorem 1, arXiv:2104.09459 (generators suffice); Ravanbakhsh, Schneider, Poczos 2017, arXiv:1702.08389
    (orbits of permutations as shared weights).

    Examples
    --------
    >>> from jaxsym.equivariant import S
    >>> V = S(5).vector
    >>> basis(V, V), basis(V * V, V + S(5).scalar).dimension
    (Basis of dimension 2: vector -> vector of S(5), 7)
    >>> basis(V, V).project(np.arange(25.0).reshape(5, 5))[0]
    array([12., 12., 12., 12., 12.])
    """
    for name, rep in (("rep_in", rep_in), ("rep_out", rep_out)):
        if not isinstance(rep, Representation):
            msg = f"basis: {name} is of type {type(rep).__name__}, expected a representation, such as S(5).vector."
            raise TypeError(msg)
    rep_in, rep_out = together(rep_in, rep_out)
    return _solved(rep_in, rep_out, memory)


@functools.lru_cache(maxsize=64)
def _solved(rep_in: Representation, rep_out: Representation, memory: float) -> Basis:
    group, both = rep_out.group, rep_out * rep_in.dual
    _expect_room(f"basis: maps [{rep_out.size}, {rep_in.size}]", both.size * (60 + 20 * group.num_finite), memory)
    moves = [both.finite(number) for number in range(group.num_finite)]
    signed = [move for move in moves if isinstance(move, Signed)]
    orbits, weights, num = _orbits(signed, both.size)
    equations = [as_sparse(move) - scipy.sparse.eye_array(both.size) for move in moves if not isinstance(move, Signed)]
    equations += [both.lie(number) for number in range(group.num_lie)]
    mix = np.eye(num)
    if equations and num:
        _expect_room(f"basis: a null space of {num} unknowns", 40 * num**2, memory)
        spread = scipy.sparse.csr_array((weights, (np.arange(both.size), orbits)), shape=(both.size, num))
        mix = _null_space([equation @ spread for equation in equations], num)
    residual = max([*_moved(signed, orbits, weights), *_left(equations, orbits, weights, mix)], default=0.0)
    return Basis(rep_in, rep_out, orbits, weights, mix, float(residual))


def _orbits(moves: list[Signed], size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """For each entry its orbit and its weight there, so that orbits have length 1; and how many there are.

    An entry that some element takes to its negative has weight 0. Entries and their negatives are nodes of a graph: ``i`` and ``size + i``.
    """
    if not moves:
        return np.arange(size), np.ones(size), size
    if not any((move.signs < 0).any() for move in moves):
        number, orbits = _components([move.places for move in moves])
        return orbits, 1 / np.sqrt(np.bincount(orbits))[orbits], number
    sides = (0, size)
    doubled = [
        np.concatenate([np.where(signs > 0, places + side, places + size - side) for side in sides])
        for places, signs in moves
    ]
    _, labels = _components(doubled)
    positive, negative = labels[:size], labels[size:]
    alive = positive != negative
    kept, places = np.unique(np.minimum(positive, negative)[alive], return_inverse=True)
    orbits = np.zeros(size, places.dtype)
    orbits[alive] = places
    lengths = np.sqrt(np.bincount(orbits, alive, minlength=1))
    return orbits, np.sign(negative - positive) / np.maximum(lengths, 1)[orbits], len(kept)


def _components(moves: list[Int[np.ndarray, " nodes"]]) -> tuple[int, Int[np.ndarray, " nodes"]]:
    """How many orbits permutations have, and the orbit of each node: the strong components, for what is left along a permutation is come back to."""
    nodes, each = len(moves[0]), len(moves)
    ends = np.stack(moves, axis=1).astype(np.int32).ravel()
    starts = np.arange(0, nodes * each + 1, each, dtype=np.int32)
    graph = scipy.sparse.csr_array((np.ones(nodes * each), ends, starts), shape=(nodes, nodes))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)


def _null_space(equations: Iterable[scipy.sparse.csr_array], unknowns: int) -> Float[np.ndarray, "unknowns dimension"]:
    """Of all equations together, each scaled to length 1.

    Squares of singular values that are 0 are known to rounding, so that these are measured again by what the equations leave of their vectors.
    """
    lengths = [(equation, scipy.sparse.linalg.norm(equation)) for equation in equations]
    scaled = [equation / length for equation, length in lengths if length]
    if not scaled:
        return np.eye(unknowns)
    values, vectors = scipy.linalg.eigh(sum((equation.T @ equation).toarray() for equation in scaled))
    top = np.sqrt(values[-1])
    kept = vectors[:, values <= (GAP * NOUGHT * top) ** 2]
    least = np.sqrt(sum(np.sum((equation @ kept) ** 2, axis=0) for equation in scaled)) / top
    if least.max(initial=0) > NOUGHT:
        msg = (
            f"basis: the equations have singular values of {least.max():.0e} of the largest, and no clean gap between what is 0 (up to {NOUGHT:g})"
            f" and what is not (from {GAP * NOUGHT:g} on): give generators to all digits, and none that nearly does nothing."
        )
        raise ValueError(msg)
    return kept


def _moved(moves: list[Signed], orbits: np.ndarray, weights: np.ndarray) -> Iterable[float]:
    """How far signed permutations move orbits: 1 where an entry changes its orbit."""
    for places, signs in moves:
        apart = (orbits[places] != orbits) & (weights != 0)
        yield float(np.where(apart, 1.0, np.abs(signs * weights[places] - weights)).max(initial=0))


def _left(
    equations: Iterable[scipy.sparse.csr_array], orbits: np.ndarray, weights: np.ndarray, mix: np.ndarray
) -> Iterable[float]:
    """The largest entry that each equation leaves of the basis maps, which are taken a few at a time."""
    for equation in equations:
        for start in range(0, mix.shape[1], 16):
            yield float(np.abs(equation @ (weights[:, None] * mix[orbits, start : start + 16])).max(initial=0))


def _expect_room(what: str, needed: float, memory: float) -> None:
    if needed > memory * 2**30:
        msg = f"{what} takes about {needed / 2**30:.3g} GiB, expected at most {memory:g}: take smaller representations, or allow more by memory=."
        raise ValueError(msg)
