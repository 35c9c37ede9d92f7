"""What a data set is: rows of inputs and targets, divided into training and test."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


class Rows(NamedTuple):
    """Inputs ``[N, ...]`` and targets ``[N]`` or ``[N, m]``; a pytree, to be given to ``make_train(data=...)``."""

    inputs: Float[Array, "N ..."]
    targets: Shaped[Array, "N ..."]


class Split(NamedTuple):
    """Training and test rows, the names of the input columns (empty for images) and of the classes."""

    train: Rows
    test: Rows
    features: tuple[str, ...]
    classes: tuple[str, ...]


def flattened(split: Split) -> Split:
    """Images as rows of pixels: inputs ``[N, ...]`` become ``[N, n]``.

    >>> from jaxsym.data import digits
    >>> flattened(digits()).train.inputs.shape
    (1438, 64)
    """
    train, test = (
        rows._replace(inputs=rows.inputs.reshape(len(rows.inputs), -1)) for rows in (split.train, split.test)
    )
    return split._replace(train=train, test=test)


def stratified(
    targets: Int[np.ndarray, " N"], seed: int, test_fraction: float
) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " B"]]:
    """Divide rows at random so that every class has the same share in both parts, to within one row.

    Returns
    -------
    tuple
        Row numbers of the training part ``[N - T]`` and of the test part ``[T]``, each in random order.

    Raises
    ------
    ValueError
        If the fraction is not inside (0, 1) or a class is too small to be in both parts.
    """
    if not 0 < test_fraction < 1:
        msg = f"test_fraction: got {test_fraction}, expected a number between 0 and 1, both excluded."
        raise ValueError(msg)
    order = np.asarray(jax.random.permutation(jax.random.key(seed), len(targets)))
    held_out = np.zeros(len(targets), bool)
    for label in np.unique(targets):
        members = order[targets[order] == label]
        num = round(test_fraction * len(members))
        if not 0 < num < len(members):
            msg = (
                f"test_fraction: {test_fraction} of the {len(members)} rows of class {label} leaves training or test"
                " without any; choose another fraction."
            )
            raise ValueError(msg)
        held_out[members[:num]] = True
    return order[~held_out[order]], order[held_out[order]]
