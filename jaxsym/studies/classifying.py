"""What the studies that classify share: data by name, the loss, the share of right answers."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxsym import data
from jaxsym.catalogue import find
from jaxsym.data import Rows, Split


class Parts(NamedTuple):
    """Training rows, those that something is chosen by, and those that nothing is chosen by."""

    train: Rows
    validation: Rows
    test: Rows


def load(name: str, seed: int = 0) -> Split:
    """A bundled data set by its name, or the images of MNIST or Fashion-MNIST in a folder of the user's.

    Parameters
    ----------
    name
        Of ``jaxsym.data.CATALOGUE``, or a folder with the four IDX files.
    seed
        Of the division into training and test; a folder has its own.

    Raises
    ------
    ValueError
        If there is neither such a data set nor such a folder, or its files are damaged.
    """
    if name not in data.CATALOGUE and Path(name).expanduser().is_dir():
        return data.idx_folder(name)
    return find(data.CATALOGUE, name, "data set (or folder of IDX files)").load(seed)


def take(rows: Rows, num: int) -> Rows:
    """The first ``num`` rows; the order of the bundled sets is random."""
    return jax.tree.map(lambda leaf: leaf[:num], rows)


def cross_entropy(
    apply: Callable[[PyTree, Array], Float[Array, "N classes"]],
) -> Callable[..., Float[Array, ""]]:
    """``loss(params, rows, key=None)`` for :func:`~jaxsym.training.make_train`: the mean softmax cross-entropy of ``apply``, which draws nothing."""

    def loss(params: PyTree, rows: Rows, key: Array | None = None) -> Float[Array, ""]:
        del key
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, rows.inputs), rows.targets).mean()

    return loss


def accuracy(logits: Float[Array, "*batch N classes"], targets: Int[Array, " N"]) -> Float[Array, "*batch"]:
    """Share of the rows in which the largest logit is the target's."""
    return jnp.mean(logits.argmax(-1) == targets, axis=-1)
