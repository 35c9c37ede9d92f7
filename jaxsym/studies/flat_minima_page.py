"""The page of the study ``flat_minima``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.curvature.null_space import CONTAINED
from jaxsym.studies.study import Picture, Section, Table, listed

SOLVED = 1e-18
"""A mean squared error below this counts as zero; targets have a variance of about 1."""
FLOOR = 1e-18  # of what is drawn on a logarithmic axis
SHOWN = 30  # largest eigenvalues of the digits


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _null_spaces(data, summary),
        _containment(data, summary),
        _outliers(data, summary),
        _sharpness(data, summary),
    ]


def _null_spaces(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name in data["kind"].values]
    solved = dict(zip(names, summary["solved"], strict=True))
    networks = int(data.sizes["network"])
    agreement = summary["rank_formula_agreement"]
    figure, axes = plots.panels(len(names), height=2.3, columns=4, width=13)
    rows, explained = [], []
    for ax, name in zip(axes, names, strict=True):
        own = data.sel(kind=name)
        num = int(own["parameters"])
        ok = (own["loss"] <= SOLVED).values
        values = np.abs(own["eigenvalues"].values[:, :num])
        sizes = np.sort(values, axis=1)[:, ::-1]
        sizes = np.maximum(sizes / sizes[:, :1], FLOOR)
        if not ok.any():
            ax.text(0.5, 0.5, "none at zero loss", transform=ax.transAxes, ha="center", fontsize=8)
        for line in sizes[ok][:20]:
            ax.plot(np.arange(1, num + 1), line, color=plots.COLOURS[0], linewidth=0.6, alpha=0.5)
        ax.set_yscale("log")
        ax.set(title=name, ylim=(FLOOR / 2, 3), xlim=(0, num + 1), xlabel="index")
        formula = float(own["formula"])
        if np.isfinite(formula):
            ax.axvline(formula + 0.5, color=plots.COLOURS[1], linewidth=1)
        told = {
            key: _most(own[key].values[ok]) for key in ("rank", "nullity", "orbit_dim", "hidden", "on_data", "beyond")
        }
        rows.append(
            (
                name,
                f"{num}",
                f"{int(own['dim'])}",
                f"{solved[name]:.0%}",
                told["rank"],
                "" if np.isnan(formula) else f"{formula:.0f}",
                told["nullity"],
                told["orbit_dim"],
                told["hidden"],
                told["on_data"],
                told["beyond"],
            )
        )
        if told["nullity"] not in ("", told["orbit_dim"]):
            explained.append(name)
    axes[0].set_ylabel("|eigenvalue| / largest")
    said = (
        f"All ranks at zero loss are those of the formulas, for {listed([n for n in names if np.isfinite(data['formula'].sel(kind=n))])}."
        if agreement == 1
        else "No network with a formula reached zero loss."
        if agreement is None
        else f"Of the networks at zero loss as few as {agreement:.0%} of a kind have the rank of their formula."
    )
    return Section(
        "Null spaces at zero loss",
        [
            f"{networks} networks of each kind, each with data and a start of its own, trained by Adam and polished by L-BFGS in float64. {said}",
            "What the group does not explain of a null space is split: changes of parameters that change no output at any input (hidden), none on the inputs of"
            " the data (on data: fewer equations than parameters), or outputs but not the loss (beyond)."
            + (
                f" There is more than the orbit for {listed(explained)}."
                if explained
                else " Nowhere is there more than the orbit."
            ),
        ],
        tables=[
            Table(
                (
                    "kind",
                    "parameters",
                    "dim of the group",
                    "at zero loss",
                    "rank",
                    "formula",
                    "nullity",
                    "orbit",
                    "hidden",
                    "on data",
                    "beyond",
                ),
                rows,
                "The most frequent values among the networks at zero loss.",
            )
        ],
        pictures=[
            Picture(
                "spectra",
                figure,
                "Sizes of the eigenvalues in units of the largest, up to 20 networks at zero loss of each kind; the line is the rank of the formula.",
                "Spectra of the Hessians of eight kinds of networks on a logarithmic axis: "
                + "; ".join(f"{row[0]}: rank {row[4] or 'unknown'} of {row[1]}" for row in rows)
                + ".",
            )
        ],
    )


def _most(values: np.ndarray) -> str:
    found, counts = np.unique(values, return_counts=True)
    return f"{int(found[counts.argmax()])}" if len(found) else ""


def _containment(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name, dim in zip(data["kind"].values, data["dim"].values, strict=True) if dim]
    contained, at_start = summary["orbit_contained"], summary["orbit_contained_at_start"]
    figure, (left, right) = plots.panels(2, width=11)
    for ax, prefix, title in ((left, "start_", "before training"), (right, "", "after training")):
        series = {name: np.maximum(data[f"{prefix}outside"].sel(kind=name).values, FLOOR) for name in names}
        plots.distributions(ax, series)
        ax.set_xscale("log")
        ax.axvline(CONTAINED, color="0.5", linewidth=1)
        ax.set(title=title, xlabel="sine of the worst generator's angle", xlim=(FLOOR / 3, 3))
    said = (
        "No network came to a critical point."
        if contained is None
        else (
            f"At critical points the orbit lies in the null space in {contained:.1%} of the networks with a continuous group"
        )
    )
    return Section(
        "The orbit is flat at critical points, and elsewhere it is not",
        [
            f"{said}; before training in {at_start:.1%}. What holds at every point is H xi = -(D xi)' grad L for every generator xi:"
            f" here to {summary['identity_error_max']:.1e} of |H| |xi|, before and after training.",
        ],
        pictures=[
            Picture(
                "containment",
                figure,
                "One dot a network; left of the grey line the orbit counts as contained.",
                f"How far the worst generator is from the null space before and after training, for {listed(names)}: large before,"
                f" and contained in {'none' if contained is None else format(contained, '.1%')} of the critical points after.",
            )
        ],
    )


def _outliers(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    values = data["digits_eigenvalues"].values[:, ::-1]
    classes, count = summary["classes"], summary["outliers_digits"]
    shown = min(SHOWN, values.shape[1])
    figure, (left, right) = plots.panels(2, width=11)
    plots.bands(left, np.arange(1, shown + 1), {"largest": np.maximum(values[:, :shown], 1e-12)})
    left.axvline(count + 0.5, color=plots.COLOURS[1], linewidth=1)
    left.set_yscale("log")
    left.set(title="largest eigenvalues", xlabel="index", ylabel="eigenvalue")
    every = values.ravel()
    scale = float(np.abs(every).max())
    edges = np.concatenate([-np.geomspace(scale, scale * 1e-6, 40), np.geomspace(scale * 1e-6, scale, 40)])
    right.hist(every, bins=list(edges), color=plots.COLOURS[0])
    right.set_xscale("symlog", linthresh=scale * 1e-6)
    right.set_yscale("log")
    right.set_xticks(
        [-scale, -scale * 1e-3, 0, scale * 1e-3, scale],
        [f"{v:.1g}" for v in (-scale, -scale * 1e-3, 0, scale * 1e-3, scale)],
    )
    right.set(title="all eigenvalues of all networks", xlabel="eigenvalue", ylabel="count")
    accuracy, loss = float(data["digits_accuracy"].mean()), float(data["digits_loss"].mean())
    compared = (
        "as many as classes less one"
        if count == classes - 1
        else "as many as classes"
        if count == classes
        else f"against {classes} classes"
    )
    return Section(
        "Bulk and outliers on the digits",
        [
            f"{data.sizes['network']} networks 64-10-10 on the digits (training loss {loss:.4f}, test accuracy {accuracy:.3f}):"
            f" {count} eigenvalues stand apart at the top in the median network ({summary['outliers_digits_mean']:.1f} on average), {compared}"
            f" of which there are {classes}. They are the eigenvalues above the widest gap, as a ratio, among the largest {2 * classes}."
        ],
        pictures=[
            Picture(
                "outliers",
                figure,
                "Left: median over networks with the middle 90 %; the line is below the outliers of the median network. Right: all of the spectrum.",
                f"The largest {shown} eigenvalues by index, with {count} outliers in the median network for {classes} classes, and a histogram of all eigenvalues"
                " with its bulk around zero.",
            )
        ],
    )


def _sharpness(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    logs = data["log"].values
    figure, (left, right) = plots.panels(2, width=11)
    raw = {"trace": "sharp_trace", "largest eigenvalue": "sharp_largest"}
    fixed = {
        "least trace": "sharp_least_trace",
        "least largest eigenvalue": "sharp_least_largest",
        "path norm": "sharp_path_norm",
        "effective dimension": "sharp_effective_dimension",
    }
    middle = int(np.argmin(np.abs(logs)))
    for ax, names, title in ((left, raw, "raw"), (right, fixed, "invariant")):
        for i, (name, key) in enumerate(names.items()):
            values = np.median(data[key].values / data[key].values[:, middle : middle + 1], axis=0)
            style, width = (
                ("-", 1.5) if ax is left else ((0, (3, 1 + i)), 7 - 1.7 * i)
            )  # on the right they cover each other
            ax.plot(np.exp(logs), values, color=plots.COLOURS[i], linestyle=style, linewidth=width, label=name)
        ax.set(title=title, xlabel="rescaling of one unit", ylabel="in units of where it was trained")
        plots.logarithmic(ax, "x")
        plots.legend(ax)
    left.set_yscale("log")
    right.set_ylim(0.5, 1.5)
    settled = float(data["sharp_trace_settled"].mean())
    return Section(
        "Sharpness along an orbit",
        [
            f"One unit of a ReLU network at zero loss is rescaled by {np.exp(logs[0]):.2g} to {np.exp(logs[-1]):.3g}: the same function all along, but the largest eigenvalue"
            f" changes by a factor of up to {summary['sharpness_largest_ratio']:.0f} and the trace by {summary['sharpness_trace_ratio']:.0f}; there is no bound. The"
            f" least trace over the orbit varies by {summary['least_trace_spread']:.1e} of itself (it is settled in {settled:.0%} of the searches), the path norm"
            f" by {summary['path_norm_spread']:.1e}, and the effective dimension by {summary['effective_dimension_spread']}."
        ],
        pictures=[
            Picture(
                "sharpness",
                figure,
                "Median over networks, each in units of its value at the trained point.",
                f"Along the orbit the raw trace and largest eigenvalue rise up to {summary['sharpness_trace_ratio']:.0f} and"
                f" {summary['sharpness_largest_ratio']:.0f} times; the least trace, path norm and effective dimension stay as they are.",
            )
        ],
    )
