"""A black box that knows only gradients: all polynomials that gradient flow conserves, whatever the data.

``Q`` is conserved for every data set when ``<grad Q, grad L> = 0`` at all parameters and data. For a polynomial with unknown coefficients this is one linear
equation for each drawn pair of parameters and data; the laws are what solves enough of them.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxsym import tree
from jaxsym.symmetry.certify import kernel
from jaxsym.symmetry.precision import narrowed, wide

LARGEST = 3000
"""Monomials, at most: the equations are decomposed densely."""
FRESH = 16  # gradients that laws are held against
BLOCK = 64  # gradients that are computed at once
SIMPLE = 24  # denominators of coefficients that are shown as fractions, at most
READ = 1e-6  # a coefficient this close to a simple fraction is shown as one
NOTHING = 1e-8  # and one below this is not shown


class Laws(NamedTuple):
    """What :func:`find_laws` found.

    Attributes
    ----------
    polynomials
        How many linearly independent polynomials are conserved, constants apart. Products of laws count where their degree allows.
    independent
        How many of them are functionally independent: the rank of their gradients at a random point.
    linear
        How many are linear.
    readable
        Each law as text, with as few terms as elimination leaves.
    exponents
        ``[monomials, P]`` of the monomials, in the order of ``jax.flatten_util.ravel_pytree``.
    coefficients
        ``[polynomials, monomials]``: a basis of the laws, rows as in ``readable``.
    residual
        ``max |<grad Q, g>| / (|grad Q| |g|)`` over laws and gradients that were not used to find them.
    gap
        Smallest singular value that counts over the largest that does not.
    """

    polynomials: int
    independent: int
    linear: int
    readable: tuple[str, ...]
    exponents: Int[np.ndarray, "monomials P"]
    coefficients: Float[np.ndarray, "polynomials monomials"]
    residual: float
    gap: float


def find_laws(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    sample: Callable[[Array], tuple[PyTree, PyTree]],
    key: Array,
    degree: int = 2,
) -> Laws:
    """All polynomials up to a degree that gradient flow conserves on any data, from gradients alone; on the host, in float64.

    Parameters
    ----------
    loss
        ``loss(params, data) -> scalar``.
    sample
        ``sample(key) -> (params, data)``: random parameters and data; both should be generic (biases not zero, targets not those of the network).
    key
        Of the samples.
    degree
        Of the polynomials, at most.

    Returns
    -------
    Laws

    Raises
    ------
    TypeError
        If a parameter is not a real number.
    ValueError
        If the loss is not a scalar, or computes in less than float64 somewhere, a gradient is not finite, there are too many monomials, or the number
        of laws is not clear.

    Notes
    -----
    *Source*: Marcotte, Gribonval, Peyre 2023 (arXiv:2307.00144), section 2; there by hand, for each network.

    Examples
    --------
    >>> def sample(key):
    ...     a, b, y = jax.random.normal(key, (3,))
    ...     return {"a": a, "b": b}, y
    >>> found = find_laws(lambda p, y: (p["a"] * p["b"] - y) ** 2, sample, jax.random.key(0))
    >>> found[:4]
    (1, 1, 0, ('a^2 - b^2',))
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        msg = f"find_laws: degree: got {degree!r}, expected an int of at least 1."
        raise ValueError(msg)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        shapes = jax.eval_shape(sample, key)
        _check(loss, shapes)
        names = _names(shapes[0])
        table, exponents = _monomials(len(names), degree)
        num = 2 * len(table) + 20
        points, gradients = _gradients(loss, sample, key, num + FRESH)
        rows = _slopes(table, points, gradients)
        _, gap, found = kernel(rows[:num], "find_laws")
        order = np.lexsort((-np.arange(len(table)), exponents.sum(1)))[::-1]  # higher degrees are eliminated first
        laws = reduced(found[:, order])[:, np.argsort(order)]
        linear = len(kernel(rows[:num, exponents.sum(1) == 1], "find_laws")[2])
        residual, independent = _checked(table, laws, points[num:], gradients[num:], rows[num:])
    readable = tuple(_text(law, exponents, names) for law in laws)
    return Laws(len(laws), independent, linear, readable, exponents, laws, residual, gap)


