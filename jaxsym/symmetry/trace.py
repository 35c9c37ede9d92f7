"""A function as one flat list of equations: the jaxpr with every sub-jaxpr inlined.

Loops are unrolled in meaning, not in length: the body of a ``scan`` is inlined once, its carries are tied (``tie``), and what it scans over
enters by ``scan_in`` and leaves by ``scan_out``. A value inside a loop knows it by :attr:`Value.loops`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxsym import tree

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "core_closed_call",
    "named_call",
    "remat",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)
"""Primitives, by the beginning of their name, that call a sub-jaxpr with their operands."""


def _stack(*arrays: Any, axis: int) -> Any:
    return jax.lax.concatenate([jax.lax.expand_dims(array, (axis,)) for array in arrays], axis)


def _unstack(array: Any, *, axis: int) -> list[Any]:
    return [jax.lax.index_in_dim(array, i, axis, keepdims=False) for i in range(array.shape[axis])]


def _tile(array: Any, *, reps: tuple[int, ...]) -> Any:
    pairs = [size for pair in zip(reps, array.shape, strict=True) for size in pair]
    apart = jax.lax.broadcast_in_dim(array, pairs, range(1, len(pairs), 2))
    return jax.lax.reshape(apart, [n * size for n, size in zip(reps, array.shape, strict=True)])


SPELLED_OUT: dict[str, Callable[..., Any]] = {"stack": _stack, "unstack": _unstack, "tile": _tile}
"""Primitives that newer versions of JAX write for what others do together."""


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the program: a parameter, an input, a constant or the result of an equation."""

    shape: tuple[int, ...]
    dtype: Any
    origin: str  # "parameter", "input", "constant", "equation"
    path: str = ""  # of a parameter
    constant: np.ndarray | None = None
    loops: tuple[int, ...] = ()  # the loops that it lives in


@dataclasses.dataclass(eq=False)
class Equation:
    """One primitive applied to values."""

    primitive: str
    inputs: list[Value]
    outputs: list[Value]
    params: dict[str, Any]
    bind: Callable[..., Any] | None = None
    """Computes the outputs from arrays; None for what only stands for a loop or a branch."""


@dataclasses.dataclass(eq=False)
class Program:
    """All equations in order, and the values at the borders."""

    equations: list[Equation]
    parameters: dict[str, Value]
    inputs: list[Value]
    outputs: list[Value]
    loops: dict[int, int]  # loop -> number of iterations
    whole: list[Equation] = dataclasses.field(default_factory=list)
    """Loops and branches as they are, to be computed; their outputs are values like all others."""

    def still(self) -> dict[Value, str]:
        """Parameters that nothing should move, and why."""
        used = {value for equation in self.equations for value in equation.inputs}.union(self.outputs)
        reasons = {}
        for value in self.parameters.values():
            if 0 in value.shape:
                reasons[value] = "there are no numbers in it"
            elif value not in used:
                reasons[value] = "the function does not depend on it"
            elif not jax.numpy.issubdtype(value.dtype, np.floating):
                reasons[value] = f"a leaf of type {value.dtype} is not moved"
        return reasons


def trace(apply: Callable[..., Any], params: Any, *inputs: Any) -> Program:
    """Trace ``apply(params, *inputs)``; leaves may be arrays or ``jax.ShapeDtypeStruct``.

    In float64, as it is verified, so that no constant is rounded; in the given precision where the function refuses that.
    """
    with jax.enable_x64(True):
        wide = jax.tree.map(_wide, (params, inputs))
        try:
            return _program(jax.make_jaxpr(apply)(wide[0], *wide[1]), params)
        except TypeError:  # carries of a fixed type, for instance
            pass
    return _program(jax.make_jaxpr(apply)(params, *inputs), params)


def _wide(leaf: Any) -> Any:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(np.shape(leaf), "float64") if jax.dtypes.issubdtype(dtype, np.floating) else leaf


