"""Seconds and memory of ``jaxsym.discover``: ``python benchmarks/discover.py``.

There is no peer to compare with: nothing else reads a symmetry group off a jaxpr, so the figures are held against bounds instead.
Every case has a process of its own, and its first call counts: tracing and compiling are in the seconds. The import of jax and jaxsym is
timed apart, the parameters are made before the clock starts; the peak of the memory is the whole process's, with what the imports alone
need beside it.
The MLP has arrays and is verified; the transformers and the ResNet-50 have shapes alone.

Exits with 1 when a case fails, runs out of time or misses its bounds.
"""

import argparse
import functools
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

Network = tuple[Callable[..., Any], Any, tuple[Any, ...]]
DEPTHS = (3, 6, 12, 24)
PATIENCE = 900  # seconds, for one case
SECONDS = {"mlp": 1.0, "transformer 12": 20.0, "resnet 50": 20.0}
MEBIBYTES = {"transformer 12": 1024.0, "resnet 50": 1024.0}


def mlp() -> Network:
    import jax

    import jaxsym

    net, x = jaxsym.models.MLP((256, 128, 10), activation="relu"), jax.random.normal(jax.random.key(1), (2, 784))
    return net.apply, net.init(jax.random.key(0), x), (x,)


def shapes(net: Any, *inputs: Any) -> Network:
    import jax

    return net.apply, jax.eval_shape(net.init, jax.random.key(0), *inputs), inputs


def transformer(layers: int) -> Network:
    import jax

    import jaxsym

    net = jaxsym.models.Transformer(50257, width=768, heads=12, layers=layers, hidden=3072, length=128)
    return shapes(net, jax.ShapeDtypeStruct((2, 128), jax.numpy.int32))


def resnet() -> Network:
    import jax

    import jaxsym

    return shapes(jaxsym.models.ResNet50(), jax.ShapeDtypeStruct((1, 224, 224, 3), jax.numpy.float32))


CASES: dict[str, Callable[[], Network]] = {
    "mlp": mlp,
    "resnet 50": resnet,
    **{f"transformer {layers}": functools.partial(transformer, layers) for layers in DEPTHS},
}


def peak() -> float:
    """The largest memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def num_equations(jaxpr: Any) -> int:
    """Equations of a jaxpr, those of its sub-jaxprs in place of the calls."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple) else (value,))]
        inner = [value for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]
        total += sum(map(num_equations, inner)) if inner else 1
    return total


def measure(case: str) -> dict[str, Any]:
    """The figures of one case, in this process."""
    start = time.perf_counter()
    import jax

    import jaxsym.models
    import jaxsym.symmetry

    imported, base = time.perf_counter() - start, peak()
    apply, params, inputs = CASES[case]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        sym = jaxsym.symmetry.discover(apply, params, *inputs)
        seconds, most = time.perf_counter() - start, peak()
    return {
        "import": imported,
        "seconds": seconds,
        "base": base,
        "peak": most,
        "equations": num_equations(jax.make_jaxpr(apply)(params, *inputs)),
        "factors": len(sym.factors),
        "digits": math.log10(sym.order),
        "dim": sym.dim,
        "verified": sym.verified,
        "warnings": sorted({str(warning.message) for warning in caught}),
    }


def run(case: str) -> dict[str, Any]:
    """The figures of one case, in a process of its own; an error's last line instead."""
    command = [sys.executable, __file__, "--case", case]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {PATIENCE} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def within(case: str, figures: dict[str, Any]) -> tuple[bool, str]:
    """Whether the figures keep the bounds of their case, and that in words."""
    bounds = [
        (figures[name], table[case], unit)
        for name, table, unit in (("seconds", SECONDS, "s"), ("peak", MEBIBYTES, "MiB"))
        if case in table
    ]
    words = [f"< {bound:g} {unit}: {'pass' if value < bound else 'FAIL'}" for value, bound, unit in bounds]
    return all(value < bound for value, bound, _ in bounds), ", ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="measure this one here, and print its figures as JSON")
    chosen = parser.parse_args().case
    if chosen:
        print(json.dumps(measure(chosen)))
        return 0

    console = Console(width=160)
    names = [
        "import s",
        "seconds",
        "imports MiB",
        "peak MiB",
        "equations",
        "factors",
        "order, log10",
        "dim",
        "verified",
    ]
    table = Table("case", *names, "bounds", title="jaxsym.discover, first call")
    good = True
    results: dict[str, dict[str, Any]] = {}
    for case in CASES:
        figures = results[case] = run(case)
        if "error" in figures:
            good = False
            table.add_row(case, *["-"] * len(names), figures["error"])
            continue
        kept, words = within(case, figures)
        good = good and kept
        table.add_row(
            case,
            *(f"{figures[name]:.2f}" for name in ("import", "seconds")),
            *(f"{figures[name]:.0f}" for name in ("base", "peak")),
            *(f"{figures[name]:,}" for name in ("equations", "factors")),
            f"{figures['digits']:,.1f}",
            f"{figures['dim']:,}",
            "yes" if figures["verified"] else "no",
            words,
        )
    console.print(table)

    depths = Table("layers", "equations", "seconds", "ms an equation", title="transformers by depth")
    for layers in DEPTHS:
        figures = results[f"transformer {layers}"]
        if "error" not in figures:
            seconds, equations = figures["seconds"], figures["equations"]
            depths.add_row(str(layers), f"{equations:,}", f"{seconds:.2f}", f"{1000 * seconds / equations:.2f}")
    console.print(depths)
    for case, figures in results.items():
        for message in figures.get("warnings", ()):
            console.print(f"{case}: {message}", markup=False)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
