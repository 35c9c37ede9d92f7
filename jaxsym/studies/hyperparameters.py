"""Hidden units, depth, learning rate, activation, initialiser: each alone, then jointly by five samplers and by one change at a time, with equal budgets.

The exercises of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons" (implementation): change one
hyperparameter, insert a layer, change the rate, optimise all of them jointly. The samplers are those of ``jaxsym.sweep.search``; random
search as in Bergstra, Bengio 2012, TPE as in Bergstra et al. 2011, CMA-ES as in Hansen 2016 (arXiv:1604.00772).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree
from scipy import stats

from jaxsym.data import Rows, Split, flattened
from jaxsym.models.activation import CATALOGUE
from jaxsym.studies.classifying import Parts, accuracy, load, take
from jaxsym.studies.hyperparameters_page import CAP, CLEVER, UNLEARNT, claims, page
from jaxsym.studies.study import Clock, Progress, Study, expect, interval, network_keys, refuted, run_counts
from jaxsym.sweep.search import Point, Searcher, Trial, parse, points
from jaxsym.sweep.space import Axis, Interval
from jaxsym.training import make_train, probes

ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid", "silu")
INITIALISERS = ("zeros", "constant 0.1", "normal 0.01", "xavier_normal", "lecun_normal", "he_normal")
DEEPEST = 5
BASE: Point = {
    "learning_rate": 0.1,
    "units": 32,
    "depth": 1,
    "activation": ACTIVATIONS.index("relu"),
    "initialiser": INITIALISERS.index("xavier_normal"),
}
"""What stays when one hyperparameter is changed alone, and where the search by one change at a time begins."""
RATES = tuple(10 ** (k / 2) for k in range(-6, 7))
SEARCHED_RATES = 1e-3, 10.0
JOINT = ("random", *CLEVER)
WAYS = (*JOINT, "one_at_a_time")


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    data: str = "digits"
    """A bundled data set, or a folder with the IDX files of MNIST or Fashion-MNIST."""
    rows: int = 1500
    """Of the training part, at most; every fifth of them is for validation."""
    networks: int = 16
    """For each value of each hyperparameter alone, and for each point that a search has chosen."""
    searches: int = 8
    """Repetitions of every sampler."""
    trials: int = 96
    """Of each search; a multiple of the batch."""
    batch: int = 16
    """Trials that a sampler asks for at once."""
    steps: int = 200
    """Of SGD, in every trial."""
    batch_size: int = 32
    """Rows a step."""
    most_units: int = 64
    """In a hidden layer, in the searches."""
    widest: int = 512
    """Hidden units that are tried when their number is changed alone, at most."""
    seed: int = 0
    """Of networks, samplers and the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no search."""
        expect(self, rows=50, networks=2, searches=2, batch=4, steps=1, batch_size=1, most_units=32, widest=2)
        if self.trials < self.batch or self.trials % self.batch:
            msg = f"trials: got {self.trials}, expected a multiple of batch = {self.batch}."
            raise ValueError(msg)
        if self.batch_size > self.rows * 4 // 5:
            msg = f"batch_size: got {self.batch_size}, expected at most {self.rows * 4 // 5}, the training rows of rows = {self.rows}."
            raise ValueError(msg)


def parts(split: Split, rows: int) -> Parts:
    """Flattened; every fifth of the first training rows is for validation."""
    split = flattened(split)
    given = take(split.train, rows)
    held = np.arange(len(given.targets)) % 5 == 0
    train, validation = (jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], given) for chosen in (~held, held))
    return Parts(train, validation, split.test)


class Net(NamedTuple):
    """A perceptron of the greatest width and depth, of which a trial uses the first ``units`` of the first ``depth`` layers.

    What a trial does not use gives nothing and has no gradient, so that one program serves every width and depth: the used part
    is trained as if it stood alone.
    """

    inputs: int
    most_units: int
    classes: int
    deepest: int = DEEPEST

    def init(self, key: Array, units: Array, depth: Array, initialiser: Array) -> PyTree:
        """Kernels drawn with the fans of the part that is used, and zero elsewhere; biases zero."""
        del depth  # layers that are not used are drawn all the same, and not seen
        used = jnp.arange(self.most_units) < units
        shapes = {"first": (self.inputs, self.most_units), "last": (self.most_units, self.classes)}
        shapes |= {f"inner{layer}": (self.most_units, self.most_units) for layer in range(1, self.deepest)}
        params = {}
        for place, (name, (rows, columns)) in enumerate(sorted(shapes.items())):
            fan_in, fan_out = self.inputs if name == "first" else units, self.classes if name == "last" else units
            drawn = jax.random.normal(jax.random.fold_in(key, place), (rows, columns))
            sizes = [0.0, 0.1, 0.01, jnp.sqrt(2 / (fan_in + fan_out)), jnp.sqrt(1 / fan_in), jnp.sqrt(2 / fan_in)]
            kernel = jnp.array(sizes)[initialiser] * jnp.where(
                initialiser == INITIALISERS.index("constant 0.1"), 1.0, drawn
            )
            kernel *= (True if name == "first" else used[:, None]) & (True if name == "last" else used[None, :])
            params[name] = {"kernel": kernel, "bias": jnp.zeros(columns)}
        return params

    def apply(
        self, params: PyTree, inputs: Float[Array, "N inputs"], units: Array, depth: Array, activation: Array
    ) -> Float[Array, "N classes"]:
        """Outputs of the part that is used."""
        used = jnp.arange(self.most_units) < units

        def hidden(layer: str, h: Array) -> Array:
            z = h @ params[layer]["kernel"] + params[layer]["bias"]
            return jnp.where(used, jax.lax.switch(activation, [CATALOGUE[name] for name in ACTIVATIONS], z), 0)

        h = hidden("first", inputs)
        for layer in range(1, self.deepest):
            h = jnp.where(layer < depth, hidden(f"inner{layer}", h), h)
        return h @ params["last"]["kernel"] + params["last"]["bias"]


def program(
    net: Net, data: Parts, steps: int, batch_size: int
) -> Callable[[Array, dict[str, Array]], dict[str, Array]]:
    """``one(key, point) -> losses``: a trial, all of whose hyperparameters are traced."""

    def loss(params: PyTree, rows: Rows, key: Array | None, units: Array, depth: Array, activation: Array) -> Array:
        del key
        logits = net.apply(params, rows.inputs, units, depth, activation)
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows.targets).mean()

    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    train = make_train(
        net.init,
        loss,
        optimizer,
        data.train,
        steps=steps,
        batch_size=batch_size,
        probes={"params": probes.params},
        record_every=steps,
    )

    def one(key: Array, point: dict[str, Array]) -> dict[str, Array]:
        trained = train(key, **point)
        start = jax.tree.map(lambda leaf: leaf[0], trained.history["params"])
        shape = {name: point[name] for name in ("units", "depth", "activation")}
        before = loss(start, data.train, None, **shape)
        after, validation, test = (loss(trained.params, rows, None, **shape) for rows in data)
        logits = net.apply(trained.params, data.test.inputs, **shape)
        return {
            "train": after,
            "validation": jnp.nan_to_num(validation, nan=jnp.inf, posinf=jnp.inf),
            "test": jnp.nan_to_num(test, nan=jnp.inf, posinf=jnp.inf),
            "accuracy": accuracy(logits, data.test.targets),
            "diverged": ~jnp.isfinite(after) | (after > before),
        }

    return one


def space(config: Config) -> dict[str, Any]:
    """What the searches choose from, as the table of a sweep."""
    low, high = SEARCHED_RATES
    return {
        "learning_rate": {"low": low, "high": high, "log": True},
        "units": {"low": 2, "high": config.most_units, "int": True, "log": True},
        "depth": {"low": 1, "high": DEEPEST, "int": True},
        "activation": {"choices": list(range(len(ACTIVATIONS)))},
        "initialiser": {"choices": list(range(len(INITIALISERS)))},
    }


class OneAtATime:
    """A search by one change at a time, asked and told as a :class:`~jaxsym.sweep.search.Searcher` is.

    Every trial is the best trial so far (the base, at first) with one hyperparameter changed. The values are those of a grid,
    one hyperparameter after the other; when all have been had, it begins again.
    """

    def __init__(self, searched: Mapping[str, Axis], batch: int, trials: int) -> None:
        grids = {
            name: dataclasses.replace(axis, num=batch) if isinstance(axis, Interval) and axis.log else axis
            for name, axis in searched.items()
        }
        self.moves = [(name, value) for name, axis in grids.items() for value in dict.fromkeys(axis.grid())]
        self.batch, self.limit = batch, trials
        self.trials: list[Trial] = []
        self._asked: list[Point] = []

    def ask(self) -> list[Point]:
        """The next batch; empty when all are done."""
        best = min(self.trials, key=lambda trial: trial.value).params if self.trials else BASE
        done = len(self.trials)
        numbers = range(done, min(done + self.batch, self.limit))
        moves = [self.moves[number % len(self.moves)] for number in numbers]
        self._asked = [{**best, name: value} for name, value in moves]
        return [dict(point) for point in self._asked]

    def tell(self, values: Sequence[float]) -> None:
        """Give the objectives of the batch."""
        self.trials += [Trial(point, float(value)) for point, value in zip(self._asked, values, strict=True)]


def alone(config: Config) -> list[tuple[str, str, Point]]:
    """Every hyperparameter changed by itself: its name, the value in words, and the point."""
    widths = [2**k for k in range(config.widest.bit_length())]
    values: dict[str, list[tuple[str, Any]]] = {
        "units": [(str(width), width) for width in widths],
        "depth": [(str(depth), depth) for depth in range(1, DEEPEST + 1)],
        "learning_rate": [(f"{float(f'{rate:.3g}'):g}", rate) for rate in RATES],
        "activation": [(name, index) for index, name in enumerate(ACTIVATIONS)],
        "initialiser": [(name, index) for index, name in enumerate(INITIALISERS)],
    }
    return [(name, text, {**BASE, name: value}) for name, pairs in values.items() for text, value in pairs]


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Each alone, the searches batch by batch, then what they have chosen, trained afresh."""
    split = load(config.data, config.seed)
    data = parts(split, config.rows)
    inputs, classes = data.train.inputs.shape[1], len(split.classes)
    one = program(Net(inputs, config.most_units, classes), data, config.steps, config.batch_size)
    wide = program(Net(inputs, config.widest, classes, deepest=1), data, config.steps, config.batch_size)
    settings, searchers = alone(config), begun(config)
    like = parse(_table(config, "random", 0))
    pairs = len(WAYS) * config.searches
    total = len(settings) * config.networks + pairs * (config.trials + config.networks)
    clock = Clock(progress, total * config.steps)

    def trained(label: str, keys: Array, at: Sequence[Point], net: Any = one) -> dict[str, np.ndarray]:
        traced = {name: jnp.asarray(values) for name, values in points(like, at).items()}
        return clock.ensemble(label, net, keys, traced, steps=config.steps)

    keys = network_keys(config.seed, max(config.networks, config.searches))
    own = keys[: config.networks]
    halves = [
        trained(label, jnp.tile(own, len(at)), [point for point in at for _ in own], net)
        for label, net, at in (
            ("units alone", wide, [point for name, _, point in settings if name == "units"]),
            ("each alone", one, [point for name, _, point in settings if name != "units"]),
        )
    ]
    single = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    objective = jnp.tile(jnp.repeat(_folded(keys[: config.searches], 1), config.batch), len(WAYS))
    seconds = np.zeros(len(WAYS))
    for number in range(config.trials // config.batch):
        start = time.perf_counter()
        asked: list[Point] = []
        for place, way in enumerate(WAYS):
            asked += [point for searcher in searchers[way] for point in searcher.ask()]
            seconds[place], start = seconds[place] + time.perf_counter() - start, time.perf_counter()
        found = trained(f"search: batch {number + 1}", objective, asked)["validation"]
        start = time.perf_counter()
        for place, values in enumerate(found.reshape(len(WAYS), config.searches, config.batch)):
            for searcher, told in zip(searchers[WAYS[place]], values, strict=True):
                searcher.tell(told.tolist())
            seconds[place], start = seconds[place] + time.perf_counter() - start, time.perf_counter()
    trials = [searcher.trials for way in WAYS for searcher in searchers[way]]
    chosen = [min(each, key=lambda trial: trial.value).params for each in trials]
    again = trained("what was chosen", jnp.tile(_folded(own, 2), pairs), [point for point in chosen for _ in own])
    return _dataset(config, data, classes, settings, single, trials, again, seconds).assign(clock.variables())


def begun(config: Config) -> dict[str, list[Searcher | OneAtATime]]:
    """The searches of every way, none of which has asked yet."""
    seeds = sampler_seeds(config)
    found: dict[str, list[Searcher | OneAtATime]] = {
        way: [Searcher(parse(_table(config, way, seed))) for seed in seeds] for way in JOINT
    }
    axes = parse(_table(config, "random", 0)).space
    return found | {"one_at_a_time": [OneAtATime(axes, config.batch, config.trials) for _ in seeds]}


def _table(config: Config, way: str, seed: int) -> dict[str, Any]:
    size = {"trials": config.trials, "batch": config.batch}
    return {"method": way, "metric": "validation", "seed": seed, "space": space(config), **size}


def sampler_seeds(config: Config) -> list[int]:
    """A seed for each search; the same for all samplers."""
    return [int(jax.random.bits(key)) for key in _folded(network_keys(config.seed, config.searches), 3)]


def _folded(keys: Array, use: int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys)


def _dataset(
    config: Config,
    data: Parts,
    classes: int,
    settings: list[tuple[str, str, Point]],
    single: dict[str, np.ndarray],
    trials: list[list[Trial]],
    again: dict[str, np.ndarray],
    seconds: np.ndarray,
) -> xr.Dataset:
    def lone(key: str, text: str) -> Any:
        return ("setting", "network"), single[key].reshape(len(settings), -1), {"long_name": text}

    def fresh(key: str, text: str) -> Any:
        return ("way", "search", "network"), again[key].reshape(len(WAYS), config.searches, -1), {"long_name": text}

    def told(values: list[Any], text: str) -> Any:
        shape = len(WAYS), config.searches, config.trials
        return ("way", "search", "trial"), np.array(values).reshape(shape), {"long_name": text}

    shares = np.bincount(np.asarray(data.train.targets), minlength=classes) / len(data.train.targets)
    entropy = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
    variables: dict[str, Any] = {
        "alone_validation": lone("validation", "validation loss, one hyperparameter changed (nats)"),
        "alone_diverged": lone("diverged", "training loss not finite, or above its start"),
        "validation": told([t.value for each in trials for t in each], "validation loss of a trial (nats)"),
        "chosen_validation": fresh("validation", "validation loss of what was chosen, trained afresh (nats)"),
        "chosen_test": fresh("test", "its test loss (nats)"),
        "chosen_accuracy": fresh("accuracy", "its test accuracy"),
        "sampler_seconds": (("way",), seconds, {"long_name": "seconds that the samplers took for themselves"}),
        "guessing": ((), entropy, {"long_name": "training loss of the classes' shares, whatever the input (nats)"}),
        "rows": (("part",), [len(rows.targets) for rows in data], {"long_name": "rows"}),
        "steps": ((), config.steps, {"long_name": "steps of SGD in a trial"}),
        "batch": ((), config.batch, {"long_name": "trials in a batch"}),
    }
    for name in BASE:
        variables[f"trial_{name}"] = told([t.params[name] for each in trials for t in each], f"{name} of a trial")
    for name, meanings in (("activation", ACTIVATIONS), ("initialiser", INITIALISERS)):
        variables[f"trial_{name}"][2]["flag_meanings"] = ", ".join(meanings)  # of 0, 1, ...
    words = BASE | {
        "activation": ACTIVATIONS[int(BASE["activation"])],
        "initialiser": INITIALISERS[int(BASE["initialiser"])],
    }
    base = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in words.items())
    coords = {
        "setting": [f"{name}={text}" for name, text, _ in settings],
        "axis": ("setting", [name for name, *_ in settings]),
        "value": ("setting", [text for _, text, _ in settings]),
        "way": list(WAYS),
        "trial": np.arange(1, config.trials + 1),
        "part": list(Parts._fields),
    }
    return xr.Dataset(variables, coords=coords).assign_attrs(data=config.data, base=base)


