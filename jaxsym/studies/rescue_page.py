"""The page of the study ``rescue``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from jaxsym import plots
from jaxsym.studies.rescue_summary import (
    FINITE,
    FIRST,
    HEALTHY,
    MIDWAY,
    NEAR,
    POINTS,
    REMEDIES,
    Share,
    claims,
    diverged,
    good,
    largest_rate,
    lost,
    recovered,
    reference,
    share,
    spanned,
    ways,
)
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally

START = "the start"
TOP = 1e4  # of drawn losses


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    sections = [_claims(data, summary), _rates(data, summary)]
    if not diverged(data).any():
        return [*sections, _midway(data, summary)]
    return [*sections, _points(data, summary), _midway(data, summary), _pairs(data), _one(data), _strengths(data)]


def _claims(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    found = claims(data)
    return Section(
        "What is claimed, and what was measured",
        [
            f"Networks of 64 inputs, three layers of 32 ReLU units (He's initialisation) and 10 outputs learn the digits by SGD without momentum, {int(data['record'][-1])} steps of 32 rows; the loss is half the squared distance from one-hot targets, whose gradient grows without bound where that of cross-entropy does not. {data.sizes['network']} starts, each with its own batches, the same for every way.",
            "A run has diverged if its loss on all training rows, or one of its parameters, is not finite at the end. Others can end badly too, with units that are off for good; they count neither as diverged nor as recovered.",
            f"A run has recovered if it ends finite with a test accuracy of at least {NEAR:.0%} of the reference: the median of SGD at the best rate of the sweep, {summary['reference_accuracy']:.1%} at a rate of {summary['reference_rate']:g}; that is {summary['recovers_from_accuracy']:.1%}. Shares are of the runs that diverge, with their exact 95% intervals (Clopper and Pearson); a way rescues if the interval is above one half, and does not if it is below; else it is not decided.",
            tally(found),
        ],
        tables=[
            claims_table(
                found,
                f"The claims of the exercise (Zhang, Lipton, Li, Smola, Dive into Deep Learning), at a rate of {summary['chosen_rate']:g}.",
            )
        ],
    )


def _line(ax: Axes, x: Any, shares: list[Share], colour: str, label: str, *, shift: float = 1.0) -> None:
    """Shares with their intervals, on a logarithmic axis moved by a factor so that none hides another."""
    values = 100 * np.array([[one.value, one.value - one.low, one.high - one.value] for one in shares])
    ax.errorbar(
        np.asarray(x) * shift,
        values[:, 0],
        yerr=np.maximum(values[:, 1:].T, 0),
        color=colour,
        marker="o",
        markersize=3.5,
        linewidth=1,
        capsize=2,
        label=label,
    )


def _rates(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, (left, right) = plots.panels(2, width=12, height=3.8)
    rates = data["rate"].values
    fine = good(data, "sweep")
    plain = ~xr.apply_ufunc(np.isfinite, data["sweep_loss"].sel(remedy_of_sweep="unchanged"))
    away = [share(plain.sel(rate=rate).values) for rate in rates]
    poor = [share((~plain & ~fine.sel(remedy_of_sweep="unchanged")).sel(rate=rate).values) for rate in rates]
    _line(left, rates, away, plots.COLOURS[1], "not finite at the end")
    _line(left, rates, poor, plots.COLOURS[7], "finite, but not near the reference", shift=1.03)
    left.set(title="SGD with nothing else", ylabel="% of all runs")
    names = [str(name) for name in data["remedy_of_sweep"].values]
    for number, name in enumerate(names):
        shares = [share(fine.sel(rate=rate, remedy_of_sweep=name).values) for rate in rates]
        _line(right, rates, shares, plots.COLOURS[number], name, shift=1.03 ** (number - 1.5))
    right.set(title="each remedy from the start", ylabel="% of all runs near the reference")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
        ax.axvline(summary["chosen_rate"], ymax=0.75, color="black", linestyle="--", linewidth=0.8)
        ax.set(xlabel="learning rate", ylim=(-4, 140))
        ax.set_yticks(range(0, 101, 20))
        plots.legend(ax, ncols=2, loc="upper center")
    right.set_xlabel("learning rate (of the lower rate: before it is divided)")
    rows = [
        (
            f"{rate:g}",
            f"{away[place].value:.1%}",
            f"{poor[place].value:.1%}",
            *(f"{float(fine.sel(rate=rate, remedy_of_sweep=name).mean()):.1%}" for name in names),
        )
        for place, rate in enumerate(rates)
    ]
    ranges = [f"{spanned(data, name)} ({name})" for name in names if np.isfinite(largest_rate(data, name))]
    top = largest_rate(data, "warm-up")
    further = (
        f" Warm-up ends at the very rate that is asked for: where that is above {top:g}, most networks do not bear it later either."
        if top < rates[-1]
        else ""
    )
    slow = f" What a remedy costs where none is needed: at a rate of {rates[0]:g} " + (
        listed([f"{float(fine.sel(rate=rates[0], remedy_of_sweep=name).mean()):.1%} ({name})" for name in names])
        + f" are near the reference after {int(data['record'][-1])} steps."
    )
    first = next((f"{rate:g}" for rate, one in zip(rates, away, strict=True) if one.value > 0.5), None)
    return Section(
        "The rate at which runs diverge",
        [
            (
                f"More than half of the runs are not finite at the end from a rate of {first} on."
                if first
                else "At no rate of the sweep do most runs diverge."
            )
            + f" The rate chosen for what follows is {summary['chosen_rate']:g} (dashed), where {summary['diverged']:.1%} diverge.",
            "A rescue has a range. More than half of all runs end near the reference at "
            + (f"rates of {listed(ranges)}" if ranges else "no rate with any remedy")
            + f"; rates up to {rates[-1]:g} were tried.{further}{slow}",
        ],
        tables=[
            Table(
                ("rate", "not finite", "finite, not near", *names),
                rows,
                "Of all runs. The first two columns are of runs with nothing changed; the others are shares near the reference.",
                groups=(("", 1), ("nothing changed", 2), ("near the reference", len(names))),
            )
        ],
        pictures=[
            Picture(
                "rates",
                figure,
                "Shares of all runs with their 95% intervals; points are moved a little sideways.",
                "Share of runs that diverge against the learning rate, and share of runs near the reference with each remedy.",
            )
        ],
    )


def _cells(data: xr.Dataset, kind: str) -> dict[str, dict[str, Share]]:
    """Shares that recover, by point and remedy."""
    start = {START: {name: recovered(data, name) for name in REMEDIES}} if kind == FIRST else {}
    return start | {point: {name: recovered(data, name, point, kind) for name in REMEDIES} for point in POINTS}


def _table(data: xr.Dataset, kind: str) -> Table:
    rows = [
        (
            START if point == START else f"the {point}",
            *(f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})" for one in shares.values()),
        )
        for point, shares in _cells(data, kind).items()
    ]
    more = " From the start, unchanged is the run itself, compiled in another program." if kind == FIRST else ""
    return Table(
        ("going on from", *REMEDIES),
        rows,
        f"Shares of the {int(diverged(data, kind).sum())} runs that diverge {kind}, with their 95% intervals. Healthy: finite, and the loss on all training rows is no larger than at the start.{more}",
    )


def _picture(data: xr.Dataset, kind: str, name: str) -> Picture:
    figure, (ax,) = plots.panels(1, width=9, height=4.2)
    colours = dict(zip((START, *POINTS), plots.COLOURS, strict=False))
    for number, (point, shares) in enumerate(_cells(data, kind).items()):
        places = np.arange(len(REMEDIES)) + 0.18 * (number - 1.5)
        values = 100 * np.array([[one.value, one.value - one.low, one.high - one.value] for one in shares.values()])
        ax.errorbar(
            places,
            values[:, 0],
            yerr=np.maximum(values[:, 1:].T, 0),
            fmt="o",
            color=colours[point],
            capsize=3,
            label=f"from {point}" if point == START else f"from the {point}",
        )
    ax.set_xticks(range(len(REMEDIES)), REMEDIES)
    ax.set(ylabel="% of diverging runs that recover", ylim=(-4, 130))
    ax.set_yticks(range(0, 101, 20))
    plots.legend(ax, ncols=2, loc="upper center")
    return Picture(
        name,
        figure,
        "Shares of the runs that diverge, with their 95% intervals.",
        f"Share of the runs that diverge {kind} that recover by remedy, from checkpoints and from parameters that are not finite.",
    )


def _points(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    away = diverged(data)
    cells = _cells(data, FIRST)
    own = data.sel(kind=FIRST)
    steps = own["point_step"].sel(point=FINITE).values[away]
    worse = share(
        own["point_loss"].sel(point=FINITE).values[away] > own["checkpoint_loss"].isel(checkpoint=0).values[away]
    )
    back, healthy, fresh = (cells[point]["lower rate"] for point in (FINITE, HEALTHY, START))
    helped = sum(one.some for one in lost(data).values())
    same = summary["recovered_optimizer_same_rate"]
    equal = (
        "every array of them was what had been saved, to the bit"
        if summary["restored_bit_equal"]
        else "NOT every array of them was what had been saved"
    )
    soon = (
        " To roll back is then to start again, with another setting."
        if np.mean(steps == 0) > 0.5
        else " Something that was learned is kept."
    )
    return Section(
        "From where a run goes on",
        [
            f"Every {int(own['checkpoint_step'][1])} steps all networks are written to disk by Orbax ({float(own['checkpoint_bytes']) / 1e6:.2g} MB); a run goes on from what is read from there. {summary['checkpoints_restored']} checkpoints were read again, here and for the runs that go wrong midway, and {equal}.",
            f"The last finite checkpoint of the runs that diverge is at step {np.median(steps):g} in the median (from {steps.min()} to {steps.max()}), and at the start itself in {np.mean(steps == 0):.1%} of them.{soon}",
            f"Rolled back to it and continued unchanged, {cells[FINITE]['unchanged']} recover: a run is deterministic, and the same batches come again. With 1/{float(data['part']):g} of the rate it is {back}, against {fresh} when that rate is used from the start.",
            f"Finite is not the same as healthy: at the last finite checkpoint the loss is above that of the start in {worse}. From the last healthy checkpoint, at which it is not, {healthy} recover with the lower rate; from the last finite one it is {back.some} of {back.of}.",
            f"From the first checkpoint that is not finite {helped} of {sum(one.of for one in lost(data).values())} runs recover, over all remedies"
            + (": what is not a number stays so, and only a roll-back gets rid of it." if not helped else "."),
            f"Another optimizer is also another size of step: Adam rescues {cells[START]['Adam'].value:.1%} at a rate of {float(data['adam_rate']):g}, and {same:.1%} at the rate of SGD, {summary['chosen_rate']:g}."
            + (" It is not the optimizer alone that rescues." if same < 0.5 else ""),
        ],
        tables=[_table(data, FIRST)],
        pictures=[_picture(data, FIRST, "recovered")],
    )


def _midway(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    away = diverged(data, MIDWAY)
    own = data.sel(kind=MIDWAY)
    early, raised = float(data["early_rate"]), float(data["raised_rate"])
    texts = [
        f"A rate of {early:g} for half of the steps, then {raised:g}, as by a mistake in a schedule: {summary['diverged_midway']:.1%} of the runs diverge after that.",
    ]
    if not away.any():
        return Section("A run that goes wrong midway", texts)
    cells = _cells(data, MIDWAY)
    steps, total = own["point_step"].sel(point=FINITE).values[away], int(data["record"][-1])
    back, unchanged = cells[FINITE]["lower rate"], cells[FINITE]["unchanged"]
    ends = own["late_accuracy"].sel(point=FINITE, remedy="lower rate").values[away]
    texts += [
        f"The last finite checkpoint is at step {np.median(steps):g} of {total} in the median (from {steps.min()} to {steps.max()}): what was learned until then is kept. With 1/{float(data['part']):g} of the raised rate, {back} recover, to a test accuracy of {np.median(ends):.1%} in the median, and unchanged {unchanged}.",
        f"From the last healthy checkpoint it is {cells[HEALTHY]['lower rate']}; clipping rescues {cells[HEALTHY]['clipping'].value:.1%} from there, warm-up to the raised rate {cells[HEALTHY]['warm-up'].value:.1%}, and Adam {cells[HEALTHY]['Adam'].value:.1%}."
        f" From the first checkpoint that is not finite {sum(one.some for one in lost(data, MIDWAY).values())} of {sum(one.of for one in lost(data, MIDWAY).values())} runs recover.",
    ]
    return Section(
        "A run that goes wrong midway",
        texts,
        tables=[_table(data, MIDWAY)],
        pictures=[_picture(data, MIDWAY, "recovered_midway")],
    )


def _pairs(data: xr.Dataset) -> Section:
    away = diverged(data)
    start, late = good(data, "start"), good(data, "late").sel(kind=FIRST)
    names = list(ways(data))
    fine = {
        name: late.sel(remedy="lower rate", point=FINITE).values[away]
        if name == "roll-back"
        else start.sel(way=name).values[away]
        for name in names
    }
    accuracies = {
        name: data["late_accuracy"].sel(kind=FIRST, remedy="lower rate", point=FINITE).values[away]
        if name == "roll-back"
        else data["start_accuracy"].sel(way=name).values[away]
        for name in names
    }
    figure, (ax,) = plots.panels(1, width=8, height=2.8)
    plots.distributions(ax, {name: 100 * accuracies[name] for name in names})
    ax.axvline(100 * NEAR * reference(data)[1], color="black", linestyle="--", linewidth=0.8)
    ax.set(xlabel="test accuracy at the end (%)")
    rows = [
        (
            name,
            f"{np.median(accuracies[name]):.1%}",
            *("" if other == name else f"{int((fine[name] & ~fine[other]).sum())}" for other in names),
        )
        for name in names
    ]
    union = np.any(list(fine.values()), axis=0)
    return Section(
        "The same runs, five ways",
        [
            f"All ways have the same {int(away.sum())} starts and batches, so that they can be compared run by run. {int(np.all(list(fine.values()), axis=0).sum())} of the runs recover in every way, {int((~union).sum())} in none.",
        ],
        tables=[
            Table(
                ("way", "median accuracy", *(f"not by {name}" for name in names)),
                rows,
                "Runs that recover by the way of the row, and not by that of the column; first the median test accuracy of all diverging runs by this way. Roll-back: to the last finite checkpoint, with the lower rate.",
            )
        ],
        pictures=[
            Picture(
                "accuracies",
                figure,
                "A dot is a run that would have diverged; the bar is the median. Dashed: from there on a run counts as recovered.",
                f"Test accuracies at the end of runs that would have diverged, by {listed(names)}.",
            )
        ],
    )


def _one(data: xr.Dataset) -> Section:
    both = diverged(data) & diverged(data, MIDWAY)
    network = int(np.argmax(both if both.any() else diverged(data)))
    one = data.isel(network=network)
    late = one["late_history"].sel(kind=MIDWAY, point=HEALTHY)
    point = int(one["point_step"].sel(kind=MIDWAY, point=HEALTHY))
    figure, axes = plots.panels(2, width=12, height=3.6)
    for ax, curves, title in (
        (axes[0], one["start_history"].rename(way="remedy"), f"rate {float(data['chosen_rate']):g}, from the start"),
        (axes[1], late, f"rate raised midway, from the checkpoint at step {point}"),
    ):
        for number, name in enumerate(REMEDIES):
            values = curves.sel(remedy=name).values
            shown = np.where(np.isfinite(values), np.minimum(values, TOP), np.nan)
            ax.plot(data["record"], shown, color=plots.COLOURS[number], linewidth=1.1, label=name)
            ends = np.flatnonzero(np.isfinite(shown))
            if len(ends) and len(ends) < len(shown):
                ax.plot(
                    data["record"][ends[-1]], shown[ends[-1]], "x", color=plots.COLOURS[number], markersize=8, zorder=5
                )
        ax.set_yscale("log")
        plots.plain(ax, "y")
        ax.set(xlabel="step", ylabel="loss of a batch", title=title)
    plots.legend(axes[0], loc="upper right")
    return Section(
        "One run",
        [
            f"Network {network}, the first that diverges both ways, with each remedy: from the start, and from the last healthy checkpoint where its rate was raised midway."
            if both.any()
            else f"Network {network}, the first that diverges from the first step, with each remedy from the start; it does not diverge midway.",
        ],
        pictures=[
            Picture(
                "one_run",
                figure,
                f"A cross: after it the loss is not finite. What is above {TOP:g} is drawn there. Records are taken every {int(data['record'][1])} steps.",
                "Losses of batches along one run with each remedy, from the start and from a checkpoint after its rate was raised.",
            )
        ],
    )


def _strengths(data: xr.Dataset) -> Section:
    away = diverged(data)
    threshold = NEAR * reference(data)[1]
    panels = (
        ("clipping", "largest norm of the gradient", float(data["norm"])),
        ("lower_rate", "the rate is divided by", float(data["part"])),
        ("warm_up", "share of the steps that is warm-up", float(data["share"])),
    )
    figure, axes = plots.panels(3, width=13, height=3.2, columns=3)
    texts = []
    for number, (ax, (name, label, used)) in enumerate(zip(axes, panels, strict=True), start=1):
        strengths = data[f"{name}_strength"].values
        fine = np.isfinite(data[f"{name}_loss"].values) & (data[f"{name}_accuracy"].values >= threshold)
        shares = [share(row[away]) for row in fine]
        _line(ax, strengths, shares, plots.COLOURS[number], name)
        ax.axvline(used, color="black", linestyle="--", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xticks(strengths, [f"{value:g}" for value in strengths])
        ax.minorticks_off()
        title = {"lower_rate": "lower rate", "warm_up": "warm-up"}.get(name, name)
        ax.set(title=title, xlabel=label, ylabel="% that recover", ylim=(-4, 104))
        texts.append(
            f"{title} ({label}): {listed([f'{one.value:.1%} at {value:g}' for one, value in zip(shares, strengths, strict=True)])}"
        )
    return Section(
        "How much of a remedy",
        [
            f"Shares of the diverging runs that recover from the start. {'. '.join(text[0].upper() + text[1:] for text in texts)}."
        ],
        pictures=[
            Picture(
                "strengths",
                figure,
                "Shares of the runs that diverge, with their 95% intervals. Dashed: what is used everywhere else on this page.",
                "Share of diverging runs that recover against the norm of clipping, the divisor of the rate and the length of warm-up.",
            )
        ],
    )
