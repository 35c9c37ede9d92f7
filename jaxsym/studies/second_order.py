"""What happens to the graph when it is differentiated twice, and how long does it take? Gradient, products and full Hessian of a hidden layer."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

from jaxsym.curvature import ggn_vp, hessian, hvp
from jaxsym.studies.second_order_page import page
from jaxsym.studies.study import Clock, Progress, Study, expect, run_counts
from jaxsym.symmetry.trace import trace

INPUTS, OUTPUTS, DECAY = 20, 10, 1e-3
WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TASKS = ("prediction", "loss", "gradient", "hvp", "ggn_vp", "hessian")
GRAPHS = ("loss", "gradient", "hvp", "third")
KRYLOV = 60  # products of a Krylov method, that a full Hessian is compared with
BRIEF = 0.01  # seconds; what is faster is repeated within a measurement


class Layers(NamedTuple):
    """One hidden layer: ``h = tanh(x A + b)``, ``o = h B + c``."""

    a: Float[Array, "n h"]
    b: Float[Array, " h"]
    B: Float[Array, "h m"]
    c: Float[Array, " m"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; inputs and outputs stay 20 and 10."""

    rows: int = 256
    """Rows of the batch."""
    largest_width: int = 1024
    """Hidden units, at most; powers of 2 from 2 on."""
    largest_dense: int = 64
    """Hidden units up to which the full Hessian is computed."""
    repeats: int = 11
    """Measurements of each time, taken in turns; the median counts."""
    seed: int = 0
    """Of parameters and data."""

    def __post_init__(self) -> None:
        """Refuse sizes that show nothing."""
        expect(self, rows=1, largest_width=16, largest_dense=16, repeats=1)


def outputs(params: Layers, x: Float[Array, "N n"]) -> Float[Array, "N m"]:
    """The network."""
    return jnp.tanh(x @ params.a + params.b) @ params.B + params.c


def loss_of_outputs(out: Float[Array, "N m"], labels: Int[Array, " N"]) -> Float[Array, ""]:
    """Softmax cross-entropy, a mean over rows."""
    return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()


def objective(params: Layers, x: Float[Array, "N n"], labels: Int[Array, " N"]) -> Float[Array, ""]:
    """The loss, and weight decay on both kernels."""
    decay = DECAY / 2 * (jnp.sum(params.a**2) + jnp.sum(params.B**2))
    return loss_of_outputs(outputs(params, x), labels) + decay


def backpropagation(params: Layers, x: Float[Array, "N n"], labels: Int[Array, " N"]) -> Layers:
    """The gradient of :func:`objective`, derived by hand.

    From the loss back: ``do = (softmax(o) - y) / N``; ``dB = h' do + decay B``, ``dc = 1' do``; ``dh = do B'``; ``dz = dh * (1 - h^2)``;
    ``dA = x' dz + decay A``, ``db = 1' dz``.

    Notes
    -----
    *Source*: Zhang, Lipton, Li, Smola, Dive into Deep Learning, section 5.3 (arXiv:2106.11342), with biases.
    """
    hidden = jnp.tanh(x @ params.a + params.b)
    out = hidden @ params.B + params.c
    exponentials = jnp.exp(out - out.max(axis=1, keepdims=True))
    right = labels[:, None] == jnp.arange(out.shape[1])
    d_out = (exponentials / exponentials.sum(axis=1, keepdims=True) - right) / len(x)
    d_hidden = d_out @ params.B.T
    d_before = d_hidden * (1 - hidden**2)
    return Layers(
        x.T @ d_before + DECAY * params.a,
        d_before.sum(axis=0),
        hidden.T @ d_out + DECAY * params.B,
        d_out.sum(axis=0),
    )


def footprint(width: int, rows: int) -> dict[str, int]:
    """Numbers that have to be kept, for prediction and for training by gradient descent; in bytes of float32.

    Prediction: parameters, inputs, hidden activations and outputs. Training: parameters and their gradients, inputs and labels, activations and
    outputs, which the way back needs, and the gradients of both.
    """
    parameters = (INPUTS + 1) * width + (width + 1) * OUTPUTS
    values = rows * (width + OUTPUTS)
    return {
        "prediction": 4 * (parameters + rows * INPUTS + values),
        "training": 4 * (2 * parameters + rows * (INPUTS + 1) + 2 * values),
    }


