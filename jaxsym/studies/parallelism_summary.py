"""The figures of the study ``parallelism``, beside what theory says, and the claims."""

from typing import Any

import numpy as np
import xarray as xr

from jaxsym.studies.study import Claim, refuted, run_counts

MEMORY = ("argument", "output", "temporary")
DATA, MODEL, BOTH, ALONE = "data-parallel", "model-parallel", "both", "one device"
EXACT = 1e-12
"""Relative differences in float64 below this are rounding."""
UNEVEN = 0.02
"""Parameters count as cut by the number of devices if what a device holds is that much above it at most: the bias of the outputs is everywhere."""


def layout(data: xr.Dataset, way: str, devices: int | None = None) -> xr.Dataset:
    """One way, on the devices of the headline figures where nothing else is said."""
    devices = int(data["chosen_devices"]) if devices is None else devices
    found = (data["way"] == way) & ((data["devices"] == devices) if way != ALONE else True)
    return data.isel(layout=int(np.flatnonzero(found.values)[0]))


def ways(data: xr.Dataset) -> list[str]:
    """The ways that the devices of the headline figures allow."""
    here = data["devices"] == int(data["chosen_devices"])
    return [str(way) for way in data["way"].values[here.values]]


def local_parameters(data: xr.Dataset) -> xr.DataArray:
    """Parameters of a network on one device, by theory: all but the bias of the outputs are cut."""
    return (data["num_parameters"] - data["outputs"]) // data["model_devices"] + data["outputs"]


def predicted_bytes(data: xr.Dataset) -> xr.DataArray:
    """What a device puts into all-reduces in a step, by theory: the gradient of its parameters where rows are shared out, the outputs of its rows where hidden units are."""
    size = xr.DataArray([8, 4], dims="precision", coords={"precision": ["float64", "float32"]})
    gradient = local_parameters(data).where(data["batch_devices"] > 1, 0)
    outputs = (data["batch"] // data["batch_devices"] * data["outputs"]).where(data["model_devices"] > 1, 0)
    return ((gradient + outputs) * data["ensemble"] * size).transpose("layout", "precision")


def measured_bytes(data: xr.Dataset) -> xr.DataArray:
    """What it does put into collectives of any kind in a step."""
    return data["bytes_per_step"].sum("collective")


def total_memory(data: xr.Dataset) -> xr.DataArray:
    """Arguments, outputs that do not take their place, and temporary values, on one device."""
    return data["memory"].sum("part")


def ratio(data: xr.Dataset, way: str, values: xr.DataArray, devices: int | None = None) -> float:
    """Of a way and of one device, in float32."""
    both = data.assign(of=values).sel(precision="float32")
    return float(layout(both, way, devices)["of"] / layout(both, ALONE)["of"])


def error(data: xr.Dataset, way: str, precision: str = "float64") -> float:
    """The largest of a way, over networks and numbers of devices."""
    return float(data["error"].sel(precision=precision).isel(layout=np.flatnonzero(data["way"].values == way)).max())


def claims(data: xr.Dataset) -> list[Claim]:
    """What is said of both ways, what was measured, and whether it holds."""
    devices = int(data["chosen_devices"])
    exact = data.sel(precision="float64")
    found = []
    for way in ways(data):
        name = "Both at once give" if way == BOTH else f"{way.capitalize()} training gives"
        worst = error(data, way)
        found.append(
            (
                f"{name} the parameters of one device (relative difference at most {EXACT:g} in float64)",
                f"at most {worst:.1e} after {int(data['steps'])} steps, which change the parameters by {float(exact['moved'].min()):.2g} or more",
                worst <= EXACT,
            )
        )
    bytes_of = {way: float(layout(exact.assign(of=measured_bytes(exact)), way)["of"]) for way in (DATA, MODEL)}
    theory = {
        way: float(layout(data.assign(of=predicted_bytes(data)).sel(precision="float64"), way)["of"])
        for way in bytes_of
    }
    parameters = {way: ratio(data, way, data["parameter_bytes"]) for way in (DATA, MODEL)}
    memory = {way: ratio(data, way, total_memory(data)) for way in (DATA, MODEL)}
    agree = measured_bytes(data).values == predicted_bytes(data).values
    return [
        *found,
        (
            "Data-parallel training sends the gradient: as many numbers in a step as there are parameters",
            f"{bytes_of[DATA]:.0f} bytes in float64, and {theory[DATA]:.0f} by theory: {int(data['num_parameters'])} parameters of {int(data['ensemble'])} networks",
            bytes_of[DATA] == theory[DATA],
        ),
        (
            "Model-parallel training sends the outputs of the batch forward, and nothing backward",
            f"{bytes_of[MODEL]:.0f} bytes in float64, and {theory[MODEL]:.0f} by theory: {int(data['outputs'])} outputs of {int(data['batch'])} rows of {int(data['ensemble'])} networks",
            bytes_of[MODEL] == theory[MODEL],
        ),
        (
            "The same holds of every layout and precision here",
            f"{int(agree.sum())} of {agree.size} programs send exactly what theory says",
            bool(agree.all()),
        ),
        (
            "Data-parallel training does not make the parameters' memory smaller",
            f"{parameters[DATA]:.4g} of one device's, on each of {devices}",
            parameters[DATA] == 1,
        ),
        (
            f"Model-parallel training divides the parameters' memory by the number of devices (to {UNEVEN:.0%})",
            f"{parameters[MODEL]:.5f} of one device's, on each of {devices}; 1/{devices} is {1 / devices:.5f}",
            1 <= parameters[MODEL] * devices <= 1 + UNEVEN,
        ),
        (
            "Of all that the program holds, model-parallel training leaves less on a device than data-parallel training",
            f"{memory[MODEL]:.3g} of one device's against {memory[DATA]:.3g}",
            memory[MODEL] < memory[DATA],
        ),
        (
            "Without its all-reduce the model-parallel network computes something else",
            f"outputs differ by {float(data['unsummed_error']):.2g} of the largest without, by {float(data['by_hand_error']):.1e} with it",
            float(data["unsummed_error"]) > 1e-3 and float(data["by_hand_error"]) <= EXACT,
        ),
    ]


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures: of the chosen number of devices; bytes and memory in float32, errors in float64 where nothing else is said."""
    keys = {DATA: "data_parallel", MODEL: "model_parallel", BOTH: "both"}
    single = data.assign(sent=measured_bytes(data), said=predicted_bytes(data)).sel(precision="float32")
    found: dict[str, Any] = {}
    for way in ways(data):
        key, own = keys[way], layout(single, way)
        found |= {
            f"{key}_error": error(data, way),
            f"{key}_error_float32": error(data, way, "float32"),
            f"{key}_bytes_per_step": int(own["sent"]),
            f"{key}_bytes_predicted": int(own["said"]),
            f"{key}_memory_ratio": ratio(data, way, total_memory(data)),
            f"{key}_parameter_ratio": ratio(data, way, data["parameter_bytes"]),
        }
    return {
        "memory_ratio": ratio(data, MODEL, total_memory(data)),
        **found,
        "by_hand_error": float(data["by_hand_error"]),
        "unsummed_error": float(data["unsummed_error"]),
        "devices": int(data["chosen_devices"]),
        "platform": str(data["platform"].values),
        "claims_that_failed": refuted(claims(data)),
        **run_counts(data),
    }
