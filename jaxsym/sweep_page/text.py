"""Values and configs as text."""

import json
import re
from collections.abc import Mapping
from typing import Any


def shown(value: Any) -> str:
    """A value as a reader wants it.

    >>> shown(0.1), shown(64), shown(1 / 3)
    ('0.1', '64', '0.333333')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "cell"), counted(0, "cell"), counted(2, "batch")
    ('1 cell', '0 cells', '2 batches')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"


def cut(text: str, length: int, mark: str = "") -> str:
    """A text of at most so many characters; ``mark`` ends one that was cut.

    >>> cut("a long name", 8, " #2")
    'a lo… #2'
    """
    return text if len(text) <= length else text[: length - 1 - len(mark)] + "…" + mark


def toml(config: Mapping[str, Any]) -> str:
    """A config as a TOML file; what is None is left out.

    >>> print(toml({"sweep": {"target": "nets:mlp", "chunk": None}, "search": {"space": {"rate": {"low": 0.1}}}}))
    [sweep]
    target = "nets:mlp"
    <BLANKLINE>
    [search.space]
    rate = {low = 0.1}
    """
    return "\n\n".join(_tables((), config))


def _tables(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    inner = {} if path == ("search", "space") else {k: v for k, v in table.items() if isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if k not in inner and v is not None]
    own = ["\n".join(([f"[{'.'.join(map(_key, path))}]"] if path else []) + lines)] if lines else []
    return own + [text for key, value in inner.items() for text in _tables((*path, key), value)]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
