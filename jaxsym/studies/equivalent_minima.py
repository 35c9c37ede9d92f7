"""How many minima are there, and how many are copies of each other? Networks on the Titanic, polished to minima and counted modulo the group.

With the losses of all copies of one network, the gradient along an orbit of rescalings, and whether training jumps from copy to copy.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from scipy.spatial import distance

from jaxsym.data import Rows, titanic
from jaxsym.models import MLP
from jaxsym.studies.equivalent_minima_page import page
from jaxsym.studies.equivalent_minima_summary import summary
from jaxsym.studies.minima import (
    FLAT,
    Polished,
    Problem,
    classes,
    cost,
    follow,
    gap,
    jumps,
    objective,
    orbit_distances,
    vectors,
    wide,
)
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys
from jaxsym.symmetry.canonical import canonicalize
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.training import make_train, probes

NET = MLP((4, 1))
RELU = MLP((8, 1), "relu")
RELU_STEPS = 100  # of gradient descent, rate 0.1: away from a minimum
FACTORS = (0.1, 10.0)  # of the rescalings
PATH = 101  # points along the rescaling of one unit
RECORDS = 100
RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
BATCHES = {"all rows": None, "32 rows": 32}
ALONG = 41  # points on the straight line to the next copy


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the networks (4 tanh units, 8 ReLU units) stay as they are."""

    networks: int = 256
    """Networks for each weight decay."""
    weight_decay: float = 0.003
    """Of the headline figures: this over 2 times the squared norm of all parameters is added to the loss."""
    other_weight_decays: str = "0.001,0.01"
    """For comparison, separated by commas."""
    train_steps: int = 400
    """Iterations of Adam (rate 0.1, cosine decay), before the minima are polished."""
    gradient_norm: float = 1e-10
    """What the gradient's norm is polished to, in float64."""
    newton_steps: int = 200
    """Of the polishing, at most."""
    rescalings: int = 1000
    """Elements of the group of the ReLU network."""
    followed: int = 16
    """Networks whose nearest copy is followed, for each learning rate and batch."""
    followed_steps: int = 6000
    """Iterations of gradient descent of these."""
    test_fraction: float = 0.2
    """Share of the 1309 passengers kept for testing."""
    seed: int = 0
    """Of the networks and of the division into training and test."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2, train_steps=1, newton_steps=1, rescalings=2, followed=1, followed_steps=1)
        if not 1e-13 <= self.gradient_norm <= 1e-6:
            msg = f"gradient_norm: got {self.gradient_norm}, expected a number from 1e-13 (rounding) to 1e-6."
            raise ValueError(msg)
        for weight_decay in self.weight_decays():
            if not 0 < weight_decay <= 0.1:
                msg = f"weight_decay: got {weight_decay}, expected above 0 and at most 0.1: without any there may be no finite minimum."
                raise ValueError(msg)

    def weight_decays(self) -> list[float]:
        """All of them, in order."""
        try:
            others = [float(text) for text in self.other_weight_decays.split(",") if text.strip()]
        except ValueError:
            msg = f"other_weight_decays: got {self.other_weight_decays!r}, expected numbers separated by commas: 0.001,0.01 for instance."
            raise ValueError(msg) from None
        return sorted({self.weight_decay, *others})


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train, polish, compare; see the attributes of the variables for what they hold."""
    data = titanic(config.seed, config.test_fraction)
    decays = config.weight_decays()
    runs = len(RATES) * len(BATCHES) * config.followed
    clock = Clock(
        progress,
        config.networks * len(decays) * (config.train_steps + config.newton_steps)
        + runs * (config.followed_steps + config.newton_steps),
    )
    params = NET.init(jax.random.key(config.seed), data.train.inputs[:1])
    trained = _trained(clock, config, data.train, decays)
    followed = _followed(clock, config, data.train)
    relu = _relu(config, data.train)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        problem = Problem.of(NET, params, data)
        paths = _paths(followed)
        start = np.concatenate([vectors(wide(trained)), paths[:, -1]])
        each = np.concatenate([np.repeat(decays, config.networks), np.full(len(paths), config.weight_decay)])
        polished, moved = _polished(clock, config, problem, start, each)
        num = config.networks * len(decays)
        found = _minima(clock, config, problem, jax.tree.map(lambda leaf: leaf[:num], polished), moved[:num], decays)
        found |= _orbit(problem, found, decays.index(config.weight_decay), config.weight_decay)
        found |= _rescaled(config, relu, problem.train)
        ends = jax.tree.map(lambda leaf: leaf[num:], polished)
        found |= _jumps(clock, config, problem, followed, paths, ends, moved[num:], found["tolerance"])
    return _dataset(config, problem.sym, decays, found).assign(clock.variables())


