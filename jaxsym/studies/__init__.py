"""Studies: one file each, exporting ``STUDY``. A new file in this folder is found by itself."""

import importlib
import pkgutil

from jaxsym.catalogue import find
from jaxsym.studies.study import Study


def catalogue() -> dict[str, Study]:
    """All studies by name, the names being those of their modules."""
    modules = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: module.STUDY for name, module in sorted(modules.items()) if hasattr(module, "STUDY")}


def load(name: str) -> Study:
    """One study.

    Raises
    ------
    ValueError
        If there is none of this name; the message has the nearest.
    """
    return find(catalogue(), name, "study")
