"""Networks with rotational symmetry: the activation acts on the length of the hidden vector."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Radial(nn.Module):
    """One hidden vector, rescaled by its own length: ``z = x A``, ``y = tanh(|z|) z B + b``.

    Any rotation of ``z`` passes through: ``A -> A R``, ``B -> R' B`` changes nothing.

    Parameters
    ----------
    features
        Width of the hidden vector.
    num_outputs
        Width of the output.

    Notes
    -----
    *Source*: radial rescaling activations, Ganev, van Laarhoven, Walters 2021, arXiv:2107.02550.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.Radial(4, 2)
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 3)))
    >>> net.apply(params, jnp.zeros((7, 3))).shape
    (7, 2)
    """

    features: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., num_outputs]`` for inputs ``[..., D]``."""
        z = nn.Dense(self.features, use_bias=False)(x)
        square = jnp.sum(z**2, axis=-1, keepdims=True)
        length = jnp.sqrt(square + jnp.finfo(z.dtype).tiny)  # the root has no derivative at zero
        return nn.Dense(self.num_outputs)(jnp.tanh(length) * z)
