"""Pictures: arrays in, matplotlib figures out. Nothing is drawn on a screen and no global state is touched."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    ax: Axes, x: Float[np.ndarray, " R"], series: Mapping[str, Float[np.ndarray, "networks R"]], *, share: float = 0.9
) -> None:
    """Median over networks as a line, the middle 90 % (or another share) as a band, one colour a series."""
    for colour, (label, values) in zip(COLOURS, series.items(), strict=False):
        low, middle, high = np.quantile(values, (0.5 - share / 2, 0.5, 0.5 + share / 2), axis=0)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, middle, color=colour, label=label)


def distributions(ax: Axes, series: Mapping[str, Float[np.ndarray, " networks"]]) -> None:
    """One row of dots per series, spread by rank so that none hides another, with the median as a bar."""
    for row, (colour, values) in enumerate(zip(_cycle(len(series)), series.values(), strict=True)):
        spread = (np.argsort(np.argsort(np.sin(np.arange(values.size) * 12.9898))) / max(values.size, 1) - 0.5) * 0.6
        ax.scatter(values, row + spread, s=5, color=colour, alpha=0.5, linewidths=0)
        ax.plot([np.median(values)] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.5)
    ax.set_yticks(range(len(series)), list(series))
    ax.invert_yaxis()


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


def _cycle(num: int) -> Sequence[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(num)]
