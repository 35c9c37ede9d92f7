"""The page of the study ``hyperparameters``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Claim, Picture, Section, Table, agreed, below, claims_table, listed, tally

NAMES = {
    "random": "random",
    "quasi_random": "quasi-random",
    "tpe": "TPE",
    "cma_es": "CMA-ES",
    "evolution": "evolution",
    "one_at_a_time": "one at a time",
}
AXES = {
    "units": "hidden units in a layer",
    "depth": "hidden layers",
    "learning_rate": "learning rate",
    "activation": "activation",
    "initialiser": "initialiser",
}
CAP = 100.0
"""A loss above this, or none at all, counts as this in ratios and pictures."""
UNLEARNT = 0.9
"""A loss above this part of what guessing by the classes' shares gives counts as nothing learnt."""
CLEVER = ("quasi_random", "tpe", "cma_es", "evolution")


def claims(figures: Mapping[str, Any]) -> list[Claim]:
    """What the exercises say, what was measured, and whether it holds."""
    widths = figures["units_values"]
    enough, gain, last = (figures[f"units_{name}"] for name in ("enough", "gain", "last_doubling"))
    most = enough if gain[2] < 1 and enough > int(widths[0]) else widths[-1]
    rates, losses = figures["learning_rate_values"], figures["learning_rate_losses"]
    ends = [losses[0], losses[-1]]
    found = [
        (
            "More hidden units are better, up to a point.",
            f"{widths[0]} to {most} units: loss times {_between(gain)}; {widths[-2]} to {widths[-1]}: times {_between(last)}; "
            + (
                f"from {enough} units on no doubling lowers it beyond chance."
                if enough < int(widths[-1])
                else f"up to {widths[-1]} units, the most that were tried, there is no such point."
            ),
            agreed([below(gain, 1), True if enough < int(widths[-1]) else None]),
        ),
        (
            "A further hidden layer helps.",
            f"1 to 2 layers: loss times {_between(figures['layer_ratio'])}; 1 to {figures['depth_values'][-1]}: times {_between(figures['deepest_ratio'])}.",
            below(figures["layer_ratio"], 1),
        ),
        (
            "A bad learning rate ruins everything.",
            f"median loss {_short(ends[0])} at rate {rates[0]} and {_short(ends[1])} at {rates[-1]}, {_short(min(losses))} at the best of the grid; guessing gives {figures['guessing_loss']:.2f}.",
            min(ends) > UNLEARNT * figures["guessing_loss"] > min(losses),
        ),
        (
            "Joint search beats one change at a time, with the same number of trials.",
            f"best loss of the five joint samplers (their geometric mean), divided by that of one at a time: {_between(figures['joint_over_one_at_a_time'])}.",
            below(figures["joint_over_one_at_a_time"], 1),
        ),
    ]
    return found + [
        (
            f"{NAMES[way][0].upper()}{NAMES[way][1:]} beats random search.",
            f"best loss, divided by that of random search: {_between(figures[f'over_random_{way}'])}.",
            below(figures[f"over_random_{way}"], 1),
        )
        for way in CLEVER
    ]


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _claims(data, summary),
        _alone(data, summary),
        _rate(summary),
        _jointly(data, summary),
        _chosen(data, summary),
    ]


