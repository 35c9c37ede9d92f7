"""What leaves a network unchanged: the group, found from the jaxpr and verified."""

from jaxsym.symmetry.algebra import Algebra, lie_algebra
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.group import Pinned, Symmetry
from jaxsym.symmetry.verify import Verification, verify

__all__ = [
    "Algebra",
    "Factor",
    "Pinned",
    "Slot",
    "Symmetry",
    "Verification",
    "discover",
    "lie_algebra",
    "verify",
]
