"""The page of the study ``symmetry_breaking``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally
from jaxsym.studies.symmetry_breaking_networks import WAYS
from jaxsym.studies.symmetry_breaking_summary import ALL_TIED, SEPARATED, claims, ends, mean, places, separates

LABELS = {
    "nothing": "nothing (full-batch descent)",
    "random": "random kernels",
    "weight_decay_l1": "weight decay (L1)",
    "weight_decay_l2": "weight decay (L2)",
    "dropout": "dropout",
    "augmentation": "augmentation (shifts)",
    "minibatch": "minibatches",
    "noise_inputs": "noise on inputs",
    "noise_weights": "noise on weights",
    "noise_gradients": "noise on gradients",
    "momentum": "momentum",
    "adam": "Adam",
    "together": "six others together",
}
KINDS = {
    "cnn": "the channels of a convolution",
    "rnn": "the units of a simple recurrent cell",
    "lstm": "the units of an LSTM",
    "attention": "whole attention heads",
    "siamese": "the units of a network that compares two images",
    "twins": "those of two networks that start equal and see one image each",
}
MADE_OF = {"l1": "weight_decay_l1", "l2": "weight_decay_l2"}
FLOOR = 1e-17


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    kinds = [_kinds(data, summary)] if data.sizes["architecture"] > 1 else []
    return [_ways(data), _zeros(data, summary), *kinds, _regression(data, summary), _claims(data)]


def _named(ways: list[str]) -> str:
    return listed([LABELS[way] for way in ways]) if ways else "none"


def _median(data: xr.Dataset, name: str, way: str) -> float:
    return float(data[name].isel(start=0).sel(way=way).median())


def _learned(data: xr.Dataset, apart: list[str], tied: list[str]) -> list[str]:
    """What units learn while they are tied, and how little it says that they are distinct."""
    said = []
    if tied:
        losses = {way: _median(data, "loss", way) for way in tied}
        best = min(losses, key=losses.__getitem__)
        said.append(
            f"To be tied is not to stand still: as one unit eight can still train, best with {LABELS[best]}, to a median training loss of {losses[best]:.2f}; from zeros, where only the output bias learns, it is {float(data['loss'].isel(start=1).sel(way='nothing').median()):.2f}."
        )
    if apart:
        accuracies = listed([f"{_median(data, 'accuracy', way):.3f} ({LABELS[way]})" for way in apart])
        said.append(
            f"To be distinct is not to have learned: the median test accuracy after {int(data['record'][-1])} steps is {accuracies}."
        )
    return said


def _ways(data: xr.Dataset) -> Section:
    ways = [str(way) for way in data["way"].values]
    apart = [way for way in ways if separates(data, way)]
    tied = [way for way in ways if float(ends(data).isel(start=0).sel(way=way).max()) == ALL_TIED]
    between = [way for way in ways if way not in apart and way not in tied]
    figure, (left, middle, right) = plots.panels(3, width=17, height=4.6, columns=3)
    steps, size = data["record"].values, int(data["units"].sel(architecture="mlp"))
    counts = data["distinct"].isel(start=0).mean("network").values
    labels = [LABELS[way] for way in ways]
    image = plots.heat_map(left, counts, labels, [str(step) for step in steps], limits=(1, size))
    figure.colorbar(image, ax=left, label="distinct units, mean over networks")
    left.set(xlabel="step")
    untied = [way for way in ways if way not in tied]
    for colour, way in zip(plots.COLOURS, untied, strict=False):
        series = np.maximum(data["median_apart"].isel(start=0).sel(way=way).values, FLOOR)
        plots.bands(middle, steps, {LABELS[way]: series}, colours=[colour])
    middle.set_yscale("log")
    middle.set(xlabel="step", ylabel="relative distance of two units")
    plots.legend(middle, loc="lower right")
    values = data["apart"].isel(start=0).values.ravel()
    plots.log_histogram(right, values, FLOOR, float(data.attrs["tolerance"]))
    right.set(xlabel="relative distance of two units at the end", ylabel="pairs, all ways")
    rows = []
    for way in ways:
        own = data.isel(start=0).sel(way=way)
        end = own["distinct"].isel(record=-1)
        rows.append(
            (
                LABELS[way],
                f"{float(end.mean()):.2f}",
                f"{int(end.min())} to {int(end.max())}",
                f"{float(own['apart'].max()):.1e}",
                f"{_median(data, 'loss', way):.3f}",
                f"{_median(data, 'accuracy', way):.3f}",
            )
        )
    mixed = (
        f" In between, with some units equal and some not: {_named(between)}."
        if between
        else " Every way does the one or the other."
    )
    values = values[np.isfinite(values)]
    near = float(np.mean((values > 1e-8) & (values < 1e-2)))
    return Section(
        "Eight equal units, thirteen ways",
        [
            f"Perceptrons of {size} tanh units on the digits, every kernel {float(data['start'][0]):g} and every bias 0 at the start; {data.sizes['network']} networks for each way, each with its own learning rate and its own strength of what is tried."
            f" Units count as equal when exchanging them moves the parameters by less than {float(data.attrs['tolerance']):g} of their norm. All units become distinct with: {_named(apart)}. All stay equal in every network with: {_named(tied)}.{mixed} ({LABELS['together'][0].upper()}{LABELS['together'][1:]}: {_named([MADE_OF.get(part, part) for part in WAYS['together']])}.)",
            "What stays tied is what treats exchanged units alike: a step that commutes with the group cannot leave the points that a part of the group fixes. Decay, momentum and Adam act on every entry by the same rule; minibatches, shifts and noise on the inputs change the"
            " data, which all units see. What separates draws something for each unit: its weights, its mask, the noise on its weights or on their gradient.",
            *_learned(data, apart, tied),
            f"Of all pairs {near:.1%} are between 1e-8 and 0.01 apart, where the verdict would depend on the tolerance.",
        ],
        tables=[
            Table(
                ("way", "distinct units", "from – to", "largest distance", "training loss", "test accuracy"),
                rows,
                "Mean and range over networks; the largest relative distance of any two units; medians of loss and accuracy.",
            )
        ],
        pictures=[
            Picture(
                "ways",
                figure,
                f"Left: distinct units along training. Middle: the median distance of two units, for the ways that do not keep all equal: median and middle 90 % of the networks ({FLOOR:g}: equal). Right: relative distances of all pairs of units at the end, over all ways; exact zeros are in the first bar.",
                "Number of distinct units of perceptrons along training from equal kernels, by way, and a histogram of the distances of all pairs of units at the end.",
            )
        ],
    )


def _zeros(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    ways = [str(way) for way in data["way"].values if way != "random"]
    rows = [
        (
            LABELS[way],
            f"{float(data['largest_kernel'].isel(start=1).sel(way=way).max()):.1e}",
            f"{mean(data, way, 1):.2f}",
            f"{float(data['accuracy'].isel(start=1).sel(way=way).median()):.3f}",
        )
        for way in ways
    ]
    still = [way for way in summary["still_at_zero"] if way != "random"]
    moving = [way for way in ways if way not in still]
    return Section(
        "From all zeros",
        [
            f"Where every kernel is 0, hidden units are 0 and so is what flows back to them: only the output bias learns. Kernels are exactly 0 to the end in every network with: {_named(still)}. They move with: {_named(moving)}."
        ],
        tables=[
            Table(
                ("way", "largest entry of a kernel", "distinct units", "test accuracy"),
                rows,
                "From zeros: the largest entry of a kernel in any network, the mean number of distinct units, the median test accuracy.",
            )
        ],
    )


def _kinds(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    kinds = [str(kind) for kind in data["architecture"].values]
    ways = [str(way) for way in data["way"].values]
    counts = data["kind_distinct"].isel(record=-1).mean("few").values
    share = counts / data["units"].values[:, None]
    figure, (ax,) = plots.panels(1, width=11, height=4.6)
    image = plots.heat_map(
        ax,
        share.T,
        [LABELS[way] for way in ways],
        [f"{kind} ({int(n)})" for kind, n in zip(kinds, data["units"].values, strict=True)],
        limits=(0, 1),
        texts=[[f"{value:.1f}" for value in row] for row in counts.T],
    )
    figure.colorbar(image, ax=ax, label="distinct, of all units")
    same = [
        kind for kind in kinds if set(summary[f"separating_{kind}"]) == set(summary["separating_mlp"]) and kind != "mlp"
    ]
    others = [
        f"{kind}: {_named(summary[f'separating_{kind}'])}" for kind in kinds if kind not in same and kind != "mlp"
    ]
    agreement = (f" The same ways separate all units as in the perceptron for {listed(same)}." if same else "") + (
        f" Otherwise: {'; '.join(others)}." if others else ""
    )
    shared = [str(kind) for kind in data["shared"].values]
    towers = [
        f"Twins that share their weights are one network: {summary['tower_distance_siamese']:g} apart, whatever the way."
        if kind == "siamese"
        else f"Twins with weights of their own, equal at the start, see different images and part by {summary['tower_distance_twins']:.2g} of their norm with nothing but descent, while the units within each stay tied."
        for kind in map(str, data["pair_of_towers"].values)
    ]
    return Section(
        "Channels, states, heads and twins",
        [
            f"The same from equal kernels for {listed([KINDS[kind] for kind in kinds if kind in KINDS])}. {data.sizes['few']} networks a cell; a way separates where {SEPARATED:.0%} of the units are distinct in the mean."
            + agreement,
            *(
                [
                    f"What is tied are channels and hidden units; positions and time steps share weights by design and differ by what they see. At the start: {'; '.join(f'{kind}: {places(data, kind)}' for kind in shared)} (means over the test images; equal patches of an image count as one)."
                ]
                if shared
                else []
            ),
            *([" ".join(towers)] if towers else []),
        ],
        pictures=[
            Picture(
                "kinds",
                figure,
                "Distinct units at the end, mean over networks; in brackets how many there are.",
                f"Heat map of the distinct units at the end for {len(kinds)} kinds of networks and {len(ways)} ways of training from equal kernels.",
            )
        ],
    )


def _regression(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, axes = plots.panels(2, width=11, height=2.8)
    names = {"zeros": "zeros", "constant": "all 0.1", "random": "random"}
    for ax, key, label in (
        (axes[0], "softmax_accuracy", "test accuracy, softmax regression"),
        (axes[1], "linear_error", "squared distance from the true weights, over their squared norm"),
    ):
        plots.distributions(ax, {text: data[key].sel(regression_start=start).values for start, text in names.items()})
        ax.set(xlabel=label)
    plots.logarithmic(axes[1], "x")
    axes[1].tick_params(axis="x", which="both", rotation=35)
    return Section(
        "One layer needs no symmetry broken",
        [
            f"A regression has no hidden units to exchange, and its loss is convex: softmax regression ends at a test accuracy of {summary['softmax_zero_init_accuracy']:.3f} from zeros, {summary['softmax_constant_init_accuracy']:.3f} from equal weights and {summary['softmax_random_init_accuracy']:.3f} from random ones (means);"
            f" linear regression at {summary['linear_zero_init_error']:.1e}, {summary['linear_constant_init_error']:.1e} and {summary['linear_random_init_error']:.1e} of the true weights' squared norm from them."
            + (
                " From random weights softmax has not come as far in so many steps: it has its start to forget."
                if summary["softmax_random_init_accuracy"] < summary["softmax_zero_init_accuracy"] - 0.01
                else ""
            ),
        ],
        pictures=[
            Picture(
                "regression",
                figure,
                "A dot is a run; bars are medians.",
                "Test accuracy of softmax regression and error of linear regression at the end, from zero, equal and random weights.",
            )
        ],
    )


def _claims(data: xr.Dataset) -> Section:
    found = claims(data)
    return Section(
        "What is said, and what came out",
        [tally(found)],
        tables=[claims_table(found, "Claims of exercises and their usual answers.")],
    )