def _trained(clock: Clock, config: Config, rows: Rows, decays: Sequence[float]) -> PyTree:
    """Networks at the end of Adam, one weight decay after another."""
    steps = config.train_steps
    train = make_train(
        lambda key: NET.init(key, rows.inputs[:1]),
        lambda params, rows, key, weight_decay: objective(NET, params, rows, weight_decay),
        optax.adam(optax.cosine_decay_schedule(0.1, steps)),
        rows,
        steps=steps,
        record_every=steps,
    )
    keys = jnp.tile(network_keys(config.seed, config.networks), len(decays))
    each = jnp.repeat(jnp.array(decays), config.networks)
    return clock.ensemble(
        "training", lambda key, weight_decay: train(key, weight_decay=weight_decay).params, keys, each, steps=steps
    )


def _followed(clock: Clock, config: Config, rows: Rows) -> dict[str, Any]:
    """Parameters ``[batches x rates x followed, records, ...]`` of gradient descent, and the objective over all rows."""
    results = []
    for name, size in BATCHES.items():
        train = make_train(
            lambda key: NET.init(key, rows.inputs[:1]),
            lambda params, batch, key: objective(NET, params, batch, config.weight_decay),
            optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
            rows,
            steps=config.followed_steps,
            batch_size=size,
            record_every=max(1, config.followed_steps // RECORDS),
            probes={
                "params": probes.params,
                "objective": lambda seen: objective(NET, seen.params, rows, config.weight_decay),
            },
        )
        keys = jnp.tile(network_keys(config.seed, config.followed), len(RATES))
        rates = jnp.repeat(jnp.array(RATES), config.followed)
        results.append(
            clock.ensemble(
                f"following, {name} a step",
                lambda key, rate, train=train: train(key, learning_rate=rate).history,
                keys,
                rates,
                steps=config.followed_steps,
            )
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _relu(config: Config, rows: Rows) -> PyTree:
    """A ReLU network that is still learning."""
    train = make_train(
        lambda key: RELU.init(key, rows.inputs[:1]),
        lambda params, rows, key: cost(RELU, params, rows),
        optax.sgd(0.1),
        rows,
        steps=RELU_STEPS,
        record_every=RELU_STEPS,
    )
    return jax.jit(train)(jax.random.key(config.seed)).params


def _paths(history: dict[str, Any]) -> Float[np.ndarray, "runs records P"]:
    """The recorded parameters as vectors."""
    runs, records = history["step"].shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), wide(history["params"]))
    return vectors(flat).reshape(runs, records, -1)


def _polished(
    clock: Clock, config: Config, problem: Problem, start: Float[np.ndarray, "N P"], decays: Float[np.ndarray, " N"]
) -> tuple[Polished, Float[np.ndarray, "N order P"]]:
    """The minima, and all their copies."""

    def one(start: Array, weight_decay: Array) -> tuple[Polished, Array]:
        polished = problem.polish(start, weight_decay, config.gradient_norm, config.newton_steps)
        return polished, problem.copies(polished.params)

    return clock.ensemble("polishing", one, start, decays, steps=config.newton_steps)


def _minima(
    clock: Clock,
    config: Config,
    problem: Problem,
    polished: Polished,
    moved: Float[np.ndarray, "N order P"],
    decays: Sequence[float],
) -> dict[str, Any]:
    """Polished networks and their distances, ``[decays, networks, ...]`` and ``[decays, pairs]``."""

    def looked_at(vector: Array) -> dict[str, Array]:
        params = problem.unravel(vector)
        canonical = canonicalize(problem.sym, params)
        train_right, test_right = (
            jnp.mean((NET.apply(params, rows.inputs)[:, 0] > 0) == (rows.targets == 1))
            for rows in (problem.train, problem.test)
        )
        return {
            "canonical": ravel_pytree(canonical.params)[0],
            "tied": jnp.stack([tie.any() for tie in canonical.ties]).any(),
            "train_accuracy": train_right,
            "test_accuracy": test_right,
            "test_cost": cost(NET, params, problem.test),
        }

    seen = clock.ensemble("canonical forms", looked_at, polished.params, steps=0)
    shape = (len(decays), config.networks)
    found = {name: values.reshape(*shape, *values.shape[1:]) for name, values in (polished._asdict() | seen).items()}
    points, moved = found["params"], moved.reshape(*shape, *moved.shape[1:])
    good = (found["gradient_norm"] <= config.gradient_norm) & (found["curvature"] > FLAT)
    found |= {
        "minimum": good,
        "distance_naive": np.stack([distance.pdist(part) for part in points]),
        "distance_canonical": np.stack([distance.pdist(part) for part in found["canonical"]]),
        "distance_brute_force": np.stack([orbit_distances(*pair) for pair in zip(moved, points, strict=True)]),
    }
    reach = 2 * float((found["gradient_norm"] / found["curvature"])[good].max(initial=0))
    first, second = np.triu_indices(config.networks, 1)
    pairs = good[:, first] & good[:, second]
    between = gap(np.concatenate([found[f"distance_{kind}"][pairs] for kind in ("naive", "canonical")]), reach)
    return found | {
        "reach": reach,
        "gap_below": between.below,
        "gap_above": between.above,
        "tolerance": between.tolerance,
        "stabiliser": (np.linalg.norm(moved - points[:, :, None], axis=-1) < between.tolerance).sum(axis=-1),
    }


