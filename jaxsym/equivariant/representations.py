"""A group is its generators, a representation says what they do: sums, tensor products and duals of what a group acts on.

A generator that permutes coordinates and flips signs is kept as that, a :class:`Signed` permutation; any other is a sparse matrix.
"""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Array, Float

from jaxsym.equivariant.generators import (
    Move,
    Signed,
    after,
    as_sparse,
    block,
    both,
    checked_matrix,
    checked_move,
    identity,
    listed,
    size_of,
)
from jaxsym.symmetry import draws

LARGEST = 10**8
"""Coordinates of copies, at most."""


class Element(NamedTuple):
    """``exp(sum coordinates[i] X_i)`` after the generators of ``word``, the last of them first."""

    group: "Group"
    word: tuple[int, ...]
    coordinates: Float[np.ndarray, " lie"]


class Group:
    """A group by generators: matrices ``finite``, which are group elements, and ``lie``, elements of its Lie algebra.

    ``S``, ``A``, ``Z``, ``D``, ``SignedPermutations``, ``SO``, ``O``, ``Lorentz``, ``GL`` and ``Product`` make the usual ones. The more a continuous
    group's ``finite`` generators permute and flip coordinates, the faster its bases are found.

    Parameters
    ----------
    finite, lie
        Matrices ``[n, n]``, arrays or sparse ones of SciPy's, all of one size; of the finite ones each must have an inverse.
    name
        For messages.
    factors
        Of a product, as ``Product`` makes it.

    Attributes
    ----------
    vector
        The representation on ``R^n`` that the matrices are.
    scalar
        The trivial one, on ``R``.

    Raises
    ------
    ValueError
        If there is no generator, or one is not square, not finite, of another size than the first, or (finite) has no inverse.

    Examples
    --------
    >>> turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> quarters = Group(finite=[turn], name="quarter turns")
    >>> quarters.vector * quarters.vector
    vector * vector of quarter turns, size 4
    """

    def __init__(
        self,
        finite: Sequence[Any] = (),
        lie: Sequence[Any] = (),
        name: str = "a group",
        factors: "tuple[Group, ...]" = (),
    ) -> None:
        finite, lie = (listed(matrices, name) for matrices in (finite, lie))
        if not finite and not lie:
            msg = f"{name}: got no generator, expected at least one matrix; the trivial group is S(1)."
            raise ValueError(msg)
        self.name, self.factors = name, factors
        self.num_finite, self.num_lie = len(finite), len(lie)
        self.vector: Representation = self.representation(finite, lie, name="vector")

    @functools.cached_property
    def scalar(self) -> "Representation":
        """The representation on ``R`` that nothing moves."""
        return Given(
            self, "scalar", 1, (identity(1),) * self.num_finite, (scipy.sparse.csr_array((1, 1)),) * self.num_lie
        )

    def representation(
        self,
        finite: Sequence[Any] = (),
        lie: Sequence[Any] = (),
        name: str = "given",
    ) -> "Representation":
        """Another representation, by the matrices ``[m, m]`` of the generators, in the group's order.

        That they obey the group's relations is the caller's to see to: a basis commutes with the generators as they are given.

        Raises
        ------
        ValueError
            If there are not as many matrices as generators, or one is not square, not finite, of another size, or (finite) has no inverse.
        """
        finite, lie = (listed(matrices, self.name) for matrices in (finite, lie))
        for kind, given, wanted in (("finite", finite, self.num_finite), ("lie", lie, self.num_lie)):
            if len(given) != wanted:
                msg = f"{self.name}: got {len(given)} {kind} matrices, expected {wanted}, one for each of its {kind} generators."
                raise ValueError(msg)
        size = size_of([*finite, *lie][0])
        moves = tuple(
            checked_move(matrix, size, f"{self.name}: finite generator {i}") for i, matrix in enumerate(finite)
        )
        matrices = tuple(
            checked_matrix(matrix, size, f"{self.name}: lie generator {i}") for i, matrix in enumerate(lie)
        )
        return Given(self, name, size, moves, matrices)

    def sample(self, key: Array, scale: float = 0.5) -> Element:
        """A random element, for :meth:`Representation.matrix`. Host.

        A word of ``4 n`` of the finite generators, then the exponential of normal coordinates, of deviation ``scale``, in those of the Lie algebra. Neither
        is uniform on the group.
        """
        finite_key, lie_key = jax.random.split(key)
        letters = np.asarray(draws.uniform(finite_key, 4 * self.vector.size)) * self.num_finite
        word = tuple(letters.astype(int).tolist()) if self.num_finite else ()
        return Element(self, word, scale * np.asarray(draws.normal(lie_key, self.num_lie), float))

    def see(self, rep: "Representation") -> "Representation":
        """A representation of one of a product's factors as one of the product.

        Raises
        ------
        ValueError
            If it is a representation of another group, or two factors are the same group, so that it is not said which is meant.
        """
        if not isinstance(rep, Representation):
            msg = f"got a {type(rep).__name__}, expected a representation, such as S(5).vector."
            raise TypeError(msg)
        if rep.group is self:
            return rep
        places = [i for i, factor in enumerate(self.factors) if _within(rep.group, factor)]
        if not places:
            msg = f"got a representation of {rep.group.name}, expected one of {self.name}{_listed(self.factors)}: make it with that group, or take Product of both."
            if rep.group.name == self.name:
                msg = f"got representations of two groups that are both called {self.name}: a group is one object, make it once and use it for both."
            raise ValueError(msg)
        if len(places) > 1:
            msg = (
                f"{rep.group.name} is more than one factor of {self.name}: take the vectors of each from its .vectors."
            )
            raise ValueError(msg)
        return self._seen(places[0], self.factors[places[0]].see(rep))

    @property
    def vectors(self) -> tuple["Representation", ...]:
        """Of a product: the vector of each factor, seen in it."""
        return tuple(self._seen(i, factor.vector) for i, factor in enumerate(self.factors)) or (self.vector,)

    def _seen(self, place: int, rep: "Representation") -> "Representation":
        before = self.factors[:place]
        start = sum(factor.num_finite for factor in before), sum(factor.num_lie for factor in before)
        return Seen(self, rep.size, rep, *start)

    def __deepcopy__(self, memo: Any) -> "Group":
        return self  # nothing in it changes, and representations of a copy would be of another group

    def __repr__(self) -> str:
        return self.name


