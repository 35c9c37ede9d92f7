"""Are these two networks the same valley: one network moved onto another, many merged and mended, and paths between them."""

from jaxsym.alignment.connect import Barrier, Curve, Plane, along, barrier, curve, orbit_path, plane
from jaxsym.alignment.ensemble import Ensemble, ensemble
from jaxsym.alignment.match import Alignment, align
from jaxsym.alignment.merge import Merge, merge
from jaxsym.alignment.nearest import nearest
from jaxsym.alignment.repair import reestimated, repaired
from jaxsym.alignment.straight import straight_through

__all__ = [
    "Alignment",
    "Barrier",
    "Curve",
    "Ensemble",
    "Merge",
    "Plane",
    "align",
    "along",
    "barrier",
    "curve",
    "ensemble",
    "merge",
    "nearest",
    "orbit_path",
    "plane",
    "reestimated",
    "repaired",
    "straight_through",
]
