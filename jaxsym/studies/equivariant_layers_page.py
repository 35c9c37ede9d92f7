"""The page of the study ``equivariant_layers``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed

CHANCE = 0.6
"""An accuracy below this counts as no better than guessing between two."""
NAMES = {"tied": "shared weights", "dense": "dense", "augmented": "dense, permuted data"}
KINDS = {"activation": "tanh or ReLU units", "rate": "two learning rates of SGD"}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_colours(data, summary), _folded(data, summary), _sets(data, summary), _readers(data, summary)]


def _colours(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    numbers = [int(n) for n in data["n"].values]
    rows = [
        (
            f"{n}",
            f"{int(data['linear_colours'].sel(n=n))}",
            f"{int(data['linear_dimension'].sel(n=n))}",
            f"{summary[f'colours_{n}']}",
            f"{summary[f'colours_{n}'] / n**3:.1%}",
            f"{summary[f'constrained_{n}']}",
            f"{summary[f'equivariant_tensors_{n}']}",
            f"{summary[f'equivariant_functions_{n}']}",
        )
        for n in numbers
    ]
    wide = [n for n in numbers if n > 2]
    follows = all(summary[f"colours_{n}"] == 2 * n + 3 and summary[f"constrained_{n}"] == n + 4 for n in wide)
    law = "2N + 3, and N + 4 with line 8, from N = 3 on" if follows else "not 2N + 3 and N + 4 everywhere"
    blind = all(summary[f"constrained_{n}"] - summary[f"equivariant_functions_{n}"] == n for n in wide)
    lost = "N of the N + 4 dimensions" if blind else "the other dimensions"
    errors = data["colours_error"].sel(n=wide)
    size = data["quadratic_tensor"].sizes["k"]
    figure, axes = plots.panels(2 * size, width=11, height=2.6, columns=size)
    for row, (key, label) in enumerate((("quadratic_tensor", "colours"), ("equivariant_tensor", "orbits"))):
        for k in range(size):
            plots.colour_tiles(axes[row * size + k], data[key].values[k], int(data[key].max()) + 1)
            axes[row * size + k].set_title(f"{label}, k = {k + 1}")
    return Section(
        "Colours are not yet symmetry",
        [
            "Exchange two inputs of a linear or quadratic map, and its outputs alike: which weights must be equal? The note's equations for that say which entries are one colour. For the linear map that is all there is:"
            f" {listed([str(n) for n in sorted({int(v) for v in data['linear_colours'].values})])} colours, and as many equivariant maps.",
            f"For y_k = sum a^k_ij x_i x_j the colours of lines 1 to 7 number {law}. They alone do not make the function equivariant: exchange two inputs and their outputs, and random functions of these colours, one for each N, are off by {float(errors.min()):.2g}"
            f" to {float(errors.max()):.2g} of their largest coefficient. Line 8 of the note says of two weights only that their sum is the same before and after; with it the difference is at most {summary['constrained_error']:.0e}.",
            f"Not every such tensor is another function: x_i x_j is x_j x_i, so that {lost} with line 8, differences of a^k_ij and a^k_ji, change nothing. The equivariant functions have dimension"
            f" {listed([str(n) for n in sorted({int(v) for v in data['functions'].values})])}, the equivariant tensors {listed([str(n) for n in sorted({int(v) for v in data['tensors'].values})])} (the smaller numbers for two inputs).",
        ],
        tables=[
            Table(
                (
                    "N",
                    "linear colours",
                    "linear maps",
                    "quadratic colours",
                    "of N³",
                    "with line 8",
                    "equivariant tensors",
                    "functions",
                ),
                rows,
                "Counted: colours by connected components, tensors by orbits of S_N, functions by the rank of what the tensors do.",
            )
        ],
        pictures=[
            Picture(
                "colours",
                figure,
                f"The weights a^k_ij of {size} inputs, a panel for each output k, i down and j across; equal colours are equal weights. Above the note's equations, below the orbits of S_{size}.",
                f"Eight panels of coloured tiles: the tensor of a quadratic layer of {size} inputs by the note's equations, with {summary[f'colours_{size}']} colours, and by orbits, with {summary[f'equivariant_tensors_{size}']}.",
            )
        ],
    )


def _folded(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, (left, right) = plots.panels(2, width=9, height=2.6)
    plots.colour_tiles(left, data["folded_pattern"].values, summary["folded_colours"])
    plots.colour_tiles(right, data["folding_tensor"].values, int(data["folding_tensor"].max()) + 1)
    left.set_title("the note's equations")
    right.set_title("what commutes with folding")
    first = "commutes" if data["folded_first_three"].item() else "does not commute"
    fold = "commutes too" if data["folded_by_folding"].item() else "does not commute"
    pairs = zip(data["even"].values, data["folded_colours"].values, summary["folded_quadratic_colours"], strict=True)
    rows = [(f"{n} to {n // 2}", f"{linear}", f"{quadratic}") for n, linear, quadratic in pairs]
    return Section(
        "Folded in half",
        [
            f"A linear map from six inputs to three outputs. Those of the note's equations whose outputs are among the three leave {summary['folded_colours']} colours, and the pattern {first} with permutations of the first three inputs and the outputs alike, while the other inputs stay.",
            f"To fold six inputs in half would lay input i on input i + 3. The permutations of inputs that keep such pairs together, exchanging pairs and the two of a pair, act on the three outputs; with them the pattern {fold}, and the maps that do commute have {summary['folding_dimension']} weights.",
            "For the folded quadratic map the note has a heading and no equations. Its colours are counted here from the equations of the quadratic map whose outputs are among those that there are.",
        ],
        tables=[Table(("inputs to outputs", "linear colours", "quadratic colours"), rows, "Folded maps.")],
        pictures=[
            Picture(
                "folded",
                figure,
                "Outputs down, inputs across; equal colours are equal weights.",
                f"Two tables of coloured tiles, three by six: {summary['folded_colours']} colours of the note's folded map, and {summary['folding_dimension']} of what commutes with folding.",
            )
        ],
    )


def _sets(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, (left, right) = plots.panels(2, width=11)
    sizes, errors = data["size"].values, data["error"].isel(record=-1)
    plots.bands(left, sizes, {name: errors.sel(layers=method).values for method, name in NAMES.items()})
    for colour, method in zip(plots.COLOURS, NAMES, strict=False):
        for place, style in ((0, "--"), (-1, "-")):
            broken = data["broken"].sel(layers=method).isel(size=place, record=slice(1, None))
            right.plot(broken["record"], broken.median("network"), style, color=colour, linewidth=1.2)
    left.set_xscale("log")
    left.set_xticks(list(sizes), [str(size) for size in sizes])
    left.minorticks_off()
    plots.logarithmic(left, "y")
    right.set_yscale("log")
    left.set(xlabel="training sets", ylabel="mean square test error")
    right.set(xlabel="step", ylabel="equivariance error", title=f"dashed: {sizes[0]} training sets; full: {sizes[-1]}")
    plots.legend(left)
    rows = [
        (
            name,
            *(f"{value:.3g}" for value in summary[f"{method}_errors"]),
            f"{summary[f'equivariance_error_{method}']:.1e}",
        )
        for method, name in NAMES.items()
    ]
    last = listed([f"{name} {summary[f'{method}_errors'][-1]:.3g}" for method, name in NAMES.items()])
    best = min(NAMES, key=lambda method: summary[f"{method}_error"])
    band = np.quantile(errors.sel(layers=best).isel(size=0), (0.05, 0.95))
    ratios = [summary["augmented_errors"][place] / summary["dense_errors"][place] for place in (0, -1)]
    apart = data["broken"].isel(record=-1).median("network")
    ends = {method: [float(apart.sel(layers=method).isel(size=place)) for place in (0, -1)] for method in NAMES}
    return Section(
        "Sets",
        [
            f"Each of six numbers is to be given less their mean, in units of their standard deviation: a function that commutes with permutations. {data.sizes['network']} networks of each sort, from {sizes[0]} to {sizes[-1]} sets to train on.",
            f"With {sizes[0]} sets the lowest median test error (mean square, where always answering 0 gives 1) is that of {NAMES[best]}, {summary[f'{best}_error']:.3g} (middle 90%: {band[0]:.3g} to {band[1]:.3g}); dense networks have {summary['dense_error']:.3g}. Permuting the"
            f" numbers of each set anew at each step multiplies the error of dense networks by {ratios[0]:.2g} with {sizes[0]} sets and by {ratios[1]:.2g} with {sizes[-1]}. With {sizes[-1]} sets: {last}.",
            f"Shared weights commute with permutations from the first step to the last; at the end, in float64, no network of any number of sets is further from it than {summary['equivariance_error_tied']:.0e} of its outputs. Dense networks are off by {ends['dense'][0]:.2g} in the median with {sizes[0]} sets and"
            f" {ends['dense'][1]:.2g} with {sizes[-1]}, on permuted data by {ends['augmented'][0]:.2g} and {ends['augmented'][1]:.2g}.",
        ],
        tables=[
            Table(
                ("networks", *(f"{size} sets" for size in sizes), "largest equivariance error"),
                rows,
                "Median test errors; and the largest equivariance error at the end over all networks and numbers of sets, in float64.",
            )
        ],
        pictures=[
            Picture(
                "sets",
                figure,
                "Left: medians and the middle 90%. Right: medians while training, in float32: the difference between permuting before and after, over the outputs.",
                "Test error against the number of training sets, and equivariance error against steps, for networks with shared weights, dense ones, and dense ones on permuted data.",
            )
        ],
    )


def _readers(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, (left, right) = plots.panels(2, width=11, height=2.4)
    series = {str(name): data["read_accuracy"].sel(reader=name).values for name in data["reader"].values}
    plots.distributions(left, series)
    left.set(xlabel="accuracy on networks not seen")
    plots.distributions(right, {str(n): data["read_changed"].sel(reader=n).values for n in data["reader"].values})
    right.set(xlabel="share of answers that a permutation of hidden units changes")
    label = str(data["label"].item())
    rows = [
        (
            str(name),
            f"{float(data['read_train_accuracy'].sel(reader=name).mean()):.1%}",
            f"{float(data['read_accuracy'].sel(reader=name).mean()):.1%}",
            f"{float(data['read_changed'].sel(reader=name).mean()):.1%}",
        )
        for name in data["reader"].values
    ]
    num = int(data["unseen"])
    poor = [str(n) for n in data["reader"].values if float(data["read_accuracy"].sel(reader=n).mean()) < CHANCE]
    verdict = f" {listed(poor)}: no better than guessing." if poor else ""
    return Section(
        "A network that reads networks",
        [
            f"Networks were trained on digits, half of them of either of two kinds: {KINDS[label]}. Readers are other networks, which get the parameters of such a network and are to say of which kind it is. The readers 'weight space' have layers that commute with permutations of the hidden units of the"
            " network that they read, the part of the discovered groups that both kinds have; the readers 'flat' are multilayer perceptrons on the same parameters in a row.",
            f"On {num} networks that they have not seen, where guessing is right in 50%, the first are right in {summary['weightspace_accuracy']:.1%}, the second in {summary['flat_accuracy']:.1%}.{verdict} Permuting the hidden units of these networks, which leaves what they compute as it is, changes"
            f" {summary['weightspace_changed']:.1%} of the answers of the first, and {summary['flat_changed']:.1%} of the second.",
        ],
        tables=[
            Table(
                ("reader", "on networks seen", "on others", "changed by a permutation"),
                rows,
                "Means over readers (bars in the picture are medians).",
            )
        ],
        pictures=[
            Picture(
                "readers",
                figure,
                "A dot is a reader; bars are medians.",
                "Accuracy of networks that read networks, with layers of weight space and on flat parameters, and the share of answers that change under permutations.",
            )
        ],
    )
