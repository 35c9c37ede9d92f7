"""Bases of equivariant maps against EMLP (extra ``bench``): ``PYTHONPATH=. python benchmarks/equivariant.py``.

Permutations, rotations and the proper orthochronous Lorentz group (EMLP's ``SO13p``): the same maps, dimensions held against each other, both without what
they cache. EMLP compiles as it solves, for each problem anew: its first time is shown apart, the others are medians of turns. What has no peer is timed alone.

Exits with 1 when a goal is missed or a dimension differs.
"""

import argparse
import importlib.util
import logging
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import turns
from rich.console import Console
from rich.table import Table

from jaxsym import equivariant
from jaxsym.equivariant import bases

GOAL = 100  # times faster, on permutations


class Problem(NamedTuple):
    """Maps from ``V^into`` to ``V^out``: our group and EMLP's, by name."""

    ours: str
    peer: str
    size: int | None
    into: int
    out: int

    @property
    def label(self) -> str:
        return f"{self.ours}({self.size or ''}), V^{self.into} -> V^{self.out}"


PROBLEMS = (
    Problem("S", "S", 4, 1, 1),
    Problem("S", "S", 5, 2, 1),
    Problem("S", "S", 6, 2, 2),
    Problem("S", "S", 10, 2, 1),
    Problem("SO", "SO", 3, 1, 1),
    Problem("SO", "SO", 3, 2, 2),
    Problem("SO", "SO", 3, 3, 2),
    Problem("Lorentz", "SO13p", None, 1, 1),
    Problem("Lorentz", "SO13p", None, 2, 1),
    Problem("Lorentz", "SO13p", None, 2, 2),
)
ALONE = (
    Problem("S", "", 10, 1, 2),
    Problem("S", "", 30, 2, 2),
    Problem("SO", "", 3, 4, 4),
    Problem("Lorentz", "", None, 3, 3),
)


def by_us(problem: Problem) -> Callable[[], int]:
    """Our dimension, computed anew at each call."""
    group = getattr(equivariant, problem.ours)(*([problem.size] if problem.size else []))
    V = group.vector

    def run() -> int:
        bases._solved.cache_clear()
        return equivariant.basis(V**problem.into, V**problem.out).dimension

    return run


def by_emlp(problem: Problem) -> Callable[[], int]:
    """EMLP's dimension, computed anew at each call."""
    from emlp import groups, reps
    from emlp.reps.representation import Rep

    group = getattr(groups, problem.peer)(*([problem.size] if problem.size else []))
    V = reps.V(group)

    def run() -> int:
        Rep.solcache.clear()
        return np.asarray((V**problem.into >> V**problem.out).equivariant_basis()).shape[-1]

    return run


def unavailable() -> str:
    """Why EMLP cannot run here; nothing where it can."""
    for module in ("emlp", "six"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install -e '.[bench]'"
    logging.disable(logging.WARNING)
    try:
        by_emlp(PROBLEMS[0])()
    except Exception as error:  # a peer may fail in any way
        return f"{type(error).__name__}: {error}"
    return ""


def measured(problem: Problem, rounds: int) -> dict[str, Any]:
    """Both in turns."""
    dimension, _ = turns.hold("ours", by_us(problem))
    theirs, first = turns.hold("emlp", by_emlp(problem))
    seconds = turns.in_turns(["ours", "emlp"], rounds, turns.turn)
    ours, emlp = (statistics.median(seconds[label]) for label in ("ours", "emlp"))
    turns.forget()
    row = {"dimension": dimension, "theirs": theirs, "ours": ours, "emlp": emlp, "first": first}
    return row | {"label": problem.label, "group": problem.ours, "ratio": emlp / ours}


def main() -> None:
    """Print the tables and the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest problem of each group, and no goal is judged"
    )
    options = parser.parse_args()
    console = Console(width=max(Console().width, 110))
    turns.load(console)
    problems = (
        [p for i, p in enumerate(PROBLEMS) if not i or PROBLEMS[i - 1].ours != p.ours] if options.quick else PROBLEMS
    )
    why = unavailable()
    rows = [] if why else [measured(problem, options.rounds) for problem in problems]
    if why:
        console.print(f"EMLP: unavailable: {why}", markup=False)
    else:
        table = Table("maps", "dimension", "EMLP's", "ours [ms]", "EMLP [ms]", "its first [ms]", "ratio")
        for row in rows:
            times = (f"{1e3 * row[key]:.2f}" for key in ("ours", "emlp", "first"))
            table.add_row(row["label"], str(row["dimension"]), str(row["theirs"]), *times, f"{row['ratio']:.0f}")
        console.print(table)
    table = Table("maps", "dimension", "ours [ms]", title="alone")
    for problem in () if options.quick else ALONE:
        dimension, _ = turns.hold("ours", by_us(problem))
        seconds = turns.in_turns(["ours"], options.rounds, turns.turn)["ours"]
        table.add_row(problem.label, str(dimension), f"{1e3 * statistics.median(seconds):.2f}")
        turns.forget()
    if not options.quick:
        console.print(table)
    found = [
        {
            "task": row["label"],
            "against": "EMLP",
            "goal": GOAL,
            "measured": row["ratio"],
            "reached": row["ratio"] >= GOAL,
        }
        for row in rows
        if row["group"] == "S"
    ]
    turns.goals(console, [] if options.quick else found, "goals: times faster")
    differ = [row["label"] for row in rows if row["dimension"] != row["theirs"]]
    if differ:
        console.print(f"[red]dimensions differ:[/] {', '.join(differ)}")
    missed = not options.quick and not all(verdict["reached"] for verdict in found)
    sys.exit(1 if differ or missed else 0)


if __name__ == "__main__":
    main()
