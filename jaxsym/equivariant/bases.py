"""All linear maps that commute with a group: invariants of ``rep_out * rep_in.dual``.

First the generators that permute entries and flip their signs: their invariants are constant, but for signs, on orbits, which are connected components.
What other generators leave of these is a null space, of a matrix that has a column for each orbit.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int

from jaxsym.equivariant.generators import Signed
from jaxsym.equivariant.representations import Representation, Sum, Tensor, together
from jaxsym.symmetry.host import svd

NOUGHT = 1e-12
"""Singular values of the equations up to this are 0. Each row is measured in what its terms would be if nothing cancelled, so that rounding is some 1e-16."""
GAP = 1e4
"""What is not 0 is larger than ``NOUGHT`` by at least this factor: between is no clean gap."""
MEMORY = 4.0
"""Gibibytes that a basis may take, if no other number is given, and that all its maps may take as dense matrices."""


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """An orthonormal basis of the linear maps ``[rep_out.size, rep_in.size]`` that commute with a group.

    Entry ``e`` of basis map ``d``, counted row by row, is ``weights[e] mix[orbits[e], d]``; without a ``mix``, each orbit is a basis map. The arrays cannot
    be changed: bases are kept and shared.

    Attributes
    ----------
    dimension
        Of the space, an integer.
    residual
        The largest entry, over all generators and basis maps ``B``, of ``g_out B g_in^-1 - B`` or ``X_out B - B X_in``, recomputed from the result.
    """

    rep_in: Representation
    rep_out: Representation
    dimension: int
    orbits: Int[np.ndarray, " entries"]
    weights: Float[np.ndarray, " entries"]
    mix: Float[np.ndarray, "num_orbits dimension"] | None
    residual: float

    def __post_init__(self) -> None:
        """Nobody changes what is shared."""
        for array in (self.orbits, self.weights, self.mix):
            if array is not None:
                array.flags.writeable = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of a map: outputs, inputs."""
        return self.rep_out.size, self.rep_in.size

    @property
    def vectors(self) -> Float[np.ndarray, "dimension outputs inputs"]:
        """The basis maps themselves, all of them as dense matrices; made anew each time.

        Raises
        ------
        ValueError
            If they would not fit into the memory: :meth:`map`, :meth:`project` and :meth:`coefficients` do without them.
        """
        what = f"vectors: {self.dimension} maps [{self.rep_out.size}, {self.rep_in.size}]"
        expect_room(
            what, 8 * self.dimension * self.orbits.size, MEMORY, "use map, project and coefficients, which do without"
        )
        dense = np.zeros((self.dimension, self.orbits.size))
        if self.mix is not None:
            dense[:] = (self.weights[:, None] * self.mix[self.orbits]).T
        elif self.dimension:
            dense[self.orbits, np.arange(self.orbits.size)] = self.weights
        return dense.reshape(self.dimension, *self.shape)

    def map(self, coefficients: Float[Array, "*more dimension"]) -> Float[Array, "*more outputs inputs"]:
        """The maps of coordinates in this basis; a gather, so that no dense basis is made. Of JAX, and differentiable."""
        coefficients = jnp.asarray(coefficients)
        if coefficients.shape[-1:] != (self.dimension,):
            msg = (
                f"map: got coefficients of shape {coefficients.shape}, expected [..., {self.dimension}], the dimension."
            )
            raise ValueError(msg)
        if not jnp.issubdtype(coefficients.dtype, jnp.inexact):
            coefficients = coefficients.astype(float)
        dtype, leading = coefficients.dtype, coefficients.shape[:-1]
        if not self.dimension:
            return jnp.zeros((*leading, *self.shape), dtype)
        each = coefficients if self.mix is None else coefficients @ jnp.asarray(self.mix.T, dtype)
        return (jnp.asarray(self.weights, dtype) * each[..., self.orbits]).reshape(*leading, *self.shape)

    def coefficients(self, matrix: Float[Array, "outputs inputs"]) -> Float[np.ndarray, " dimension"]:
        """Coordinates of the orthogonal projection of a map. Host."""
        found = np.asarray(matrix)
        if found.shape != self.shape or found.dtype.kind not in "buif" or not np.isfinite(found).all():
            msg = f"coefficients: got a {found.dtype} matrix of shape {found.shape}, expected finite real numbers {list(self.shape)}: outputs, inputs."
            raise ValueError(msg)
        num = self.dimension if self.mix is None else len(self.mix)
        sums = np.bincount(self.orbits, self.weights * found.ravel(), minlength=num)[:num]
        return sums if self.mix is None else self.mix.T @ sums

    def project(self, matrix: Float[Array, "outputs inputs"]) -> Float[np.ndarray, "outputs inputs"]:
        """The nearest map that commutes with the group: the projector, applied. Host."""
        each = self.coefficients(matrix)
        if not self.dimension:
            return np.zeros(self.shape)
        each = each if self.mix is None else self.mix @ each
        return (self.weights * each[self.orbits]).reshape(self.shape)

    def __repr__(self) -> str:
        names = (text if len(text := rep.text()) <= 80 else f"{text[:77]}..." for rep in (self.rep_in, self.rep_out))
        return f"Basis of dimension {self.dimension}: {' -> '.join(names)} of {self.rep_out.group.name}"


