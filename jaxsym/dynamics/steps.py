"""What becomes of charges in discrete time: exact laws of a step, and the equations that steps of a finite size follow."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsym.dynamics.noether import Charges, charges
from jaxsym.symmetry.group import Symmetry

Rate = float | Float[Array, ""]


def step_law(sym: Symmetry, *, frozen: Iterable[str] = ()) -> Callable[..., Float[Array, " num"]]:
    """The charges after a step of SGD, exactly: ``law(params, grads, lr, weight_decay=0.0) -> [num]``.

    For ``theta <- theta - lr (g + wd theta)`` with the gradient ``g`` of any minibatch, ``Q <- (1 - lr wd)^2 Q + lr^2 Q(g)`` for quadratic charges and
    ``Q <- (1 - lr wd) Q`` for linear ones: what the gradient does to first order vanishes, as ``<grad Q, g> = 0``.

    Parameters
    ----------
    sym, frozen
        As for :func:`~jaxsym.dynamics.charges`.

    Returns
    -------
    Callable
        ``law(params, grads, lr, weight_decay=0.0)``; ``grads`` without the decay.

    Raises
    ------
    TypeError, ValueError
        As :func:`~jaxsym.dynamics.charges`; the law itself, if a rate is no single number.

    Notes
    -----
    *Source*: Kunin, Sagastuy-Brena, Ganguli, Yamins, Tanaka 2021 (arXiv:2012.04728), section 5; exact here, as the charges are at most quadratic.

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}
    >>> law = step_law(js.discover(apply, params, jnp.ones((5, 3))))
    >>> law(params, {"a": 0.1 * jnp.ones((3, 2)), "b": 0.3 * jnp.ones((2, 1))}, 1.0, 0.5)  # |a|^2 - |b|^2 = 2, gradients .03 - .09
    Array([0.22, 0.22], dtype=float32)
    """
    kept = charges(sym, frozen=frozen)

    def law(params: PyTree, grads: PyTree, lr: Rate, weight_decay: Rate = 0.0) -> Float[Array, " num"]:
        _expect_rates("step_law", lr=lr, weight_decay=weight_decay)
        shrink = 1 - lr * weight_decay
        now = kept(params)
        return jnp.where(kept.degrees == 2, shrink**2 * now + lr**2 * kept(grads), shrink * now)

    return law


def momentum_law(sym: Symmetry, *, frozen: Iterable[str] = ()) -> Callable[..., Float[Array, " num"]]:
    """The charges after a step of SGD with momentum, exactly: ``law(params, velocity, grads, lr, momentum, weight_decay=0.0) -> [num]``.

    For ``v <- b v + g + wd theta``, ``theta <- theta - lr v``: ``Q <- Q - lr (b <grad Q, v> + 2 wd Q) + lr^2 Q(v')`` for quadratic charges, with the new
    velocity ``v'``; for linear ones ``Q(v) <- b Q(v) + wd Q``, ``Q <- Q - lr Q(v)``, which needs no gradient at all.

    Parameters
    ----------
    sym, frozen
        As for :func:`~jaxsym.dynamics.charges`.

    Returns
    -------
    Callable
        ``velocity`` is that before the step, zeros at first; ``grads`` are without the decay.

    Raises
    ------
    TypeError, ValueError
        As :func:`~jaxsym.dynamics.charges`; the law itself, if a rate is no single number.
    """
    kept = charges(sym, frozen=frozen)

    def law(
        params: PyTree, velocity: PyTree, grads: PyTree, lr: Rate, momentum: Rate, weight_decay: Rate = 0.0
    ) -> Float[Array, " num"]:
        _expect_rates("momentum_law", lr=lr, momentum=momentum, weight_decay=weight_decay)
        now, along = jax.jvp(kept, (params,), (velocity,))
        moved = jax.tree.map(lambda p, v, g: momentum * v + g + weight_decay * p, params, velocity, grads)
        slope = momentum * along + kept.degrees * weight_decay * now
        return now - lr * slope + jnp.where(kept.degrees == 2, lr**2 * kept(moved), 0)

    return law


def decayed(kept: Charges, initial: Float[Array, " num"], time: Rate, weight_decay: Rate) -> Float[Array, " num"]:
    """The charges of gradient flow with weight decay: ``exp(-2 wd t) Q(0)``, and ``exp(-wd t) Q(0)`` for linear ones.

    Parameters
    ----------
    kept
        The charges.
    initial
        Their values at time 0.
    time, weight_decay
        ``d theta/dt = -grad L - wd theta``, up to this time.

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: jax.nn.relu(x * p["a"]) * p["b"]
    >>> kept = charges(js.discover(apply, {"a": jnp.ones(1), "b": jnp.ones(1)}, jnp.ones(1)))
    >>> decayed(kept, jnp.ones(1), 0.5, 1.0)  # 1 / e
    Array([0.36787945], dtype=float32)
    """
    _expect_rates("decayed", time=time, weight_decay=weight_decay)
    return jnp.exp(-kept.degrees * weight_decay * time) * initial


def oscillated(
    kept: Charges,
    initial: Float[Array, " num"],
    drive: Float[Array, "steps num"],
    lr: Rate,
    momentum: Rate = 0.0,
    weight_decay: Rate = 0.0,
) -> Float[Array, "steps+1 num"]:
    """The charges of SGD with momentum by its modified equation: a damped oscillator, driven by the charges of the velocity.

    ``m Q'' + (1 - b) Q' + k wd Q = 2 m D`` with ``m = lr (1 + b) / 2`` in the time ``lr`` times steps; ``k`` is the degree, and ``D = Q(v)`` for quadratic
    charges, 0 for linear ones. Solved exactly from step to step, with the drive constant in between; accurate to first order in ``lr``.

    Parameters
    ----------
    kept
        The charges.
    initial
        Their values before the first step, at rest.
    drive
        Charges of the velocity after each step: ``kept(v)``.
    lr, momentum, weight_decay
        As for :func:`momentum_law`.

    Notes
    -----
    *Source*: Kunin, Sagastuy-Brena, Ganguli, Yamins, Tanaka 2021 (arXiv:2012.04728), section 5.
    """
    _expect_rates("oscillated", lr=lr, momentum=momentum, weight_decay=weight_decay)
    mass, friction = lr * (1 + momentum) / 2, 1 - momentum

    def one(degree: Array, first: Array, driven: Array) -> Array:
        spring = degree * weight_decay
        force = jnp.where(degree == 2, 2 * mass, 0.0)
        motion = jnp.array([[0.0, 1, 0], [-spring / mass, -friction / mass, force / mass], [0, 0, 0]])
        moved = jax.scipy.linalg.expm(lr * motion)

        def step(state: Array, push: Array) -> tuple[Array, Array]:
            state = (moved @ jnp.append(state, push))[:2]
            return state, state[0]

        start = jnp.array([first, 0.0])
        return jnp.append(first, jax.lax.scan(step, start, driven)[1])

    return jax.vmap(one, in_axes=(0, 0, 1), out_axes=1)(jnp.asarray(kept.degrees), initial, drive)


def _expect_rates(who: str, **rates: Any) -> None:
    """Refuse what is no number: a law is one step's, and of all parameters alike."""
    for name, rate in rates.items():
        dtype = getattr(rate, "dtype", None) or (type(rate) if isinstance(rate, bool | int | float) else None)
        if dtype is None or jnp.shape(rate) != () or not jnp.issubdtype(dtype, jnp.number):
            got = type(rate).__name__ if dtype is None else f"{jnp.result_type(rate)}{list(jnp.shape(rate))}"
            msg = f"{who}: {name} is {got}, expected one number, that of this step and of all parameters (jax.vmap for several)."
            raise TypeError(msg)
