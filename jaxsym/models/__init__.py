"""Networks as Flax Linen modules. Nothing in the library needs them: any pure ``apply(params, *inputs)`` will do."""

from jaxsym.models import activation
from jaxsym.models.mlp import MLP

__all__ = ["MLP", "activation"]
