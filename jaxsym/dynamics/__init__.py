"""What symmetry does to training: charges that gradient flow conserves, how steps break them, and moving along the orbit to learn faster."""

from jaxsym.dynamics.flow import Flow, gradient_flow, heavy_ball_flow
from jaxsym.dynamics.invariant import path_sgd
from jaxsym.dynamics.laws import Laws, find_laws
from jaxsym.dynamics.noether import Charges, Momenta, charges, momenta
from jaxsym.dynamics.steps import decayed, momentum_law, oscillated, step_law
from jaxsym.dynamics.teleport import OBJECTIVES, Teleport, balancing, teleport, teleporting

__all__ = [
    "OBJECTIVES",
    "Charges",
    "Flow",
    "Laws",
    "Momenta",
    "Teleport",
    "balancing",
    "charges",
    "decayed",
    "find_laws",
    "gradient_flow",
    "heavy_ball_flow",
    "momenta",
    "momentum_law",
    "oscillated",
    "path_sgd",
    "step_law",
    "teleport",
    "teleporting",
]