def _check(loss: Callable[..., Any], shapes: tuple[PyTree, PyTree]) -> None:
    if not isinstance(shapes, tuple) or len(shapes) != 2:
        msg = f"find_laws: sample returns {type(shapes).__name__}, expected (params, data)."
        raise TypeError(msg)
    params, data = shapes
    if not jax.tree.leaves(params):
        msg = "find_laws: sample returns no parameters, expected at least one."
        raise ValueError(msg)
    for path, leaf in tree.leaves(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            msg = f"find_laws: {path} is of type {leaf.dtype}, expected real numbers; give it to the loss as data."
            raise TypeError(msg)
    coarse = sorted(set(narrowed(jax.make_jaxpr(loss)(*jax.eval_shape(wide, shapes)))))
    if coarse:
        msg = (
            f"find_laws: the loss computes in {', '.join(coarse)} somewhere, where a law is lost in rounding: let it compute in the precision of its"
            " parameters (dtype=None in Flax modules, no astype)."
        )
        raise ValueError(msg)
    value = jax.eval_shape(loss, params, data)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        msg = f"find_laws: loss returns {value}, expected a real scalar."
        raise ValueError(msg)


def _names(params: PyTree) -> list[str]:
    """Of the numbers in the parameters."""
    found = []
    for path, leaf in tree.leaves(params).items():
        found += [f"{path}[{','.join(map(str, index))}]" if index else path for index in np.ndindex(leaf.shape)]
    return found


def _monomials(num: int, degree: int) -> tuple[Int[np.ndarray, "monomials degree"], Int[np.ndarray, "monomials num"]]:
    """Their factors, ``num`` standing for 1, and their exponents; without the constant."""
    count = math.comb(num + degree, degree) - 1
    if count > LARGEST:
        msg = (
            f"find_laws: {num} parameters have {count} monomials up to degree {degree}, expected at most {LARGEST}: take a lower degree or"
            " smaller widths, or give some of the parameters as data."
        )
        raise ValueError(msg)
    table = np.array([m for m in itertools.combinations_with_replacement(range(num + 1), degree) if m[0] < num], int)
    exponents = np.stack([(table == i).sum(1) for i in range(num)], axis=1)
    return table, exponents


def _gradients(
    loss: Callable[..., Any], sample: Callable[..., Any], key: Array, num: int
) -> tuple[Float[np.ndarray, "num P"], Float[np.ndarray, "num P"]]:
    """Points, and the gradient at each for data of its own."""

    @jax.jit
    @jax.vmap
    def drawn(key: Array) -> tuple[Array, Array]:
        params, data = wide(sample(key))
        return ravel_pytree(params)[0], ravel_pytree(jax.grad(loss)(params, data))[0]

    keys = jax.random.split(key, (-(-num // BLOCK), BLOCK))
    points, gradients = (np.concatenate(part)[:num] for part in zip(*map(drawn, keys), strict=True))
    wrong = int((~np.isfinite(gradients)).any(axis=1).sum())
    if wrong:
        msg = f"find_laws: {wrong} of {num} gradients are not finite; draw parameters and data where the loss is differentiable."
        raise ValueError(msg)
    return points, gradients


def _slopes(
    table: Int[np.ndarray, "monomials degree"], points: np.ndarray, directions: np.ndarray
) -> Float[np.ndarray, "num monomials"]:
    """``<grad m, direction>`` of each monomial at each point."""
    points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    directions = np.concatenate([directions, np.zeros((len(points), 1))], axis=1)
    factors = points[:, table]  # [num, monomials, degree]
    total = np.zeros(factors.shape[:2])
    for i in range(table.shape[1]):
        rest = np.prod(np.delete(factors, i, axis=2), axis=2)
        total += rest * directions[:, table[:, i]]
    return total


def _checked(
    table: np.ndarray, laws: np.ndarray, points: np.ndarray, gradients: np.ndarray, rows: np.ndarray
) -> tuple[float, int]:
    """How well laws hold on fresh gradients, and how many are functionally independent."""
    if not len(laws):
        return 0.0, 0
    eye = np.eye(points.shape[1])
    residual, independent = 0.0, 0
    for point, gradient, row in zip(points, gradients, rows, strict=True):
        slopes = laws @ _slopes(table, np.broadcast_to(point, eye.shape), eye).T  # [laws, P]
        size = np.linalg.norm(slopes, axis=1) * np.linalg.norm(gradient)
        residual = max(residual, float((np.abs(laws @ row) / np.where(size > 0, size, 1)).max()))
        independent = max(independent, int(np.linalg.matrix_rank(slopes, tol=1e-9 * np.linalg.norm(slopes))))
    return residual, independent


def reduced(basis: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """The same space in reduced echelon form, so that each row has a leading 1 that no other has."""
    found, row = basis.copy(), 0
    for column in range(found.shape[1]):
        if row == len(found):
            break
        best = row + int(np.abs(found[row:, column]).argmax())
        if abs(found[best, column]) < 1e-8:
            continue
        found[[row, best]] = found[[best, row]]
        found[row] /= found[row, column]
        others = np.arange(len(found)) != row
        found[others] -= np.outer(found[others, column], found[row])
        row += 1
    return np.where(np.abs(found) < 1e-10, 0.0, found)


def _text(law: np.ndarray, exponents: np.ndarray, names: list[str]) -> str:
    """A polynomial as people write it."""
    terms = []
    for i in np.flatnonzero(np.abs(law) > NOTHING):
        powers = [
            f"{names[j]}^{exponents[i, j]}" if exponents[i, j] > 1 else names[j] for j in np.flatnonzero(exponents[i])
        ]
        simple = Fraction(float(law[i])).limit_denominator(SIMPLE)
        size = abs(simple) if simple and abs(float(simple) - law[i]) < READ else f"{abs(law[i]):.6g}"
        terms.append(("-" if law[i] < 0 else "+", " ".join(([] if size == 1 else [str(size)]) + powers)))
    return " ".join(f"{sign} {term}" for sign, term in terms).removeprefix("+ ")
