"""The search of a sweep: a batch of trials is asked for, run in one vmapped program, and told.

The samplers are optuna's, in a study that lives in memory. To resume a search is to ask and tell it again with the
results that are stored, so that a folder holds numbers only, never a sampler's state.
"""

import contextlib
import dataclasses
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from jaxsym.catalogue import find
from jaxsym.sweep import space as axes
from jaxsym.sweep import store
from jaxsym.sweep.space import MOST, Axis, Choices, Value

if TYPE_CHECKING:  # it takes a second to import and few sweeps search
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

Point = dict[str, Value]
Direction = Literal["minimize", "maximize"]

KEYS = ("method", "trials", "batch", "metric", "direction", "seed", "space")
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Search:
    """A search, checked: made by :func:`parse`.

    Parameters
    ----------
    method
        A name of :data:`METHODS`.
    trials
        Number of trials.
    batch
        Trials per vmapped program; the last batch may be smaller.
    metric
        The variable that is the objective.
    direction
        ``"minimize"`` or ``"maximize"``.
    seed
        Of the sampler.
    space
        The axis of every hyperparameter; sorted by name, because the order of a table means nothing.
    """

    method: str
    trials: int
    batch: int
    metric: str
    direction: Direction
    seed: int
    space: Mapping[str, Axis]

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", dict(sorted(self.space.items())))

    def as_dict(self) -> dict[str, Any]:
        """The canonical table: ``parse(search.as_dict()) == search``, also by way of JSON."""
        table = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return table | {"space": {name: axis.as_dict() for name, axis in self.space.items()}}


class Method(NamedTuple):
    """A way to search: what it is, optuna's sampler, the smallest batch it works with, and how it takes choices.

    ``ordered`` samplers know numbers only: they see the choices of an axis as ordered, as they are listed.
    """

    summary: str
    sampler: "Callable[[Search, Mapping[str, BaseDistribution]], BaseSampler]"
    least: int = 1
    ordered: bool = False


def _knowing(sampler: "type[BaseSampler]", space: "Mapping[str, BaseDistribution]") -> "Callable[..., BaseSampler]":
    """A sampler that knows the space: optuna learns it from finished trials and draws the first batch at random."""
    varied = {name: distribution for name, distribution in space.items() if not distribution.single()}
    return type(sampler.__name__, (sampler,), {"infer_relative_search_space": lambda self, study, trial: varied})


def _random(search: Search, space: "Mapping[str, BaseDistribution]") -> "BaseSampler":  # noqa: ARG001
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=search.seed)


def _quasi_random(search: Search, space: "Mapping[str, BaseDistribution]") -> "BaseSampler":
    from optuna.samplers import QMCSampler

    sampler = _knowing(QMCSampler, space)
    return sampler(qmc_type="sobol", scramble=True, seed=search.seed, warn_independent_sampling=False)


def _tpe(search: Search, space: "Mapping[str, BaseDistribution]") -> "BaseSampler":  # noqa: ARG001
    from optuna.samplers import TPESampler

    # The liar counts the trials of the batch that run as bad ones, else a batch is many times the same point.
    return TPESampler(seed=search.seed, multivariate=True, constant_liar=True)


def _cma_es(search: Search, space: "Mapping[str, BaseDistribution]") -> "BaseSampler":
    from optuna.distributions import IntDistribution
    from optuna.samplers import CmaEsSampler

    whole = any(isinstance(distribution, IntDistribution) for distribution in space.values())
    return _knowing(CmaEsSampler, space)(
        seed=search.seed,
        n_startup_trials=0,
        popsize=search.batch,
        with_margin=whole,  # else a whole number freezes once the spread is less than a step
        warn_independent_sampling=False,
    )


def _evolution(search: Search, space: "Mapping[str, BaseDistribution]") -> "BaseSampler":  # noqa: ARG001
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=search.seed, population_size=search.batch)


METHODS: dict[str, Method] = {
    "random": Method("independent draws", _random),
    "grid": Method("every point of a grid", _random),  # the points are given to it
    "quasi_random": Method("a scrambled Sobol sequence", _quasi_random, ordered=True),
    "tpe": Method("tree-structured Parzen estimator, multivariate", _tpe),
    "cma_es": Method("covariance matrix adaptation, a generation per batch", _cma_es, least=4, ordered=True),
    "evolution": Method("genetic algorithm (NSGA-II), a generation per batch", _evolution, least=2),
}


