"""Closed forms: how many copies of a network there are, how many minima and saddles a wider one has, how many parameters count.

Exact integers, of any size.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxsym.catalogue import find
from jaxsym.models import activation as activations

SIGNED = ("tanh", "sigmoid", "sin", "square", "cube", "abs")
"""Activations whose units may change their signs."""


def order(widths: Sequence[int], activation: str) -> int:
    """Number of elements of the finite group of a multilayer perceptron with biases, over its hidden layers.

    Permutations of the units, ``M!`` a layer, and a sign for each unit where the activation is odd, even, or odd about a point,
    ``M! 2^M``. Continuous factors (rescalings of ReLU, changes of basis of the identity, which absorb both) and the periods of sine are not
    counted.

    Parameters
    ----------
    widths
        Input, hidden..., output.
    activation
        A name of ``jaxsym.models.activation.CATALOGUE``.

    Raises
    ------
    ValueError
        If a width is not a positive integer, there are fewer than two, or the activation is unknown.

    Notes
    -----
    *Source*: Chen, Lu, Hecht-Nielsen 1993; Sussmann 1992 (tanh).

    Examples
    --------
    >>> [order((3, units, 1), "tanh") for units in range(1, 7)]
    [2, 8, 48, 384, 3840, 46080]
    >>> order((3, 4, 5, 1), "relu")  # 4! 5!
    2880
    """
    find(activations.CATALOGUE, activation, "activation")
    hidden = _checked(widths)[1:-1]
    if activation == "identity":
        return 1
    return math.prod(math.factorial(units) * (2**units if activation in SIGNED else 1) for units in hidden)


def saddles(r: int, m: int) -> int:
    """Number of critical subspaces that a critical point of ``r`` distinct units makes in a network of ``m``: ``G(r, m)``.

    Every unit of the wider network copies one of the ``r``, and each of these at least once: the surjections from ``m`` to ``r``.

    Notes
    -----
    *Source*: Simsek et al. 2021, proposition 3.2 and theorem 4.2, arXiv:2105.12221.

    Examples
    --------
    >>> saddles(2, 3), saddles(3, 4)
    (6, 36)
    """
    r, m = _pair(r, m)
    return sum(math.comb(r, i) * (-1) ** (r - i) * i**m for i in range(r + 1))


def minima(r: int, m: int) -> int:
    """Number of affine subspaces of global minima that a minimum of ``r`` distinct units makes in a network of ``m``: ``T(r, m)``.

    ``u`` units of the wider network fall into sets whose output weights sum to 0, in ``Bell(u)`` ways; the others copy the ``r``:
    ``T(r, m) = sum_u C(m, u) Bell(u) G(r, m - u)``.

    Notes
    -----
    *Source*: Simsek et al. 2021, theorem 4.2, arXiv:2105.12221.

    Examples
    --------
    >>> minima(1, 2), minima(2, 3), minima(3, 4)
    (3, 12, 60)
    """
    r, m = _pair(r, m)
    return sum(math.comb(m, u) * bell * saddles(r, m - u) for u, bell in enumerate(_bell(m - r)))


class Critical(NamedTuple):
    """Of a network of ``m`` units whose loss has a minimum of ``r``: subspaces of saddles and of minima."""

    m: int
    saddles: int
    """From critical points of 1 to ``r - 1`` units, each counted once."""
    minima: int

    @property
    def ratio(self) -> float:
        """Saddles a minimum."""
        return self.saddles / self.minima


def critical(r: int, widths: Sequence[int]) -> tuple[Critical, ...]:
    """Saddles against minima in ever wider networks: at first saddles outnumber minima, in very wide ones it is the other way round.

    Examples
    --------
    >>> [(row.m, row.saddles, row.minima) for row in critical(3, (3, 4, 5))]
    [(3, 7, 6), (4, 15, 60), (5, 31, 450)]
    """
    return tuple(Critical(m, sum(saddles(k, m) for k in range(1, r)), minima(r, m)) for m in widths)


def functional_dimension(widths: Sequence[int]) -> int:
    """The most directions in which the function of a ReLU network with biases can change: parameters minus hidden units.

    Each hidden unit has a rescaling that changes nothing. The rank of the Jacobian of the outputs never exceeds this, and reaches it at some
    parameters for every architecture whose hidden layers are no narrower than its input.

    Notes
    -----
    *Source*: Grigsby, Lindsey, Rolnick 2023, theorem 7.1 and corollary 8.2, arXiv:2306.06179.

    Examples
    --------
    >>> functional_dimension((1, 3, 1)), functional_dimension((2, 3, 3, 1))  # of 10 and of 25
    (7, 19)
    """
    widths = _checked(widths)
    parameters = sum((before + 1) * after for before, after in itertools.pairwise(widths))
    return parameters - sum(widths[1:-1])


def conservation_laws(widths: Sequence[int], activation: str) -> int:
    """How many functionally independent quantities gradient flow conserves on any data; without biases where the activation is the identity.

    ``k (2 h + 1 - k) / 2`` for each hidden width ``h`` of a linear network, with ``k = min(h, h_before + h_after)``; one for each hidden unit of a ReLU network;
    none with tanh.

    Parameters
    ----------
    widths
        Input, hidden..., output.
    activation
        ``"identity"``, ``"relu"`` or ``"tanh"``.

    Raises
    ------
    ValueError
        If there is no formula: for other activations, and for linear networks of several hidden layers of which one is wider than both its neighbours together.

    Notes
    -----
    *Source*: Marcotte, Gribonval, Peyre 2023 (arXiv:2307.00144).

    Examples
    --------
    >>> conservation_laws((2, 5, 2), "identity"), conservation_laws((1, 3, 1), "identity")  # not 15, not 6
    (14, 5)
    >>> conservation_laws((2, 3, 2), "relu"), conservation_laws((2, 3, 1), "tanh")
    (3, 0)
    """
    widths = _checked(widths)
    if activation in ("relu", "tanh"):
        return sum(widths[1:-1]) * (activation == "relu")
    total = 0
    for before, hidden, after in zip(widths, widths[1:], widths[2:], strict=False):
        k = min(hidden, before + after)
        if activation != "identity" or (len(widths) > 3 and k < hidden):
            msg = (
                f"widths: got {widths} with {activation}, expected relu, tanh or a linear network of one hidden layer, or of several that are no wider than"
                " their neighbours together: for others no formula is known."
            )
            raise ValueError(msg)
        total += k * (2 * hidden + 1 - k) // 2
    return total


def linear_hessian_rank(widths: Sequence[int], data_rank: int | None = None, *, zero_residual: bool = True) -> int:
    """Rank of the Hessian of the squared error of a linear network without biases, at generic parameters.

    With ``q`` the smallest width, ``r`` the rank of the inputs and ``K`` outputs, ``q (r + K - q)`` where the residual is zero; elsewhere, with ``L`` kernels
    and ``M`` hidden units in all, ``2 q M - L q^2 + q (r + K)``.

    Parameters
    ----------
    widths
        Input, hidden..., output.
    data_rank
        Of the matrix of inputs; the input width when None.
    zero_residual
        Whether every output is its target.

    Notes
    -----
    *Source*: Singh, Bachmann, Hofmann 2021 (arXiv:2106.16225), theorems 3 and 8.

    Examples
    --------
    >>> [linear_hessian_rank(widths) for widths in ((3, 4, 2), (5, 3, 4), (3, 4, 4, 2))]
    [6, 18, 6]
    >>> [linear_hessian_rank(widths, zero_residual=False) for widths in ((3, 4, 2), (5, 3, 4), (3, 4, 4, 2))]
    [18, 27, 30]
    """
    widths = _checked(widths)
    hidden, outputs = widths[1:-1], widths[-1]
    rank = widths[0] if data_rank is None else data_rank
    if not 1 <= rank <= widths[0]:
        msg = f"data_rank: got {data_rank}, expected from 1 to the input width {widths[0]}."
        raise ValueError(msg)
    q = min(rank, *widths)
    if zero_residual:
        return q * (rank + outputs - q)
    return 2 * q * sum(hidden) - (len(hidden) + 1) * q**2 + q * (rank + outputs)


def duplicated_hessian_rank(inputs: int, clusters: Sequence[int], outputs: int, *, smooth: bool = True) -> int:
    """Rank of the Hessian of the squared error of one hidden layer whose units are copies, at zero residual; biases in both layers.

    ``K + sum_g [K + min(c_g, K) (d + 1)]`` over clusters of ``c_g`` units that compute the same; ``d`` in place of ``d + 1`` for ReLU, whose rescaling takes one.

    Parameters
    ----------
    inputs, outputs
        ``d`` and ``K``.
    clusters
        Sizes ``c_g`` of the groups of equal units.
    smooth
        Whether the activation is smooth and generic (tanh), or ReLU.

    Examples
    --------
    >>> duplicated_hessian_rank(3, (3, 2), 1), duplicated_hessian_rank(3, (3, 2), 1, smooth=False)
    (11, 9)
    """
    if not clusters:
        msg = "clusters: got none, expected the size of each group of equal units."
        raise ValueError(msg)
    _checked([inputs, *clusters, outputs])
    each = inputs + 1 if smooth else inputs
    return outputs + sum(outputs + min(copies, outputs) * each for copies in clusters)


def _bell(last: int) -> list[int]:
    """Bell's numbers, the ways to split a set, from 0 to ``last``: by his triangle."""
    numbers, row = [1], [1]
    for _ in range(last):
        following = [row[-1]]
        for number in row:
            following.append(following[-1] + number)
        numbers.append(following[0])
        row = following
    return numbers


def _checked(widths: Sequence[int]) -> tuple[int, ...]:
    good = isinstance(widths, Sequence) and len(widths) >= 2
    if not good or any(not isinstance(width, int) or width < 1 for width in widths):
        msg = f"count: widths are {widths!r}, expected at least input and output, all positive integers: (3, 4, 2), for instance."
        raise ValueError(msg)
    return tuple(widths)


def _pair(r: int, m: int) -> tuple[int, int]:
    if not (isinstance(r, int) and isinstance(m, int) and 0 <= r <= m):
        msg = f"count: got r = {r!r} units in a network of m = {m!r}, expected integers with 0 <= r <= m."
        raise ValueError(msg)
    return r, m
