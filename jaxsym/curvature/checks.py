"""What curvature refuses before it computes, in which precision it computes, and what fits into memory."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from jaxsym import tree
from jaxsym.parallel.chunk import free_bytes, is_tracing
from jaxsym.symmetry.checks import expect_finite
from jaxsym.symmetry.precision import equations, narrowed, wide


def checked(loss: Callable[..., Any], params: PyTree, batch: tuple[Any, ...], who: str) -> None:
    """Refuse parameters that are not floating and a loss that is not a scalar; by shapes alone.

    Raises
    ------
    TypeError
        If ``loss`` is not callable or a leaf is not floating.
    ValueError
        If there are no parameters, or the loss is not one real number.
    """
    if not callable(loss):
        msg = f"{who}: loss is of type {type(loss).__name__}, expected a function loss(params)."
        raise TypeError(msg)
    leaves = tree.leaves(params)
    if not sum(map(jnp.size, leaves.values())):
        msg = f"{who}: params has no numbers, expected at least one."
        raise ValueError(msg)
    for path, leaf in leaves.items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            msg = (
                f"{who}: {path or 'params'} has dtype {jnp.result_type(leaf)}, expected a floating one; close over it, or take"
                " the other leaves by js.curvature.block."
            )
            raise TypeError(msg)
        if jnp.result_type(leaf) == jnp.float64 != jnp.result_type(float):
            msg = (
                f"{who}: {path or 'params'} is float64 where JAX computes in float32: do all of it inside of jax.enable_x64(True),"
                " or enable float64 for the whole program at its beginning."
            )
            raise TypeError(msg)
    value = jax.eval_shape(loss, params, *batch)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(value)]
    if len(shapes) != 1 or shapes[0][0] != () or not jnp.issubdtype(shapes[0][1], jnp.floating):
        got = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes) or "nothing"
        msg = f"{who}: the loss is {got}, expected one real number: take a mean or a sum."
        raise ValueError(msg)


def checked_direction(params: PyTree, v: PyTree, who: str, name: str = "v") -> None:
    """Refuse a vector that is not like the parameters.

    Raises
    ------
    ValueError
        Naming the path.
    """
    if list(tree.leaves(params)) != list(tree.leaves(v)):
        msg = (
            f"{who}: {name} has the leaves {', '.join(tree.leaves(v)) or 'none'}, expected those of params:"
            f" {', '.join(tree.leaves(params))}."
        )
        raise ValueError(msg)
    structures: list[Any] = [jax.tree.structure(v), jax.tree.structure(params)]
    if structures[0] != structures[1]:
        msg = f"{who}: {name} is {structures[0]}, expected {structures[1]} as params."
        raise ValueError(msg)
    for (path, leaf), other in zip(tree.leaves(params).items(), jax.tree.leaves(v), strict=True):
        if jnp.shape(leaf) != jnp.shape(other) or jnp.result_type(leaf) != jnp.result_type(other):
            got, want = (f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (other, leaf))
            msg = f"{who}: {f'{path} of ' if path else ''}{name} is {got}, expected {want} as in params."
            raise ValueError(msg)


@contextlib.contextmanager
def forwards(who: str) -> Iterator[None]:
    """Says clearly what has no forward derivative."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        msg = (
            f"{who}: the function calls one with jax.custom_vjp, which has no forward derivative: write its rule by jax.custom_jvp,"
            " or leave it out here."
        )
        raise TypeError(msg) from error


def checked_finite(name: str, value: PyTree, who: str) -> None:
    """Refuse NaN and infinity where there are values to look at.

    Raises
    ------
    ValueError
        Naming the path.
    """
    advice = (
        "look at the loss and its data: an infinite slope (a root, a logarithm or a norm at 0), or numbers too large",
    )
    for path, leaf in tree.leaves(value).items():
        if not isinstance(leaf, jax.core.Tracer):
            expect_finite(f"{who}: {name}{'/' * bool(path)}{path}", leaf, *(() if name == "params" else advice))


def expect_int(who: str, name: str, got: Any, least: int, most: int | None = None, why: str = "") -> None:
    """Refuse what is no int in these bounds.

    Raises
    ------
    ValueError
        With the bounds, and why.
    """
    whole = isinstance(got, int | np.integer) and not isinstance(got, bool)
    if not whole or got < least or (most is not None and got > most):
        bound = f"from {least} to {most}{why}" if most is not None else f"of at least {least}{why}"
        msg = f"{who}: {name}: got {got!r}, expected an int {bound}."
        raise ValueError(msg)


def expect_positive(who: str, name: str, got: Any, what: str, most: float = math.inf) -> None:
    """Refuse what is no number between 0 and ``most``, both excluded.

    Raises
    ------
    ValueError
        Saying what it should be.
    """
    if isinstance(got, bool) or not isinstance(got, int | float | np.number) or not 0 < got < most:
        bound = "more than 0 and finite" if most == math.inf else f"between 0 and {most:g}"
        msg = f"{who}: {name}: got {got!r}, expected {what}, {bound}."
        raise ValueError(msg)


def expect_key(who: str, key: Any) -> None:
    """Refuse what is no key.

    Raises
    ------
    TypeError
        With the type.
    """
    dtype, shape = getattr(key, "dtype", None), jnp.shape(key)
    typed = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not typed and not (dtype == jnp.uint32 and len(shape) == 1):
        got = type(key).__name__ if dtype is None else f"{dtype}{list(shape)}"
        msg = f"{who}: key is {got}, expected one key: jax.random.key(0)."
        raise TypeError(msg)


