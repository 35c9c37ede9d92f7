"""Activations by name. A new one is one line of :data:`CATALOGUE`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsym.catalogue import find

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]

CATALOGUE: dict[str, Activation] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "prelu": lambda x: nn.PReLU()(x),  # a trainable slope: it is called inside a module's compact method
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "abs": jnp.abs,
}


def resolve(activation: str | Activation, role: str = "activation") -> Activation:
    """The function itself, or the one of this name.

    Raises
    ------
    ValueError
        If there is no activation of this name; ``role`` says in the message what it was for.
    """
    return find(CATALOGUE, activation, role) if isinstance(activation, str) else activation
