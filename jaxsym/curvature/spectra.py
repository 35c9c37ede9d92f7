"""Eigenvalues of the Hessian, or of any other symmetric product: all of them densely, or the extreme ones by Krylov methods.

How well an eigenvalue is known is part of the result. Zero modes are never counted with Lanczos: one start sees one copy of each eigenvalue;
:func:`~jaxsym.curvature.flat` counts them densely.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree
from matfree import decomp

from jaxsym.curvature.checks import (
    checked,
    checked_direction,
    checked_finite,
    exact,
    expect_int,
    expect_key,
    expect_positive,
    expect_precise,
    expect_room,
    expect_same,
    lasting,
    one_by_one,
    traced,
)
from jaxsym.curvature.products import Loss, hvp, size
from jaxsym.parallel.chunk import is_tracing

DENSE = 2000
"""Parameters up to which the k extreme eigenvalues are taken from all of them."""
COLUMNS = 128  # products that are computed at once
BREAKDOWN = 100.0  # an off-diagonal entry of Lanczos below so many eps |T| ends it
COPIES, RESTARTS = 15, 3  # iterations of LOBPCG, and how often it begins
SYMMETRIC = 1e-6
"""How far a product may be from a symmetric and linear one, as a part of its size."""
CONVERGED = 1e-3
"""A residual below this part of the largest eigenvalue in size counts as converged, if no other is asked for."""

Which = Literal["magnitude", "largest", "smallest"]
Matvec = Callable[[Float[Array, " P"]], Float[Array, " P"]]


class Point(NamedTuple):
    """Where a product is taken: ``matvec(v)`` of vectors ``[P]``, the parameters as such a vector, and back to their pytree."""

    matvec: Matvec
    at: Float[Array, " P"]
    back: Callable[[Array], PyTree]


class Spectrum(NamedTuple):
    """Eigenvalues, ascending, and how well each is known.

    Attributes
    ----------
    eigenvalues
        ``[k]``, or all ``[P]``.
    residuals
        ``|A x - lambda x|`` of the unit vector ``x`` that belongs to each: an eigenvalue is no further away than that.
    converged
        Whether the residual is at most the tolerance times the largest eigenvalue in size.
    orthogonality
        ``max |Q Q' - 1|`` of the basis that was used.
    """

    eigenvalues: Float[Array, " k"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    orthogonality: Float[Array, ""]


class Krylov(NamedTuple):
    """Lanczos from one start: ``Q' A Q = T``, cut off where it broke down.

    Attributes
    ----------
    basis
        ``Q'`` ``[m, P]``: orthonormal rows, zero from the breakdown on.
    ritz
        Eigenvalues of ``T`` ``[m]``, ascending; what lies beyond the breakdown is NaN, and last.
    vectors
        Those of ``T`` ``[m, m]``, in columns.
    residuals
        ``|A x - ritz x|``, from the last entry of each vector.
    """

    basis: Float[Array, "m P"]
    ritz: Float[Array, " m"]
    vectors: Float[Array, "m m"]
    residuals: Float[Array, " m"]


def hessian(loss: Loss, params: PyTree) -> Float[Array, "P P"]:
    """The Hessian of a loss as a matrix, in the order of ``jax.flatten_util.ravel_pytree``.

    In float64 outside of ``jit`` (as NumPy's arrays, unless JAX has float64 enabled), else in the precision of the parameters.

    Parameters
    ----------
    loss
        ``loss(params) -> scalar``.
    params
        Floating leaves, ``P`` numbers in all.

    Raises
    ------
    TypeError
        If a parameter is not floating, or the loss fails with parameters in float64.
    ValueError
        If the loss is not a scalar, something is not finite, the matrix would not fit into the memory, or the loss draws random numbers that are
        others in float64.

    Examples
    --------
    >>> hessian(lambda p: p["a"] ** 2 * p["b"], {"a": jnp.array(1.0), "b": jnp.array(3.0)})
    array([[6., 2.],
           [2., 0.]])
    """
    return computed(dense, loss, params, None, "hessian", held=3 * size(params))


def spectrum(
    loss: Loss | None,
    params: PyTree,
    k: int | None = None,
    key: Array | None = None,
    *,
    which: Which = "magnitude",
    product: Callable[[PyTree, PyTree], PyTree] | None = None,
    num_matvecs: int | None = None,
    multiplicities: bool = True,
    tolerance: float = CONVERGED,
) -> Spectrum:
    """All eigenvalues of the Hessian, or the ``k`` extreme ones.

    All of them, and up to 2000 parameters the extreme ones too, come from a dense decomposition. Beyond, Lanczos with full reorthogonalisation
    from one Gaussian start finds a copy of each extreme eigenvalue, and LOBPCG on what is orthogonal to those looks for further copies.

    Parameters
    ----------
    loss, params
        As for :func:`hessian`; ``loss`` may be None where a ``product`` is given.
    k
        How many; all when None.
    key
        Of the random starts; a fixed one when None.
    which
        The ``k`` of largest magnitude, the largest, or the smallest.
    product
        ``product(params, v)``, linear and symmetric in ``v``, in place of the Hessian's: ``lambda p, v: ggn_vp(apply, loss_of_outputs, p, v)``.
    num_matvecs
        Steps of Lanczos; ``max(60, 6 k + 20)`` when None, at most ``P``.
    multiplicities
        Whether further copies are looked for. Without, a multiple eigenvalue shows once, in a fraction of the time; what one start does not
        see is NaN, and not converged. From ``k = P / 5`` on copies want the dense decomposition.
    tolerance
        Of ``converged``.

    Returns
    -------
    Spectrum
        Float64 outside of ``jit`` (NumPy's), else in the precision of the parameters (a float32 Hessian has no small eigenvalues).

    Raises
    ------
    ValueError
        As for :func:`hessian`; if ``k`` is not between 1 and ``P``, or a ``product`` is not linear, symmetric and like the parameters.

    Notes
    -----
    *Source*: Lanczos 1950; Paige 1980 for the residuals; Knyazev 2001 (LOBPCG).

    Examples
    --------
    >>> found = spectrum(lambda x: (x**2 * jnp.arange(4.0)).sum() / 2, jnp.ones(4))
    >>> found.eigenvalues
    array([0., 1., 2., 3.])
    """
    num = size(params)
    if which not in ("magnitude", "largest", "smallest"):
        msg = f"spectrum: which: got {which!r}, expected 'magnitude', 'largest' or 'smallest'."
        raise ValueError(msg)
    if k is not None:
        expect_int("spectrum", "k", k, 1, num, ", the number of parameters, or None for all")
    if num_matvecs is not None:
        expect_int("spectrum", "num_matvecs", num_matvecs, k or 1, why=" (k)")
    expect_positive("spectrum", "tolerance", tolerance, "a part of the largest eigenvalue", 1)
    if key is not None:
        expect_key("spectrum", key)
    if k is None or num <= DENSE or (multiplicities and 5 * k >= num):
        return computed(
            lambda point: _all(point, k or num, which, tolerance), loss, params, product, "spectrum", held=3 * num
        )
    steps = min(num, max(60, 6 * k + 20) if num_matvecs is None else num_matvecs)
    seed = jax.random.key(0) if key is None else key

    def found(point: Point) -> Spectrum:
        return _extreme(point, k, seed, which, steps, multiplicities, tolerance)

    return computed(found, loss, params, product, "spectrum", held=2 * steps + 6 * k, instead="take fewer")


def krylov(matvec: Matvec, start: Float[Array, " P"], num_matvecs: int) -> Krylov:
    """Lanczos by matfree, with full reorthogonalisation; what it returns from a breakdown on is not used.

    Once an off-diagonal entry falls below ``100 eps |T|`` the Krylov space is exhausted, and what follows is noise (or NaN).
    """
    found = decomp.tridiag_sym(num_matvecs, materialize=False, reortho="full", custom_vjp=False)(matvec, start)
    diagonal, off = found.J_small
    last = jnp.linalg.norm(found.residual)
    scale = jnp.nanmax(jnp.abs(jnp.concatenate([diagonal, off])))
    small = BREAKDOWN * jnp.finfo(start.dtype).eps * scale
    whole = jnp.cumprod(jnp.concatenate([jnp.ones(1, bool), off > small])).astype(bool)  # NaN is not above
    used = whole.sum()
    joined = jnp.where(whole[1:], off, 0)
    beyond = 2 * scale + jnp.arange(1, num_matvecs + 1, dtype=start.dtype)  # apart from all others, and last
    ritz, vectors = jnp.linalg.eigh(
        jnp.diag(jnp.where(whole, diagonal, beyond)) + jnp.diag(joined, 1) + jnp.diag(joined, -1)
    )
    inside = jnp.arange(num_matvecs) < used
    end = jnp.where(
        used == num_matvecs, last, off[jnp.clip(used - 1, 0, max(num_matvecs - 2, 0))] if num_matvecs > 1 else last
    )
    end = jnp.where(jnp.isfinite(end), end, 0)  # it broke down exactly
    residuals = jnp.abs(end * vectors[jnp.maximum(used - 1, 0)])
    basis = jnp.where(whole[:, None], found.Q_tall, 0)  # rows
    return Krylov(basis, jnp.where(inside, ritz, jnp.nan), vectors, jnp.where(inside, residuals, jnp.nan))


def computed(
    compute: Callable[[Point], Any],
    loss: Loss | None,
    params: PyTree,
    product: Callable[[PyTree, PyTree], PyTree] | None,
    who: str,
    *,
    held: int,
    instead: str = "call spectrum with a k, trace or density, which need products only",
    precise: bool = False,
) -> Any:
    """``compute(point)`` in float64 where that can be chosen, after what can be refused is refused.

    ``held`` vectors like the parameters must fit into the memory at once; else it says what to do ``instead``. ``precise`` refuses a loss that
    computes in less than the precision of its parameters.
    """
    if loss is None and product is None:
        msg = f"{who}: loss is None, expected a function loss(params), or a product."
        raise TypeError(msg)
    if product is not None and not callable(product):
        msg = f"{who}: product is of type {type(product).__name__}, expected a function product(params, v); of a matrix, lambda p, v: matrix @ v."
        raise TypeError(msg)
    inside, is_wide = is_tracing(), jnp.result_type(float) == jnp.float64  # inside nothing can be refused by its value
    with exact() as widened:
        # Under the settings of what follows: JAX keeps the constants of a function as they were at first.
        fn = _length if loss is None or product is not None else loss
        checked(fn, params, (), who)
        checked_finite("params", params, who)
        wide = widened(params)
        num, dtype = size(wide), jnp.result_type(*jax.tree.leaves(wide))
        if dtype.itemsize < 4:
            msg = f"{who}: params are {dtype} inside of jit, expected float32 or float64: widen them before."
            raise TypeError(msg)
        expect_room((held, num), dtype, who, instead)
        if precise or not inside:
            drawing = fn if product is None else lambda params: product(params, params)
            jaxpr = traced(drawing, wide, who)
            if precise:
                expect_precise(jaxpr, wide, who)
            if not inside:
                expect_same(jaxpr, drawing, params, who, is_wide=is_wide)
        at, back = ravel_pytree(wide)

        def whole(at: Array) -> Any:
            def matvec(v: Array) -> Array:
                if product is None:
                    return ravel_pytree(hvp(loss, back(at), back(v)))[0]  # type: ignore[arg-type]
                image = product(back(at), back(v))
                checked_direction(back(at), image, who, "what product returns")
                return ravel_pytree(image)[0]

            found = compute(Point(matvec, at, back))
            if inside:
                return found, None
            one, other = jnp.ones_like(at), jnp.cos(1.0 + jnp.arange(at.size, dtype=at.dtype))
            images = [matvec(one), *(map(matvec, (other, one + 2 * other)) if product is not None else ())]
            return found, ((one, other), images)

        found, probed = jax.jit(one_by_one(whole))(at)
        if probed is not None:
            vectors, images = probed
            _expect_linear(vectors, images, who)
    return lasting(found)


def _expect_linear(vectors: tuple[Array, Array], images: list[Array], who: str) -> None:
    """Refuse products that are not finite, not linear or not symmetric, by what became of a vector (and of another, and of a sum)."""
    for image in images:
        checked_finite("products with vectors", image, who)
    if len(images) == 1:
        return
    (one, other), (first, second, third) = vectors, images
    sizes = jnp.linalg.norm(first), jnp.linalg.norm(second)
    sums = jnp.linalg.norm(third - first - 2 * second) / (sizes[0] + 2 * sizes[1])
    swapped = jnp.abs(one @ second - other @ first) / (
        jnp.linalg.norm(one) * sizes[1] + jnp.linalg.norm(other) * sizes[0]
    )
    for found, name in ((sums, "linear"), (swapped, "symmetric")):
        if found > SYMMETRIC:
            msg = f"{who}: product is not {name} in v: off by {found:.1e} of its size, expected the product of a symmetric matrix with v."
            raise ValueError(msg)


def _length(params: PyTree) -> Float[Array, ""]:
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))  # type: ignore[return-value]


def dense(point: Point) -> Float[Array, "P P"]:
    """The matrix of a symmetric product, a few columns at a time."""
    matvec, at, _ = point
    rows = in_batches(matvec, jnp.eye(len(at), dtype=at.dtype), COLUMNS)
    return (rows + rows.T) / 2


def in_batches(fn: Callable[[Array], Any], rows: Float[Array, " N *shape"], size: int) -> Any:
    """``fn`` of each row, so many at a time; where all fit into one batch, without a loop around what does not depend on the row."""
    return jax.vmap(fn)(rows) if len(rows) <= size else jax.lax.map(fn, rows, batch_size=size)


def _all(point: Point, k: int, which: Which, tolerance: float) -> Spectrum:
    matrix = dense(point)
    values, vectors = jnp.linalg.eigh(matrix)
    residuals = jnp.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    away = jnp.abs(vectors.T @ vectors - jnp.eye(len(values), dtype=values.dtype)).max()
    return _chosen(values, residuals, k, which, tolerance, away)


def _chosen(values: Array, residuals: Array, k: int, which: Which, tolerance: float, orthogonality: Array) -> Spectrum:
    """The ``k`` extreme ones, ascending; NaN is none of them."""
    rank = {"magnitude": jnp.abs(values), "largest": values, "smallest": -values}[which]
    picked = jnp.argsort(jnp.where(jnp.isnan(rank), -jnp.inf, rank))[len(values) - k :]
    picked = picked[jnp.argsort(values[picked])]
    size = jnp.nanmax(jnp.abs(values))
    return Spectrum(values[picked], residuals[picked], residuals[picked] <= tolerance * size, orthogonality)


def _extreme(
    point: Point,
    k: int,
    key: Array,
    which: Which,
    steps: int,
    multiplicities: bool,
    tolerance: float,
) -> Spectrum:
    matvec, at, _ = point
    start, *ends = jax.random.split(key, 3)
    found = krylov(matvec, jax.random.normal(start, at.shape, at.dtype), steps)
    away = jnp.abs(found.basis @ found.basis.T - jnp.diag(jnp.any(found.basis != 0, axis=1))).max()
    values, residuals = found.ritz, found.residuals
    if multiplicities and 5 * k < at.size:
        known = jnp.where(jnp.isnan(values), 0, found.vectors).T @ found.basis  # Ritz vectors, in rows
        for sign, end in zip((1, -1), ends, strict=True):
            if which in ("magnitude", "largest" if sign > 0 else "smallest"):
                more, others = _copies(matvec, known, found.ritz, sign, k, end)
                values, residuals = jnp.concatenate([values, more]), jnp.concatenate([residuals, others])
    return _chosen(values, residuals, k, which, tolerance, away)


def _copies(
    matvec: Matvec, known: Float[Array, "m P"], ritz: Float[Array, " m"], sign: int, k: int, key: Array
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """The ``k`` extreme eigenvalues at one end, and their residuals, orthogonal to the extreme ``k`` that are known there.

    NaN where there is none beyond the known ones' range: a copy is an eigenvalue at least as extreme as the ``k``-th known.
    """
    order = jnp.argsort(jnp.where(jnp.isnan(ritz), -jnp.inf, sign * ritz))
    taken = known[order[-k:]]
    low = jnp.nanmin(sign * ritz)  # the deflated space is moved to the other end
    lift = jnp.nanmax(jnp.abs(ritz))

    def deflated(x: Array) -> Array:
        x = x - taken.T @ (taken @ x)
        y = sign * matvec(x) + (lift - low) * x
        return y - taken.T @ (taken @ y)

    start = jax.random.normal(key, (known.shape[1], k), known.dtype)
    start = jnp.linalg.qr(start - taken.T @ (taken @ start))[0]
    block = jax.vmap(deflated, in_axes=1, out_axes=1)
    vectors = start
    for _ in range(RESTARTS):  # it stops where its search space degenerates
        _, vectors, _ = lobpcg_standard(block, vectors, m=COPIES)
        vectors = jnp.linalg.qr(vectors - taken.T @ (taken @ vectors))[0]
    vectors = jnp.where(jnp.isfinite(vectors).all(), vectors, start)  # of a matrix that is zero
    images = jax.vmap(matvec, in_axes=1, out_axes=1)(vectors)
    values, mixed = jnp.linalg.eigh(vectors.T @ images)
    rotated, images = vectors @ mixed, images @ mixed
    residuals = jnp.linalg.norm(images - rotated * values, axis=0)
    return values, residuals
