"""Multilayer perceptrons."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxsym.models.activation import Activation, resolve


class MLP(nn.Module):
    """A multilayer perceptron: ``h_l = act(h_(l-1) A_l + b_l)``, the last layer without activation.

    Parameters
    ----------
    features
        Widths of the hidden layers and of the output. ``(1,)`` is a linear model, ``(4, 1)`` has one hidden layer.
    activation
        A name of ``jaxsym.models.activation.CATALOGUE`` or a function.
    use_bias
        Whether every layer has a bias.
    kernel_init, bias_init
        Initializers, ``(key, shape, dtype) -> array``; see ``jaxsym.training.initial``.

    Raises
    ------
    ValueError
        If ``features`` is empty or not positive, or the activation's name is unknown.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.MLP((4, 1))
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 3)))
    >>> net.apply(params, jnp.zeros((7, 3))).shape
    (7, 1)
    """

    features: Sequence[int]
    activation: str | Activation = "tanh"
    use_bias: bool = True
    kernel_init: jax.nn.initializers.Initializer = jax.nn.initializers.lecun_normal()
    bias_init: jax.nn.initializers.Initializer = jax.nn.initializers.zeros

    def __post_init__(self) -> None:
        """Refuse what cannot be a network when it is written down, not when it is first called."""
        if (
            not isinstance(self.features, Sequence)
            or len(self.features) == 0
            or any(width < 1 for width in self.features)
        ):
            msg = (
                f"MLP: features is {self.features!r}, expected at least one width, (hidden, ..., output), all positive."
            )
            raise ValueError(msg)
        resolve(self.activation)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., features[-1]]`` for inputs ``[..., D]``."""
        act = resolve(self.activation)
        for layer, width in enumerate(self.features):
            dense = nn.Dense(width, use_bias=self.use_bias, kernel_init=self.kernel_init, bias_init=self.bias_init)
            x = dense(x if layer == 0 else act(x))
        return x
