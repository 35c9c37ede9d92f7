"""The engine: :func:`parallel` is :func:`jax.vmap`, chunked to bound memory and sharded over every device.

Whatever runs on hundreds of networks goes through it: ``parallel(train)(keys)``.
"""

import collections
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxsym.parallel.arguments import NETWORKS, Layout, layout
from jaxsym.parallel.chunk import (
    chunk_from_shapes,
    chunk_that_fits,
    free_bytes,
    guessed_chunk,
    is_brief,
    one_of,
    tuned_chunk,
)

__all__ = ["chunk_from_shapes", "parallel", "use_all_cores"]

_ALL = np.int32(2**31 - 1)  # rounds: as many as there are
_zero = jax.jit(lambda: jnp.zeros(()))


def parallel(
    fn: Callable[..., Any],
    in_axes: Any = 0,
    *,
    chunk: int | Literal["auto"] = "auto",
    devices: Sequence[jax.Device] | None = None,
    donate_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """Map a function over the leading axis of its arguments, as :func:`jax.vmap` does, for ensembles of any size.

    The ensemble is split over the devices (``shard_map`` on a one-dimensional mesh) and each device works through its
    share chunk by chunk. What does not divide is padded with copies of the first network, and the padding is cut off
    again. Keys and all other arguments reach ``fn`` unchanged, so a network is the same whatever the chunk and the
    devices (up to rounding; to the bit for the same chunk and devices), with JAX's default keys; those of the ``rbg``
    family draw otherwise under any ``vmap``.

    Called outside a trace it compiles by itself, once per shape; shared arguments (``in_axes`` None) are then arrays or
    numbers. Keep the function that is returned: it holds what was compiled, and the chunks that were chosen. Gradients,
    ``jit`` and a further ``vmap`` pass through. Inside another ``parallel`` or ``shard_map`` it chunks, but leaves the
    devices to the outer one.

    Parameters
    ----------
    fn
        A pure function of arrays: ``fn(*args, **kwargs) -> pytree of arrays``.
    in_axes
        As for :func:`jax.vmap`: an int, None (shared by all networks), or a tuple of pytree prefixes of the positional
        arguments. Keyword arguments are mapped over axis 0.
    chunk
        How many networks are computed at once on each device. A number is used as it is, up to the size of the ensemble.
        With ``"auto"`` the result depends on the choice, by rounding. Outside a trace, on CPUs it is a guess from shapes,
        which is timed against a few others where the ensemble is large enough to repay that; elsewhere it is a device's
        whole share, halved until it fits into the memory. Under a trace, and with several processes, shapes decide.
    devices
        The devices to use. When None all of the default backend; but work of a few milliseconds on CPUs is done in place
        when nothing ties its arguments to a device, and its result is not tied to one either. With several processes
        (``jax.distributed``), every process makes the same call with the same arguments, and gets its part of one global
        result.
    donate_argnums
        Positional arguments whose memory may be used for the results of the same shape and type. Such an argument must
        not be used afterwards. It is heeded for mapped arguments, outside a trace.

    Returns
    -------
    Callable
        The mapped function; every leaf of its result has the ensemble as axis 0. Its attribute ``chunk_for`` takes the same
        arguments, and returns the chunk that is used for them outside a trace.

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
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    # It remembers its trace, however many chunks are tried with it; the partial has a hash where a callable has none.
    alone = jax.jit(functools.partial(fn))

    def arranged(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout:
        return layout(in_axes, args, kwargs, tuple(devices) if devices is not None else tuple(jax.devices()), donate)

    def jaxpr_of_one(at: Layout, leaves: list[Any]) -> Any:
        mapped, shared = jax.eval_shape(at.split, leaves)
        return jax.make_jaxpr(at.alone(alone))(one_of(mapped), shared)

    @jax.jit
    def within(*args: Any, **kwargs: Any) -> Any:
        at, leaves = arranged(args, kwargs), jax.tree.leaves((args, kwargs))
        if at.size == 0:
            mapped, shared = at.split(leaves)
            return jax.vmap(lambda mapped: at.alone(alone)(mapped, shared))(mapped)
        shards = 1 if _sharded_already() else len(at.devices)
        share = math.ceil(at.size / shards)
        if chunk != "auto":
            batch = min(at.size, int(chunk))
        elif at.devices[0].platform != "cpu":
            batch = share
        else:
            batch = guessed_chunk(jaxpr_of_one(at, leaves), share, "cpu")
        return _spread(alone, at, shards, batch, leaves)

    @functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
    def compiled(at: Layout, batch: int, donated: list[Any], kept: list[Any], rounds: Any) -> Any:
        from_donated, from_kept = iter(donated), iter(kept)
        leaves = [next(from_donated if donated else from_kept) for donated in at.donated]
        return _spread(alone, at, at.shards, batch, leaves, rounds)

    plans: dict[Any, tuple[Layout, int] | None] = {}

    def plan(at: Layout, leaves: list[Any]) -> tuple[Layout, int] | None:
        """What to donate, the devices and the chunk, for these shapes; None if the function holds tracers."""
        free = not any(getattr(leaf, "committed", False) for leaf in leaves)
        signature = at, free, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if signature not in plans:
            jaxpr = jaxpr_of_one(at, leaves)
            if any(isinstance(constant, jax.core.Tracer) for constant in jaxpr.consts):
                return None
            settled = at._replace(donated=_useful(at, leaves, jaxpr.out_avals))
            on_cpu = at.devices[0].platform == "cpu" and jax.process_count() == 1
            if devices is None and free and on_cpu and is_brief(jaxpr, at.size):
                settled = settled._replace(devices=())
            plans[signature] = settled, chosen(settled, leaves, jaxpr)
        return plans[signature]

    def chosen(at: Layout, leaves: list[Any], jaxpr: Any) -> int:
        if chunk != "auto":
            return min(at.size, int(chunk))
        device, share = (at.devices or jax.devices())[0], math.ceil(at.size / at.shards)
        guess = guessed_chunk(jaxpr, share, device.platform)
        if jax.process_count() > 1:  # all processes must come to the same
            return guess if device.platform == "cpu" else share

        def arguments(batch: int, rounds: Any) -> tuple[Any, ...]:
            donated, kept = at.parted(at.place(leaves))
            return at, batch, [jnp.copy(leaf) for leaf in donated], kept, rounds

        free = free_bytes(device)
        if device.platform != "cpu" or free is not None:
            return chunk_that_fits(lambda batch: compiled.lower(*arguments(batch, _ALL)).compile(), share, free)

        def run(batch: int, rounds: int) -> None:
            jax.block_until_ready(compiled(*arguments(batch, np.int32(rounds))))

        return tuned_chunk(run, share, guess)

    def outside(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call stands by itself: nothing is being traced or sharded around it, and there is work."""
        # The zero is a tracer wherever something is traced, though no argument may be.
        leaves = [*jax.tree.leaves((args, kwargs)), _zero()]
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return not traced and not _sharded_already()

    @functools.wraps(fn)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if not outside(args, kwargs):
            return within(*args, **kwargs)
        at, leaves = arranged(args, kwargs), jax.tree.leaves((args, kwargs))
        planned = plan(at, leaves) if at.size else None
        if planned is None:
            return within(*args, **kwargs)
        at, batch = planned
        return compiled(at, batch, *at.parted(at.place(leaves)), _ALL)

    def chunk_for(*args: Any, **kwargs: Any) -> int:
        planned = plan(arranged(args, kwargs), jax.tree.leaves((args, kwargs))) if outside(args, kwargs) else None
        if planned is None:
            msg = "chunk_for: called under a trace, where shapes decide; call it with arrays, outside."
            raise ValueError(msg)
        return planned[1]

    mapped.chunk_for = chunk_for  # type: ignore[attr-defined]
    return mapped


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


def _spread(fn: Callable[..., Any], at: Layout, shards: int, batch: int, leaves: list[Any], rounds: Any = None) -> Any:
    """Pad the ensemble to whole chunks on every device, compute them, cut the padding off.

    ``rounds`` is how many chunks to compute on each device, a traced integer; the rest of the result is then zero.
    """
    one = at.alone(fn)
    mapped, shared = at.split(leaves)
    share = math.ceil(at.size / (batch * shards)) * batch
    padding = share * shards - at.size
    if padding:
        copies = jnp.zeros(padding, int)
        mapped = [jnp.concatenate([leaf, jax.lax.stop_gradient(leaf[copies])]) for leaf in mapped]

    def block(mapped: list[Any], shared: list[Any], rounds: Any) -> Any:
        chunks = [leaf.reshape(share // batch, batch, *leaf.shape[1:]) for leaf in mapped]
        chunk = jax.vmap(lambda mapped: one(mapped, shared))
        results = jax.lax.map(chunk, chunks) if rounds is None else _first(rounds, chunk, chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(share, *leaf.shape[2:]), results)

    if shards > 1:
        block = jax.shard_map(
            block,
            mesh=at.mesh,
            in_specs=(PartitionSpec(NETWORKS), PartitionSpec(), PartitionSpec()),
            out_specs=PartitionSpec(NETWORKS),
            check_vma=False,
        )
    result = block(mapped, shared, rounds)
    return jax.tree.map(lambda leaf: leaf[: at.size], result) if padding else result


def _first(rounds: Any, fn: Callable[[list[Any]], Any], chunks: list[Any]) -> Any:
    """``lax.map`` over the first few chunks only: how many is not known when the program is compiled."""
    total = chunks[0].shape[0]

    def body(index: Any, results: Any) -> Any:
        result = fn([jax.lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False) for leaf in chunks])
        return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, index, 0), results, result)

    shapes = jax.eval_shape(fn, one_of(chunks))
    empty = jax.tree.map(lambda leaf: jnp.zeros((total, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, jnp.minimum(rounds, total), body, empty)


def _useful(at: Layout, leaves: list[Any], results: Sequence[Any]) -> tuple[bool, ...]:
    """Which donated leaves have a result of the same shape and type that can take their memory."""
    room = collections.Counter(((at.size, *aval.shape), aval.dtype) for aval in results)

    def taken(leaf: Any) -> bool:
        kind = (jnp.shape(leaf), jnp.result_type(leaf))
        room[kind] -= 1
        return room[kind] >= 0

    return tuple(donated and taken(leaf) for donated, leaf in zip(at.donated, leaves, strict=True))
