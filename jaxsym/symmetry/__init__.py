"""What leaves a network unchanged: the group, found from the jaxpr and verified, and what follows from it."""

from jaxsym.symmetry.algebra import Algebra, lie_algebra
from jaxsym.symmetry.canonical import Canonical, canonicalize, orbit_distance
from jaxsym.symmetry.certify import Certificate, certify
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.group import Pinned, Symmetry
from jaxsym.symmetry.paths import path_norm
from jaxsym.symmetry.scales import balance
from jaxsym.symmetry.verify import Verification, verify

__all__ = [
    "Algebra",
    "Canonical",
    "Certificate",
    "Factor",
    "Pinned",
    "Slot",
    "Symmetry",
    "Verification",
    "balance",
    "canonicalize",
    "certify",
    "discover",
    "lie_algebra",
    "orbit_distance",
    "path_norm",
    "verify",
]
