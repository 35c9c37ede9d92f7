"""What a function commutes with: shared weights as colours, all linear maps that commute with a group, and layers made of them."""

from jaxsym.equivariant.bases import Basis, basis
from jaxsym.equivariant.colours import SYSTEMS, Colours, Equations, colours, constrained, mixed
from jaxsym.equivariant.groups import GL, SO, A, D, Lorentz, O, Product, S, SignedPermutations, Z
from jaxsym.equivariant.layers import EquivariantDense, TiedDense, TiedQuadratic
from jaxsym.equivariant.parameter_space import ParameterSpace, parameter_space
from jaxsym.equivariant.representations import Element, Group, Representation

__all__ = [
    "GL",
    "SO",
    "SYSTEMS",
    "A",
    "Basis",
    "Colours",
    "D",
    "Element",
    "Equations",
    "EquivariantDense",
    "Group",
    "Lorentz",
    "O",
    "ParameterSpace",
    "Product",
    "Representation",
    "S",
    "SignedPermutations",
    "TiedDense",
    "TiedQuadratic",
    "Z",
    "basis",
    "colours",
    "constrained",
    "mixed",
    "parameter_space",
]
