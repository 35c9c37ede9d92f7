"""Pytrees by path: the names that errors, records and tables use for a network's leaves."""

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
