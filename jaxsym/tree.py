"""Pytrees by path: the names that errors, records and tables use for a network's leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def name(path: tuple[Any, ...]) -> str:
    """A path as people write it.

    >>> name((jax.tree_util.DictKey("params"), jax.tree_util.DictKey("Dense_0")))
    'params/Dense_0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """All leaves by their path, in the tree's own order.

    >>> leaves({"params": {"kernel": 1, "bias": 2}})
    {'params/bias': 2, 'params/kernel': 1}

    Raises
    ------
    ValueError
        If a key with a slash makes two paths one.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if name(path) in named:
            msg = f"two leaves have the path {name(path)!r}; rename the key with a slash in it, or the other one."
            raise ValueError(msg)
        named[name(path)] = leaf
    return named


def get(tree: Any, where: str | Callable[[str], bool]) -> dict[str, Any]:
    """The leaves at a path or below it, or whose path satisfies ``where``, by path.

    >>> get({"params": {"kernel": 1, "bias": 2}}, "params/bias")
    {'params/bias': 2}

    Raises
    ------
    ValueError
        If there is none.
    """
    named = leaves(tree)
    below = where if callable(where) else lambda path: path == where or path.startswith(f"{where}/")
    found = {path: leaf for path, leaf in named.items() if below(path)}
    if not found:
        msg = f"no leaf at {where!r}; there are {', '.join(named) or 'none'}."
        raise ValueError(msg)
    return found


def put(tree: Any, named: Mapping[str, Any]) -> Any:
    """The tree with other leaves at these paths.

    >>> put({"params": {"kernel": 1, "bias": 2}}, {"params/bias": 3})
    {'params': {'bias': 3, 'kernel': 1}}

    Raises
    ------
    ValueError
        If there is no such path.
    """
    known = leaves(tree)
    unknown = [path for path in named if path not in known]
    if unknown:
        msg = f"no leaf at {', '.join(map(repr, unknown))}; there are {', '.join(known) or 'none'}."
        raise ValueError(msg)
    return jax.tree.unflatten(jax.tree.structure(tree), list((known | dict(named)).values()))
