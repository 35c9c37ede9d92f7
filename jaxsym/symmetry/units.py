"""Tensors as the factors see them: units gathered from a leaf, values of units spread over it, and which of its entries who moves."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int

from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.host import index, namespace

TURNS = ("orthogonal", "general_linear")
"""The kinds of which a choice of axes, and of their signs, is left when all is balanced."""
TIE = 0.6
"""Two numbers tie when they differ by less than this power of the unit in the last place: 4e-10 in float64."""
Leaves = dict[str, Any]
Parts = dict[int, Any]
"""The number of a factor -> its part of an element."""
GOLDEN = (math.sqrt(5) - 1) / 2


def gathered(leaf: Any, slot: Slot) -> Any:
    """The units of one slot, ``[*copies, size, rest]``, of a leaf in JAX or NumPy."""
    rest = [axis for axis in range(leaf.ndim) if axis not in slot.axes]
    flat = leaf.transpose((*slot.axes, *rest)).reshape(math.prod(leaf.shape[i] for i in slot.axes), -1)
    return (flat if slot.fills(len(flat)) else flat[index(slot.where, flat)]).reshape(*slot.where.shape[:-1], -1)


def spread(values: Any, slot: Slot, shape: tuple[int, ...], fill: float) -> Any:
    """A number for each unit, ``[*copies, size]``, on the entries of that unit; broadcasts against the leaf. Elsewhere ``fill``."""
    sizes, where = [shape[axis] for axis in slot.axes], slot.where
    if slot.fills(math.prod(sizes)):
        xp = namespace(values)
        flat: Any = xp.broadcast_to(values[..., None], where.shape)
    elif isinstance(values, np.ndarray):
        flat = np.full(math.prod(sizes), fill, values.dtype)
        flat[where] = values[..., None]
    else:
        flat = jnp.full(math.prod(sizes), fill, values.dtype).at[index(where, values)].set(values[..., None])
    ordered = flat.reshape(sizes).transpose(np.argsort(slot.axes).astype(int))
    return ordered.reshape([size if axis in slot.axes else 1 for axis, size in enumerate(shape)])


def labels(slot: Slot, shape: tuple[int, ...]) -> Int[np.ndarray, "..."]:
    """The number of the unit, over all copies, that each entry of a leaf lies in; -1 where it lies in none."""
    units = np.arange(math.prod(slot.where.shape[:-1])).reshape(slot.where.shape[:-1])
    return np.broadcast_to(spread(units, slot, shape, -1), shape)


def numbers(sym: Symmetry, *kinds: str) -> list[int]:
    """Of the factors of some kinds."""
    return [i for i, factor in enumerate(sym.factors) if factor.kind in kinds]


def act(sym: Symmetry, parts: Parts, leaves: Leaves) -> Leaves:
    """Move leaves by some factors alone."""
    order = sorted(parts)
    some = dataclasses.replace(sym, factors=tuple(sym.factors[i] for i in order))
    return some.leaves(some.act(tuple(parts[i] for i in order), leaves)) if order else leaves


def floating(leaf: Any) -> bool:
    """Whether it holds real numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def close(values: Any) -> float:
    """What is taken for 0 beside 1 in the precision of some values."""
    return float(jnp.finfo(values.dtype).eps) ** TIE


def slots(sym: Symmetry, numbers: Iterable[int]) -> list[tuple[int, str, Slot]]:
    """Number of the factor, path and slot of all units that these factors move."""
    return [(i, "/".join(slot.path), slot) for i in numbers for slot in sym.factors[i].units]


def cover(sym: Symmetry, numbers: Iterable[int]) -> dict[str, Int[np.ndarray, "..."]]:
    """How many slots of these factors each entry of each leaf lies in."""
    counts = {path: np.zeros(shape, np.int8) for path, shape in sym.shapes.items()}
    for _, path, slot in slots(sym, numbers):
        ones = np.ones(slot.where.shape[:-1], np.int8)
        counts[path] += np.asarray(spread(ones, slot, sym.shapes[path], 0))
    return counts


