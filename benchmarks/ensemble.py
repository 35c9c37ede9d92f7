"""Training and differentiating ensembles: ours against its peers, ``python benchmarks/ensemble.py [--quick]``.

Hundreds of small networks, each from its own start, on the same data: full-batch SGD and Adam, and a Hessian-vector product each. Ours is
``js.parallel(train)`` as it is, on one CPU device a core; JAX's ``jit(vmap)`` and the loop, and torch, run in processes of their own, started
as anybody starts them. One process works at a time, and the contenders take turns, in rounds; medians are compared. What comes before the
first result is timed apart: compiling, and with ours the choice of a chunk, which compiles too. Those who take the networks one by one take a few, and their time is scaled
up. Everybody's results are compared, and a difference is an error.

The limits are the largest rates that this machine shows in a large matrix product and a large triad. The cost of more networks is shown
apart: time, and the temporary memory of the compiled program.

Exits with 1 when a goal is missed; with fewer networks, steps or shapes (``--quick``, ``--shapes``) nothing is judged.
"""

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import scores
import turns
from contenders import (
    BY_HAND,
    FUNC,
    KINDS,
    MODULES,
    OURS,
    PLAIN,
    SHAPES,
    STEPS,
    Shape,
    Task,
    agree,
    flops,
    jax_peers,
    ours,
    program,
)
from rich.console import Console
from rich.progress import track

SIDES = {OURS: "jaxsym", PLAIN: "jax", BY_HAND: "jax", STEPS: "jax", FUNC: "torch", MODULES: "torch"}
COUNTS = (16, 64, 256, 1024, 4096)
SCALED = "64-32-10"  # the shape of the costs, if it is among the chosen, and its
FEW = 10  # steps
BOUNDED, BOUNDS = 16, (64, 4096)  # the chunk of the memory, and the numbers of networks


class Result(NamedTuple):
    """Seconds of a contender: tuning, compiling, and for the whole task the median, fastest and slowest turn."""

    tuning: float
    compiling: float
    median: float
    fastest: float
    slowest: float
    scaled: float  # 1, or by how much the measured seconds were multiplied
    choice: str  # of the tuning


# In the process of a side.


def begin(side: str) -> None:
    if side == "jaxsym":
        import jaxsym as js

        js.use_all_cores()


class Prepared(NamedTuple):
    tuning: float
    choice: str
    first: float  # seconds of the first run
    networks: int
    values: np.ndarray


def prepare(label: str, name: str, task: Task) -> Prepared:
    """Build a contender, let it tune itself, and run it."""
    if name in (FUNC, MODULES):
        from torch_peers import torch_peers

        build = torch_peers(task)[name]
    else:
        build = (ours(task) if name == OURS else jax_peers(task))[name]
    contender = build()
    start = time.perf_counter()
    choice = contender.tune() if contender.tune else ""
    tuned = time.perf_counter()
    result, first = turns.hold(label, contender.run)
    return Prepared(tuned - start, choice, first, contender.networks, contender.values(result))


def memory(shape: Shape, chunk: int | None) -> int:
    """Bytes of temporary memory of the compiled program, a device; ``chunk`` None is ``jit(vmap)``."""
    import jax

    import jaxsym as js

    function, args, kwargs = program(Task("sgd", shape))
    whole = js.parallel(function, chunk=chunk) if chunk else jax.vmap(function)
    return int(jax.jit(whole).lower(*args, **kwargs).compile().memory_analysis().temp_size_in_bytes)


# In the main process.


class Sides:
    """A process for each side, and one call at a time."""

    def __init__(self) -> None:
        names = ["jaxsym", "jax", *(["torch"] if importlib.util.find_spec("torch") else [])]
        fresh = multiprocessing.get_context("spawn")
        self.pools = {
            side: ProcessPoolExecutor(1, mp_context=fresh, initializer=begin, initargs=(side,)) for side in names
        }

    def __call__(self, side: str, function: Any, *args: Any) -> Any:
        return self.pools[side].submit(function, *args).result()

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self.pools.values():
            pool.shutdown()


def race(sides: Sides, entries: dict[str, tuple[str, Task]], rounds: int) -> tuple[dict[str, Result], dict[str, Any]]:
    """Times and results of several contenders (``label: (name, task)``) that take turns; each round starts with another."""
    found: dict[str, Prepared] = {}
    for label, (name, task) in entries.items():
        found[label] = sides(SIDES[name], prepare, label, name, task)
    scales = {label: task.shape.networks / found[label].networks for label, (_, task) in entries.items()}

    def measure(label: str) -> float:
        return float(sides(SIDES[entries[label][0]], turns.turn, label)) * scales[label]

    seconds = turns.in_turns(list(entries), rounds, measure)
    for side in sides.pools:
        sides(side, turns.forget)
    results = {}
    for label, times in seconds.items():
        median = statistics.median(times)
        compiling = max(0.0, found[label].first - median / scales[label])
        tuning, choice = found[label].tuning, found[label].choice
        results[label] = Result(tuning, compiling, median, min(times), max(times), scales[label], choice)
    return results, {label: prepared.values for label, prepared in found.items()}


