"""The arguments of an ensemble: which axis of which leaf is mapped, how many networks there are, where they go."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

NETWORKS = "networks"  # the one axis of the mesh


class Layout(NamedTuple):
    """The static facts of one call: the structure of ``(args, kwargs)``, and for each leaf its mapped axis or None.

    Axes are counted from the front. Without ``devices`` it is computed wherever the arguments are. ``donated`` says for each
    leaf whether its memory may be used for a result.
    """

    structure: Any
    axes: tuple[int | None, ...]
    size: int
    devices: tuple[jax.Device, ...]
    donated: tuple[bool, ...]

    @property
    def mesh(self) -> Mesh:
        """The devices in a row."""
        return Mesh(self.devices, (NETWORKS,), axis_types=(AxisType.Auto,))

    def split(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The mapped leaves ``[N, ...]``, and the shared ones."""
        pairs = list(zip(leaves, self.axes, strict=True))
        mapped = [jnp.moveaxis(leaf, axis, 0) if axis else leaf for leaf, axis in pairs if axis is not None]
        return mapped, [leaf for leaf, axis in pairs if axis is None]

    def parted(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The donated leaves, and those that are kept."""
        pairs = list(zip(leaves, self.donated, strict=True))
        return [leaf for leaf, donated in pairs if donated], [leaf for leaf, donated in pairs if not donated]

    def joined(self, donated: list[Any], kept: list[Any]) -> list[Any]:
        """What :meth:`parted` took apart."""
        from_donated, from_kept = iter(donated), iter(kept)
        return [next(from_donated if donated else from_kept) for donated in self.donated]

    def rows(self, leaves: Sequence[Any], start: Any, number: int) -> list[Any]:
        """Some networks of the mapped leaves, from ``start`` on; the last one again where there are no more."""
        if self.size % number == 0:
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=number)
        else:
            cut = functools.partial(
                jnp.take, indices=start + jnp.arange(number, dtype=jnp.result_type(start)), mode="clip"
            )
        return [leaf if axis is None else cut(leaf, axis=axis) for leaf, axis in zip(leaves, self.axes, strict=True)]

    def alone(self, fn: Callable[..., Any]) -> Callable[[list[Any], list[Any]], Any]:
        """``fn`` as a function of one network's part of the mapped leaves, and of the shared ones."""

        def one(mapped: list[Any], shared: list[Any]) -> Any:
            from_mapped, from_shared = iter(mapped), iter(shared)
            merged = [next(from_shared if axis is None else from_mapped) for axis in self.axes]
            args, kwargs = jax.tree.unflatten(self.structure, merged)
            return fn(*args, **kwargs)

        return one

    def place(self, leaves: Sequence[Any]) -> list[Any]:
        """Bring arrays to the devices: each its share of the networks, where that comes out even; all of it else."""
        if not self.devices:
            return list(leaves)
        where = {axis: self._sharding(axis) for axis in set(self.axes)}
        targets = [
            None if not hasattr(leaf, "ndim") or getattr(leaf, "sharding", None) == where[axis] else where[axis]
            for leaf, axis in zip(leaves, self.axes, strict=True)
        ]
        arrays = [(leaf, to) for leaf, to in zip(leaves, targets, strict=True) if to is not None]
        if not arrays:
            return list(leaves)
        if all(to.is_fully_addressable for to in where.values()):
            placed = iter(jax.device_put([leaf for leaf, _ in arrays], [to for _, to in arrays]))
        else:
            placed = iter([_put(*array) for array in arrays])
        return [leaf if to is None else next(placed) for leaf, to in zip(leaves, targets, strict=True)]

    def _sharding(self, axis: int | None) -> Sharding:
        if len(self.devices) == 1:
            return SingleDeviceSharding(self.devices[0])
        if axis is None or self.size % len(self.devices):
            return NamedSharding(self.mesh, PartitionSpec())
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, NETWORKS))


def _put(leaf: Any, sharding: Sharding) -> Any:
    """``device_put`` to the devices of several processes, each of which has the whole array."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf  # global already: the compiled program takes it from where it is
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def layout(
    in_axes: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    devices: tuple[jax.Device, ...],
    donate_argnums: tuple[int, ...] = (),
) -> Layout:
    """Read the arguments of a call.

    Raises
    ------
    ValueError
        If ``in_axes`` or ``donate_argnums`` do not fit the arguments, nothing is mapped, or the mapped axes differ.
    """
    axes = _axes(in_axes, args, kwargs)
    for number in donate_argnums:
        if not 0 <= number < len(args):
            msg = f"donate_argnums: got {number}, but there are {len(args)} positional argument(s), counted from 0."
            raise ValueError(msg)
    donated = [number in donate_argnums for number, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    donated += [False] * (len(axes) - len(donated))
    donated = [donate and axis is not None for donate, axis in zip(donated, axes, strict=True)]
    size = ensemble_size((args, kwargs), axes)
    leaves, structure = jax.tree.flatten((args, kwargs))
    counted = [None if axis is None else axis % jnp.ndim(leaf) for axis, leaf in zip(axes, leaves, strict=True)]
    return Layout(structure, tuple(counted), size, devices, tuple(donated))


class _Shared:
    """Stands for None in ``in_axes``, which as a pytree would have no leaf."""


def _axes(in_axes: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int | None]:
    """The mapped axis of every leaf of ``(args, kwargs)``, None where it is shared."""
    in_axes = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    marked = jax.tree.map(lambda axis: _Shared() if axis is None else axis, in_axes, is_leaf=lambda axis: axis is None)
    try:
        axes = jax.tree.leaves(jax.tree.broadcast(marked, args))
    except ValueError as error:
        msg = (
            f"in_axes: got {in_axes!r} for {len(args)} positional argument(s), expected an int, None, or a tuple with one"
            " entry (an int, None or a pytree prefix) for each of them; keyword arguments are always mapped over axis 0."
        )
        raise ValueError(msg) from error
    axes += [0] * len(jax.tree.leaves(kwargs))
    return [None if isinstance(axis, _Shared) else axis for axis in axes]


def ensemble_size(arguments: Any, axes: list[int | None]) -> int:
    """The common size of all mapped axes."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(arguments)]
    mapped = {number: axis for number, axis in enumerate(axes) if axis is not None}
    for number, axis in mapped.items():
        shape = shapes[number]
        if not -len(shape) <= axis < len(shape):
            name = _names(arguments)[number]
            msg = f"{name} has shape {shape}, but its axis {axis} is mapped:" + (
                " keywords are always mapped over axis 0; pass it by position, with None in in_axes, to share it."
                if name.startswith("keyword")
                else " give it a leading axis over the networks, or None in in_axes to share it."
            )
            raise ValueError(msg)
    if not mapped:
        msg = "parallel: no argument is mapped; at least one needs an axis over the networks, such as their keys."
        raise ValueError(msg)
    sizes = [shapes[number][axis] for number, axis in mapped.items()]
    if len(set(sizes)) > 1:
        names = _names(arguments)
        got = ", ".join(f"{names[number]}: {size}" for number, size in zip(mapped, sizes, strict=True))
        msg = f"parallel: mapped axes differ in size ({got}); expected the same number of networks in all of them."
        raise ValueError(msg)
    return sizes[0]


def _names(arguments: Any) -> list[str]:
    """What to call every leaf of ``(args, kwargs)``."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(arguments):
        place, *rest = path[1:]
        kind = "keyword" if isinstance(place, jax.tree_util.DictKey) else "argument"
        names.append(f"{kind} {jax.tree_util.keystr((place,), simple=True)}{jax.tree_util.keystr(tuple(rest))}")
    return names