def basis(rep_in: Representation, rep_out: Representation, memory: float = MEMORY) -> Basis:
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
        If they are of different groups, more memory is wanted than that, or a singular value of the equations is neither clearly 0 nor clearly not.

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
    if isinstance(memory, bool) or not isinstance(memory, int | float | np.number) or not memory > 0:
        msg = f"basis: memory is {memory!r}, expected a positive number of gibibytes."
        raise ValueError(msg)
    rep_in, rep_out = together(rep_in, rep_out)
    return _solved(rep_in, rep_out, float(memory))


@functools.lru_cache(maxsize=64)
def _solved(rep_in: Representation, rep_out: Representation, memory: float) -> Basis:
    group, both = rep_out.group, rep_out * rep_in.dual
    what = f"basis: maps [{rep_out.size}, {rep_in.size}]"
    filled = sum(_filled(both, i, lie=False) for i in range(group.num_finite))
    filled += sum(_filled(both, i, lie=True) for i in range(group.num_lie))
    expect_room(what, 60 * both.size + 20 * filled, memory)
    moves = [both.finite(number) for number in range(group.num_finite)]
    signed = [move for move in moves if isinstance(move, Signed)]
    orbits, weights, num = _orbits(signed, both.size)
    dense = [move for move in moves if not isinstance(move, Signed)]
    equations = [
        (move - scipy.sparse.eye_array(both.size, format="csr"), 1 + np.asarray(abs(move).sum(axis=1)))
        for move in dense
    ]
    equations += [(both.lie(number), both.bound(number)) for number in range(group.num_lie)]
    mix = None
    if equations and num:
        expect_room(f"{what}, a null space of {num} unknowns", 24 * (num + both.size) * num, memory)
        spread = scipy.sparse.csr_array((weights, (np.arange(both.size), orbits)), shape=(both.size, num))
        mix = _null_space([_scaled(equation, bound) @ spread for equation, bound in equations], num)
    left = [] if mix is None else _left([equation for equation, _ in equations], orbits, weights, mix)
    residual = max([*_moved(signed, orbits, weights), *left], default=0.0)
    return Basis(rep_in, rep_out, num if mix is None else mix.shape[1], orbits, weights, mix, float(residual))


def _filled(rep: Representation, number: int, *, lie: bool) -> float:
    """How many entries a generator's matrix has, before it is made."""
    if isinstance(rep, Sum):
        return sum(_filled(part, number, lie=lie) * num for part, num in collections.Counter(rep.parts).items())
    if isinstance(rep, Tensor):
        each = [(_filled(part, number, lie=lie), part.size) for part in rep.parts]
        return sum(n * rep.size / size for n, size in each) if lie else math.prod(n for n, _ in each)
    found = rep.lie(number) if lie else rep.finite(number)
    return rep.size if isinstance(found, Signed) else found.nnz


def _scaled(equation: scipy.sparse.csr_array, bound: Float[np.ndarray, " entries"]) -> scipy.sparse.csr_array:
    """Each row in units of what its terms would be if nothing cancelled."""
    return scipy.sparse.diags_array(1 / np.where(bound > 0, bound, 1)).tocsr() @ equation


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
    """How many orbits permutations have, and the orbit of each node: the connected components of a graph with an edge for each node and permutation."""
    nodes, each = len(moves[0]), len(moves)
    ends = np.stack(moves, axis=1).astype(np.int32).ravel()
    starts = np.arange(0, nodes * each + 1, each, dtype=np.int32)
    graph = scipy.sparse.csr_array((np.ones(nodes * each), ends, starts), shape=(nodes, nodes))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)


def _null_space(equations: Iterable[scipy.sparse.csr_array], unknowns: int) -> Float[np.ndarray, "unknowns dimension"]:
    """Of all equations together, one after another brought to a triangle."""
    triangle = np.zeros((unknowns, unknowns))
    for equation in equations:
        rows = equation[np.flatnonzero(np.diff(equation.indptr))].toarray()
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, rows]), mode="r")) if len(rows) else triangle
    _, values, vectors = svd(triangle)
    unclear = values[(values > NOUGHT) & (values < GAP * NOUGHT)]
    if len(unclear):
        msg = (
            f"basis: the equations have a singular value of {unclear.max():.0e}, and no clean gap between what is 0 (up to {NOUGHT:g})"
            f" and what is not (from {GAP * NOUGHT:g} on): give generators to all digits, and none that nearly does nothing."
        )
        raise ValueError(msg)
    return np.ascontiguousarray(vectors[values <= NOUGHT].T)


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


def expect_room(
    what: str, needed: float, memory: float, instead: str = "take smaller representations, or allow more by memory="
) -> None:
    """Refuse what takes more bytes than so many gibibytes."""
    if needed > memory * 2**30:
        msg = f"{what} takes about {needed / 2**30:.3g} GiB, expected at most {memory:g}: {instead}."
        raise ValueError(msg)
