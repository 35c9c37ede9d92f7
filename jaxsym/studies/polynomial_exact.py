"""The best polynomial by linear algebra: what the population allows, what the rows allow, and how many digits each way of solving keeps."""

import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.polynomial import hermite_e
from scipy import linalg

COEFFICIENTS = (5.0, 1.2, -3.4, 5.6)
NOISE = 0.1
PRECISION = 200
"""Decimal places of the reference: the matrix of the normal equations at degree 20 has a condition number far below 10 to this."""

WAYS = ("SVD", "QR", "Cholesky", "LU")
"""The first two work on the features, the other two on the normal equations."""


def population_loss(degree: int) -> float:
    """Least expected loss of a polynomial of this degree when the input is standard normal.

    With ``y = sum_k a_k He_k(x) + noise`` in Hermite polynomials, which are orthogonal with ``E[He_k^2] = k!``, the best
    fit keeps the terms up to the degree, and the loss is the variance of the others: ``sum_{k > degree} a_k^2 k! + noise^2``.

    >>> round(population_loss(1), 4), round(population_loss(3), 4)
    (11.0167, 0.01)
    """
    powers = [c / math.factorial(i) for i, c in enumerate(COEFFICIENTS)]
    terms = hermite_e.poly2herme(powers)
    return float(sum(a**2 * math.factorial(k) for k, a in enumerate(terms) if k > degree) + NOISE**2)


def factorials(num: int) -> Float[np.ndarray, " num"]:
    """``0!, 1!, ...``, by which the features are divided."""
    return np.array([math.factorial(i) for i in range(num)], float)


def features(x: Any, divisors: Any) -> Any:
    """Powers ``x^0, x^1, ...`` ``[..., P]``, each divided by one of ``divisors`` ``[P]``; NumPy's or JAX's."""
    return x[..., None] ** np.arange(len(divisors)) / divisors


def hermite(x: Float[np.ndarray, "..."], num: int) -> Float[np.ndarray, "... num"]:
    """Hermite polynomials of degree 0, 1, ..., each divided by the root of i!: orthonormal for a standard normal input."""
    return hermite_e.hermevander(x, num - 1) / np.sqrt(factorials(num))


def best_fits(
    columns: Float[np.ndarray, "networks N P"], targets: Float[np.ndarray, "networks N"], degrees: Sequence[int]
) -> Float[np.ndarray, "degree networks P"]:
    """Least squares with the first ``degree + 1`` columns, in float64; where many weights fit, the shortest.

    With fewer rows than columns, by SVD. Otherwise by QR, which does not mind the columns' scale, unless SVD, which drops
    what is below rounding, comes to a lower training loss.

    Returns
    -------
    Array
        Weights, zero beyond each degree.
    """
    networks, rows, num = columns.shape
    together = np.concatenate([columns, targets[..., None]], axis=-1)
    triangle = np.asarray(np.linalg.qr(together, mode="r"))  # with the same lengths and angles between its columns
    weights = np.zeros((len(degrees), networks, num))
    for place, degree in enumerate(degrees):
        size = degree + 1
        used, right = triangle[..., :size], triangle[..., -1:]
        found = np.linalg.pinv(used, rcond=size * np.finfo(float).eps) @ right
        if size <= rows:
            by_qr = np.linalg.solve(used[:, :size], right[:, :size])
            losses = [np.sum((used @ each - right) ** 2, axis=1, keepdims=True) for each in (by_qr, found)]
            found = np.where(losses[0] <= losses[1], by_qr, found)
        weights[place, :, :size] = found[..., 0]
    return weights


def solved(columns: Float[np.ndarray, "N P"], targets: Float[np.ndarray, " N"]) -> Float[np.ndarray, "way P"]:
    """Least squares in the four :data:`WAYS`; NaN where one breaks down."""
    orthogonal, triangle = np.linalg.qr(columns)
    gram, right = columns.T @ columns, columns.T @ targets
    ways: dict[str, Callable[[], np.ndarray]] = {
        "SVD": lambda: np.linalg.lstsq(columns, targets)[0],
        "QR": lambda: linalg.solve_triangular(triangle, orthogonal.T @ targets),
        "Cholesky": lambda: linalg.cho_solve(linalg.cho_factor(gram), right),
        "LU": lambda: np.linalg.solve(gram, right),
    }
    found = []
    for way in WAYS:
        try:
            found.append(ways[way]())
        except np.linalg.LinAlgError:
            found.append(np.full(columns.shape[1], np.nan))
    return np.stack(found)


def reference(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], degrees: Sequence[int]
) -> list[Float[np.ndarray, " P"]]:
    """Weights of the powers ``x^i`` by the normal equations with 200 decimal places, for each degree."""
    with decimal.localcontext(prec=PRECISION):
        inputs, targets = (np.array([decimal.Decimal(float(v)) for v in values]) for values in (x, y))
        powers = [np.full(len(x), decimal.Decimal(1))]
        for _ in range(2 * max(degrees)):
            powers.append(powers[-1] * inputs)
        sums, right = [p.sum() for p in powers], [(p * targets).sum() for p in powers[: max(degrees) + 1]]
        found = []
        for degree in degrees:
            size = degree + 1
            system = np.array([[*sums[i : i + size], right[i]] for i in range(size)])
            for i in range(size):  # the matrix is positive definite: no pivot is needed with so many places
                system[i] = system[i] / system[i, i]
                others = np.arange(size) != i
                system[others] = system[others] - np.outer(system[others, i], system[i])
            found.append(system[:, -1].astype(float))
    return found
