"""Traces and spectral densities from products alone, with what is known of their errors."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from matfree import stochtrace

from jaxsym.curvature.checks import expect_int, expect_key, expect_positive
from jaxsym.curvature.products import Loss, size
from jaxsym.curvature.spectra import Point, computed, in_batches, krylov

BASES = 2**28  # bytes of Krylov bases that are built at once
NEGATIVE = 1e-8
"""A negative eigenvalue of a sketch beyond this part of the largest is no rounding, in float64; elsewhere beyond 10 units in the last place a sample."""
DISTINCT = 1e5  # nodes closer than so many units in the last place have no range of their own


class Trace(NamedTuple):
    """An estimate of a trace, and its standard error over the samples.

    The samples of a leave-one-out estimate share their basis, so that the standard error is somewhat small: over 400 keys the true deviation was 1.4 times
    (XTrace) and 1.6 times (XNysTrace) as large on evenly spread eigenvalues, which suit neither.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]

    def __str__(self) -> str:
        """Value and error."""
        return f"{self.value} +- {self.standard_error}"


class Density(NamedTuple):
    """A spectral density, smoothed: the integral over the grid is 1, but for what lies outside.

    Attributes
    ----------
    grid, values
        ``[points]``: eigenvalue, and density there.
    broadening
        Standard deviation of the Gaussian that stands for each node.
    nodes, weights
        ``[samples, matvecs]``: Ritz values of each start and their weights, which add up to 1 for each start; NaN and 0 after a breakdown.
    standard_error
        ``[points]``: of ``values``, over the starts.
    """

    grid: Float[Array, " points"]
    values: Float[Array, " points"]
    broadening: Float[Array, ""]
    nodes: Float[Array, "samples matvecs"]
    weights: Float[Array, "samples matvecs"]
    standard_error: Float[Array, " points"]

    def __str__(self) -> str:
        """What it was made of."""
        starts, steps = jnp.shape(self.nodes)[-2:]
        return f"density on {jnp.shape(self.grid)[-1]} points, from {starts} starts of {steps} products, broadened by {self.broadening}"


