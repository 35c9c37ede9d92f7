"""Sweeps that were never run: datasets as ``jaxsym.sweep.open`` gives them, with figures that are known, and their folders."""

import json
import math

import numpy as np
import pytest
import xarray as xr

from jaxsym import report
from jaxsym.sweep import records
from jaxsym.sweep_page import CellFacts

SEEDS = 16
STEPS = np.arange(0, 110, 10)


def noise(*shape):
    """Numbers without a pattern, the same every time."""
    return np.sin(np.arange(math.prod(shape)) * 12.9898 + 1).reshape(shape) * 0.5


def dataset(config, dims, coords, rate, variables=None):
    """Losses that fall with a rate for each point, accuracies that follow, one network in four of the fastest points lost."""
    shape = rate.shape
    log = (
        np.log(0.7)
        - rate[..., None, None] * STEPS / 30
        + 0.3 * noise(*shape, SEEDS, 1)
        + 0.05 * noise(*shape, SEEDS, 11)
    )
    loss = np.exp(log)
    finite = np.ones((*shape, SEEDS), bool)
    finite[rate > 0.9, ::4] = False
    loss[~finite, 5:] = np.nan
    where = (*dims, "seed")
    return xr.Dataset(
        {
            "loss": ((*where, "step"), loss),
            "test_accuracy": ((*where, "step"), np.where(np.isfinite(loss), 1 - loss / 2, 0.1)),
            "finite": (where, finite),
            **(variables or {}),
        },
        coords={"seed": np.arange(SEEDS), "step": STEPS, **coords},
        attrs={
            "config": json.dumps(config),
            "hash": "0123abcd",
            "versions": json.dumps({"python": "3.11.2", "jax": "0.10.2"}),
            "device": "2 x cpu",
            "git_revision": "1" * 40,
            "target": "nets:mlp",
        },
    )


def lose(data, cells, states):
    """The same sweep with some cells failed or missing: NaN there, and not finite."""
    cells = [cell._replace(state=states.get(cell.number, "done")) for cell in cells]
    each = data["finite"].size // SEEDS // len(cells)
    mask = np.repeat([cell.state == "done" for cell in cells], each).reshape(data["finite"].shape[:-1])
    mask = xr.DataArray(mask, dims=data["finite"].dims[:-1])
    finite = data["finite"] & mask
    failed = {"error": "ValueError: a width of 8 <is> too wide", "seconds": 0.0}
    return data.where(mask).assign(finite=finite), [
        cell._replace(**failed) if cell.state == "failed" else cell for cell in cells
    ]


def finished(number):
    return [CellFacts(i, "done", seconds=2.5 + i, log=True) for i in range(number)]


def cross():
    """Two static and one traced axis; the weights of each network are there too."""
    axes = {"width": [4, 8], "activation": ["relu", "tanh"]}
    rates = [0.01, 0.1, 1.0]
    config = {
        "sweep": {"target": "nets:mlp", "seeds": SEEDS, "combine": "cross", "chunk": None},
        "static": axes,
        "traced": {"learning_rate": rates},
    }
    dims = ("width", "activation", "learning_rate")
    rate = np.array([[[0.1, 0.4, 0.95], [0.2, 0.5, 0.3]], [[0.15, 0.6, 1.0], [0.2, 0.8, 0.35]]])
    weights = (*dims, "seed", "weights_0", "weights_1"), np.ones((2, 2, 3, SEEDS, 2, 3))
    return dataset(config, dims, axes | {"learning_rate": rates}, rate, {"weights": weights}), finished(4)


def zipped():
    """A static axis, and two that are zipped."""
    rates, momenta = [0.001, 0.01, 0.1, 0.3], [0.0, 0.5, 0.9, 0.99]
    config = {
        "sweep": {"target": "nets:mlp", "seeds": list(range(SEEDS)), "combine": "zip"},
        "static": {"initializer": ["xavier", "he", "orthogonal"]},
        "traced": {"learning_rate": rates, "momentum": momenta},
    }
    coords = {
        "initializer": ["xavier", "he", "orthogonal"],
        "learning_rate": ("point", rates),
        "momentum": ("point", momenta),
    }
    rate = np.array([[0.05, 0.2, 0.5, 0.3], [0.05, 0.3, 0.7, 0.95], [0.1, 0.35, 0.6, 0.4]])
    return dataset(config, ("initializer", "point"), coords, rate), finished(3)


def search(trials=64, batch=16):
    """Trials that get better, some without a finite objective; a bigger space than a page's colours."""
    space = {
        "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
        "momentum": {"low": 0.0, "high": 0.99},
        "layers_scale": {"choices": [0.1, 1.0]},
        "hidden_steps": {"low": 1, "high": 5, "int": True},
    }
    config = {
        "sweep": {"target": "nets:mlp", "seeds": SEEDS},
        "static": {"width": [8]},
        "search": {
            "method": "tpe",
            "trials": trials,
            "batch": batch,
            "metric": "loss",
            "direction": "minimize",
            "space": space,
        },
    }
    pull = np.arange(trials) / trials
    rates = 10 ** (-2 + 3.9 * (1 - pull) * noise(trials))
    momenta = 0.5 + 0.98 * noise(trials + 7)[7:]
    coords = {
        "trial": np.arange(trials),
        "learning_rate": ("trial", rates),
        "momentum": ("trial", momenta),
        "layers_scale": ("trial", np.where(noise(trials + 3)[3:] > -0.2 - pull / 4, 1.0, 0.1)),
        "hidden_steps": ("trial", (3 + np.round(4 * noise(trials + 5)[5:])).astype(int)),
    }
    rate = np.exp(-np.abs(np.log10(rates) + 2)) * (0.4 + 0.4 * momenta)
    rate[noise(trials + 11)[11:] > 0.48] = 0.95
    data = dataset(config, ("trial",), coords, rate)
    objective = np.where(data["finite"].all("seed"), data["loss"].isel(step=-1).mean("seed"), np.inf)
    return data.assign(objective=("trial", objective)), finished(math.ceil(trials / batch))


def grid(**axes):
    """A sweep over as many static values as one likes: each point is a cell."""
    config = {"sweep": {"target": "nets:mlp", "seeds": SEEDS}, "static": axes, "traced": {}}
    sizes = [len(values) for values in axes.values()]
    rate = 0.5 + 0.7 * noise(*sizes)
    return dataset(config, tuple(axes), axes, rate), finished(math.prod(sizes))


SWEEPS = {"cross": cross, "zip": zipped, "search": search}


def facts(cells):
    """What ``records.facts`` says of these cells."""
    return [{"index": cell.number, "state": cell.state, "seconds": cell.seconds, "error": cell.error} for cell in cells]


def publish(directory, monkeypatch, data, cells):
    """Write the page of a sweep into a folder, as ``jaxsym report`` does."""
    monkeypatch.setattr(records, "open_sweep", lambda _: data)
    monkeypatch.setattr(records, "facts", lambda _: facts(cells))
    (directory / "sweep.json").write_text("{}")
    for cell in cells:
        if cell.log:
            (directory / cell.folder).mkdir(parents=True)
            (directory / cell.folder / "log.txt").write_text("")
    return report.publish(directory)


def publish_all(make_folder):
    """The folder of each sweep with its page, by name; of the crossed one the last cell failed."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, sweep in SWEEPS.items():
            folders[name] = make_folder(name)
            data, cells = sweep()
            if name == "cross":
                data, cells = lose(data, cells, {3: "failed"})
            publish(folders[name], patch, data, cells)
    return folders
