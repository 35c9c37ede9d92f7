"""One cell of a sweep: its networks in segments, each saved, so that whatever ends the process, little is done again."""

import contextlib
import dataclasses
import datetime
import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxsym.catalogue import find
from jaxsym.sweep import store, targets
from jaxsym.sweep.folder import Folder
from jaxsym.sweep.grid import Cell, Points, Sweep
from jaxsym.sweep.networks import Networks

DATA, PARAMS, RECORD, FAILED, POINTS = "data.nc", "params.safetensors", "cell.json", "failed.json", "points.json"

RELIABLE = 1.0
"""Seconds of computing after which a rate tells how long the rest will take."""


class Progress(NamedTuple):
    """How far a cell is. ``steps`` counts updates of single networks, 0 where the target is no training run; ``seconds`` of computing.

    ``before`` is what was found done, in net-steps, or in networks where there are no steps.
    """

    networks: int
    networks_done: int
    steps: int
    steps_done: int
    seconds: float
    before: int = 0

    @property
    def rate(self) -> float:
        """Net-steps a second, or networks a second where there are no steps."""
        done = self.steps_done if self.steps else self.networks_done
        return (done - self.before) / self.seconds if self.seconds else 0.0

    @property
    def left(self) -> float | None:
        """Seconds left, at this rate; None while it says too little."""
        todo = self.steps - self.steps_done if self.steps else self.networks - self.networks_done
        return todo / self.rate if self.rate > 0 and self.seconds >= RELIABLE else None


Show = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Shows nothing."""


def record(place: Path, digest: str) -> dict[str, Any] | None:
    """The record of a finished cell; None where it is not finished, was made by another sweep, or a file of it is damaged."""
    found = store.read_json(place / RECORD)
    if not isinstance(found, dict) or found.get("hash") != digest or not isinstance(found.get("files"), dict):
        return None
    for name, checksum in found["files"].items():
        path = place / name
        if path.parent != place or not path.is_file() or store.digest(path) != checksum:
            return None
    return found


def failure(place: Path) -> str | None:
    """Why a cell failed, in a line; None if it did not."""
    found = store.read_json(place / FAILED)
    return None if found is None else str(found.get("error", "")) if isinstance(found, dict) else ""


def run(directory: str, index: int, show: Show = silent) -> dict[str, Any]:
    """Run one cell to its end; what is there already is not done again.

    Parameters
    ----------
    directory
        The sweep's folder.
    index
        Of the cell.
    show
        Told the progress every second or so; it may raise to stop the work.

    Returns
    -------
    dict
        The cell's record, as in its ``cell.json``.

    Raises
    ------
    ValueError
        If it fails; the message is one line, the traceback is in the cell's ``log.txt``.
    """
    folder = Folder(Path(directory))
    sweep, folders = folder.sweep()
    place, static = folder.cell(index), sweep.cells()[index].static
    with store.locked(place / ".lock", held=lambda who: _log(place, f"waiting for {who}, which runs this cell")):
        found = record(place, sweep.digest())
        if found is not None:
            return found
        if (place / RECORD).exists():
            _log(place, "a file of this cell is damaged or of another sweep; it is done again")
            (place / RECORD).unlink()
        (place / FAILED).unlink(missing_ok=True)
        try:
            _log(place, f"started: {json.dumps(static)}")
            with _reporting(place, show) as report:
                found = _run(sweep, folders, Cell(index, static), place, report)
            _log(place, f"finished: {found['networks']} networks, {found['nonfinite']} of them not finite")
        except KeyboardInterrupt:
            _log(place, "interrupted")
            raise
        except BaseException as error:
            line = " ".join(f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{error}".split())
            with contextlib.suppress(OSError, ValueError):  # the disk may be full
                _log(place, traceback.format_exc())
                store.write_json(place / FAILED, {"error": line})
            raise ValueError(line) from error
        return found


def _run(sweep: Sweep, folders: list[str], cell: Cell, place: Path, show: Show) -> dict[str, Any]:
    start = time.perf_counter()
    made = _study(sweep, cell, place, show) if sweep.study else _target(sweep, folders, cell, place, show)
    dataset, params, chunk, code, earlier = made
    facts = {
        "target": sweep.name,
        "static": json.dumps(cell.static),
        "config": json.dumps(sweep.as_dict()),
        "config_hash": sweep.digest(),
        "chunk": chunk,
        "code": code,
        "nonfinite": int((~dataset["finite"]).sum()),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    store.write_dataset(place / DATA, dataset.assign_attrs(facts | store.provenance()))
    if params:
        store.write_arrays(place / PARAMS, params, {"config_hash": sweep.digest()})
    files = [DATA, *([PARAMS] if params else [])]
    found = {
        "index": cell.number,
        "static": cell.static,
        "hash": sweep.digest(),
        "files": {name: store.digest(place / name) for name in files},
        "networks": int(dataset["finite"].size),
        "nonfinite": facts["nonfinite"],
        "chunk": chunk,
        "code": code,
        "seconds": round(earlier + time.perf_counter() - start, 3),
    }
    store.write_json(place / RECORD, found)  # from now on the cell is finished
    store.remove(place / "segments")
    return found


class Made(NamedTuple):
    """What a cell has computed: parameters ``[N, ...]`` by path, ``code`` the version of the target's file, ``earlier`` seconds of runs before."""

    dataset: xr.Dataset
    params: dict[str, np.ndarray]
    chunk: int
    code: str
    earlier: float


