"""What is given: parameters, of one network or stacked, weights, batches of inputs; and results in the types of what was given."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxsym import tree
from jaxsym.symmetry.checks import expect_concrete, expect_finite
from jaxsym.symmetry.group import Element, Symmetry
from jaxsym.symmetry.specs import apart
from jaxsym.symmetry.units import Leaves, floating

Batches = list[tuple[Any, ...]]
SQUARED = (1e-24, 1e24)
"""Between these, sums of squares are found in float32."""
STACKED = "take one network after the other, or all of them by merge or alignment.ensemble"
"""What to do with stacked networks where one is expected."""
OTHER = "networks of two architectures or widths have no group in common, train both with one; of another one discover the group anew"
LEAST = 1e-9
"""A weight is at least this part of all."""
KEPT = 1e-3
"""Outputs that differ by less than this part of them are the same, in the precision in which networks are given."""


def checked(sym: Symmetry, params: PyTree, name: str, *, narrowly: bool = False) -> Leaves:
    """The leaves on the host, in float64, or float32 if asked for; refuses those of another network, NaN and infinity."""
    expect_numbers(params, name)
    try:
        leaves = sym.leaves(jax.tree.map(np.asarray, params), many=STACKED, other=OTHER)
    except ValueError as error:
        msg = f"{name}: {error}"
        raise ValueError(msg) from error
    _expect_real(name, leaves)
    dtype = np.float32 if narrowly else np.float64
    real = {path for path, leaf in leaves.items() if floating(leaf)}
    for path, leaf in leaves.items():
        if path in real and not np.isfinite(leaf).all():
            expect_finite(f"{name}: {path}", leaf)
    return {path: leaf.astype(dtype, copy=False) if path in real else leaf for path, leaf in leaves.items()}


def expect_numbers(params: PyTree, name: str) -> None:
    """Refuse what cannot be averaged, nor brought to the host as numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, jax.core.Tracer):
            expect_concrete(f"{name}: {tree.name(path)}", leaf)
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OSUMm":
            msg = f"{name}: {tree.name(path) or 'it'} is of type {type(leaf).__name__}, expected arrays of numbers."
            raise TypeError(msg)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            msg = f"{name}: {tree.name(path)} is a PRNG key, expected parameters alone: leave it out, and pass it to apply among the inputs."
            raise TypeError(msg)


def double(params: PyTree) -> Leaves:
    """By path, on the host, real numbers in float64."""
    host = {path: np.asarray(leaf) for path, leaf in tree.leaves(jax.device_get(params)).items()}
    return {path: leaf.astype(np.float64) if floating(leaf) else leaf for path, leaf in host.items()}


def whole(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number, large enough."""
    try:
        return not isinstance(value, bool | np.bool) and operator.index(value) >= least
    except TypeError:
        return False


def expect_alike(who: str, one: Leaves, other: Leaves) -> None:
    """Refuse two networks with different leaves, or of different shapes, and complex ones."""
    shapes = [{path: np.shape(leaf) for path, leaf in leaves.items()} for leaves in (one, other)]
    for path in dict.fromkeys((*shapes[0], *shapes[1])):
        if shapes[0].get(path) != shapes[1].get(path):
            said = [f"has shape {own[path]}" if path in own else "is missing" for own in shapes]
            msg = f"{who}: {path} {said[0]} in the first network and {said[1]} in the second; take two networks of one architecture."
            raise ValueError(msg)
    for leaves in (one, other):
        _expect_real(who, leaves)


def _expect_real(who: str, leaves: Leaves) -> None:
    """Refuse complex leaves."""
    for path, leaf in leaves.items():
        if np.iscomplexobj(leaf):
            msg = f"{who}: {path} is of type {jnp.result_type(leaf)}, expected real numbers: hold its real and imaginary parts in two leaves."
            raise TypeError(msg)


def narrow(params: PyTree) -> bool:
    """Whether nothing is in float64, nor so large or small that its squares are not in float32."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.core.Tracer | str):  # to be refused
            return False
        kind = _kind(leaf)
        if kind == np.float64:
            return False
        if jnp.issubdtype(kind, jnp.floating):
            host = np.asarray(leaf, np.float32)
            if not SQUARED[0] < np.vdot(host, host) < SQUARED[1] and host.any():
                return False
    return True


def _kind(leaf: Any) -> np.dtype:
    """As it is, or as JAX takes a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def restored(params: PyTree, leaves: Leaves) -> PyTree:
    """Leaves as parameters of the types that were given."""
    typed = [leaves[path].astype(_kind(leaf), copy=False) for path, leaf in tree.leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), _placed(typed))


@jax.jit
def _placed(arrays: Any) -> Any:
    """On the device: in one call for all of them, which ``jax.device_put`` takes one by one."""
    return arrays


def shown(element: Iterable[Any]) -> Element:
    """In the precision that is switched on."""
    wide = jnp.result_type(float)
    return _placed(tuple(part.astype(wide) if floating(part) else part for part in map(np.asarray, element)))


def expect_kept(
    apply: Callable[..., Any], sym: Symmetry, params: PyTree, inputs: tuple[Any, ...], what: str, advice: str
) -> None:
    """Refuse a function that computes something else once a network is moved by a random element."""
    with jax.enable_x64(True):
        wide, rows = tree.put(params, double(params)), jax.tree.map(np.asarray, inputs)
        moved = sym.act(sym.sample(jax.random.key(0)), wide)
        change = apart(*jax.device_get((apply(wide, *rows), apply(moved, *rows))))
    if change > KEPT:
        msg = f"{what} computes something else once a network is moved by the group (by {change:.1g} times the size of its outputs): {advice}"
        raise ValueError(msg)


def unstacked(shapes: Mapping[str, tuple[int, ...]], stacked: PyTree, who: str) -> list[PyTree]:
    """Stacked networks one by one, with leaves of these shapes."""
    expect_numbers(stacked, who)
    if isinstance(stacked, list | tuple) and any(tree.leaves(one).keys() == shapes.keys() for one in stacked):
        msg = f"{who}: got a {type(stacked).__name__} of {len(stacked)} networks, expected them stacked: jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)."
        raise ValueError(msg)
    counts = {}
    for path, leaf in tree.leaves(stacked).items():
        shape = np.shape(leaf)
        own = shapes.get(path, shape[1:])
        if shape and shape[1:] == own:
            counts[path] = shape[0]
        else:
            msg = (
                f"{who}: {path} has shape {shape}, expected (networks, {', '.join(map(str, own))}): stack the networks,"
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
    if share.shape != (count,) or not (np.isfinite(share) & (share > LEAST * share.sum())).all():
        msg = f"{who}: weights are {weights!r}, expected {count} positive numbers, one a network, of which none is less than {LEAST:g} of their sum."
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