def _orbit(problem: Problem, found: dict[str, Any], headline: int, weight_decay: float) -> dict[str, Any]:
    """The objective at all copies of the best minimum, and which of them are the same point."""
    loss = np.where(found["minimum"][headline], found["loss"][headline], np.inf)
    moved = np.asarray(problem.copies(jnp.asarray(found["params"][headline, loss.argmin()])))
    losses = jax.vmap(lambda vector: problem.objective(vector, weight_decay))(moved)
    same = classes(distance.pdist(moved), len(moved), found["tolerance"])
    away = np.linalg.norm(moved - moved[0], axis=1)
    return {
        "copy_loss": np.asarray(losses),
        "copy_class": same,
        "copy_distance": away,
        "best_norm": float(np.linalg.norm(moved[0])),
    }


def _rescaled(config: Config, params: PyTree, rows: Rows) -> dict[str, Any]:
    """Cost and gradient norm of a ReLU network and its rescaled copies."""
    params = jax.tree.map(jnp.asarray, wide(params))
    sym = discover(RELU.apply, params, rows.inputs[:5])
    low, high = np.log(FACTORS)

    def at(coordinates: Array) -> tuple[Array, Array]:
        moved = sym.act(sym.exp(coordinates), params)
        value, gradient = jax.value_and_grad(lambda params: cost(RELU, params, rows))(moved)
        return value, optax.tree.norm(gradient)

    drawn = jax.random.uniform(jax.random.key(config.seed), (config.rescalings, sym.dim), minval=low, maxval=high)
    along = jnp.linspace(low, high, PATH)[:, None, None] * jnp.eye(sym.dim)
    loss, norm = jax.lax.map(at, drawn, batch_size=64)
    path_loss, path_norm = jax.lax.map(at, along.reshape(-1, sym.dim), batch_size=64)
    return {
        "rescaling": np.exp(drawn),
        "rescaled_loss": np.asarray(loss),
        "rescaled_gradient_norm": np.asarray(norm),
        "path_factor": np.exp(np.linspace(low, high, PATH)),
        "path_loss": np.asarray(path_loss).reshape(PATH, -1),
        "path_gradient_norm": np.asarray(path_norm).reshape(PATH, -1),
    }


def _jumps(
    clock: Clock,
    config: Config,
    problem: Problem,
    history: dict[str, Any],
    paths: Float[np.ndarray, "runs records P"],
    ends: Polished,
    every: Float[np.ndarray, "runs order P"],
    tolerance: float,
) -> dict[str, Any]:
    """Which copy of its own minimum each run is nearest to, ``[batches, rates, followed, records]``."""
    shape = (len(BATCHES), len(RATES), config.followed)
    records = paths.shape[1]
    found = [follow(path, moved, tolerance) for path, moved in zip(paths, every, strict=True)]
    following = np.stack([moved[one.next] for one, moved in zip(found, every, strict=True)])

    def barrier(one: Array, other: Array) -> Array:
        """How far the objective rises on the straight line to the next copy."""
        line = one + jnp.linspace(0, 1, ALONG)[:, None] * (other - one)
        values = jax.vmap(lambda vector: problem.objective(vector, config.weight_decay))(line)
        return values.max() - values[0]

    heights = clock.ensemble("barriers", barrier, ends.params, following, steps=0)
    by_record = {"nearest": [one.nearest for one in found], "distance": [one.distance for one in found]}
    by_run = {
        "radius": [one.radius for one in found],
        "jumps": [jumps(one.nearest, one.distance, one.radius) for one in found],
        "loss": ends.loss,
        "gradient_norm": ends.gradient_norm,
        "curvature": ends.curvature,
        "barrier": heights,
    }
    return {
        "step": history["step"][0],
        "followed_objective": history["objective"].reshape(*shape, records),
        **{f"followed_{name}": np.stack(values).reshape(*shape, records) for name, values in by_record.items()},
        **{f"followed_{name}": np.stack(values).reshape(shape) for name, values in by_run.items()},
    }


