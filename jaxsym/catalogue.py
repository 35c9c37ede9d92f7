"""Catalogues are plain dicts; :func:`find` looks a name up in one and, where it is missing, names the nearest."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def find(catalogue: Mapping[str, T], name: str, what: str) -> T:
    """Return ``catalogue[name]``.

    Raises
    ------
    ValueError
        If there is no such entry; the message says what the name was for, the nearest names, and all names.
    """
    if name in catalogue:
        return catalogue[name]
    near = difflib.get_close_matches(str(name), catalogue, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    msg = f"unknown {what} {name!r}: {hint}There are: {', '.join(catalogue) or 'none'}."
    raise ValueError(msg)
