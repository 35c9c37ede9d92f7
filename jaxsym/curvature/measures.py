"""Sharpness, and sharpness that no symmetry changes: the least along the orbit.

Rescaling a ReLU unit changes the Hessian but not the function, so that the largest eigenvalue of one and the same function is as large as one likes.
Its minimum over the orbit is a number of the function (as are the path norm, :func:`jaxsym.symmetry.paths.path_norm`, and
:func:`~jaxsym.curvature.effective_dimension`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from jaxsym.curvature.checks import expect_int
from jaxsym.curvature.products import Loss, size
from jaxsym.curvature.spectra import DENSE, Point, computed, dense
from jaxsym.symmetry.group import Symmetry, expect_group

BESIDE = 0.01  # how far from the given point a search begins
SETTLED = 1e-6
"""A gradient along the orbit below this part of the measure counts as zero."""
SAME = 1e-6
"""How much a loss may change along the orbit, as a part of its size and of what so long a step changes otherwise."""


class Sharpness(NamedTuple):
    """Measures at the given parameters, and their least along the orbit.

    Attributes
    ----------
    trace, largest
        Trace and largest eigenvalue of the Hessian.
    least_trace, least_largest
        The least that was found along the orbit of the continuous part of the group, each by itself.
    trace_settled, largest_settled
        Whether the gradient along the orbit vanishes there, reached from a point beside the given one, so that no maximum counts: then it is a
        minimum (a trace of squares is convex in the logarithms of rescalings, so that there is only one). Where the largest eigenvalue is double it has
        corners, and this stays False; so it does where the measure has no minimum (then the least that was seen before it went beyond all bounds).
    trace_coordinates, largest_coordinates
        Lie-algebra coordinates ``[sym.dim]`` of the element that leads there: ``sym.act(sym.exp(coordinates), params)``.
    """

    trace: Float[Array, ""]
    largest: Float[Array, ""]
    least_trace: Float[Array, ""]
    least_largest: Float[Array, ""]
    trace_settled: Bool[Array, ""]
    largest_settled: Bool[Array, ""]
    trace_coordinates: Float[Array, " dim"]
    largest_coordinates: Float[Array, " dim"]


def sharpness(loss: Loss, params: PyTree, sym: Symmetry, *, steps: int = 200) -> Sharpness:
    """Trace and largest eigenvalue of the Hessian, raw and as the minimum over the orbit; densely, up to 2000 parameters.

    Parameters
    ----------
    loss, params
        As for :func:`~jaxsym.curvature.hessian`.
    sym
        A group that leaves the loss as it is. Its finite factors change no eigenvalue.
    steps
        Iterations of L-BFGS over the Lie-algebra coordinates, at most.

    Raises
    ------
    TypeError
        If ``sym`` is no group, or a parameter is not floating.
    ValueError
        As for :func:`~jaxsym.curvature.hessian`; beyond 2000 parameters; or if the loss changes along the orbit.

    Notes
    -----
    *Source*: that flatness is not invariant, Dinh, Pascanu, Bengio, Bengio 2017 (arXiv:1703.04933), theorem 4; minima over rescalings, Tsuzuku,
    Sato, Sugiyama 2020 (arXiv:1901.04653).

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: jax.nn.relu(x * p["a"]) * p["b"]
    >>> x = jnp.ones(1)
    >>> sym = js.discover(apply, {"a": x, "b": x}, x)
    >>> found = sharpness(lambda p: ((apply(p, x) - 4) ** 2).sum() / 2, {"a": jnp.array([8.0]), "b": jnp.array([0.5])}, sym)
    >>> round(float(found.largest), 3), round(float(found.least_largest), 3)  # a^2 + b^2, and at a = b = 2
    (64.25, 8.0)
    """
    expect_group(sym, "sharpness")
    expect_int("sharpness", "steps", steps, 1)
    if size(params) > DENSE:
        msg = (
            f"sharpness: {size(params)} parameters, expected at most {DENSE}, for the Hessian is dense: take a layer by js.curvature.block,"
            " or js.curvature.trace and spectrum for the raw measures alone."
        )
        raise ValueError(msg)

    def found(point: Point) -> tuple[Sharpness, Array]:
        def there(coordinates: Array) -> PyTree:
            return sym.act(sym.exp(coordinates), point.back(point.at)) if sym.dim else point.back(point.at)

        def moved(coordinates: Array) -> Float[Array, "P P"]:
            at, back = ravel_pytree(there(coordinates))
            gradient = jax.grad(lambda at: loss(back(at)))
            return dense(Point(lambda v: jax.jvp(gradient, (at,), (v,))[1], at, back))

        def largest(coordinates: Array) -> Float[Array, ""]:
            return jnp.linalg.eigvalsh(moved(coordinates))[-1]

        def traced(coordinates: Array) -> Float[Array, ""]:
            return jnp.trace(moved(coordinates))

        still = jnp.zeros(sym.dim, point.at.dtype)
        pairs = zip(*(_least(measure, still, steps) for measure in (traced, largest)), strict=True)
        measured = Sharpness(*(found for pair in pairs for found in pair))
        values = [loss(there(coordinates)) for coordinates in (still, beside(still))]
        step = jnp.linalg.norm(ravel_pytree(there(beside(still)))[0] - point.at)
        slope = jnp.linalg.norm(jax.grad(lambda at: loss(point.back(at)))(point.at))
        curved = jnp.abs(measured.trace) + jnp.abs(measured.largest)
        usual = jnp.abs(values[0]) + slope * step + curved * step**2
        return measured, jnp.abs(values[1] - values[0]) / jnp.where(usual > 0, usual, 1)

    measured, change = computed(found, loss, params, None, "sharpness", held=3 * size(params))
    if not isinstance(change, jax.core.Tracer) and change > SAME:
        msg = (
            f"sharpness: the loss changes by {change:.1e} of its size along the orbit, expected a group that leaves it as it is:"
            " js.discover of this loss, or of its network."
        )
        raise ValueError(msg)
    return measured


def beside(coordinates: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """A point nearby, off in every coordinate by another amount: at a maximum a search stands still."""
    return coordinates + BESIDE * jnp.cos(1.0 + jnp.arange(coordinates.size, dtype=coordinates.dtype))


def _least(
    measure: Callable[[Array], Array], start: Float[Array, " dim"], steps: int
) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""], Float[Array, " dim"]]:
    """A measure at the start, the least that L-BFGS takes it to, whether its gradient vanishes there, and where that is."""
    given = measure(start)
    if not start.size:
        return given, given, jnp.ones((), bool), start
    minimizer = optax.lbfgs()
    together = optax.value_and_grad_from_state(measure)

    def unsettled(carry: tuple[Array, Any, Array, Array, Any]) -> Bool[Array, ""]:
        _, _, index, slope, _ = carry
        return (index < steps) & (slope > SETTLED**2)  # NaN is not

    def lower(best: Any, value: Array, at: Array) -> Any:
        is_lower = jnp.isfinite(value) & jnp.isfinite(at).all() & (value <= best[0])
        return jax.tree.map(lambda new, old: jnp.where(is_lower, new, old), (value, at), best)

    def step(carry: tuple[Array, Any, Array, Array, Any]) -> tuple[Array, Any, Array, Array, Any]:
        at, state, index, _, best = carry
        value, gradient = together(at, state=state)
        change, state = minimizer.update(gradient, state, at, value=value, grad=gradient, value_fn=measure)
        moved = at + change
        after = optax.tree.get(state, "grad")
        slope = jnp.linalg.norm(after)
        relative = jnp.where(slope > 0, slope / jnp.abs(value), slope)
        return moved, state, index + 1, relative, lower(best, value, at)

    begin = beside(start)
    first = (begin, minimizer.init(begin), jnp.zeros((), int), jnp.array(jnp.inf, start.dtype), (given, start))
    at, state, _, slope, best = jax.lax.while_loop(unsettled, step, first)
    last = optax.tree.get(state, "value")
    least, where = lower(best, last, at)
    return given, least, (slope <= SETTLED) & (last - least <= SETTLED * jnp.abs(least)), where
