"""What is given for several networks: stacked leaves, weights, batches of inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxsym import tree

Batches = list[tuple[Any, ...]]


def unstacked(shapes: Mapping[str, tuple[int, ...]], stacked: PyTree, who: str) -> list[PyTree]:
    """Stacked networks one by one, with leaves of these shapes."""
    counts = {}
    for path, leaf in tree.leaves(stacked).items():
        shape = np.shape(leaf)
        if path in shapes and shape[1:] == shapes[path] and shape:
            counts[path] = shape[0]
        elif path in shapes:
            msg = (
                f"{who}: {path} has shape {shape}, expected (networks, {', '.join(map(str, shapes[path]))}): stack the networks,"
                " jax.tree.map(lambda *leaves: jnp.stack(leaves), one, another)."
            )
            raise ValueError(msg)
    sizes = set(counts.values())
    if len(sizes) != 1 or max(sizes) < 2:
        msg = f"{who}: got {', '.join(map(str, sorted(sizes))) or 'no'} network(s), expected the same number, two or more, in every leaf: stack the networks, jax.tree.map(lambda *leaves: jnp.stack(leaves), one, another)."
        raise ValueError(msg)
    host = jax.device_get(stacked)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(sizes.pop())]


def shares(weights: Any, count: int, who: str) -> Float[np.ndarray, " networks"]:
    """Weights that add up to 1; equal ones when None."""
    share = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if share.shape != (count,) or not (np.isfinite(share) & (share > 0)).all():
        msg = f"{who}: weights are {weights!r}, expected {count} positive numbers, one a network."
        raise ValueError(msg)
    return share / share.sum()


def batches(inputs: Any, who: str) -> Batches:
    """Inputs as a list of batches of one shape."""
    found = inputs if isinstance(inputs, list) else [inputs]
    wrong = [each for each in found if not isinstance(each, tuple)]
    if wrong or not found:
        got = f"of type {type(wrong[0]).__name__}" if wrong else "an empty list"
        msg = (
            f"{who}: inputs are {got}, expected a tuple of what apply(params, *inputs) takes, or a list of such tuples."
        )
        raise TypeError(msg)
    shapes = [jax.tree.map(np.shape, each) for each in found]
    other = next((each for each in shapes if each != shapes[0]), None)
    if other is not None:
        msg = f"{who}: batches of shapes {shapes[0]} and {other}, expected batches of one shape: leave out the rest of the last one."
        raise ValueError(msg)
    return found
