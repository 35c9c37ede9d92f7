"""jaxsym: the symmetry group of any JAX network, and everything that follows from it."""

import importlib
from typing import Any

from jaxsym.parallel import parallel, use_all_cores  # eager: the function hides the module of the same name

__version__ = "0.1.0"

_LAZY = {  # name -> (module, attribute); loaded when first used, so that `import jaxsym` stays fast
    "Symmetry": ("jaxsym.symmetry", "Symmetry"),
    "canonicalize": ("jaxsym.symmetry", "canonicalize"),
    "certify": ("jaxsym.symmetry", "certify"),
    "discover": ("jaxsym.symmetry", "discover"),
    "orbit_distance": ("jaxsym.symmetry", "orbit_distance"),
    "verify": ("jaxsym.symmetry", "verify"),
    "make_train": ("jaxsym.training", "make_train"),
    "count": ("jaxsym.symmetry.count", None),
    "curvature": ("jaxsym.curvature", None),
    "align": ("jaxsym.alignment", "align"),
    "alignment": ("jaxsym.alignment", None),
    "barrier": ("jaxsym.alignment", "barrier"),
    "data": ("jaxsym.data", None),
    "dynamics": ("jaxsym.dynamics", None),
    "equivariant": ("jaxsym.equivariant", None),
    "merge": ("jaxsym.alignment", "merge"),
    "models": ("jaxsym.models", None),
    "sweep": ("jaxsym.sweep", None),
    "symmetry": ("jaxsym.symmetry", None),
    "training": ("jaxsym.training", None),
    "tree": ("jaxsym.tree", None),
}

__all__ = [
    "Symmetry",
    "align",
    "alignment",
    "barrier",
    "canonicalize",
    "certify",
    "count",
    "curvature",
    "data",
    "discover",
    "dynamics",
    "equivariant",
    "make_train",
    "merge",
    "models",
    "orbit_distance",
    "parallel",
    "sweep",
    "symmetry",
    "training",
    "use_all_cores",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a lazy name."""
    if name not in _LAZY:
        msg = f"module 'jaxsym' has no attribute {name!r}"
        raise AttributeError(msg)
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
