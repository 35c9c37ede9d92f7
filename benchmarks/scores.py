"""What ``ensemble.py`` prints: times, limits, costs, and the goals held against what was measured."""

import statistics
from pathlib import Path
from typing import Any

from contenders import BY_HAND, FUNC, KINDS, MODULES, OURS, PLAIN, Shape
from rich.console import Console
from rich.table import Table

GOALS = {PLAIN: 2.0, FUNC: 4.5, MODULES: 20.0}  # geometric means over the four shapes


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times as long as ours each peer takes; the faster of both programs counts as ``jit(vmap)``."""
    medians = {name: times["median"] for name, times in row["times"].items()}
    medians[PLAIN] = min(medians[PLAIN], medians.pop(BY_HAND, medians[PLAIN]))
    own = medians.pop(OURS)
    return {name: median / own for name, median in medians.items()}


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Goal by goal: what was to be reached, what was measured, and whether that is enough."""
    found = []
    for kind in KINDS:
        mine = [ratios(row) for row in rows if row["kind"] == kind]
        if not mine:
            continue
        means = {peer: statistics.geometric_mean(r[peer] for r in mine) for peer in GOALS if peer in mine[0]}
        entries = [(f"{peer}, geometric mean", GOALS[peer], mean) for peer, mean in means.items()]
        entries.append((f"{PLAIN}, worst shape", 1.0, min(r[PLAIN] for r in mine)))
        found += [
            {"task": KINDS[kind], "against": name, "goal": goal, "measured": value, "reached": value >= goal}
            for name, goal, value in entries
        ]
    return found


def limits(console: Console, peaks: dict[str, dict[str, float]]) -> None:
    table = Table("", "matrix product GFLOP/s", "copy or triad GB/s", title="limits of this machine, float32")
    for name, peak in peaks.items():
        table.add_row(name, f"{peak['flops'] / 1e9:.0f}", f"{peak['bytes'] / 1e9:.1f}")
    console.print(table)


def times(console: Console, title: str, rows: list[dict[str, Any]], peaks: dict[str, dict[str, float]]) -> None:
    """A section a shape, a row a contender."""
    if not rows:
        return
    most = max(peak["flops"] for peak in peaks.values())
    names = ["tune s", "compile s", "median ms", "fastest - slowest", "times ours", "GFLOP/s", "of the peak"]
    table = Table("shape, batch, networks", "contender", title=title)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        shape = Shape(**row["shape"])
        labels = [f"{shape} B{shape.batch} x {shape.networks}"]
        labels += [] if row["kind"] == "hvp" else [f"{shape.steps} steps"]
        labels += [f"results within {row['difference']:.0e}"]
        own = row["times"][OURS]["median"]
        for name, t in row["times"].items():
            rate = row["flops"] / t["median"]
            taken = round(shape.networks / t["scaled"])
            table.add_row(
                labels.pop(0) if labels else "",
                name,
                f"{t['tuning']:.2f}" if t["choice"] else "",
                f"{t['compiling']:.2f}",
                f"{1000 * t['median']:.2f}",
                f"{1000 * t['fastest']:.2f} - {1000 * t['slowest']:.2f}",
                f"{t['median'] / own:.2f}",
                f"{rate / 1e9:.2f}",
                f"{rate / most:.2%}",
                f"{taken} networks, scaled" if t["scaled"] > 1 else t["choice"],
            )
        table.add_section()
    console.print(table)


def costs(console: Console, more: dict[str, Any]) -> None:
    shape = Shape(**more["shape"])
    peers = list(more["seconds"])
    table = Table("networks", *(f"{name}{unit}" for name in peers for unit in (" s", ", us a network")))
    table.title = f"more networks: {shape} B{shape.batch}, {shape.steps} steps of SGD"
    for i, count in enumerate(more["networks"]):
        figures = [(more["seconds"][name][i], 1e6 * more["seconds"][name][i] / count) for name in peers]
        table.add_row(str(count), *(text for a, b in figures for text in (f"{a:.4f}", f"{b:.1f}")))
    console.print(table)
    console.print(f"{OURS}: the dearest network costs {more['each']:.2f} times the cheapest.")
    table = Table("program", *(f"{n} networks, MiB" for n in more["memory"][PLAIN]), title="temporary memory, a device")
    for name, sizes in more["memory"].items():
        table.add_row(name, *(f"{size / 2**20:.2f}" for size in sizes.values()))
    console.print(table)


def draw(more: dict[str, Any], path: Path) -> None:
    """Seconds against networks, with the line on which twice as many take twice as long."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    counts, shape = more["networks"], Shape(**more["shape"])
    for name, seconds in more["seconds"].items():
        axes.loglog(counts, seconds, "o-", label=name)
    largest = more["seconds"][OURS][-1] / counts[-1]
    axes.loglog(counts, [largest * count for count in counts], "k:", linewidth=1, label="linear")
    axes.set(xlabel="networks", ylabel="seconds", title=f"{shape} B{shape.batch}, {shape.steps} steps of SGD")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
