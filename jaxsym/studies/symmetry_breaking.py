"""Which of the usual ingredients of training separates units that start equal? Perceptrons, convolutions, recurrent cells, attention heads, twins.

The exercises on identical weights in Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons". Units are tied when exchanging them, by the
permutation that ``discover`` finds, leaves the parameters where they are: such a point is fixed by a part of the group, and a step that commutes with the group cannot leave it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.data import Rows, Split, digits
from jaxsym.studies import symmetry_breaking_networks as networks
from jaxsym.studies.classifying import accuracy, cross_entropy, take
from jaxsym.studies.study import Clock, Progress, Study, chosen, expect, network_keys
from jaxsym.studies.symmetry_breaking_networks import NETS, PAIRED, PLACES, TIED_UNITS, UNITS, WAYS
from jaxsym.studies.symmetry_breaking_page import page
from jaxsym.studies.symmetry_breaking_summary import summary
from jaxsym.symmetry.discover import discover
from jaxsym.training import Trained, make_train
from jaxsym.training.probes import TOLERANCE

CONSTANTS = (0.1, 0.0)
"""Every kernel at the start, of perceptrons; other networks start at the first."""
SLOWEST, FASTEST = 0.05, 0.5
RECORDS = 20
STARTS = ("zeros", "constant", "random")
REGRESSION_RATE, REGRESSION_BATCH = 0.3, 32
ROWS, FEATURES, NOISE = 200, 8, 0.1  # of the linear regression


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 24
    """Perceptrons for each way; each has its own learning rate and strength of what is tried."""
    few: int = 8
    """Networks of the other kinds for each way."""
    steps: int = 400
    """Of training."""
    rows: int = 128
    """Images, or pairs of images, that the networks see; they are tested on the test images."""
    kinds: str = ",".join(NETS)
    """Networks, with commas between; ``mlp`` must be among them."""
    seed: int = 0
    """Of networks and data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble, and kinds that there are not."""
        expect(self, networks=2, few=2, steps=RECORDS, rows=networks.MINIBATCH)
        if self.few > self.networks:
            msg = f"few: got {self.few}, expected at most networks = {self.networks}."
            raise ValueError(msg)
        if "mlp" not in chosen(self.kinds, NETS, "kind of network"):
            msg = f"kinds: got {self.kinds!r}, expected mlp among them: the headline figures are its."
            raise ValueError(msg)


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train every network from equal units in every way; then regressions."""
    kinds = chosen(config.kinds, NETS, "kind of network")
    of = {name: config.networks * len(CONSTANTS) if name == "mlp" else config.few for name in kinds}
    regressions = 2 * len(STARTS) * config.networks
    clock = Clock(progress, (sum(of.values()) * len(WAYS) + regressions) * config.steps)
    keys = network_keys(config.seed, max(config.networks, config.few))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        split = jax.tree.map(_double, digits(config.seed)._replace(features=(), classes=()))
        found = {name: _trained(clock, config, name, split, keys) for name in kinds}
        places = {name: _places(name, split.test.inputs) for name in PLACES if name in kinds}
        regressed = {
            task: _regressed(clock, task, fn, config, keys)
            for task, fn in (("softmax", _softmax(split, config.steps)), ("linear", _linear(config.steps)))
        }
    return _dataset(found, places, regressed).assign(clock.variables())


