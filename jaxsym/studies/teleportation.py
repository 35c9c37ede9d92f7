"""Does moving along the orbit make learning faster? Loss against steps and against time, with teleports and without, for several optimizers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.data import Rows, flattened, mnist_5k
from jaxsym.dynamics import teleport, teleporting
from jaxsym.models import MLP
from jaxsym.studies.study import Clock, Progress, Study, chosen, expect, network_keys, run_counts
from jaxsym.studies.teleportation_page import page
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.precision import wide
from jaxsym.training import make_train

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, 0.9),
    "Adam": optax.adam,
}
SEARCH: dict[str, Any] = {"radius": 0.5, "steps": 5, "starts": 1}
"""Of the teleports of networks: a few steps, for each costs several gradients."""
ROWS = 400  # of the regression
RECORDS = 60


class Plane(NamedTuple):
    """A function of two parameters, the sum of squares of two others, which rotations leave as it is."""

    to: Callable[[Array], Array]
    back: Callable[[Array], Array]
    start: tuple[float, float]
    rate: float
    steps: int
    every: int
    last: int

    def loss(self, p: Float[Array, " 2"]) -> Float[Array, ""]:
        """What is made small."""
        return jnp.sum(self.to(p) ** 2)

    def group(self) -> Symmetry:
        """The rotations of the two functions."""

        def act(angle: Array, p: Array) -> Array:
            c, s = jnp.cos(angle[0]), jnp.sin(angle[0])
            return self.back(jnp.array([[c, -s], [s, c]]) @ self.to(p))

        return Symmetry.from_action(act, 1)


PLANES = {
    "booth": Plane(
        lambda p: jnp.array([p[0] + 2 * p[1] - 7, 2 * p[0] + p[1] - 5]),
        lambda w: jnp.array([2 * (w[1] + 5) - (w[0] + 7), 2 * (w[0] + 7) - (w[1] + 5)]) / 3,
        (5.0, -5.0),
        0.08,
        10,
        4,
        4,
    ),
    "rosenbrock": Plane(
        lambda p: jnp.array([10 * (p[0] ** 2 - p[1]), p[0] - 1]),
        lambda w: jnp.array([w[1] + 1, (w[1] + 1) ** 2 - w[0] / 10]),
        (-1.0, -1.0),
        1e-3,
        1000,
        100,
        900,
    ),
}
"""Zhao et al. 2022: starts, rates, and before which updates one teleports."""
WAYS = ("plain", "teleport", "random")


class Task(NamedTuple):
    """A network, what it learns and how; ``every`` and ``last`` are of the teleports."""

    net: MLP
    rates: dict[str, float]
    steps: int
    batch: int
    every: int
    last: int


TASKS = {
    "regression": Task(MLP((16, 16, 1), "relu"), {"SGD": 0.02, "momentum": 0.01, "Adam": 0.003}, 300, 40, 20, 100),
    "mnist_5k": Task(MLP((16, 10), "relu"), {"SGD": 0.1, "momentum": 0.05, "Adam": 0.003}, 200, 100, 20, 60),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 200
    """Of each task, optimizer and way; and keys of the rotations of the plane functions."""
    share: float = 1.0
    """Part of the steps of each task."""
    tasks: str = ",".join(TASKS)
    """Which, separated by commas."""
    optimizers: str = ",".join(OPTIMIZERS)
    """Which, separated by commas."""
    seed: int = 0
    """Of networks, batches, the regression's teacher and the division of the images."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2)
        if not 0 < self.share <= 1:
            msg = f"share: got {self.share}, expected more than 0, at most 1."
            raise ValueError(msg)
        chosen(self.tasks, TASKS, "task")
        chosen(self.optimizers, OPTIMIZERS, "optimizer")


def data_of(task: str, seed: int) -> tuple[Rows, Rows]:
    """Training and test rows; images as rows of pixels."""
    if task == "mnist_5k":
        split = flattened(mnist_5k(seed))
        return split.train, split.test
    keys = jax.random.split(jax.random.key(seed), 3)
    teacher = MLP((8, 1), "tanh")
    inputs = jax.random.normal(keys[0], (2 * ROWS, 6))
    params = jax.tree.map(lambda leaf: 2 * leaf, teacher.init(keys[1], inputs))
    targets = teacher.apply(params, inputs) + 0.05 * jax.random.normal(keys[2], (2 * ROWS, 1))
    return Rows(inputs[:ROWS], targets[:ROWS]), Rows(inputs[ROWS:], targets[ROWS:])