def compare(sides: Sides, task: Task, rounds: int) -> dict[str, Any]:
    """One task: who takes how long, and by how much the results differ."""
    names = [
        name for name, side in SIDES.items() if side in sides.pools and not (name == BY_HAND and task.kind == "hvp")
    ]
    results, values = race(sides, {name: (name, task) for name in names}, rounds)
    return {
        "kind": task.kind,
        "shape": task.shape._asdict(),
        "flops": flops(task),
        "difference": agree(values),
        "values": {name: np.linalg.norm(value, axis=1).tolist() for name, value in values.items()},
        "times": {name: result._asdict() for name, result in results.items()},
    }


def limits(sides: Sides, side: int, length: int) -> dict[str, dict[str, float]]:
    """Operations and bytes a second, by who showed them."""
    calls = {"numpy": ("jax", machine.with_numpy), "JAX": ("jax", machine.with_jax)}
    calls["JAX, a device a core"] = ("jaxsym", machine.with_jax)
    if "torch" in sides.pools:
        calls["torch"] = ("torch", machine.with_torch)
    figures = {name: sides(where, call, side, length) for name, (where, call) in calls.items()}
    return {name: {"flops": rate, "bytes": moved} for name, (rate, moved) in figures.items()}


def costs(sides: Sides, shape: Shape, counts: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Seconds and temporary memory against the number of networks."""
    shapes = [shape._replace(networks=count) for count in counts]
    entries = {f"{name} {s.networks}": (name, Task("sgd", s)) for name in (OURS, PLAIN) for s in shapes}
    results, _ = race(sides, entries, rounds)
    found = {name: [results[f"{name} {count}"].median for count in counts] for name in (OURS, PLAIN)}
    each = [seconds / count for seconds, count in zip(found[OURS], counts, strict=True)]
    chunks = {f"chunk {BOUNDED}": ("jaxsym", BOUNDED), PLAIN: ("jax", None)}
    few, many = (shape._replace(networks=count) for count in BOUNDS)
    return {
        "shape": shape._asdict(),
        "networks": list(counts),
        "seconds": found,
        "each": max(each) / min(each),
        "memory": {
            name: {str(s.networks): sides(side, memory, s, chunk) for s in (few, many)}
            for name, (side, chunk) in chunks.items()
        },
    }


def shape_of(text: str) -> Shape:
    """``8-4-2``, one of ours, or a shape with all its sizes: ``inputs-hidden-outputs:batch:networks:steps``."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        shape = Shape(*(int(part) for part in text.replace("-", ":").split(":")))
    except (TypeError, ValueError):
        shape = None
    if shape is None or min(shape) < 1:
        msg = f"got {text!r}, expected one of {', '.join(SHAPES)}, or inputs-hidden-outputs:batch:networks:steps"
        raise argparse.ArgumentTypeError(msg)
    return shape


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = [*KINDS, "costs"]
    parser.add_argument("--quick", action="store_true", help="few networks and steps: does everything run?")
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=[*SHAPES.values()], help=shape_of.__doc__)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="only these parts")
    parser.add_argument("--rounds", type=int, help="turns of each contender (7; 2 with --quick)")
    parser.add_argument("--figure", type=Path, help="draw the costs of more networks into this file")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    chosen = parser.parse_args()
    if chosen.figure and "costs" not in chosen.only:
        parser.error("--figure draws the costs: add 'costs' to --only")
    return chosen


def main() -> int:
    chosen, console = arguments(), Console(width=max(Console().width, 160))
    shapes, rounds = chosen.shapes, chosen.rounds or (2 if chosen.quick else 7)
    if chosen.quick:
        shapes = [s._replace(networks=min(s.networks, 8), steps=min(s.steps, 2)) for s in shapes]
    tasks = [Task(kind, shape) for kind in KINDS if kind in chosen.only for shape in shapes]
    if chosen.quick:  # every shape, and everything that is done with one
        tasks = [task for task in tasks if task.kind == "sgd" or task.shape == shapes[0] or "sgd" not in chosen.only]
    load = turns.load(console)
    with Sides() as sides:
        if "torch" not in sides.pools:
            console.print("torch: unavailable (the extra 'bench' has it); the rest runs.")
        peaks = limits(sides, *((1024, 2**22) if chosen.quick else (3072, 2**25)))
        scores.limits(console, peaks)
        rows = [compare(sides, task, rounds) for task in track(tasks, "tasks", console=Console(stderr=True))]
        for kind in KINDS:
            scores.times(console, KINDS[kind], [row for row in rows if row["kind"] == kind], peaks)
        more = None
        if "costs" in chosen.only:
            counts = COUNTS[:2] if chosen.quick else COUNTS
            shape = SHAPES[SCALED] if SHAPES[SCALED] in chosen.shapes else chosen.shapes[0]
            more = costs(sides, shape._replace(steps=2 if chosen.quick else FEW), counts, rounds)
            scores.costs(console, more)
            if chosen.figure:
                scores.draw(more, chosen.figure)
    judged = shapes == [*SHAPES.values()]
    verdicts = scores.verdicts(rows) if judged else []
    turns.goals(console, verdicts, "goals: how many times as long as ours")
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"load": load, "limits": peaks, "tasks": rows, "costs": more, "goals": verdicts})
        )
    return 0 if all(verdict["reached"] for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