def parse(table: Mapping[str, Any], where: str = "search") -> Search:
    """Check the table ``[search]`` of a sweep completely.

    Parameters
    ----------
    table
        As read from TOML.
    where
        The table's name, for the messages.

    Returns
    -------
    Search
        With the defaults filled in.

    Raises
    ------
    ValueError
        If a key is unknown or missing or has a wrong value; the message names the key.

    Examples
    --------
    >>> rate = {"low": 1e-4, "high": 1.0, "log": True}
    >>> search = parse({"method": "tpe", "trials": 64, "metric": "loss", "space": {"learning_rate": rate}})
    >>> search.batch, search.direction
    (16, 'minimize')
    >>> parse(search.as_dict()) == search
    True
    """
    axes.check_keys(table, where, KEYS)
    name = axes.get_text(table, "method", where, f"one of {', '.join(METHODS)}")
    try:
        method = find(METHODS, name, "method")
    except ValueError as error:
        msg = f"{where}.method: {error}"
        raise ValueError(msg) from error
    metric = axes.get_text(table, "metric", where, "the name of a recorded variable")
    direction = axes.get_text(table, "direction", where, "minimize or maximize", "minimize")
    if direction not in ("minimize", "maximize"):
        axes.refuse(f"{where}.direction", direction, "minimize or maximize")
    seed = axes.get_whole(table, "seed", where, 0, 2**32 - 1, 0)
    if "space" not in table:
        axes.missing(f"{where}.space", "a table of hyperparameters")
    space = axes.parse(table["space"], name, f"{where}.space")
    every = math.prod(len(axis.grid()) for axis in space.values()) if name == "grid" else None
    if every is not None and every > MOST:
        msg = f"{where}.space: got a grid of {every} points, expected at most {MOST}."
        raise ValueError(msg)
    trials = axes.get_whole(table, "trials", where, 1, MOST, every)
    if every is not None and trials != every:
        axes.refuse(f"{where}.trials", trials, f"{every}, the number of the grid's points (or leave it out)")
    batch = min(axes.get_whole(table, "batch", where, 1, MOST, BATCH), trials)
    if batch < method.least:
        short = "batch" if batch < trials else "trials"
        axes.refuse(f"{where}.{short}", batch, f"at least {method.least}, the smallest generation of {name}")
    return Search(name, trials, batch, metric, cast("Direction", direction), seed, space)


class Trial(NamedTuple):
    """A finished trial: its hyperparameters, and its objective as it was told."""

    params: Point
    value: float


class Searcher:
    """A search in progress: :meth:`ask` for a batch, run it, :meth:`tell` its objectives, until a batch is empty.

    The same search and the same values told give the same batches.

    Parameters
    ----------
    search
        What to search.

    Attributes
    ----------
    trials
        The trials told, in order.
    """

    def __init__(self, search: Search) -> None:
        import optuna

        self.search = search
        self.trials: list[Trial] = []
        self._method = METHODS[search.method]
        self._space = {name: _distribution(axis, self._method.ordered) for name, axis in search.space.items()}
        self._grid = [axis.grid() for axis in search.space.values()] if search.method == "grid" else None
        self._running: list[tuple[optuna.Trial, Point]] = []
        self._database = (b"", 0)  # as last written, and its number of trials
        with _quiet():
            sampler = self._method.sampler(search, self._space)
            self._study = optuna.create_study(direction=search.direction, sampler=sampler)

    def ask(self) -> list[Point]:
        """The next batch of trials; empty when all are done.

        Raises
        ------
        ValueError
            If the batch before was not told.
        """
        if self._running:
            msg = f"search: got ask() before tell(), expected the {len(self._running)} objectives of the last batch."
            raise ValueError(msg)
        done = len(self.trials)
        for number in range(done, min(done + self.search.batch, self.search.trials)):
            if self._grid is not None:  # the last axis runs fastest
                places = np.unravel_index(number, [len(grid) for grid in self._grid])
                values = [grid[int(place)] for grid, place in zip(self._grid, places, strict=True)]
                self._study.enqueue_trial(dict(zip(self.search.space, values, strict=True)))
            trial = self._study.ask(self._space)
            params = {name: self._value(name, trial.params[name]) for name in self.search.space}
            self._running.append((trial, params))
        return [dict(params) for _, params in self._running]

    def tell(self, values: Sequence[float]) -> None:
        """Give the objectives of the batch that was asked for.

        A value that is not finite is kept in :attr:`trials` as it is. The sampler is told that it is infinitely bad: a
        failed trial would teach it nothing and leave a generation incomplete, while all samplers only rank.

        Raises
        ------
        ValueError
            If their number is not that of the batch.
        """
        told = [float(value) for value in values]
        if len(told) != len(self._running):
            msg = f"search: got {len(told)} objectives, expected {len(self._running)}, one for each trial of the batch."
            raise ValueError(msg)
        worst = math.inf if self.search.direction == "minimize" else -math.inf
        for (trial, params), value in zip(self._running, told, strict=True):
            self._study.tell(trial, value if math.isfinite(value) else worst)
            self.trials.append(Trial(params, value))
        self._running = []

    def _value(self, name: str, drawn: Any) -> Value:
        """What the sampler drew, as a plain number of the axis' type."""
        axis = self.search.space[name]
        if isinstance(axis, Choices):
            return axis.choices[drawn] if self._method.ordered else drawn
        return int(drawn) if axis.whole else float(drawn)


