"""The page of the study ``parallelism``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.parallelism_summary import (
    ALONE,
    BOTH,
    DATA,
    EXACT,
    MEMORY,
    MODEL,
    claims,
    error,
    layout,
    measured_bytes,
    predicted_bytes,
    ratio,
    total_memory,
    ways,
)
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally

FLOOR = 1e-18  # of what is drawn on a logarithmic axis
MARKS = {DATA: "o", MODEL: "s", BOTH: "^"}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_claims(data, summary), _equal(data, summary), _sent(data), _memory(data, summary)]


def _claims(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    found = claims(data)
    kind = str(data["device_kind"].values)
    named = "" if kind == summary["platform"] else f" ({kind})"
    where = f"{int(data['device_count'])} devices of the platform {summary['platform']}{named}"
    caveat = (
        f" They are parts of one machine with {int(data['cores'])} cores and one memory: what is sent and held is that of the compiled programs, but how long it takes here says nothing of real devices, and no claim is made of it."
        if summary["platform"] == "cpu"
        else ""
    )
    return Section(
        "What is claimed, and what was measured",
        [
            f"A network of 64 inputs, {int(data['hidden'])} ReLU units and {int(data['outputs'])} outputs, {int(data['num_parameters'])} parameters, learns {int(data['batch'])} digits by SGD with momentum; {int(data['ensemble'])} networks train together in each program, for {int(data['steps'])} steps, each of which sees all the rows.",
            "Data-parallel: each device has all parameters and a part of the rows. Model-parallel: each device has all rows and a part of the hidden units, that is columns of the first kernel and rows of the second. Both: the devices form a grid of two rows, with a part of the rows of the batch and of the units on each."
            " The function that is trained is the same each time; only where its arguments lie is said, and the compiler (XLA, through jax.sharding) adds what must be sent.",
            f"The study had {where}, and used one to {int(data['devices'].max())} of them.{caveat}",
            tally(found),
        ],
        tables=[
            claims_table(
                found,
                f"On {int(data['chosen_devices'])} devices, where no other number is said. The cut by columns and rows is that of Shoeybi et al. 2019.",
            )
        ],
    )


def _labels(data: xr.Dataset) -> list[str]:
    return [
        str(way) if way == ALONE else f"{way}, {int(devices)}"
        for way, devices in zip(data["way"].values, data["devices"].values, strict=True)
    ]


def _equal(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    precisions = [str(name) for name in data["precision"].values]
    several = np.flatnonzero(data["way"].values != ALONE)
    own = data.isel(layout=several)
    figure, axes = plots.panels(len(precisions), width=11, height=0.32 * len(several) + 1.2)
    for ax, precision in zip(axes, precisions, strict=True):
        values = own["error"].sel(precision=precision).values
        plots.distributions(ax, {label: np.maximum(v, FLOOR) for label, v in zip(_labels(own), values, strict=True)})
        ax.set_xscale("log")
        ax.set(title=precision, xlabel="relative difference from one device")
    rows = [
        (
            label,
            *(
                f"{float(own['error'].isel(layout=place).sel(precision=precision).max()):.1e}"
                for precision in precisions
            ),
            f"{float(own['moved'].isel(layout=place).sel(precision='float64').median()):.2g}",
        )
        for place, label in enumerate(_labels(own))
    ]
    worst = {way: error(data, way) for way in ways(data)}
    over = [way for way, value in worst.items() if value > EXACT]
    verdict = (
        "All are rounding: sums over rows, or over hidden units, are taken in another order."
        if not over
        else f"{listed(over)}: more than rounding."
    )
    return Section(
        "The same network",
        [
            f"The parameters after {int(data['steps'])} steps differ from those of one device by at most {listed([f'{value:.1e} ({way})' for way, value in worst.items()])} of the largest parameter in float64. {verdict} In float32 it is at most {max(error(data, way, 'float32') for way in worst):.1e}.",
            f"That this can fail is seen without the all-reduce (each device adds up its own hidden units alone): the outputs are then wrong by {summary['unsummed_error']:.2g} of the largest, and by {summary['by_hand_error']:.1e} with an all-reduce written by hand.",
        ],
        tables=[
            Table(
                ("way, devices", *precisions, "change by training"),
                rows,
                "The largest relative difference over networks, and the median change of the parameters by training, by which it is to be judged.",
            )
        ],
        pictures=[
            Picture(
                "errors",
                figure,
                f"A dot is a network, a bar the median. Differences below {FLOOR:g} are drawn there.",
                f"Relative differences of trained parameters between one device and several, in {listed(precisions)}.",
            )
        ],
    )


def _sent(data: xr.Dataset) -> Section:
    single = data.assign(sent=measured_bytes(data), said=predicted_bytes(data)).sel(precision="float32")
    figure, (ax,) = plots.panels(1, width=7)
    for colour, (way, mark) in zip(plots.COLOURS, MARKS.items(), strict=False):
        own = single.isel(layout=np.flatnonzero(single["way"].values == way))
        if not own.sizes["layout"]:
            continue
        ax.plot(own["devices"], own["sent"] / 1e3, mark, color=colour, label=way)
        ax.plot(own["devices"], own["said"] / 1e3, "_", color="black", markersize=20)
    ax.plot([], [], "_", color="black", markersize=12, label="predicted")
    ax.set_yscale("log")
    plots.plain(ax, "y")
    ax.set_xticks(sorted(set(single["devices"].values[1:].tolist())))
    ax.set(xlabel="devices", ylabel="kB in a step, of one device")
    plots.legend(ax, loc="center left")
    rows = [
        (
            label,
            f"{int(single['collectives_per_step'][place])}",
            *(f"{int(single['bytes_per_step'][place].sel(collective=kind))}" for kind in _used(data)),
            f"{int(single['said'][place])}",
            f"{int(single['bytes_once'][place].sum())}",
        )
        for place, label in enumerate(_labels(data))
    ]
    sent = {way: int(layout(single, way)["sent"]) for way in ways(data)}
    more, less = sorted((DATA, MODEL), key=lambda way: -sent[way])
    return Section(
        "What is sent",
        [
            f"Bytes of the operands of all collectives in the training loop, read from the text of the compiled program of one device. On {int(data['chosen_devices'])} devices, in float32, a device puts in {listed([f'{value} ({way})' for way, value in sent.items()])} bytes a step.",
            f"Data-parallel training sends a number for each parameter, {int(data['num_parameters'])} of each network, whatever the batch; model-parallel training one for each output of each row, {int(data['batch']) * int(data['outputs'])} of each network, whatever the width. Here {more} sends more, {sent[more] / max(sent[less], 1):.3g} times what {less} does; with more than"
            f" {int(data['num_parameters']) // int(data['outputs'])} rows in a batch it would be model-parallel training. In a deeper network each such pair of layers has an all-reduce forward and one backward (Shoeybi et al. 2019); the inputs here need no gradient.",
            f"An all-reduce as a ring sends {2 * (int(data['chosen_devices']) - 1) / int(data['chosen_devices']):g} times its operand from each of {int(data['chosen_devices'])} devices. Such factors are not in these figures.",
        ],
        tables=[
            Table(
                ("way, devices", "collectives", *_used(data), "predicted", "outside of the loop"),
                rows,
                "float32; bytes of one device in a step, by kind of collective, those that theory says, and those sent once for all.",
            )
        ],
        pictures=[
            Picture(
                "bytes",
                figure,
                "float32. Black: what theory says.",
                "Kilobytes that one device puts into collectives in a step, by way and number of devices, beside the prediction.",
            )
        ],
    )


def _used(data: xr.Dataset) -> list[str]:
    """The kinds of collectives that there are."""
    some = (data["bytes_per_step"].sum(("layout", "precision")) > 0).values
    return [str(kind) for kind in data["collective"].values[some]]


def _memory(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    single = data.assign(total=total_memory(data)).sel(precision="float32")
    labels = _labels(data)
    figure, (left, right) = plots.panels(2, width=12, height=0.32 * len(labels) + 1.2)
    places = np.arange(len(labels))
    begin = np.zeros(len(labels))
    for colour, part in zip(plots.COLOURS, MEMORY, strict=False):
        values = single["memory"].sel(part=part).values / 1e6
        left.barh(places, values, left=begin, color=colour, label=part)
        begin += values
    right.barh(places, single["parameter_bytes"].values / 1e6, color=plots.COLOURS[3])
    for ax, title in ((left, "the whole program"), (right, "parameters alone")):
        ax.set_yticks(places, labels)
        ax.invert_yaxis()
        ax.set(title=title, xlabel="MB on one device")
    plots.legend(left, loc="lower right")
    rows = [
        (
            label,
            *(f"{float(single['memory'][place].sel(part=part)) / 1e6:.3f}" for part in MEMORY),
            f"{float(single['total'][place] / single['total'][0]):.3f}",
            f"{float(single['parameter_bytes'][place] / single['parameter_bytes'][0]):.4f}",
            f"{1 / int(single['model_devices'][place]):.4f}",
        )
        for place, label in enumerate(labels)
    ]
    devices = int(data["chosen_devices"])
    spare = ratio(data, DATA, total_memory(data))
    return Section(
        "What a device holds",
        [
            f"On each of {devices} devices model-parallel training holds {summary['model_parallel_parameter_ratio']:.4f} of one device's parameters, against {1 / devices:.4f} if all could be cut (the bias of the outputs is on every device), and data-parallel training {summary['data_parallel_parameter_ratio']:.4g}.",
            f"Of all that the compiled program holds in float32, arguments, outputs and temporary values (the momentum, the gradient and the hidden units among them), it is {summary['memory_ratio']:.3f} and {spare:.3f} of one device's. Data-parallel training saves"
            f" {'at most what grows with the rows: inputs and hidden units, as far as the compiler lets them go' if spare < 1 else 'nothing'}.",
        ],
        tables=[
            Table(
                (
                    "way, devices",
                    *(f"{part} (MB)" for part in MEMORY),
                    "of one device's",
                    "parameters, of one device's",
                    "1 / devices that share units",
                ),
                rows,
                "float32; from the compiler's own analysis of the program of one device. Parameters given take the place of those that come out.",
            )
        ],
        pictures=[
            Picture(
                "memory",
                figure,
                "float32. Output: what does not take the place of an argument.",
                "Megabytes on one device by way and number of devices, of the whole program and of the parameters alone.",
            )
        ],
    )
