"""Transformers."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsym.catalogue import find

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class Block(nn.Module):
    """One pre-norm block: ``x += attention(norm(x))``, then ``x += B gelu(A norm(x) + a) + b``.

    Parameters
    ----------
    heads
        Number of attention heads; divides the width of the stream.
    hidden
        Width of the hidden layer.
    norm
        ``"layer"`` or ``"rms"``.
    epsilon
        What the norms add to the variance.
    """

    heads: int
    hidden: int
    norm: str = "layer"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length width"], mask: Bool[Array, "*batch #heads length length"] | None = None
    ) -> Float[Array, "*batch length width"]:
        """The stream ``[..., L, width]`` after the block; where ``mask`` is False, a query (row) does not see a key (column)."""
        norm = find(NORMS, self.norm, "norm")
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(norm(self.epsilon)(x), mask=mask)
        h = nn.gelu(nn.Dense(self.hidden)(norm(self.epsilon)(x)))
        return x + nn.Dense(x.shape[-1])(h)


class Transformer(nn.Module):
    """Tokens to logits: embedding and learned positions, pre-norm blocks, a last norm, the unembedding without bias.

    Parameters
    ----------
    vocabulary
        Number of tokens.
    width
        Width of the residual stream.
    heads, layers, hidden
        Number of heads and of blocks, and the width of a block's hidden layer.
    length
        Number of positions; a sequence may be shorter.
    norm
        ``"layer"`` or ``"rms"`` (Zhang, Sennrich 2019, arXiv:1910.07467).
    tied
        Whether the unembedding is the embedding, transposed (Press, Wolf 2017, arXiv:1608.05859).
    causal
        Whether a position sees only itself and what is before it: a decoder, else an encoder.
    epsilon
        What the norms add to the variance.

    Raises
    ------
    ValueError
        If the heads do not divide the width, the norm is unknown, or a sequence is longer than ``length``.

    Notes
    -----
    *Source*: Vaswani et al. 2017, arXiv:1706.03762; norms first as in Radford et al. 2019 (GPT-2).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.Transformer(vocabulary=11, width=8, heads=2, layers=1, hidden=16, length=6)
    >>> tokens = jnp.array([[1, 2, 3, 4]])
    >>> net.apply(net.init(jax.random.key(0), tokens), tokens).shape
    (1, 4, 11)
    """

    vocabulary: int
    width: int
    heads: int
    layers: int
    hidden: int
    length: int
    norm: str = "layer"
    tied: bool = False
    causal: bool = True
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse heads that do not divide the width, and unknown norms."""
        find(NORMS, self.norm, "norm")
        if self.width % self.heads:
            msg = f"Transformer: heads is {self.heads}, expected a divisor of the width {self.width}."
            raise ValueError(msg)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Int[Array, "*batch length"]) -> Float[Array, "*batch length vocabulary"]:
        """Logits ``[..., L, vocabulary]`` for tokens ``[..., L]``."""
        length = tokens.shape[-1]
        if length > self.length:
            msg = f"Transformer: tokens have shape {tokens.shape}, expected at most {self.length} positions."
            raise ValueError(msg)
        embed = nn.Embed(self.vocabulary, self.width, name="embedding")
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        mask = nn.make_causal_mask(tokens, dtype=jnp.bool_) if self.causal else None
        x = embed(tokens) + positions[:length]
        for _ in range(self.layers):
            x = Block(self.heads, self.hidden, self.norm, self.epsilon)(x, mask)
        x = NORMS[self.norm](self.epsilon)(x)
        return embed.attend(x) if self.tied else nn.Dense(self.vocabulary, use_bias=False, name="unembedding")(x)