def shifted(sym: Symmetry, numbers: Iterable[int]) -> set[str]:
    """The leaves that these factors shift."""
    wholes = [sym.factors[i].whole for i in numbers]
    return {path for whole in wholes if whole is not None for path in whole.touched}


def even(sym: Symmetry, numbers: Iterable[int], turns: Iterable[int]) -> list[tuple[int, str, Slot]]:
    """The slots of some factors whose units no turn mixes."""
    found = []
    for i, path, slot in slots(sym, numbers):
        whole = labels(slot, sym.shapes[path])
        mixed = [gathered(whole, other) for _, own, other in slots(sym, turns) if own == path]
        if all((units == units[..., :1, :]).all() for units in mixed):
            found.append((i, path, slot))
    return found


def framed(sym: Symmetry, params: Mapping[str, Array]) -> dict[str, Array]:
    """The leaves in the frames of gains in which rotations act on them."""
    seen = dict(params)
    for _, path, slot in slots(sym, range(len(sym.factors))):
        if slot.frame is not None:
            gains = params[slot.frame[0]] ** slot.frame[1]
            seen[path] = seen[path] * gains.reshape([-1 if axis == slot.axis else 1 for axis in range(seen[path].ndim)])
    return seen


def inclined(sym: Symmetry) -> dict[str, int]:
    """The leaves that rotations act on which leave (1, ..., 1) alone, and along which axis."""
    return {path: slot.axis for i, path, slot in slots(sym, numbers(sym, "orthogonal")) if extra(sym.factors[i], slot)}


def extra(factor: Factor, slot: Slot) -> int:
    """1 where the first of the units is, in the basis of Helmert, the sum of them all, which a rotation leaves alone; 0 otherwise."""
    return int(slot.where.shape[-2] - factor.size)


def straight(sym: Symmetry, params: Mapping[str, Array]) -> dict[str, Array]:
    """The leaves in frames in which signs of all axes act entry by entry: in those of gains, and in the basis of Helmert."""
    seen = framed(sym, params)
    for path, axis in inclined(sym).items():
        basis = scipy.linalg.helmert(seen[path].shape[axis], full=True).astype(seen[path].dtype)
        seen[path] = jnp.moveaxis(jnp.tensordot(basis, seen[path], axes=(1, axis)), 0, axis)
    return seen


def normalized(seen: Mapping[str, Array]) -> dict[str, Array]:
    """Real leaves over their root mean square; 0 those that are nothing but rounding beside the others."""
    sizes = {path: jnp.sqrt(jnp.mean(leaf**2)) for path, leaf in seen.items() if floating(leaf) and leaf.size}
    largest = functools.reduce(jnp.maximum, sizes.values(), jnp.zeros(()))
    return {
        path: jnp.where(size > close(size) * largest, seen[path] / jnp.where(size > 0, size, 1), 0)
        for path, size in sizes.items()
    }


def upright(factor: Factor, units: Float[Array, "*copies n rest"]) -> Float[Array, "*copies size rest"]:
    """Units as a rotation sees them: one that leaves (1, ..., 1) alone acts on the complement."""
    if units.shape[-2] == factor.size:
        return units
    basis = scipy.linalg.helmert(units.shape[-2]).astype(units.dtype)
    return namespace(units).asarray(basis) @ units


def coefficient(path: str, slot: Slot) -> float:
    """Of a slot in sums over all slots of a unit."""
    return 1 + salt(path, slot.axis, *slot.span)


def salt(*names: Any) -> float:
    """A number in [0, 1) that is the same on every machine."""
    return zlib.crc32("/".join(map(str, names)).encode()) * GOLDEN % 1


def weights(sym: Symmetry, path: str, mixing: Iterable[int]) -> Float[np.ndarray, "..."]:
    """Positive weights of a leaf's entries, all different along the axes on which none of the ``mixing`` factors acts, equal along the others."""
    shape = sym.shapes[path]
    mixed = {axis for _, own, slot in slots(sym, mixing) if own == path for axis in slot.axes}
    product = np.ones([1] * len(shape))
    for axis in set(range(len(shape))) - mixed:
        line = 0.5 + ((1 + np.arange(shape[axis])) * GOLDEN + salt(path, axis)) % 1
        product = product * line.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return product
