"""What a sweep's file says: the target, its axes and seeds, checked before anything runs."""

import dataclasses
import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxsym.catalogue import find
from jaxsym.sweep.search import Search
from jaxsym.sweep.search import parse as parse_search
from jaxsym.sweep.space import check_number

RESERVED = ("seed", "step", "point", "trial", "finite", "objective", "key")
TABLES = ("sweep", "static", "traced", "record", "search", "page")
_KEYS = ("target", "study", "seeds", "combine", "chunk", "save_every")
_LARGEST_SEED = 2**32 - 1
_MOST_SEEDS = 10**6


class Cell(NamedTuple):
    """What compiles once: one combination of the static axes; in a search, one batch of trials."""

    number: int
    static: dict[str, Any]


class Points(NamedTuple):
    """The traced axes, laid out flat: ``values[name][p]`` for point ``p``; ``dims`` with sizes, slowest first."""

    dims: dict[str, int]
    values: dict[str, np.ndarray]

    @property
    def num(self) -> int:
        """How many points there are; one where nothing is traced."""
        return math.prod(self.dims.values())


class Page(NamedTuple):
    """What the page of a sweep ranks by."""

    metric: str
    direction: Literal["minimize", "maximize"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One sweep, as its file says it; made by :func:`load` and :func:`parse`, which check it.

    Parameters
    ----------
    target, study
        What is run: the name of a factory, or of a study; exactly one of them.
    seeds
        The seeds; a network's key comes from its seed alone.
    static, traced
        Axis -> values. Each combination of static ones is a cell.
    combine
        How the traced axes are combined.
    chunk
        Networks computed at once on each device; from shapes alone when None.
    variables
        Which variables are kept; all when None.
    params
        Whether the parameters of a ``make_train`` target are exported.
    search
        A search in place of traced axes.
    save_every
        Seconds of work between saves within a cell; no part of what identifies the sweep.
    page
        What the page ranks by; no part of it either. None leaves it to the names of the variables.
    """

    target: str | None
    study: str | None
    seeds: tuple[int, ...]
    static: dict[str, tuple[Any, ...]]
    traced: dict[str, tuple[Any, ...]]
    combine: Literal["cross", "zip"] = "cross"
    chunk: int | None = None
    variables: tuple[str, ...] | None = None
    params: bool = True
    search: Search | None = None
    save_every: float = 5.0
    page: Page | None = None

    @property
    def name(self) -> str:
        """The target or study, for people."""
        return self.target or f"study {self.study}"

    def cells(self) -> list[Cell]:
        """All cells, in the order of the file."""
        combinations = [
            dict(zip(self.static, values, strict=True)) for values in itertools.product(*self.static.values())
        ]
        if self.search is not None:
            (static,) = combinations
            combinations = [static] * math.ceil(self.search.trials / self.search.batch)
        return [Cell(number, static) for number, static in enumerate(combinations)]

    def points(self) -> Points:
        """The traced axes of a cell that is not part of a search."""
        arrays = {name: np.asarray(values) for name, values in self.traced.items()}
        if self.combine == "zip" and arrays:
            return Points({"point": len(next(iter(arrays.values())))}, arrays)
        flat = [grid.ravel() for grid in np.meshgrid(*arrays.values(), indexing="ij")] if arrays else []
        return Points({name: len(array) for name, array in arrays.items()}, dict(zip(arrays, flat, strict=True)))

    def as_dict(self) -> dict[str, Any]:
        """The tables of a file that says the same; ``parse(sweep.as_dict()) == sweep``."""
        head: dict[str, Any] = {"study": self.study} if self.target is None else {"target": self.target}
        head |= {"seeds": list(self.seeds), "combine": self.combine}
        head |= {} if self.chunk is None else {"chunk": self.chunk}
        head |= {} if self.save_every == Sweep.save_every else {"save_every": self.save_every}
        record: dict[str, Any] = {"params": self.params}
        record |= {} if self.variables is None else {"variables": list(self.variables)}
        tables: dict[str, Any] = {"sweep": head, "static": self.static, "traced": self.traced, "record": record}
        tables |= {} if self.search is None else {"search": self.search.as_dict()}
        tables |= {} if self.page is None else {"page": self.page._asdict()}
        return json.loads(json.dumps(tables))  # tuples are lists in a file

    def digest(self) -> str:
        """A hash of everything the file says: SHA-256 of its canonical form."""
        same = dataclasses.replace(self, save_every=Sweep.save_every, page=None)
        return hashlib.sha256(json.dumps(same.as_dict(), sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Sweep:
    """Read a sweep's file.

    Raises
    ------
    ValueError
        Naming the file and the key.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); expected a sweep's TOML file."
        raise ValueError(msg) from error
    try:
        return parse(tomllib.loads(text))
    except ValueError as error:  # TOML's own errors are ValueErrors too
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def parse(tables: Mapping[str, Any]) -> Sweep:
    """A sweep from the tables of its file, or from a dict of the same form.

    Raises
    ------
    ValueError
        Naming the key, what was got and what was expected: unknown keys, wrong types, empty axes, values or axes given twice.
    """
    for name, table in tables.items():
        find(dict.fromkeys(TABLES), name, "table")
        if not isinstance(table, Mapping):
            _refuse(name, table, f"a table: write [{name}] above its keys")
    head = tables.get("sweep", {})
    for key in head:
        find(dict.fromkeys(_KEYS), key, "key of [sweep]")
    target, study = head.get("target"), head.get("study")
    for key, value in (("target", target), ("study", study)):
        if value is not None and not (isinstance(value, str) and value):
            _refuse(f"sweep.{key}", value, "a name in quotes")
    if (target is None) == (study is None):
        msg = f"sweep: got {'neither' if target is None else 'both'} of target and study, expected exactly one of them."
        raise ValueError(msg)
    combine = head.get("combine", "cross")
    if combine not in ("cross", "zip"):
        _refuse("sweep.combine", combine, "'cross' or 'zip'")
    chunk = head.get("chunk")
    if chunk is not None and not (_is_int(chunk) and chunk >= 1):
        _refuse("sweep.chunk", chunk, "an integer of at least 1")
    save_every = head.get("save_every", Sweep.save_every)
    if isinstance(save_every, bool) or not isinstance(save_every, int | float) or not 0 <= save_every <= 1e9:
        _refuse("sweep.save_every", save_every, "a number of seconds")
    static = {name: _axis("static", name, values) for name, values in tables.get("static", {}).items()}
    traced = {name: _axis("traced", name, values) for name, values in tables.get("traced", {}).items()}
    search = parse_search(tables["search"]) if "search" in tables else None
    variables, params = _record(tables.get("record", {}))
    sweep = Sweep(
        target,
        study,
        _seeds(head.get("seeds", 1)),
        static,
        traced,
        combine,
        chunk,
        variables,
        params,
        search,
        float(save_every),
        _page(tables["page"], search is not None) if "page" in tables else None,
    )
    _check_together(sweep)
    return sweep


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two canonical forms, a line each: ``static.width: [4, 8] -> [4]``."""
    before, after = (
        {f"{table}.{key}": value for table, keys in one.items() for key, value in keys.items()} for one in (old, new)
    )
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key]) if key in values else "nothing"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_together(sweep: Sweep) -> None:
    """What no key alone can break."""
    space = {} if sweep.search is None else sweep.search.space
    for one, other, axes in (("static", "traced", sweep.traced), ("static", "search.space", space)):
        for name in [name for name in axes if name in sweep.static]:
            msg = f"{name}: is an axis of both [{one}] and [{other}]; keep one of them."
            raise ValueError(msg)
    sizes = {name: len(values) for name, values in sweep.traced.items()}
    if sweep.combine == "zip" and len(set(sizes.values())) > 1:
        got = ", ".join(f"traced.{name} has {size} values" for name, size in sizes.items())
        msg = (
            f"sweep.combine: 'zip' takes one value of each traced axis at a time, but {got}; expected as many in each."
        )
        raise ValueError(msg)
    if sweep.search is not None:
        if sweep.traced:
            msg = f"traced.{next(iter(sweep.traced))}: a search draws the traced values itself; move it to [search.space]."
            raise ValueError(msg)
        for name, values in sweep.static.items():
            if len(values) > 1:
                msg = f"static.{name}: got {len(values)} values, expected one: a search has one program; make a sweep of each."
                raise ValueError(msg)
        for name in sweep.search.space:
            _check_name("search.space", name)
    if sweep.study is not None:
        for key, present in (("traced", sweep.traced), ("search", sweep.search), ("sweep.chunk", sweep.chunk)):
            if present:
                msg = f"{key}: a study has options and seeds only; put options into [static], or name a target."
                raise ValueError(msg)


def _axis(table: str, name: str, values: Any) -> tuple[Any, ...]:
    key = f"{table}.{name}"
    _check_name(table, name)
    if not isinstance(values, list | tuple):
        _refuse(key, values, f"a list of values: {name} = [{json.dumps(values, default=str)}]")
    if not values:
        _refuse(key, values, "at least one value")
    checked = tuple(_frozen(key, value, text=table == "static") for value in values)
    if table == "traced":
        whole = not any(isinstance(value, float) for value in checked)
        for value in checked:
            if not isinstance(value, bool):
                check_number(value, whole, key)
    kinds = {_kind(value) for value in checked}
    if len(kinds) > 1:
        _refuse(key, list(values), "values of one kind")
    seen: set[str] = set()
    for value in checked:
        text = json.dumps(float(value) if _kind(value) == "number" else value)
        if text in seen:
            msg = f"{key}: the value {value!r} is given twice."
            raise ValueError(msg)
        seen.add(text)
    if all(_kind(value) == "number" for value in checked) and any(isinstance(value, float) for value in checked):
        checked = tuple(float(value) for value in checked)
    return checked


def _check_name(table: str, name: str) -> None:
    if not name.isidentifier() or name.startswith("_"):
        msg = f"{table}.{name}: got {name!r}, expected the name of an argument: letters, digits and underscores, such as learning_rate."
        raise ValueError(msg)
    if name in RESERVED and not (table == "static" and name == "step"):
        msg = f"{table}.{name}: the name is taken by the sweep itself; rename the argument."
        raise ValueError(msg)


def _frozen(key: str, value: Any, text: bool) -> Any:
    """A value of an axis, its lists as tuples."""
    if isinstance(value, bool) or (_is_int(value) and abs(value) < 2**63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if text and isinstance(value, str):
        return value
    if text and isinstance(value, list | tuple):
        return tuple(_frozen(key, part, text) for part in value)
    expected = (
        "finite numbers, booleans, texts or lists of them"
        if text
        else "finite numbers or booleans (text belongs to [static])"
    )
    return _refuse(key, value, expected)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else "list"


def _seeds(value: Any) -> tuple[int, ...]:
    if _is_int(value):
        if not 1 <= value <= _MOST_SEEDS:
            _refuse("sweep.seeds", value, f"1 to {_MOST_SEEDS}")
        return tuple(range(value))
    if not isinstance(value, list | tuple) or not value or not all(_is_int(seed) for seed in value):
        _refuse("sweep.seeds", value, "a number of seeds, or a list of integers")
    for seed in value:
        if not 0 <= seed <= _LARGEST_SEED:
            _refuse("sweep.seeds", seed, f"seeds from 0 to {_LARGEST_SEED}")
    if len(set(value)) < len(value):
        _refuse("sweep.seeds", value, "every seed once")
    return tuple(value)


def _record(table: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, bool]:
    for key in table:
        find(dict.fromkeys(("variables", "params")), key, "key of [record]")
    variables, params = table.get("variables"), table.get("params", True)
    if not isinstance(params, bool):
        _refuse("record.params", params, "true or false")
    if variables is None:
        return None, params
    if not isinstance(variables, list | tuple) or not variables or not all(isinstance(name, str) for name in variables):
        _refuse("record.variables", variables, "a list of names, at least one")
    return tuple(dict.fromkeys(variables)), params


def _page(table: Mapping[str, Any], searched: bool) -> Page:
    for key in table:
        find(dict.fromkeys(Page._fields), key, "key of [page]")
    if searched:
        _refuse("page", dict(table), "no such table beside [search], whose metric the page shows")
    metric: Any = table.get("metric")
    direction: Any = table.get("direction")
    if not isinstance(metric, str) or not metric:
        _refuse("page.metric", metric, "the name of a result, in quotes")
    if direction not in ("minimize", "maximize"):
        _refuse("page.direction", direction, "'minimize' or 'maximize'")
    return Page(metric, direction)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(key: str, got: Any, expected: str) -> Any:
    msg = f"{key}: got {got!r}, expected {expected}."
    raise ValueError(msg)


def text_of(values: Sequence[Any]) -> list[Any]:
    """Values of a static axis as a coordinate: lists, and axes of mixed kinds, as text."""
    plain = all(not isinstance(value, tuple) for value in values) and len({_kind(value) for value in values}) == 1
    return list(values) if plain else [json.dumps(value) for value in values]