def _target(sweep: Sweep, folders: list[str], cell: Cell, place: Path, show: Show) -> Made:
    """Train the networks of a cell."""
    points, offset = points_of(sweep, cell, place)
    factory = targets.load(sweep, folders)
    train = targets.make(factory, sweep.target or "", cell.static)
    seeds = np.asarray(sweep.seeds, np.uint32)
    networks = Networks(
        train=train,
        seeds=np.tile(seeds, points.num),
        traced={name: np.repeat(values, len(seeds)) for name, values in points.values.items()},
        sweep=sweep,
        place=place / "segments",
        code=targets.version(factory),
        log=lambda text: _log(place, text),
    )
    results = networks.run(lambda *done: show(Progress(*done)))
    dims = (*points.dims, "seed")
    shape = (*points.dims.values(), len(seeds))
    coords: dict[str, Any] = {"seed": seeds.astype(np.int64)}
    if sweep.search is not None:
        coords["trial"] = np.arange(offset, offset + points.num)
    for name, values in points.values.items():
        dim = "point" if "point" in points.dims else "trial" if "trial" in points.dims else name
        coords[name] = (dim, np.asarray(sweep.traced[name]) if dim == name else values)
    if results.step is not None:
        coords["step"] = results.step
    variables = {}
    for name, array in (results.variables | results.curves).items():
        own = targets.own_dims(name, array.ndim - 1, name in results.curves)
        variables[name] = ((*dims, *own), array.reshape(*shape, *array.shape[1:]))
        coords |= {dim: np.arange(size) for dim, size in zip(own, array.shape[1:], strict=True) if dim != "step"}
    finite = _finite([*results.variables.values(), *results.curves.values()], len(networks.seeds)).reshape(shape)
    dataset = xr.Dataset(variables | {"finite": (dims, finite)}, coords=coords)
    if sweep.search is not None:
        dataset["objective"] = ("trial", _objective(dataset[sweep.search.metric]))
    return Made(dataset, results.params, networks.chunk, networks.code, networks.earlier)


def _finite(arrays: Iterable[np.ndarray], num: int) -> np.ndarray:
    """Which of ``num`` networks have finite entries only, in arrays ``[num, ...]`` of which those of integers are."""
    finite = np.ones(num, bool)
    for array in arrays:
        if np.issubdtype(array.dtype, np.inexact):
            finite &= np.isfinite(array).reshape(num, -1).all(1)
    return finite


def _objective(metric: xr.DataArray) -> np.ndarray:
    """The last entry along a metric's own dimensions, averaged over the seeds, ``[trials]``."""
    last = metric.values.reshape(*metric.shape[:2], -1)[..., -1].astype(float)
    with np.errstate(invalid="ignore"):
        return last.mean(axis=1)


def points_of(sweep: Sweep, cell: Cell, place: Path) -> tuple[Points, int]:
    """The traced values of a cell, and the number of its first trial."""
    if sweep.search is None:
        return sweep.points(), 0
    asked = store.read_json(place / POINTS)
    if not isinstance(asked, dict) or asked.get("hash") != sweep.digest():
        msg = f"{place / POINTS}: is missing or damaged; run the sweep again, which writes it."
        raise ValueError(msg)
    values = {name: np.asarray(values) for name, values in asked["values"].items()}
    return Points({"trial": len(next(iter(values.values())))}, values), cell.number * sweep.search.batch


def _study(sweep: Sweep, cell: Cell, place: Path, show: Show) -> Made:
    """Run a study for each seed; a segment is one of these runs."""
    study = targets.load_study(sweep)
    runs = []
    seeded = hasattr(study.config, "seed")
    start = time.perf_counter()
    for number, seed in enumerate(sweep.seeds):
        path = place / "segments" / f"seed_{seed}.nc"
        if not store.sealed(path):
            config = dataclasses.replace(study.config, **cell.static, **({"seed": seed} if seeded else {}))

            def told(_: str, done: int, total: int, number: int = number) -> None:
                part = done / total if total else 0.0
                show(_of_studies(len(sweep.seeds), number, part, total, time.perf_counter() - start))

            dataset = study.run(config, told)
            store.write_dataset(path, dataset.assign_attrs(config_hash=sweep.digest()))
            store.seal(path)
        runs.append(store.read_dataset(path))
    dataset = xr.concat(runs, dim=xr.Variable("seed", list(sweep.seeds)), join="outer", combine_attrs="drop_conflicts")
    taken = {*cell.static} & {*dataset.dims, *dataset.variables}
    dataset = dataset.rename({name: f"{name}_of_study" for name in taken})
    if sweep.variables is not None:
        for name in sweep.variables:
            with targets.keyed("record.variables"):
                find({str(known): known for known in dataset.data_vars}, name, "variable")
        dataset = dataset[list(sweep.variables)]
    numbers = [
        array.values for array in dataset.data_vars.values() if array.dims == ("seed",)
    ]  # of a run, not of its networks
    finite = _finite(numbers, len(sweep.seeds))
    return Made(dataset.assign(finite=("seed", finite)), {}, 1, "", 0.0)


def _of_studies(num: int, number: int, part: float, steps: int, seconds: float) -> Progress:
    return Progress(num, number, steps * num, int(steps * (number + part)), seconds)


@contextlib.contextmanager
def _reporting(place: Path, show: Show) -> Iterator[Show]:
    """Pass progress on, and write it to ``progress.json`` once a second."""
    last = -math.inf

    def report(progress: Progress) -> None:
        nonlocal last
        show(progress)
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            store.write_json(
                place / "progress.json", progress._asdict() | {"rate": progress.rate, "left": progress.left}
            )

    yield report
    (place / "progress.json").unlink(missing_ok=True)


def _log(place: Path, text: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with (place / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{now} {text.rstrip()}\n")
