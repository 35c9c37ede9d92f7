"""The page of the study ``equivalent_minima``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.equivalent_minima_summary import LATE, moves
from jaxsym.studies.minima import classes
from jaxsym.studies.study import Picture, Section, Table, listed

BEST = 8
"""Rows of the table of minima."""
FLOOR = 1e-12
"""Of the histogram of distances."""
CLEAR = 100.0
"""A gap at least this wide is a gap."""
KINDS = ("naive", "modulo_symmetry", "brute_force")


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _counts(data, summary),
        _table(data, summary),
        _copies(data, summary),
        _rescalings(data, summary),
        _jumps(data, summary),
    ]


def _counts(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    decays, order = summary["weight_decays"], summary["order"]
    networks, minima = data.sizes["network"], summary["minima"]
    naive, modulo = summary["distinct_naive"], summary["distinct_modulo_symmetry"]
    by = [summary[f"distinct_{kind}_by_weight_decay"] for kind in KINDS]
    figure, axes = plots.panels(2, width=10)
    for ax, kind, title in zip(
        axes, ("naive", "canonical"), ("of the parameters", "of the canonical forms"), strict=True
    ):
        plots.log_histogram(ax, pair_distances(data, kind), floor=FLOOR, threshold=summary["tolerance"])
        ax.set(title=f"distances of all pairs {title}", xlabel="Euclidean distance", ylabel="pairs", xlim=(1e-13, 100))
    rows = []
    for i, decay in enumerate(decays):
        own = data.sel(weight_decay=decay)
        good = own["minimum"].values
        rows.append(
            (
                f"{decay:g}",
                str(int(good.sum())),
                *(str(values[i]) for values in by),
                f"{summary['expected_naive_by_weight_decay'][i]:.0f}",
                str(int((own["tied"].values & good).sum())),
                str(int((own["stabiliser"].values[good] > 1).sum())),
                str(int(own["saddles"].sum())),
            )
        )
    agree = by[1] == by[2]
    lost, expected = summary["not_minima"], summary["expected_naive"]
    gap = summary["distance_gap"]
    more = f"{modulo} minima, not {naive}" if modulo < naive else f"{modulo} minima, as many as there are points"
    return Section(
        f"{minima} minima, and how many they are",
        [
            f"{networks} networks of four tanh units, trained with Adam and then polished by Newton's method in float64 until the gradient's"
            f" norm is at most {float(data['wanted']):g} (the largest is {summary['gradient_norm_worst']:.1e}) and the Hessian is positive"
            f" definite. The loss is the cross-entropy with half of {summary['weight_decay']:g} times the squared norm of all parameters."
            + (f" {lost} of them did not get there and are not counted." if lost else " All of them got there.")
            + (
                f" On the way {summary['saddles']} saddles were met and left."
                if summary["saddles"]
                else " No saddle was met on the way."
            ),
            f"The group found from the network's jaxpr is: {summary['group']}; {order} elements. As points of the parameter space the networks"
            f" are {naive} different ones. Modulo the group they are {modulo}: {more}.",
            (
                f"Trying all {order} elements on each pair of networks gives the same count as canonical forms at every weight decay."
                if agree
                else f"Trying all {order} elements on each pair gives {listed([str(value) for value in by[2]])}, canonical forms give"
                f" {listed([str(value) for value in by[1]])}, for the weight decays {listed([f'{value:g}' for value in decays])}."
            ),
            *_distances(summary, gap),
            f"Had every network drawn one of the copies of its minimum by lot, one would expect {expected:.0f} different points; there are {naive}"
            + (
                ": no copy is seen to be preferred."
                if abs(naive - expected) <= 3 * np.sqrt(max(minima - expected, 1))
                else ": some copies are preferred."
                if naive < expected
                else ": more than by chance."
            ),
            f"The number depends on the weight decay: {listed([f'{by[1][i]} at {decay:g}' for i, decay in enumerate(decays)])}"
            f" of {networks} networks each.",
        ],
        tables=[
            Table(
                (
                    "weight decay",
                    "minima",
                    "distinct points",
                    "distinct modulo the group",
                    "by all elements",
                    "points if by lot",
                    "ties",
                    "held by an element",
                    "saddles left",
                ),
                rows,
                "Ties: the canonical form is not determined by the network alone. Held: some element but the identity leaves the network where it is.",
            )
        ],
        pictures=[
            Picture(
                "distances",
                figure,
                "All pairs of minima at each weight decay, together; counts are logarithmic.",
                f"Histograms of distances of all pairs of minima, of the parameters and of the canonical forms, with the tolerance"
                f" {summary['tolerance']:.1e}. Distinct minima: {naive} and {modulo}.",
            )
        ],
    )


def _distances(summary: Mapping[str, Any], gap: float | None) -> list[str]:
    """What the histogram of distances says about the tolerance."""
    if gap is None:
        return ["All distances are those of one minimum: there is no gap to put a tolerance in."]
    return [
        f"Is the count a tolerance's doing? Two points are one minimum below {summary['tolerance']:.1e}; the largest distance below that is"
        f" {summary['distance_below_gap']:.1e}, the smallest above it {summary['distance_above_gap']:.1e}, {gap:.1e} times as large."
        + (" Nothing lies in between." if gap >= CLEAR else " The gap is narrow: read the counts with care.")
    ]


def pair_distances(data: xr.Dataset, kind: str) -> np.ndarray:
    """Distances of all pairs of minima, of all weight decays."""
    first, second = np.triu_indices(data.sizes["network"], 1)
    good = data["minimum"].values
    return data[f"distance_{kind}"].values[good[:, first] & good[:, second]]


def _table(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    own = data.sel(weight_decay=summary["weight_decay"])
    good = own["minimum"].values
    first, second = np.triu_indices(good.size, 1)
    near = own["distance_canonical"].values[good[first] & good[second]]
    labels = classes(near, int(good.sum()), summary["tolerance"])
    own = own.isel(network=good)
    loss = own["loss"].values
    groups = sorted((np.flatnonzero(labels == label) for label in np.unique(labels)), key=lambda g: loss[g].min())
    sizes = np.array([len(group) for group in groups])
    naive = classes(own["distance_naive"].values[good[first] & good[second]], len(loss), summary["tolerance"])
    rows = [
        (
            f"{loss[group].min():.6f}",
            str(len(group)),
            str(len(np.unique(naive[group]))),
            *(f"{own[name].values[group].mean():.4f}" for name in ("train_accuracy", "test_accuracy", "test_cost")),
            f"{own['curvature'].values[group].min():.1e}",
        )
        for group in groups[:BEST]
    ]
    lowest = np.array([loss[group].min() for group in groups])
    best = np.array([own["test_cost"].values[group].mean() for group in groups])
    figure, (left, right) = plots.panels(2)
    left.scatter(lowest, sizes, s=14, color=plots.COLOURS[0])
    left.set(title="how often each minimum is found", xlabel="loss (nats)", ylabel="networks", yscale="log")
    plots.plain(left, "y")
    right.scatter(lowest, best, s=4 * np.sqrt(sizes) * 4, color=plots.COLOURS[1], alpha=0.7, linewidths=0)
    right.set(title="test cost of each minimum", xlabel="loss (nats)", ylabel="nats")
    top = int(sizes.argmax())
    return Section(
        "The minima themselves",
        [
            f"The lowest loss is {lowest[0]:.6f}, reached by {sizes[0]} of {len(loss)} networks; the highest of a minimum is {lowest[-1]:.6f}."
            f" The minimum that is found most often ({sizes[top]} networks) has rank {top + 1} of {len(groups)};"
            f" {int((sizes == 1).sum())} are found by one network only, so more networks would probably find more minima."
            if (sizes == 1).any()
            else f"The lowest loss is {lowest[0]:.6f}, reached by {sizes[0]} of {len(loss)} networks; the highest of a minimum is"
            f" {lowest[-1]:.6f}. Every minimum is found by at least two networks.",
            f"The lowest test cost, {best.min():.4f}, is that of the minimum of rank {int(best.argmin()) + 1}.",
        ],
        tables=[
            Table(
                (
                    "loss",
                    "networks",
                    "distinct points",
                    "training accuracy",
                    "test accuracy",
                    "test cost",
                    "least curvature",
                ),
                rows,
                f"The {len(rows)} lowest minima at weight decay {summary['weight_decay']:g}.",
            )
        ],
        pictures=[
            Picture(
                "minima",
                figure,
                "One dot a minimum modulo the group; on the right its area grows with the number of networks.",
                f"Networks and test cost against the loss of {len(groups)} minima, from {lowest[0]:.4f} to {lowest[-1]:.4f} nats.",
            )
        ],
    )


def _copies(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    loss = data["copy_loss"].values
    order, points = summary["order"], summary["distinct_copies"]
    away, spread = data["copy_distance"].values, summary["loss_spread_on_orbit"]
    figure, (ax,) = plots.panels(1, width=8, height=3)
    ax.scatter(away, (loss - loss[0]) / loss[0], s=8, color=plots.COLOURS[0], alpha=0.6, linewidths=0)
    ax.set(title=f"the {order} copies of one network", xlabel="distance from the network itself")
    ax.set(ylabel="relative difference of the loss", ylim=(-1e-14, 1e-14) if spread < 1e-14 else None)
    said = "the same to the last digit" if spread == 0 else f"a relative spread of {spread:.1e}"
    return Section(
        f"One network and its {order} copies",
        [
            f"All {order} elements of the group, applied to the best network, give {points} different points, up to {away.max():.2f} away"
            f" (the network's own norm is {float(data['best_norm']):.2f}). Their losses are {loss.min():.12f} to {loss.max():.12f}, {said}"
            + ("." if spread == 0 else ", which is rounding." if spread < 1e-12 else ", which is more than rounding.")
        ],
        pictures=[
            Picture(
                "copies",
                figure,
                "One dot a copy. The vertical axis ends at 1e-14: any difference would be rounding.",
                f"Loss against distance of {order} copies of one network: the losses are {said}.",
            )
        ],
    )


def _rescalings(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    factor, path = data["path_factor"].values, data["path_gradient_norm"].values
    norm = data["rescaled_gradient_norm"].values
    own = path[len(factor) // 2, 0]
    low, high = float(factor[0]), float(factor[-1])
    figure, (left, right) = plots.panels(2)
    for i in range(path.shape[1]):
        left.plot(factor, path[:, i] / own, color=plots.COLOURS[i % len(plots.COLOURS)], linewidth=1)
    left.set(
        title="one unit rescaled", xscale="log", yscale="log", xlabel="factor", ylabel="gradient norm over its own"
    )
    for axis in ("x", "y"):
        plots.plain(left, axis)
    right.hist(np.log10(norm / own), bins=30, color=plots.COLOURS[0])
    right.axvline(0, color="black", linestyle="--", linewidth=1)
    right.set(title="all units rescaled at random", xlabel="log10 of gradient norm over its own", ylabel="copies")
    steeper = float(np.mean(norm > own))
    spread = summary["loss_spread_of_rescalings"]
    return Section(
        "A ReLU network that is still learning: the same loss, other gradients",
        [
            f"Eight ReLU units in the middle of training, with cross-entropy alone. {norm.size} copies, each unit rescaled by a factor between"
            f" {low:g} and {high:g} (uniform in its logarithm), have the same loss{'' if spread == 0 else f' to a relative {spread:.1e}'}."
            f" The gradient's norm goes from {norm.min():.4g} to {norm.max():.4g}: a ratio of {summary['gradient_norm_ratio_on_orbit']:.3g}."
            f" {steeper:.0%} of the copies are steeper than the network itself ({own:.4g}).",
            "At a minimum the gradient is zero on the whole orbit. Away from it a function has steep and shallow parameters, and a rescaling"
            " can be chosen to make the next step longer or shorter.",
        ],
        pictures=[
            Picture(
                "rescalings",
                figure,
                "Left: one line a unit. Right: the dashed line is the network itself.",
                f"Gradient norm along the orbit of rescalings: ratio of largest to smallest {summary['gradient_norm_ratio_on_orbit']:.3g}.",
            )
        ],
    )


def _jumps(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    batches = [str(batch) for batch in data["batch"].values]
    rates = summary["jumps_rates"]
    share = data["step"].values / data["step"].values[-1]
    away = (data["followed_distance"] / data["followed_radius"]).values
    nearest = data["followed_nearest"].values
    figure, axes = plots.panels(4, width=10)
    rows, total, never = [], 0, []
    for i, batch in enumerate(batches):
        left, right = axes[2 * i], axes[2 * i + 1]
        changed, last, wander, settled, jumped = (
            summary[f"jumps_{what}_{batch.replace(' ', '_')}"]
            for what in (
                "fraction_changed",
                "last_change",
                "fraction_wandering",
                "fraction_settled",
                "between_neighbourhoods",
            )
        )
        for j, rate in enumerate(rates):
            final = (nearest[i, j] != nearest[i, j, :, -1:]).mean(axis=0)
            left.plot(share, final, color=plots.COLOURS[j], label=f"{rate:g}")
            rows.append(
                (
                    batch,
                    f"{rate:g}",
                    f"{float(np.median(data['followed_objective'].values[i, j, :, -1])):.4f}",
                    f"{changed[j]:.0%}",
                    f"{last[j]:.0%}",
                    f"{wander[j]:.0%}",
                    f"{settled[j]:.0%}",
                    str(jumped[j]),
                )
            )
            total += jumped[j]
            if settled[j] == 0:
                never.append(f"{rate:g} ({batch})")
        plots.bands(right, share, {f"{rate:g}": away[i, j] for j, rate in enumerate(rates)}, share=0.5)
        right.axhline(1, color="black", linestyle="--", linewidth=1)
        left.set(
            title=f"{batch} a step: nearest copy not yet the last one", xlabel="share of the training", ylim=(-0.03, 1)
        )
        left.set(ylabel="fraction of networks")
        right.set(
            title="distance to the nearest copy",
            xlabel="share of the training",
            yscale="log",
            ylabel="1: halfway to another copy",
        )
        plots.plain(right, "y")
        plots.legend(left, title="learning rate", loc="upper right")
    excess, barrier = summary["jumps_loss_above_minimum_at_last_change"], summary["jumps_barrier"]
    runs, crossed = summary["jumps_runs_that_change"], summary["jumps_last_changes_below_barrier"]
    num = int(np.prod(nearest.shape[:3]))
    once, after = summary["jumps_runs_settled"], summary["jumps_runs_that_change_after_settling"]
    _, last_share, ever = moves(data)
    wandering, unsettled = summary["jumps_runs_wandering"], int(((last_share > 1 - LATE) & ~ever).sum())
    return Section(
        "Do optimisers jump between equivalent minima?",
        [
            f"{num} runs of gradient descent, {data.sizes['followed']} from random starts at each rate with all rows and with 32 rows a step,"
            f" {int(data['step'][-1])} iterations. The end of each is polished to its own minimum, and at {share.size} moments the nearest"
            " of all copies of that minimum is found. A run is settled where it is closer to a copy than half the distance of two copies; a jump"
            " leads from the neighbourhood of one copy into that of another.",
            f"In {runs} of {num} runs the nearest copy changes at some time. {once} runs settle,"
            f" and make {total} jumps; in {after} of them the nearest copy changes at all once they have settled."
            + (
                " No optimiser jumped: a copy is chosen while none is near, and one that is reached is kept."
                if total == 0
                else " So jumps happen, at "
                + listed([f"rate {row[1]} with {row[0]}" for row in rows if int(row[7])])
                + "; elsewhere a copy that is reached is kept."
            ),
            f"That is not all: in {wandering} runs the nearest copy still changes in the last {LATE:.0%} of the training"
            + (
                f"; {unsettled} of these never settle, and wander between copies without coming to rest at any."
                if wandering
                else "."
            ),
            *(
                [
                    f"At the last change of the nearest copy the loss is {excess:.4f} nats above that of the minimum (median), and the straight line"
                    f" to the next copy rises by {barrier:.4f}; in {crossed} of the {runs} runs that change the loss was lower than that barrier."
                ]
                if runs
                else []
            ),
            *(
                [f"No run settles at {listed(never)}: too slow, or too noisy to stay with any minimum."]
                if never
                else []
            ),
        ],
        tables=[
            Table(
                (
                    "batch",
                    "rate",
                    "last loss (median)",
                    "nearest copy changes",
                    "last change after (latest)",
                    f"changes in the last {LATE:.0%}",
                    "settle",
                    "jumps",
                ),
                rows,
                "Percentages of the runs; the last change as a share of the training.",
            )
        ],
        pictures=[
            Picture(
                "jumps",
                figure,
                "Left: fraction of the runs whose nearest copy is not the one at the end. Right: median and middle half; below the dashed line one"
                " copy is unambiguously the nearest.",
                "Nearest copy and distance to it over training. "
                + "; ".join(
                    f"{row[0]}, rate {row[1]}: {row[3]} change, {row[6]} settle, {row[7]} jumps" for row in rows
                )
                + ".",
            )
        ],
    )
