"""The usual groups, each by few generators. The continuous ones hold the signed permutations that lie in them, which makes bases small."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Float

from jaxsym.equivariant.representations import Group, as_sparse

Matrices = Sequence[Float[np.ndarray, "n n"]]


def _sized(generators: Callable[[int], tuple[Matrices, Matrices]]) -> Callable[[int], Group]:
    """The group of a size, always the same object; refuses what is no size."""

    @functools.cache
    def make(n: int) -> Group:
        return Group(*generators(n), f"{generators.__name__}({n})")

    @functools.wraps(generators)
    def group(n: int) -> Group:
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            msg = f"{generators.__name__}: n is {n!r}, expected a positive integer, the number of coordinates."
            raise ValueError(msg)
        return make(n)

    group.__annotations__["return"] = Group
    return group


@_sized
def S(n: int) -> tuple[Matrices, Matrices]:
    """All permutations of ``n`` coordinates: a transposition and a cycle.

    >>> S(5).vector.size
    5
    """
    return [_transposition(n), _cycle(n)], []


@_sized
def A(n: int) -> tuple[Matrices, Matrices]:
    """The even permutations of ``n`` coordinates: a cycle of three, and one of as many as are odd in number."""
    if n < 3:
        return [np.eye(n)], []
    return [scipy.linalg.block_diag(_cycle(3), np.eye(n - 3)), _cycle(n) if n % 2 else _after_one(_cycle(n - 1))], []


@_sized
def Z(n: int) -> tuple[Matrices, Matrices]:
    """The cyclic shifts of ``n`` coordinates."""
    return [_cycle(n)], []


@_sized
def D(n: int) -> tuple[Matrices, Matrices]:
    """The symmetries of a polygon, on its ``n`` vertices: shifts and reflections."""
    return [_cycle(n), np.eye(n)[[-i % n for i in range(n)]]], []


@_sized
def SignedPermutations(n: int) -> tuple[Matrices, Matrices]:
    """All permutations and sign flips of ``n`` coordinates, the hyperoctahedral group."""
    return [_transposition(n), _cycle(n), _reflection(n)], []


@_sized
def SO(n: int) -> tuple[Matrices, Matrices]:
    """The rotations of ``R^n``: those that permute axes, and the turns of the first two axes."""
    return _turns(n), [_unit(n, 1, 0) - _unit(n, 0, 1)] if n > 1 else []


@_sized
def O(n: int) -> tuple[Matrices, Matrices]:  # noqa: E743
    """The rotations and reflections of ``R^n``."""
    return [*_turns(n), _reflection(n)], [_unit(n, 1, 0) - _unit(n, 0, 1)] if n > 1 else []


@_sized
def GL(n: int) -> tuple[Matrices, Matrices]:
    """All invertible matrices ``[n, n]``: ``vector`` and its ``dual`` differ."""
    shear = [_unit(n, 0, 1)] if n > 1 else []
    return [_transposition(n), _cycle(n), _reflection(n)], [_unit(n, 0, 0), *shear]


@functools.cache
def Lorentz() -> Group:
    """The proper orthochronous Lorentz group on ``(t, x, y, z)``: rotations of space, and boosts."""
    boost, turn = _unit(4, 0, 1) + _unit(4, 1, 0), _unit(4, 2, 1) - _unit(4, 1, 2)
    return Group([_after_one(turn) for turn in _turns(3)], [boost, turn], "Lorentz()")


@functools.cache
def Product(*groups: Group) -> Group:
    """Pairs ``(g, h)``. Its ``vectors`` are those of the factors, seen in it; ``vector`` is their direct sum.

    ``G.vector`` itself may stand beside a representation of the product, and is then seen in it.

    Raises
    ------
    TypeError, ValueError
        If one is not a group, or there are fewer than two.

    Examples
    --------
    >>> from jaxsym.equivariant import basis
    >>> points, axes = Product(S(5), SO(3)).vectors
    >>> basis(points * axes, points * axes).dimension  # alpha I + beta 11', on each axis alike
    2
    """
    for group in groups:
        if not isinstance(group, Group):
            msg = f"Product: got a {type(group).__name__}, expected groups, such as S(5) and SO(3)."
            raise TypeError(msg)
    if len(groups) < 2:
        msg = f"Product: got {len(groups)} groups, expected at least two."
        raise ValueError(msg)
    sizes = [group.vector.size for group in groups]

    def placed(place: int, matrix: np.ndarray, *, identity: bool) -> np.ndarray:
        others = (np.eye(size) if identity else np.zeros((size, size)) for size in sizes)
        return scipy.linalg.block_diag(*(matrix if i == place else other for i, other in enumerate(others)))

    finite = [
        placed(place, as_sparse(group.vector.finite(i)).toarray(), identity=True)
        for place, group in enumerate(groups)
        for i in range(group.num_finite)
    ]
    lie = [
        placed(place, group.vector.lie(i).toarray(), identity=False)
        for place, group in enumerate(groups)
        for i in range(group.num_lie)
    ]
    return Group(finite, lie, f"Product({', '.join(group.name for group in groups)})", groups)


def _cycle(n: int) -> Float[np.ndarray, "n n"]:
    return np.roll(np.eye(n), 1, axis=1)


def _transposition(n: int) -> Float[np.ndarray, "n n"]:
    return np.eye(n)[[1, 0, *range(2, n)]] if n > 1 else np.eye(n)


def _reflection(n: int) -> Float[np.ndarray, "n n"]:
    return np.diag([-1.0, *[1.0] * (n - 1)])


def _after_one(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "m m"]:
    """The first coordinate stays."""
    return scipy.linalg.block_diag(np.eye(1), matrix)


def _unit(n: int, i: int, j: int) -> Float[np.ndarray, "n n"]:
    matrix = np.zeros((n, n))
    matrix[i, j] = 1
    return matrix


def _turns(n: int) -> list[Float[np.ndarray, "n n"]]:
    """Generators of the signed permutations of determinant 1."""
    if n == 1:
        return [np.eye(1)]
    turn, cycle = _transposition(n), _cycle(n)
    turn[0, 1] = -1
    cycle[-1, 0] = (-1) ** (n - 1)
    return [turn, cycle]
