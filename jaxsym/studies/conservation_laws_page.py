"""The page of the study ``conservation_laws``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_counts(data, summary), _readable(data)]


def _counts(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name in data["network"].values]
    columns = ("parameters", "polynomials", "independent", "linear", "charges", "independent_charges", "formula")
    rows = []
    for name in names:
        own = data.sel(network=name)
        counts = [int(own[key]) for key in columns]
        rows.append((name, *("" if count < 0 else f"{count}" for count in counts), f"{float(own['residual']):.0e}"))
    figure, (ax,) = plots.panels(1, width=9, height=0.34 * len(names) + 1.2)
    places = np.arange(len(names))
    for key, marker, size, colour, label in (
        ("polynomials", "s", 110, plots.COLOURS[4], "polynomials, black box"),
        ("independent", "o", 60, plots.COLOURS[0], "independent, black box"),
        ("independent_charges", "x", 30, plots.COLOURS[1], "independent charges of the group"),
    ):
        ax.scatter(data[key].values, places, marker=marker, s=size, color=colour, label=label, zorder=3)
    known = data["formula"].values >= 0
    ax.scatter(data["formula"].values[known], places[known], marker="|", s=320, color="0.2", label="formula", zorder=2)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.set(xlabel="conserved quantities")
    plots.legend(ax)
    beyond = [
        name
        for name in names
        if int(data["independent"].sel(network=name)) > int(data["independent_charges"].sel(network=name))
    ]
    redundant = [
        name
        for name in names
        if int(data["polynomials"].sel(network=name)) > int(data["independent"].sel(network=name))
    ]
    agree = summary["formula_agreement"]
    return Section(
        "How many laws",
        [
            f"For {len(names)} networks (linear ones as U V' with U of n by r, V of m by r; others by their widths): polynomials up to degree 2 that gradient flow conserves on every data set, found from gradients at random parameters and data"
            f" alone; the charges of the discovered group; and the number in closed form. Independent ones agree with the formula in {agree:.0%} of the networks that have one.",
            f"On gradients that were not used, the laws fail by at most {summary['residual']:.0e} of their size. "
            + (
                f"The black box finds more than symmetry explains in {listed(beyond)}."
                if beyond
                else "Symmetry explains all of them."
            ),
            (
                f"Polynomials outnumber independent laws in {listed(redundant)}: the others are functions of these (products, or tied to them by relations)."
                if redundant
                else "No law depends on the others."
            ),
        ],
        tables=[
            Table(
                (
                    "network",
                    "parameters",
                    "polynomials",
                    "independent",
                    "linear",
                    "all",
                    "independent",
                    "formula",
                    "residual",
                ),
                rows,
                "Residual: of the laws on fresh gradients.",
                groups=(("", 2), ("black box", 3), ("charges of the group", 2), ("", 2)),
            )
        ],
        pictures=[
            Picture(
                "counts",
                figure,
                "Dots and crosses on a bar: black box, group and formula agree.",
                f"Numbers of conserved quantities of {len(names)} networks, by a black box, by the charges of the group and by formula.",
            )
        ],
    )


def _readable(data: xr.Dataset) -> Section:
    rows = []
    for name in data["network"].values:
        own = data.sel(network=name)
        laws = [str(law) for law in own["readable"].values if str(law)]
        more = int(own["polynomials"]) - len(laws)
        rows.append((str(name), "; ".join(laws) + (f"; and {more} more" if more > 0 else "") if laws else "none"))
    return Section(
        "The laws themselves",
        ["As the black box reads them off, by elimination, with as few terms as that leaves."],
        tables=[Table(("network", "laws"), rows, "In the names of the parameters.")],
    )