def trace(
    loss: Loss | None,
    params: PyTree,
    key: Array,
    num: int | None = None,
    *,
    semidefinite: bool = False,
    product: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Trace:
    """The trace of the Hessian by XTrace, or by XNysTrace where the matrix is positive semi-definite.

    From half as many samples as parameters on, XTrace is exact, and costs as many products as there are parameters.

    Parameters
    ----------
    loss, params, product
        As for :func:`~jaxsym.curvature.spectrum`.
    key, num
        Of the Gaussian samples, and how many: ``2 num`` products for XTrace, ``num + 1`` for XNysTrace; from 2 up to the number of parameters. 16 when
        None, or as many as there are parameters.
    semidefinite
        Whether no eigenvalue is negative: true of the Gauss-Newton and Fisher matrices, of a Hessian only near a minimum. Where the samples show a
        negative one the value is NaN inside ``jit``, and an error outside; a few may not show.

    Raises
    ------
    TypeError
        If ``key`` is no key.
    ValueError
        As for :func:`~jaxsym.curvature.hessian`, if ``num`` is out of range, or the samples show that a ``semidefinite`` matrix is not.

    Notes
    -----
    *Source*: Epperly, Tropp, Webber 2024 (arXiv:2301.07825), algorithms 2.1 and 4.1.

    Examples
    --------
    >>> found = trace(lambda x: (x**2 * jnp.arange(4.0)).sum() / 2, jnp.ones(4), jax.random.key(0), 4)
    >>> float(found.value)
    6.0
    """
    count = size(params)
    num = min(16, count) if num is None else num
    expect_int("trace", "num", num, min(2, count), count, ", the number of parameters")
    expect_key("trace", key)

    def found(point: Point) -> Trace:
        matvec, at, _ = point
        if count == 1:
            return Trace(matvec(jnp.ones_like(at))[0], jnp.zeros((), at.dtype))

        def samples(key: Array) -> Array:
            return jax.random.normal(key, (num, *at.shape), at.dtype)

        integrand = stochtrace.leave_one_out_xnystrace() if semidefinite else stochtrace.leave_one_out_xtrace()
        value, error = stochtrace.estimator_leave_one_out_mean_and_sem(integrand, samples)(matvec, key)
        if semidefinite:  # the estimate is one of positive eigenvalues: 0 is NaN to it, and negative ones show nowhere
            sketch = samples(key)
            inner = jnp.linalg.eigvalsh(sketch @ jax.vmap(matvec)(sketch).T)
            largest = jnp.abs(inner).max()
            fill = jnp.where(largest == 0, 0, jnp.nan)
            usual = inner[0] >= -max(NEGATIVE, 10 * num * float(jnp.finfo(at.dtype).eps)) * largest
            value, error = (jnp.where(usual & (largest > 0), found, fill) for found in (value, error))
        return Trace(value, error)

    estimate: Trace = computed(found, loss, params, product, "trace", held=6 * num, instead="take fewer samples")
    if semidefinite and not isinstance(estimate.value, jax.core.Tracer) and jnp.isnan(estimate.value):
        msg = "trace: semidefinite=True, and the matrix has negative eigenvalues, expected none: leave it out, for XTrace."
        raise ValueError(msg)
    return estimate


def density(
    loss: Loss | None,
    params: PyTree,
    key: Array,
    *,
    num_samples: int = 10,
    num_matvecs: int | None = None,
    num_points: int = 1000,
    broadening: float = 0.01,
    product: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Density:
    """The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    ``mean over starts of sum_i w_i N(t; theta_i, sigma^2)``, with the Ritz values ``theta`` of a Gaussian start and the squared first entries ``w`` of
    their vectors.

    Parameters
    ----------
    loss, params, product
        As for :func:`~jaxsym.curvature.spectrum`.
    key, num_samples
        Of the Gaussian starts, and how many.
    num_matvecs
        Steps of Lanczos for each, at most as many as there are parameters; 50 when None, or as many as there are.
    num_points
        Of the grid, which reaches three standard deviations beyond the outermost nodes.
    broadening
        ``sigma`` in units of the range of the nodes (of 1 for a matrix that is zero; of 1e5 units in the last place where the nodes are closer).

    Raises
    ------
    TypeError
        If ``key`` is no key.
    ValueError
        As for :func:`~jaxsym.curvature.hessian`, and if a number is out of range.

    Notes
    -----
    *Source*: Lin, Saad, Yang 2016 (arXiv:1308.5467), section 3.2; for networks Ghorbani, Krishnan, Xiao 2019 (arXiv:1901.10159).

    Examples
    --------
    >>> found = density(lambda x: (x**2 * jnp.arange(4.0)).sum() / 2, jnp.ones(4), jax.random.key(0), num_matvecs=4)
    >>> bool(jnp.allclose(found.nodes[0], jnp.arange(4.0), atol=1e-10))
    True
    """
    num_matvecs = min(50, size(params)) if num_matvecs is None else num_matvecs
    expect_int("density", "num_matvecs", num_matvecs, 1, size(params), ", the number of parameters")
    expect_int("density", "num_samples", num_samples, 1)
    expect_int("density", "num_points", num_points, 2)
    expect_key("density", key)
    expect_positive("density", "broadening", broadening, "a part of the range of eigenvalues")
    least = math.ceil((1 + 6 * broadening) / broadening) + 1
    if num_points < least:
        msg = f"density: num_points: got {num_points}, expected at least {least} for a broadening of {broadening}: a coarser grid does not show its peaks."
        raise ValueError(msg)

    def found(point: Point) -> Density:
        matvec, at, _ = point
        starts = jax.random.normal(key, (num_samples, *at.shape), at.dtype)
        together = max(1, BASES // (num_matvecs * at.size * at.dtype.itemsize))
        spaces = in_batches(lambda start: krylov(matvec, start, num_matvecs), starts, together)
        nodes, weights = spaces.ritz, jnp.where(jnp.isnan(spaces.ritz), 0, spaces.vectors[:, 0] ** 2)
        low, high = jnp.nanmin(nodes), jnp.nanmax(nodes)
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        span = jnp.where(largest > 0, jnp.maximum(high - low, DISTINCT * jnp.finfo(at.dtype).eps * largest), 1)
        sigma = broadening * span
        grid = jnp.linspace(low - 3 * sigma, high + 3 * sigma, num_points)

        def smoothed(nodes: Array, weights: Array) -> Array:
            heights = jax.scipy.stats.norm.pdf(grid[:, None], jnp.where(jnp.isnan(nodes), 0, nodes), sigma)
            return heights @ weights

        each = jax.vmap(smoothed)(nodes, weights)
        error = each.std(axis=0, ddof=1) / num_samples**0.5 if num_samples > 1 else jnp.full(num_points, jnp.inf)
        return Density(grid, each.mean(axis=0), sigma, nodes, weights, error)

    return computed(found, loss, params, product, "density", held=2 * num_matvecs, instead="take fewer matvecs")
