"""The sections of a sweep's page, and its headline figures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Cell, Section, Table, listed
from jaxsym.sweep_page import pictures
from jaxsym.sweep_page.facts import CellFacts, Points, Ranked, points, rank
from jaxsym.sweep_page.text import counted, cut, shown, toml

ROWS = 500
"""Rows that a table shows."""

WHOLE = 3
MEDIANS = 6
NAMED = 10
"""What is named in a sentence, of cells or variables."""

EDGE = 0.03
"""The part of a range, on its own scale, that is its end."""


class Page(NamedTuple):
    """What a template needs, the headline figures, and the file that the sweep can be run from again."""

    title: str
    sections: list[Section]
    summary: dict[str, Any]
    toml: str


def build(dataset: xr.Dataset, cells: Sequence[CellFacts]) -> Page:
    """The page of a sweep, done or not.

    Parameters
    ----------
    dataset
        As ``jaxsym.sweep.open`` gives it; its attribute ``config`` is JSON.
    cells
        All cells of the sweep, in order.
    """
    config = json.loads(dataset.attrs["config"])
    found = points(dataset, config, cells)
    ranked = rank(found, config, dataset)
    sections = [_short(cells, found, ranked, config), _axes(config, found)]
    if ranked is not None and ranked.order:
        sections += _views(dataset, config, found, ranked)
    sections += [_points(found, ranked), _cells(cells, found)]
    return Page(f"sweep of {target(config)}", sections, _summary(config, cells, found, ranked), _file(config))


def _file(config: Mapping[str, Any]) -> str:
    """The config as a file, with the number of seeds where that says the same as all of them."""
    seeds = config["sweep"].get("seeds")
    few = {"seeds": len(seeds)} if isinstance(seeds, list) and seeds == list(range(len(seeds))) else {}
    return toml({**config, "sweep": config["sweep"] | few})


def target(config: Mapping[str, Any]) -> str:
    """What a sweep runs."""
    return str(config["sweep"].get("target") or f"the study {config['sweep']['study']}")


def _summary(
    config: Mapping[str, Any], cells: Sequence[CellFacts], found: Points, ranked: Ranked | None
) -> dict[str, Any]:
    done, seeds = int(found.done.sum()), found.finite.shape[1]
    total = (config.get("search") or {}).get("trials", len(found.done))
    summary: dict[str, Any] = {
        "target": target(config),
        "cells": len(cells),
        **{f"cells_{state}": sum(cell.state == state for cell in cells) for state in ("done", "failed", "missing")},
        f"{found.unit}s": total,
        f"{found.unit}s_done": done,
        "seeds": seeds,
        "networks": done * seeds,
        "networks_nonfinite": int(found.lost().sum()),
        "seconds": float(sum(cell.seconds for cell in cells)),
    }
    if ranked is None:
        return summary
    summary |= {"metric": ranked.metric.name, "direction": "maximize" if ranked.metric.maximize else "minimize"}
    if not ranked.order:
        return summary
    medians = found.quantiles(ranked.metric.name)[:, 2]
    best, worst = ranked.order[0], ranked.order[-1]
    for word, point in (("best", best), ("worst", worst)):
        summary |= {word: found.label(point), f"{word}_cell": int(found.cell[point])}
        summary |= {f"{word}_median": float(medians[point])}
        if found.trials is not None:
            summary |= {f"{word}_trial": int(found.trials[point]), f"{word}_objective": float(ranked.score[point])}
    return summary | {"difference": abs(float(ranked.score[best] - ranked.score[worst]))}


def _short(cells: Sequence[CellFacts], found: Points, ranked: Ranked | None, config: Mapping[str, Any]) -> Section:
    done, failed, rest = ([cell for cell in cells if cell.state == state] for state in ("done", "failed", "missing"))
    ran, seeds = int(found.done.sum()), found.finite.shape[1]
    noun = "batch" if found.unit == "trial" else "cell"
    first = f"{len(done)} of {counted(len(cells), noun)} {'is' if len(done) == 1 else 'are'} done"
    first += (f", {len(failed)} failed" if failed else "") + (f", {len(rest)} not finished" if rest else "")
    first += f": {counted(ran, found.unit)} with {counted(seeds, 'seed')} each, {counted(ran * seeds, 'network')}"
    first += ". "
    paragraphs = [first + _nonfinite(found)]
    paragraphs += [f"Failed: {_named(cell, found)}: {_failure(cell)}" for cell in failed[:NAMED]]
    if len(failed) > NAMED:
        paragraphs.append(f"{len(failed) - NAMED} more failed; the last table has them.")
    if ranked is None:
        return Section("In short", [*paragraphs, "No variable has one number, or one series, for each network."])
    paragraphs.append(f"The main metric is {ranked.metric.name}: {ranked.metric.rule}.")
    edges = _edges(found, ranked, config)
    return Section("In short", [*paragraphs, _best(found, ranked), *([edges] if edges else [])])


def _nonfinite(found: Points) -> str:
    """How many networks are not finite, and where."""
    lost = found.lost()
    if not lost.any():
        return "All of them are finite." if found.done.any() else ""
    most = sorted(np.flatnonzero(lost).tolist(), key=lambda point: -lost[point])
    places = [f"{lost[point]} of {found.finite.shape[1]} at {found.short(point)}" for point in most[:5]]
    if len(most) > 5:
        places.append(f"and {lost[most[5:]].sum()} at {counted(len(most) - 5, f'other {found.unit}')}")
    return (
        f"{counted(int(lost.sum()), 'network')} {'is' if lost.sum() == 1 else 'are'} not finite: {'; '.join(places)}."
        " Medians, quartiles and ranges below are over the finite ones."
    )


def _named(cell: CellFacts, found: Points) -> str:
    """The folder of a cell, and its static values."""
    if found.trials is not None:
        return cell.folder
    names = [name for name in found.varying if name in found.static]
    first = int(np.flatnonzero(found.cell == cell.number)[0])
    return cell.folder + (f" ({found.label(first, names)})" if names else "")


def _failure(cell: CellFacts) -> str:
    log = f"Its log is {cell.folder}/log.txt." if cell.log else "It has no log."
    return f"{cut(cell.error, 300) or 'no reason is recorded'}. {log}"


def _best(found: Points, ranked: Ranked) -> str:
    """The best and the worst point, and how far apart they are."""
    if not ranked.order:
        return "No finished network has a finite value of it, so nothing is best."
    name, score, unit = ranked.metric.name, ranked.score, found.unit
    best, worst = ranked.order[0], ranked.order[-1]
    what = f"mean {name}" if unit == "trial" else f"median {name}"
    if len(found.done) == 1:
        text = f"There is one {unit}: {what} {score[best]:.4g}{_over(found, best)}"
    elif best == worst:
        text = f"Only {found.label(best)} has a finite value, {what} {score[best]:.4g}"
    elif score[best] == score[worst]:
        text = f"All {len(ranked.order)} {unit}s are equal: {what} {score[best]:.4g}"
    else:
        spans = found.quantiles(name)[best]
        text = (
            f"The best {unit} is {found.label(best)}, in cell {found.cell[best]:04d}: {what} {score[best]:.4g}"
            f"{_over(found, best)}{_equals(ranked, best, unit)}. The worst is {found.label(worst)}:"
            f" {score[worst]:.4g}{_over(found, worst)}{_equals(ranked, worst, unit)}."
            f" They are {abs(score[best] - score[worst]):.4g} apart"
            + (
                f"; the middle half of the best one's networks spans {spans[3] - spans[1]:.4g}"
                if spans[3] >= spans[1]
                else ""
            )
        )
    missing = int(found.done.sum()) - len(ranked.order)
    left = f" {counted(missing, unit)} without a finite value {'is' if missing == 1 else 'are'} not ranked."
    return f"{text}.{left if missing else ''}"


def _edges(found: Points, ranked: Ranked, config: Mapping[str, Any]) -> str:
    """Which hyperparameters of the best point are the last of their range, beyond which it may be better still."""
    if not ranked.order or ranked.score[ranked.order[0]] == ranked.score[ranked.order[-1]]:
        return ""
    best, space = ranked.order[0], (config.get("search") or {}).get("space") or {}
    found_at = []
    for name, values in found.axes.items():
        numbers = sorted({value for value in values if isinstance(value, int | float) and not isinstance(value, bool)})
        interval, value = space.get(name, {}), values[best]
        if value not in numbers or (interval and "low" not in interval) or (not interval and len(numbers) < 3):
            continue
        low, high = (interval["low"], interval["high"]) if interval else (numbers[0], numbers[-1])
        scale = plots.scale(
            name, [value], logarithmic=bool(interval.get("log")), ends=(low, high), choices=() if interval else numbers
        )
        place = float(scale.positions[0])
        if not EDGE < place < 1 - EDGE:
            end = "lower" if place <= EDGE else "upper"
            found_at.append(f"{name} {shown(value)} at the {end} end of {shown(low)} to {shown(high)}")
    return f"The best {found.unit} has {listed(found_at)}; beyond it may be better still." if found_at else ""


def _equals(ranked: Ranked, point: int, unit: str) -> str:
    """How many other points have the same score."""
    others = sum(bool(ranked.score[other] == ranked.score[point]) for other in ranked.order) - 1
    return f", as {counted(others, f'other {unit}')} {'has' if others == 1 else 'have'}" if others else ""


def _over(found: Points, point: int) -> str:
    lost, seeds = found.lost()[point], found.finite.shape[1]
    return f" (over {seeds - lost} of {seeds} networks)" if lost else ""


def _axes(config: Mapping[str, Any], found: Points) -> Section:
    static, traced, search = (config.get(key) or {} for key in ("static", "traced", "search"))
    seeds, given = found.finite.shape[1], config["sweep"].get("seeds")
    rows = [
        [name, kind, str(len(values)), _values(values)]
        for kind, axes in (("static", static), ("traced", traced))
        for name, values in axes.items()
    ]
    rows += [[name, "searched", "", _space(space)] for name, space in (search.get("space") or {}).items()]
    given = given if isinstance(given, list) else list(range(seeds))
    gapless = given == list(range(given[0], given[-1] + 1)) and len(given) > 2
    rows.append(["seed", "seeds", str(seeds), f"{given[0]} to {given[-1]}" if gapless else _values(given)])
    text = (
        "Every combination of static values is a cell, compiled once; traced values and seeds run side by side in it."
    )
    if search:
        text = (
            f"A search by {search['method']} with {counted(search['trials'], 'trial')}, {search['batch']} at a time:"
            " each batch is a cell, its trials and seeds run side by side."
        )
    elif config["sweep"].get("combine") == "zip" and len(traced) > 1:
        text += f" {listed(list(traced))} are zipped: the first value of each, the second of each, and so on."
    return Section("The axes", [text], [Table(["axis", "kind", "number", "values"], rows, "What was varied.")])


def _values(values: Sequence[Any]) -> str:
    text = ", ".join(shown(value) for value in values[:12])
    return text + (f", … {shown(values[-1])}" if len(values) > 12 else "")


def _space(space: Mapping[str, Any]) -> str:
    if "choices" in space:
        return _values(space["choices"])
    kinds = [word for key, word in (("log", "logarithmic"), ("int", "whole numbers")) if space.get(key)]
    return ", ".join([f"{shown(space['low'])} to {shown(space['high'])}", *kinds])


def _views(dataset: xr.Dataset, config: Mapping[str, Any], found: Points, ranked: Ranked) -> list[Section]:
    """The sections with pictures."""
    name, score = ranked.metric.name, ranked.score
    sections = []
    if found.trials is not None:
        best, first = ranked.order[0], min(ranked.order)
        sections.append(
            Section(
                "The search",
                [
                    f"The first trial with a finite objective, {found.trials[first]}, has a mean {name} of {score[first]:.4g};"
                    f" the best, {found.short(best)}, {score[best]:.4g}."
                ],
                pictures=[
                    pictures.best_so_far(found, ranked),
                    pictures.parallel_coordinates(config["search"]["space"], found, ranked),
                ],
            )
        )
    heat = pictures.heat_maps(found, ranked)
    if heat is not None:
        sections.append(Section("Over the axes", [_strongest(found, ranked)], pictures=[heat]))
    if not found.finite.any():  # a trial may have an objective where another variable is not finite
        return sections
    quantiles = found.quantiles(name)
    middle = quantiles[:, 3] - quantiles[:, 1]
    spans = f"{np.nanmin(middle):.4g} to {np.nanmax(middle):.4g}, {np.nanmedian(middle):.4g} at the median {found.unit}"
    if np.isfinite(middle).sum() == 1:
        spans = f"{np.nanmax(middle):.4g}"
    text = f"From seed to seed the middle half of {name} at the end spans {spans}."
    sections.append(Section("Over the seeds", [text], pictures=[pictures.strips(found, ranked)]))
    curves = pictures.curves(dataset, found, ranked)
    return [*sections, Section("Over training", [], pictures=[curves])] if curves is not None else sections


def _strongest(found: Points, ranked: Ranked) -> str:
    """Which axis matters most: the spread of the means over everything else."""
    spans = {}
    for dim in [dim for dim, size in found.shape.items() if size > 1]:
        groups: dict[str, list[float]] = {}
        names = found.along(dim)
        for point in ranked.order:
            groups.setdefault(found.label(point, names), []).append(float(ranked.score[point]))
        if len(groups) > 1:
            spans[" with ".join(names)] = float(np.ptp([np.mean(values) for values in groups.values()]))
    if not spans:
        return f"No axis has more than one value with a finite {ranked.metric.name} yet."
    parts = [f"{spans[name]:.4g} over {name}" for name in sorted(spans, key=lambda name: -spans[name])]
    some = " and the points that have one" if len(ranked.order) < len(found.done) else ""
    return f"Averaged over all other axes{some}, the median {ranked.metric.name} differs by at most {listed(parts)}."


def _points(found: Points, ranked: Ranked | None) -> Section:
    """The table that sorts: a row for each point."""
    if ranked is None:
        return Section(f"Every {found.unit}", ["There is no figure to show for each."])
    first = ranked.metric.name
    names = [first, *(name for name in found.last if name != first)]
    whole, medians, rest = names[:WHOLE], names[WHOLE : WHOLE + MEDIANS], names[WHOLE + MEDIANS :]
    figures = {name: found.quantiles(name) for name in [*whole, *medians]}
    total = len(found.done)
    unranked = sorted(set(range(total)) - set(ranked.order))
    chosen = sorted([*ranked.order, *unranked][:ROWS])
    lost, seeds = found.lost(), found.finite.shape[1]
    search = found.unit == "trial"
    lead = ["cell", *["trial"] * search, *found.axes, "finite", *["objective"] * search]
    header = [*lead, *["median", "25 %", "75 %", "min", "max"] * len(whole), *medians]
    groups = [("", len(lead)), *((name, 5) for name in whole), *([("median", len(medians))] if medians else [])]
    rows: list[list[str | Cell]] = []
    for point in chosen:
        cell, done = CellFacts(int(found.cell[point]), "done"), found.done[point]
        finite = Cell(
            f"{seeds - lost[point]} of {seeds}" if done else "not done", float(seeds - lost[point]) if done else np.nan
        )
        row: list[str | Cell] = [Cell(f"{cell.number:04d}", cell.number, f"{cell.folder}/data.nc" if done else "")]
        row += [] if found.trials is None else [_number(float(found.trials[point]), str(found.trials[point]))]
        row += [_value(values[point]) for values in found.axes.values()]
        row += [finite, *[_number(float(ranked.score[point]))] * search]
        row += [_number(float(figures[name][point, place])) for name in whole for place in (2, 1, 3, 0, 4)]
        rows.append(row + [_number(float(figures[name][point, 2])) for name in medians])
    caption = f"A row for each {found.unit}."
    paragraphs = [
        "The last value of each variable, over the finite networks. The number of a cell leads to its data. Headings sort, where scripts are allowed."
    ]
    if total > ROWS:
        paragraphs.append(
            f"The {ROWS} best of {total} {found.unit}s by {first} are shown; {total - ROWS} are left out, and are in the data."
        )
    left_out = [*rest, *found.left_out]
    if left_out:
        more = [f"{len(left_out) - NAMED} more"] if len(left_out) > NAMED else []
        paragraphs.append(f"In the data, but not in this table: {listed([*left_out[:NAMED], *more])}.")
    return Section(f"Every {found.unit}", paragraphs, [Table(header, rows, caption, sortable=True, groups=groups)])


def _cells(cells: Sequence[CellFacts], found: Points) -> Section:
    """A row for each cell, what went wrong first."""
    order = sorted(cells, key=lambda cell: ("failed", "missing", "done").index(cell.state))[:ROWS]
    lost, seeds = found.lost(), found.finite.shape[1]
    names = found.static
    rows: list[list[str | Cell]] = []
    for cell in sorted(order):
        own = np.flatnonzero(found.cell == cell.number)
        done = cell.state == "done"
        values: list[str | Cell] = [_value(found.axes[name][own[0]]) for name in names]
        if found.trials is not None:
            values = [f"{found.trials[own[0]]} to {found.trials[own[-1]]}" if own.size else "–"]
        rows.append(
            [
                f"{cell.number:04d}",
                *values,
                "not finished" if cell.state == "missing" else cell.state,
                _number(float(own.size * seeds), str(own.size * seeds)) if done else _number(np.nan),
                _number(float(lost[own].sum()), str(lost[own].sum())) if done else _number(np.nan),
                _number(cell.seconds or np.nan, f"{cell.seconds:.1f}" if cell.seconds else "–"),
                Cell("data.nc", href=f"{cell.folder}/data.nc") if done else "",
                Cell("log.txt", href=f"{cell.folder}/log.txt") if cell.log else "",
            ]
        )
    middle = ["trials"] if found.unit == "trial" else names
    header = ["cell", *middle, "state", "networks", "not finite", "seconds", "data", "log"]
    left = [f"{len(cells) - ROWS} more cells are left out; those that failed come first."] if len(cells) > ROWS else []
    caption = "Links lead into the folder of the sweep."
    title = "Every batch" if found.unit == "trial" else "Every cell"
    return Section(title, left, [Table(header, rows, caption, sortable=True)])


def _value(value: Any) -> str | Cell:
    """A hyperparameter in a table."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(shown(value), float(value)) if number else str(value)


def _number(value: float, text: str = "") -> Cell:
    return Cell(text or f"{value:.4g}", value) if np.isfinite(value) else Cell("–", np.nan)
