"""The space of a search: its axes, their points on a grid, and the check of the table that they are read from."""

import dataclasses
import keyword
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxsym.catalogue import find

Value = float | int | bool

KEYS = ("low", "high", "log", "int", "num", "choices")
MOST = 1_000_000  # trials, points of a grid: more is a slip of the pen

_TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Interval:
    """An axis from ``low`` to ``high``, on a log scale or not, of whole numbers or not, with ``num`` points on a grid."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    num: int | None = None

    @property
    def dtype(self) -> type[np.generic]:
        """What JAX is given."""
        return np.int32 if self.whole else np.float64

    def grid(self) -> Sequence[Value]:
        """The points of a grid, in ascending order; without ``num`` every whole number."""
        if self.num is None:
            return range(int(self.low), int(self.high) + 1)
        spaced = (np.geomspace if self.log else np.linspace)(self.low, self.high, self.num)
        values = np.clip(spaced, self.low, self.high).tolist()
        return [round(value) for value in values] if self.whole else values

    def as_dict(self) -> dict[str, Any]:
        """The table that it was read from, defaults filled in."""
        table = {"low": self.low, "high": self.high, "log": self.log, "int": self.whole}
        return table if self.num is None else table | {"num": self.num}


@dataclasses.dataclass(frozen=True)
class Choices:
    """An axis with these values: all booleans, all whole numbers or all floats."""

    choices: tuple[Value, ...]

    @property
    def dtype(self) -> type[np.generic]:
        """What JAX is given."""
        kind = type(self.choices[0])
        return np.bool_ if kind is bool else np.int32 if kind is int else np.float64

    def grid(self) -> Sequence[Value]:
        """The points of a grid, as they are listed."""
        return self.choices

    def as_dict(self) -> dict[str, Any]:
        """The table that it was read from."""
        return {"choices": list(self.choices)}


Axis = Interval | Choices


def parse(table: Any, method: str, where: str) -> dict[str, Axis]:
    """The axes of a space by name.

    Parameters
    ----------
    table
        As read from TOML: of every axis ``{low, high, log, int, num}`` or ``{choices}``.
    method
        How it is searched: a grid needs ``num`` for an axis that is continuous, no other method has it.
    where
        The table's name, for the messages.

    Raises
    ------
    ValueError
        Naming the key, what was got and what was expected.
    """
    if not isinstance(table, Mapping) or not table:
        refuse(where, table, "a table of hyperparameters, at least one")
    space: dict[str, Axis] = {}
    for name, entry in table.items():
        key = f"{where}.{name}"
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            refuse(key, name, "the name of an argument of the function")
        check_keys(entry, key, KEYS)
        if "choices" not in entry:
            space[name] = _interval(entry, method, key)
        elif len(entry) == 1:
            space[name] = _choices(entry["choices"], f"{key}.choices")
        else:
            other = next(other for other in entry if other != "choices")
            refuse(f"{key}.{other}", entry[other], "no such key beside choices")
    return space


def _interval(entry: Mapping[str, Any], method: str, where: str) -> Interval:
    for key in ("log", "int"):
        if not isinstance(entry.get(key, False), bool):
            refuse(f"{where}.{key}", entry[key], "true or false")
    log, whole = entry.get("log", False), entry.get("int", False)
    for key in ("low", "high"):
        if key not in entry:
            missing(f"{where}.{key}", "a number (or choices in place of low and high)")
        check_number(entry[key], whole, f"{where}.{key}")
    low, high = entry["low"], entry["high"]
    if log and low <= 0:
        refuse(f"{where}.low", low, "a number above 0, because log = true")
    if low >= high:
        refuse(f"{where}.low", low, f"a number below high = {high}")
    if not whole:
        low, high = float(low), float(high)
    if method != "grid" and "num" in entry:
        refuse(f"{where}.num", entry["num"], f'no such key: method = "grid" has it, {method} draws its own points')
    continuous = method == "grid" and not whole
    num = get_whole(entry, "num", where, 2, MOST) if continuous or "num" in entry else None
    interval = Interval(low, high, log, whole, num)
    if num is not None and len(set(interval.grid())) < num:
        refuse(f"{where}.num", num, f"fewer points: between {low} and {high} some of them are equal")
    return interval


def _choices(values: Any, where: str) -> Choices:
    if not isinstance(values, list | tuple) or not values:
        refuse(where, values, "a list of at least one number or boolean")
    if not all(isinstance(value, bool) for value in values):
        for index, value in enumerate(values):
            check_number(value, False, f"{where}[{index}]")
        if any(isinstance(value, float) for value in values):  # one array has one type
            values = [float(value) for value in values]
        for index, value in enumerate(values):
            check_number(value, isinstance(value, int), f"{where}[{index}]")
    if len(set(values)) < len(values):
        refuse(where, values, "every value once")
    return Choices(tuple(values))


def check_number(value: Any, whole: bool, where: str) -> None:
    """Refuse what JAX cannot trace: text, and numbers beyond int32 or float32."""
    limit = 2**31 - 1 if whole else float(np.finfo(np.float32).max)
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not abs(value) <= limit or 0 < abs(value) < _TINY:
        expected = f"a {'whole ' if whole else ''}number between {-limit} and {limit}"
        expected += "" if whole else f", and not so near to 0 that it becomes 0 (below {_TINY:.3g})"
        refuse(where, value, f"{expected}; it is traced by JAX")


def refuse(key: str, got: Any, expected: str) -> NoReturn:
    """Raise the error of a value."""
    msg = f"{key}: got {got!r}, expected {expected}."
    raise ValueError(msg)


def missing(key: str, expected: str) -> NoReturn:
    """Raise the error of a key that is not there."""
    msg = f"{key}: missing, expected {expected}."
    raise ValueError(msg)


def check_keys(table: Any, where: str, known: Sequence[str]) -> None:
    """Refuse what is no table, and keys that are unknown."""
    if not isinstance(table, Mapping):
        refuse(where, table, f"a table with {', '.join(known)}")
    for key in table:
        try:
            find(dict.fromkeys(known), key, "key")
        except ValueError as error:
            msg = f"{where}.{key}: {error}"
            raise ValueError(msg) from error


def get_text(table: Mapping[str, Any], key: str, where: str, expected: str, default: str | None = None) -> str:
    """A text of a table."""
    if key not in table and default is None:
        missing(f"{where}.{key}", expected)
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        refuse(f"{where}.{key}", value, expected)
    return value


def get_whole(table: Mapping[str, Any], key: str, where: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number of a table."""
    expected = f"a whole number from {low} to {high}"
    if key not in table and default is None:
        missing(f"{where}.{key}", expected)
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        refuse(f"{where}.{key}", value, expected)
    return value
