"""The pictures of a sweep's page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from jaxsym import plots
from jaxsym.studies.study import Picture, listed
from jaxsym.sweep_page.facts import Metric, Points, Ranked, main_metric, own_dims, spread
from jaxsym.sweep_page.text import counted, cut, shown

STRIPS = 24
PANELS = 12
STEPS = 300  # of a curve
LINES = 300
"""Trials in parallel coordinates."""


def strips(found: Points, ranked: Ranked) -> Picture:
    """A dot for each network, a row for each point, the best on top."""
    name, lost = ranked.metric.name, found.lost()
    able = [point for point in ranked.order if found.finite[point].any()]
    kept = spread(able, STRIPS)
    chosen = [point for point in able if point in kept]
    cells = sorted({int(found.cell[point]) for point in chosen})
    by_cell = 1 < len(cells) <= len(plots.COLOURS) and found.unit == "point"
    colours = [plots.COLOURS[cells.index(int(found.cell[point])) if by_cell else 0] for point in chosen]
    series = {
        _label(found, point) + (f"  ({lost[point]} not finite)" if lost[point] else ""): found.last[name][point][
            found.finite[point]
        ]
        for point in chosen
    }
    figure, (ax,) = plots.panels(1, height=1.0 + 0.27 * len(chosen), width=9)
    plots.distributions(ax, series, colours)
    if _wide(ranked.metric, np.concatenate(list(series.values()))):
        plots.logarithmic(ax, "x")
    ax.set_xlabel(plots.text(f"{name} at the end"))
    return Picture(
        "distributions",
        figure,
        f"A dot for each finite network, the median as a bar; {found.unit}s by {_by(found)}, the best on top."
        + (" One colour for each cell." if by_cell and len(cells) < len(chosen) else "")
        + _of(len(chosen), len(able), found),
        f"Strips of {name} over the seeds for {counted(len(chosen), found.unit)},"
        f" from {found.label(chosen[0])} to {found.label(chosen[-1])}.",
    )


def curves(dataset: xr.Dataset, found: Points, ranked: Ranked) -> Picture | None:
    """Median and middle half against steps: a panel for each cell, or all in one where a cell is a point.

    None if no variable has one dimension of its own.
    """
    own = {}
    for name in found.last:
        dims = own_dims(dataset, name, found.shape)
        if len(dims) == 1 and dataset.sizes[dims[0]] > 1:
            own[name] = dims[0]
    metric = ranked.metric if ranked.metric.name in own else main_metric(list(own), {})
    if metric is None:
        return None
    name, along = metric.name, own[metric.name]
    steps = dataset[along].values if along in dataset.coords else np.arange(dataset.sizes[along])
    values = dataset[name].transpose(*found.shape, "seed", along)

    def history(point: int) -> tuple[np.ndarray, np.ndarray]:
        """The steps of a point's cell, at most some, and its finite networks there; other cells may have other steps."""
        networks = values.isel(_place(found, point)).values[found.finite[point]]
        own = np.flatnonzero(~np.isnan(networks).any(axis=0))
        own = own[np.unique(np.linspace(0, len(own) - 1, min(STEPS, len(own))).round().astype(int))]
        return steps[own], networks[:, own]

    able = [point for point in ranked.order if found.finite[point].any()]
    cells = list(dict.fromkeys(int(found.cell[point]) for point in able))  # each in the place of its best point
    each = len(found.cell) // (int(found.cell[-1]) + 1)
    several = found.unit == "point" and each > 1 and len(cells) > 1
    of = (lambda point: point % each) if several else (lambda point: point)
    lines = spread(list(dict.fromkeys(of(point) for point in able)), len(plots.COLOURS))
    drawn = [point for point in sorted(able) if of(point) in lines]
    panels = spread(cells, PANELS) if several else [None]
    inner = [axis for axis in found.varying if axis not in found.static] if several else None
    wide = len(panels) > 4
    figure, axes = plots.panels(
        len(panels), width=10 if wide else 8, height=2.7 if several else 4.2, columns=3 if wide else 2
    )
    handles: dict[str, Line2D] = {}
    middles = []
    for ax, cell in zip(axes, panels, strict=True):
        members = [point for point in drawn if cell is None or found.cell[point] == cell]
        labels = [_label(found, point, inner) for point in members]
        for point, label in zip(members, labels, strict=True):
            at, networks = history(point)
            plots.bands(ax, at, {label: networks}, share=0.5, colours=[plots.COLOURS[lines.index(of(point))]])
            middles.append(np.median(networks, axis=0))
        handles |= dict(zip(labels, ax.lines, strict=True))
        if cell is not None:
            static = [axis for axis in found.varying if axis in found.static]
            ax.set_title(plots.text(cut(found.label(members[0], static), 44)), fontsize=9)
        ax.set(xlabel="step" if along.endswith("step") else "entry", ylabel=plots.text(name))
    if _wide(metric, np.concatenate(middles)):
        for ax in axes:
            plots.logarithmic(ax, "y")
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    columns = max(1, min(4, 110 // (max(map(len, handles)) + 8)))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    count = len(middles)
    rule = "of the cells, and of the values in them, the best, the worst, and evenly between"
    return Picture(
        "curves",
        figure,
        f"{name}: the median over the finite networks as a line, the middle half as a band."
        + (" A panel for each cell, all with the same scale." if several else "")
        + (_of(count, len(able), found) if not several else "")
        + (f" {count} of {len(able)} points: {rule}." if several and count < len(able) else ""),
        f"{name} against {'steps' if along == 'step' else 'entries'} for {counted(count, found.unit)};"
        f" at {found.label(drawn[0])} the median goes from {middles[0][0]:.4g} to {middles[0][-1]:.4g}.",
    )


def heat_maps(found: Points, ranked: Ranked) -> Picture | None:
    """Medians over the two longest axes, a panel for each place on the others; None if fewer than two axes vary."""
    sizes = {dim: size for dim, size in found.shape.items() if size > 1}
    if len(sizes) < 2 or found.unit == "trial":
        return None
    name = ranked.metric.name
    down, across = sorted(sorted(sizes, key=lambda dim: -sizes[dim])[:2], key=lambda dim: sizes[dim])
    others = [dim for dim in found.shape if dim not in (down, across)]
    order = [list(found.shape).index(dim) for dim in (*others, down, across)]
    numbers = np.arange(len(found.finite)).reshape(list(found.shape.values())).transpose(order)
    grids = numbers.reshape(-1, sizes[down], sizes[across])
    where = {point: panel for panel, grid in enumerate(grids) for point in grid.ravel().tolist()}
    able = list(dict.fromkeys(where[point] for point in ranked.order))  # each in the place of its best point
    panels = spread(able, PANELS)
    scores, lost = ranked.score, found.lost()
    known = scores[ranked.order]
    wide = _wide(ranked.metric, known)
    few = max(sizes[down], sizes[across]) <= 8

    def names(dim: str, points: Sequence[int]) -> list[str]:
        return [plots.text(cut(", ".join(shown(found.axes[axis][p]) for axis in found.along(dim)), 24)) for p in points]

    def text(point: int) -> str:
        if not found.done[point]:
            return "not\ndone"
        value = f"{scores[point]:.3g}" if math.isfinite(scores[point]) else "none\nfinite"
        return value + (f"\n{lost[point]} lost" if lost[point] and math.isfinite(scores[point]) else "")

    rows, columns = names(down, grids[0][:, 0]), names(across, grids[0][0])
    figure, axes = plots.panels(
        len(panels), height=1.2 + min(0.5 * sizes[down], 4), columns=1 if len(panels) == 1 else 2
    )
    for ax, panel in zip(axes, panels, strict=True):
        image = plots.heat_map(
            ax,
            scores[grids[panel]],
            rows,
            columns,
            limits=(float(known.min()), float(known.max())),
            logarithmic=wide,
            palette="viridis" if ranked.metric.maximize else "viridis_r",
            texts=[[text(point) for point in row] for row in grids[panel]] if few else None,
        )
        x, y = (plots.text(cut(", ".join(found.along(dim)), 40)) for dim in (across, down))
        ax.set(xlabel=x, ylabel=y)
        rest = [axis for dim in others for axis in found.along(dim) if axis in found.varying]
        if rest:
            ax.set_title(plots.text(cut(found.label(grids[panel][0, 0], rest), 48)), fontsize=9)
    figure.colorbar(image, ax=axes, label=plots.text(f"median {name}"))
    best = ranked.order[0]
    return Picture(
        "heat_map",
        figure,
        f"Median {name} over the finite networks; the brighter, the better"
        + (", on a logarithmic scale" if wide else "")
        + ". Grey: not done, or no network is finite."
        + (" 'lost': networks that are not finite." if lost.any() and few else "")
        + (
            f" {len(panels)} of {len(grids)} panels, evenly by the rank of their best point."
            if len(panels) < len(grids)
            else ""
        ),
        f"Heat map of the median {name} over {listed(found.along(down) + found.along(across))}; the best tile is {found.label(best)}, with {scores[best]:.4g}.",
    )


def best_so_far(found: Points, ranked: Ranked) -> Picture:
    """The course of a search."""
    assert found.trials is not None
    name, first, best = ranked.metric.name, min(ranked.order), ranked.order[0]
    figure, (ax,) = plots.panels(1, height=3.6)
    plots.best_so_far(ax, found.trials, ranked.score, maximize=ranked.metric.maximize)
    if _wide(ranked.metric, ranked.score):
        plots.logarithmic(ax, "y")
    ax.set(xlabel="trial", ylabel=plots.text(f"mean {name}"))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return Picture(
        "best_so_far",
        figure,
        f"The objective of every trial, the mean {name} over its seeds, and the best until then.",
        f"Best objective so far against trial: from {ranked.score[first]:.4g} at {found.short(first)} to {ranked.score[best]:.4g}"
        f" at {found.short(best)}.",
    )


def parallel_coordinates(space: Mapping[str, Mapping[str, Any]], found: Points, ranked: Ranked) -> Picture:
    """A line for each trial through its hyperparameters to its objective."""
    name, score = ranked.metric.name, ranked.score
    lost = [point for point in np.flatnonzero(found.done).tolist() if not math.isfinite(score[point])]
    chosen = spread(ranked.order, LINES) + spread(lost, LINES // 10)
    names = [axis for axis in found.axes if axis in space]
    scales = [
        plots.scale(
            axis,
            [found.axes[axis][point] for point in chosen],
            logarithmic=bool(space[axis].get("log")),
            ends=[space[axis][end] for end in ("low", "high") if end in space[axis]],
            choices=space[axis].get("choices", ()),
        )
        for axis in names
    ]
    scales.append(plots.scale(f"mean {name}", score[chosen].tolist(), logarithmic=_wide(ranked.metric, score)))
    rank = {point: 1 - place / max(len(ranked.order) - 1, 1) for place, point in enumerate(ranked.order)}
    figure, (ax,) = plots.panels(1, height=4.2, width=max(8.0, 1.5 * len(scales)))
    plots.parallel_coordinates(ax, scales, np.array([rank.get(point, np.nan) for point in chosen]))
    best = ranked.order[0]
    return Picture(
        "parallel_coordinates",
        figure,
        "A line for each trial, from its hyperparameters to its objective; the darker, the better its rank."
        + (f" Dashed: {counted(len(lost), 'trial')} without a finite objective." if lost else "")
        + _of(len(chosen), len(ranked.order) + len(lost), found),
        f"Parallel coordinates of {counted(len(chosen), 'trial')} over {listed([*names, f'mean {name}'])};"
        f" the best line is {found.label(best)}.",
    )


def _wide(metric: Metric, values: np.ndarray) -> bool:
    """Whether a metric is drawn on a logarithmic scale: one that gets small."""
    return not metric.maximize and plots.far_apart(values)


def _by(found: Points) -> str:
    return "objective" if found.unit == "trial" else "median"


def _of(drawn: int, able: int, found: Points) -> str:
    """A sentence on what a picture leaves out, and by which rule."""
    if drawn == able:
        return ""
    return f" {drawn} of {able} {found.unit}s are drawn: by {_by(found)} the best, the worst, and evenly between."


def _label(found: Points, point: int, names: Sequence[str] | None = None) -> str:
    text = found.short(point) if names is None else found.label(point, names)
    return plots.text(cut(text, 60, f" #{point}"))


def _place(found: Points, point: int) -> dict[str, int]:
    if not found.shape:
        return {}
    places = np.unravel_index(point, list(found.shape.values()))
    return {dim: int(place) for dim, place in zip(found.shape, places, strict=True)}