class Representation(abc.ABC):
    """What a group acts on: ``size`` numbers. ``V + W``, ``V * W``, ``3 * V``, ``V**2`` and ``V.dual`` make others.

    In ``V * W`` the first factor's index is the slow one, entry ``i * W.size + j``; in ``V + W`` and ``3 * V`` parts stand one after another.
    """

    group: Group
    size: int

    @abc.abstractmethod
    def finite(self, number: int) -> Move:
        """What a finite generator does."""

    @abc.abstractmethod
    def lie(self, number: int) -> scipy.sparse.csr_array:
        """What a generator of the Lie algebra does."""

    def bound(self, number: int) -> Float[np.ndarray, " size"]:
        """Sums of the sizes of all terms in each row of a Lie generator, before any cancel: what rounding is measured against."""
        return np.asarray(abs(self.lie(number)).sum(axis=1))

    @property
    def dual(self) -> "Representation":
        """On linear functions of these vectors: the inverse transposes."""
        return Dual(self.group, self.size, self)

    def matrix(self, element: Element) -> Float[np.ndarray, "size size"]:
        """The matrix of a group element. Host.

        Raises
        ------
        ValueError
            If it is no element of this group.
        """
        if not isinstance(element, Element) or element.group is not self.group:
            got = (
                f"an element of {element.group.name}" if isinstance(element, Element) else f"a {type(element).__name__}"
            )
            msg = f"matrix: got {got}, expected an element of {self.group.name}: take one of its .sample(key)."
            raise ValueError(msg)
        moves = {number: self.finite(number) for number in set(element.word)}
        matrix = np.eye(self.size)
        for signed, run in itertools.groupby(reversed(element.word), lambda number: isinstance(moves[number], Signed)):
            if signed:
                matrix = functools.reduce(after, (moves[number] for number in run)).sparse() @ matrix
            else:
                for number in run:
                    matrix = moves[number] @ matrix
        if len(element.coordinates):
            total = sum(c * self.lie(i).toarray() for i, c in enumerate(element.coordinates))
            matrix = scipy.linalg.expm(total) @ matrix
        return matrix

    def __add__(self, other: Any) -> "Representation":
        if not isinstance(other, Representation):
            return NotImplemented
        return direct_sum(*together(self, other))

    def __radd__(self, other: Any) -> "Representation":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # of sum([V, W])

    def __mul__(self, other: Any) -> "Representation":
        if isinstance(other, int | np.integer) and not isinstance(other, bool):
            return _copies(self, int(other))
        if not isinstance(other, Representation):
            return NotImplemented
        return product(*together(self, other))

    __rmul__ = __mul__

    def __pow__(self, power: int) -> "Representation":
        if not isinstance(power, int | np.integer) or isinstance(power, bool) or power < 0:
            msg = f"power: got {power!r}, expected an integer from 0 on."
            raise ValueError(msg)
        return product(*(self,) * power) if power else self.group.scalar

    @abc.abstractmethod
    def text(self) -> str:
        """How it is written."""

    def __repr__(self) -> str:
        return f"{self.text()} of {self.group.name}, size {self.size}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Given(Representation):
    """By the matrices of the generators."""

    group: Group
    name: str
    size: int
    moves: tuple[Move, ...]
    matrices: tuple[scipy.sparse.csr_array, ...]

    def finite(self, number: int) -> Move:
        """As given."""
        return self.moves[number]

    def lie(self, number: int) -> scipy.sparse.csr_array:
        """As given."""
        return self.matrices[number]

    def text(self) -> str:
        """Its name."""
        return self.name