LEAST = 1e-12
"""Losses below count as this: in float32 a loss can be 0."""


def ratio(one: np.ndarray, other: np.ndarray, level: float = 0.95) -> list[float]:
    """Geometric mean of ``one / other`` over pairs, and the ends of its t interval."""
    logs = np.log(np.clip(one, LEAST, CAP)) - np.log(np.clip(other, LEAST, CAP))
    return [float(np.exp(value)) for value in interval(logs, level)]


def together(losses: Sequence[np.ndarray]) -> np.ndarray:
    """Geometric means over ways, search by search."""
    return np.exp(np.mean(np.log(np.minimum(losses, CAP)), axis=0))


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    figures = _alone_figures(data)
    best = {way: data["validation"].sel(way=way).values.min(axis=1) for way in WAYS}
    afresh = {way: np.median(data["chosen_validation"].sel(way=way).values, axis=1) for way in WAYS}
    all_four = 1 - 0.05 / len(CLEVER)
    for way in WAYS:
        figures[f"best_{way}"] = float(np.median(best[way]))
        figures[f"test_loss_{way}"] = float(np.median(data["chosen_test"].sel(way=way)))
        if way in CLEVER:
            figures[f"over_random_{way}"] = ratio(best[way], best["random"], all_four)
            figures[f"afresh_over_random_{way}"] = ratio(afresh[way], afresh["random"], all_four)
        if way in JOINT:
            figures[f"over_one_at_a_time_{way}"] = ratio(best[way], best["one_at_a_time"])
    figures |= {
        "joint_over_one_at_a_time": ratio(together([best[way] for way in JOINT]), best["one_at_a_time"]),
        "luck": ratio(together(list(afresh.values())), together(list(best.values()))),
        "friedman_p": float(stats.friedmanchisquare(*(best[way] for way in JOINT)).pvalue),
    }
    return {**figures, "claims_that_failed": refuted(claims(figures)), **run_counts(data)}


