"""What the page of a sweep is made of: its cells, its points, and figures over the seeds of each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from jaxsym.studies.study import COUNTS
from jaxsym.sweep import records
from jaxsym.sweep_page.text import shown

PREFERRED = ("test_accuracy", "accuracy", "test_loss", "loss")
WORDS = ("accuracy", "loss", "cost", "error")


class CellFacts(NamedTuple):
    """One folder ``cells/NNNN``, from its small files alone. ``log`` says whether there is a ``log.txt``."""

    number: int
    state: Literal["done", "failed", "missing"]
    seconds: float = 0.0
    error: str = ""
    log: bool = False

    @property
    def folder(self) -> str:
        """Relative to the folder of the sweep."""
        return f"cells/{self.number:04d}"


class Metric(NamedTuple):
    """The variable by which points are ranked, which way is better, and the rule that chose it."""

    name: str
    maximize: bool
    rule: str


class Ranked(NamedTuple):
    """Points by the main metric.

    Attributes
    ----------
    score
        A trial's objective in a search, else the median over the finite networks; NaN where there is none.
    order
        The points whose score is finite, the best first.
    """

    metric: Metric
    score: Float[np.ndarray, " points"]
    order: list[int]


class Points(NamedTuple):
    """Every combination of static and traced values, or every trial of a search; those of one cell follow each other.

    Attributes
    ----------
    shape
        The axes of the dataset that the points run over, with their sizes: the static ones first.
    axes
        The value of every hyperparameter at every point.
    static
        The names in ``axes`` that are static.
    cell
        The number of each point's cell.
    trials
        The number of each trial; None if this is no search. A batch that is not done has none.
    done
        Whether the point's cell is done.
    finite
        Whether a network's numbers are all finite; False where the cell is not done.
    last
        Of every variable that is a number or a series of numbers, the last value; NaN where not finite.
    left_out
        The other variables. A search's metric is never among them.
    """

    shape: dict[str, int]
    axes: dict[str, list[Any]]
    static: list[str]
    cell: Int[np.ndarray, " points"]
    trials: Int[np.ndarray, " points"] | None
    done: Bool[np.ndarray, " points"]
    finite: Bool[np.ndarray, "points seeds"]
    last: dict[str, Float[np.ndarray, "points seeds"]]
    left_out: list[str]

    @property
    def unit(self) -> str:
        """What a point is called."""
        return "point" if self.trials is None else "trial"

    @property
    def varying(self) -> list[str]:
        """The names in ``axes`` that take more than one value."""
        return [name for name, values in self.axes.items() if len(set(map(str, values))) > 1]

    def short(self, point: int) -> str:
        """The label, of a trial its number alone."""
        return self.label(point) if self.trials is None else self.label(point, [])

    def along(self, dim: str) -> list[str]:
        """The names in ``axes`` of what varies along a dimension: itself, or what is zipped on ``point``."""
        return [dim] if dim in self.axes else [name for name in self.axes if name not in self.shape]

    def label(self, point: int, names: Sequence[str] | None = None) -> str:
        """The values that tell this point from others; only those of some axes if ``names`` are given."""
        chosen = self.varying if names is None else names
        text = ", ".join(f"{name} {shown(self.axes[name][point])}" for name in chosen)
        if self.trials is not None:
            return f"trial {self.trials[point]}" + (f" ({text})" if text else "")
        return text or "the only point"

    def quantiles(self, name: str) -> Float[np.ndarray, "points 5"]:
        """Minimum, quartiles and maximum over the finite networks; NaN where there is none."""
        values = np.full((len(self.finite), 5), np.nan)
        for point, (row, finite) in enumerate(zip(self.last[name], self.finite, strict=True)):
            if finite.any():
                values[point] = np.quantile(row[finite], (0, 0.25, 0.5, 0.75, 1))
        return values

    def lost(self) -> Int[np.ndarray, " points"]:
        """How many networks of each point are not finite, of those that were run."""
        return np.where(self.done, (~self.finite).sum(axis=1), 0)


def read(directory: Path) -> tuple[xr.Dataset, list[CellFacts]]:
    """The combined dataset of a sweep's folder, and its cells.

    Raises
    ------
    ValueError
        If the folder is damaged, or none of its cells is done.
    """
    cells = []
    for number, fact in enumerate(records.facts(directory)):
        cell = CellFacts(number, fact["state"], fact.get("seconds", 0.0), fact.get("error", ""))
        cells.append(cell._replace(log=(directory / cell.folder / "log.txt").is_file()))
    return records.open_sweep(directory), cells


def points(dataset: xr.Dataset, config: Mapping[str, Any], cells: Sequence[CellFacts]) -> Points:
    """Take a combined dataset apart into points. Cells are numbered with the last static axis running fastest."""
    static = [str(dim) for dim in dataset["finite"].dims if dim in (config.get("static") or {})]
    others = [str(dim) for dim in dataset["finite"].dims if dim not in (*static, "seed")]
    dims = static + others
    shape = {dim: dataset.sizes[dim] for dim in dims}
    total = math.prod(shape.values())
    places = np.unravel_index(np.arange(total), list(shape.values())) if dims else ()
    axes = {
        name: [values[place] for place in along]
        for dim, along in zip(dims, places, strict=True)
        for name, values in _coordinates(dataset, dim).items()
    }
    search = config.get("search") or {}
    trials = dataset["trial"].values if search else None
    each = math.prod(shape[dim] for dim in others)
    cell = np.arange(total) // each if trials is None else trials // search["batch"]
    done = np.array([cells[number].state == "done" for number in cell.tolist()], dtype=bool)
    whole = dataset["finite"].transpose(*dims, "seed").values.astype(bool).reshape(total, -1) & done[:, None]
    own = {"finite", *(COUNTS if config["sweep"].get("study") else ())}
    last, left_out = {}, []
    for name, variable in sorted(dataset.data_vars.items(), key=lambda item: item[1].dtype.kind != "f"):
        if name in own or "seed" not in variable.dims or variable.dtype.kind not in "biuf":
            continue
        inner = own_dims(dataset, str(name), dims)
        series = all(dim in ("step", f"{name}_0") or dim.endswith("_step") for dim in inner) and len(inner) <= 1
        if not (series or name == search.get("metric")) or 0 in variable.shape:
            left_out.append(str(name))
            continue
        values = variable.transpose(*dims, "seed", *inner).values.astype(float).reshape(*whole.shape, -1)
        last[str(name)] = np.where(whole, _ends(values), np.nan)
    return Points(shape, axes, static, cell, trials, done, whole, last, left_out)


def _ends(values: Float[np.ndarray, "points seeds entries"]) -> Float[np.ndarray, "points seeds"]:
    """The last entry that is a number: a series that is shorter than those of other cells has NaN at the places of theirs."""
    back = np.argmax(~np.isnan(values[..., ::-1]), axis=-1)
    return np.take_along_axis(values, values.shape[-1] - 1 - back[..., None], axis=-1)[..., 0]


def own_dims(dataset: xr.Dataset, name: str, axes: Iterable[str]) -> list[str]:
    """The dimensions that a variable has for each network."""
    return [str(dim) for dim in dataset[name].dims if dim not in (*axes, "seed")]


def _coordinates(dataset: xr.Dataset, dim: str) -> dict[str, list[Any]]:
    """Values along a dimension: of its own coordinate, or of those that lie on it (zipped, or a trial's)."""
    on_it = {str(name): c.values.tolist() for name, c in dataset.coords.items() if c.dims == (dim,) and name != dim}
    return on_it or {dim: dataset[dim].values.tolist()}


def main_metric(names: Sequence[str], config: Mapping[str, Any]) -> Metric | None:
    """The metric of the search; else that of the file; else the best known name there is; else the first variable."""
    search = config.get("search") or {}
    if search:
        rule = f"the metric of the search, {search['direction']}d; a trial's objective is its mean over the seeds"
        return Metric(search["metric"], search["direction"] == "maximize", rule)
    page = config.get("page") or {}
    if page.get("metric") in names:
        return Metric(page["metric"], page["direction"] == "maximize", f"as the file says, {page['direction']}d")
    known = [name for name in PREFERRED if name in names]
    similar = [name for word in WORDS for name in names if word in name]
    if not names:
        return None
    name = [*known, *similar, *names][0]
    maximize = "accuracy" in name
    why = (
        f"the first there is of {', '.join(PREFERRED)}"
        if known
        else f"the first whose name has {', '.join(WORDS[:-1])} or {WORDS[-1]} in it"
        if similar
        else "the first variable, none having a name that says more"
    )
    return Metric(name, maximize, f"{why}; going by its name, {'higher' if maximize else 'lower'} is better")


def rank(found: Points, config: Mapping[str, Any], dataset: xr.Dataset) -> Ranked | None:
    """The points from best to worst; None if there is no variable to go by."""
    metric = main_metric(list(found.last), config)
    if metric is None:
        return None
    if "objective" in dataset:
        score = np.where(found.done, dataset["objective"].values.astype(float), np.nan)
    else:
        score = found.quantiles(metric.name)[:, 2]
    order = np.argsort(-score if metric.maximize else score, kind="stable")
    return Ranked(metric, score, [int(point) for point in order if math.isfinite(score[point])])


def spread(ranked: Sequence[int], num: int) -> list[int]:
    """Of a ranking the first, the last, and evenly between them; in increasing order of what is ranked.

    >>> spread([5, 3, 4, 0, 1, 2], 3)
    [2, 4, 5]
    """
    places = np.unique(np.linspace(0, len(ranked) - 1, min(num, len(ranked))).round().astype(int))
    return sorted(ranked[place] for place in places)