def traced(fn: Callable[..., Any], wide: PyTree, who: str) -> Any:
    """The jaxpr of a function, where its parameters are in float64 now.

    Raises
    ------
    TypeError
        If it fails with them.
    """
    try:
        return jax.make_jaxpr(fn)(wide)
    except TypeError as error:
        msg = (
            f"{who}: with parameters in float64 the function fails: {str(error).splitlines()[0]} Let it cast what it closes over, as in"
            " x.astype(w.dtype), or close over arrays in float64."
        )
        raise TypeError(msg) from error


def expect_same(jaxpr: Any, fn: Callable[..., Any], params: PyTree, who: str, *, is_wide: bool) -> None:
    """Refuse a function that float64 makes another one, as it draws random numbers, which are others there; ``is_wide`` is whether it was enabled before.

    Raises
    ------
    ValueError
        Saying so.
    """
    if _drawn(jaxpr) and (not is_wide or _drawn(jaxpr) != _drawn(jax.make_jaxpr(fn)(params))):
        msg = (
            f"{who}: the function draws random numbers, which in float64 are others than those of your training; draw them before,"
            " and close over them (or give their dtype), or work inside of jax.enable_x64(True) throughout."
        )
        raise ValueError(msg)


def _drawn(jaxpr: Any) -> list[str]:
    """All random numbers that are wider than 32 bits."""
    return [
        f"{equation.primitive}{equation.outvars[0].aval.shape}"
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("random_bits", "random_gamma") and equation.outvars[0].aval.dtype.itemsize > 4
    ]


def expect_precise(jaxpr: Any, wide: PyTree, who: str) -> None:
    """Refuse a function that computes in less than the precision of its parameters, for then no rank can be told.

    Raises
    ------
    ValueError
        Naming the precision.
    """
    reduced = any(equation.primitive.name == "reduce_precision" for equation in equations(jaxpr.jaxpr))
    coarse = sorted({*narrowed(jaxpr), *(["reduced precision"] if reduced else [])})
    if coarse:
        msg = (
            f"{who}: the function computes in {', '.join(coarse)} somewhere, though its parameters are {jnp.result_type(*jax.tree.leaves(wide))}:"
            " what is zero cannot be told from its rounding. Let it compute in the precision of its parameters (dtype=None in Flax modules,"
            " no astype)."
        )
        raise ValueError(msg)


def rows_of(data: PyTree, batch_size: int | None, who: str) -> int:
    """How many rows there are.

    Raises
    ------
    ValueError
        If the leaves differ in number, there is none, or the batch size is no positive int.
    """
    if batch_size is not None:
        expect_int(who, "batch_size", batch_size, 1, why=", or None for all rows")
    rows = {path or "data": jnp.shape(leaf)[:1] for path, leaf in tree.leaves(data).items()}
    if len(set(rows.values())) != 1 or () in rows.values() or (0,) in rows.values():
        got = ", ".join(f"{path} {list(shape)}" for path, shape in rows.items()) or "no leaves"
        msg = f"{who}: data: got {got}, expected leaves [N, ...] with the same number of rows, at least one; close over what has none."
        raise ValueError(msg)
    return next(iter(rows.values()))[0]


@contextlib.contextmanager
def exact() -> Iterator[Callable[[PyTree], PyTree]]:
    """Float64 and full matrix products; inside ``jit`` full products in the precision of the caller. Yields what widens arrays to it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        if is_tracing():  # where the precision is settled already
            yield lambda value: value
        else:
            stack.enter_context(jax.enable_x64(True))
            yield wide


def lasting(value: PyTree) -> PyTree:
    """Arrays as NumPy's where JAX would compute with them in float32."""
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
    return jax.tree.map(np.asarray, value) if known and jnp.result_type(float) == jnp.float32 else value


def one_by_one(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``fn``, which under ``vmap`` on a CPU takes one after the other.

    Two batches of decompositions at the same time can wait for each other for ever there: each holds a thread of XLA's pool while it waits for
    others. What is differentiated is ``fn`` itself.
    """
    if jax.default_backend() != "cpu":
        return fn

    def called(*args: PyTree) -> PyTree:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)

        def plain(constants: Any, leaves: Any) -> Any:  # with what the function closes over as an argument
            return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(*leaves)

        run = jax.custom_jvp(jax.custom_batching.sequential_vmap(plain))
        run.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
        return jax.tree.unflatten(jax.tree.structure(shape), run(closed.consts, jax.tree.leaves(args)))

    return called


def expect_room(shape: tuple[int, ...], dtype: Any, who: str, instead: str) -> None:
    """Refuse an array that takes more than what is free of the memory.

    Raises
    ------
    ValueError
        With the GiB that it wants and what to call instead.
    """
    wanted, free = math.prod(shape) * np.dtype(dtype).itemsize, _free_bytes()
    if free is not None and wanted > free:
        msg = (
            f"{who}: {' x '.join(map(str, shape))} numbers of {np.dtype(dtype).name} take {wanted / 2**30:.1f} GiB, and"
            f" {free / 2**30:.1f} GiB are free; {instead}."
        )
        raise ValueError(msg)


def _free_bytes() -> int | None:
    """The free memory of the default device, None if nothing tells."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return free_bytes(device)
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
