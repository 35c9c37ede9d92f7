"""Are these two networks the same valley: one network moved onto another, many merged, and paths between them."""

from jaxsym.alignment.connect import Barrier, Curve, Plane, along, barrier, curve, orbit_path, plane
from jaxsym.alignment.match import Alignment, align
from jaxsym.alignment.merge import Merge, merge

__all__ = [
    "Alignment",
    "Barrier",
    "Curve",
    "Merge",
    "Plane",
    "align",
    "along",
    "barrier",
    "curve",
    "merge",
    "orbit_path",
    "plane",
]
