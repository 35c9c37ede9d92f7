"""Networks as Flax Linen modules. Nothing in the library needs them: any pure ``apply(params, *inputs)`` will do."""

from jaxsym.models import activation
from jaxsym.models.attention import Block, Transformer
from jaxsym.models.conv import CNN, ResNet, ResNet50
from jaxsym.models.gated import GatedMLP, SoftMixture
from jaxsym.models.mlp import MLP
from jaxsym.models.radial import Radial
from jaxsym.models.recurrent import Recurrent

__all__ = [
    "CNN",
    "MLP",
    "Block",
    "GatedMLP",
    "Radial",
    "Recurrent",
    "ResNet",
    "ResNet50",
    "SoftMixture",
    "Transformer",
    "activation",
]
