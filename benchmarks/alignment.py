"""Alignment against the published weight matching (Ainsworth, Hayase, Srinivasa 2022): ``PYTHONPATH=. python benchmarks/alignment.py --peer DIR``.

``DIR`` is the folder ``src`` of a clone of https://github.com/samuela/git-re-basin, whose ``weight_matching.py`` is run as it is (its module ``utils``, of which
it takes ``rngmix`` alone, does not load in newer versions of JAX; that line is given instead). Both move permutations of the same specification, on random
kernels: perceptrons of three layers of 512 units, and the shapes of ResNet-20. Cold: the first call in a process of its own. Warm: medians of turns. The objective is the inner
product of all leaves; that of the pair that is timed decides, those of further pairs are printed: both are local searches, and neither is better on each pair. The time that SciPy takes for the assignments is given apart. NumPy's products run on one thread, as those of tests do: on two they wait for
each other beside JAX's own threads.

Exits with 1 when a goal is missed.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy comes

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.optimize
import turns
from rich.console import Console
from rich.table import Table

import jaxsym as js
from jaxsym import alignment

GOALS = {"MLP 3 x 512": {"warm": 5, "cold": 5}, "ResNet-20": {"warm": 10, "cold": 5}}
"""Times faster."""
Specification = dict[str, tuple[str | None, ...]]


def perceptron() -> tuple[Specification, dict[str, tuple[int, ...]]]:
    """784-512-512-512-10."""
    widths = [784, 512, 512, 512, 10]
    spec: Specification = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(4):
        before, after = (None if i == 0 else f"P_{i - 1}"), (None if i == 3 else f"P_{i}")
        spec |= {f"Dense_{i}/kernel": (before, after), f"Dense_{i}/bias": (after,)}
        shapes |= {f"Dense_{i}/kernel": (widths[i], widths[i + 1]), f"Dense_{i}/bias": (widths[i + 1],)}
    return spec, shapes


def resnet(width: int = 16) -> tuple[Specification, dict[str, tuple[int, ...]]]:
    """ResNet-20 with LayerNorm: three groups of three blocks, a convolution on the shortcut where the width doubles."""
    spec: Specification = {"conv1/kernel": (None, None, None, "P_bg0")}
    shapes: dict[str, tuple[int, ...]] = {"conv1/kernel": (3, 3, 3, width)}

    def norm(name: str, units: str, size: int) -> None:
        for leaf in ("scale", "bias"):
            spec[f"{name}/{leaf}"] = (units,)
            shapes[f"{name}/{leaf}"] = (size,)

    def conv(name: str, before: str, after: str, sizes: tuple[int, int]) -> None:
        spec[f"{name}/kernel"] = (None, None, before, after)
        shapes[f"{name}/kernel"] = (3, 3, *sizes)

    norm("norm1", "P_bg0", width)
    stream, size = "P_bg0", width
    for group in range(3):
        for block in range(3):
            name, inner = f"blockgroups_{group}/blocks_{block}", f"P_{group}_{block}"
            out, wide = (f"P_bg{group}", width * 2**group)
            conv(f"{name}/conv1", stream, inner, (size, wide))
            norm(f"{name}/norm1", inner, wide)
            conv(f"{name}/conv2", inner, out, (wide, wide))
            norm(f"{name}/norm2", out, wide)
            if out != stream:
                conv(f"{name}/shortcut/layers_0", stream, out, (size, wide))
                norm(f"{name}/shortcut/layers_1", out, wide)
            stream, size = out, wide
    spec |= {"dense/kernel": (stream, None), "dense/bias": (None,)}
    shapes |= {"dense/kernel": (size, 10), "dense/bias": (10,)}
    return spec, shapes


NETWORKS = {"MLP 3 x 512": perceptron, "ResNet-20": resnet}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Normal leaves, divided by the root of what a unit reads."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    scale = {name: max(1, int(np.prod(shape[:-1]))) ** -0.5 for name, shape in shapes.items()}
    return {n: np.asarray(scale[n] * jax.random.normal(k, s)) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def theirs(folder: Path) -> types.ModuleType:
    """Their module, as it is."""
    helper = types.ModuleType("utils")
    helper.rngmix = lambda rng, x: jax.random.fold_in(rng, hash(x))  # type: ignore[attr-defined]
    sys.modules["utils"] = helper
    found = importlib.util.spec_from_file_location("weight_matching", folder / "weight_matching.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def contender(side: str, network: str, folder: Path, seed: int = 1) -> Callable[[], dict[str, np.ndarray]]:
    """A call that moves one network onto another; returns its leaves."""
    spec, shapes = NETWORKS[network]()
    a, b = (jax.device_put(drawn(shapes, own)) for own in (0, seed))
    if side == "ours":
        sym = js.Symmetry.from_spec(spec, a)
        return lambda: jax.device_get(alignment.align(sym, a, b).params)
    module = theirs(folder)
    ps = module.permutation_spec_from_axes_to_perm(spec)

    def run() -> dict[str, np.ndarray]:
        perm = module.weight_matching(jax.random.PRNGKey(0), ps, a, b, silent=True)
        return jax.device_get(module.apply_permutation(ps, perm, b))

    return run


def inner(network: str, moved: dict[str, np.ndarray]) -> float:
    """The objective: the inner product with the network that stays."""
    a = drawn(NETWORKS[network]()[1], 0)
    return float(sum(np.vdot(a[name].astype(np.float64), leaf) for name, leaf in moved.items()))


def cold(side: str, network: str, folder: Path) -> float:
    """Seconds of the first call, in a process of its own."""
    command = [sys.executable, __file__, "--cold", side, network, "--peer", str(folder)]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def assignments(run: Callable[[], Any]) -> float:
    """Seconds that SciPy's assignments take in a call."""
    spent, solve = [0.0], scipy.optimize.linear_sum_assignment

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return solve(*arguments, **options)
        finally:
            spent[0] += time.perf_counter() - start

    scipy.optimize.linear_sum_assignment = timed
    try:
        run()
    finally:
        scipy.optimize.linear_sum_assignment = solve
    return spent[0]


