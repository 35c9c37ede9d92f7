"""Convolutional networks: a plain one with pooling, and residual ones."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsym.models.activation import Activation, resolve


class CNN(nn.Module):
    """Convolutions 3 x 3, each with norm, activation and 2 x 2 max pooling, then one dense layer on the flattened map.

    Parameters
    ----------
    features, num_outputs
        Channels of each convolution, and the width of the output.
    activation
        A name of ``jaxsym.models.activation.CATALOGUE`` or a function.
    norm, num_groups
        None, ``"batch"`` or ``"group"``, between a convolution and its activation; the groups divide every width.

    Raises
    ------
    ValueError
        If ``norm`` or the activation's name is unknown, or (at ``init``) the groups do not divide the channels.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> net = js.models.CNN((4, 6), 10, norm="batch")
    >>> variables = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> net.apply(variables, jnp.zeros((5, 8, 8, 1))).shape
    (5, 10)
    """

    features: Sequence[int]
    num_outputs: int
    activation: str | Activation = "relu"
    norm: str | None = None
    num_groups: int = 2

    def __post_init__(self) -> None:
        """Refuse unknown names when they are written down."""
        resolve(self.activation)
        if self.norm not in (None, "batch", "group"):
            msg = f"CNN: norm is {self.norm!r}, expected None, 'batch' or 'group'."
            raise ValueError(msg)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H W C"], train: bool = False) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., num_outputs]`` for images ``[..., H, W, C]``; ``train`` uses and updates batch statistics."""
        act = resolve(self.activation)
        for width in self.features:
            x = nn.Conv(width, (3, 3))(x)
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not train)(x)
            elif self.norm == "group":
                x = nn.GroupNorm(self.num_groups, reduction_axes=(-3, -2, -1))(x)
            x = nn.max_pool(act(x), (2, 2), (2, 2), padding="SAME")  # SAME: a small map never becomes an empty one
        return nn.Dense(self.num_outputs)(x.reshape(*x.shape[:-3], -1))


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + branch(x))``; the shortcut is a 1 x 1 convolution where the shape changes.

    Parameters
    ----------
    width, stride
        Channels of the branch, and the stride of its first 3 x 3 convolution.
    bottleneck
        The branch is 1 x 1, 3 x 3, 1 x 1 and the block returns ``4 width``, instead of 3 x 3, 3 x 3 and ``width``.
    """

    width: int
    stride: int = 1
    bottleneck: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H W C"], train: bool = False) -> Float[Array, "*batch h w c"]:
        """Maps ``[..., H / stride, W / stride, width or 4 width]`` for maps ``[..., H, W, C]``."""
        pointwise = functools.partial(nn.Conv, kernel_size=(1, 1), use_bias=False)
        spatial = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        if self.bottleneck:
            y = nn.relu(norm()(pointwise(self.width)(x)))
            y = nn.relu(norm()(spatial(self.width, strides=self.stride)(y)))
            y = norm()(pointwise(4 * self.width)(y))
        else:
            y = nn.relu(norm()(spatial(self.width, strides=self.stride)(x)))
            y = norm()(spatial(self.width)(y))
        if self.stride > 1 or x.shape[-1] != y.shape[-1]:
            x = norm(name="shortcut_norm")(pointwise(y.shape[-1], strides=self.stride, name="shortcut")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network: a 7 x 7 stem, stages of :class:`ResidualBlock` that halve the map, the mean, a dense layer.

    Parameters
    ----------
    stages, widths
        Number of blocks of each stage, and their width; the stem has the width of the first.
    num_outputs
        Width of the output.
    bottleneck
        See :class:`ResidualBlock`. With it the stride is in the 3 x 3 convolution ("v1.5").

    Notes
    -----
    *Source*: He, Zhang, Ren, Sun 2015, table 1, arXiv:1512.03385; the strides of Goyal et al. 2017, section 5.1, arXiv:1706.02677.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    >>> variables = jax.eval_shape(js.models.ResNet50().init, jax.random.key(0), images)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    25557032
    """

    stages: Sequence[int]
    widths: Sequence[int]
    num_outputs: int
    bottleneck: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H W C"], train: bool = False) -> Float[Array, "*batch outputs"]:
        """Outputs ``[..., num_outputs]`` for images ``[..., H, W, C]``; ``train`` uses and updates batch statistics."""
        x = nn.Conv(self.widths[0], (7, 7), strides=2, padding=3, use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, (blocks, width) in enumerate(zip(self.stages, self.widths, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = ResidualBlock(width, stride, self.bottleneck)(x, train)
        return nn.Dense(self.num_outputs)(jnp.mean(x, (-3, -2)))


ResNet50 = functools.partial(ResNet, (3, 4, 6, 3), (64, 128, 256, 512), num_outputs=1000)
"""The ResNet of 50 layers, for images of 224 x 224."""