def cost(task: str) -> Callable[[PyTree, Rows, Array], Float[Array, ""]]:
    """Cross-entropy of labels, or half the mean square."""
    net = TASKS[task].net

    def of(params: PyTree, batch: Rows, key: Array) -> Float[Array, ""]:
        del key
        outputs = net.apply(params, batch.inputs)
        if task == "mnist_5k":
            return optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets).mean()
        return jnp.mean((outputs - batch.targets) ** 2) / 2

    return of


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Descend on the plane functions, then train; see the attributes of the variables for what they hold."""
    tasks, optimizers = chosen(config.tasks, TASKS, "task"), chosen(config.optimizers, OPTIMIZERS, "optimizer")
    lengths = {name: max(RECORDS // 2, round(config.share * task.steps)) for name, task in tasks.items()}
    plane_steps = sum(plane.steps for plane in PLANES.values()) * len(WAYS)
    each = plane_steps + 2 * len(optimizers) * sum(lengths.values()) + len(tasks)
    clock = Clock(progress, config.networks * each)
    keys = network_keys(config.seed, config.networks)
    variables: dict[str, Any] = {}
    with jax.enable_x64(True):
        for name, plane in PLANES.items():
            ends = {
                way: clock.ensemble(f"{name}: {way}", _descend(plane, way), keys, steps=plane.steps) for way in WAYS
            }
            curves = np.stack([end["loss"] for end in ends.values()])
            variables[f"{name}_loss"] = (("way", "network", f"{name}_step"), curves, {"long_name": f"{name} function"})
            changes = np.stack([end["change"] for end in ends.values()])
            variables[f"{name}_change"] = (
                ("way", "network"),
                changes,
                {"long_name": "largest change of the loss by a rotation"},
            )
    for task in tasks:
        variables |= _task(task, list(optimizers), lengths[task], clock, config, keys)
    coords = {"way": list(WAYS), "optimizer": list(optimizers), "task": list(tasks), "teleports": [False, True]}
    return xr.Dataset(variables, coords=coords).assign(clock.variables())


def _descend(plane: Plane, way: str) -> Callable[[Array], dict[str, Array]]:
    """Gradient descent; before some updates the rotation with the largest gradient, or any."""
    sym = plane.group()

    def rotated(p: Array, key: Array) -> Array:
        if way == "random":
            return sym.act(sym.exp(jax.random.uniform(key, (1,), p.dtype, -math.pi, math.pi)), p)
        return teleport(sym, plane.loss, p, radius=math.pi, starts=16, steps=30, key=key).params

    def one(key: Array) -> dict[str, Array]:
        def step(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], Array]:
            p, change = carry
            due = (way != "plain") & (number > 0) & (number % plane.every == 0) & (number <= plane.last)
            moved = jax.lax.cond(due, rotated, lambda p, key: p, p, jax.random.fold_in(key, number))
            change = jnp.maximum(change, jnp.abs(plane.loss(moved) - plane.loss(p)) / jnp.maximum(1, plane.loss(p)))
            p = moved - plane.rate * jax.grad(plane.loss)(moved)
            return (p, change), plane.loss(p)

        start = jnp.array(plane.start)
        (_, change), losses = jax.lax.scan(step, (start, jnp.zeros(())), jnp.arange(plane.steps))
        return {"loss": jnp.append(plane.loss(start), losses), "change": change}

    return one


def _task(
    task: str, optimizers: Sequence[str], steps: int, clock: Clock, config: Config, keys: Array
) -> dict[str, Any]:
    net, rates, _, batch, every, last = TASKS[task]
    train, test = data_of(task, config.seed)
    row = train.inputs[:1]
    sym = discover(net.apply, jax.eval_shape(net.init, jax.random.key(0), row), row)
    measure = cost(task)

    def trained(optimizer: str, *, moves: bool) -> Callable[[Array], dict[str, Array]]:
        opt = OPTIMIZERS[optimizer](rates[optimizer])
        if moves:
            opt = teleporting(opt, sym, every=every, last=last, **SEARCH)

        def one(key: Array) -> dict[str, Array]:
            whole = make_train(
                lambda key: net.init(key, row),
                measure,
                opt,
                train,
                steps=steps,
                batch_size=batch,
                probes={"whole": lambda seen: measure(seen.params, train, key)},
                record_every=max(1, steps // RECORDS),
            )
            done = whole(key)
            return {
                "loss": done.history["whole"],
                "step": done.history["step"],
                "test": measure(done.params, test, key),
            }

        return one

    found = []
    seconds = []
    for optimizer in optimizers:
        for moves in (False, True):
            before = clock.run_seconds
            label = f"{task}: {optimizer}{' with teleports' if moves else ''}"
            found.append(clock.ensemble(label, trained(optimizer, moves=moves), keys, steps=steps))
            seconds.append((clock.run_seconds - before) / config.networks)
    shape = (len(optimizers), 2)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        few = Rows(wide(train.inputs[:batch]), wide(train.targets[:batch]))

        def moved(key: Array) -> dict[str, Array]:
            loss = lambda params: measure(params, few, key)  # noqa: E731
            params = wide(net.init(key, row))
            there = teleport(sym, loss, params, **SEARCH)
            return {
                "change": jnp.abs(loss(there.params) - loss(params)),
                "gain": there.gain / optax.tree.norm(jax.grad(loss)(params)),
                "bounded": there.bounded,
            }

        once = clock.ensemble(f"{task}: one teleport in float64", moved, keys, steps=1)
    dims = ("optimizer", "teleports", "network")

    def stacked(key: str) -> np.ndarray:
        values = np.stack([one[key] for one in found])
        return values.reshape(*shape, *values.shape[1:])

    return {
        f"{task}_loss": ((*dims, f"{task}_record"), stacked("loss"), {"long_name": "loss of all training rows"}),
        f"{task}_test": (dims, stacked("test"), {"long_name": "loss of the test rows, at the end"}),
        f"{task}_step": ((f"{task}_record",), found[0]["step"][0], {"long_name": "updates"}),
        f"{task}_seconds": (
            dims[:2],
            np.reshape(seconds, shape),
            {"long_name": "time of a run, a network", "units": "s"},
        ),
        f"{task}_change": (("network",), once["change"], {"long_name": "of the loss by a teleport, in float64"}),
        f"{task}_gain": (("network",), once["gain"], {"long_name": "of the gradient's norm, relative"}),
        f"{task}_bounded": (("network",), once["bounded"], {"long_name": "whether the trust region ended it"}),
        f"{task}_due": ((), len(range(every, min(last, steps - 1) + 1, every)), {"long_name": "teleports of a run"}),
        f"{task}_every": ((), every, {"long_name": "updates between teleports"}),
    }


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    tasks = [str(task) for task in data["task"].values]

    def end(name: str, way: str) -> float:
        return float(data[f"{name}_loss"].sel(way=way).isel({f"{name}_step": -1}).median())

    figures: dict[str, Any] = {
        "booth_plain": end("booth", "plain"),
        "booth_teleport": end("booth", "teleport"),
        "rosenbrock_plain": end("rosenbrock", "plain"),
        "rosenbrock_teleport_median": end("rosenbrock", "teleport"),
        "rosenbrock_random_median": end("rosenbrock", "random"),
        "teleport_loss_change_max": max(float(data[f"{name}_change"].max()) for name in (*PLANES, *tasks)),
    }
    for task in tasks:
        last = data[f"{task}_loss"].isel({f"{task}_record": -1}).median("network")
        ratio = last.sel(teleports=True) / last.sel(teleports=False)
        seconds = data[f"{task}_seconds"].sel(teleports=True) / data[f"{task}_seconds"].sel(teleports=False)
        figures[f"{task}_loss_ratios"] = [float(value) for value in ratio.values]
        figures[f"{task}_time_ratios"] = [float(value) for value in seconds.values]
        figures[f"{task}_gradient_gain"] = float(data[f"{task}_gain"].median())
    return figures | run_counts(data)


STUDY = Study(
    title="teleportation: loss against steps and time, with moves along the orbit and without",
    config=Config(),
    quick=Config(networks=3, share=0.2, tasks="regression", optimizers="SGD"),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
