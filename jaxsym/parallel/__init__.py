"""The engine: :func:`parallel` is :func:`jax.vmap`, chunked to bound memory and spread over every core and device.

Whatever runs on hundreds of networks goes through it: ``parallel(train)(keys)``.
"""

import collections
import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxsym.parallel.arguments import NETWORKS, Layout, layout
from jaxsym.parallel.chunk import (
    chunk_from_shapes,
    chunk_that_fits,
    decomposes,
    free_bytes,
    guessed_chunk,
    is_brief,
    is_tracing,
    one_of,
    tuned_chunk,
)

__all__ = ["at_once", "chunk_from_shapes", "parallel", "use_all_cores"]

_DEBUGGING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
_end_to_end = jax.jit(
    lambda parts, size: jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:size], *parts), static_argnums=1
)


def parallel(
    fn: Callable[..., Any],
    in_axes: Any = 0,
    *,
    chunk: int | Literal["auto"] = "auto",
    devices: Sequence[jax.Device] | None = None,
    donate_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """Map a function over the leading axis of its arguments, as :func:`jax.vmap` does, for ensembles of any size.

    On a CPU, outside a trace, one compiled program works through the ensemble chunk by chunk, run by a thread for each
    core. Elsewhere the ensemble is split over the devices (``shard_map`` on a one-dimensional mesh), each of which works
    through its share chunk by chunk. A last chunk that is not full is filled up with copies of a network, which are cut off
    again. Keys and all other arguments reach ``fn`` unchanged, so a network is the same whatever the chunk and the
    devices, up to rounding; outside a trace on a CPU to the bit for the same explicit chunk, however many cores there are.
    This holds for JAX's default keys; those of the ``rbg`` family draw otherwise under any ``vmap``. With ``jax.disable_jit``,
    ``jax.debug_nans`` or ``jax.debug_infs`` it is ``jax.vmap`` itself, so that errors are where they are looked for.

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
        How many networks are computed at once on each device or core. A number is used as it is, up to the size of the ensemble.
        With ``"auto"`` the result depends on the choice, by rounding. Outside a trace, on CPUs it is a guess from shapes,
        which is timed against a few others where the ensemble is large enough to repay that; elsewhere it is a device's
        whole share, halved until it fits into the memory. Under a trace, and with several processes, shapes decide.
    devices
        The devices to use. When None all of the default backend. CPU devices share their memory: outside a trace their
        number is that of the threads, and the result is where the arguments are tied to, else on the first of the devices
        that are named, else on the default device and not tied to it. When None there are as many threads as CPU devices,
        or as cores where nothing has set that number; work of a few milliseconds takes one, and so do decompositions of matrices
        unless :func:`use_all_cores` came first, for two batches of them can wait for each other for ever. With several
        processes (``jax.distributed``), every process makes the same call with the same arguments, and gets its part of
        one global result.
    donate_argnums
        Positional arguments whose memory may be used for the results of the same shape and type. Such an argument must
        not be used afterwards. It is heeded for mapped arguments, outside a trace; where several threads read an argument
        it is freed when they are done.

    Returns
    -------
    Callable
        The mapped function; every leaf of its result has the ensemble as axis 0. Its attribute ``chunk_for`` takes the same
        arguments, compiles for them, and returns the chunk that is used for them outside a trace.

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
    def spread(at: Layout, batch: int, donated: list[Any], kept: list[Any]) -> Any:
        return _spread(alone, at, len(at.devices), batch, at.joined(donated, kept))

    @functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
    def part(at: Layout, batch: int, most: int, donated: list[Any], kept: list[Any], first: Any, rounds: Any) -> Any:
        return _part(alone, at, batch, most, at.joined(donated, kept), first, rounds)

    def parts(plan: _Plan, leaves: list[Any], rounds: int | None = None) -> list[Any]:
        """The results of every thread's chunks, of which each computes the first ``rounds``, all when None."""
        total = math.ceil(plan.at.size / plan.batch)
        most = math.ceil(total / plan.threads)
        shapes = plan.at, plan.batch, most
        arrays = plan.at.parted(leaves)

        def counts(first: int) -> tuple[np.int32, np.int32]:
            return np.int32(first), np.int32(min(total - first, most if rounds is None else rounds))

        if most == total:
            return [part(*shapes, *arrays, *counts(0))]
        # Arrays and program are made here, where those settings of JAX hold that the caller made for his thread alone.
        arrays = jax.tree.map(jnp.asarray, arrays)
        traced = part.trace(*shapes, *arrays, *counts(0))
        where = _tied(jax.tree.leaves(arrays)) or _setting("jax_default_device")
        key = traced.jaxpr, where  # the jaxpr is the same object for the same shapes and settings
        if key not in programs:
            programs[key] = traced.lower().compile()

        def compute(first: int) -> Any:
            return jax.block_until_ready(programs[key](*arrays, *counts(first)))

        firsts = range(most, total, most)
        with ThreadPoolExecutor(plan.threads) as pool:
            try:
                others = [pool.submit(compute, first) for first in firsts]
            except RuntimeError:  # the main thread has ended: no thread can be started any more
                return [compute(first) for first in (0, *firsts)]
            return [compute(0), *(other.result() for other in others)]

    programs: dict[Any, jax.stages.Compiled] = {}
    plans: dict[Any, _Plan | None] = {}

    def plan_for(at: Layout, leaves: list[Any]) -> _Plan | None:
        """Where and how it is computed, for these shapes; None if the function holds tracers."""
        in_place = devices is None and len(_tied(leaves)) <= 1
        signature = at, in_place, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if signature not in plans:
            jaxpr = jaxpr_of_one(at, leaves)
            if any(isinstance(constant, jax.core.Tracer) for constant in jaxpr.consts):
                return None
            useful = _useful(at, leaves, jaxpr.out_avals)
            if _by_threads(at.devices[0]):
                threads = _cpu_threads() if devices is None else len(devices)
                waits = decomposes(jaxpr) and _threads_of_xla() < 2 * threads
                threads = 1 if waits or is_brief(jaxpr, at.size) else min(threads, at.size)
                at = at._replace(devices=() if in_place else at.devices[:1])
                plans[signature] = on_cpu(at, leaves, jaxpr, threads, useful)
            else:
                at = at._replace(donated=useful)
                plans[signature] = _Plan(at, on_devices(at, leaves, jaxpr))
        return plans[signature]

    def on_cpu(at: Layout, leaves: list[Any], jaxpr: Any, threads: int, useful: tuple[bool, ...]) -> _Plan:
        nothing = (False,) * len(useful)  # what several threads read cannot become the result of one of them
        plan = _Plan(at._replace(donated=useful if threads == 1 else nothing), 1, threads, useful)
        if chunk != "auto":
            return plan._replace(batch=min(at.size, int(chunk)))
        share = math.ceil(at.size / threads)

        def run(batch: int, rounds: int) -> None:
            tried(plan._replace(batch=batch), leaves, rounds)

        return plan._replace(batch=tuned_chunk(run, share, guessed_chunk(jaxpr, share, "cpu")))

    def tried(plan: _Plan, leaves: list[Any], rounds: int) -> None:
        """Compute so many chunks in every thread, none to compile only; nothing of the caller's is used up."""
        kept = [jnp.copy(leaf) if donated else leaf for leaf, donated in zip(leaves, plan.at.donated, strict=True)]
        jax.block_until_ready(parts(plan, plan.at.place(kept), rounds))

    def compiled(at: Layout, batch: int, leaves: list[Any]) -> jax.stages.Compiled:
        return spread.lower(at, batch, *at.parted(at.place(leaves))).compile()

    def on_devices(at: Layout, leaves: list[Any], jaxpr: Any) -> int:
        if chunk != "auto":
            return min(at.size, int(chunk))
        device, share = at.devices[0], math.ceil(at.size / len(at.devices))
        if jax.process_count() > 1:  # all processes must come to the same
            return guessed_chunk(jaxpr, share, "cpu") if device.platform == "cpu" else share

        return chunk_that_fits(lambda batch: compiled(at, batch, leaves), share, free_bytes(device))

    def outside(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call stands by itself: nothing is being traced or sharded around it, and there is work."""
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs)))
        return not traced and not is_tracing() and not _sharded_already()

    @functools.wraps(fn)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if any(map(_setting, _DEBUGGING)):
            return jax.vmap(fn, in_axes)(*args, **kwargs)
        if not outside(args, kwargs):
            return within(*args, **kwargs)
        at, leaves = arranged(args, kwargs), jax.tree.leaves((args, kwargs))
        plan = plan_for(at, leaves) if at.size else None
        if plan is None:
            return within(*args, **kwargs)
        placed = plan.at.place(leaves)
        if not plan.threads:
            return spread(plan.at, plan.batch, *plan.at.parted(placed))
        computed = parts(plan, placed)
        for leaf, freed in zip(placed, plan.freed, strict=True):
            if freed and isinstance(leaf, jax.Array):
                leaf.delete()
        return computed[0] if len(computed) == 1 else _end_to_end(computed, at.size)

    def chunk_for(*args: Any, **kwargs: Any) -> int:
        leaves = jax.tree.leaves((args, kwargs))
        plan = plan_for(arranged(args, kwargs), leaves) if outside(args, kwargs) else None
        if plan is None:
            msg = "chunk_for: called under a trace, where shapes decide; call it with arrays, outside."
            raise ValueError(msg)
        if plan.threads:
            tried(plan, leaves, 0)
        else:
            compiled(plan.at, plan.batch, leaves)
        return plan.batch

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
    cores = _cores()
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


class _Plan(NamedTuple):
    """How a call is computed: chunks of ``batch`` networks, on every device, or by threads on the one CPU device.

    ``at`` says what the compiled program may overwrite, ``freed`` what nobody needs after the threads are done.
    """

    at: Layout
    batch: int
    threads: int = 0
    freed: tuple[bool, ...] = ()


def _tied(leaves: list[Any]) -> frozenset[jax.Device]:
    """The devices that arrays are committed to."""
    return frozenset(device for leaf in leaves if getattr(leaf, "committed", False) for device in leaf.devices())


def at_once() -> int:
    """How many chunks :func:`parallel` computes at the same time: one on each device, on each core of a CPU."""
    return _cpu_threads() if _by_threads(jax.devices()[0]) else len(jax.devices())


def _by_threads(device: jax.Device) -> bool:
    """Whether threads share one device, as CPUs have one memory; elsewhere each device has its own part of the arrays."""
    return device.platform == "cpu" and jax.process_count() == 1


def _cpu_threads() -> int:
    """As many as there are CPU devices; where nobody chose their number, as many as cores."""
    started = jax.local_device_count("cpu")
    return started if started > 1 or _setting("jax_num_cpu_devices") > 0 else _cores()


def _threads_of_xla() -> int:
    """In its pool, from which the threads that compute take more while they wait."""
    asked = os.environ.get("NPROC", "")
    return int(asked) if asked.isdecimal() else _cores()


def _setting(name: str) -> Any:
    """A setting of JAX as it is in this thread."""
    return getattr(jax.config, name)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spread(fn: Callable[..., Any], at: Layout, shards: int, batch: int, leaves: list[Any]) -> Any:
    """Pad the ensemble to whole chunks on every device, compute them, cut the padding off."""
    one = at.alone(fn)
    mapped, shared = at.split(leaves)
    share = math.ceil(at.size / (batch * shards)) * batch
    padding = share * shards - at.size
    if padding:
        copies = jnp.zeros(padding, int)
        mapped = [jnp.concatenate([leaf, jax.lax.stop_gradient(leaf[copies])]) for leaf in mapped]

    def block(mapped: list[Any], shared: list[Any]) -> Any:
        chunks = [leaf.reshape(share // batch, batch, *leaf.shape[1:]) for leaf in mapped]
        results = jax.lax.map(jax.vmap(lambda mapped: one(mapped, shared)), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(share, *leaf.shape[2:]), results)

    if shards > 1:
        block = jax.shard_map(
            block,
            mesh=at.mesh,
            in_specs=(PartitionSpec(NETWORKS), PartitionSpec()),
            out_specs=PartitionSpec(NETWORKS),
            check_vma=False,
        )
    result = block(mapped, shared)
    return jax.tree.map(lambda leaf: leaf[: at.size], result) if padding else result


def _part(fn: Callable[..., Any], at: Layout, batch: int, most: int, leaves: list[Any], first: Any, rounds: Any) -> Any:
    """Some chunks of the ensemble, from the ``first`` on, one after the other; the last network fills up the last of them.

    How many is not known when it is compiled, at most ``most``: one program serves all threads, and no loop of a single round is
    taken apart. With the barriers around a chunk, it is compiled the same whatever is computed beside it.
    """
    one = at.alone(fn)

    def chunk(index: Any) -> Any:
        mapped, shared = jax.lax.optimization_barrier(at.split(at.rows(leaves, (first + index) * batch, batch)))
        return jax.lax.optimization_barrier(jax.vmap(lambda mapped: one(mapped, shared))(mapped))

    def body(index: Any, results: Any) -> Any:
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * batch, axis=0)
        return jax.tree.map(put, results, chunk(index))

    shapes = jax.eval_shape(chunk, first)
    empty = jax.tree.map(lambda leaf: jnp.zeros((most * batch, *leaf.shape[1:]), leaf.dtype), shapes)
    result = jax.lax.fori_loop(0, rounds, body, empty)
    return jax.tree.map(lambda leaf: leaf[: at.size], result)


def _useful(at: Layout, leaves: list[Any], results: Sequence[Any]) -> tuple[bool, ...]:
    """Which donated leaves have a result of the same shape and type that can take their memory."""
    room = collections.Counter(((at.size, *aval.shape), aval.dtype) for aval in results)

    def taken(leaf: Any) -> bool:
        kind = (jnp.shape(leaf), jnp.result_type(leaf))
        room[kind] -= 1
        return room[kind] >= 0

    return tuple(donated and taken(leaf) for donated, leaf in zip(at.donated, leaves, strict=True))
