"""Pictures: arrays in, matplotlib figures out. Nothing is drawn on a screen and no global state is touched."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
"""Distinguishable without colour vision (Okabe and Ito 2008)."""


def panels(num: int, *, width: float = 8.0, height: float = 3.4, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure of ``num`` panels, ``columns`` to a row."""
    columns = min(columns, num)
    rows = -(-num // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(num)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def bands(
    ax: Axes,
    x: Float[np.ndarray, " R"],
    series: Mapping[str, Float[np.ndarray, "networks R"]],
    *,
    share: float = 0.9,
    colours: Sequence[str] = COLOURS,
) -> None:
    """Median over networks as a line, the middle 90 % (or another share) as a band, one colour a series."""
    for colour, (label, values) in zip(colours, series.items(), strict=False):
        low, middle, high = np.quantile(values, (0.5 - share / 2, 0.5, 0.5 + share / 2), axis=0)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, middle, color=colour, label=label)


def distributions(
    ax: Axes, series: Mapping[str, Float[np.ndarray, " networks"]], colours: Sequence[str] | None = None
) -> None:
    """One row of dots per series, spread by rank so that none hides another, with the median as a bar.

    A series without networks is an empty row.
    """
    colours = _cycle(len(series)) if colours is None else colours
    many = sum(values.size for values in series.values()) > 2000  # an SVG of all these dots would be large
    for row, (colour, values) in enumerate(zip(colours, series.values(), strict=True)):
        spread = (np.argsort(np.argsort(np.sin(np.arange(values.size) * 12.9898))) / max(values.size, 1) - 0.5) * 0.6
        ax.scatter(values, row + spread, s=5, color=colour, alpha=0.5, linewidths=0, rasterized=many)
        if values.size:
            ax.plot([np.median(values)] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.5)
    ax.set_yticks(range(len(series)), list(series))
    ax.set_ylim(len(series) - 0.4, -0.6)


