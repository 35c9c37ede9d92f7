"""The results of a sweep as one dataset, read lazily."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxsym.sweep import cell, store
from jaxsym.sweep.folder import Folder
from jaxsym.sweep.grid import Sweep, text_of


def open_sweep(directory: str | Path) -> xr.Dataset:
    """All finished cells of a sweep as one dataset; arrays are read when they are used.

    Parameters
    ----------
    directory
        The folder that ``jaxsym sweep ... --out DIR`` wrote.

    Returns
    -------
    Dataset
        Dimensions: the static axes, the traced axes (``point`` where they are zipped), ``seed``, and each variable's own
        (``step`` for training runs, ``{variable}_0`` and so on otherwise); in a search ``trial`` and ``seed``. ``finite`` says which
        networks have finite results only. Cells that are missing are NaN, and not finite.

    Raises
    ------
    ValueError
        If the folder holds no sweep, or none of its cells is finished.
    """
    folder = Folder(Path(directory).expanduser())
    sweep, _ = folder.sweep()
    cells = sweep.cells()
    found = {one.number: _read(folder.cell(one.number), sweep) for one in cells}
    present = {index: dataset for index, dataset in found.items() if dataset is not None}
    if not present:
        msg = f"{folder.path}: no cell is finished yet; `jaxsym sweep` goes on with it."
        raise ValueError(msg)
    first = next(iter(present.values()))
    nonfinite = sum(int(dataset.attrs["nonfinite"]) for dataset in present.values())
    if sweep.search is not None:
        dims: dict[str, Any] = {}
        combined = xr.concat(list(present.values()), "trial", data_vars="minimal", combine_attrs="override")
    else:
        dims = {name: text_of(values) for name, values in sweep.static.items()}
        if len(present) < len(cells):
            present = {index: _with_room(dataset) for index, dataset in present.items()}
        empty = _emptied(next(iter(present.values())))
        every = [present.get(one.number, empty) for one in cells]
        combined = _nested(every, dims)
    keep = ("target", "versions", "device", "git_revision")
    attributes = {name: first.attrs[name] for name in keep}
    combined.attrs = attributes | {
        "config": json.dumps(sweep.as_dict()),
        "hash": sweep.digest(),
        "cells": len(cells),
        "cells_done": len(present),
        "nonfinite": nonfinite,
    }
    return combined


def parameters(directory: str | Path, /, **static: Any) -> dict[str, Any]:
    """The trained parameters of a cell as a tree.

    Parameters
    ----------
    directory
        The folder that ``jaxsym sweep ... --out DIR`` wrote, of training runs whose parameters are recorded.
    **static
        A value for each static axis, where the sweep has more than one cell.

    Returns
    -------
    dict
        Nested by the parts of each path; leaves ``[*traced, seeds, ...]``, NumPy arrays with an axis for each traced axis (one where they
        are zipped; all trials of a search). ``js.parallel`` and ``jax.vmap`` map a network over them.

    Raises
    ------
    ValueError
        If that is not one cell, it is not finished, or no parameters are recorded in it.
    """
    from flax.traverse_util import unflatten_dict  # takes a second to import, and only this needs it

    folder = Folder(Path(directory).expanduser())
    sweep, _ = folder.sweep()
    cells = [one for one in sweep.cells() if all(one.static.get(name) == value for name, value in static.items())]
    unknown = sorted(static.keys() - sweep.static.keys())
    if unknown or not cells or (sweep.search is None and len(cells) > 1):
        axes = (
            "; ".join(f"{name} of {list(values)}" for name, values in sweep.static.items()) or "none, it has one cell"
        )
        msg = f"{folder.path}: {len(cells)} cells match {static or 'no value'}, expected one; its static axes: {axes}."
        raise ValueError(msg)
    named: dict[str, list[np.ndarray]] = {}
    for one in cells:
        place = folder.cell(one.number)
        found = cell.record(place, sweep.digest())
        if found is None or cell.PARAMS not in found["files"]:
            what = "it is not finished" if found is None else "no parameters are recorded"
            msg = f"{place}: {what}; expected a cell of training runs (`make_train`) that was not run with `params = false`."
            raise ValueError(msg)
        for path, array in store.read_arrays(place / cell.PARAMS)[0].items():
            named.setdefault(path, []).append(array)
    points = (-1,) if sweep.search else tuple(sweep.points().dims.values())
    whole = {path: np.concatenate(arrays) for path, arrays in named.items()}
    shaped = {path: array.reshape(*points, len(sweep.seeds), *array.shape[1:]) for path, array in whole.items()}
    return unflatten_dict(shaped, sep="/")


def _read(place: Path, sweep: Sweep) -> xr.Dataset | None:
    if cell.record(place, sweep.digest()) is None:
        return None
    return xr.open_dataset(place / cell.DATA, engine="h5netcdf", chunks={})


def _nested(datasets: list[xr.Dataset], dims: dict[str, list[Any]]) -> xr.Dataset:
    """Datasets in the order of the file, put together along the static axes, the last of them first."""
    attributes = datasets[0].attrs
    datasets = _levelled(datasets)
    for name, values in reversed(dims.items()):
        along = xr.Variable(name, values)
        groups = [datasets[i : i + len(values)] for i in range(0, len(datasets), len(values))]
        datasets = [
            xr.concat(group, along, data_vars="all", coords="minimal", compat="override", join="outer")
            for group in groups
        ]
    (combined,) = datasets
    return combined.assign_attrs(attributes)


def _levelled(datasets: list[xr.Dataset]) -> list[xr.Dataset]:
    """Results whose shape differs from cell to cell, filled up with NaN and read at once: Dask would align them entry by entry."""
    sizes: dict[Any, set[int]] = {}
    for dataset in datasets:
        for dim, size in dataset.sizes.items():
            sizes.setdefault(dim, set()).add(size)
    uneven = {dim: max(found) for dim, found in sizes.items() if len(found) > 1 and dim != "step"}
    if not uneven:
        return datasets

    def filled(dataset: xr.Dataset) -> xr.Dataset:
        widths = {dim: (0, most - dataset.sizes[dim]) for dim, most in uneven.items() if dim in dataset.sizes}
        owned = [name for name, array in dataset.data_vars.items() if set(widths) & set(array.dims)]
        dataset = dataset.drop_vars(widths).assign(
            {name: dataset[name].load().astype(_roomy(dataset[name])) for name in owned}
        )
        return dataset.pad(widths).assign_coords({dim: np.arange(uneven[dim]) for dim in widths})

    return [filled(dataset) for dataset in datasets]


def _roomy(array: xr.DataArray) -> np.dtype:
    """A type that can be missing."""
    return array.dtype if array.dtype.kind == "f" else np.dtype(float)


def _with_room(dataset: xr.Dataset) -> xr.Dataset:
    """Integers and booleans as floats, which can be missing."""
    kinds = {name: array.dtype.kind for name, array in dataset.data_vars.items() if name != "finite"}
    whole = {name: dataset[name].astype(float) for name, kind in kinds.items() if kind in "biu"}
    return dataset.assign(whole)


def _emptied(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.map(lambda array: xr.full_like(array, False if array.dtype == bool else np.nan))


def facts(directory: str | Path) -> list[dict[str, Any]]:
    """What is known of every cell, in order: ``index``, ``static``, ``state`` (done, failed or missing), and the record or the error."""
    folder = Folder(Path(directory))
    sweep, _ = folder.sweep()
    known: list[dict[str, Any]] = []
    for one in sweep.cells():
        place = folder.cell(one.number)
        record, error = cell.record(place, sweep.digest()), cell.failure(place)
        state = "done" if record else "missing" if error is None else "failed"
        told = record or ({} if error is None else {"error": error})
        known.append({"index": one.number, "static": one.static, "state": state, **told})
    return known


def label(static: dict[str, Any]) -> str:
    """A cell in words.

    >>> label({"width": 4, "activation": "tanh"})
    'width 4, activation tanh'
    """
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in static.items()
    )
