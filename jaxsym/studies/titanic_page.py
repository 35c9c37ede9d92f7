"""The page of the study ``titanic``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed
from jaxsym.training.probes import TOLERANCE


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _logistic(data, summary),
        _hidden(data, summary),
        _initializers(data, summary),
        _ties(data, summary),
        _scales(data),
        _depth(data),
        _generalisation(data, summary),
        _copies(data, summary),
    ]


def _logistic(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    steps = int(data["case0_step"][-1])
    zeros, random = (summary[f"case0_cost_{start}_{steps}"] for start in ("zeros", "random"))
    ends = [summary[f"case0_cost_{start}"] for start in ("zeros", "random")]
    same = abs(zeros - random) < 0.01
    met = abs(ends[0] - ends[1]) < 1e-4
    gradient = float(data["case0_gradient_norm"].max())
    figure, (left, right) = plots.panels(2)
    for ax, name, step, title in (
        (left, "case0_cost", "case0_step", "gradient descent, rate 0.001"),
        (right, "case0_converged_cost", "adam_step", "Adam, until convergence"),
    ):
        plots.bands(
            ax, data[step].values, {str(s): data[name].sel(case0_start=s).values for s in data["case0_start"].values}
        )
        ax.set(title=title, xlabel="iteration", ylabel="training cost (nats)")
        plots.legend(ax, title="weights at the start")
    return Section(
        "Case 0: one layer, from zero and from random weights",
        [
            f"Logistic regression, gradient descent with rate 0.001. After {steps} iterations the cost is {zeros:.4f} from zero"
            f" weights and {random:.4f} on average from standard normal ones:"
            + (" the same." if same else f" still {abs(random - zeros):.3f} apart, on standardised inputs."),
            f"After {int(data['adam_step'][-1])} iterations of Adam the gradient's norm is at most {gradient:.1e} and the costs are"
            f" {ends[0]:.5f} and {ends[1]:.5f}: "
            + (
                "they meet. The cost of a single layer is convex, and no unit has an equal: zero is as good a start as any."
                if met
                else "they do not meet."
            ),
        ],
        pictures=[
            Picture(
                "case0",
                figure,
                "Median over networks, with the middle 90 %.",
                f"Cost against iteration for logistic regression from zero and from random weights. After {steps} iterations of"
                f" gradient descent they stand at {zeros:.3f} and {random:.3f}, with Adam they end at {ends[0]:.3f} and {ends[1]:.3f}.",
            )
        ],
    )


def _hidden(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    steps = int(data["case_step"][-1])
    kernel, bias, moved = (
        summary[f"case1_{name}"] for name in ("max_abs_kernel", "max_abs_hidden_bias", "output_bias")
    )
    first, last, other = summary["case1_cost_first"], summary[f"case1_cost_{steps}"], summary[f"case2_cost_{steps}"]
    share = float(data["surviving"])
    figure, axes = plots.panels(4)
    costs = {"case 1: zeros": data["case1_cost"].values, "case 2: 0.01 x normal": data["case2_cost"].values}
    plots.bands(axes[0], data["case_step"].values, costs)
    axes[0].set(title="cost", xlabel="iteration", ylabel="training cost (nats)")
    plots.legend(axes[0])
    units = data["case2_distinct_units"].values
    plots.bands(axes[1], data["case_step"].values, {"case 1": data["case1_distinct_units"].values, "case 2": units})
    axes[1].set(title="distinct hidden units", xlabel="iteration", ylim=(0, 4.4))
    plots.legend(axes[1])
    for ax, case in zip(axes[2:], ("case1", "case2"), strict=True):
        leaves = [str(name).split("[")[0] for name in data["weight"].values]
        for colour, leaf in zip(plots.COLOURS, dict.fromkeys(leaves), strict=False):
            chosen = [i for i, name in enumerate(leaves) if name == leaf]
            lines = ax.plot(
                data["case_step"].values, data[f"{case}_weights"].values[:, chosen], color=colour, linewidth=1
            )
            lines[0].set_label(leaf)
        ax.set(title=f"{case[:4]} {case[4:]}: all parameters of one network", xlabel="iteration")
        plots.legend(ax)
    return Section(
        "Cases 1 and 2: a hidden layer, from zero and from small random weights",
        [
            f"Four tanh units, gradient descent with rate 0.01 for {steps} iterations. From zero the largest entry of a kernel at the"
            f" end is {kernel:g} and of the hidden bias {bias:g}"
            + (", exactly zero" if kernel == bias == 0 else "")
            + f"; only the output bias moves, to {moved:.4f}. The cost still falls, from {first:.4f} to {last:.4f}: the network has"
            f" learnt the share of survivors ({share:.3f}; the sigmoid of its bias is {1 / (1 + np.exp(-moved)):.3f}) and nothing about"
            " anyone. Why: the gradient of the hidden layer is proportional to the output weights, which are zero, and that of the"
            " output weights to the hidden activations, which are zero as well.",
            f"From 0.01 x normal, where no two units are equal and no signal is zero, the same network reaches {other:.4f}.",
        ],
        pictures=[
            Picture(
                "cases",
                figure,
                "Above: median over networks, with the middle 90 %. Below: one network each.",
                f"Cost and distinct units over {steps} iterations, and every parameter of one network: from zero all but the output"
                f" bias stay at {kernel:g} and the cost ends at {last:.3f}; from small random weights it ends at {other:.3f}.",
            )
        ],
    )


def _initializers(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name in data["initializer"].values]
    networks = data.sizes["network"]
    final = {name: summary[f"distinct_units_{name}"] for name in names}
    stuck = [name for name in names if final[name] == 1]
    whole = [name for name in names if final[name] > 3.5]
    between = [name for name in names if name not in stuck + whole]
    same = [
        name for name in names if networks > 1 and np.ptp(data["cost"].sel(initializer=name).values, axis=0).max() == 0
    ]
    figure, (left, middle, right) = plots.panels(3, columns=3, width=11)
    for i, name in enumerate(names):
        mean = data["distinct_units"].sel(initializer=name).mean("network")
        left.plot(data["adam_step"], mean + 0.03 * (i - 3), color=plots.COLOURS[i], label=name)
    left.set(title="distinct units, mean", xlabel="iteration", ylim=(0, 4.5))
    plots.legend(left)
    last = data["cost"].isel(adam_step=-1)
    plots.distributions(middle, {name: last.sel(initializer=name).values for name in names})
    middle.set(title="final training cost", xlabel="nats")
    plots.distributions(right, {name: data["test_accuracy"].sel(initializer=name).values for name in names})
    right.set(title="test accuracy", xlabel="fraction correct")
    rows = [
        (
            name,
            f"{final[name]:.2f}",
            f"{summary[f'cost_{name}']:.4f}",
            f"{float(data['train_accuracy'].sel(initializer=name).mean()):.3f}",
            f"{summary[f'test_accuracy_{name}']:.3f}",
            f"{float(data['gradient_norm'].sel(initializer=name).median()):.1e}",
        )
        for name in names
    ]
    return Section(
        f"{networks} networks from each initializer",
        [
            *(
                [f"{summary['networks_not_finite']} networks of this page diverged and are left out of all means."]
                if summary["networks_not_finite"]
                else []
            ),
            f"The same network with Adam for {int(data['adam_step'][-1])} iterations. A unit is what it reads, its column of the kernel"
            " and its bias; units that are equal up to sign count once."
            + (
                f" From {listed(stuck)} every network ends with one distinct unit of four"
                if stuck
                else " No start keeps its units tied"
            )
            + (f", from {listed(whole)} with (nearly) four" if whole else "")
            + (f"; {listed(between)} end in between." if between else "."),
            *(
                [f"From {listed(same)} all networks are one and the same: these starts leave nothing to chance."]
                if same
                else []
            ),
        ],
        tables=[
            Table(
                (
                    "initializer",
                    "distinct units",
                    "final cost",
                    "training accuracy",
                    "test accuracy",
                    "gradient norm (median)",
                ),
                rows,
                "Means over the networks, at the end.",
            )
        ],
        pictures=[
            Picture(
                "initializers",
                figure,
                "Left: shifted a little so that no line hides another. Middle and right: one dot a network, the bar is the median.",
                "Distinct units over time, final cost and test accuracy by initializer: "
                + "; ".join(f"{row[0]} {row[1]} units, cost {row[2]}, test accuracy {row[4]}" for row in rows)
                + ".",
            )
        ],
    )


def _ties(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    ends = {
        str(tie): float(data["tie_distinct_units"].sel(tie=tie).isel(adam_step=-1).mean()) for tie in data["tie"].values
    }
    cells = {
        "constant units, constant output": summary["distinct_units_constant"],
        "tied units, random output": summary["distinct_units_tied"],
        **ends,
    }
    by_output = {
        kind: [value for name, value in cells.items() if name.endswith(f"{kind} output")]
        for kind in ("constant", "random")
    }
    decided = max(by_output["constant"]) == 1 and min(by_output["random"]) > 1
    every = np.concatenate([data["unit_distance"].values.ravel(), data["tie_distance"].values.ravel()])
    below, above = every[every < TOLERANCE], every[every >= TOLERANCE]
    gap = f"the largest distance of equal units is {below.max():.1e}" if below.size else "no units are equal"
    gap += f", the smallest of different ones {above.min():.2g}" if above.size else ", none are different"
    clear = bool(below.size and above.size and above.min() > 100 * max(below.max(), TOLERANCE / 100))
    figure, (ax,) = plots.panels(1, width=8, height=3.8)
    plots.log_histogram(ax, every, floor=1e-9, threshold=TOLERANCE)
    ax.set(title="distances of all pairs of units, at the end", xlabel="relative to the larger norm", ylabel="pairs")
    return Section(
        "What breaks a tie",
        [
            "The gradient of unit j's incoming weights is B_j times a sum over the passengers that depends on the unit's own weights"
            " alone. Units that are equal get gradients that differ only by their output weights B_j: equal output weights keep them"
            " equal for ever, under gradient descent, momentum or Adam; different ones pull them apart."
            " ('constant' has equal output weights; 'tied' has equal columns, so its one output column is random.)",
            "Distinct units at the end, mean over the networks: "
            + ", ".join(f"{name}: {value:.2f}" for name, value in cells.items())
            + "."
            + (
                " So it is the output layer that decides, not whether the hidden weights are random." if decided else ""
            ),
            f"Is the count a tolerance's doing? Units count as equal below {TOLERANCE:g} of their norm; {gap}."
            + (" Nothing lies near the threshold." if clear else " The gap is not clean: read the counts with care."),
        ],
        pictures=[
            Picture(
                "distances",
                figure,
                "All pairs of hidden units of every network above, two mixed starts included; logarithmic counts above ten.",
                f"Histogram of the distances between hidden units: {below.size} pairs below the threshold and {above.size} above; {gap}.",
            )
        ],
    )


def _scales(data: xr.Dataset) -> Section:
    scales = [float(scale) for scale in data["scale"].values]
    biases = [str(bias) for bias in data["bias"].values]
    start = data["scale_saturation"].isel(adam_step=0).mean("few")
    figure, (left, right) = plots.panels(2)
    for i, scale in enumerate(scales):
        for style, bias in zip(("-", "--"), biases, strict=True):
            chosen = data.sel(scale=scale, bias=bias)
            label = f"{scale:g}" if bias == "zero" else None
            left.plot(data["adam_step"], chosen["scale_cost"].median("few"), style, color=plots.COLOURS[i], label=label)
            right.plot(
                data["adam_step"], chosen["scale_saturation"].mean("few"), style, color=plots.COLOURS[i], label=label
            )
    left.set(title="cost, median", xlabel="iteration", ylabel="training cost (nats)", yscale="log")
    right.set(title="saturated activations, mean", xlabel="iteration", ylabel="fraction of |tanh| > 0.99", ylim=(0, 1))
    plots.legend(left, title="scale; dashed: random biases")
    rows = [
        (
            f"{scale:g}",
            bias,
            f"{float(start.sel(scale=scale, bias=bias)):.2f}",
            f"{float(data['scale_cost'].sel(scale=scale, bias=bias).isel(adam_step=-1).mean()):.4f}",
            f"{float(data['scale_test_cost'].sel(scale=scale, bias=bias).mean()):.4f}",
            f"{float(data['scale_test_accuracy'].sel(scale=scale, bias=bias).mean()):.3f}",
        )
        for scale in scales
        for bias in biases
    ]
    final = data["scale_cost"].isel(adam_step=-1).mean(("few", "bias"))
    test = data["scale_test_cost"].mean(("few", "bias"))
    best = scales[int(test.values.argmin())]
    worst = scales[int(test.values.argmax())]
    costs = data["scale_test_cost"]
    changes = [
        _difference(costs.sel(scale=s, bias="random").values, costs.sel(scale=s, bias="zero").values) for s in scales
    ]
    return Section(
        "Initial scale, and random biases",
        [
            f"Kernels of {scales[0]:g} to {scales[-1]:g} times a standard normal. At the start {float(start.sel(scale=scales[0]).mean()):.0%} of the"
            f" activations are saturated at scale {scales[0]:g} and {float(start.sel(scale=scales[-1]).mean()):.0%} at scale {scales[-1]:g}."
            f" Final training cost by scale: {', '.join(f'{s:g}: {float(final.sel(scale=s)):.3f}' for s in scales)};"
            f" the test cost is lowest at scale {best:g} ({float(test.min()):.3f}) and highest at {worst:g} ({float(test.max()):.3f}).",
            "Random biases instead of zero ones change the mean test cost (± standard error) by "
            + ", ".join(f"{change} at scale {scale:g}" for scale, change in zip(scales, changes, strict=True))
            + " nats.",
        ],
        tables=[
            Table(
                ("scale", "biases", "saturated at the start", "final cost", "test cost", "test accuracy"),
                rows,
                "Means over the networks.",
            )
        ],
        pictures=[
            Picture(
                "scales",
                figure,
                "Solid: biases zero. Dashed: biases random with the same scale.",
                "Cost and saturated activations over time for four initial scales. "
                + "; ".join(
                    f"scale {r[0]}, biases {r[1]}: {r[2]} saturated at the start, final cost {r[3]}" for r in rows
                )
                + ".",
            )
        ],
    )


def _depth(data: xr.Dataset) -> Section:
    figure, axes = plots.panels(data.sizes["depth"])
    sentences = []
    for ax, depth in zip(axes, data["depth"].values, strict=True):
        chosen = data.sel(depth=depth)
        plots.bands(
            ax,
            data["adam_step"].values,
            {str(s): chosen["depth_cost"].sel(depth_start=s).values for s in data["depth_start"].values},
        )
        ax.set(title=f"{depth} hidden layers", xlabel="iteration", ylabel="training cost (nats)")
        plots.legend(ax)
        last = {
            str(s): chosen["depth_cost"].sel(depth_start=s).isel(adam_step=-1).values
            for s in data["depth_start"].values
        }
        ends = {start: float(costs.mean()) for start, costs in last.items()}
        largest, bias = float(chosen["depth_zeros_largest"].max()), float(chosen["depth_zeros_output_bias"].mean())
        sentences.append(
            f"{depth} hidden layers: from zero no entry but the output bias ever exceeds {largest:g}, the bias ends at {bias:.3f} in size"
            f" and the cost at {ends['zeros']:.4f}; from 0.01 x normal it ends at {ends['normal']:.4f}, from Xavier at {ends['xavier']:.4f}"
            f" (difference {_difference(last['normal'], last['xavier'])}, standard error)."
        )
    return Section(
        "Two and three hidden layers",
        sentences,
        pictures=[
            Picture(
                "depth",
                figure,
                "Median over networks, with the middle 90 %.",
                "Cost over time by depth and start. " + " ".join(sentences),
            )
        ],
    )


def _generalisation(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name in data["initializer"].values]
    cost_gap = data["test_cost"] - data["cost"].isel(adam_step=-1)
    accuracy_gap = data["train_accuracy"] - data["test_accuracy"]
    figure, (left, right) = plots.panels(2)
    plots.distributions(left, {name: cost_gap.sel(initializer=name).values for name in names})
    left.set(title="cost, test minus training", xlabel="nats")
    plots.distributions(right, {name: accuracy_gap.sel(initializer=name).values for name in names})
    right.set(title="accuracy, training minus test", xlabel="fraction")
    xavier = float(cost_gap.sel(initializer="xavier").mean()), float(accuracy_gap.sel(initializer="xavier").mean())
    zeros = float(cost_gap.sel(initializer="zeros").mean()), float(accuracy_gap.sel(initializer="zeros").mean())
    mean, deviation = summary["test_accuracy_xavier_other_splits"], summary["test_accuracy_xavier_split_deviation"]
    return Section(
        "Training against test",
        [
            f"At the end the test cost of Xavier networks exceeds their training cost by {xavier[0]:.3f} nats and the training accuracy the"
            f" test accuracy by {xavier[1]:.3f}, means over the networks; networks that started from zero, which learn only the share of"
            f" survivors, have gaps of {zeros[0]:z.3f} and {zeros[1]:z.3f}.",
            f"How far to trust one division into training and test: on this one Xavier networks reach"
            f" {summary['test_accuracy_xavier']:.3f}, on {data.sizes['split']} others {mean:.3f} on average with a standard deviation of"
            f" {deviation:.3f} from division to division.",
        ],
        pictures=[
            Picture(
                "generalisation",
                figure,
                "One dot a network, the bar is the median.",
                f"Gaps between training and test by initializer; Xavier {xavier[0]:.3f} nats and {xavier[1]:.3f} in accuracy.",
            )
        ],
    )


def _copies(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    order, dim, minima = summary["group_order"], summary["group_dim"], summary["minima"]
    naive, modulo = summary["distinct_naive"], summary["distinct_modulo_symmetry"]
    few, decay = data.sizes["few"], float(data["minimum_weight_decay"])
    rows = [
        (str(kind), str(size), str(moves))
        for kind, size, moves in zip(
            data["factor"].values, data["factor_size"].values, data["factor_moves"].values, strict=True
        )
    ]
    return Section(
        "Equal networks with other weights",
        [
            f"The units of the hidden layer may change places, and tanh is odd: the group found from the network's jaxpr has {order} elements"
            + (f" and {dim} continuous dimensions." if dim else " and no continuous dimension.")
            + " A start with tied units is one that some of them leave where it is, and gradient descent never leaves such a set.",
            f"{few} Xavier networks, polished in float64 to minima of the cost with a weight decay of {decay:g} (without any there may be no"
            f" finite minimum): {minima} have a gradient of norm below {float(data['minimum_wanted']):g} and a positive definite Hessian. They are"
            f" {naive} different points, and modulo the group {modulo} distinct minima"
            + (": the others are copies." if modulo < naive else ": none is a copy of another.")
            + " The study equivalent_minima counts those of many more.",
        ],
        tables=[Table(("factor", "units", "moves"), rows, f"The group: {order} elements.")],
    )


def _difference(one: np.ndarray, other: np.ndarray) -> str:
    """Difference of two means with its standard error."""
    error = np.sqrt(one.var() / one.size + other.var() / other.size)
    return f"{one.mean() - other.mean():+.4f} ± {error:.4f}"