def heat_map(
    ax: Axes,
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    logarithmic: bool = False,
    palette: str = "viridis",
    texts: Sequence[Sequence[str]] | None = None,
) -> AxesImage:
    """Tiles in colours of a common scale; what is NaN stays grey. Of many rows or columns only some are labelled."""
    ax.grid(visible=False)
    ax.set_facecolor("#d0d4d9")
    norm = (LogNorm if logarithmic else Normalize)(*limits)
    image = ax.imshow(values, cmap=palette, norm=norm, aspect="auto")
    specification = ax.get_subplotspec()
    room = 80 // (1 if specification is None else specification.get_gridspec().ncols)  # letters along the x axis
    crowded = sum(len(label) + 2 for label in columns) > room
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    for axis, labels, most, style in ((ax.xaxis, columns, room // 2, turned), (ax.yaxis, rows, 20, {})):
        step = -(-len(labels) // most)
        axis.set_ticks(range(0, len(labels), step), list(labels)[::step], **style)
    if texts is not None:
        for row, column in np.ndindex(values.shape):
            colour = "black"
            if np.isfinite(values[row, column]):
                red, green, blue, _ = image.cmap(image.norm(values[row, column]))
                colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            ax.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8)
    return image


def colour_tiles(ax: Axes, classes: Int[np.ndarray, "rows columns"], number: int) -> None:
    """Tiles of one colour a class, of ``number`` classes in all, with its number (from 1) on each."""
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    shades = matplotlib.colormaps["turbo"](np.linspace(0.04, 0.96, max(number, 2)))
    ax.imshow(0.45 * shades[classes][..., :3] + 0.55)
    for row, column in np.ndindex(classes.shape):
        ax.text(column, row, str(classes[row, column] + 1), ha="center", va="center", fontsize=8)
    ax.set(xticks=[], yticks=[])


class Scale(NamedTuple):
    """An axis of parallel coordinates: where each line crosses it, from 0 to 1, and its ticks in the same units."""

    name: str
    positions: Float[np.ndarray, " lines"]
    ticks: Sequence[tuple[float, str]]


def scale(
    name: str,
    values: Sequence[Any],
    *,
    logarithmic: bool = False,
    ends: Sequence[float] = (),
    choices: Sequence[Any] = (),
) -> Scale:
    """Numbers from the least to the greatest, of them and of ``ends``; anything else by name, in the order in which it first comes.

    Where ``choices`` are given, values go by name in that order.
    """
    names = {value: index for index, value in enumerate(dict.fromkeys(map(str, [*choices, *values])))}
    if choices or any(isinstance(value, bool | str) for value in values):
        top = max(len(names) - 1, 1)
        positions = np.array([names[str(value)] / top for value in values])
        return Scale(name, positions, [(index / top, label) for label, index in names.items()][:24])
    numbers = np.asarray(values, float)
    known = numbers[np.isfinite(numbers)]
    if not known.size:
        return Scale(name, np.full(numbers.shape, np.nan), [])
    least, most = (float(end([*known, *ends])) for end in (min, max))
    logarithmic = logarithmic and least > 0
    to: Callable[[Any], Any] = np.log10 if logarithmic else np.asarray
    low, high = float(to(least)), float(to(most))
    if low == high:
        return Scale(name, np.where(np.isfinite(numbers), 0.5, np.nan), [(0.5, f"{known[0]:g}")])
    if len(names) <= 6:
        marks = np.unique(known)
    elif logarithmic and high - low > 1.5:
        marks = np.unique([least, *10.0 ** np.arange(np.floor(low) + 1, np.ceil(high)), most])
    else:
        marks = 10 ** np.linspace(low, high, 5) if logarithmic else np.linspace(low, high, 5)
    return Scale(
        name, (to(numbers) - low) / (high - low), [((float(to(m)) - low) / (high - low), f"{m:.3g}") for m in marks]
    )


def parallel_coordinates(ax: Axes, scales: Sequence[Scale], shades: Float[np.ndarray, " lines"]) -> None:
    """A line for each row through all scales, dark where its shade is 1 and bright where it is 0; the darkest on top.

    A row with a NaN shade is dashed and grey, and ends before the first scale on which it has no place.
    """
    positions = np.stack([scale.positions for scale in scales], axis=1)
    colours, alpha = matplotlib.colormaps["viridis_r"], min(0.8, max(0.25, 60 / len(shades)))
    for row in np.argsort(np.nan_to_num(shades, nan=-1), kind="stable"):
        known = np.isfinite(shades[row])
        style: dict[str, Any] = (
            {"color": colours(shades[row]), "linewidth": 1 + shades[row] ** 4}
            if known
            else {"color": "#888888", "linewidth": 0.8, "linestyle": "--"}
        )
        ax.plot(positions[row], alpha=alpha, **style)
    for column, scale in enumerate(scales):
        ax.axvline(column, color="black", linewidth=0.8)
        for height, label in scale.ticks:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
            ax.annotate(
                label, (column, height), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=box, zorder=5
            )
    ax.set_xticks(range(len(scales)), [scale.name for scale in scales])
    ax.set(yticks=[], xlim=(-0.1, len(scales) - 0.5), ylim=(-0.05, 1.05))
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)


def best_so_far(
    ax: Axes, trials: Int[np.ndarray, " trials"], values: Float[np.ndarray, " trials"], *, maximize: bool
) -> None:
    """Every trial as a dot, the best until then as a line; trials that are not finite as crosses along the lower edge."""
    known = np.isfinite(values)
    best = (np.fmax if maximize else np.fmin).accumulate(np.where(known, values, np.nan))
    ax.scatter(trials[known], values[known], s=14, color=COLOURS[4], label="a trial")
    ax.step(trials, best, where="post", color=COLOURS[0], label="the best so far")
    if not known.all():
        ax.scatter(
            trials[~known],
            np.full((~known).sum(), 0.02),
            marker="x",
            color=COLOURS[1],
            transform=ax.get_xaxis_transform(),
            label="not finite",
        )


def logarithmic(ax: Axes, axis: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with numbers in full."""
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    plain(ax, axis)


def far_apart(values: Float[np.ndarray, "..."]) -> bool:
    """Whether a logarithmic axis suits: all finite values are positive and a factor of 10 lies between them."""
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and known.max() > 10 * known.min())


def log_histogram(ax: Axes, values: Float[np.ndarray, " n"], floor: float, threshold: float) -> None:
    """Counts over a logarithmic axis; what is at or below ``floor``, exact zeros too, is in a bar of its own."""
    edges = np.concatenate([[floor / 3, floor * 3], np.geomspace(floor * 10, 3, 40)])
    ax.hist(np.maximum(values, floor), bins=list(edges), color=COLOURS[0])
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(0.7, 2 * max(ax.get_ylim()[1], 1))
    plain(ax, "y")
    ax.axvline(threshold, color="black", linestyle="--", linewidth=1)
    at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "fontsize": 8}
    ax.annotate(" tolerance", (threshold, 0.98), va="top", **at)
    ax.annotate(f"0 to {floor:g}", (floor, -0.13), ha="center", **at)


def plain(ax: Axes, axis: Literal["x", "y"]) -> None:
    """A logarithmic axis with numbers in full, 1, 2, 5, 10, rather than in powers of ten."""
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    own = ax.xaxis if axis == "x" else ax.yaxis
    own.set_major_locator(ticker.LogLocator(subs=subs))
    own.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    own.set_minor_formatter(ticker.NullFormatter())


def legend(ax: Axes, **options: Any) -> None:
    """A small legend without a frame."""
    ax.legend(frameon=False, fontsize=8, **options)


def text(words: str) -> str:
    """Words as they are: a dollar starts no formula, and a label that starts with an underscore is shown."""
    return (" " if words.startswith("_") else "") + words.replace("$", r"\$")


def _cycle(num: int) -> Sequence[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(num)]
