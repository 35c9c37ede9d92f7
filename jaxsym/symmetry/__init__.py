"""What leaves a network unchanged: the group, found from the jaxpr and verified."""

from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.group import Pinned, Symmetry
from jaxsym.symmetry.verify import Verification, verify

__all__ = ["Factor", "Pinned", "Slot", "Symmetry", "Verification", "discover", "verify"]
