"""Shared weights as colours: entries of a tensor that equations between them make equal.

Equations that say only which entries are equal need not say all that equivariance does: :func:`jaxsym.equivariant.basis` has the dimension.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from jaxsym.equivariant.bases import MEMORY, expect_room

Entry = tuple[int, ...]
Equation = tuple[Entry, Entry | float]
LARGEST = 10**8
"""Entries of a tensor, at most."""


class Equations(NamedTuple):
    """Equalities between entries of a tensor of some shape, or between an entry and a number."""

    shape: tuple[int, ...]
    equal: tuple[Equation, ...]


class Colours(NamedTuple):
    """Classes of equal entries: how many, and the class of each entry; numbered as they first come."""

    number: int
    tensor: Int[np.ndarray, "..."]
    values: Float[np.ndarray, " number"]
    """Of the classes that the equations give a value; NaN where they are free."""


def colours(equations: Equations | Iterable[Equation]) -> Colours:
    """Weight-sharing classes from equalities between entries.

    Parameters
    ----------
    equations
        A system of ``SYSTEMS``, an :class:`Equations`, or pairs of entries, such as ``[((0, 0), (1, 1))]``, of the least tensor that holds them all.
        A number in place of the second entry is the value of the first.

    Returns
    -------
    Colours

    Raises
    ------
    ValueError
        If an entry is not of the tensor, or two values are given to one class.

    Notes
    -----
    *Source*: Yan King Yin 2019, "Symmetric neural networks"; union-find as connected components.

    Examples
    --------
    >>> found = colours(SYSTEMS["linear"](3))
    >>> found.number
    2
    >>> found.tensor.tolist()
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    >>> [colours(SYSTEMS["quadratic"](n)).number for n in range(2, 7)]
    [6, 9, 11, 13, 15]
    """
    shape, equal = _checked(equations) if isinstance(equations, Equations) else _gathered(equations)
    size = math.prod(shape)
    if size > LARGEST:
        msg = f"equations: a tensor of shape {shape} has {size:.3g} entries, expected at most {LARGEST:.0e}; number the entries closer together."
        raise ValueError(msg)
    pairs, given = [], []
    for left, right in equal:
        if isinstance(right, tuple | list):
            pairs.append((_place(left, shape), _place(right, shape)))
        else:
            given.append((_place(left, shape), _number(left, right)))
    starts, ends = np.array(pairs, int).reshape(-1, 2).T
    graph = scipy.sparse.coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(size, size))
    number, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    values = np.full(number, np.nan)
    told: dict[int, int] = {}
    for place, value in given:
        label = labels[place]
        if not np.isnan(values[label]) and values[label] != value:
            first, second = _entry(told[label], shape), _entry(place, shape)
            msg = f"inconsistent equations: entries {first} and {second} are of one colour, and have the values {values[label]:g} and {value:g}; leave one out."
            raise ValueError(msg)
        values[label], told[label] = value, place
    return Colours(number, labels.reshape(shape), values)


def linear(n: int) -> Equations:
    """Of ``y_j = sum a_ji x_i``, by exchanging outputs ``h`` and ``k``.

    ``a_hi = a_ki`` where ``i`` is neither, ``a_hh = a_kk``, ``a_hk = a_kh``.
    """
    n = _size(n, "linear")
    return _linear(n, n)


def folded(n: int) -> Equations:
    """Of a linear map from ``n`` inputs to half as many outputs: those equations of :func:`linear` that have all their outputs among these.

    What has these colours commutes with the permutations of the first ``n / 2`` inputs and the outputs alike, while the other inputs stay.
    """
    return _linear(n, _half(n, "folded"))


def _linear(n: int, rows: int) -> Equations:
    equal: list[Equation] = []
    for h, k in _exchanged(rows):
        equal += [((h, i), (k, i)) for i in range(n) if i not in (h, k)]
        equal += [((h, h), (k, k)), ((h, k), (k, h))]
    return Equations((rows, n), tuple(equal))


def quadratic(n: int) -> Equations:
    """Of ``y_k = sum a^k_ij x_i x_j``, lines 1 to 7 of the note: which entries are equal when outputs ``h`` and ``k`` are exchanged.

    With ``i`` and ``j`` neither of them: ``a^h_ij = a^k_ij``, ``a^h_hh = a^k_kk``, ``a^h_kk = a^k_hh``, ``a^h_kj = a^k_hj``, ``a^h_hj = a^k_kj``,
    ``a^h_jk = a^k_jh``, ``a^h_jh = a^k_jk``. Line 8 is :func:`mixed`.
    """
    n = _size(n, "quadratic")
    return _quadratic(n, n)


def folded_quadratic(n: int) -> Equations:
    """Of a quadratic map from ``n`` inputs to half as many outputs: those equations of :func:`quadratic` that have all their outputs among these.

    The note has a heading for this case and no equations: they are taken here as it takes them for the linear map. From ``m = n / 2 = 3`` on there are
    ``m^2 + 6 m + 3`` colours: ``2 m + 3`` of the first ``m`` inputs, four for each other input beside one of these, and one for each pair of others.
    """
    return _quadratic(n, _half(n, "folded_quadratic"))


def _quadratic(n: int, rows: int) -> Equations:
    equal: list[Equation] = []
    for h, k in _exchanged(rows):
        others = [i for i in range(n) if i not in (h, k)]
        equal += [((h, i, j), (k, i, j)) for i in others for j in others]
        equal += [((h, h, h), (k, k, k)), ((h, k, k), (k, h, h))]
        for j in others:
            equal += [((h, k, j), (k, h, j)), ((h, h, j), (k, k, j)), ((h, j, k), (k, j, h)), ((h, j, h), (k, j, k))]
    return Equations((rows, n, n), tuple(equal))


SYSTEMS: dict[str, Callable[[int], Equations]] = {
    "linear": linear,
    "quadratic": quadratic,
    "folded": folded,
    "folded_quadratic": folded_quadratic,
}
"""The systems of the 2019 note, by the number of inputs."""


def mixed(n: int) -> list[dict[Entry, float]]:
    """Line 8 of the note, ``a^h_hk + a^h_kh = a^k_hk + a^k_kh``, as linear forms that must vanish: no equality between two entries says it."""
    return [
        {(h, h, k): 1.0, (h, k, h): 1.0, (k, h, k): -1.0, (k, k, h): -1.0} for h, k in _exchanged(_size(n, "mixed"))
    ]


def constrained(found: Colours, forms: Sequence[dict[Entry, float]]) -> Float[np.ndarray, "dimension ..."]:
    """An orthonormal basis of the tensors with these colours on which linear forms vanish.

    Parameters
    ----------
    found
        Colours of a tensor; those that have a value are no freedom and may not be there.
    forms
        Each a dictionary from entries to coefficients.

    Raises
    ------
    ValueError
        If a colour has a value, or a form has an entry that the tensor has not.

    Examples
    --------
    >>> [len(constrained(colours(SYSTEMS["quadratic"](n)), mixed(n))) for n in range(3, 7)]  # n + 4
    [7, 8, 9, 10]
    """
    if not isinstance(found, Colours):
        msg = f"constrained: got a {type(found).__name__}, expected what colours(equations) returns."
        raise TypeError(msg)
    if not isinstance(forms, list | tuple) or not all(isinstance(form, Mapping) for form in forms):
        msg = "constrained: forms is no list of dictionaries from entries to coefficients, such as mixed(4)."
        raise TypeError(msg)
    what = f"constrained: {found.number} tensors of shape {found.tensor.shape}"
    expect_room(what, 8 * found.number * found.tensor.size, MEMORY, "take a smaller one")
    if not np.isnan(found.values).all():
        msg = f"constrained: colour {int(np.flatnonzero(~np.isnan(found.values))[0])} has a value, expected free colours only."
        raise ValueError(msg)
    shape = found.tensor.shape
    basis = (np.arange(found.number)[:, None] == found.tensor.ravel()).astype(float)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    rows = np.zeros((len(forms), found.number))
    for row, form in zip(rows, forms, strict=True):
        for entry, coefficient in form.items():
            row += _number(entry, coefficient) * basis[:, _place(entry, shape)]
    kept = scipy.linalg.null_space(rows) if len(forms) else np.eye(found.number)
    return (kept.T @ basis).reshape(-1, *shape)


def _exchanged(num: int) -> list[tuple[int, int]]:
    return [(h, k) for h in range(num) for k in range(h)]


def _checked(equations: Equations) -> Equations:
    """Refuse a shape that is none."""
    shape = equations.shape
    if not isinstance(shape, tuple | list) or not all(_is_index(n) and n > 0 for n in shape):
        msg = f"equations: shape is {shape!r}, expected a tuple of positive integers."
        raise ValueError(msg)
    return Equations(tuple(map(int, shape)), _pairs(equations.equal))


def _pairs(equations: Any) -> tuple[Equation, ...]:
    if callable(equations) or isinstance(equations, str | Mapping) or not isinstance(equations, Iterable):
        hint = (
            "; call a system with the number of inputs, SYSTEMS['linear'](4)"
            if not isinstance(equations, Mapping)
            else ""
        )
        msg = f"equations: got a {type(equations).__name__}, expected pairs of entries, such as ((0, 0), (1, 1)), or an Equations{hint}."
        raise TypeError(msg)
    equal = tuple(equations)
    for pair in equal:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            msg = f"equations: got {pair!r}, expected a pair: an entry, and another or a number."
            raise ValueError(msg)
    return equal


def _gathered(equations: Iterable[Equation]) -> Equations:
    equal = _pairs(equations)
    entries = [entry for pair in equal for entry in pair if isinstance(entry, tuple | list)]
    if equal and not entries:
        msg = (
            f"equations: got {equal[0]!r}, expected a pair of entries, each a tuple of integers, such as ((0,), (1,))."
        )
        raise ValueError(msg)
    if not entries:
        msg = "equations: got none, expected pairs of entries, such as ((0, 0), (1, 1)), or an Equations with the tensor's shape."
        raise ValueError(msg)
    rank = len(entries[0])
    for entry in entries:
        if len(entry) != rank or not all(_is_index(i) for i in entry):
            msg = f"inconsistent equations: entry {entry!r} beside {entries[0]!r}, expected {rank} integers from 0 on, as of one tensor."
            raise ValueError(msg)
    return Equations(tuple(max(axis) + 1 for axis in zip(*entries, strict=True)), equal)


def _is_index(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(number >= 0)


def _place(entry: Entry, shape: tuple[int, ...]) -> int:
    inside = isinstance(entry, tuple | list) and len(entry) == len(shape)
    if not inside or not all(_is_index(i) and i < n for i, n in zip(entry, shape, strict=True)):
        msg = f"equations: entry {entry!r} is none of a tensor of shape {shape}: expected {len(shape)} integers, counted from 0."
        raise ValueError(msg)
    return int(np.ravel_multi_index(tuple(entry), shape))


def _entry(place: int, shape: tuple[int, ...]) -> Entry:
    return tuple(int(i) for i in np.unravel_index(place, shape))


def _number(entry: Entry, value: float) -> float:
    if not isinstance(value, int | float | np.number) or not np.isfinite(value):
        msg = f"equations: entry {entry!r} is set equal to {value!r}, expected another entry or a finite number."
        raise ValueError(msg)
    return float(value)


def _size(n: int, who: str) -> int:
    if not _is_index(n) or not n:
        msg = f"{who}: n is {n!r}, expected a positive integer, the number of inputs."
        raise ValueError(msg)
    return int(n)


def _half(n: int, who: str) -> int:
    if _size(n, who) % 2:
        msg = f"{who}: n is {n}, expected an even number, for half as many outputs."
        raise ValueError(msg)
    return n // 2
