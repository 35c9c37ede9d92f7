"""The page of the study ``invariant_optimizers``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed

FLOOR = 1e-18  # of what is drawn on a logarithmic axis
HARMED = 1.05
"""A ratio of median losses, unbalanced over balanced starts, above which a start counts as worse."""
ROUNDING = 1e-11
"""Relative errors up to this, after some dozens of steps in float64, are rounding."""


def page(data: xr.Dataset, summary: Mapping[str, Any], chosen: xr.DataArray) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_curves(data, chosen), _commutes(data, summary)]


def _curves(data: xr.Dataset, chosen: xr.DataArray) -> Section:
    names, starts = ([str(name) for name in data[key].values] for key in ("optimizer", "start"))
    figure, axes = plots.panels(len(names), width=11, columns=3)
    rows = []
    harmed: list[str] = []
    unharmed: list[str] = []
    for ax, name in zip(axes, names, strict=True):
        at = int(chosen.sel(optimizer=name))
        own = data.sel(optimizer=name).isel(rate=at)
        rate = float(own["tried"])
        plots.bands(ax, data["record"].values, {start: own["loss"].sel(start=start).values for start in starts})
        ax.set_yscale("log")
        ax.set(title=f"{name}, rate {rate:g}", xlabel="step")
        last = own["loss"].isel(record=-1).median("network")
        error = own["error"].median("network")
        rows.append(
            (
                name,
                f"{rate:g}",
                *(f"{float(last.sel(start=s)):.3g}" for s in starts),
                *(f"{float(error.sel(start=s)):.1%}" for s in starts),
            )
        )
        ratio = float(last.sel(start=starts[1]) / last.sel(start=starts[0]))
        errors = " to ".join(f"{float(error.sel(start=s)):.1%}" for s in starts)
        (harmed if ratio > HARMED else unharmed).append(f"{name} ({ratio:.2f} times the loss; test error {errors})")
    axes[0].set_ylabel("training loss")
    plots.legend(axes[0])
    lead = (
        f"{data.sizes['network']} networks of each optimizer and start learn the digits. An unbalanced start is a balanced one whose units have been rescaled: the same function, elsewhere on"
        " its orbit. Each optimizer has the rate that does best on balanced starts, of "
        + listed(
            [
                f"{' / '.join(f'{rate:g}' for rate in data['tried'].sel(optimizer=name).values)} for {name}"
                for name in names
            ]
        )
        + "."
    )
    said = [lead]
    if harmed:
        said.append(
            f"From unbalanced starts instead of balanced ones it ends worse under {listed(harmed)}, in the median."
        )
    if unharmed:
        said.append(f"It ends no worse, within {HARMED - 1:.0%}, under {listed(unharmed)}.")
    return Section(
        "Balanced and unbalanced starts",
        said,
        tables=[
            Table(
                ("optimizer", "rate", *starts, *starts),
                rows,
                "Medians over networks at the end.",
                groups=(("", 2), ("training loss", len(starts)), ("test error", len(starts))),
            )
        ],
        pictures=[
            Picture(
                "starts",
                figure,
                "Median and middle 90% of the networks.",
                f"Training loss against step for {listed(names)}, from balanced and unbalanced starts.",
            )
        ],
    )


def _commutes(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name in data["optimizer"].values]
    figure, (left, right) = plots.panels(2, width=11, height=2.8)
    for ax, key, title in ((left, "commutation_error", "parameters"), (right, "output_error", "outputs")):
        plots.distributions(ax, {name: np.maximum(data[key].sel(optimizer=name).values, FLOOR) for name in names})
        ax.set_xscale("log")
        ax.set(title=title, xlabel="relative difference of the two ways round")
    exact = summary["path_sgd_commutation_error"]
    return Section(
        "Training and rescaling, either way round",
        [
            f"Path-SGD commutes with rescaling: trained and then rescaled, or rescaled and then trained, its parameters differ by at most {exact:.1e}"
            f" ({'rounding' if exact < ROUNDING else 'more than rounding'}); those of SGD by {summary['sgd_commutation_error']:.1e} in the median.",
            f"Balanced SGD forgets where on the orbit it began: its parameters differ, as they are balanced after one way and not after the other, and both give the same outputs, to {summary['balanced_output_error']:.1e}. After balancing the largest"
            f" charge is {summary['balanced_charge_max']:.1e}.",
        ],
        pictures=[
            Picture(
                "commutation",
                figure,
                "One dot a network.",
                f"Differences between training then rescaling and rescaling then training, for {listed(names)}, of parameters and of outputs.",
            )
        ],
    )
