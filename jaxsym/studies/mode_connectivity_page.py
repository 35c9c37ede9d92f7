"""The page of the study ``mode_connectivity``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.colors
import matplotlib.ticker
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxsym import plots
from jaxsym.studies.mode_connectivity_summary import MOVES, NAMES, architectures, claims, restated
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally

WORDS = {
    "naive": "as they are",
    "permutations": "permutations alone, by weights",
    "weights": "the whole group, by weights",
    "activations": "the whole group, by activations",
}
WRITTEN = {"relu": "ReLU"}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    sections = [_claims(data), _barriers(data, summary), _lines(data)]
    if architectures(data):
        sections.append(_architectures(data, summary))
    if "other_barrier" in data:
        sections.append(_other(data, summary))
    return [*sections, _merging(data, summary), _plane(data)]


def _claims(data: xr.Dataset) -> Section:
    found = claims(data)
    return Section(
        "What is said, and what was measured",
        [
            f"Perceptrons with three hidden layers on {data.attrs['data']}, {data.attrs['epochs']} epochs of Adam, trained from different keys: {data.sizes['pair']} pairs at each width. One of a pair is moved along its orbit towards the other, and the loss"
            " is taken on the straight line between them. The barrier is its largest excess over the chord.",
            tally(found),
        ],
        tables=[
            claims_table(
                found,
                "Over all pairs, widths and activations of perceptrons, where nothing else is said. In brackets: 95 % t interval over pairs. A claim holds when its whole interval is on its side, and does not when it is on the other.",
            )
        ],
    )


def _barriers(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    activations = [str(name) for name in data["activation"].values]
    widths = data["width"].values
    figure, axes = plots.panels(len(activations), width=11, height=3.8)
    rows = []
    for ax, activation in zip(axes, activations, strict=True):
        own = data["barrier"].sel(activation=activation)
        for colour, move in zip(plots.COLOURS, MOVES, strict=False):
            values = np.maximum(own.sel(move=move).values, FLOOR)
            ax.plot(widths, values.mean(axis=1), "o-", color=colour, markersize=4, label=WORDS[move])
            ax.scatter(np.repeat(widths, values.shape[1]), values.ravel(), s=8, color=colour, alpha=0.5)
        ax.set(title=WRITTEN.get(activation, activation), xlabel="width", ylabel="barrier of the training loss (nats)")
        ax.set_yscale("log")
        plots.logarithmic(ax, "x")
        ax.set_xticks(widths, [str(width) for width in widths])
        ax.minorticks_off()
        for width in widths:
            at = data.sel(activation=activation, width=width)
            rows.append((WRITTEN.get(activation, activation), str(width), *_means(at)))
    low, high = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(low), max(high))
        plots.logarithmic(ax, "y")
    plots.legend(axes[0])
    last = int(widths[-1])
    return Section(
        "Barriers against width",
        [
            f"ReLU networks of width {last}: {summary[f'barrier_naive_{last}']:.3g} nats as they are, {summary[f'barrier_permutations_{last}']:.3g} after permutations alone, {summary[f'barrier_weights_{last}']:.3g} after the whole group by weights, {summary[f'barrier_activations_{last}']:.3g} by activations (means over pairs)."
            f" Midway, after matching by activations, the test accuracy is {summary[f'midpoint_accuracy_{last}']:.1%}, at the ends {summary[f'endpoint_accuracy_{last}']:.1%}.",
            _worse(data),
        ],
        tables=[_heights(("activation", "width"), rows)],
        pictures=[
            Picture(
                "barriers",
                figure,
                f"A dot is a pair, a line their mean.{_floored(data['barrier'])}",
                f"Barrier of the training loss against the width for {listed(activations)}, in four ways of moving one network onto the other.",
            )
        ],
    )


FLOOR = 1e-3


def _floored(values: xr.DataArray) -> str:
    """What is said of values too small for a picture, where there are any."""
    return f" What is below {FLOOR:g} is drawn there." if bool((values < FLOOR).any()) else ""


def _worse(data: xr.Dataset) -> str:
    """Where more of the group does not bring a lower barrier, nor activations a lower one than weights."""
    mean = data["barrier"].mean("pair")
    cells = [
        (
            f"{WRITTEN.get(str(activation), activation)} at width {width}",
            mean.sel(activation=activation, width=width),
        )
        for activation in data["activation"].values
        for width in data["width"].values
    ]
    said = []
    for move, beside in (("weights", "permutations"), ("activations", "weights")):
        higher = [name for name, own in cells if float(own.sel(move=move)) > float(own.sel(move=beside))]
        first, second = (WORDS[name].replace(",", "") for name in (move, beside))
        where = f"for {listed(higher)}" if higher else "nowhere"
        said.append(f"{first} brings a higher barrier than {second} {where}")
    return f"In the mean over pairs, of the training loss, {'; '.join(said)}."


def _means(data: xr.Dataset, barrier: str = "barrier", error: str = "error_barrier") -> list[str]:
    """Barriers in all ways of moving, means over pairs: of the loss, and of the error in percentage points."""
    heights, errors = ([float(data[name].sel(move=move).mean()) for move in MOVES] for name in (barrier, error))
    return [*(f"{height:.3g}" for height in heights), *(f"{100 * height:.2g}" for height in errors)]


def _heights(first: tuple[str, ...], rows: Sequence[Sequence[str]]) -> Table:
    """Barriers of the loss and of the error."""
    return Table(
        (*first, *(WORDS[move] for move in MOVES), *(WORDS[move] for move in MOVES)),
        rows,
        "Means over pairs.",
        groups=(
            ("", len(first)),
            ("barrier of the training loss (nats)", len(MOVES)),
            ("barrier of the test error (percentage points)", len(MOVES)),
        ),
    )


def _along(data: xr.Dataset, panels: Mapping[str, xr.DataArray]) -> Figure:
    """The training loss along lines, a panel each."""
    figure, axes = plots.panels(len(panels), width=3.6 * max(2, len(panels)), height=3.4, columns=len(panels))
    for ax, (title, own) in zip(axes, panels.items(), strict=True):
        plots.bands(ax, data["point"].values, {WORDS[move]: own.sel(move=move).values for move in MOVES})
        ax.set(title=title, xlabel="from one network to the other")
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, 1.6 * top)
    axes[0].set_ylabel("training loss (nats)")
    plots.legend(axes[0], loc="upper left")
    return figure


def _lines(data: xr.Dataset) -> Section:
    relu = data["loss"].sel(activation="relu")
    widths = [int(width) for width in data["width"].values]
    return Section(
        "Along the lines",
        ["The training loss of ReLU networks between the two networks of a pair."],
        pictures=[
            Picture(
                "lines",
                _along(data, {f"width {width}": relu.sel(width=width) for width in widths}),
                "Median and middle 90 % of the pairs.",
                f"Training loss along straight lines between ReLU networks of widths {listed([str(width) for width in widths])}.",
            )
        ],
    )


def _architectures(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = architectures(data)
    said, barriers, about, panels = [], [], [], {}
    for name in names:
        own = data.sel(architecture=name)
        end, middle = (f"{summary[f'{where}_accuracy_{name}']:.1%}" for where in ("endpoint", "midpoint"))
        said.append(
            f"{NAMES[name][0].upper()}{NAMES[name][1:]}: {summary[f'barrier_naive_{name}']:.3g} nats as they are, {summary[f'barrier_permutations_{name}']:.3g} after permutations alone,"
            f" {summary[f'barrier_weights_{name}']:.3g} after the whole group by weights, {summary[f'barrier_activations_{name}']:.3g} by activations;"
            f" midway, after matching by activations, the test accuracy is {middle}, at the ends {end}."
        )
        panels[NAMES[name]] = own["architecture_loss"]
        barriers.append((NAMES[name], *_means(own, "architecture_barrier", "architecture_error_barrier")))
        if restated(data, name):
            said[-1] += (
                f" With statistics computed anew at every point of the line: {summary[f'barrier_naive_{name}_anew']:.3g} as they are,"
                f" {summary[f'barrier_weights_{name}_anew']:.3g} by weights, {summary[f'barrier_activations_{name}_anew']:.3g} by activations, and {summary[f'midpoint_accuracy_{name}_anew']:.1%} midway."
            )
            panels[f"{NAMES[name]}, anew"] = own["architecture_loss_anew"]
            rest = _means(own, "architecture_barrier_anew", "architecture_error_barrier_anew")
            barriers.append((f"{NAMES[name]}, statistics anew", *rest))
        distances = own["architecture_distance"].mean("pair")
        about.append(
            (
                NAMES[name],
                str(int(own["architecture_size"])),
                str(own["architecture_group"].item()),
                *(f"{float(distances.sel(move=move)):.3g}" for move in MOVES),
            )
        )
    return Section(
        "Other architectures",
        [
            f"On the same data as images, {data.attrs['architecture_epochs']} epochs of Adam, {data.sizes['pair']} pairs of each. The group is that of the network in training, so that where there are batch statistics, a network which is moved stays the same function when they are computed anew. Means over pairs:",
            *said,
        ],
        tables=[
            _heights(("architecture",), barriers),
            Table(
                ("architecture", "parameters", "factors of the group", *(WORDS[move] for move in MOVES)),
                about,
                "What the group of each is made of, as it was found, and how far apart two networks are, moved in every way: means over pairs, statistics among the parameters. Matching by weights brings networks as close as can be where they are balanced, which need not be closer here.",
                groups=(("", 3), ("distance", len(MOVES))),
            ),
        ],
        pictures=[
            Picture(
                "architectures",
                _along(data, panels),
                "Median and middle 90 % of the pairs. Anew: batch statistics computed over all training rows at every point, instead of the average of those of the two networks.",
                f"Training loss along straight lines between two networks, of each kind: {listed([NAMES[name] for name in names])}.",
            )
        ],
    )


def _other(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    widths = [int(width) for width in data["other_width"].values]
    name, last = data.attrs["other"], widths[-1]
    return Section(
        f"Other data: {name}",
        [
            f"ReLU perceptrons on {data.attrs['other_rows']} rows of {name}, {data.attrs['other_epochs']} epochs of Adam. At width {last}: {summary[f'barrier_naive_other_{last}']:.3g} nats as they are, {summary[f'barrier_permutations_other_{last}']:.3g} after permutations alone,"
            f" {summary[f'barrier_weights_other_{last}']:.3g} after the whole group by weights, {summary[f'barrier_activations_other_{last}']:.3g} by activations (means over pairs)."
            f" Midway, after matching by activations, the test accuracy is {summary[f'midpoint_accuracy_other_{last}']:.1%}, at the ends {summary[f'endpoint_accuracy_other_{last}']:.1%}.",
        ],
        tables=[
            _heights(
                ("width",),
                [(str(w), *_means(data.sel(other_width=w), "other_barrier", "other_error_barrier")) for w in widths],
            )
        ],
        pictures=[
            Picture(
                "other",
                _along(data, {f"width {width}": data["other_loss"].sel(other_width=width) for width in widths}),
                "Median and middle 90 % of the pairs.",
                f"Training loss along straight lines between ReLU networks on {name}, of widths {listed([str(width) for width in widths])}.",
            )
        ],
    )


def _merging(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    counts, ways = data["count"].values, [str(way) for way in data["way"].values]
    words = [WORDS.get(way, way) for way in ways]
    figure, axes = plots.panels(2, width=11)
    for colour, way, word in zip(plots.COLOURS, ways, words, strict=False):
        axes[0].plot(counts, 100 * data["merged_accuracy"].sel(way=way), "o-", color=colour, label=word)
        axes[1].plot(counts, data["merged_loss"].sel(way=way), "o-", color=colour)
    axes[0].axhline(100 * summary["single_accuracy"], color="black", linestyle="--", linewidth=1, label="one network")
    axes[0].set_ylabel("test accuracy (%)")
    axes[1].set_ylabel("training loss (nats)")
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
        ax.set_xlabel("networks in the average")
    plots.legend(axes[0])
    rows = [
        (
            str(int(count)),
            *(f"{float(data['merged_accuracy'].sel(count=count, way=way)):.1%}" for way in ways),
            *(f"{float(data['merged_loss'].sel(count=count, way=way)):.3g}" for way in ways),
        )
        for count in counts
    ]
    return Section(
        "Many in one",
        [
            f"ReLU networks of width {data.attrs['merged_width']}, of which one has {summary['single_accuracy']:.1%} in the mean. The average of {int(counts[-1])}, each moved into one universe, has {summary['merged_accuracies'][-1]:.1%}, as they are {summary['merged_accuracies_naive'][-1]:.1%}.",
        ],
        tables=[
            Table(
                ("networks", *words, *words),
                rows,
                "Averages of parameters. Into a universe: each in turn is moved onto the average of all others, until nothing moves.",
                groups=(("", 1), ("test accuracy", 3), ("training loss (nats)", 3)),
            )
        ],
        pictures=[
            Picture(
                "merged",
                figure,
                "One average each; dashed: the mean accuracy of the networks themselves.",
                f"Test accuracy and training loss of averages of {listed([str(int(count)) for count in counts])} networks, in three ways.",
            )
        ],
    )


def _plane(data: xr.Dataset) -> Section:
    figure, (ax,) = plots.panels(1, width=7, height=5.4)
    figure.set_layout_engine("tight")  # the other one cuts labels beside axes of equal scale
    losses = np.maximum(data["plane_loss"].values, FLOOR)
    levels = np.geomspace(losses.min(), losses.max(), 20)
    norm = matplotlib.colors.LogNorm(losses.min(), losses.max())
    filled = ax.contourf(data["x"], data["y"], losses, levels=levels, norm=norm, cmap="viridis", extend="both")
    ticks = matplotlib.ticker.LogLocator(subs=(1, 2, 5))
    figure.colorbar(filled, ax=ax, label="training loss (nats)", ticks=ticks, format="{x:g}", shrink=0.8)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
    for (x, y), name in zip(data["plane_points"].values, data["corner"].values, strict=True):
        ax.plot(x, y, "o", color="white", markeredgecolor="black")
        ax.annotate(str(name), (x, y), xytext=(5, 5), textcoords="offset points", bbox=box)
    ax.set(xlabel="along the way from the first to the second", ylabel="perpendicular to it", aspect="equal")
    width = int(data["width"][-1])
    return Section(
        "The plane through three networks",
        [f"Two ReLU networks of width {width}, and the second one moved onto the first by activations."],
        pictures=[
            Picture(
                "plane",
                figure,
                f"The second network and the moved one are the same function.{_floored(data['plane_loss'])}",
                "Contours of the training loss on the plane through two networks and the second one after it was moved onto the first.",
            )
        ],
    )
