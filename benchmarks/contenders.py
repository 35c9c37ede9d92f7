"""What ``ensemble.py`` has computed, and who computes it with JAX: ours, ``jit(vmap)``, and a loop over networks and jitted steps.

Every network is an MLP with one hidden layer of tanh and a softmax cross-entropy; the networks share the data and differ in where they
start. All contenders are given the same numbers and return the same: the loss of each network after its steps, or its product of Hessian
and vector.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

KINDS = {
    "sgd": "full-batch SGD",
    "adam": "full-batch Adam",
    "hvp": "Hessian-vector product, forward over reverse",
}
RATES = {"sgd": 0.1, "adam": 0.01}
OURS, PLAIN, BY_HAND, STEPS = "js.parallel", "jit(vmap)", "jit(vmap) by hand", "JAX one by one"
FUNC, MODULES = "torch.func.vmap", "torch one by one"
ALONE = 16  # so many networks are enough for those who take them one by one
TOLERANCE = 1e-3


class Shape(NamedTuple):
    """Sizes of the layers, rows of the data, how many networks, and how many steps."""

    inputs: int
    hidden: int
    outputs: int
    batch: int
    networks: int
    steps: int

    def __str__(self) -> str:
        return f"{self.inputs}-{self.hidden}-{self.outputs}"


SHAPES = {
    str(shape): shape
    for shape in (
        Shape(8, 4, 2, 64, 256, 200),
        Shape(8, 32, 2, 256, 256, 100),
        Shape(64, 32, 10, 256, 256, 50),
        Shape(784, 128, 10, 256, 64, 10),
    )
}


class Task(NamedTuple):
    kind: str  # of KINDS
    shape: Shape


class Contender(NamedTuple):
    """``run()`` does all the work and waits for it; ``values(run())`` are the results ``[networks, *]`` to compare."""

    run: Callable[[], Any]
    values: Callable[[Any], np.ndarray]
    networks: int  # how many it takes, from the first on
    tune: Callable[[], str] | None = None  # settles what is left open, and says how


class Problem(NamedTuple):
    """``starts`` and ``directions``: the weights and biases of both layers, with the networks in front."""

    x: np.ndarray
    labels: np.ndarray
    starts: tuple[np.ndarray, ...]
    directions: tuple[np.ndarray, ...]


def problem(shape: Shape) -> Problem:
    """Inputs, the classes that a random linear teacher gives them, and a start and a direction for every network."""
    import jax

    layers = ((shape.inputs, shape.hidden), (shape.hidden,), (shape.hidden, shape.outputs), (shape.outputs,))
    scales = (shape.inputs**-0.5, 0.1, shape.hidden**-0.5, 0.1)
    sizes = [(shape.batch, shape.inputs), (shape.inputs, shape.outputs), *((shape.networks, *d) for d in layers * 2)]
    ends = np.cumsum([math.prod(size) for size in sizes])
    drawn = np.array(jax.random.normal(jax.random.key(0), (int(ends[-1]),)))  # all at once: each shape is a compilation
    x, teacher, *leaves = (part.reshape(size) for part, size in zip(np.split(drawn, ends[:-1]), sizes, strict=True))
    starts = tuple(np.float32(scale) * leaf for scale, leaf in zip(scales, leaves[:4], strict=True))
    return Problem(x, (x @ teacher).argmax(axis=1), starts, tuple(leaves[4:]))


def flops(task: Task) -> float:
    """Additions and multiplications in the matrix products that the whole task needs; nothing else is counted."""
    shape = task.shape
    first, second = (2 * shape.batch * a * b for a, b in ((shape.inputs, shape.hidden), (shape.hidden, shape.outputs)))
    if task.kind == "hvp":  # outputs, hidden errors, their tangents (products: two each), tangents of both gradients
        return shape.networks * (3 * first + 8 * second)
    step = 2 * first + 3 * second  # the inputs need no gradient
    return shape.networks * (shape.steps * step + first + second)  # the loss at the end


def agree(values: dict[str, np.ndarray]) -> float:
    """The largest relative difference between contenders, over the networks that all of them took.

    Raises
    ------
    RuntimeError
        If it is above ``TOLERANCE``, or a result is not finite.
    """
    common = min(map(len, values.values()))
    stacked = np.stack([value[:common].reshape(common, -1).astype(float) for value in values.values()])
    for name, value in zip(values, stacked, strict=True):
        if not np.isfinite(value).all():
            msg = f"results of {name!r} are not all finite, so that nothing can be compared."
            raise RuntimeError(msg)
    scale = np.maximum(abs(stacked).max((0, 2)), np.finfo(np.float32).tiny)
    worst = float((np.ptp(stacked, axis=0).max(1) / scale).max())
    if worst > TOLERANCE:
        apart = (abs(stacked - np.median(stacked, axis=0)).max(2) / scale).max(1)
        msg = (
            f"results differ by {worst:.1e} (relative), expected at most {TOLERANCE:.0e};"
            f" {list(values)[int(apart.argmax())]!r} is the furthest off."
        )
        raise RuntimeError(msg)
    return worst


def loss(params: Any, batch: Any) -> Any:
    import jax
    import optax

    (weights, biases, readout, offsets), (x, labels) = params, batch
    outputs = jax.numpy.tanh(x @ weights + biases) @ readout + offsets
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def optimizer(kind: str) -> Any:
    import optax

    return {"sgd": optax.sgd, "adam": optax.adam}[kind](RATES[kind])


def program(task: Task) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """A pure function of one network, and the arguments of all of them: ``make_train``, or the product."""
    import jax

    import jaxsym as js

    given = problem(task.shape)
    batch = (given.x, given.labels)
    if task.kind == "hvp":
        function = functools.partial(hessian_vector, batch=tuple(map(jax.numpy.asarray, batch)))
        return function, jax.tree.map(jax.numpy.asarray, (given.starts, given.directions)), {}
    train = js.make_train(
        lambda key, start: start,
        lambda params, batch, key: loss(params, batch),
        optimizer(task.kind),
        batch,
        steps=task.shape.steps,
        record_every=task.shape.steps,
    )
    keys = jax.random.split(jax.random.key(1), task.shape.networks)
    return train, (keys,), {"start": jax.tree.map(jax.numpy.asarray, given.starts)}


def hessian_vector(params: Any, direction: Any, batch: Any) -> Any:
    import jax

    return jax.jvp(lambda params: jax.grad(loss)(params, batch), (params,), (direction,))[1]


def by_hand(task: Task) -> tuple[Callable[[Any], Any], Any]:
    """The training as one writes it without this library, and its argument for all networks."""
    import jax
    import optax

    given, rule = problem(task.shape), optimizer(task.kind)
    batch = (jax.numpy.asarray(given.x), jax.numpy.asarray(given.labels))

    def train(start: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = rule.update(jax.grad(loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, rule.init(start)), length=task.shape.steps)
        return params, loss(params, batch)

    return train, jax.tree.map(jax.numpy.asarray, given.starts)


def one_by_one(task: Task) -> Contender:
    """A Python loop over networks and, in each, over jitted steps."""
    import jax
    import optax

    given, networks = problem(task.shape), min(ALONE, task.shape.networks)
    batch = (jax.numpy.asarray(given.x), jax.numpy.asarray(given.labels))
    starts, directions = (
        [tuple(jax.numpy.asarray(leaf[i]) for leaf in leaves) for i in range(networks)]
        for leaves in (given.starts, given.directions)
    )
    if task.kind == "hvp":
        product = jax.jit(hessian_vector)

        def products() -> Any:
            pairs = zip(starts, directions, strict=True)
            return jax.block_until_ready([product(start, direction, batch) for start, direction in pairs])

        return Contender(products, lambda result: np.stack([flat(tree, 0) for tree in result]), networks)
    rule, evaluate = optimizer(task.kind), jax.jit(loss)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = rule.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    def train() -> Any:
        losses, trained = [], []
        for params in starts:
            state = rule.init(params)
            for _ in range(task.shape.steps):
                params, state = step(params, state, batch)
            trained.append(params)
            losses.append(evaluate(params, batch))
        return jax.block_until_ready((trained, losses))

    return Contender(train, lambda result: np.stack(result[1])[:, None], networks)


def flat(leaves: Any, axes: int) -> np.ndarray:
    """Leaves in one row, the first ``axes`` axes kept."""
    rows = [np.asarray(leaf) for leaf in leaves]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in rows], axis=axes)


def mapped(task: Task, transform: Callable[..., Any]) -> Contender:
    """The program of this task for all networks, by ``parallel`` or by ``jit(vmap)``."""
    import jax

    function, args, kwargs = program(task)
    run = transform(function)

    def values(result: Any) -> np.ndarray:
        return flat(result, 1) if task.kind == "hvp" else np.asarray(result.history["loss"])[:, -1:]

    choose = getattr(run, "chunk_for", None)
    tune = choose and (lambda: f"chunk {choose(*args, **kwargs)}")
    return Contender(lambda: jax.block_until_ready(run(*args, **kwargs)), values, task.shape.networks, tune)


def scan_by_hand(task: Task) -> Contender:
    import jax

    train, starts = by_hand(task)
    run = jax.jit(jax.vmap(train))
    return Contender(
        lambda: jax.block_until_ready(run(starts)), lambda result: np.asarray(result[1])[:, None], task.shape.networks
    )


def ours(task: Task) -> dict[str, Callable[[], Contender]]:
    import jaxsym as js

    return {OURS: lambda: mapped(task, js.parallel)}


def jax_peers(task: Task) -> dict[str, Callable[[], Contender]]:
    import jax

    hand = {} if task.kind == "hvp" else {BY_HAND: lambda: scan_by_hand(task)}
    return {
        PLAIN: lambda: mapped(task, lambda function: jax.jit(jax.vmap(function))),
        **hand,
        STEPS: lambda: one_by_one(task),
    }