def main() -> None:
    """Print the table and the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, default=Path("git-re-basin/src"), help="the folder src of their clone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4, help="of networks, whose objectives are compared")
    parser.add_argument("--cold", nargs=2, metavar=("SIDE", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cold:
        run = contender(*options.cold, options.peer)
        start = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - start))
        return
    console = Console(width=max(Console().width, 110))
    turns.load(console)
    there = (options.peer / "weight_matching.py").is_file()
    if not there:
        console.print(f"weight matching: unavailable: no weight_matching.py in {options.peer}", markup=False)
    table = Table("network", "who", "objective", "mean of pairs", "cold [s]", "warm [s]", "of that SciPy [s]")
    found, worse, lines = [], [], []
    for network in NETWORKS:
        sides = ["ours", *(["weight matching"] if there else [])]
        runs = {side: contender(side, network, options.peer) for side in sides}
        values = {side: [inner(network, turns.hold(side, runs[side])[0])] for side in sides}
        for side in sides:
            values[side] += [
                inner(network, contender(side, network, options.peer, seed)()) for seed in range(2, 1 + options.pairs)
            ]
        first = {side: cold(side, network, options.peer) for side in sides}
        seconds = {side: statistics.median(s) for side, s in turns.in_turns(sides, options.rounds, turns.turn).items()}
        for side in sides:
            spent = f"{assignments(runs[side]):.3f}" if side == "ours" else ""
            objective, mean = f"{values[side][0]:.2f}", f"{statistics.mean(values[side]):.2f}"
            table.add_row(network, side, objective, mean, f"{first[side]:.2f}", f"{seconds[side]:.3f}", spent)
        turns.forget()
        if there:
            other = "weight matching"
            if values["ours"][0] < values[other][0]:
                worse.append(network)
            behind = [1 - ours / peer for ours, peer in zip(values["ours"], values[other], strict=True) if ours < peer]
            lines.append(
                f"{network}: a worse objective on {len(behind)} of {options.pairs} pairs, by {max(behind, default=0):.2%} at most."
            )
            for kind, times in (("warm", seconds), ("cold", first)):
                ratio, goal = times[other] / times["ours"], GOALS[network][kind]
                found.append(
                    {
                        "task": f"{network}, {kind}",
                        "against": other,
                        "goal": goal,
                        "measured": ratio,
                        "reached": ratio >= goal,
                    }
                )
    console.print(table)
    for line in lines:
        console.print(line)
    turns.goals(console, found, "goals: times faster")
    if worse:
        console.print(f"[red]a worse objective:[/] {', '.join(worse)}")
    sys.exit(1 if worse or not all(verdict["reached"] for verdict in found) else 0)


if __name__ == "__main__":
    main()
