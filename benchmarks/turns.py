"""How contenders take turns: each in the process of its side, one at a time, what is fast repeated within a measurement."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SHORTEST = 0.05  # seconds; what is faster is repeated within a measurement
BUSY = ": other programs are running, and every time below is theirs too."

_ready: dict[str, tuple[Callable[[], Any], int]] = {}


def hold(label: str, run: Callable[[], Any]) -> tuple[Any, float]:
    """Run once, for the result and the seconds that it took at first, and keep it for turns; in the process of the side."""
    start = time.perf_counter()
    result = run()
    first = time.perf_counter() - start
    _ready[label] = run, max(1, int(SHORTEST / _timed(run, 1)))
    return result, first


def turn(label: str) -> float:
    """Seconds of one run."""
    return _timed(*_ready[label])


def forget() -> None:
    """Let the contenders of this process go."""
    _ready.clear()


def in_turns(labels: Sequence[str], rounds: int, measure: Callable[[str], float]) -> dict[str, list[float]]:
    """Seconds of each label; every round starts with another."""
    seconds: dict[str, list[float]] = {label: [] for label in labels}
    for number in range(rounds):
        cut = number % len(labels)
        for label in [*labels[cut:], *labels[:cut]]:
            seconds[label].append(measure(label))
    return seconds


def load(console: Console) -> float:
    """Say how busy the machine is."""
    found = os.getloadavg()[0]
    console.print(f"{os.cpu_count()} cores, load {found:.1f}" + (BUSY if found > 0.5 else "."))
    return found


def goals(console: Console, found: list[dict[str, Any]], title: str) -> None:
    """A row for each goal: ``task``, ``against``, ``goal``, ``measured``, ``reached``; nothing is judged where there is none."""
    if not found:
        console.print("Not everything at full size: no goal is judged.")
        return
    table = Table("task", "against", "goal", "measured", "", title=title)
    for verdict in found:
        table.add_row(
            verdict["task"],
            verdict["against"],
            f"{verdict['goal']:g}",
            f"{verdict['measured']:.2f}",
            "reached" if verdict["reached"] else "[red]NOT REACHED[/]",
        )
    console.print(table)


def _timed(run: Callable[[], Any], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - start) / number
