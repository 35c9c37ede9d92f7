"""What a sweep runs: a study, or a factory by its name, and how its results become named variables."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from jaxsym import tree
from jaxsym.catalogue import find
from jaxsym.loading import described, guarded, load_function, needed
from jaxsym.sweep.grid import RESERVED, Points, Sweep
from jaxsym.training import Train, Trained

_being_loaded: list[str] = []
WANTED = "a function factory(**static) that returns train(key, **traced), or what make_train returns"


class Named(NamedTuple):
    """A network's results by name. ``curves`` are those of a training run, with ``step`` as their first own axis."""

    variables: dict[str, Array]
    curves: dict[str, Array]
    step: Array | None

    @property
    def all(self) -> dict[str, Array]:
        """Both kinds."""
        return self.variables | self.curves


def load(sweep: Sweep, folders: list[str]) -> Callable[..., Any]:
    """The factory of a sweep, checked against the static axes.

    Parameters
    ----------
    sweep
        Its ``target`` is looked for in ``folders`` first.
    folders
        Absolute: that of the sweep's file, from which a relative path is seen, and that in which it was started.

    Raises
    ------
    ValueError
        Naming ``sweep.target`` or the axis.
    """
    assert sweep.target is not None
    if sweep.target in _being_loaded:
        msg = (
            f"sweep.target: {sweep.target} is loaded by importing its file, which runs this sweep again while it is imported; put"
            ' what the file does, beside defining functions, under `if __name__ == "__main__":`.'
        )
        raise ValueError(msg)
    sys.path.extend(folder for folder in folders[1:] if folder not in sys.path)
    _being_loaded.append(sweep.target)
    try:
        factory = load_function(sweep.target, WANTED, base=Path(folders[0]))
    except ValueError as error:
        msg = f"sweep.target: {error}"
        raise ValueError(msg) from error
    finally:
        _being_loaded.remove(sweep.target)
    _check_names("static", sweep.static, factory, sweep.target)
    return factory


def version(factory: Callable[..., Any]) -> str:
    """A short hash of the file that a factory is written in, by which a change of it is noticed; empty where there is no such file."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    try:
        source = inspect.getsourcefile(inspect.unwrap(factory))
        return hashlib.sha256(Path(source or "").read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return ""


def load_study(sweep: Sweep) -> Any:
    """The study of a sweep, its options checked against the static axes.

    Raises
    ------
    ValueError
        Naming ``sweep.study`` or the option.
    """
    studies = importlib.import_module("jaxsym.studies")  # by its name: a study is on a higher floor
    try:
        study = studies.load(sweep.study)
    except ValueError as error:
        msg = f"sweep.study: {error}"
        raise ValueError(msg) from error
    fields = {field.name: field for field in dataclasses.fields(study.config)}
    for name, values in sweep.static.items():
        with keyed(f"static.{name}"):
            find(fields, name, f"option of the study {sweep.study}")
        default = getattr(study.config, name)
        for value in values:
            if not isinstance(value, float | int if isinstance(default, float) else type(default)):
                msg = f"static.{name}: got {value!r}, expected values like the option's default, {default!r}."
                raise ValueError(msg)
            with keyed(f"static.{name}"):
                dataclasses.replace(study.config, **{name: value})
    if "seed" not in fields and sweep.seeds != (0,):
        msg = f"sweep.seeds: the study {sweep.study} has no seed; leave them out."
        raise ValueError(msg)
    return study


@contextlib.contextmanager
def keyed(key: str) -> Iterator[None]:
    """Put a key in front of what a ValueError says."""
    try:
        yield
    except ValueError as error:
        msg = f"{key}: {error}"
        raise ValueError(msg) from error


def make(factory: Callable[..., Any], name: str, static: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that trains one network of a cell.

    Raises
    ------
    ValueError
        If the factory raises, or returns no function; with the static values.
    """
    given = ", ".join(f"{axis}={value!r}" for axis, value in static.items())
    train = guarded(f"{name}({given}) fails", lambda: factory(**static))
    if not callable(train):
        msg = f"{name}({given}) returned {described(train)}, expected {WANTED.partition('returns ')[2]}."
        raise ValueError(msg)
    return train


