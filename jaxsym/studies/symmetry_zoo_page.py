"""The page of the study ``symmetry_zoo``: every sentence is computed from the dataset or the summary."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed
from jaxsym.symmetry.group import readable

LOW, HIGH = str.maketrans("0123456789+", "₀₁₂₃₄₅₆₇₈₉₊"), str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
LONGEST = 15  # digits of an order that are shown
LEAVES = 4  # of those with hidden directions, at most
FLOOR = 1e-17  # what a residual of 0 is drawn at
PRECISIONS = ("float64", "float32")


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_all(data, summary), _kernels(data, summary), _black_box(data, summary), _residuals(data, summary)]


def pretty(group: str) -> str:
    """Indices and powers as such.

    >>> pretty("(Z_2^4)^3 × S_4 × R_+^12")
    '(ℤ₂⁴)³ × S₄ × ℝ₊¹²'
    """
    group = re.sub(r"_(\d+|\+)", lambda found: found[1].translate(LOW), group)
    group = re.sub(r"\^(\d+)", lambda found: found[1].translate(HIGH), group)
    return group.replace("Z", "ℤ").replace("R", "ℝ")


def _all(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    number, complete = summary["architectures"], summary["complete"]
    incomplete, unclear = summary["incomplete"], summary["not_certified"]
    worst = summary["worst_residual_float64"]
    sentences = [
        f"{number} small networks, the group that is found in the jaxpr of each, and two checks of how complete it is. "
        + (
            "For all of them the group explains the whole kernel of the Jacobian"
            if complete == number
            else f"For {complete} of {number} the group explains the whole kernel of the Jacobian"
        )
        + (f"; hidden directions remain in {listed(incomplete)}." if incomplete else ".")
        + (f" The worst residual in float64 is {worst:.1e}." if worst is not None else ""),
    ]
    if unclear:
        sentences.append(f"Without a kernel, and not counted as complete: {'; '.join(unclear).rstrip('.')}.")
    if summary["unavailable"]:
        sentences.append(f"Not available here: {'; '.join(summary['unavailable']).rstrip('.')}.")
    sentences.append(
        "Columns. Group: the product of all factors, which may act on one another (S permutes units, ℤ₂ flips signs, ℝ₊ rescales, GL"
        " changes the basis, O rotates, ℝ shifts, ℤ shifts by a period), each once for every independent copy. Elements: of the finite factors S and ℤ₂. Dim: of the"
        " continuous ones. Kernel: how many directions in the space of parameters change no output to first order, at random parameters and inputs."
        " Hidden: how many of them do not lie in the orbit of the group. The orbit may have fewer dimensions than the group: some elements change nothing here."
        " Residuals: the worst relative change of an output under random elements, in float64 and float32. Black box: dimension of the orbit of all"
        " generators that are constant, from derivatives alone; missing: how many of its directions the group has not."
    )
    return Section("All on one page", sentences, tables=[_table(data)])


def _table(data: xr.Dataset) -> Table:
    """Architectures under their families."""
    rows: list[Sequence[str]] = []
    header = (
        "",
        "group",
        "elements",
        "dim",
        "parameters",
        "kernel",
        "hidden",
        "float64",
        "float32",
        "black box",
        "missing",
    )
    for family, names in _families(data):
        rows.append((family.upper(), *[""] * (len(header) - 1)))
        for name in names:
            own = data.sel(architecture=name)
            if own["unavailable"].item():
                rows.append((name, own["unavailable"].item(), *["-"] * (len(header) - 2)))
                continue
            order = own["order"].item()
            rows.append(
                (
                    name,
                    pretty(own["group"].item()),
                    readable(int(order)).replace(",", "\u202f"),
                    *(_whole(own[field]) for field in ("dim", "parameters")),
                    _whole(own["kernel"]) if not own["not_certified"].item() else own["not_certified"].item(),
                    _whole(own["hidden"]),
                    *(f"{float(own[f'residual_{precision}']):.0e}" for precision in PRECISIONS),
                    _whole(own["algebra_orbit"]) if not own["not_compared"].item() else own["not_compared"].item(),
                    _whole(own["missing"]),
                )
            )
    return Table(header, rows, "Every architecture by family; - where there is no number.")


def _families(data: xr.Dataset) -> list[tuple[str, list[str]]]:
    """Names under their families, in the order of the dataset."""
    pairs = zip(data["family"].values, data["architecture"].values, strict=True)
    return [
        (str(family), [str(name) for _, name in group])
        for family, group in itertools.groupby(pairs, lambda pair: pair[0])
    ]


def _whole(value: xr.DataArray) -> str:
    return "-" if math.isnan(float(value)) else str(int(value))


def _columns(num: int) -> tuple[Figure, list[Axes], list[slice]]:
    """Panels for rows of architectures: one, or two of half the height, and which rows each of them has."""
    panels = 1 if num <= 24 else 2
    each = -(-num // panels)
    figure, axes = plots.panels(panels, width=11 if panels == 2 else 8, height=0.21 * each + 1.3)
    return figure, axes, [slice(i * each, min((i + 1) * each, num)) for i in range(panels)]


def _named(ax: Axes, data: xr.Dataset) -> None:
    """Names of architectures down the axis, the first on top, with a line between families."""
    names = [str(name) for name in data["architecture"].values]
    ax.set_yticks(range(len(names)), names, fontsize=7.5)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    families = data["family"].values
    for i in np.flatnonzero(families[1:] != families[:-1]):
        ax.axhline(i + 0.5, color="#c8ccd2", linewidth=0.6)


def _legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One for all panels, above them."""
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False, fontsize=8
    )


