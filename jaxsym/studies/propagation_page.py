"""The page of the study ``propagation``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.propagation_summary import (
    DEAD,
    FAR,
    LEARNED,
    NEAR,
    TOLERANCE,
    best,
    change,
    claims,
    drift,
    inner,
    kernel_ratio,
    middle,
    power,
    ratio,
    training,
    violations,
)
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally

SHOWN = 12
"""Orders of magnitude in the pictures; lines that leave go on."""


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _claims(data),
        _signals(data),
        _initializers(data),
        _sigmoid(data),
        _products(data),
        _inner(data),
        _helpers(data, summary),
        _training(data),
    ]


def _claims(data: xr.Dataset) -> Section:
    table = claims(data)
    return Section(
        "What the chapter says, and what was measured",
        [
            f"{data.sizes['network']} networks of {data.sizes['layer']} layers for each of {data.sizes['architecture']} architectures, {data.sizes['activation']} activations and {data.sizes['initializer']} initialisers, at"
            f" initialisation, in float64; then a short training. {tally(table)} Near 1 is within a factor of {10**NEAR:g} from the first layer to the last (about"
            f" {10 ** (NEAR / (data.sizes['layer'] - 1)) - 1:.0%} a layer), vanishing and exploding is a factor of {10**FAR:g}.",
        ],
        tables=[claims_table(table, "Whether each claim holds in this run.")],
    )


def _signals(data: xr.Dataset) -> Section:
    plain = data.sel(architecture="plain")
    layers = data["layer"].values
    activations = [str(name) for name in data["activation"].values]
    figure, axes = plots.panels(2 * len(activations), width=16, height=3.0, columns=len(activations))
    reach: list[float] = []
    for row, (key, label) in enumerate((("variance", "variance, log10"), ("gradient", "gradient norm, log10"))):
        for column, activation in enumerate(activations):
            ax = axes[row * len(activations) + column]
            own = plain[key].sel(activation=activation)
            own = own - own.isel(layer=0 if key == "variance" else -1)
            reach.append(float(abs(middle(own)).max()))
            plots.bands(ax, layers, {str(n): own.sel(initializer=n).values for n in data["initializer"].values})
            ax.set(title=activation, xlabel="layer", ylim=(-SHOWN, SHOWN))
            if column == 0:
                ax.set_ylabel(label)
    plots.legend(axes[int(np.argmin(reach))], loc="lower right")  # where the lines leave room
    weights = middle(kernel_ratio(plain)).sel(activation="relu")
    outputs = middle(ratio(data)).sel(architecture="plain", activation="relu")
    calm = float(abs(weights).max())
    small = str(outputs["initializer"].values[int(outputs.values.argmin())])
    dead = float((plain["variance"].isel(layer=-1) <= DEAD).mean("network").max())
    blind = calm < NEAR < float(abs(outputs).max())
    rows = [
        (
            str(activation),
            str(name),
            *(power(float(values.sel(activation=activation, initializer=name))) for values in _ends(data)),
        )
        for activation in activations
        for name in data["initializer"].values
    ]
    return Section(
        "Vanishing and exploding",
        [
            "Inputs are normal, there are no biases."
            " The loss is linear in the outputs of the last layer, with normal coefficients, so that the gradient starts at the same size in all networks. The gradient here is that by the outputs of a layer. Both are shown relative to where the signal begins:"
            " the variance at the first layer, the gradient at the last.",
            (
                f"The gradient by the kernels would hide it: in a ReLU network its norm at the first layer over that at the last is within a factor of {np.ceil(100 * 10**calm) / 100:.2f} of 1 in the median for every initialiser, though that by the outputs is {power(float(outputs.min()))} for {small}."
                " Where an activation is homogeneous, a kernel times its gradient is the same number in every layer: what is lost on the way back is made up for by what has not been lost yet on the way there."
                if blind
                else f"By the kernels of a ReLU network the ratio is within a factor of {np.ceil(100 * 10**calm) / 100:.2f} of 1 in the median; by the outputs it is {power(float(outputs.min()))} for {small}."
            ),
            f"Networks all of whose units are off in the last layer: at most {dead:.0%} of those of one activation and initialiser; their variance counts as 1e-300.",
        ],
        tables=[
            Table(
                (
                    "activation",
                    "initialiser",
                    "variance, last over first",
                    "gradient, first over last",
                    "by the kernel",
                    "root mean square derivative",
                ),
                rows,
                f"Medians over networks; plain chains of {data.sizes['layer']} layers.",
            )
        ],
        pictures=[
            Picture(
                "signals",
                figure,
                f"Median over networks with the middle 90 %. Lines that leave the picture, at a factor of 10^{SHOWN}, go on.",
                f"Variance of activations and norm of the gradient against the layer for plain chains with {listed(activations)}, one colour an initialiser.",
            )
        ],
    )


def _ends(data: xr.Dataset) -> list[xr.DataArray]:
    plain = data.sel(architecture="plain")
    slope = plain["slope"].mean("layer")
    slope = slope.copy(data=np.log10(slope.values))
    return [middle(values) for values in (change(plain), ratio(plain), kernel_ratio(plain), slope)]


def _tiles(
    values: list[tuple[str, xr.DataArray]], limits: tuple[float, float], palette: str, text: str, columns: str
) -> Any:
    figure, axes = plots.panels(len(values), width=15, height=3.6, columns=len(values))
    for ax, (title, tiles) in zip(axes, values, strict=True):
        texts = [[format(value, text) for value in row] for row in tiles.values]
        rows, names = ([str(name) for name in tiles[dim].values] for dim in tiles.dims)
        clipped = np.clip(np.nan_to_num(tiles.values, posinf=limits[1]), *limits)
        plots.heat_map(ax, clipped, rows, names, limits=limits, palette=palette, texts=texts)
        ax.set(title=title, xlabel=columns)
    return figure


def _initializers(data: xr.Dataset) -> Section:
    rows, sentences = [], []
    for activation in data["activation"].values:
        found = best(data, str(activation))
        rows.append(
            (
                str(activation),
                found.name,
                f"{found.drift:.2f}",
                found.second,
                f"{found.second_drift:.2f}",
                f"{found.low:.2f} to {found.high:.2f}",
                "tied" if found.tied else "yes",
            )
        )
        if activation in ("tanh", "relu"):
            verdict = "within the spread: the two are tied" if found.tied else "the difference is beyond the spread"
            sentences.append(
                f"{activation}: {found.name}, by {found.drift:.2f} orders of magnitude; next is {found.second} with {found.second_drift:.2f}, {verdict}."
            )
    variance = change(data).sel(architecture="plain", activation="relu", initializer="he")
    mean, median = float(np.log10(np.mean(10**variance))), float(variance.median())
    tanh = middle(data["variance"]).sel(architecture="plain", activation="tanh", initializer="xavier")
    early, late = (float(tanh.sel(layer=last) - tanh.sel(layer=first)) for first, last in ((2, 10), (10, 50)))
    slower = late > 5 * early
    return Section(
        "Which initialiser keeps them near 1",
        [
            f"The drift of a network is how many orders of magnitude the variance and the gradient's norm change, together, from one end of {data.sizes['layer']} layers to the other. The least in the median: "
            + " ".join(sentences),
            f"Mean and median differ: for ReLU from He's initialiser the variance of the last layer over that of the first is {power(mean)} in the mean and {power(median)} in the median over networks. The derivation of the initialiser is about the mean."
            + (
                " At a finite width the logarithm of the variance makes a random walk from layer to layer, and few networks with large ones carry the mean."
                if mean - median > 0.3
                else ""
            ),
            f"A tanh network from Xavier's initialiser loses variance: a factor of {power(-early)} from layer 2 to 10, and {power(-late)} from there to {int(data['layer'][-1])}"
            + (
                ", slower than a constant factor a layer would: tanh shrinks a signal the less, the smaller it is."
                if slower and early < 0
                else "."
            ),
        ],
        tables=[
            Table(
                (
                    "activation",
                    "best",
                    "drift",
                    "next",
                    "its drift",
                    "95 % interval of the median difference",
                    "best by itself",
                ),
                rows,
                "Plain chains. Differences are between networks of one seed; the interval is that of the sign test.",
            )
        ],
        pictures=[
            Picture(
                "drift",
                _tiles(
                    [
                        (str(a), middle(drift(data)).sel(architecture=a).transpose("activation", "initializer"))
                        for a in data["architecture"].values
                    ],
                    (0.0, 20.0),
                    "viridis_r",
                    ".3g",
                    "initialiser",
                ),
                "Orders of magnitude by which variance and gradient change from end to end, together; medians over networks. Colours end at 20.",
                f"Tiles of the drift for {listed([str(a) for a in data['architecture'].values])}, activations against initialisers.",
            )
        ],
    )


def _sigmoid(data: xr.Dataset) -> Section:
    ratios = middle(data["gradient_ratio"]).sel(architecture="plain", activation="sigmoid")
    slopes = data["slope"].sel(architecture="plain", activation="sigmoid").mean("layer").median("network")
    depths = data["depth"].values
    figure, (left, right) = plots.panels(2, width=11)
    for colour, name in zip(plots.COLOURS, data["initializer"].values, strict=False):
        left.plot(
            depths, ratios.sel(initializer=name), "o-", color=colour, label=str(name), markersize=4, linewidth=1.2
        )
        right.scatter(
            slopes.sel(initializer=name), ratios.sel(initializer=name).isel(depth=-1), color=colour, s=30, zorder=3
        )
    left.set(xlabel="depth", ylabel="gradient, first over last, log10")
    label = "root mean square derivative (0.25 at most)"
    right.set(xlabel=label, ylabel=f"the same at depth {int(depths[-1])}", xlim=(0, 0.27))
    plots.legend(left)
    low = str(ratios["initializer"].values[int(ratios.isel(depth=-1).values.argmin())])
    at = float(slopes.sel(initializer=low))
    return Section(
        "The sigmoid",
        [
            f"At depth {int(depths[-1])} the gradient at the first layer over that at the last is {power(float(ratios.isel(depth=-1).min()))} to {power(float(ratios.isel(depth=-1).max()))} in the median, depending on the initialiser.",
            f"It is smallest from {low}, where the root mean square of the derivative is {at:.3f}: "
            + (
                "these units are not saturated at all. The derivative is at most 1/4, and small kernels do the rest; larger kernels saturate the units, and lose less."
                if at > 0.2
                else "these units are saturated."
            ),
        ],
        pictures=[
            Picture(
                "sigmoid",
                figure,
                "Medians over networks; one colour an initialiser.",
                "Ratio of the gradients at both ends of sigmoid networks against depth, and against the root mean square derivative of the activation.",
            )
        ],
    )


def _products(data: xr.Dataset) -> Section:
    found = violations(data)
    depths = data["depth"].values
    cells = (("plain", "tanh", "he"), ("plain", "identity", "orthogonal x 1.41"), ("residual", "tanh", "he"))
    figure, axes = plots.panels(len(cells), width=14, columns=len(cells))
    for ax, (architecture, activation, start) in zip(axes, cells, strict=True):
        own = data.sel(architecture=architecture, activation=activation, initializer=start)
        for key, colour, label in (
            ("largest", plots.COLOURS[0], "largest"),
            ("smallest", plots.COLOURS[1], "smallest"),
        ):
            values, bound = own[key].transpose("network", "depth").values, own[f"{key}_bound"].transpose("network", "depth").values  # fmt: skip
            kept = np.isfinite(values).all(axis=1)
            plots.bands(ax, depths, {label: values[kept]}, colours=[colour])
            ax.plot(
                depths,
                np.median(bound[kept], axis=0),
                "--",
                color=colour,
                linewidth=1,
                label=f"product of the {label} ones",
            )
        ax.set(
            title=f"{architecture}, {activation}, {start}", xlabel="number of layers", ylabel="singular value, log10"
        )
    plots.legend(axes[0], loc="lower left")
    own = data.sel(architecture=["plain", "residual"])
    condition = (own["largest"] - own["smallest"]).isel(depth=-1)
    lost = float((condition > 16).mean())
    slack = float(np.min((own["largest_bound"] - own["largest"]).isel(depth=-1)))
    null = float(data["normalized_null"].max())
    rows = []
    for architecture in ("plain", "residual"):
        for activation in data["activation"].values:
            part = data.sel(architecture=architecture, activation=activation).isel(depth=-1)
            says = np.isfinite(part["smallest_bound"])
            above = middle(part["largest_bound"] - part["largest"])
            below = (part["smallest"] - part["smallest_bound"].where(says)).median("network")
            rows.append(
                (
                    architecture,
                    str(activation),
                    *(_range(values) for values in (above, below)),
                    f"{float(1 - says.mean()):.0%}",
                )
            )
    return Section(
        "The product of the layers' Jacobians",
        [
            "From hidden layer to hidden layer the Jacobian of a plain chain is diag(act'(z)) times the kernel, of a residual one the identity more; both are square. So the singular values of the product lie between the product of the factors' smallest and"
            " that of their largest.",
            f"Checked at the first row of every network with and without residual connections, at depths {listed([str(d) for d in depths])}, and for batch normalisation at the Jacobian of the whole batch ({data.sizes['few']} smaller networks of each kind; rows are coupled):"
            f" {found['violated']} violations in {found['checked']} comparisons, beyond a relative tolerance of {TOLERANCE:g}. {found['lower']} of the lower bounds are above 0; {found['empty']} are 0 and say nothing,"
            " because a factor is singular to rounding: a ReLU unit is off, a derivative underflows, or the identity and an orthogonal kernel cancel in a direction that the kernel reflects.",
            f"The smallest singular value is taken from the product of the inverses: in {lost:.0%} of the networks it is less than 1e-16 of the largest at depth {int(depths[-1])}, and would be lost in the product itself. The least distance of an upper bound at that depth is {max(slack, 0):.1e} in log10"
            + (
                ": of orthogonal kernels all singular values are equal, and both bounds are met."
                if slack < 1e-6
                else "."
            ),
            "With batch normalisation a shift that is the same for all rows changes nothing, so that every factor has a null space and the lower bound is 0; the smallest singular values that were computed are at most"
            f" {null:.0e} of the largest. Only the upper bound is counted.",
        ],
        tables=[
            Table(
                (
                    "architecture",
                    "activation",
                    "upper bound above the value",
                    "value above the lower bound",
                    "lower bound is 0",
                ),
                rows,
                f"Orders of magnitude at depth {int(depths[-1])}, medians over networks: from the initialiser with the least to that with the most.",
            )
        ],
        pictures=[
            Picture(
                "jacobians",
                figure,
                "Extreme singular values of products of Jacobians: median and middle 90 % of the networks. Dashed: the medians of their bounds. Where one line is seen, all four are there.",
                "Largest and smallest singular values of products of Jacobians against the number of layers, beside the products of the factors' own extremes.",
            )
        ],
    )


def _range(values: xr.DataArray) -> str:
    """The least and the largest of what is known."""
    known = values.values[np.isfinite(values.values)]
    return f"{known.min():.2g} to {known.max():.2g}" if known.size else "none"


def _inner(data: xr.Dataset) -> Section:
    shares, widths = inner(data), data["inner_width"].values
    figure, (left, right) = plots.panels(2, width=11)
    left.plot(widths, shares["lower"], "o-", color=plots.COLOURS[1], label="lower bound")
    left.plot(widths, shares["upper"], "s-", color=plots.COLOURS[0], label="upper bound")
    left.axvline(3, color="black", linestyle="--", linewidth=1)
    left.set(
        xlabel="inner width m of a chain 3 to m to 3", ylabel="share of chains that violate it", ylim=(-0.05, 1.05)
    )
    plots.legend(left)
    with np.errstate(divide="ignore"):
        plots.bands(
            right,
            np.log2(widths),
            {
                "largest": np.log10(data["inner_upper"].values),
                "smallest": np.log10(data["inner_lower"].values),
            },
        )
    right.axhline(0, color="black", linewidth=1)
    right.set_xticks(np.log2(widths), [str(width) for width in widths])
    right.set(xlabel="inner width m", ylabel="value over its bound, log10")
    plots.legend(right)
    eight = dict(zip(widths, shares["lower"], strict=True)).get(8, float("nan"))
    return Section(
        "Factors that are not square",
        [
            f"A tanh network 3 to m to 3 has a Jacobian of two factors, m x 3 and 3 x m. Both have min(3, m) singular values, all positive. Of {data.sizes['chain']} random chains with m = 8 the smallest singular value of the product is below the product of the"
            f" factors' smallest in {eight:.0%}. The largest is above its bound in {max(shares['upper']):.0%} of all chains.",
            "Why: the proof needs that no factor makes a vector shorter than its smallest singular value times it. A matrix with more columns than rows makes some vectors 0: it has a null space, which the list of its singular values leaves out. Where the inner"
            f" width is the largest, what the first factor writes may lie in what the second does not read. Two matrices 8 x 3 and 3 x 8 with all singular values 1 have a product of norm {float(data['composed_to_nothing']):g}: the one writes the first three numbers, the other reads the last three.",
            "Where the inner width is not the largest, it holds: for m = 3 all is square; for m < 3 among the m singular values that are not 0, as the second factor has no null space there.",
        ],
        pictures=[
            Picture(
                "inner_width",
                figure,
                "Left: share of the chains beyond each bound; dashed, the outer width. Right: medians and the middle 90 % of the extreme values over their bounds.",
                "Shares of chains of two factors that violate the lower and the upper bound against the inner width, and the ratios of the values to their bounds.",
            )
        ],
    )


def _helpers(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    gradient, variance = middle(ratio(data)), middle(change(data))
    layers = data["layer"].values
    names = [str(name) for name in data["architecture"].values]
    cells = (("tanh", "xavier"), ("relu", "he"), ("relu", "normal 0.01"))
    figure, axes = plots.panels(2 * len(cells), width=13, height=3.0, columns=len(cells))
    reach: list[float] = []
    for row, (key, label) in enumerate((("variance", "variance, log10"), ("gradient", "gradient norm, log10"))):
        for column, (activation, start) in enumerate(cells):
            ax = axes[row * len(cells) + column]
            own = data[key].sel(activation=activation, initializer=start)
            own = own - own.isel(layer=0 if key == "variance" else -1)
            reach.append(float(abs(middle(own)).max()))
            plots.bands(ax, layers, {name: own.sel(architecture=name).values for name in names})
            ax.set(title=f"{activation}, {start}", xlabel="layer", ylim=(-SHOWN, SHOWN))
            if column == 0:
                ax.set_ylabel(label)
    plots.legend(axes[0])
    residual = gradient.sel(architecture="residual")
    loud = int((residual > FAR).sum())
    normalized = gradient.sel(architecture="batch norm")
    growth, predicted = summary["batch_norm_growth_relu"], summary["batch_norm_growth_relu_predicted"]
    spread = float((normalized.max("initializer") - normalized.min("initializer")).max())
    return Section(
        "Residual connections and batch normalisation",
        [
            f"Residual connections: the smallest median ratio of the gradients (first layer over last) is {power(float(residual.min()))}, without them {power(float(gradient.sel(architecture='plain').min()))}. But the signal and the branch add up:"
            f" in {loud} of {residual.size} pairs of activation and initialiser the gradient grows by more than {10**FAR:g}, up to {power(float(residual.max()))}."
            + (" Branches have to start small, or be normalised." if loud else ""),
            f"Batch normalisation (statistics of the batch, no trained scale): the variance of the last layer over that of the first is {power(float(variance.sel(architecture='batch norm').min()))} to {power(float(variance.sel(architecture='batch norm').max()))} in the median."
            f" The gradient is {power(float(normalized.min()))} to {power(float(normalized.max()))} times as large at the first layer as at the last"
            + (", so it grows from the last layer back" if float(normalized.max()) > NEAR else "")
            + f"; with ReLU by {growth:.3f} a layer. Yang et al. 2019 find that batch normalisation makes gradients explode at initialisation, whatever the scale of the weights. For wide ReLU networks and large batches a layer halves the squared gradient and divides it by the variance of a ReLU of normal numbers, 1/2 - 1/(2 pi): a factor of (pi / (pi - 1))^(1/2) = {predicted:.3f} a layer. Initialisers differ by"
            f" at most a factor of {power(spread)} with the same activation.",
        ],
        pictures=[
            Picture(
                "helpers",
                figure,
                "Median over networks with the middle 90 %, relative to the first layer (variance) and to the last (gradient).",
                f"Variance and gradient against the layer for {listed(names)}, in three pairs of activation and initialiser.",
            )
        ],
    )


def _training(data: xr.Dataset) -> Section:
    found = training(data)
    middling = found.accuracy.median("trained")
    worst = float(found.diverged.max())
    small = middling.sel(initializer="normal 0.01")
    sentences = []
    for activation in data["trained_activation"].values:
        own = middling.sel(architecture="plain", trained_activation=activation)
        learned = [str(name) for name in own["initializer"].values if float(own.sel(initializer=name)) > LEARNED]
        sentences.append(
            f"{activation}: {listed(learned) if learned else 'none of them'} learned; the drift is least for {best(data, str(activation)).name}."
        )
    spread = float((found.accuracy.max("trained") - found.accuracy.min("trained")).max())
    return Section(
        "Does it matter for training?",
        [
            f"20 hidden layers of 32 units on the 8 x 8 digits, SGD with {data.sizes['rate']} rates from {float(data['rate'][0]):g} to {float(data['rate'][-1]):g}, {data.sizes['trained']} networks each; shown is the rate with the least median training loss. With batch normalisation the test rows are normalised by their own statistics."
            f" A median accuracy above {LEARNED:g} counts as learned; chance is 0.1. Networks whose outputs are not finite count 0: at the worst initialiser that is {worst:.0%} of the runs over all rates. Networks of one kind differ by up to {spread:.2f}.",
            "Of the plain chains: " + " ".join(sentences),
            "From 0.01 x normal kernels, with residual connections and without: "
            + "; ".join(
                f"{activation} {float(small.sel(architecture='residual', trained_activation=activation)):.2f} and {float(small.sel(architecture='plain', trained_activation=activation)):.2f}"
                for activation in data["trained_activation"].values
            )
            + ".",
        ],
        pictures=[
            Picture(
                "training",
                _tiles(
                    [
                        (
                            str(a),
                            middling.sel(architecture=a).transpose("trained_activation", "initializer"),
                        )
                        for a in data["architecture"].values
                    ],
                    (0.0, 1.0),
                    "viridis",
                    ".2f",
                    "initialiser",
                ),
                "Median test accuracy at each initialiser's best rate.",
                "Tiles of test accuracies of plain, residual and batch-normalised deep networks by activation and initialiser.",
            )
        ],
    )
