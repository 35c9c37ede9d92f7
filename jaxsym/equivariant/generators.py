"""What a generator does to coordinates: a signed permutation where it is one, else a sparse matrix; and which matrices are refused."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Int

SINGULAR = 1e10
"""A matrix of this condition has no inverse."""


class Signed(NamedTuple):
    """A permutation of coordinates with signs: ``(g x)[i] = signs[i] x[places[i]]``."""

    places: Int[np.ndarray, " size"]
    signs: Int[np.ndarray, " size"]

    def sparse(self) -> scipy.sparse.csr_array:
        """As a matrix."""
        size = len(self.places)
        return scipy.sparse.csr_array((self.signs.astype(float), (np.arange(size), self.places)), shape=(size, size))


Move: TypeAlias = Signed | scipy.sparse.csr_array
"""What a generator of a group does to a vector."""


def as_sparse(move: Move) -> scipy.sparse.csr_array:
    """What a generator does, as a matrix."""
    return move.sparse() if isinstance(move, Signed) else move


def one_after_another(moves: Sequence[Signed]) -> Signed:
    """Signed permutations as one, of coordinates one after another."""
    starts = itertools.accumulate((len(move.places) for move in moves), initial=0)
    places = [move.places + start for move, start in zip(moves, starts, strict=False)]
    return Signed(np.concatenate(places), np.concatenate([move.signs for move in moves]))


def block(moves: Sequence[Move]) -> Move:
    """Block-diagonal."""
    if all(isinstance(move, Signed) for move in moves):
        return one_after_another(moves)
    return scipy.sparse.csr_array(scipy.sparse.block_diag(list(map(as_sparse, moves)), "csr"))


def identity(size: int) -> Signed:
    """What moves nothing."""
    return Signed(np.arange(size), np.ones(size, int))


def both(a: Signed, b: Signed) -> Signed:
    """The Kronecker product."""
    size = len(b.places)
    return Signed((a.places[:, None] * size + b.places).ravel(), (a.signs[:, None] * b.signs).ravel())


def after(first: Signed, then: Signed) -> Signed:
    """One signed permutation after another."""
    return Signed(first.places[then.places], then.signs * first.signs[then.places])


def listed(matrices: Any, who: str) -> list[Any]:
    """Generators as a list: arrays, sparse matrices and signed permutations."""
    try:
        return [m if isinstance(m, Signed) or scipy.sparse.issparse(m) else np.asarray(m) for m in matrices]
    except (TypeError, ValueError) as error:
        msg = f"{who}: got generators that are no matrices ({error}), expected a list of arrays [n, n]."
        raise ValueError(msg) from error


def size_of(matrix: Any) -> int:
    """Of the first matrix; 0 of what is none."""
    shape = _shape(matrix)
    return shape[0] if len(shape) == 2 else 0


def _shape(matrix: Any) -> tuple[int, ...]:
    return (len(matrix.places),) * 2 if isinstance(matrix, Signed) else matrix.shape


def checked_matrix(matrix: Any, size: int, who: str) -> scipy.sparse.csr_array:
    """A generator of a Lie algebra; refuses what is not square, of this size, real and finite."""
    shape = _shape(matrix)
    if shape != (size, size) or not size:
        wanted = f"[{size}, {size}], as of the first one" if size else "[n, n] (of a permutation, np.eye(n)[order])"
        msg = f"{who} has shape {shape}, expected a square matrix {wanted}."
        raise ValueError(msg)
    found = as_sparse(matrix)
    numbers = found.data if scipy.sparse.issparse(found) else found
    if found.dtype.kind not in "buif" or not np.isfinite(numbers).all():
        msg = f"{who} has entries that are no finite real numbers; write a complex matrix as a real one of twice the size."
        raise ValueError(msg)
    return scipy.sparse.csr_array(found.astype(float))


def checked_move(matrix: Any, size: int, who: str) -> Move:
    """A signed permutation as one, and another matrix if it has an inverse."""
    if isinstance(matrix, Signed) and len(matrix.places) == size:
        return _fixed(matrix)
    found = checked_matrix(matrix, size, who)
    found.eliminate_zeros()
    found.sort_indices()
    once = (np.diff(found.indptr) == 1).all() and np.array_equal(np.sort(found.indices), np.arange(size))
    if once and (np.abs(found.data) == 1).all():
        return _fixed(Signed(found.indices.astype(np.int64), found.data.astype(np.int64)))
    condition = np.linalg.cond(found.toarray())
    if condition > SINGULAR:
        msg = f"{who} has no inverse (condition {condition:.0e}), expected an element of a group; an element of a Lie algebra is given as lie."
        raise ValueError(msg)
    return found


def _fixed(move: Signed) -> Signed:
    """What nobody can change: groups are shared."""
    for array in move:
        array.flags.writeable = False
    return move
