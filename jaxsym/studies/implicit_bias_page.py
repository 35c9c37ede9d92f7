"""The page of the study ``implicit_bias``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed

SHOWN = {
    "test_error": "test error",
    "rank": "effective rank",
    "norm": "nuclear norm",
    "sharpness": "sharpness",
}

FORGOTTEN = 0.3
"""A rank correlation of start and end below this, in size, counts as none."""


def page(data: xr.Dataset, summary: Mapping[str, Any], predicted: Mapping[float, int], fitted: float) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_minima(data, summary, fitted), _noise(data, summary), _collapse(data, summary, predicted)]


def _minima(data: xr.Dataset, summary: Mapping[str, Any], fitted: float) -> Section:
    kinds = [str(name) for name in data["kind"].values]
    figure, axes = plots.panels(len(SHOWN) * len(kinds), width=13, height=2.6, columns=len(SHOWN))
    rows, levels = [], data["level"].values
    for row, kind in enumerate(kinds):
        own = data.sel(kind=kind)
        middle = own["charge"].median("network").values
        for column, (key, label) in enumerate(SHOWN.items()):
            ax = axes[row * len(SHOWN) + column]
            values = own[key].values
            across = np.broadcast_to(levels, values.shape)
            ax.scatter(across.ravel(), values.ravel(), s=4, alpha=0.25, color=plots.COLOURS[4], linewidths=0)
            ax.plot(levels, np.median(values, axis=0), "o-", color=plots.COLOURS[0], markersize=4)
            if key in ("test_error", "sharpness"):
                plots.logarithmic(ax, "y")
            ax.set(title=f"{kind}: {label}", xlabel="distance from balance")
        for index in (0, len(middle) // 2, len(middle) - 1):
            at = own.isel(level=index).median("network")
            rows.append(
                (
                    kind,
                    f"{middle[index]:.3g}",
                    *(f"{float(at[key]):.3g}" for key in SHOWN),
                    f"{float(at['charge_at_end']):.3g}",
                    f"{float(at['loss']):.1e}",
                )
            )
    found = [
        f"{kind} {value:.2f} ({share:.0%} of the runs fitted their data)"
        for kind, value, share in zip(kinds, summary["charge_test_error_correlations"], summary["fitted"], strict=True)
    ]
    return Section(
        "One function, many starts",
        [
            f"{data.sizes['network']} networks of each kind, each from {data.sizes['level']} points of its orbit, from balanced to very unbalanced: the same function, the same data, other charges. Gradient descent, at half of"
            " what the sharpness at the start allows.",
            f"Rank correlation (Spearman) of the charge at the start (the norm of all charges) with the test error at the end, among the starts of one network that fitted their data (a training loss below"
            f" {fitted:g}; at least three), which have the same problem, in the mean over networks: {listed(found)}. Picture and table show all runs, fitted or not.",
            "The effective rank is the exponential of the entropy of the singular values, the nuclear norm their sum: of the product of both layers where the network is linear; otherwise of the first kernel, each unit's column times the norm of what it writes.",
        ],
        tables=[
            Table(
                ("kind", "charge at the start", *SHOWN.values(), "charge at the end", "training loss"),
                rows,
                "Medians over networks: the most balanced, a middling and the least balanced starts.",
            )
        ],
        pictures=[
            Picture(
                "minima",
                figure,
                "A dot is a run; lines join the medians. The distance is the logarithm of the factor by which what units read is larger than at balance, where all charges are 0.",
                f"{listed(list(SHOWN.values()))} at the end of training against how far from balance it started, for {listed(kinds)}.",
            )
        ],
    )


def _noise(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, (left, right) = plots.panels(2, width=11)
    steps = data["record"].values
    starts = np.log(data["noise_start"].values)
    for line, place in zip(data["noise_ratio"].values, (starts - starts.min()) / np.ptp(starts), strict=True):
        left.plot(steps, line, linewidth=0.5, alpha=0.6, color=(0.0, 0.3 + 0.4 * place, 0.8 - 0.6 * place))
    left.set_yscale("log")
    expected = summary["noise_ratio_predicted"]
    left.axhline(expected, color="black", linewidth=1, linestyle="--")
    left.set(xlabel="step", ylabel="|u|² / v²")
    right.scatter(data["noise_start"], data["noise_end"], s=10, color=plots.COLOURS[0])
    right.axhline(expected, color="black", linewidth=1, linestyle="--")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set(xlabel="at the start", ylabel="geometric mean over the second half")
    rank = summary["noise_ratio_start_correlation"]
    verdict = (
        "they have forgotten where they began"
        if abs(rank) < FORGOTTEN
        else "they have not forgotten where they began: more steps are wanted"
    )
    return Section(
        "Where noise drives an unbalanced layer",
        [
            f"One linear unit v u·x with {expected} normal inputs, SGD with one row a step and noisy labels. By the law of a step each update changes the charge by what the squared gradients of both layers differ by, so that it drifts until"
            f" these are equal in the mean: |u|² = {expected} v². From ratios between {float(data['noise_start'].min()):.2g} and {float(data['noise_start'].max()):.2g} the networks end at {summary['noise_ratio']:.2f} in the (geometric) mean;"
            f" the rank correlation of start and end is {rank:.2f}: {verdict}.",
        ],
        pictures=[
            Picture(
                "noise",
                figure,
                "One line, and one dot, a network. Dashed: where the squared gradients are equal in the mean.",
                f"Ratios of squared norms of two layers along noisy training from different starts, which come together near {summary['noise_ratio']:.2f}.",
            )
        ],
    )


def _collapse(data: xr.Dataset, summary: Mapping[str, Any], predicted: Mapping[float, int]) -> Section:
    figure, (ax,) = plots.panels(1, width=7)
    decays = data["decay"].values
    ax.plot(decays, [predicted[float(d)] for d in decays], "_", markersize=22, color="black", label="predicted")
    ax.plot(decays, data["alive"].mean("network"), "o", color=plots.COLOURS[0], label="singular values, linear")
    ax.plot(decays, data["units"].mean("network"), "x", color=plots.COLOURS[1], label="units, products u v")
    ax.plot(
        decays, data["directions"].mean("network"), "s", color=plots.COLOURS[2], markersize=5, label="directions, tanh"
    )
    ax.set_xscale("log")
    ax.set_xticks(list(decays), [f"{d:g}" for d in decays])
    ax.minorticks_off()
    ax.set(xlabel="weight decay", ylabel="left at the end")
    plots.legend(ax)
    rows = [
        (
            f"{float(d):g}",
            f"{predicted[float(d)]}",
            f"{float(data['alive'].sel(decay=d).mean()):.2f}",
            *(f"{float(data[key].sel(decay=d).mean()):.2f}" for key in ("units", "directions")),
        )
        for d in decays
    ]
    return Section(
        "Mirror symmetry and weight decay",
        [
            "A unit whose signs can be flipped is its own mirror image at 0, where its gradient vanishes: weight decay pulls it there, and what it gives to the loss is all that holds it. For products u v, and for the singular values of a"
            f" linear network, the minimum is smaller by the decay than what is to be fitted, and 0 where that would be negative. As many as that are left in {summary['collapse_agreement']:.0%} of the runs of both.",
            f"For tanh networks there is no such prediction: their units read {float(data['directions'].isel(decay=0).mean()):.1f} directions at the smallest decay and {float(data['directions'].isel(decay=-1).mean()):.1f} at the largest.",
        ],
        tables=[
            Table(
                ("weight decay", "predicted", "singular values, linear", "units, products", "directions, tanh"),
                rows,
                "Means over networks.",
            )
        ],
        pictures=[
            Picture(
                "collapse",
                figure,
                "Means over networks.",
                "Singular values of linear networks, units of products and directions of tanh networks that are left by weight decay, beside the prediction.",
            )
        ],
    )
