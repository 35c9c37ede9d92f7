"""The networks of the study ``mode_connectivity`` beside perceptrons, small, for images ``[N, rows, columns]``.

Each is ``apply(params, images)``. Statistics of batch normalisation are leaves of ``params``, which training does not touch: it normalises by those of each
batch. Before a network is used, they are computed over all training rows: as :func:`jaxsym.alignment.reestimated` does, by a pass in training, which can be compiled.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, PyTree

from jaxsym.models import Block

Images = Float[Array, "N rows columns"]
Logits = Float[Array, "N classes"]
Apply = Callable[[PyTree, Array], Logits]
SIDE = 4
"""Of the map on which the blocks of a ResNet work, about; and patches of a transformer along a side, at most."""


class ResNet(nn.Module):
    """Convolutional, pre-norm: a stem, then twice ``x += conv(relu(conv(norm(x))))`` with LayerNorm over the channels, the mean over the map, a norm, a dense layer.

    Parameters
    ----------
    width, hidden
        Channels of the stream, and inside a block.
    num_outputs
        Width of the output.
    """

    width: int
    hidden: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: Images) -> Logits:
        """Logits for images."""
        stride = -(-max(x.shape[1:]) // SIDE)
        x = nn.Conv(self.width, (stride + 2, stride + 2), stride)(x[..., None])
        for _ in range(2):
            x = x + nn.Conv(self.width, (3, 3))(nn.relu(nn.Conv(self.hidden, (3, 3))(nn.LayerNorm()(x))))
        return nn.Dense(self.num_outputs)(nn.LayerNorm()(x.mean((1, 2))))


class CNN(nn.Module):
    """Convolutions 3 x 3, each with BatchNorm, ReLU and 2 x 2 max pooling, then a dense layer on the flattened map.

    Parameters
    ----------
    features
        Channels of each convolution.
    num_outputs
        Width of the output.
    """

    features: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Logits:
        """Logits for images; in training by the statistics of these, which become the stored ones."""
        stride = -(-max(x.shape[1:]) // (4 * SIDE))
        x = x[..., None]
        for i, width in enumerate(self.features):
            x = nn.Conv(width, (3, 3), 1 if i else stride)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2), padding="SAME")
        return nn.Dense(self.num_outputs)(x.reshape(len(x), -1))


class Transformer(nn.Module):
    """An encoder over patches, four to a side: their embedding and learned positions, pre-norm blocks, a norm, the mean over the patches, a dense layer.

    Parameters
    ----------
    width, heads, layers, hidden
        Of the stream, of attention, the number of blocks and the width of a block's hidden layer.
    num_outputs
        Width of the output.
    """

    width: int
    heads: int
    layers: int
    hidden: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: Images) -> Logits:
        """Logits for images."""
        patch = tuple(-(-side // SIDE) for side in x.shape[1:])
        x = nn.Conv(self.width, patch, patch)(x[..., None])
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.layers):
            x = Block(self.heads, self.hidden)(x)
        return nn.Dense(self.num_outputs)(nn.LayerNorm()(x).mean(1))


class Network(NamedTuple):
    """Pure functions of parameters and inputs."""

    init: Callable[[Array, Array], PyTree]
    apply: Apply
    training: Apply
    """What is trained."""
    restated: Callable[[PyTree, Array], PyTree] | None = None
    """Parameters with their statistics computed anew over these inputs; None where there are none."""


def plain(net: nn.Module) -> Network:
    """A module that computes in training what it computes afterwards."""
    return Network(net.init, net.apply, net.apply)


def _normalized(net: CNN) -> Network:
    def training(params: PyTree, x: Array) -> Logits:
        return net.apply(params, x, train=True, mutable="batch_stats")[0]

    def restated(params: PyTree, x: Array) -> PyTree:
        return {**params, **net.apply(params, x, train=True, mutable="batch_stats")[1]}

    return Network(net.init, net.apply, training, restated)


CATALOGUE: dict[str, Callable[[int], Network]] = {
    "resnet": lambda classes: plain(ResNet(8, 16, classes)),
    "cnn": lambda classes: _normalized(CNN((8, 16), classes)),
    "transformer": lambda classes: plain(Transformer(16, 2, 1, 32, classes)),
}
"""By the number of classes."""
