"""The page of the study ``identities``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.identities_summary import APART, TOLERANCE, claims, decay, growth, mismatches, predicted
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_claims(data, summary), _prelu(data), _pieces(data), _batches(data), _maps(data), _training(data)]


def _claims(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    table = claims(data)
    worst = data["error"].max("network")
    return Section(
        "The identities",
        [
            f"Each over {data.sizes['network']} networks (or points and slopes), in float64. The largest error of all is {summary['max_error']:.1e}, of {worst['identity'].values[int(worst.values.argmax())] if summary['max_error'] == float(worst.max()) else 'the sawtooth'}; up to {TOLERANCE:g} counts as rounding. {tally(table)}",
        ],
        tables=[
            claims_table(table, "Whether each claim holds in this run."),
            Table(
                ("identity", "median error", "largest error"),
                [
                    (
                        str(name),
                        f"{float(data['error'].sel(identity=name).median()):.1e}",
                        f"{float(worst.sel(identity=name)):.1e}",
                    )
                    for name in data["identity"].values
                ],
                "Differences over the larger of 1 and the size of what is compared.",
            ),
        ],
    )


def _prelu(data: xr.Dataset) -> Section:
    slope, at = data["slope"].values, data["prelu_at_zero"].values
    figure, (ax,) = plots.panels(1, width=7)
    order = np.argsort(slope)
    for label, values, style in (
        ("from the right", data["right"].values, {"color": plots.COLOURS[0], "linewidth": 5, "alpha": 0.5}),
        ("from the left", data["left"].values, {"color": plots.COLOURS[1]}),
        ("their mean", (data["left"].values + data["right"].values) / 2, {"color": plots.COLOURS[7]}),
        ("automatic differentiation", at, {"color": "black", "linestyle": "", "marker": "x", "markersize": 4}),
    ):
        ax.plot(slope[order], values[order], label=label, **style)
    ax.set(xlabel="slope of pReLU below 0", ylabel="derivative at 0", ylim=(-0.6, 2.2))
    plots.legend(ax, loc="upper left")
    constant = float(np.ptp(at)) == 0
    leaky, relu = data["leaky_relu_at_zero"].values, data["relu_at_zero"].values
    same = bool((leaky == at).all())
    mean = (data["left"].values + data["right"].values) / 2
    averaged = bool(np.allclose(at, mean))
    kept = float(relu.mean())
    return Section(
        "The derivative of pReLU",
        [
            "pReLU(x) is x above 0 and a x below. Its derivative is 1 above 0 and a below; by the slope a it is 0 above and x below. At 0 the difference quotients of both sides are 1 and a: unless a is 1 there is no derivative. The numbers between them are the subdifferential where a is at most 1, and Clarke's"
            " generalised gradient in any case.",
            f"Automatic differentiation of Flax's pReLU returns {float(at.mean()):g} at 0"
            + (" for every slope" if constant else " on average")
            + (", and so does leaky ReLU of JAX" if same else "")
            + ": the branch x >= 0 of the definition is taken."
            + (" It is not the mean of both sides." if not averaged else " It is the mean of both sides.")
            + (
                f" ReLU itself, which is pReLU of slope 0, has {kept:g} there: one function, two derivatives at a point, by how it is written. It matters where inputs of units are exactly 0, as with zero weights."
                if kept != float(at.mean())
                else f" ReLU itself has {kept:g} there, too."
            ),
        ],
        pictures=[
            Picture(
                "prelu",
                figure,
                "A cross is a slope that was drawn; the lines join its difference quotients.",
                "Difference quotients of pReLU at 0 from both sides, their mean, and what automatic differentiation returns, against the slope.",
            )
        ],
    )


def _pieces(data: xr.Dataset) -> Section:
    figure, (left, middle, right) = plots.panels(3, width=15, columns=3)
    knots, values = data["knot"].values, data["knot_value"].values
    for index in range(len(knots) - 1):
        both = slice(index, index + 2)
        left.plot(knots[both], values[both], color=plots.COLOURS[index % 2], linewidth=2)
    left.plot(knots[1:-1], values[1:-1], "o", color="black", markersize=2.5, zorder=3)
    shape = data.isel(shape=data.attrs["shown"])
    layers = f"{int(shape['depth'])} layers of {int(shape['width'])} units"
    left.set(xlabel="t, along a line", ylabel="output", title=f"one network, {layers}")
    units, pieces = data["units"].values, data["pieces"].mean("network").values
    for colour, depth in zip(plots.COLOURS, np.unique(data["depth"].values), strict=False):
        own = data["depth"].values == depth
        spread = data["pieces"].values[own]
        middle.errorbar(
            units[own],
            pieces[own],
            yerr=spread.std(axis=1),
            fmt="o-",
            color=colour,
            markersize=4,
            capsize=2,
            label=f"{depth} hidden layer{'s' if depth > 1 else ''}",
        )
    for axis in ("x", "y"):
        plots.logarithmic(middle, axis)
    middle.set(xlabel="hidden units", ylabel="pieces on the segment", title="at initialisation")
    plots.legend(middle)
    teeth = data["tooth"].values
    right.plot(teeth, data["tooth_pieces"].values, "o", color=plots.COLOURS[0], label="sawtooth")
    right.plot(teeth, 2.0**teeth, color="black", linewidth=1, label="2^depth")
    plots.logarithmic(right, "y")
    right.set(xlabel="hidden layers of two units", ylabel="pieces", title="made for it")
    plots.legend(right)
    grown = growth(data)
    wrong = mismatches(data)
    hidden = int((data["regions"] > data["pieces"]).sum())
    rows = [
        (
            str(shape),
            f"{int(data['units'].sel(shape=shape))}",
            f"{float(data['pieces'].sel(shape=shape).mean()):.1f}",
            f"{float(data['pieces'].sel(shape=shape).std()):.1f}",
            f"{int(data['pieces'].sel(shape=shape).max())}",
            f"{float(data['pieces'].sel(shape=shape).mean()) / int(data['units'].sel(shape=shape)):.2f}",
        )
        for shape in data["shape"].values
    ]
    same = {
        int(count): [
            f"{float(data['pieces'].sel(shape=shape).mean()):.1f} ({shape})"
            for shape in data["shape"].values[units == count]
        ]
        for count in np.unique(units)
    }
    compared = [f"{count} units have {listed(found)}" for count, found in same.items() if len(found) > 1]
    return Section(
        "The pieces of a ReLU network",
        [
            "On a line, as long as no unit is switched on or off, everything is affine. A unit that falls towards 0 or rises to it reaches it at a time that is solved for; the earliest ends the piece. So all breakpoints are found, and none by a grid. On each piece the network itself is asked at five"
            " points: their values are those of the piece, second differences are 0, and neighbouring pieces meet.",
            f"With one hidden layer the pieces are counted by another way too: each unit has one breakpoint, in closed form. {'They agree for every network.' if wrong == 0 else f'They differ for {wrong} networks.'}"
            f" In {hidden} networks of {data['pieces'].size} some switches change nothing, because no unit that is on reads what is switched.",
            f"At initialisation (He's kernels, normal biases) the mean number of pieces grows with the number of units to the power {grown.exponent:.2f}, with {grown.least:.2f} to {grown.most:.2f} pieces a unit on this segment"
            + (
                f"; with the same number of units, however they are stacked: {'; '.join(compared)}."
                if compared
                else "."
            )
            + f" Networks made for it have exponentially many: a tent composed with itself reaches {int(data['tooth_pieces'].max())} pieces with {2 * int(teeth.max())} units.",
        ],
        tables=[
            Table(
                ("layers x units", "hidden units", "mean pieces", "standard deviation", "most", "pieces a unit"),
                rows,
                f"On a segment of a random line, {data.sizes['network']} networks of each shape, three inputs.",
            )
        ],
        pictures=[
            Picture(
                "pieces",
                figure,
                "Left: one network on its segment, pieces in turns of two colours, breakpoints as dots. Middle: means over networks with standard deviations. Right: the sawtooth of Telgarsky 2015.",
                "The output of one ReLU network along a line with its pieces, the number of pieces against the number of hidden units, and the pieces of a sawtooth against its depth.",
            )
        ],
    )


def _batches(data: xr.Dataset) -> Section:
    sizes = data["batch"].values
    figure, (ax,) = plots.panels(1, width=7)
    plots.bands(
        ax,
        sizes,
        {
            "batch normalisation": data["standardized_difference"].values,
            "tanh of it": data["normalized_difference"].values,
        },
    )
    expected = predicted(data)
    ax.plot(sizes, expected, "k--", linewidth=1, label="expected for many rows")
    for axis in ("x", "y"):
        plots.logarithmic(ax, axis)
    ax.set(xlabel="rows in a minibatch", ylabel="difference from all rows (RMS)")
    plots.legend(ax)
    measured = data["standardized_difference"].median("network").values
    at = int(np.flatnonzero(sizes >= 32)[0])
    alone = float(data["alone"].max())
    elementwise = float(data["elementwise_difference"].max())
    gradient, other = float(data["normalized_gradient"].median()), float(data["elementwise_gradient"].max())
    low, high = (float(data["normalized_gradient"].quantile(q)) for q in (0.05, 0.95))
    return Section(
        "A nonlinearity that is applied to one minibatch at a time",
        [
            f"An elementwise nonlinearity has no choice: tanh of minibatches is tanh of all {data.attrs['rows']} rows, to {elementwise:.1e}"
            + (
                " (the last bit is rounded in another way in arrays of another size)."
                if 0 < elementwise <= TOLERANCE
                else "."
            ),
            f"Batch normalisation reads the mean and the variance of the batch. A row comes out differently in every company: the difference from normalising all rows falls with the exponent {decay(data):.2f} of the batch size, and for {sizes[at]} rows is {measured[at]:.3f}, where"
            f" (3/2 (1/b - 1/N))^(1/2) = {expected[at]:.3f} is expected to first order. A row alone comes out as {alone:g}"
            + (", whatever it was: nothing is left of it." if alone == 0 else "."),
            f"And the mean over minibatches of 8 rows of the gradient is not the gradient on all rows: it is off by {gradient:.1%} of its norm in the median (90 % of the networks between {low:.1%} and {high:.1%}); with the elementwise nonlinearity by at most {other:.0e}. That is what to expect of such a"
            " nonlinearity: rows are no longer independent, prediction has to replace the statistics by others than training had, and small batches make both worse.",
        ],
        pictures=[
            Picture(
                "minibatches",
                figure,
                "Median over networks with the middle 90 %.",
                "Root mean square difference that batch normalisation by minibatches makes, against the number of rows in a minibatch, beside what is expected.",
            )
        ],
    )


def _maps(data: xr.Dataset) -> Section:
    orders = data["order"]
    rows = [
        (
            str(hidden),
            *(f"{int(orders.sel(hidden=hidden, activation=name)):,}" for name in ("tanh", "sigmoid")),
            f"{float(data['error'].sel(identity=f'tanh net as a sigmoid net, {hidden}').max()):.1e}",
        )
        for hidden in data["hidden"].values
    ]
    same = bool((orders.sel(activation="tanh") == orders.sel(activation="sigmoid")).all())
    carried = float(data["error"].sel(identity="group carried along").max())
    orbit = float(data["error"].sel(identity="on one orbit").max())
    return Section(
        "A tanh network written as a sigmoid network",
        [
            "As tanh(z) = 2 sigmoid(2z) - 1, units read twice as much, and what reads them has twice the kernel and a bias less the sum of its column: with h = tanh(xA + b), y = hB + c the parameters of the sigmoid network are 2A, 2b, 2B and c less the column sums of B; in the middle of a deep network a"
            " kernel takes both factors, 4. The map is linear and has an inverse, so that both architectures are the same set of functions.",
            "The symmetries go along. The tanh network has a sign for every unit, (A_j, b_j, B_j) to minus themselves; in the sigmoid network it becomes (A_j, b_j, B_j) to minus themselves and c to c + B_j, since sigmoid(-z) = 1 - sigmoid(z). "
            + (
                "discover finds groups of the same order for both"
                if same
                else "discover finds groups of different orders"
            )
            + f", and an element of the one, moved by the map, is the element of the other with the same signs and permutation, to {carried:.1e}. By canonical forms both are on one orbit, to {orbit:.1e} (hidden layers {data['hidden'].values[0]}).",
        ],
        tables=[
            Table(
                ("hidden units", "order, tanh", "order, sigmoid", "largest error of the function"),
                rows,
                f"Groups found by discover; errors over {data.sizes['network']} networks.",
            )
        ],
    )


def _training(data: xr.Dataset) -> Section:
    ways = [str(way) for way in data["way"].values]
    steps = data["record"].values
    figure, (left, right) = plots.panels(2, width=12)
    plots.bands(left, steps, {way: data["training_loss"].sel(way=way).values for way in ways[:3]}, share=0.5)
    left.plot(
        steps,
        data["training_loss"].sel(way=ways[3]).median("network"),
        "--",
        color="black",
        linewidth=1.2,
        label=ways[3],
    )
    plots.logarithmic(left, "y")
    left.set(xlabel="step", ylabel="training loss")
    plots.legend(left)
    floor = 1e-17
    for colour, way in zip(plots.COLOURS[1:], ways[1:], strict=False):
        plots.bands(right, steps, {way: np.maximum(data["apart"].sel(way=way).values, floor)}, colours=[colour])
    right.set_yscale("log")
    right.set(xlabel="step", ylabel="outputs apart from tanh's (RMS)")
    plots.legend(right, loc="center right")
    ends = data["training_loss"].isel(record=-1)
    ratio = ends.sel(way=ways[1]) / ends.sel(way=ways[0])
    low, middle, high = (float(ratio.quantile(q)) for q in (0.05, 0.5, 0.95))
    gone, leafwise = (float(data["apart"].sel(way=way).isel(record=-1).median()) for way in ways[1:3])
    kept = float(data["apart"].sel(way=ways[3]).max())
    return Section(
        "The same functions, but they learn differently",
        [
            f"One function, one rate, {int(steps[-1])} steps of gradient descent: the outputs of the sigmoid network end {gone:.2g} from those of the tanh network in the median (targets have the standard deviation 1), and its training loss is {middle:.2f} times the other's (90 % of the networks between"
            f" {low:.2g} and {high:.2g}). Gradient descent measures steps in the parameters, and the map, with matrix M, changes their lengths: what the tanh network does is, in the sigmoid network's parameters, a step along M M^T times the gradient.",
            f"With that step both stay the same function, to {kept:.1e} at every record. A rate for each leaf, 4 for what the map doubles, is not enough: outputs end {leafwise:.2g} apart"
            + (
                ", because the output bias takes part in the change of the kernel beside it."
                if leafwise > APART
                else "."
            ),
        ],
        pictures=[
            Picture(
                "training",
                figure,
                "Left: median and middle half of the networks; dashed, the sigmoid network with the metric, on top of the tanh network. Right: median and middle 90 %.",
                "Training losses of a tanh network and of the sigmoid network that began as the same function, and the distance of their outputs, against the step.",
            )
        ],
    )
