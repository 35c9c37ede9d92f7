"""Recurrent networks."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Recurrent(nn.Module):
    """A recurrent cell over a sequence, and a dense read-out of its last state: ``h_t = cell(h_(t-1), x_t)``, ``y = h_T A + b``.

    Parameters
    ----------
    cell
        A class of Flax's cells: ``nn.SimpleCell``, ``nn.GRUCell``, ``nn.LSTMCell``, ``nn.OptimizedLSTMCell``.
    hidden
        Width of the state.
    num_outputs
        Width of the output.

    Raises
    ------
    ValueError
        If ``cell`` is not a class of cells: a cell that is made already, or a name.

    Notes
    -----
    *Source*: Elman 1990 (simple); Cho et al. 2014, arXiv:1406.1078 (GRU); Hochreiter, Schmidhuber 1997 (LSTM).

    Examples
    --------
    >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.Recurrent(nn.GRUCell, 5, 2)
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 7, 3)))
    >>> net.apply(params, jnp.zeros((4, 7, 3))).shape
    (4, 2)
    """

    cell: type[nn.RNNCellBase]
    hidden: int
    num_outputs: int

    def __post_init__(self) -> None:
        """Refuse what is not a class of cells."""
        if not (isinstance(self.cell, type) and issubclass(self.cell, nn.RNNCellBase)):
            msg = f"Recurrent: cell is {self.cell!r}, expected a class such as flax.linen.GRUCell."
            raise ValueError(msg)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch time inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., num_outputs]`` for sequences ``[..., T, D]``."""
        kept = jnp.promote_types(x.dtype, jnp.float32)  # of the state, too: a float64 network stays one
        states = nn.RNN(self.cell(self.hidden, param_dtype=kept))(x)
        return nn.Dense(self.num_outputs)(states[..., -1, :])