@dataclasses.dataclass(frozen=True, repr=False)
class Seen(Representation):
    """A representation of a factor, where the generators of the others do nothing."""

    group: Group
    size: int
    rep: Representation
    first_finite: int
    first_lie: int

    def finite(self, number: int) -> Move:
        """Of the factor's generators only."""
        own = number - self.first_finite
        if 0 <= own < self.rep.group.num_finite:
            return self.rep.finite(own)
        return identity(self.size)

    def lie(self, number: int) -> scipy.sparse.csr_array:
        """Of the factor's generators only."""
        own = number - self.first_lie
        return (
            self.rep.lie(own) if 0 <= own < self.rep.group.num_lie else scipy.sparse.csr_array((self.size, self.size))
        )

    def text(self) -> str:
        """With the factor's name."""
        return f"{self.rep.group.name}.{self.rep.text()}"


@dataclasses.dataclass(frozen=True, repr=False)
class Dual(Representation):
    """The inverse transposes of another."""

    group: Group
    size: int
    rep: Representation

    @property
    def dual(self) -> Representation:
        """The one that this is the dual of."""
        return self.rep

    def finite(self, number: int) -> Move:
        """A signed permutation is its own inverse transpose."""
        move = self.rep.finite(number)
        return move if isinstance(move, Signed) else scipy.sparse.csr_array(np.linalg.inv(move.toarray()).T)

    def lie(self, number: int) -> scipy.sparse.csr_array:
        """Minus the transpose."""
        return -self.rep.lie(number).T.tocsr()

    def text(self) -> str:
        """With ``.dual``."""
        return f"{self.rep.text()}.dual"