def problem(seed: int, width: int, rows: int) -> tuple[Layers, Array, Array, Layers]:
    """Parameters, inputs, labels, and a direction."""
    shapes = ((INPUTS, width), (width,), (width, OUTPUTS), (OUTPUTS,))
    keys = jax.random.split(jax.random.key(seed), 10)
    scales = (INPUTS**-0.5, 0.1, width**-0.5, 0.1)
    params = Layers(*(s * jax.random.normal(k, shape) for s, k, shape in zip(scales, keys[:4], shapes, strict=True)))
    direction = Layers(*(jax.random.normal(k, shape) for k, shape in zip(keys[4:8], shapes, strict=True)))
    x = jax.random.normal(keys[8], (rows, INPUTS))
    return params, x, jax.random.randint(keys[9], (rows,), 0, OUTPUTS), direction


def task(name: str) -> Callable[..., Any]:
    """A function of parameters, inputs, labels and a direction."""

    def curved(params: Layers, x: Array, labels: Array, v: Layers) -> Any:
        def loss(params: Layers) -> Float[Array, ""]:
            return objective(params, x, labels)

        if name == "prediction":
            return outputs(params, x)
        if name == "loss":
            return loss(params)
        if name == "gradient":
            return jax.grad(loss)(params)
        if name == "hvp":
            return hvp(loss, params, v)
        if name == "ggn_vp":
            return ggn_vp(lambda params: outputs(params, x), lambda out: loss_of_outputs(out, labels), params, v)
        if name == "hessian":
            return hessian(loss, params)
        return hvp(lambda params: optax.tree.vdot(hvp(loss, params, v), v), params, v)  # "third"

    return curved


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Compile, measure in turns, and count; see the attributes of the variables for what they hold."""
    widths = [width for width in WIDTHS if width <= config.largest_width]
    clock = Clock(progress, len(widths) * config.repeats)
    seconds = np.full((len(TASKS), len(widths)), np.nan)
    memory = np.full((len(TASKS), len(widths)), np.nan)
    error = []
    for i, width in enumerate(widths):
        given = problem(config.seed, width, config.rows)
        names = [name for name in TASKS if name != "hessian" or width <= config.largest_dense]
        progress(f"{width} hidden units: compiling", clock.net_steps, clock.total)
        start = time.perf_counter()
        with jax.default_matmul_precision("highest"):
            programs = {name: jax.jit(task(name)).lower(*given).compile() for name in names}
        clock.compile_seconds += time.perf_counter() - start
        start = time.perf_counter()
        found = _timed(programs, given, config.repeats)
        for name, (time_of, bytes_of) in found.items():
            seconds[TASKS.index(name), i], memory[TASKS.index(name), i] = time_of, bytes_of
        clock.run_seconds += time.perf_counter() - start
        clock.net_steps += config.repeats
        error.append(_difference(config.seed, width, config.rows))
        progress(f"{width} hidden units", clock.net_steps, clock.total)
    clock.networks = len(widths)
    graphs = {name: graph(name) for name in GRAPHS}
    return _dataset(config, widths, seconds, memory, error, graphs).assign(clock.variables())


def _timed(programs: dict[str, Any], given: tuple[Any, ...], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds, in turns, and bytes of arguments, results and what lies between."""
    each: dict[str, list[float]] = {name: [] for name in programs}

    def once(name: str, number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            jax.block_until_ready(programs[name](*given))
        return (time.perf_counter() - start) / number

    number = {name: max(1, int(BRIEF / max(once(name, 1), once(name, 1)))) for name in programs}
    for _ in range(repeats):
        for name in programs:
            each[name].append(once(name, number[name]))
    bytes_of = {}
    for name, program in programs.items():
        sizes = program.memory_analysis()
        bytes_of[name] = (
            float(sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes)
            if sizes
            else np.nan
        )
    return {name: (statistics.median(times), bytes_of[name]) for name, times in each.items()}


def _difference(seed: int, width: int, rows: int) -> float:
    """Between the derivation by hand and ``jax.grad``, in float64, relative to the largest entry."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, x, labels, _ = problem(seed, width, rows)
        params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x))
        automatic = jax.tree.leaves(jax.jit(jax.grad(objective))(params, x, labels))
        by_hand = jax.tree.leaves(jax.jit(backpropagation)(params, x, labels))
        largest = max(float(jnp.abs(leaf).max()) for leaf in automatic)
        return max(float(jnp.abs(a - b).max()) for a, b in zip(automatic, by_hand, strict=True)) / largest


class Graph(NamedTuple):
    """Equations of a jaxpr, sub-jaxprs inlined: their primitives, how deep each is, and who reads whom, ``[edges, 2]``."""

    primitives: list[str]
    depth: Int[np.ndarray, " equations"]
    edges: Int[np.ndarray, "edges 2"]


def graph(name: str) -> Graph:
    """Of a task, for 4 hidden units and 8 rows: the numbers of equations do not depend on sizes."""
    params, x, labels, v = problem(0, 4, 8)
    program = trace(lambda params, x, v: task(name)(params, x, labels, v), params, x, v)
    writer = {id(value): i for i, equation in enumerate(program.equations) for value in equation.outputs}
    depth = np.zeros(len(program.equations), int)
    edges = []
    for i, equation in enumerate(program.equations):
        read = sorted({writer[id(value)] for value in equation.inputs if id(value) in writer})
        edges += [(before, i) for before in read]
        depth[i] = max((depth[before] + 1 for before in read), default=0)
    primitives = [equation.primitive for equation in program.equations]
    return Graph(primitives, depth, np.array(edges, int).reshape(-1, 2))


def _dataset(
    config: Config,
    widths: list[int],
    seconds: np.ndarray,
    memory: np.ndarray,
    error: list[float],
    graphs: dict[str, Graph],
) -> xr.Dataset:
    formulas = [footprint(width, config.rows) for width in widths]
    variables: dict[str, Any] = {
        "seconds": (("task", "width"), seconds, "median over repeats; NaN where it is not computed"),
        "bytes": (("task", "width"), memory, "arguments, results and temporary memory of the compiled program"),
        "parameters": (
            ("width",),
            [(INPUTS + 1) * width + (width + 1) * OUTPUTS for width in widths],
            "number of parameters",
        ),
        "formula_prediction": (
            ("width",),
            [each["prediction"] for each in formulas],
            "bytes that prediction has to keep",
        ),
        "formula_training": (("width",), [each["training"] for each in formulas], "bytes that training has to keep"),
        "backpropagation_error": (
            ("width",),
            error,
            "derivation by hand against jax.grad, relative to the largest entry",
        ),
        "equations": (
            ("graph",),
            [len(each.primitives) for each in graphs.values()],
            "equations of the jaxpr, inlined",
        ),
        "depth": (("graph",), [int(each.depth.max()) + 1 for each in graphs.values()], "longest chain of equations"),
        "edges": (
            ("graph",),
            [len(each.edges) for each in graphs.values()],
            "values that one equation reads of another",
        ),
    }
    for name, each in graphs.items():
        if name in ("loss", "gradient", "hvp"):
            variables[f"{name}_primitive"] = ((f"{name}_equation",), each.primitives, "of each equation")
            variables[f"{name}_depth"] = ((f"{name}_equation",), each.depth, "longest chain that leads to the equation")
            variables[f"{name}_edges"] = ((f"{name}_edge", "end"), each.edges, "an equation and one that reads it")
    arrays = {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}
    return xr.Dataset(arrays, coords={"task": list(TASKS), "width": widths, "graph": list(GRAPHS)})


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    seconds = {name: data["seconds"].sel(task=name).values for name in TASKS}
    size = data["parameters"].values
    dense = np.isfinite(seconds["hessian"])
    upper = dense & (size >= np.median(size[dense]))
    exponents = {
        name: float(np.polyfit(np.log(size[upper]), np.log(seconds[name][upper]), 1)[0]) for name in ("hessian", "hvp")
    }
    products = seconds["hessian"][dense] / seconds["hvp"][dense]
    slope, offset = np.polyfit(np.log(size[dense]), np.log(products), 1)
    crossover = float(np.exp((np.log(KRYLOV) - offset) / slope)) if slope > 0 else None
    memory = {name: data["bytes"].sel(task=name).values for name in TASKS}
    ratios = seconds["hvp"] / seconds["gradient"]
    return {
        "hvp_over_gradient": float(np.median(ratios)),
        "ggn_over_gradient": float(np.median(seconds["ggn_vp"] / seconds["gradient"])),
        "gradient_over_loss": float(np.median(seconds["gradient"] / seconds["loss"])),
        "hessian_exponent": exponents["hessian"],
        "hvp_exponent": exponents["hvp"],
        "hessian_over_hvp": float(products[-1]),
        "crossover_parameters": crossover,
        "memory_formula_ratio": float(np.median(memory["gradient"] / data["formula_training"].values)),
        "memory_formula_ratio_prediction": float(np.median(memory["prediction"] / data["formula_prediction"].values)),
        "backpropagation_error": float(data["backpropagation_error"].max()),
        **{f"equations_{name}": int(data["equations"].sel(graph=name)) for name in GRAPHS},
        "largest_parameters": int(size.max()),
        "largest_dense_parameters": int(size[dense].max()),
        **run_counts(data),
    }


STUDY = Study(
    title="the second derivative: what it costs in time and memory, and what it does to the graph",
    config=Config(),
    quick=Config(rows=64, largest_width=64, largest_dense=16, repeats=3),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
