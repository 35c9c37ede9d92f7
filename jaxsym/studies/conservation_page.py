"""The page of the study ``conservation``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed

FLOOR = 1e-18  # of what is drawn on a logarithmic axis
ROUNDING = 1e-13
"""An error of the exact laws up to this is rounding: charges are of the order of 1."""


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_drift(data, summary), _laws(data, summary), _curves(data)]


def _kinds(data: xr.Dataset) -> list[str]:
    return [str(name) for name in data["kind"].values]


def _drift(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    rates = data["rate"].values
    figure, (left, right) = plots.panels(2, width=11)
    for name, colour in zip(_kinds(data), plots.COLOURS, strict=False):
        values = data["drift"].sel(kind=name).values
        for line in values[:20]:
            left.plot(rates, line, color=colour, linewidth=0.4, alpha=0.3)
        left.plot(rates, np.median(values, axis=0), "o-", color=colour, label=name, markersize=4)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xticks(list(rates), [f"{rate:g}" for rate in rates])
    left.minorticks_off()
    left.set(title="SGD", xlabel="learning rate", ylabel="drift of the charges at time 1")
    plots.legend(left)
    series = {}
    for name in _kinds(data):
        own = data.sel(kind=name)
        series[f"{name}: Adam"] = own["adam_drift"].values
        series[f"{name}: flow"] = np.maximum(own["flow_drift"].values, FLOOR)
    plots.distributions(right, series)
    right.set_xscale("log")
    right.set(title="Adam, and gradient flow", xlabel="drift of the charges")
    slopes = [f"{name} {slope:.2f}" for name, slope in zip(_kinds(data), summary["drift_slopes"], strict=True)]
    rows = [
        (
            name,
            f"{int(data['count'].sel(kind=name))}",
            f"{int(data['without'].sel(kind=name))}",
            f"{float(data['initial'].sel(kind=name).median()):.3g}",
            *(f"{float(value):.2g}" for value in data["drift"].sel(kind=name).median("network").values),
            f"{float(data['adam_drift'].sel(kind=name).median()):.2g}",
            f"{float(data['flow_drift'].sel(kind=name).median()):.1e}",
        )
        for name in _kinds(data)
    ]
    return Section(
        "What drifts, and how fast",
        [
            f"{data.sizes['network']} networks of each kind. Gradient flow conserves every charge of the group. SGD does not: at a fixed time the charges have"
            f" drifted in proportion to the learning rate to the power {summary['drift_slope']:.2f} (in the middle of the kinds; {listed(slopes)}; theory says 1)."
            f" By Runge and Kutta's method the same flow drifts by {summary['flow_drift_over_sgd']:.1e} of what SGD does at the smallest rate (in the median network of the"
            " kind in which that is most).",
            f"Adam breaks the charges: at the smallest of these rates, too, and after as many steps, they have moved {summary['adam_drift_over_sgd']:.0f} times as far as by SGD"
            " (the median over networks of that ratio, in the kind in which it is least).",
        ],
        tables=[
            Table(
                (
                    "kind",
                    "charges",
                    "generators without",
                    "|Q| at first",
                    *(f"{rate:g}" for rate in rates),
                    "Adam",
                    "flow",
                ),
                rows,
                "Medians over networks of the drift's norm.",
                groups=(("", 4), ("SGD at the rate", len(rates)), ("", 2)),
            )
        ],
        pictures=[
            Picture(
                "drift",
                figure,
                "Left: thin lines are networks, thick ones medians. Right: one dot a network.",
                f"Drift of the charges against the learning rate on logarithmic axes, with slopes {listed(slopes)}; and by Adam and gradient flow for each kind.",
            )
        ],
    )


def _laws(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, (ax,) = plots.panels(1, width=8, height=4)
    series = {}
    for name in _kinds(data):
        series[f"{name}: SGD"] = np.maximum(data["law_error"].sel(kind=name).values, FLOOR)
        series[f"{name}: momentum"] = np.maximum(data["momentum_law_error"].sel(kind=name).values, FLOOR)
    plots.distributions(ax, series)
    ax.set_xscale("log")
    ax.set(xlabel=f"largest error over {data.sizes['step'] - 1} steps")
    worst = max(summary["step_law_max_error"], summary["momentum_law_max_error"])
    return Section(
        "The exact law of a step",
        [
            "A step of SGD with weight decay takes a quadratic charge to (1 - lr wd)^2 Q + lr^2 Q(g), a linear one to (1 - lr wd) Q, whatever the minibatch. Over"
            f" {data.sizes['step'] - 1} steps with minibatches and weight decay the law errs by at most {summary['step_law_max_error']:.1e}, with momentum by"
            f" {summary['momentum_law_max_error']:.1e}, in float64: {'rounding' if worst < ROUNDING else 'more than rounding'}.",
            f"Gradient flow with weight decay has exp(-2 wd t) Q in closed form: Runge and Kutta's method ends within {summary['flow_decay_error']:.1e} of it (the"
            " kind that is worst, median over networks).",
        ],
        pictures=[
            Picture(
                "laws",
                figure,
                "One dot a network: the worst of all its charges and steps.",
                f"Errors of the exact laws for each kind, with and without momentum: at most {worst:.1e}.",
            )
        ],
    )


def _curves(data: xr.Dataset) -> Section:
    names = _kinds(data)
    figure, axes = plots.panels(len(names), width=11, height=2.8)
    steps = data["step"].values
    shown = []
    for ax, name in zip(axes, names, strict=True):
        count = int(data["count"].sel(kind=name))
        own = data.sel(kind=name).isel(network=0)
        measured, said = own["charges"].values[:, :count], own["law"].values[:, :count]
        for i in range(count):
            ax.plot(steps, measured[:, i], color=plots.COLOURS[i % len(plots.COLOURS)], linewidth=1)
            ax.plot(steps[::40], said[::40, i], ".", color="0.2", markersize=2.5)
        ax.set(title=f"{name}: {count} charges", xlabel="step")
        shown.append(f"{count} of {name}")
    axes[0].set_ylabel("charge")
    return Section(
        "Charges over training",
        [
            "Every charge of the first network of each kind under SGD with minibatches and weight decay. Under gradient flow without decay all lines would be level."
        ],
        pictures=[
            Picture(
                "charges",
                figure,
                "Lines: measured. Dots: as the law says from the step before.",
                f"Charges over {len(steps) - 1} steps of training, {listed(shown)}, with the values of the law on top.",
            )
        ],
    )
