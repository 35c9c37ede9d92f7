"""The usual groups, each by few generators. The continuous ones hold the signed permutations that lie in them, which makes bases small."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from jaxsym.equivariant.generators import Move, Signed, block, identity, one_after_another
from jaxsym.equivariant.representations import Group

Generators = tuple[Sequence[Move], Sequence[scipy.sparse.csr_array]]
"""Of a group, and of its Lie algebra."""


def _sized(generators: Callable[[int], Generators]) -> Callable[[int], Group]:
    """The group of a size, always the same object; refuses what is no size."""

    @functools.cache
    def make(n: int) -> Group:
        return Group(*generators(n), f"{generators.__name__}({n})")

    @functools.wraps(generators)
    def group(n: int) -> Group:
        if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
            msg = f"{generators.__name__}: n is {n!r}, expected a positive integer, the number of coordinates."
            raise ValueError(msg)
        return make(int(n))

    group.__annotations__["return"] = Group
    return group


@_sized
def S(n: int) -> Generators:
    """All permutations of ``n`` coordinates: a transposition and a cycle.

    >>> S(5).vector.size
    5
    """
    return [_transposition(n), _cycle(n)], []


@_sized
def A(n: int) -> Generators:
    """The even permutations of ``n`` coordinates: a cycle of three, and one of ``n``, or of all but the first where ``n`` is even."""
    if n < 3:
        return [identity(n)], []
    return [
        one_after_another([_cycle(3), identity(n - 3)]),
        _cycle(n) if n % 2 else one_after_another([identity(1), _cycle(n - 1)]),
    ], []


@_sized
def Z(n: int) -> Generators:
    """The cyclic shifts of ``n`` coordinates."""
    return [_cycle(n)], []


@_sized
def D(n: int) -> Generators:
    """The symmetries of a polygon, on its ``n`` vertices: shifts and reflections."""
    return [_cycle(n), _permutation([-i % n for i in range(n)])], []


@_sized
def SignedPermutations(n: int) -> Generators:
    """All permutations and sign flips of ``n`` coordinates, the hyperoctahedral group."""
    return [_transposition(n), _cycle(n), _reflection(n)], []


@_sized
def SO(n: int) -> Generators:
    """The rotations of ``R^n``: those that permute axes, and the turns of the first two axes."""
    return _turns(n), [_plane(n)] if n > 1 else []


@_sized
def O(n: int) -> Generators:  # noqa: E743
    """The rotations and reflections of ``R^n``."""
    return [*_turns(n), _reflection(n)], [_plane(n)] if n > 1 else []


@_sized
def GL(n: int) -> Generators:
    """All invertible matrices ``[n, n]``: ``vector`` and its ``dual`` differ."""
    shear = [_unit(n, 0, 1)] if n > 1 else []
    return [_transposition(n), _cycle(n), _reflection(n)], [_unit(n, 0, 0), *shear]


@functools.cache
def Lorentz() -> Group:
    """The proper orthochronous Lorentz group on ``(t, x, y, z)``: rotations of space, and boosts."""
    boost, turn = _unit(4, 0, 1) + _unit(4, 1, 0), _unit(4, 2, 1) - _unit(4, 1, 2)
    return Group([one_after_another([identity(1), turn]) for turn in _turns(3)], [boost, turn], "Lorentz()")


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
    return _product(groups)


@functools.cache
def _product(groups: tuple[Group, ...]) -> Group:
    vectors = [group.vector for group in groups]
    finite = [
        _placed(place, [identity(V.size) for V in vectors], V.finite(i))
        for place, V in enumerate(vectors)
        for i in range(V.group.num_finite)
    ]
    lie = [
        _placed(place, [scipy.sparse.csr_array((V.size, V.size)) for V in vectors], V.lie(i))
        for place, V in enumerate(vectors)
        for i in range(V.group.num_lie)
    ]
    return Group(finite, lie, f"Product({', '.join(group.name for group in groups)})", groups)


def _placed(place: int, others: Sequence[Move], move: Move) -> Move:
    """A generator in its place, and beside it what does nothing."""
    return block([move if i == place else other for i, other in enumerate(others)])


def _permutation(places: Sequence[int]) -> Signed:
    return Signed(np.array(places), np.ones(len(places), int))


def _cycle(n: int) -> Signed:
    return _permutation([*range(1, n), 0])


def _transposition(n: int) -> Signed:
    return _permutation([1, 0, *range(2, n)]) if n > 1 else identity(1)


def _reflection(n: int) -> Signed:
    return Signed(np.arange(n), np.array([-1, *[1] * (n - 1)]))


def _unit(n: int, i: int, j: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(([1.0], ([i], [j])), shape=(n, n))


def _plane(n: int) -> scipy.sparse.csr_array:
    """The turn of the first two axes."""
    return _unit(n, 1, 0) - _unit(n, 0, 1)


def _turns(n: int) -> list[Signed]:
    """Generators of the signed permutations of determinant 1."""
    if n == 1:
        return [identity(1)]
    turn, cycle = _transposition(n), _cycle(n)
    turn.signs[0] = -1
    cycle.signs[-1] = (-1) ** (n - 1)
    return [turn, cycle]
