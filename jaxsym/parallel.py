"""The engine: :func:`parallel` is :func:`jax.vmap`, chunked to bound memory and sharded over every device.

Whatever runs on hundreds of networks goes through it: ``parallel(train)(keys)``.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_BLOCK_BYTES = 2**20  # what the inputs and outputs of one chunk may take on a CPU by default
_LARGEST_CHUNK = 64  # a CPU's caches gain nothing from more


def parallel(
    fn: Callable[..., Any],
    in_axes: Any = 0,
    *,
    chunk: int | Literal["auto"] = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Callable[..., Any]:
    """Map a function over the leading axis of its arguments, as :func:`jax.vmap` does, for ensembles of any size.

    The ensemble is split over the devices (``shard_map`` on a one-dimensional mesh) and each device works through its
    share chunk by chunk (``lax.map(batch_size=chunk)``). What does not divide is padded with copies of the first
    network, and the padding is cut off again. Keys and all other arguments reach ``fn`` unchanged, so a network is the
    same whatever the chunk and the devices (up to rounding; to the bit for the same chunk), with JAX's default keys; those of the
    ``rbg`` family draw otherwise under any ``vmap``. Gradients, ``jit`` and a
    further ``vmap`` pass through. Called outside a trace it compiles by itself, once per shape;
    shared arguments (``in_axes`` None) are then arrays or numbers. Inside another ``parallel`` or ``shard_map`` it chunks, but leaves
    the devices to the outer one.

    Parameters
    ----------
    fn
        A pure function of arrays: ``fn(*args, **kwargs) -> pytree of arrays``.
    in_axes
        As for :func:`jax.vmap`: an int, None (shared by all networks), or a tuple of pytree prefixes of the positional
        arguments. Keyword arguments are mapped over axis 0.
    chunk
        How many networks are computed at once on each device. ``"auto"`` keeps the inputs and outputs of a chunk near
        1 MiB on a CPU and takes a device's whole share elsewhere.
    devices
        The devices to use; all of the default backend when None.

    Returns
    -------
    Callable
        The mapped function; every leaf of its result has the ensemble as axis 0.

    Raises
    ------
    ValueError
        If ``chunk`` is not positive, no argument is mapped, or the mapped axes differ in size.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> norms = js.parallel(lambda key: jax.numpy.linalg.norm(jax.random.normal(key, (3,))))
    >>> norms(jax.random.split(jax.random.key(0), 100)).shape
    (100,)
    """
    if chunk != "auto" and (isinstance(chunk, bool) or not hasattr(chunk, "__index__") or chunk < 1):
        msg = f"chunk: got {chunk!r}, expected a positive int or 'auto'."
        raise ValueError(msg)
    if devices is not None and len(devices) == 0:
        msg = "devices: got an empty list, expected at least one device, or None for all of them."
        raise ValueError(msg)

    def used_devices() -> tuple[jax.Device, ...]:
        return tuple(devices) if devices is not None else tuple(jax.devices())

    @jax.jit
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        axes = _axes(in_axes, args, kwargs)
        size = _ensemble_size((args, kwargs), axes)
        mapped = [jnp.moveaxis(leaf, axis, 0) for leaf, axis in zip(leaves, axes, strict=True) if axis is not None]
        shared = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is None]

        def one(mapped: list[Any], shared: list[Any]) -> Any:
            from_mapped, from_shared = iter(mapped), iter(shared)
            merged = [next(from_shared if axis is None else from_mapped) for axis in axes]
            args, kwargs = jax.tree.unflatten(structure, merged)
            return fn(*args, **kwargs)

        if size == 0:
            return jax.vmap(lambda mapped: one(mapped, shared))(mapped)
        mesh = used_devices()
        shards = 1 if _sharded_already() else len(mesh)
        if chunk == "auto":
            batch = _default_chunk(one, mapped, shared, math.ceil(size / shards), mesh[0].platform)
        else:
            batch = min(size, int(chunk))
        share = math.ceil(size / (batch * shards)) * batch
        padding = share * shards - size
        if padding:
            copies = jnp.zeros(padding, int)
            mapped = [jnp.concatenate([leaf, jax.lax.stop_gradient(leaf[copies])]) for leaf in mapped]

        def block(mapped: list[Any], shared: list[Any]) -> Any:
            return jax.lax.map(lambda mapped: one(mapped, shared), mapped, batch_size=batch)

        if shards > 1:
            block = jax.shard_map(
                block,
                mesh=Mesh(mesh, ("networks",), axis_types=(AxisType.Auto,)),
                in_specs=(PartitionSpec("networks"), PartitionSpec()),
                out_specs=PartitionSpec("networks"),
                check_vma=False,
            )
        result = block(mapped, shared)
        return jax.tree.map(lambda leaf: leaf[:size], result) if padding else result

    @functools.wraps(fn)
    def outside(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            return run(*args, **kwargs)
        mesh = Mesh(used_devices(), ("networks",), axis_types=(AxisType.Auto,))
        everywhere = NamedSharding(mesh, PartitionSpec())

        def place(leaf: Any) -> Any:  # arrays may have been committed to another device
            return jax.device_put(leaf, everywhere) if isinstance(leaf, jax.Array) else leaf

        args, kwargs = jax.tree.map(place, (args, kwargs))
        return run(*args, **kwargs)

    return outside


def chunk_from_shapes(fn: Callable[..., Any], *args: Any) -> int:
    """A chunk for :func:`parallel` that depends on shapes alone: never on timing, nor on the number of devices.

    Whoever needs the same bits from every run of an ensemble, on whatever machine and number of devices, passes it on as
    the ``chunk``.

    Parameters
    ----------
    fn
        A function of one network.
    *args
        Its arguments for the ensemble, arrays or ``jax.ShapeDtypeStruct`` ``[N, ...]``; pytrees of them.

    Returns
    -------
    int
        At least 1, at most N.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> from jaxsym.parallel import chunk_from_shapes
    >>> chunk_from_shapes(lambda key: jax.random.normal(key, (100,)), jax.random.split(jax.random.key(0), 100))
    50
    """
    size = _ensemble_size((args, {}), [0] * len(jax.tree.leaves(args)))
    structure = jax.tree.structure(args)
    leaves = jax.tree.leaves(args)

    def one(mapped: list[Any], shared: list[Any]) -> Any:
        del shared
        return fn(*jax.tree.unflatten(structure, mapped))

    return _default_chunk(one, leaves, [], size, jax.default_backend()) if size else 1


def use_all_cores() -> int:
    """Give JAX one CPU device per core, so that :func:`parallel` uses them all; the first thing in a script.

    Returns
    -------
    int
        The number of CPU devices.

    Raises
    ------
    RuntimeError
        If JAX has already started with another number of devices, which cannot be changed any more.
    """
    os.environ.setdefault(
        "NPROC", str(2 * (os.cpu_count() or 1))
    )  # with one thread a device, XLA's LAPACK calls wait for ever
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # LAPACK's own threads would fight with the devices for the cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError as error:
        started = jax.local_device_count("cpu")
        if started == cores:
            return cores
        msg = (
            f"use_all_cores() came too late: JAX has started with {started} CPU device(s), this machine has {cores} cores."
            " Call it before the first use of JAX, or start Python with the environment variable"
            f" JAX_NUM_CPU_DEVICES={cores}."
        )
        raise RuntimeError(msg) from error
    return cores


def _sharded_already() -> bool:
    """Whether this is traced inside a sharded computation, such as another ``parallel``: the devices are taken."""
    return not jax.sharding.get_abstract_mesh().empty


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


def _ensemble_size(arguments: Any, axes: list[int | None]) -> int:
    """The common size of all mapped axes."""
    sizes: dict[str, int] = {}
    for (path, leaf), axis in zip(jax.tree_util.tree_leaves_with_path(arguments), axes, strict=True):
        if axis is None:
            continue
        shape = jnp.shape(leaf)
        place, *rest = path[1:]
        kind = "keyword" if isinstance(place, jax.tree_util.DictKey) else "argument"
        name = f"{kind} {jax.tree_util.keystr((place,), simple=True)}{jax.tree_util.keystr(tuple(rest))}"
        if not -len(shape) <= axis < len(shape):
            msg = f"{name} has shape {shape}, but its axis {axis} is mapped:" + (
                " keywords are always mapped over axis 0; pass it by position, with None in in_axes, to share it."
                if kind == "keyword"
                else " give it a leading axis over the networks, or None in in_axes to share it."
            )
            raise ValueError(msg)
        sizes[name] = shape[axis]
    if not sizes:
        msg = "parallel: no argument is mapped; at least one needs an axis over the networks, such as their keys."
        raise ValueError(msg)
    if len(set(sizes.values())) > 1:
        got = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        msg = f"parallel: mapped axes differ in size ({got}); expected the same number of networks in all of them."
        raise ValueError(msg)
    return next(iter(sizes.values()))


def _default_chunk(one: Callable[..., Any], mapped: list[Any], shared: list[Any], share: int, platform: str) -> int:
    """A chunk from shapes alone: on a CPU about ``_BLOCK_BYTES`` of inputs and outputs, elsewhere the whole share."""
    if platform != "cpu":
        return share
    inputs = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in mapped]
    outputs = jax.tree.leaves(jax.eval_shape(one, inputs, shared))
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in [*inputs, *outputs])
    largest = max(1, min(_LARGEST_CHUNK, _BLOCK_BYTES // max(size, 1)))
    return math.ceil(share / math.ceil(share / largest))  # chunks of nearly equal size leave the least padding