@dataclasses.dataclass(frozen=True, repr=False)
class Tensor(Representation):
    """A tensor product; the first factor's index is the slowest."""

    group: Group
    size: int
    parts: tuple[Representation, ...]

    @property
    def dual(self) -> Representation:
        """That of the duals."""
        return product(*(part.dual for part in self.parts))

    def bound(self, number: int) -> Float[np.ndarray, " size"]:
        """The Kronecker sum of the bounds."""
        return functools.reduce(lambda a, b: (a[:, None] + b).ravel(), (part.bound(number) for part in self.parts))

    def finite(self, number: int) -> Move:
        """The Kronecker product."""
        moves = [part.finite(number) for part in self.parts]
        if all(isinstance(move, Signed) for move in moves):
            return functools.reduce(both, moves)
        return functools.reduce(lambda a, b: scipy.sparse.kron(a, b, "csr"), map(as_sparse, moves))

    def lie(self, number: int) -> scipy.sparse.csr_array:
        """The Kronecker sum."""
        total, size = self.parts[0].lie(number), self.parts[0].size
        for part in self.parts[1:]:
            left = scipy.sparse.kron(total, scipy.sparse.eye_array(part.size), "csr")
            total = left + scipy.sparse.kron(scipy.sparse.eye_array(size), part.lie(number), "csr")
            size *= part.size
        return scipy.sparse.csr_array(total)

    def text(self) -> str:
        """Factors joined by ``*``."""
        return " * ".join(f"({part.text()})" if isinstance(part, Sum) else part.text() for part in self.parts)


@dataclasses.dataclass(frozen=True, repr=False)
class Sum(Representation):
    """A direct sum: the parts' coordinates one after another."""

    group: Group
    size: int
    parts: tuple[Representation, ...]

    @property
    def dual(self) -> Representation:
        """That of the duals."""
        return direct_sum(*(part.dual for part in self.parts))

    def bound(self, number: int) -> Float[np.ndarray, " size"]:
        """One after another."""
        return np.concatenate(self._each(lambda part: part.bound(number)))

    def finite(self, number: int) -> Move:
        """Block by block."""
        return block(self._each(lambda part: part.finite(number)))

    def lie(self, number: int) -> scipy.sparse.csr_array:
        """Block by block."""
        return block(self._each(lambda part: part.lie(number)))

    def _each(self, of: Callable[[Representation], Any]) -> list[Any]:
        """Computed once for equal parts, of which there may be hundreds."""
        known: dict[Representation, Any] = {}
        return [known[part] if part in known else known.setdefault(part, of(part)) for part in self.parts]

    def text(self) -> str:
        """Parts joined by ``+``, copies counted."""
        runs = [(part, len(list(same))) for part, same in itertools.groupby(self.parts)]
        return " + ".join(
            (f"{num} * " if num > 1 else "")
            + (f"({part.text()})" if num > 1 and isinstance(part, Tensor) else part.text())
            for part, num in runs
        )


def product(*parts: Representation) -> Representation:
    """The tensor product of representations of one group."""
    flat = tuple(p for part in parts for p in (part.parts if isinstance(part, Tensor) else (part,)))
    return parts[0] if len(parts) == 1 else Tensor(parts[0].group, math.prod(part.size for part in flat), flat)


def direct_sum(*parts: Representation) -> Representation:
    """The direct sum of representations of one group."""
    flat = tuple(p for part in parts for p in (part.parts if isinstance(part, Sum) else (part,)))
    return parts[0] if len(parts) == 1 else Sum(parts[0].group, sum(part.size for part in flat), flat)


def together(*reps: Representation) -> tuple[Representation, ...]:
    """Representations as of one group: of their own, or of a product among their groups.

    Raises
    ------
    ValueError
        If there is no such group.
    """
    groups = [rep.group for rep in reps]
    widest = max(groups, key=_depth)
    return tuple(widest.see(rep) for rep in reps)


def _depth(group: Group) -> int:
    return 1 + max(map(_depth, group.factors), default=0)


def _within(group: Group, other: Group) -> bool:
    return group is other or any(_within(group, factor) for factor in other.factors)


def _listed(groups: Sequence[Group]) -> str:
    return f" or of a factor of it ({', '.join(group.name for group in groups)})" if groups else ""


def _copies(rep: Representation, num: int) -> Representation:
    if not 1 <= num <= LARGEST // rep.size:
        msg = f"copies: got {num} of {rep.text()}, expected at least 1, and at most {LARGEST:.0e} coordinates in all."
        raise ValueError(msg)
    return direct_sum(*(rep,) * num)