def _alone_figures(data: xr.Dataset) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    losses = {}
    for name in BASE:
        chosen = data["axis"].values == name
        losses[name] = data["alone_validation"].values[chosen]
        figures[f"{name}_values"] = [str(value) for value in data["value"].values[chosen]]
        figures[f"{name}_losses"] = [float(value) for value in np.minimum(np.median(losses[name], axis=1), CAP)]
    doublings = [ratio(more, less) for less, more in zip(losses["units"], losses["units"][1:], strict=False)]
    useful = [i for i, (_, _, high) in enumerate(doublings) if high < 1]
    enough = useful[-1] + 1 if useful else 0
    diverged = data["alone_diverged"].values[data["axis"].values == "learning_rate"].mean(axis=1)
    unlearnt = (losses["learning_rate"] > UNLEARNT * float(data["guessing"])).mean(axis=1)
    beyond = [float(figures["learning_rate_values"][i]) for i in np.flatnonzero(diverged > 0.5)]
    return figures | {
        "units_first_doubling": doublings[0],
        "units_last_doubling": doublings[-1],
        "units_enough": int(figures["units_values"][enough]),
        "units_gain": ratio(losses["units"][enough or -1], losses["units"][0]),
        "layer_ratio": ratio(losses["depth"][1], losses["depth"][0]),
        "deepest_ratio": ratio(losses["depth"][-1], losses["depth"][0]),
        "learning_rate_diverged": [float(value) for value in diverged],
        "learning_rate_unlearnt": [float(value) for value in unlearnt],
        "diverged_learning_rate": beyond[0] if beyond else "none of the grid",
        "guessing_loss": float(data["guessing"]),
    }


STUDY = Study(
    title="each hyperparameter alone, then all of them jointly: what five samplers find with the same budget",
    config=Config(),
    quick=Config(networks=4, searches=3, trials=32, steps=150),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