def _program(closed: Any, params: Any) -> Program:
    jaxpr, constants = _open(closed)
    program = Program([], {}, [], [], {})
    named = tree.leaves(params)
    environment: dict[Any, Value] = {}
    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        environment[variable] = _constant(constant)
    for variable, path in zip(jaxpr.invars[: len(named)], named, strict=True):
        program.parameters[path] = _value(variable, "parameter", path)
        environment[variable] = program.parameters[path]
    for variable in jaxpr.invars[len(named) :]:
        environment[variable] = _value(variable, "input")
        program.inputs.append(environment[variable])
    program.outputs = _inline(program, jaxpr, environment, ())
    return program


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _open(jaxpr: Any) -> tuple[Jaxpr, list[Any]]:
    """A jaxpr and its constants; before jax 0.12 they come closed in a ``ClosedJaxpr``."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, list(jaxpr.consts)
    return jaxpr, list(getattr(jaxpr, "consts", ()))


def _value(variable: Any, origin: str, path: str = "", loops: tuple[int, ...] = ()) -> Value:
    return Value(variable.aval.shape, variable.aval.dtype, origin, path, loops=loops)


def _constant(value: Any) -> Value:
    shape, dtype = np.shape(value), getattr(value, "dtype", np.asarray(value).dtype)
    known = np.asarray(value) if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else None
    return Value(shape, dtype, "constant", constant=known)


def _inline(program: Program, jaxpr: Jaxpr, environment: dict[Any, Value], loops: tuple[int, ...]) -> list[Value]:
    """Append the equations of a jaxpr; its outputs."""

    def read(variable: Any) -> Value:
        return _constant(variable.val) if isinstance(variable, Literal) else environment[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = [_value(variable, "equation", loops=loops) for variable in equation.outvars]
        name, params = equation.primitive.name, equation.params
        results = outputs
        if name == "scan":
            results = _scan(program, params, inputs, outputs, loops)
        elif name == "cond":
            for branch in params["branches"]:
                for ours, theirs in zip(outputs, _call(program, branch, inputs[1:], loops), strict=True):
                    _append(program, "tie", [ours, theirs], [])
            _append(program, "branch", [inputs[0]], [])
        elif name == "while":
            results = _while(program, params, inputs, loops)
        elif name in SPELLED_OUT:
            plain = jax.make_jaxpr(functools.partial(SPELLED_OUT[name], **params))
            results = _call(program, plain(*(_shape(variable.aval) for variable in equation.invars)), inputs, loops)
        elif (inner := _called(name, params)) is not None:
            results = _call(program, inner, inputs, loops)
        else:
            _append(program, name, inputs, outputs, params, functools.partial(equation.primitive.bind, **params))
            _fold(program.equations[-1])
        if name in ("scan", "cond", "while"):
            bind = functools.partial(equation.primitive.bind, **params)
            program.whole.append(Equation(name, inputs, results, dict(params), bind))
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _called(name: str, params: dict[str, Any]) -> Any:
    """The one sub-jaxpr of a call; others (of a general reduction, say) work on something else than the operands."""
    if not name.startswith(CALLS):
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if isinstance(params.get(key), ClosedJaxpr | Jaxpr):
            return params[key]
    return None


def _append(
    program: Program,
    name: str,
    inputs: list[Value],
    outputs: list[Value],
    params: Any = None,
    bind: Callable[..., Any] | None = None,
) -> None:
    program.equations.append(Equation(name, inputs, outputs, dict(params or {}), bind))


def _fold(equation: Equation) -> None:
    """A number computed from numbers is a constant, and so is one number filled into a shape."""
    known = [value.constant for value in equation.inputs]
    if len(equation.outputs) != 1:
        return
    (output,) = equation.outputs
    if not known or any(array is None or not array.size for array in known):
        return
    first = np.asarray(known[0])
    if equation.primitive in ("broadcast_in_dim", "reshape") and np.all(first == first.flat[0]):
        output.constant = np.broadcast_to(first.flat[0], output.shape)
    elif any(value.shape for value in equation.inputs):
        return
    elif not output.shape and not jax.dtypes.issubdtype(output.dtype, jax.dtypes.extended) and equation.bind:
        with jax.ensure_compile_time_eval():  # inside of jit, too
            output.constant = np.asarray(equation.bind(*known))
    else:
        return
    output.origin = "constant"


def _call(program: Program, jaxpr: Any, inputs: list[Value], loops: tuple[int, ...]) -> list[Value]:
    inner, constants = _open(jaxpr)
    environment = dict(zip(inner.constvars, map(_constant, constants), strict=True))
    environment.update(zip(inner.invars, inputs, strict=True))
    return _inline(program, inner, environment, loops)


def _enter(program: Program, length: int, loops: tuple[int, ...]) -> tuple[int, ...]:
    number = len(program.loops)
    program.loops[number] = length
    return (*loops, number)


def _scan(
    program: Program, params: dict[str, Any], inputs: list[Value], outputs: list[Value], loops: tuple[int, ...]
) -> list[Value]:
    body, _ = _open(params["jaxpr"])
    num_scanned = sum(len(v.shape) > len(_value(inner, "").shape) for v, inner in zip(inputs, body.invars, strict=True))
    num_carry = sum(
        len(v.shape) == len(_value(inner, "").shape) for v, inner in zip(outputs, body.outvars, strict=True)
    )
    num_consts = (
        len(inputs) - num_carry - num_scanned
    )  # read off the ranks: the names of these numbers differ between versions
    inside = _enter(program, params["length"], loops)
    consts, carries, scanned = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]
    carried = [Value(value.shape, value.dtype, "equation", loops=inside) for value in carries]
    slices = [Value(value.shape[1:], value.dtype, "equation", loops=inside) for value in scanned]
    for start, entered in zip(carries, carried, strict=True):
        _append(program, "tie", [start, entered], [])
    for value, piece in zip(scanned, slices, strict=True):
        _append(program, "scan_in", [value], [piece], {"loop": inside[-1]})
    results = _call(program, params["jaxpr"], [*consts, *carried, *slices], inside)
    for start, entered, left, end in zip(carries, carried, results[:num_carry], outputs[:num_carry], strict=True):
        _append(program, "tie", [start, entered, left, end], [])
    for piece, value in zip(results[num_carry:], outputs[num_carry:], strict=True):
        _append(program, "scan_out", [piece], [value], {"loop": inside[-1]})
    return outputs


def _while(program: Program, params: dict[str, Any], inputs: list[Value], loops: tuple[int, ...]) -> list[Value]:
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    inside = _enter(program, 0, loops)
    carries = inputs[num_test + num_body :]
    carried = [Value(value.shape, value.dtype, "equation", loops=inside) for value in carries]
    for start, entered in zip(carries, carried, strict=True):
        _append(program, "tie", [start, entered], [])
    (again,) = _call(program, params["cond_jaxpr"], [*inputs[:num_test], *carried], inside)
    _append(program, "branch", [again], [])
    results = _call(program, params["body_jaxpr"], [*inputs[num_test:][:num_body], *carried], inside)
    ends = [Value(value.shape, value.dtype, "equation", loops=loops) for value in carries]
    for start, entered, left, end in zip(carries, carried, results, ends, strict=True):
        _append(program, "tie", [start, entered, left, end], [])
    return ends
