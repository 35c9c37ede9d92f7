"""Training in continuous time: gradient flow and the flow with a velocity, by Runge and Kutta's method of order 4."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsym.symmetry.checks import expect_real

Loss = Callable[[PyTree], Float[Array, ""]]


class Flow(NamedTuple):
    """The end of a flow, and what was recorded on the way."""

    params: PyTree
    velocity: PyTree
    """Of a flow that has one; None otherwise."""
    history: PyTree
    """``record(params)`` at the start and after each step, ``[steps + 1, ...]``; of a flow with a velocity, ``record(params, velocity)``."""


def gradient_flow(
    loss: Loss,
    params: PyTree,
    time: float | Float[Array, ""],
    steps: int,
    *,
    weight_decay: float | Float[Array, ""] = 0.0,
    record: Callable[[PyTree], PyTree] | None = None,
) -> Flow:
    """``d theta/dt = -grad L - wd theta``, with an error that falls as the fourth power of the step.

    Parameters
    ----------
    loss
        ``loss(params) -> scalar``.
    params
        Where it begins; float64 for conservation beyond seven digits.
    time
        How long.
    steps
        Of Runge and Kutta's method, all alike.
    weight_decay
        ``wd``.
    record
        A pure function of the parameters, such as charges.

    Raises
    ------
    TypeError
        If a parameter is an integer or complex.
    ValueError
        If ``steps`` is not positive.

    Notes
    -----
    *Source*: Kutta 1901.

    Examples
    --------
    >>> end = gradient_flow(lambda x: x**2 / 2, jnp.array(1.0), 1.0, 20).params
    >>> round(float(end), 5)  # 1 / e
    0.36788
    """
    expect_real(params, "gradient_flow")
    slope = jax.grad(loss)

    def field(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p, g: -g - weight_decay * p, params, slope(params))

    end, history = _integrated(field, params, time, steps, record)
    return Flow(end, None, history)


def heavy_ball_flow(
    loss: Loss,
    params: PyTree,
    velocity: PyTree,
    time: float | Float[Array, ""],
    steps: int,
    *,
    friction: float | Float[Array, ""] = 0.0,
    record: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Flow:
    """``d2 theta/dt2 + friction d theta/dt = -grad L``: what :func:`~jaxsym.dynamics.momenta` are conserved by.

    Parameters
    ----------
    loss, params, time, steps
        As for :func:`gradient_flow`.
    velocity
        A pytree like ``params``, at the start.
    friction
        Momenta decay as ``exp(-friction t)``.
    record
        A pure function of parameters and velocity.

    Raises
    ------
    TypeError
        If a parameter is an integer or complex.
    ValueError
        If ``steps`` is not positive.

    Examples
    --------
    >>> moved = heavy_ball_flow(lambda x: x**2 / 2, jnp.array(1.0), jnp.array(0.0), jnp.pi, 40)
    >>> round(float(moved.params), 4)
    -1.0
    """
    expect_real(params, "heavy_ball_flow")
    velocity = jax.tree.map(lambda p, v: jnp.asarray(v, jnp.result_type(p)), params, velocity)
    slope = jax.grad(loss)

    def field(state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        at, speed = state
        return speed, jax.tree.map(lambda v, g: -friction * v - g, speed, slope(at))

    told = None if record is None else (lambda state: record(*state))
    (end, speed), history = _integrated(field, (params, velocity), time, steps, told)
    return Flow(end, speed, history)


def _integrated(
    field: Callable[[PyTree], PyTree], start: PyTree, time: Any, steps: int, record: Callable[[PyTree], PyTree] | None
) -> tuple[PyTree, PyTree]:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        msg = f"steps: got {steps!r}, expected an int of at least 1."
        raise ValueError(msg)
    h = time / steps
    told = record or (lambda _: None)

    def along(state: PyTree, slope: PyTree, size: Any) -> PyTree:
        return jax.tree.map(lambda x, k: x + (size * k).astype(x.dtype), state, slope)

    def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        a = field(state)
        b = field(along(state, a, h / 2))
        c = field(along(state, b, h / 2))
        d = field(along(state, c, h))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, a, b, c, d)
        state = along(state, mean, h)
        return state, told(state)

    start = jax.tree.map(jnp.asarray, start)
    end, history = jax.lax.scan(step, start, length=steps)
    return end, jax.tree.map(
        lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]), told(start), history
    )