def check(train: Callable[..., Any], sweep: Sweep, points: Points) -> None:
    """Trace one network of a cell, without running it, so that what is wrong is said before any work.

    Raises
    ------
    ValueError
        If the function does not take the traced axes, fails, or returns no arrays by name.
    """
    if not isinstance(train, Train):
        _check_names("traced", points.values, train, f"the function of {sweep.target}", positional=1)
    traced = {name: jnp.asarray(values)[0] for name, values in points.values.items()}
    made = guarded(
        f"{sweep.target}: its function fails when it is traced",
        lambda: jax.eval_shape(train, jax.random.key(0), **traced),
    )
    results = named(made, sweep.variables, sweep.target or "")
    variables = results.all
    taken = {*RESERVED, *sweep.static, *points.dims, *points.values}
    if results.step is not None and "step" in sweep.static:
        msg = f"static.step: the name is taken by the steps of the run; rename the argument of {sweep.target}."
        raise ValueError(msg)
    for name, leaf in variables.items():
        for dim in own_dims(name, leaf.ndim, name in results.curves):
            if dim != "step" and dim in {*taken, *variables}:
                msg = f"{sweep.target}: the result {name!r} has a dimension {dim!r}, the name of an axis or a result; rename one."
                raise ValueError(msg)
        if name in taken:
            msg = f"{sweep.target}: the result {name!r} has the name of an axis; rename it."
            raise ValueError(msg)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            msg = f"{sweep.target}: the result {name!r} is complex, which NetCDF does not hold; return its real and imaginary parts."
            raise ValueError(msg)
    if sweep.page is not None:
        with keyed("page.metric"):
            find(variables, sweep.page.metric, "result")
    if sweep.search is not None and sweep.search.metric not in variables:
        with keyed("search.metric"):
            find(variables, sweep.search.metric, "result")


def named(made: Any, wanted: tuple[str, ...] | None, target: str) -> Named:
    """Results as variables: nested names are joined by dots, ``step`` of a training run becomes its coordinate.

    Raises
    ------
    ValueError
        If they are not arrays by name, or a wanted one is missing.
    """
    made = {"run": made} if isinstance(made, Trained) else made
    if not isinstance(made, Mapping) or not made:
        got = "an empty dict" if isinstance(made, Mapping) else described(made)
        msg = f"{target}: its function returned {got}, expected a dict of arrays by name, such as {{'loss': loss}}."
        raise ValueError(msg)
    runs = {name: value for name, value in made.items() if isinstance(value, Trained)}
    if len(runs) > 1:
        msg = f"{target}: its function returned {len(runs)} training runs ({', '.join(map(str, runs))}), expected at most one."
        raise ValueError(msg)
    variables = _arrays({name: value for name, value in made.items() if name not in runs}, target)
    curves: dict[str, Array] = {}
    step: Any = None
    for run in runs.values():
        step = run.history["step"]
        curves = _arrays({name: value for name, value in run.history.items() if name != "step"}, target)
    for name, leaf in curves.items():
        if name in variables:
            msg = f"{target}: the result {name!r} is there twice, once in the history of the run; rename it."
            raise ValueError(msg)
        if leaf.shape[:1] != step.shape:
            msg = (
                f"{target}: the history has {name!r} with shape {leaf.shape}, expected {step.size} records in front;"
                " put what is no history beside the run, as in {'run': trained, 'final': value}."
            )
            raise ValueError(msg)
    if wanted is not None:
        for name in wanted:
            with keyed("record.variables"):
                find(variables | curves, name, "result")
        variables, curves = ({n: a for n, a in some.items() if n in wanted} for some in (variables, curves))
    return Named(variables, curves, step)


def _arrays(tree_of: Mapping[str, Any], target: str) -> dict[str, Array]:
    """Arrays by their joined names."""
    tree_of = jax.tree.map(
        lambda leaf: "None" if leaf is None else leaf, dict(tree_of), is_leaf=lambda leaf: leaf is None
    )
    leaves = tree.leaves(tree_of)
    variables = {name.replace("/", "."): leaf for name, leaf in leaves.items()}
    if len(variables) < len(leaves):
        msg = f"{target}: two results have one name once nested names are joined by dots ({', '.join(leaves)}); rename one."
        raise ValueError(msg)
    for name, leaf in variables.items():
        if not re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", name):
            msg = f"{target}: a result is called {name!r}, expected letters, digits and underscores."
            raise ValueError(msg)
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float):
            msg = f"{target}: the result {name!r} is {leaf!r}, expected an array of numbers."
            raise ValueError(msg)
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            msg = (
                f"{target}: the result {name!r} is a key, expected an array of numbers; return its jax.random.key_data."
            )
            raise ValueError(msg)
    return {name: jnp.asarray(leaf) if not hasattr(leaf, "shape") else leaf for name, leaf in variables.items()}


def own_dims(name: str, ndim: int, curve: bool) -> list[str]:
    """The names of a network's dimensions in the dataset, of a result with so many."""
    front = ["step"] if curve else []
    return [*front, *(f"{name}_{i}" for i in range(ndim - len(front)))]


def network_key(seed: UInt32[Array, ""]) -> Array:
    """The key of a network, from its seed alone: seed 7 starts as the same network in every sweep."""
    return jax.random.fold_in(jax.random.key(0), seed)


def _check_names(
    table: str, axes: Mapping[str, Any], function: Callable[..., Any], what: str, positional: int = 0
) -> None:
    """Every axis is an argument of the function, and every argument without a default is an axis."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[positional:]
    except (TypeError, ValueError):  # some builtins have no signature
        return
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in axes:
            with keyed(f"{table}.{name}"):
                find(by_name, name, f"argument of {what}")
    missing = [name for name in needed(function)[positional:] if name not in axes]
    if missing:
        msg = f"{table}: {what} needs {', '.join(missing)}; give each an axis in [{table}], or a default."
        raise ValueError(msg)
