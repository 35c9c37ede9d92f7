"""Networks in which one part of the input gates another: gated units, and mixtures of experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsym.models.activation import Activation, resolve
from jaxsym.models.mlp import MLP


class GatedMLP(nn.Module):
    """One hidden layer of gated linear units: ``y = (gate(x G + g) * (x V + v)) W + w``.

    Parameters
    ----------
    hidden
        Number of gated units.
    num_outputs
        Width of the output.
    gate
        A name of ``jaxsym.models.activation.CATALOGUE`` or a function: ``"sigmoid"`` is GLU, ``"silu"`` SwiGLU, ``"gelu"`` GEGLU,
        ``"relu"`` ReGLU, ``"identity"`` bilinear.
    use_bias
        Whether the three layers have a bias.

    Raises
    ------
    ValueError
        If the gate's name is unknown.

    Notes
    -----
    *Source*: Shazeer 2020, equations 4 to 6 (the last without biases), arXiv:2002.05202.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.GatedMLP(4, 2, gate="gelu")
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 3)))
    >>> net.apply(params, jnp.zeros((7, 3))).shape
    (7, 2)
    """

    hidden: int
    num_outputs: int
    gate: str | Activation = "silu"
    use_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse an unknown gate when it is written down."""
        resolve(self.gate, "gate")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., num_outputs]`` for inputs ``[..., D]``."""
        act = resolve(self.gate)
        gates = act(nn.Dense(self.hidden, self.use_bias, name="gates")(x))
        values = nn.Dense(self.hidden, self.use_bias, name="values")(x)
        return nn.Dense(self.num_outputs, self.use_bias, name="out")(gates * values)


class SoftMixture(nn.Module):
    """Every expert answers, a softmax weighs them: ``y = sum_e softmax(x G + g)_e MLP_e(x)``.

    Parameters
    ----------
    experts
        Number of experts; their parameters have it as leading axis.
    hidden
        Width of each expert's hidden layer.
    num_outputs
        Width of the output.
    activation
        A name of ``jaxsym.models.activation.CATALOGUE`` or a function.

    Notes
    -----
    *Source*: Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive mixtures of local experts".

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.SoftMixture(3, 4, 2)
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 5)))
    >>> params["params"]["mlps"]["Dense_0"]["kernel"].shape
    (3, 5, 4)
    """

    experts: int
    hidden: int
    num_outputs: int
    activation: str | Activation = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., num_outputs]`` for inputs ``[..., D]``."""
        weights = jax.nn.softmax(nn.Dense(self.experts, name="gate")(x))
        stack = nn.vmap(
            MLP,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=-2,
            axis_size=self.experts,
        )
        answers = stack((self.hidden, self.num_outputs), self.activation, name="mlps")(x)
        return jnp.einsum("...e,...eo->...o", weights, answers)
