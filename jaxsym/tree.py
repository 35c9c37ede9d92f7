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
    """
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
