"""What is given: parameters, of one network or stacked, weights, batches of inputs; and results in the types of what was given."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxsym import tree
from jaxsym.symmetry.checks import expect_finite
from jaxsym.symmetry.group import Element, Symmetry
from jaxsym.symmetry.specs import apart
from jaxsym.symmetry.units import Leaves, floating

Batches = list[tuple[Any, ...]]
KEPT = 1e-3
"""Outputs that differ by less than this part of them are the same, in the precision in which networks are given."""


def checked(sym: Symmetry, params: PyTree, name: str, *, narrowly: bool = False) -> Leaves:
    """The leaves on the host, in float64, or float32 if asked for; refuses those of another network, NaN and infinity."""
    refuse_keys(params, name)
    try:
        leaves = sym.leaves(jax.tree.map(np.asarray, params))
    except ValueError as error:
        msg = f"{name}: {error} Networks of two widths have no group in common: train both with one architecture."
        raise ValueError(msg) from error
    for path, leaf in leaves.items():
        if np.iscomplexobj(leaf):
            msg = f"{name}: {path} is of type {leaf.dtype}, expected real numbers: hold its real and imaginary parts in two leaves."
            raise TypeError(msg)
    dtype = np.float32 if narrowly else np.float64
    real = [path for path, leaf in leaves.items() if floating(leaf)]
    for path in real:
        if not np.isfinite(leaves[path]).all():
            expect_finite(f"{name}: {path}", leaves[path])
    return {path: leaf.astype(dtype, copy=False) if path in real else leaf for path, leaf in leaves.items()}


def refuse_keys(params: PyTree, name: str) -> None:
    """Refuse what cannot be averaged, nor brought to the host as numbers."""
    for path, leaf in tree.leaves(params).items():
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            msg = f"{name}: {path} is a PRNG key, expected parameters alone: leave it out, and pass it to apply among the inputs."
            raise TypeError(msg)


def double(params: PyTree) -> Leaves:
    """By path, on the host, real numbers in float64."""
    host = {path: np.asarray(leaf) for path, leaf in tree.leaves(jax.device_get(params)).items()}
    return {path: leaf.astype(np.float64) if floating(leaf) else leaf for path, leaf in host.items()}


def whole(value: Any) -> bool:
    """Whether it is a whole number from 0 on."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def narrow(params: PyTree) -> bool:
    """Whether there is nothing in float64."""
    return all(jnp.result_type(leaf) != np.float64 for leaf in jax.tree.leaves(params))


def restored(params: PyTree, leaves: Leaves) -> PyTree:
    """Leaves as parameters of the types that were given."""
    named = {path: leaves[path].astype(jnp.result_type(leaf), copy=False) for path, leaf in tree.leaves(params).items()}
    return tree.put(params, jax.device_put(named))


def shown(element: Iterable[Any]) -> Element:
    """In the precision that is switched on."""
    wide = jnp.result_type(float)
    return tuple(jax.device_put([part.astype(wide) if floating(part) else part for part in map(np.asarray, element)]))


def expect_kept(
    apply: Callable[..., Any], sym: Symmetry, params: PyTree, inputs: tuple[Any, ...], what: str, advice: str
) -> None:
    """Refuse a function that computes something else once a network is moved by a random element."""
    with jax.enable_x64(True):
        wide, rows = tree.put(params, double(params)), jax.tree.map(np.asarray, inputs)
        moved = sym.act(sym.sample(jax.random.key(0)), wide)
        change = apart(*jax.device_get((apply(wide, *rows), apply(moved, *rows))))
    if change > KEPT:
        msg = f"{what} computes something else once a network is moved by the group (by {change:.1g} of its outputs): {advice}"
        raise ValueError(msg)


def unstacked(shapes: Mapping[str, tuple[int, ...]], stacked: PyTree, who: str) -> list[PyTree]:
    """Stacked networks one by one, with leaves of these shapes."""
    refuse_keys(stacked, who)
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
    try:
        share = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        share = np.empty(0)
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
