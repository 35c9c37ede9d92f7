"""Data whose law is known."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxsym.data.split import Rows


def polynomial(
    key: Array,
    num: int,
    coefficients: Sequence[float] = (5.0, 1.2, -3.4, 5.6),
    noise: float = 0.1,
    factorial: bool = True,
) -> Rows:
    """A noisy polynomial, ``y = sum_i c_i x^i / i! + noise * N(0, 1)`` with ``x ~ N(0, 1)``.

    Parameters
    ----------
    key
        Of the inputs and the noise.
    num
        Number of rows N.
    coefficients
        ``c_0, c_1, ...``; the default is the cubic of the chapter on under- and overfitting (Zhang, Lipton, Li, Smola,
        *Dive into Deep Learning*, section on polynomial regression).
    noise
        Standard deviation.
    factorial
        Whether to divide the i-th power by i!.

    Returns
    -------
    Rows
        Inputs ``[N, 1]``, targets ``[N]``, float.

    Examples
    --------
    >>> polynomial(jax.random.key(0), 20).inputs.shape
    (20, 1)
    """
    if num < 1 or not len(coefficients):
        msg = f"polynomial: got num={num} and {len(coefficients)} coefficients, expected at least one of each."
        raise ValueError(msg)
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (num,))
    terms = [c * x**i / (math.factorial(i) if factorial else 1) for i, c in enumerate(coefficients)]
    return Rows(x[:, None], sum(terms[1:], terms[0]) + noise * jax.random.normal(noise_key, (num,)))


def teacher(
    key: Array,
    num: int,
    init: Callable[..., Any],
    apply: Callable[..., Float[Array, "N m"]],
    inputs: int,
    noise: float = 0.0,
) -> Rows:
    """A random network's outputs on standard normal inputs.

    Parameters
    ----------
    key
        Of the network, the inputs and the noise.
    num, inputs
        Number of rows N and of inputs D.
    init, apply
        ``init(key, x) -> params`` and ``apply(params, x) -> [N, m]``, as a Flax module has them.
    noise
        Standard deviation of what is added to the outputs.

    Returns
    -------
    Rows
        Inputs ``[N, D]``, targets ``[N, m]``, float.

    Examples
    --------
    >>> from jaxsym.models import MLP
    >>> net = MLP((4, 2))
    >>> teacher(jax.random.key(0), 50, net.init, net.apply, inputs=3).targets.shape
    (50, 2)
    """
    if num < 1 or inputs < 1:
        msg = f"teacher: got num={num} and inputs={inputs}, expected at least 1 of each."
        raise ValueError(msg)
    params_key, x_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (num, inputs))
    y = apply(init(params_key, x), x)
    return Rows(x, y + noise * jax.random.normal(noise_key, y.shape, y.dtype))