def replay(
    search: Search, results: Sequence[Sequence[float]], asked: Sequence[Sequence[Mapping[str, Value]]] | None = None
) -> Searcher:
    """A searcher as it was after these results.

    Parameters
    ----------
    search
        The same search.
    results
        The objectives of each batch that was told.
    asked
        The trials of the same batches, to be compared (optional).

    Returns
    -------
    Searcher
        It asks for the next batch, as the interrupted one would have.

    Raises
    ------
    ValueError
        If the results do not fit the batches, or the trials are not those that were asked for.
    """
    searcher = Searcher(search)
    batches = [None] * len(results) if asked is None else asked
    for number, (values, stored) in enumerate(zip(results, batches, strict=True)):
        batch = searcher.ask()
        if stored is not None and batch != [dict(params) for params in stored]:
            msg = (
                f"search: batch {number} holds other trials than the search asks for; it was made by another search or "
                "another version of optuna. Resume with that version, or start again in another folder."
            )
            raise ValueError(msg)
        searcher.tell(values)
    return searcher


def points(search: Search, batch: Sequence[Mapping[str, Value]]) -> dict[str, np.ndarray]:
    """The arguments of a vmapped program.

    Parameters
    ----------
    search
        The search that asked for the batch.
    batch
        Its trials.

    Returns
    -------
    dict
        For every axis an array ``[batch]`` of float64, int32 or bool.
    """
    return {name: np.array([params[name] for params in batch], dtype=axis.dtype) for name, axis in search.space.items()}


def write_database(path: Path, searcher: Searcher) -> None:
    """Write the trials told as a study of optuna's, SQLite, for its dashboard and its plots.

    A trial whose objective is not finite is there as failed. No search is resumed from this file.

    Parameters
    ----------
    path
        The file; ``optuna.load_study(study_name="search", storage=f"sqlite:///{path}")`` reads it.
    searcher
        The search.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    # The user reads the choices, not their places.
    space = {name: _distribution(axis, ordered=False) for name, axis in searcher.search.space.items()}
    content, known = searcher._database
    with _quiet():
        # In memory, because a transaction per trial would sync the disk each time, and has its journal beside the file.
        storage = optuna.storages.RDBStorage("sqlite://")
        connection = storage.engine.raw_connection()
        try:
            if content:
                connection.driver_connection.deserialize(content)
                study = optuna.load_study(study_name="search", storage=storage)
            else:
                study = optuna.create_study(study_name="search", storage=storage, direction=searcher.search.direction)
                study.set_metric_names([searcher.search.metric])
            for params, value in searcher.trials[known:]:
                told = {"value": value} if math.isfinite(value) else {"state": TrialState.FAIL}
                study.add_trial(create_trial(params=dict(params), distributions=dict(space), **told))
            content = connection.driver_connection.serialize()
        finally:
            connection.close()
            storage.remove_session()
            storage.engine.dispose()
    with store.atomic(path) as temporary:
        temporary.write_bytes(content)
    searcher._database = (content, len(searcher.trials))


def _distribution(axis: Axis, ordered: bool) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, Choices):
        return IntDistribution(0, len(axis.choices) - 1) if ordered else CategoricalDistribution(axis.choices)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No word from optuna on new studies and experimental features; afterwards its settings are the user's again."""
    from optuna.exceptions import ExperimentalWarning

    logger = logging.getLogger("optuna")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        logger.setLevel(max(level, logging.WARNING))
        try:
            yield
        finally:
            logger.setLevel(level)
