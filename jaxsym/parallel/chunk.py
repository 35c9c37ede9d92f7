"""How many networks to compute at once: from shapes, by timing on a CPU, by memory on an accelerator."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from jaxsym.parallel.arguments import ensemble_size

_VALUE_BYTES = {"cpu": 2**14}  # what a chunk's large values may take: half of the first cache of a core
_VALUE_BYTES_ELSEWHERE = 2**26
_LARGEST = {"cpu": 256}
_LARGEST_ELSEWHERE = 4096
_FEWEST = 4  # a CPU takes longer for the products of two or three networks together than for one after the other
_BRIEF_BYTES = 2**26  # read and written by a core in 3 ms or so; to start threads and join their results takes one
_DECOMPOSITIONS = {value.name for value in vars(jax.lax.linalg).values() if isinstance(value, Primitive)}
_UNKNOWN_TRIPS = 10  # of a while loop, whose trips no shape tells
CANDIDATES = (1, 4, 16, 64)
BUDGET = 2.0  # seconds of running, for all candidates together
_SHORT = BUDGET / 20
_zero = jax.jit(lambda: jnp.zeros(()))


def chunk_from_shapes(fn: Callable[..., Any], *args: Any) -> int:
    """A chunk for :func:`parallel` that depends on shapes alone: never on timing, nor on the number of cores or devices.

    Whoever needs the same bits from every run of an ensemble passes it on as the ``chunk``.

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
    >>> import jax
    >>> from jaxsym.parallel import chunk_from_shapes
    >>> chunk_from_shapes(lambda key: jax.random.normal(key, (1000,)), jax.random.split(jax.random.key(0), 100))
    4
    """
    leaves, structure = jax.tree.flatten(args)
    size = ensemble_size((args, {}), [0] * len(leaves))

    def one(mapped: list[Any], shared: list[Any]) -> Any:
        del shared
        return fn(*jax.tree.unflatten(structure, mapped))

    return guessed_chunk(jax.make_jaxpr(one)(one_of(leaves), []), size, jax.default_backend()) if size else 1


def one_of(leaves: list[Any]) -> list[jax.ShapeDtypeStruct]:
    """The shapes of one network's part of leaves ``[N, ...]``, in the types that JAX gives them."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(leaf.shape[1:], dtype, weak_type=getattr(leaf, "weak_type", False))

    return [one(leaf) for leaf in leaves]