def _dataset(config: Config, sym: Symmetry, decays: Sequence[float], found: dict[str, Any]) -> xr.Dataset:
    """Name the dimensions."""
    each, pair = ("weight_decay", "network"), ("weight_decay", "pair")
    run_of = ("batch", "rate", "followed")
    variables: dict[str, tuple[tuple[str, ...], str]] = {
        "params": ((*each, "parameter"), "polished"),
        "canonical": ((*each, "parameter"), "the canonical form of params"),
        "loss": (each, "cost and weight decay, polished, nats"),
        "gradient_norm": (each, "polished"),
        "curvature": (each, "smallest eigenvalue of the Hessian, polished"),
        "saddles": (each, "that were met on the way and left"),
        "steps": (each, "of the polishing"),
        "minimum": (each, "whether the gradient is as small as was asked for and the Hessian positive definite"),
        "tied": (each, "whether the canonical form has ties: equal or silent units"),
        "stabiliser": (each, "elements of the group that leave the network where it is, to within the tolerance"),
        "train_accuracy": (each, "polished"),
        "test_accuracy": (each, "polished"),
        "test_cost": (each, "without weight decay, nats"),
        "distance_naive": (pair, "of the parameters"),
        "distance_canonical": (pair, "of the canonical forms"),
        "distance_brute_force": (pair, "of the nearest of all copies"),
        "reach": ((), "how far apart two polished points of one minimum can be: 2 gradient norms over the curvature"),
        "gap_below": ((), "largest distance, naive or canonical, up to the reach"),
        "gap_above": ((), "smallest distance, naive or canonical, beyond the reach"),
        "tolerance": ((), "the middle of the gap on a logarithmic scale"),
        "copy_loss": (("element",), "cost and weight decay of all copies of the best network, nats"),
        "copy_distance": (("element",), "of the copies to the best network itself"),
        "best_norm": ((), "of the best network's parameters"),
        "copy_class": (("element",), "copies that are the same point have the same number"),
        "rescaling": (("rescaled", "unit"), "factors of the hidden units of the ReLU network"),
        "rescaled_loss": (("rescaled",), "cost of the ReLU network, nats"),
        "rescaled_gradient_norm": (("rescaled",), "of the ReLU network"),
        "path_loss": (("path_factor", "unit"), "cost where one unit alone is rescaled, nats"),
        "path_gradient_norm": (("path_factor", "unit"), "where one unit alone is rescaled"),
        "followed_objective": ((*run_of, "step"), "cost and weight decay over all rows, nats"),
        "followed_nearest": ((*run_of, "step"), "element that makes the nearest copy of the run's own minimum"),
        "followed_distance": ((*run_of, "step"), "to the nearest copy of the run's own minimum"),
        "followed_radius": (run_of, "half the distance of two copies"),
        "followed_jumps": (run_of, "from the neighbourhood of one copy into that of another"),
        "followed_loss": (run_of, "of the run's own minimum, nats"),
        "followed_gradient_norm": (run_of, "of the run's own minimum"),
        "followed_curvature": (run_of, "of the run's own minimum"),
        "followed_barrier": (run_of, "how far the objective rises on the straight line to the next copy, nats"),
    }
    arrays: dict[str, Any] = {
        name: (dims, found[name], {"long_name": text}) for name, (dims, text) in variables.items()
    }
    arrays |= {
        "order": ((), sym.order, {"long_name": "elements of the group of the tanh network"}),
        "group": ((), ", ".join(f"{factor.kind} of {factor.size} units" for factor in sym.factors)),
        "headline": ((), config.weight_decay, {"long_name": "weight decay of the headline figures"}),
        "wanted": ((), config.gradient_norm, {"long_name": "what the gradient's norm was polished to"}),
    }
    coordinates = {
        "weight_decay": list(decays),
        "network": np.arange(config.networks),
        "path_factor": found["path_factor"],
        "batch": list(BATCHES),
        "rate": list(RATES),
        "step": found["step"],
    }
    return xr.Dataset(arrays, coords=coordinates)


STUDY = Study(
    title="how many minima networks find, and how many are copies: Titanic networks modulo their group",
    config=Config(),
    quick=Config(networks=24, followed=3, followed_steps=1000, rescalings=200),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
