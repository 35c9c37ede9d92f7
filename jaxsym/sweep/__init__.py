"""Sweeps: grids and searches from a file, on disk, resumable, on one machine or many."""

from jaxsym.sweep import store
from jaxsym.sweep.engine import Failure, Outcome, run
from jaxsym.sweep.grid import Sweep, load, parse
from jaxsym.sweep.records import open_sweep as open  # noqa: A004 - `js.sweep.open(directory)`, as xarray has it
from jaxsym.sweep.records import parameters

__all__ = ["Failure", "Outcome", "Sweep", "load", "open", "parameters", "parse", "run", "store"]
