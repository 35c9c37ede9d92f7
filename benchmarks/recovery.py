"""What comes back: every network of the tests, moved by random elements of its group and aligned again: ``python -m benchmarks.recovery [NAME ...]``.

The largest deviation is relative to the largest entry; the start is that of the ascent that won, passes are those over all blocks.
"""

import argparse
import sys
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxsym as js
from jaxsym.catalogue import find
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.group import readable
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS

BOUND = 1e-9
"""The largest deviation of what came back."""


def recovered(name: str, network: Any, elements: int) -> tuple[list[str], float]:
    """A row of the table, and the largest deviation."""
    sym = js.discover(network.apply, network.params, *network.inputs)
    params = jax.device_get(perturbed(jax.random.key(3), wide(network.params), 1.0))
    largest = max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(params))
    worst, starts, passes, seconds = 0.0, [], [], []
    for seed in range(elements):
        moved = sym.act(jax.device_get(sym.sample(jax.random.key(seed))), params)
        begun = time.perf_counter()
        found = js.align(sym, params, moved)
        seconds.append(time.perf_counter() - begun)
        pairs = zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True)
        worst = max(worst, *(float(np.abs(np.subtract(a, b)).max(initial=0)) for a, b in pairs))
        starts.append(found.start)
        passes.append(len(found.history) - 1)
    order = readable(sym.order) if sym.order > 1 else ""
    row = [name, order, str(sym.dim or ""), f"{worst / largest:.0e}", ", ".join(dict.fromkeys(starts))]
    return [*row, str(max(passes)), f"{min(seconds):.3f}"], worst / largest


def main() -> None:
    """Print the table; exits with 1 when a network does not come back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks; all of them when there is none")
    parser.add_argument("--elements", type=int, default=3, help="random elements for each network")
    options = parser.parse_args()
    console = Console(width=max(Console().width, 110))
    table = Table("network", "elements", "dim", "largest deviation", "start", "passes", "seconds")
    networks = {name: find(BUILDERS, name, "network") for name in options.names or BUILDERS}
    lost, refused = [], []
    with jax.enable_x64(True):
        for name in track(networks, "aligning", console=console):
            try:
                row, deviation = recovered(name, networks[name](), options.elements)
            except ValueError as error:
                refused.append(f"{name}: {error}")
                continue
            table.add_row(*row)
            if not console.is_terminal:
                print(*filter(None, row), sep=", ", file=sys.stderr, flush=True)
            if not deviation < BOUND:
                lost.append(name)
    console.print(table)
    console.print(f"{len(table.rows) - len(lost)} of {len(table.rows)} networks come back to {BOUND:g}.")
    for said in refused:
        console.print(f"refused: {said}", markup=False)
    if lost:
        console.print(f"not: {', '.join(lost)}", style="red")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
