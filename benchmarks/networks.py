"""The networks of the tests with the groups that are found: ``python -m benchmarks.networks [NAME ...]``.

A row a network: its factors, the number of elements, the dimension, the residuals in float64 and float32, and the seconds of discovery
(its first call, verification included). Then actions that are no symmetries and must fail their verification.

Exits with 1 when a network has other factors than the tests expect, a residual is above its tolerance, or a wrong action passes.
"""

import argparse
import collections
import sys
import time
import warnings

from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxsym as js
from jaxsym.catalogue import find
from jaxsym.studies.symmetry_zoo import written
from jaxsym.symmetry.group import readable
from tests.symmetry.networks import BUILDERS, Network
from tests.symmetry.wrong import WRONG


def row(name: str, network: Network) -> tuple[tuple[str, ...], bool]:
    """One network's figures, and whether they are as they must be."""
    apply, params, inputs, expected = network
    start = time.perf_counter()
    sym = js.discover(apply, params, *inputs)
    seconds = time.perf_counter() - start
    counted = dict(collections.Counter((f.kind, f.size, f.copies) for f in sym.factors))
    fine, coarse = (js.verify(apply, sym, params, *inputs, precision=p) for p in ("float64", "float32"))
    good = counted == expected and fine.ok and coarse.ok and sym.verified
    residuals = [f"{v.residual:.1e}" for v in (fine, coarse)]
    figures = (written(sym.factors), readable(sym.order), str(sym.dim), *residuals, f"{seconds:.1f}")
    return (name, *figures, "ok" if good else "[red]FAILED[/]"), good


def main(names: list[str]) -> int:
    """Print both tables."""
    console, good = Console(width=max(Console().width, 150)), True
    table = Table("network", "group", "elements", "dim", "float64", "float32", "s", "", title="what is found")
    for name in track(names or list(BUILDERS), "networks", console=Console(stderr=True)):
        figures, right = row(name, find(BUILDERS, name, "network")())
        table.add_row(*figures)
        good &= right
    console.print(table)
    if names:
        return int(not good)
    wrong = Table("action", "residual", "", title="what must fail")
    for name, build in WRONG.items():
        apply, sym, params, inputs = build()
        verification = js.verify(apply, sym, params, *inputs)
        wrong.add_row(name, f"{verification.residual:.1e}", "[red]PASSED[/]" if verification.ok else "fails")
        good &= not verification.ok
    console.print(wrong)
    return int(not good)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="only these")
    warnings.simplefilter("error")
    sys.exit(main(parser.parse_args().networks))