def _kernels(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    certified = data.isel(architecture=data["kernel"].notnull().values)
    figure, axes, parts = _columns(certified.sizes["architecture"])
    longest = max(float(certified["kernel"].max()) if certified.sizes["architecture"] else 1, 1)
    for ax, part in zip(axes, parts, strict=True):
        own = certified.isel(architecture=part)
        at = np.arange(own.sizes["architecture"])
        explained, hidden = own["orbit"].values, own["hidden"].values
        ax.barh(at, explained, color=plots.COLOURS[0], label="orbit of the group")
        ax.barh(at, hidden, left=explained, color=plots.COLOURS[1], label="hidden")
        for i, (kernel, rest) in enumerate(zip(own["kernel"].values, hidden, strict=True)):
            said = f"{int(kernel)}, {int(rest)} hidden" if rest else f"{int(kernel)}"
            ax.annotate(said, (kernel, i), (3, 0), textcoords="offset points", va="center", fontsize=7)
        ax.set(xlabel="directions that change no output", xlim=(0, 1.25 * longest))
        _named(ax, own)
    _legend(figure, axes, 2)
    kernel, hidden, parameters = (summary[name] for name in ("kernel", "hidden", "parameters"))
    number, flat = certified.sizes["architecture"], int((certified["kernel"] == 0).sum())
    sentences = [
        f"Of the {parameters} parameters of all architectures together, {kernel} directions change no output, and the groups explain {kernel - hidden} of"
        f" them. {flat} of {number} architectures {'has' if flat == 1 else 'have'} no such direction at all: no continuous symmetry.",
        "Kernels are those of the outputs over many random inputs, in float64, with a gap in the singular values. A direction that these inputs alone, or these"
        " parameters alone, leave flat (behind a unit that is dead there, for instance) is no symmetry and is not counted.",
    ]
    stabilised = [
        str(name) for name in certified["architecture"].values[(certified["orbit"] < certified["dim"]).values]
    ]
    if stabilised:
        sentences.append(f"Groups that are larger than their orbit: {listed(stabilised)}.")
    hiding = certified.isel(architecture=(certified["hidden"] > 0).values)
    rows = [
        (
            str(name),
            *(_whole(hiding[field].sel(architecture=name)) for field in ("kernel", "orbit", "hidden", "missing")),
            ", ".join(str(hiding["hidden_in"].sel(architecture=name).item()).split(", ")[:LEAVES]),
        )
        for name in hiding["architecture"].values
    ]
    header = ("incomplete", "kernel", "orbit", "hidden", "seen by the black box", "dimensions by leaf, the largest")
    tables = [Table(header, rows, "What the groups do not explain, and in which leaves it lies.")] if rows else []
    return Section(
        "The kernel, and what of it the group explains",
        sentences,
        tables=tables,
        pictures=[
            Picture(
                "kernels",
                figure,
                "Dimension of the kernel of the Jacobian; lines part the families.",
                f"Kernels of {number} architectures, the orbit's part and the hidden one: "
                + ", ".join(
                    f"{name} {_whole(certified['kernel'].sel(architecture=name))}"
                    for name in certified["architecture"].values
                )
                + ".",
            )
        ],
    )


def _black_box(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    compared = data.isel(architecture=data["missing"].notnull().values)
    title = "A second opinion: the Lie algebra of a black box"
    skipped = summary["algebra_not_compared"]
    if not compared.sizes["architecture"]:
        return Section(title, [f"Not compared: {'; '.join(skipped).rstrip('.') or 'nothing is available'}."])
    missing = summary["algebra_missing"]
    beyond = compared.isel(architecture=(compared["algebra_orbit"] < compared["orbit"]).values)
    sentences = [
        "The other oracle never sees a jaxpr: it solves for all generators that are constant matrices, shifts and contractions of leaves, from"
        " Jacobians at random parameters and inputs. Where it finds a direction that the group has not, discovery is incomplete. "
        f"Compared for {compared.sizes['architecture']} architectures: "
        + (f"directions are missing in {listed(missing)}." if missing else "nothing is missing anywhere.")
    ]
    if beyond.sizes["architecture"]:
        number = beyond.sizes["architecture"]
        most = int((beyond["orbit"] - beyond["algebra_orbit"]).max())
        sentences.append(
            f"The other way round, the group moves more than the black box can express in {listed([str(n) for n in beyond['architecture'].values])}"
            f" ({'by' if number == 1 else 'by up to'} {most} dimensions): there, coefficients depend on the parameters, such as the gains of a norm."
        )
    if skipped:
        sentences.append(f"Not compared: {'; '.join(skipped).rstrip('.')}.")
    return Section(title, sentences)


def _residuals(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    measured = data.isel(architecture=(data["unavailable"] == "").values)
    figure, axes, parts = _columns(measured.sizes["architecture"])
    for ax, part in zip(axes, parts, strict=True):
        own = measured.isel(architecture=part)
        at = np.arange(own.sizes["architecture"])
        for colour, precision in zip(plots.COLOURS, PRECISIONS, strict=False):
            ax.scatter(
                np.maximum(own[f"residual_{precision}"], FLOOR), at, s=14, color=colour, label=f"residual, {precision}"
            )
            ax.scatter(
                own[f"tolerance_{precision}"], at, s=28, marker="|", color=colour, label=f"tolerance, {precision}"
            )
        ax.set(xscale="log", xlabel="relative change of the outputs")
        _named(ax, own)
    _legend(figure, axes, 4)
    above = summary["residuals_above_tolerance"]
    sentences = [
        "Random elements of every factor act on random parameters, and the outputs are compared. "
        + (f"Residuals above their tolerance: {above}." if above else "Every residual is below its tolerance.")
    ]
    for precision in PRECISIONS:
        worst = measured[f"residual_{precision}"]
        if worst.size:
            name = str(worst["architecture"].values[int(worst.values.argmax())])
            sentences[0] += f" The worst in {precision} is {float(worst.max()):.1e} ({name})."
    return Section(
        "Residuals",
        sentences,
        pictures=[
            Picture(
                "residuals",
                figure,
                f"Worst relative change of an output under the group, and what rounding may do; 0 is drawn at {FLOOR:g}.",
                "Residuals of every architecture in float64 and float32 against their tolerances. " + sentences[0],
            )
        ],
    )