def guessed_chunk(jaxpr: Any, share: int, platform: str) -> int:
    """The chunk whose large intermediate values each fill half of the first cache, and no more.

    Parameters
    ----------
    jaxpr
        The closed jaxpr of one network.
    share
        The networks of one device.
    platform
        That of the device.

    Returns
    -------
    int
        At least 1, at most ``share``; chunks of nearly equal size leave the least padding.
    """
    block = _VALUE_BYTES.get(platform, _VALUE_BYTES_ELSEWHERE)
    largest = min(_LARGEST.get(platform, _LARGEST_ELSEWHERE), block // max(1, _large_bytes(jaxpr.jaxpr)))
    if platform == "cpu" and largest < _FEWEST:
        return 1
    return even(max(1, largest), share)


def is_brief(jaxpr: Any, networks: int) -> bool:
    """Whether so many networks take no longer than it takes to share them out over the devices of a CPU, or not much.

    Parameters
    ----------
    jaxpr
        The closed jaxpr of one network; with a ``while`` loop or a callback in it nobody knows how long it takes.
    networks
        How many.
    """
    return networks * _traffic(jaxpr.jaxpr) < _BRIEF_BYTES


def is_tracing() -> bool:
    """Whether this runs inside ``jit`` or another trace, though no argument may be a tracer."""
    return isinstance(_zero(), jax.core.Tracer)


def decomposes(jaxpr: Any) -> bool:
    """Whether matrices are decomposed or solved with, which XLA has done by LAPACK on a CPU."""
    return any(
        equation.primitive.name in _DECOMPOSITIONS or any(decomposes(inner) for inner in _within(equation))
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def even(chunk: int, share: int) -> int:
    """The smallest chunk that needs as few rounds as this one."""
    return math.ceil(share / max(1, math.ceil(share / chunk)))


def tuned_chunk(
    run: Callable[[int, int], Any],
    share: int,
    guess: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The fastest of a few chunks, by timing one chunk of each, where an ensemble is large enough to repay it.

    The guess is timed first, and taken if all of the work with it is less than four times compiling the others. A
    candidate is compiled and timed only while the time that it should take, at most in proportion to the networks in it,
    stays within :data:`BUDGET`. A share of fewer than eight guesses is not tuned: the timing would be a good part of it.

    Parameters
    ----------
    run
        ``run(chunk, rounds)`` computes so many chunks on every device, and waits for them; with 0 rounds it compiles.
    share
        The networks of one device.
    guess
        The chunk to beat.
    clock
        Seconds.

    Returns
    -------
    int
    """
    others = sorted({even(chunk, share) for chunk in CANDIDATES if chunk <= share} - {guess})
    if share < 8 * guess or not others:
        return guess
    spent = 0.0

    def timed(chunk: int, rounds: int) -> float:
        nonlocal spent
        start = clock()
        run(chunk, rounds)
        seconds = clock() - start
        spent += seconds if rounds else 0.0
        return seconds

    def measured(chunk: int) -> float:
        first = timed(chunk, 1)  # warms up; what takes long needs no second look
        return first if first > _SHORT else min(timed(chunk, 1) for _ in range(3))

    def affordable(predicted: float) -> bool:
        return spent + (predicted if predicted > _SHORT else 4 * predicted) <= BUDGET

    def whole(chunk: int) -> float:
        return known[chunk] * math.ceil(share / chunk)

    compiling = timed(guess, 0)
    known = {guess: measured(guess)}
    if whole(guess) < 4 * compiling * len(others):
        return guess
    for chunk in sorted(others, key=lambda chunk: abs(math.log(chunk / guess))):
        nearest = max((c for c in known if c <= chunk), default=min(known))
        predicted = known[nearest] * max(1.0, chunk / nearest)
        if affordable(predicted):
            timed(chunk, 0)
            known[chunk] = measured(chunk)
    if min(known, key=whole) != guess and affordable(known[guess]):  # the machine may have been busy at first
        known[guess] = min(known[guess], measured(guess))
    best = min(known, key=whole)
    return best if whole(best) < 0.9 * whole(guess) else guess  # less than that is noise


def chunk_that_fits(compile_with: Callable[[int], jax.stages.Compiled], share: int, free_bytes: int | None) -> int:
    """The whole share, halved until the compiled program fits into the memory.

    Parameters
    ----------
    compile_with
        Compiles the program for a chunk.
    share
        The networks of one device.
    free_bytes
        What is left on the device beside the arguments; None if it does not tell, and then all is taken to fit.

    Returns
    -------
    int
    """
    chunk = share
    while free_bytes is not None and chunk > 1 and _needed_bytes(compile_with, chunk) > free_bytes:
        chunk = math.ceil(chunk / 2)
    return chunk


def free_bytes(device: jax.Device) -> int | None:
    """The memory that is left on a device, None if it does not tell."""
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def _needed_bytes(compile_with: Callable[[int], jax.stages.Compiled], chunk: int) -> float:
    try:
        memory = compile_with(chunk).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return math.inf
        raise
    if memory is None:
        return 0
    return (
        memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        + memory.generated_code_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _large_bytes(jaxpr: Any) -> int:
    """The size of value from which on up a quarter of all bytes written belong: a weighted quantile, loops counted."""
    values = sorted([*((_bytes(var.aval), 1) for var in jaxpr.invars), *_values(jaxpr, 1)])
    most, passed = 3 * sum(size * times for size, times in values) / 4, 0
    for size, times in values:
        passed += size * times
        if passed >= most:
            return size
    return 0


def _values(jaxpr: Any, times: int) -> Iterator[tuple[int, int]]:
    """The size in bytes of every value that is computed, and how many times."""
    for equation in jaxpr.eqns:
        yield from ((_bytes(var.aval), times) for var in equation.outvars)
        for inner in _within(equation):
            yield from _values(inner, times * int(_trips(equation, _UNKNOWN_TRIPS)))


def _traffic(jaxpr: Any) -> float:
    """The bytes that are read and written, each equation by itself."""
    total = 0.0
    for equation in jaxpr.eqns:
        if "callback" in equation.primitive.name:
            return math.inf
        own = sum(_bytes(var.aval) for var in [*equation.invars, *equation.outvars])
        inside = [_traffic(inner) for inner in _within(equation)]
        total += _trips(equation, math.inf) * sum(inside) if inside else own
    return total


def _trips(equation: Any, unknown: float) -> float:
    return float(equation.params.get("length", unknown if equation.primitive.name == "while" else 1))


def _within(equation: Any) -> Iterator[Any]:
    """The jaxprs of an equation: the body of a loop, the branches of a choice."""
    for parameter in equation.params.values():
        for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def _bytes(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ())) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
