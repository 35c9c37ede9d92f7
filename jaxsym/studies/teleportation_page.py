"""The page of the study ``teleportation``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed

FLOOR = 1e-32  # of what is drawn on a logarithmic axis
ROUNDING = 1e-12
WAYS = {"plain": "none", "teleport": "the largest gradient", "random": "at random"}
NAMES = {"booth": "Booth", "rosenbrock": "Rosenbrock", "regression": "regression", "mnist_5k": "MNIST, 5000 images"}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_planes(data, summary), *(_task(data, summary, str(task)) for task in data["task"].values)]


def _planes(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, axes = plots.panels(2, width=11)
    rows = []
    for ax, name in zip(axes, ("booth", "rosenbrock"), strict=True):
        curves = data[f"{name}_loss"]
        steps = np.arange(curves.sizes[f"{name}_step"])
        plots.bands(ax, steps, {label: np.maximum(curves.sel(way=way).values, FLOOR) for way, label in WAYS.items()})
        ax.set_yscale("log")
        ax.set(title=NAMES[name], xlabel="step")
        last = curves.isel({f"{name}_step": -1})
        rows.append((NAMES[name], *(f"{float(last.sel(way=way).median()):.4g}" for way in WAYS)))
    axes[0].set_ylabel("value")
    plots.legend(axes[0], title="rotations")
    change = summary["teleport_loss_change_max"]
    return Section(
        "Functions of two parameters",
        [
            "Both functions are a sum of two squares, so that rotations of the two terms change nothing. Gradient descent from the published start; a rotation to the largest gradient"
            f" before the update of index 4 (Booth), and before each hundredth (Rosenbrock). Booth ends at {summary['booth_plain']:.5g} without and {summary['booth_teleport']:.3g} with it,"
            f" Rosenbrock at {summary['rosenbrock_plain']:.5g} and {summary['rosenbrock_teleport_median']:.2g} (with random rotations {summary['rosenbrock_random_median']:.2g}, in the"
            f" median of {data.sizes['network']}).",
            f"No teleport, here or below, changed its loss by more than {change:.1e} in float64: {'rounding' if change < ROUNDING else 'more than rounding'}.",
        ],
        tables=[
            Table(
                ("function", *WAYS.values()),
                rows,
                "Median value at the end.",
                groups=(("", 1), ("rotations", len(WAYS))),
            )
        ],
        pictures=[
            Picture(
                "planes",
                figure,
                "Median and middle 90%.",
                "Values of the Booth and Rosenbrock functions along gradient descent, without rotations, with those to the largest gradient, and at random.",
            )
        ],
    )


def _times(data: xr.Dataset, task: str, optimizer: str, *, moves: bool) -> np.ndarray:
    """Seconds of one network at each record: steps cost alike, and teleports what runs with them took longer, each alike."""
    seconds = data[f"{task}_seconds"].sel(optimizer=optimizer)
    steps = data[f"{task}_step"].values
    plain = steps / steps[-1] * float(seconds.sel(teleports=False))
    if not moves:
        return np.asarray(plain)
    due, every = int(data[f"{task}_due"]), int(data[f"{task}_every"])
    more = float(seconds.sel(teleports=True) - seconds.sel(teleports=False))
    done = np.minimum(np.maximum(steps - 1, 0) // every, due)
    return np.asarray(plain + more * done / max(due, 1))


def _task(data: xr.Dataset, summary: Mapping[str, Any], task: str) -> Section:
    optimizers = [str(name) for name in data["optimizer"].values]
    figure, axes = plots.panels(2 * len(optimizers), width=11, height=2.8, columns=len(optimizers))
    curves = data[f"{task}_loss"]
    rows, lower, sooner = [], [], []
    for column, name in enumerate(optimizers):
        own = curves.sel(optimizer=name)
        labels = {"without": False, "with teleports": True}
        plots.bands(
            axes[column],
            data[f"{task}_step"].values,
            {label: own.sel(teleports=moves).values for label, moves in labels.items()},
        )
        below = axes[len(optimizers) + column]
        middles = {}
        for colour, (label, moves) in zip(plots.COLOURS, labels.items(), strict=False):
            times = 1e3 * _times(data, task, name, moves=moves)
            middles[moves] = times, own.sel(teleports=moves).median("network").values
            below.plot(times, middles[moves][1], color=colour, label=label)
        for ax in (axes[column], below):
            ax.set_yscale("log")
        axes[column].set(title=name, xlabel="step")
        below.set(xlabel="milliseconds a network")
        last = own.isel({f"{task}_record": -1}).median("network")
        test = data[f"{task}_test"].sel(optimizer=name).median("network")
        seconds = data[f"{task}_seconds"].sel(optimizer=name)
        rows.append(
            (
                name,
                *(f"{float(last.sel(teleports=m)):.4g}" for m in (False, True)),
                *(f"{float(test.sel(teleports=m)):.4g}" for m in (False, True)),
                *(f"{1e3 * float(seconds.sel(teleports=m)):.3g}" for m in (False, True)),
            )
        )
        if float(last.sel(teleports=True)) < float(last.sel(teleports=False)):
            lower.append(name)
        end = middles[False][0][-1]
        if np.interp(end, *middles[True]) < middles[False][1][-1]:
            sooner.append(name)
    for ax in (axes[0], axes[len(optimizers)]):
        ax.set_ylabel("training loss")
    plots.legend(axes[0])
    due, times = int(data[f"{task}_due"]), summary[f"{task}_time_ratios"]
    bounded = float(data[f"{task}_bounded"].mean())
    return Section(
        f"Networks: {NAMES[task]}",
        [
            f"{data.sizes['network']} networks of each optimizer, with {due} teleports early in training and without. After as many steps the median training loss is lower with teleports for"
            f" {listed(lower) if lower else 'none of the optimizers'}; after as much time (of a run without) for {listed(sooner) if sooner else 'none'}. A run with teleports takes"
            f" {min(times):.2f} to {max(times):.2f} times as long.",
            f"At the start one teleport makes the gradient's norm larger by {summary[f'{task}_gradient_gain']:.0%} (median); the trust region ended it in {bounded:.0%} of the networks, where the norm grows on.",
        ],
        tables=[
            Table(
                ("optimizer", *(("without", "with") * 3)),
                rows,
                "Medians at the end; time of a run in milliseconds a network, all networks together in one program.",
                groups=(("", 1), ("training loss", 2), ("test loss", 2), ("time", 2)),
            )
        ],
        pictures=[
            Picture(
                task,
                figure,
                "Above: median and middle 90% against steps. Below: medians against measured time.",
                f"Training loss of {NAMES[task]} against step and against time for {listed(optimizers)}, with and without teleports.",
            )
        ],
    )