def _double(leaf: Array) -> Array:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def problem(name: str, rows: Rows, num: int, key: Array) -> Rows:
    """Images and their digits; or pairs of images, and whether they show the same digit, which half of them do."""
    if name not in PAIRED:
        return take(rows, num)
    pairs = jax.random.randint(key, (40 * num, 2), 0, len(rows.targets))
    same = np.asarray(rows.targets[pairs[:, 0]] == rows.targets[pairs[:, 1]])
    shown = np.sort(np.concatenate([np.flatnonzero(same)[: num // 2], np.flatnonzero(~same)[: num - num // 2]]))
    return Rows(rows.inputs[pairs[shown]], jnp.asarray(same[shown], jnp.int32))


def _trained(clock: Clock, config: Config, name: str, split: Split, keys: Array) -> dict[str, np.ndarray]:
    """Results ``[constants, ways, networks, ...]`` of one architecture."""
    pair_keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    train_rows = problem(name, split.train, config.rows, pair_keys[0])
    test_rows = problem(name, split.test, len(split.test.targets), pair_keys[1])
    constants = CONSTANTS if name == "mlp" else CONSTANTS[:1]
    keys = keys[: config.networks if name == "mlp" else config.few]
    strength, rate = (jax.vmap(lambda key, n=n: jax.random.uniform(jax.random.fold_in(key, n)))(keys) for n in range(2))
    rate = SLOWEST * (FASTEST / SLOWEST) ** rate
    hyper = [networks.hyperparameters(way, strength, rate) for way in WAYS.values()] * len(constants)
    joined = {option: jnp.concatenate([each[option] for each in hyper]) for option in hyper[0]}
    joined["constant"] = jnp.repeat(jnp.array(constants), len(WAYS) * len(keys))
    ends = clock.ensemble(
        name,
        training(name, train_rows, test_rows, config.steps),
        jnp.tile(keys, len(hyper)),
        joined,
        steps=config.steps,
    )
    return {
        key: values.reshape(len(constants), len(WAYS), len(keys), *values.shape[1:]) for key, values in ends.items()
    }


def training(name: str, train_rows: Rows, test_rows: Rows, steps: int) -> Callable[[Array, dict[str, Array]], Any]:
    """One network from equal units: how many it has along the way, and how well it ends."""
    net, size = NETS[name], TIED_UNITS.get(name, UNITS)
    init = networks.start(net, train_rows.inputs[:1])
    params = jax.jit(init)(jax.random.key(0), random=1.0, constant=0.0)
    moved = networks.transpositions(discover(net.apply, params, train_rows.inputs[:2]), params, size)
    train = make_train(
        init,
        networks.loss(net),
        networks.optimizer(learning_rate=0.1, momentum=0.0, adam=0.0),
        train_rows,
        steps=steps,
        probes={"apart": lambda seen: networks.apart(seen.params, moved)},
        record_every=max(1, steps // RECORDS),
    )

    def result(trained: Trained) -> dict[str, Array]:
        leaves = trained.params["params"]
        found = {
            "distinct": jax.vmap(lambda values: networks.distinct(values, size))(trained.history["apart"]),
            "apart": trained.history["apart"][-1],
            "median_apart": jnp.median(trained.history["apart"], axis=1),
            "step": trained.history["step"],
            "loss": cross_entropy(net.apply)(trained.params, train_rows),
            "accuracy": accuracy(net.apply(trained.params, test_rows.inputs), test_rows.targets),
            "largest_kernel": jnp.max(
                jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(leaves) if leaf.ndim > 1])
            ),
        }
        if name in PAIRED:  # both towers' kernels; one and the same where they are shared
            first, second = leaves["Dense_0"]["kernel"], leaves["Dense_1" if name == "twins" else "Dense_0"]["kernel"]
            found["towers"] = jnp.linalg.norm(first - second) / jnp.linalg.norm(first)
        return found

    ended = train.then(result)
    return lambda key, hyper: ended(key, **hyper)


def _places(name: str, images: Float[Array, "N 8 8"]) -> dict[str, np.ndarray]:
    """At the start, for every image: how many places' activations differ, and how many units' do."""
    net = NETS[name]
    params = jax.jit(networks.start(net, images[:1]))(jax.random.key(0), random=0.0, constant=CONSTANTS[0])
    _, seen = jax.jit(lambda x: net.apply(params, x, capture_intermediates=True))(images)
    values = np.asarray(seen["intermediates"][PLACES[name][0]]["__call__"][0]).reshape(len(images), -1, UNITS)

    def count(rows: np.ndarray) -> int:
        return len(np.unique(np.round(rows, 12), axis=0))

    return {
        "places": np.array([count(each) for each in values]),
        "units": np.array([count(each.T) for each in values]),
        "of": np.array(values.shape[1]),
    }


def _regression(init: Any, loss: Any, data: Rows, steps: int) -> Any:
    return make_train(
        init,
        loss,
        optax.sgd(REGRESSION_RATE),
        data,
        steps=steps,
        batch_size=REGRESSION_BATCH,
        record_every=steps,
    )


def _weights(key: Array, shape: tuple[int, int], constant: Array, random: Array) -> dict[str, Array]:
    return {"kernel": jnp.where(random > 0, jax.random.normal(key, shape), constant), "bias": jnp.zeros(shape[1])}


def _softmax(split: Split, steps: int) -> Callable[[Array, Array, Array], Array]:
    """Test accuracy of a softmax regression on the digits."""

    def apply(params: PyTree, x: Array) -> Array:
        return x.reshape(len(x), -1) @ params["kernel"] + params["bias"]

    def init(key: Array, *, constant: Array, random: Array) -> PyTree:
        return _weights(key, (split.train.inputs[0].size, 10), constant, random)

    train = _regression(init, cross_entropy(apply), split.train, steps)

    def one(key: Array, constant: Array, random: Array) -> Array:
        params = train(key, constant=constant, random=random).params
        return accuracy(apply(params, split.test.inputs), split.test.targets)

    return one


def _linear(steps: int) -> Callable[[Array, Array, Array], Array]:
    """Squared distance of a linear regression's weights from those that made its data, over theirs."""
    rows, true = jax.random.split(jax.random.key(1))
    x, weights = jax.random.normal(rows, (ROWS, FEATURES)), jax.random.normal(true, (FEATURES, 1))
    y = x @ weights + NOISE * jax.random.normal(jax.random.fold_in(rows, 1), (ROWS, 1))

    def loss(params: PyTree, batch: Rows, key: Array) -> Array:
        del key
        return jnp.mean((batch.inputs @ params["kernel"] + params["bias"] - batch.targets) ** 2) / 2

    def init(key: Array, *, constant: Array, random: Array) -> PyTree:
        return _weights(key, (FEATURES, 1), constant, random)

    train = _regression(init, loss, Rows(x, y), steps)

    def one(key: Array, constant: Array, random: Array) -> Array:
        params = train(key, constant=constant, random=random).params
        return jnp.sum((params["kernel"] - weights) ** 2) / jnp.sum(weights**2)

    return one


def _regressed(clock: Clock, task: str, fn: Any, config: Config, keys: Array) -> np.ndarray:
    num = config.networks
    constants, random = jnp.array([0.0, CONSTANTS[0], 0.0]), jnp.array([0.0, 0.0, 1.0])
    args = jnp.tile(keys[:num], len(STARTS)), jnp.repeat(constants, num), jnp.repeat(random, num)
    values = clock.ensemble(f"{task} regression", fn, *args, steps=config.steps)
    return values.reshape(len(STARTS), num)


def _dataset(
    found: dict[str, dict[str, np.ndarray]],
    places: dict[str, dict[str, np.ndarray]],
    regressions: dict[str, np.ndarray],
) -> xr.Dataset:
    mlp, kinds = found["mlp"], list(found)
    each, few = ("start", "way", "network"), ("architecture", "way", "few")
    num_few = min(values["loss"].shape[2] for values in found.values())

    def over(name: str) -> np.ndarray:
        return np.stack([values[name][0, :, :num_few] for values in found.values()])

    variables: dict[str, Any] = {
        "distinct": ((*each, "record"), mlp["distinct"], "distinct hidden units of perceptrons"),
        "apart": ((*each, "pair"), mlp["apart"], "relative distance of two units at the end"),
        "median_apart": ((*each, "record"), mlp["median_apart"], "median relative distance of two units"),
        "loss": (each, mlp["loss"], "training loss at the end, without noise or penalty"),
        "accuracy": (each, mlp["accuracy"], "test accuracy at the end"),
        "largest_kernel": (each, mlp["largest_kernel"], "largest entry of a kernel at the end, in size"),
        "kind_distinct": (
            (*few, "record"),
            over("distinct"),
            "distinct units of each kind of network, from kernels at 0.1",
        ),
        "kind_loss": (few, over("loss"), "their training loss at the end"),
        "kind_accuracy": (few, over("accuracy"), "their test accuracy at the end"),
        "kind_apart": (
            few,
            np.stack([values["apart"][0, :, :num_few].max(-1) for values in found.values()]),
            "the largest relative distance of two of their units",
        ),
        "units": (("architecture",), [TIED_UNITS.get(name, UNITS) for name in kinds], "units that may be tied"),
        "softmax_accuracy": (("regression_start", "network"), regressions["softmax"], "of softmax regression, test"),
        "linear_error": (
            ("regression_start", "network"),
            regressions["linear"],
            "squared distance of a linear regression's weights from the true ones, over theirs",
        ),
    }
    if pairs := [name for name in PAIRED if name in found]:
        variables["towers"] = (
            ("pair_of_towers", "way", "few"),
            np.stack([found[name]["towers"][0] for name in pairs]),
            "relative distance of both towers' kernels at the end",
        )
    if places:
        for key, name, text in (
            ("places", "place_distinct", "positions or time steps with different activations at the start"),
            ("units", "place_units", "units with different activations at the start"),
        ):
            variables[name] = ("shared", "image"), np.stack([each[key] for each in places.values()]), text
        variables["places"] = ("shared",), [int(each["of"]) for each in places.values()], "positions or time steps"
    coords = {
        "start": list(CONSTANTS),
        "way": list(WAYS),
        "architecture": kinds,
        "pair_of_towers": pairs,
        "shared": list(places),
        "record": mlp["step"][0, 0, 0],
        "regression_start": list(STARTS),
    }
    whole = {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}
    return xr.Dataset(whole, coords=coords, attrs={"tolerance": TOLERANCE, "chance": 0.1})


STUDY = Study(
    title="what separates units that start equal, in perceptrons and other kinds of networks",
    config=Config(),
    quick=Config(networks=4, few=2, steps=100, rows=64, kinds="mlp,cnn,lstm,attention,twins"),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