def _claims(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    found = claims(summary)
    train, validation, test = (int(n) for n in data["rows"].values)
    return Section(
        "What is claimed, and whether it holds",
        [
            f"Perceptrons on {data.attrs['data']}: {train} training rows, {validation} for validation, {test} for the test; {int(data['steps'])} steps of plain SGD in every trial, so that what a point is"
            " worth is how far it comes in this time. Everything is compared by the validation loss at the end; the test rows are used only for what was chosen.",
            f"{tally(found)} Factors are geometric means over pairs that share a network's key, with 95 % t intervals (those of the four comparisons with random"
            " search are wider, so that all four hold together with 95 %); a claim holds when its whole interval is on the right side of 1, and does not when it is on the other.",
        ],
        tables=[claims_table(found, "The exercises of the chapter, and what is commonly said of samplers.")],
    )


def _alone(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, axes = plots.panels(len(AXES), width=13, height=3.4, columns=3)
    for ax, (name, label) in zip(axes, AXES.items(), strict=True):
        losses = np.minimum(_losses(data, name), CAP)
        texts = summary[f"{name}_values"]
        if name in ("activation", "initialiser"):
            plots.distributions(ax, dict(zip(texts, losses, strict=True)))
            ax.set(xlabel="validation loss (nats)", title=label)
            plots.logarithmic(ax, "x")
            continue
        plots.bands(ax, np.array([float(text) for text in texts]), {label: losses.T})
        ax.set(xlabel=label, ylabel="validation loss (nats)")
        if name != "depth":
            plots.logarithmic(ax, "x")
        plots.logarithmic(ax, "y")
    rows = []
    for name, label in AXES.items():
        losses = np.minimum(_losses(data, name), CAP)
        best = int(np.argmin(np.median(losses, axis=1)))
        worst = int(np.argmax(np.median(losses, axis=1)))
        texts = summary[f"{name}_values"]
        rows.append(
            (
                label,
                f"{texts[0]} to {texts[-1]}" if name in ("units", "depth", "learning_rate") else listed(texts),
                *_row(texts, losses, best),
                *_row(texts, losses, worst),
            )
        )
    spans = {
        name: np.max(summary[f"{name}_losses"]) / np.min(summary[f"{name}_losses"])
        for name in AXES
        if name != "learning_rate"
    }
    widest = max(spans, key=lambda name: spans[name])
    base = data.attrs["base"]
    return Section(
        "Each alone",
        [
            f"One hyperparameter is changed, the others stay at {base}; {data.sizes['network']} networks for each value, of the same keys, and so with the same batches.",
            f"Beside the learning rate, {AXES[widest]} matters most: its worst value has {spans[widest]:.1f} times the loss of its best. From zeros, as from a constant, all units of a layer stay equal.",
        ],
        tables=[
            Table(
                (
                    "hyperparameter",
                    "values",
                    "best",
                    "median loss",
                    "90 % of the networks",
                    "worst",
                    "median loss",
                    "90 % of the networks",
                ),
                rows,
                f"Validation loss (nats); losses above {CAP:g} count as {CAP:g}. Best and worst by the median.",
            )
        ],
        pictures=[
            Picture(
                "alone",
                figure,
                "Median over networks, with the middle 90 %; for activations and initialisers a dot is a network and a bar the median.",
                f"Validation loss against {listed(list(AXES.values()))}, each changed alone.",
            )
        ],
    )


def _rate(summary: Mapping[str, Any]) -> Section:
    rates = np.array([float(text) for text in summary["learning_rate_values"]])
    figure, (ax,) = plots.panels(1, width=7)
    ax.plot(rates, summary["learning_rate_unlearnt"], "o-", color=plots.COLOURS[0], label="nothing learnt")
    ax.plot(rates, summary["learning_rate_diverged"], "s--", color=plots.COLOURS[1], label="diverged")
    ax.set(xlabel="learning rate", ylabel="share of the networks", ylim=(-0.05, 1.05))
    plots.logarithmic(ax, "x")
    plots.legend(ax)
    works = [
        text
        for text, share in zip(summary["learning_rate_values"], summary["learning_rate_unlearnt"], strict=True)
        if share < 0.5
    ]
    limit = summary["diverged_learning_rate"]
    best = summary["learning_rate_values"][int(np.argmin(summary["learning_rate_losses"]))]
    return Section(
        "The learning rate",
        [
            "Diverged: the training loss at the end is not finite, or above that at the start. "
            + (
                f"The least rate of the grid at which more than half of the networks diverge is {limit:g}."
                if isinstance(limit, float)
                else "At no rate of the grid do more than half of the networks diverge."
            ),
            f"Nothing learnt: the validation loss at the end is above {UNLEARNT:g} times {summary['guessing_loss']:.2f} nats, what the classes' shares give whatever the input (or it has none). "
            + (
                f"More than half of the networks learn something at the rates from {works[0]} to {works[-1]} of the grid; the best is {best}."
                if works
                else "At no rate do more than half of the networks learn anything."
            ),
        ],
        pictures=[
            Picture(
                "rate",
                figure,
                "Shares of the networks at each rate of the grid, the other hyperparameters at their base.",
                "Share of networks that diverge, and that learn nothing, against the learning rate of SGD on a logarithmic axis.",
            )
        ],
    )


def _jointly(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    ways = [str(way) for way in data["way"].values]
    trials = data["trial"].values
    best = {way: np.minimum(np.fmin.accumulate(data["validation"].sel(way=way).values, axis=1), CAP) for way in ways}
    figure, axes = plots.panels(len(ways), width=13, height=3.2, columns=3)
    styles = dict(zip(ways, plots.COLOURS, strict=False))
    for way, values in best.items():
        axes[0].step(trials, np.median(values, axis=0), where="post", color=styles[way], label=NAMES[way])
    axes[0].set_title("medians")
    others = [way for way in ways if way != "random"]
    for ax, way in zip(axes[1:], others, strict=True):
        pair = {NAMES["random"]: best["random"], NAMES[way]: best[way]}
        plots.bands(ax, trials, pair, colours=(plots.COLOURS[7], styles[way]))
        ax.set_title(f"{NAMES[way]} and random")
    low, high = min(values.min() for values in best.values()), max(np.median(values[:, 0]) for values in best.values())
    for ax in axes:
        ax.set(xlabel="trials", ylabel="best validation loss (nats)", ylim=(low / 1.1, high * 1.5))
        plots.logarithmic(ax, "y")
    plots.legend(axes[0])
    rows = [
        (
            NAMES[way],
            f"{summary[f'best_{way}']:.3f}",
            f"{best[way][:, -1].min():.3f} to {best[way][:, -1].max():.3f}",
            _between(summary[f"over_random_{way}"]) if way in CLEVER else "",
            _between(summary[f"over_one_at_a_time_{way}"]) if way != "one_at_a_time" else "",
            f"{float(data['sampler_seconds'].sel(way=way)) / data.sizes['search']:.2g}",
        )
        for way in ways
    ]
    first = {way: [float(data[f"trial_{name}"].sel(way=way)[0, 0]) for name in AXES] for way in ways}
    same = [NAMES[way] for way in ways if first[way] == first["random"]]
    begun = f"The first draw is the same for {listed(same)}." if len(same) > 1 else "No two begin with the same draw."
    p = summary["friedman_p"]
    ahead = [NAMES[way] for way in CLEVER if summary[f"over_random_{way}"][2] < 1]
    leads = [NAMES[way] for way in ways[:-1] if summary[f"over_one_at_a_time_{way}"][2] < 1]
    behind = [NAMES[way] for way in ways[:-1] if summary[f"over_one_at_a_time_{way}"][1] > 1]
    return Section(
        "Jointly, with one budget",
        [
            f"{data.sizes['search']} searches of {data.sizes['trial']} trials for every sampler, {int(data['batch'])} trials asked for at once. All trials of a search train from one key, which it shares with the same search of the"
            f" other samplers: they see one function of the hyperparameters. Over that function {listed([AXES[name] for name in AXES])} are chosen together; one at a time changes a single one of them in each trial, of the base above at first"
            " and then of what was best so far. " + begun,
            f"Do the five joint samplers differ beyond their spread? Friedman's test over the {data.sizes['search']} searches: p = {p:.2g}, "
            + ("they do." if p < 0.05 else "not so that one could tell.")
            + (
                f" Ahead of random search: {listed(ahead)}."
                if ahead
                else " None is ahead of random search beyond chance."
            )
            + (f" Ahead of one at a time: {listed(leads)}." if leads else " None is ahead of one at a time.")
            + (f" Behind it: {listed(behind)}." if behind else " None is behind it.")
            + " One at a time begins with a guess of some experience; the others know only the ranges.",
        ],
        tables=[
            Table(
                (
                    "sampler",
                    "median best loss",
                    "least to most",
                    "over random",
                    "over one at a time",
                    "seconds for itself",
                ),
                rows,
                "Best validation loss (nats) of a search; factors over random search (98.75 % intervals) and over one at a time (95 %), paired; and the time a search spends in the sampler, of this machine.",
            )
        ],
        pictures=[
            Picture(
                "best_so_far",
                figure,
                "The best validation loss until a trial. First all medians, then each with random search: median and middle 90 % of the searches.",
                f"Best validation loss so far against trials, for {listed([NAMES[way] for way in ways])}; the medians end between {min(summary[f'best_{way}'] for way in ways):.3f} and {max(summary[f'best_{way}'] for way in ways):.3f}.",
            )
        ],
    )


def _chosen(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    ways = [str(way) for way in data["way"].values]
    place = data["validation"].argmin("trial")
    at = {name: data[f"trial_{name}"].isel(trial=place) for name in AXES}
    rows = []
    for way in ways:
        own = {name: values.sel(way=way).values for name, values in at.items()}
        counted = [
            f"{texts[int(np.argmax(counts))]} ({counts.max()} of {data.sizes['search']})"
            for texts, counts in (
                (summary[f"{name}_values"], np.bincount(own[name].astype(int)))
                for name in ("activation", "initialiser")
            )
        ]
        rows.append(
            (
                NAMES[way],
                f"{np.median(own['learning_rate']):.2g} ({own['learning_rate'].min():.2g} to {own['learning_rate'].max():.2g})",
                f"{np.median(own['units']):g} ({own['units'].min()} to {own['units'].max()})",
                f"{np.median(own['depth']):g} ({own['depth'].min()} to {own['depth'].max()})",
                *counted,
                f"{float(data['chosen_validation'].sel(way=way).median()):.3f}",
                f"{summary[f'test_loss_{way}']:.3f}",
                f"{float(data['chosen_accuracy'].sel(way=way).median()):.1%}",
            )
        )
    luck = summary["luck"]
    ranked = sorted(ways, key=lambda way: summary[f"test_loss_{way}"])
    order = [f"{NAMES[way]} ({summary[f'test_loss_{way}']:.3f})" for way in ranked]
    figure, (left, right) = plots.panels(2, width=11)
    for ax, values, title in (
        (left, data["validation"].min("trial"), "as found"),
        (right, data["chosen_validation"].median("network"), "trained afresh"),
    ):
        plots.distributions(ax, {NAMES[way]: np.minimum(values.sel(way=way).values, CAP) for way in ways})
        ax.set(title=title, xlabel="validation loss (nats)")
    limits = [f(ax.get_xlim()[i] for ax in (left, right)) for i, f in ((0, min), (1, max))]
    for ax in (left, right):
        ax.set_xlim(*limits)
    return Section(
        "What was chosen, trained afresh",
        [
            f"The best point of each search, with {data.sizes['network']} new keys. The validation loss that a search reports is the least of many and has luck in it: afresh it is {_between(luck)} times as large"
            f" (95 % interval over searches, of geometric means over the samplers). By the median test loss the order is {listed(order)}.",
            "Afresh, over random search: "
            + listed([f"{NAMES[way]} {_between(summary[f'afresh_over_random_{way}'])}" for way in CLEVER])
            + " times the validation loss.",
        ],
        tables=[
            Table(
                (
                    "sampler",
                    "learning rate",
                    "units",
                    "layers",
                    "activation",
                    "initialiser",
                    "validation loss afresh",
                    "test loss",
                    "test accuracy",
                ),
                rows,
                "Medians over searches with least and most, or what was chosen most often; losses (nats) and accuracy are medians over searches and keys.",
            )
        ],
        pictures=[
            Picture(
                "chosen",
                figure,
                "A dot is a search: its best validation loss, and the median of what it has chosen over new keys.",
                f"Best validation losses of the searches of {listed([NAMES[way] for way in ways])}, as found and trained afresh.",
            )
        ],
    )


def _losses(data: xr.Dataset, name: str) -> np.ndarray:
    return data["alone_validation"].values[data["axis"].values == name]


def _row(texts: Sequence[str], losses: np.ndarray, place: int) -> tuple[str, str, str]:
    low, middle, high = (_short(float(value)) for value in np.quantile(losses[place], (0.05, 0.5, 0.95)))
    return texts[place], middle, f"{low} to {high}"


def _short(loss: float) -> str:
    return f"{loss:.3g}" if loss < CAP else f"more than {CAP:g}"


def _between(found: Sequence[float]) -> str:
    middle, low, high = (f"{value:.2f}" if value < 100 else f"{value:.1e}" for value in found)
    return f"{middle} [{low}, {high}]"
