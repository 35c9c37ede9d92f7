"""Layers that commute with a group: what shared weights count, what they save on sets, and a network that reads networks.

The colours are those of Yan King Yin 2019, "Symmetric neural networks"; the layers on sets those of Zaheer et al. 2017 (arXiv:1703.06114).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxsym.data import digits, flattened
from jaxsym.equivariant import (
    SYSTEMS,
    EquivariantDense,
    Group,
    S,
    TiedDense,
    basis,
    colours,
    constrained,
    mixed,
    parameter_space,
)
from jaxsym.models import MLP
from jaxsym.studies.equivariant_layers_page import page
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys, run_counts
from jaxsym.symmetry import host
from jaxsym.symmetry.discover import discover
from jaxsym.training import make_train

LARGEST = 8  # of the tables of colours
POINTS = 6  # numbers in a set
POOL, TESTED = 1024, 512  # sets to train on at most, and to test on
SIZES = (16, 64, 256, 1024)
BATCH = 32
RATE = 3e-3  # of Adam, for all networks on sets
METHODS = ("tied", "dense", "augmented")
UNITS, OUTPUTS = 8, 10  # of the networks that are read
ACTIVATIONS, RATES = ("tanh", "relu"), (0.05, 0.1)  # two kinds of them
READ_BATCH, READ_RATE, READ_STEPS = 64, 1e-3, 600
READERS = ("weight space", "flat")


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 200
    """Networks on sets, for each of three methods and four numbers of training sets."""
    steps: int = 1500
    """Updates of each network on sets."""
    population: int = 512
    """Networks on digits that are to be read, half of each kind; a quarter of them for the test."""
    population_steps: int = 300
    """Updates of each network on digits."""
    readers: int = 16
    """Networks that read networks, of each of two sorts."""
    label: Literal["activation", "rate"] = "activation"
    """What the two kinds of networks on digits differ in: tanh or ReLU units, or the learning rate of SGD."""
    seed: int = 0
    """Of networks and data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2, steps=10, population=16, population_steps=10, readers=2)


class TiedNet(nn.Module):
    """Three layers that commute with permutations of the points."""

    width: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """One number for each point."""
        h = x[..., None, :]
        for _ in range(2):
            h = nn.relu(TiedDense(self.width)(h))
        return TiedDense(1)(h)[..., 0, :]


class Reader(nn.Module):
    """A network that reads networks: units of the hidden layer from all parameters, then from each other, then two numbers."""

    rep_in: Any
    units: Any
    width: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "*batch parameters"]) -> Float[Array, "*batch 2"]:
        """Logits of the two kinds."""
        h = nn.relu(EquivariantDense(self.rep_in, self.units, self.width)(x[..., None, :]))
        h = nn.relu(EquivariantDense(self.units, self.units, self.width)(h))
        return EquivariantDense(self.units, self.units.group.scalar, 2)(h)[..., 0]


NETS: dict[str, nn.Module] = {
    "tied": TiedNet(),
    "dense": MLP((32, 32, POINTS), "relu"),
    "augmented": MLP((32, 32, POINTS), "relu"),
}


def standardised(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """The task on sets: each point less the mean, in units of the standard deviation."""
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Count; train on sets; train networks on digits, and others that tell these apart."""
    total = len(METHODS) * len(SIZES) * config.networks * config.steps
    total += config.population * config.population_steps + len(READERS) * config.readers * READ_STEPS
    clock = Clock(progress, total)
    data = _counted()
    keys = network_keys(config.seed, config.networks)
    pairs = jnp.repeat(keys, len(SIZES)), jnp.tile(jnp.array(SIZES), config.networks)
    for method in METHODS:
        found = clock.ensemble(f"sets: {method}", _on_sets(method, config.steps), *pairs, steps=config.steps)
        with jax.enable_x64(True):
            ends = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), found.pop("params"))
            apart = clock.ensemble(f"sets: {method} commutes?", _apart(NETS[method]), ends, steps=0)
        found |= {"apart": apart}
        data |= {
            f"{method}/{key}": values.reshape(config.networks, len(SIZES), *values.shape[1:])
            for key, values in found.items()
        }
    population = _population(config, clock)
    for reader in READERS:
        found = clock.ensemble(
            f"reading networks: {reader}",
            _reading(reader, population),
            network_keys(config.seed + 1, config.readers),
            steps=READ_STEPS,
        )
        data |= {f"{reader}/{key}": values for key, values in found.items()}
    return _dataset(data, config).assign(clock.variables())


def _counted() -> dict[str, Any]:
    """Numbers of colours, of tensors and of functions, and how far from equivariant a random tensor of each kind is."""
    found: dict[str, Any] = {key: [] for key in COUNTED}
    for n in range(2, LARGEST + 1):
        plain = colours(SYSTEMS["quadratic"](n))
        kept = constrained(plain, mixed(n))
        V = S(n).vector
        tensors = basis(V * V, V).vectors.reshape(-1, n, n, n)
        found["linear_colours"].append(colours(SYSTEMS["linear"](n)).number)
        found["linear_dimension"].append(basis(V, V).dimension)
        found["colours"].append(plain.number)
        found["constrained"].append(len(kept))
        found["tensors"].append(len(tensors))
        found["functions"].append(_rank(tensors))
        found["colours_error"].append(_broken(host.normal(f"colours {n}", plain.number)[plain.tensor]))
        found["constrained_error"].append(_broken(np.tensordot(host.normal(f"line 8 {n}", len(kept)), kept, 1)))
    found["folded_pattern"] = colours(SYSTEMS["folded"](6)).tensor
    for name in ("folded", "folded_quadratic"):
        found[name] = [colours(SYSTEMS[name](n)).number for n in range(2, LARGEST + 1, 2)]
    ends = S(3).vector + 3 * S(3).scalar
    found["folded_first_three"] = _kept(found["folded_pattern"], basis(ends, S(3).vector))
    halves = [[3, 1, 2, 0, 4, 5], [1, 0, 2, 4, 3, 5], [1, 2, 0, 4, 5, 3]]
    wreath = Group([np.eye(6)[order] for order in halves], name="foldings of six")
    pairs = wreath.representation([np.eye(3), np.eye(3)[[1, 0, 2]], np.eye(3)[[1, 2, 0]]], name="pairs")
    folded = basis(wreath.vector, pairs)
    found["folded_by_folding"] = _kept(found["folded_pattern"], folded)
    found["folding_dimension"] = folded.dimension
    found["folding_tensor"] = colours(
        [((r, c), (s, d)) for r, c in np.ndindex(3, 6) for s, d in np.ndindex(3, 6) if (c % 3 == r) == (d % 3 == s)]
    ).tensor
    found["quadratic_tensor"] = colours(SYSTEMS["quadratic"](4)).tensor
    V = S(4).vector
    found["equivariant_tensor"] = basis(V * V, V).orbits.reshape(4, 4, 4)
    return found


def _rank(tensors: Float[np.ndarray, "d n n n"]) -> int:
    """Of the functions ``sum a^k_ij x_i x_j``, to which antisymmetric parts of tensors give nothing."""
    return int(np.linalg.matrix_rank((tensors + tensors.swapaxes(2, 3)).reshape(len(tensors), -1)))


def _broken(tensor: Float[np.ndarray, "n n n"]) -> float:
    """How far a quadratic function is from commuting with transpositions: the largest coefficient of the difference, over its own largest."""
    both, worst = tensor + tensor.swapaxes(1, 2), 0.0
    for h in range(len(tensor)):
        for k in range(h):
            order = np.arange(len(tensor))
            order[[h, k]] = k, h
            worst = max(worst, float(np.abs(both[np.ix_(order, order, order)] - both).max()))
    return worst / float(np.abs(both).max())


def _kept(pattern: np.ndarray, maps: Any) -> bool:
    """Whether every matrix with these colours is among these maps."""
    each = [(pattern == colour).astype(float) for colour in range(pattern.max() + 1)]
    return all(np.abs(maps.project(matrix) - matrix).max() < 1e-9 for matrix in each)


def _on_sets(method: str, steps: int) -> Callable[[Array, Array], dict[str, Array]]:
    net, broken = NETS[method], _apart(NETS[method])
    tested = jax.random.normal(jax.random.key(17), (TESTED, POINTS))

    def error(params: PyTree) -> Float[Array, ""]:
        return jnp.mean((net.apply(params, tested) - standardised(tested)) ** 2)

    def one(key: Array, size: Array) -> dict[str, Array]:
        pool = jax.random.normal(jax.random.fold_in(key, 1), (POOL, POINTS))

        def loss(params: PyTree, batch: None, key: Array) -> Float[Array, ""]:
            del batch
            rows, turn = jax.random.split(key)
            x = pool[jax.random.randint(rows, (BATCH,), 0, size)]
            if method == "augmented":
                x = jax.random.permutation(turn, x, axis=1, independent=True)
            return jnp.mean((net.apply(params, x) - standardised(x)) ** 2)

        train = make_train(
            lambda key: net.init(key, tested[:1]),
            loss,
            optax.adam(RATE),
            steps=steps,
            probes={"error": lambda seen: error(seen.params), "broken": lambda seen: broken(seen.params)},
            record_every=max(1, steps // 40),
        )
        params, history = train(jax.random.fold_in(key, 2))
        return {"params": params, **{name: history[name] for name in ("error", "broken", "step")}}

    return one


def _apart(net: nn.Module) -> Callable[[PyTree], Float[Array, ""]]:
    """How far a network on sets is from commuting with permutations: the difference on random sets, over the outputs."""
    order = jnp.tile(jnp.arange(POINTS), (TESTED, 1))
    order = jax.random.permutation(jax.random.key(18), order, axis=1, independent=True)

    def apart(params: PyTree) -> Float[Array, ""]:
        x = jax.random.normal(jax.random.key(19), (TESTED, POINTS), jax.tree.leaves(params)[0].dtype)
        outputs, moved = net.apply(params, x), net.apply(params, jnp.take_along_axis(x, order, 1))
        return jnp.sqrt(jnp.mean((moved - jnp.take_along_axis(outputs, order, 1)) ** 2) / jnp.mean(outputs**2))

    return apart


def _classified(net: nn.Module) -> Callable[[PyTree, tuple[Array, Array], Array], Float[Array, ""]]:
    """The cross-entropy of a batch of inputs and targets."""

    def loss(params: PyTree, batch: tuple[Array, Array], key: Array) -> Float[Array, ""]:
        del key
        inputs, targets = batch
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, inputs), targets).mean()

    return loss


def seen(population: int) -> int:
    """How many of the networks to read are for training."""
    return 3 * population // 4


class Population(NamedTuple):
    """Networks as rows of parameters in units of each leaf's size, their kinds, and the group that they share."""

    rows: Float[np.ndarray, "networks parameters"]
    kinds: Float[np.ndarray, " networks"]
    accuracy: Float[np.ndarray, " networks"]
    space: Any


def _population(config: Config, clock: Clock) -> Population:
    """Half of the networks of either kind, each from its own start."""
    split = flattened(digits(config.seed))
    half = config.population // 2
    flat, accuracy = [], []
    for kind in range(2):
        activation = ACTIVATIONS[kind if config.label == "activation" else 0]
        rate = RATES[kind if config.label == "rate" else 1]
        net = MLP((UNITS, OUTPUTS), activation)

        def one(key: Array, net: MLP = net, rate: float = rate) -> tuple[Array, Array]:
            train = make_train(
                lambda key: net.init(key, split.train.inputs[:1]),
                _classified(net),
                optax.sgd(rate),
                (split.train.inputs, split.train.targets),
                steps=config.population_steps,
                batch_size=64,
                record_every=config.population_steps,
            )
            params = train(key).params
            right = jnp.argmax(net.apply(params, split.test.inputs), axis=-1) == split.test.targets
            return ravel_pytree(params)[0], right.mean()

        keys = network_keys(config.seed + 2 + kind, half)
        rows, right = clock.ensemble(f"networks to read, kind {kind}", one, keys, steps=config.population_steps)
        flat.append(rows)
        accuracy.append(right)
    net = MLP((UNITS, OUTPUTS), ACTIVATIONS[0])
    row = split.train.inputs[:1]
    shapes = jax.eval_shape(net.init, jax.random.key(0), row)
    space = parameter_space(discover(net.apply, shapes, row), ("permutation",))
    rows = np.stack(flat, axis=1).reshape(2 * half, -1)  # kinds take turns
    sizes = [leaf.size for leaf in space.leaves.values()]
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    rows = np.concatenate([part / np.sqrt(np.mean(part**2)) for part in parts], axis=1)
    return Population(rows, np.tile(np.arange(2), half), np.stack(accuracy, axis=1).ravel(), space)


def _reading(reader: str, population: Population) -> Callable[[Array], dict[str, Array]]:
    space = population.space
    units = space.leaves["params/Dense_0/bias"]
    net: nn.Module = Reader(space.rep, units) if reader == READERS[0] else MLP((64, 64, 2), "relu")
    rows, kinds = jnp.asarray(population.rows), jnp.asarray(population.kinds)
    cut = seen(len(rows))
    orders = network_keys(5, len(rows) - cut)
    group = space.group
    moved = np.stack(
        [space.rep.matrix(group.sample(key)) @ row for key, row in zip(orders, population.rows[cut:], strict=True)]
    ).astype(np.float32)

    def one(key: Array) -> dict[str, Array]:
        train = make_train(
            lambda key: net.init(key, rows[:1]),
            _classified(net),
            optax.adam(READ_RATE),
            (rows[:cut], kinds[:cut]),
            steps=READ_STEPS,
            batch_size=min(READ_BATCH, cut),
            record_every=READ_STEPS,
        )
        params = train(key).params
        said, again = (jnp.argmax(net.apply(params, x), axis=-1) for x in (rows[cut:], jnp.asarray(moved)))
        known = jnp.argmax(net.apply(params, rows[:cut]), axis=-1) == kinds[:cut]
        return {
            "accuracy": jnp.mean(said == kinds[cut:]),
            "train_accuracy": known.mean(),
            "changed": jnp.mean(said != again),
        }

    return one


COUNTED = {
    "linear_colours": "colours of the linear equations",
    "linear_dimension": "equivariant linear maps",
    "colours": "colours of the quadratic equations, lines 1 to 7",
    "constrained": "tensors with these colours on which line 8 holds",
    "tensors": "equivariant tensors",
    "functions": "equivariant quadratic functions",
    "colours_error": "how far a random function of these colours is from equivariant",
    "constrained_error": "the same with line 8",
}
"""Variables by the number of inputs, and their texts."""


def _dataset(data: dict[str, Any], config: Config) -> xr.Dataset:
    numbers, even = np.arange(2, LARGEST + 1), config.population // 2 * 2
    variables: dict[str, Any] = {
        key: (("n",), np.array(data[key]), {"long_name": text}) for key, text in COUNTED.items()
    }
    for name in ("folded", "folded_quadratic"):
        variables[f"{name}_colours"] = (("even",), np.array(data[name]), {"long_name": f"colours, {name}"})
    variables |= {
        "folded_pattern": (("output", "input"), data["folded_pattern"], {"long_name": "colours of six inputs folded"}),
        "folding_tensor": (("output", "input"), data["folding_tensor"], {"long_name": "what commutes with folding"}),
        "quadratic_tensor": (("k", "i", "j"), data["quadratic_tensor"], {"long_name": "quadratic colours, n = 4"}),
        "equivariant_tensor": (("k", "i", "j"), data["equivariant_tensor"], {"long_name": "orbits, n = 4"}),
        "folded_first_three": ((), int(data["folded_first_three"]), {"long_name": "commutes with S_3 on three"}),
        "folded_by_folding": ((), int(data["folded_by_folding"]), {"long_name": "commutes with foldings"}),
        "folding_dimension": ((), data["folding_dimension"], {"long_name": "maps that commute with foldings"}),
        "unseen": ((), even - seen(even), {"long_name": "networks to read that readers have not seen"}),
        "label": ((), config.label, {"long_name": "by what networks on digits differ"}),
    }
    for key, text in {"error": "mean square error on test sets", "broken": "equivariance error, relative"}.items():
        values = np.stack([data[f"{method}/{key}"] for method in METHODS])
        variables[key] = (("layers", "network", "size", "record"), values, {"long_name": text})
    apart = np.stack([data[f"{method}/apart"] for method in METHODS])
    variables["apart"] = (("layers", "network", "size"), apart, {"long_name": "the same at the end, in float64"})
    for key, text in {
        "accuracy": "of networks that tell networks apart, on others",
        "train_accuracy": "on those that they have seen",
        "changed": "answers that change when hidden units are permuted",
    }.items():
        values = np.stack([data[f"{reader}/{key}"] for reader in READERS])
        variables[f"read_{key}"] = (("reader", "reading"), values, {"long_name": text})
    coords = {
        "n": numbers,
        "even": numbers[::2],
        "layers": list(METHODS),
        "size": list(SIZES),
        "record": data["tied/step"][0, 0],
        "reader": list(READERS),
    }
    return xr.Dataset(variables, coords=coords)


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    error = data["error"].isel(record=-1).median("network")
    read = data["read_accuracy"].mean("reading")
    changed = data["read_changed"].mean("reading")
    figures: dict[str, Any] = {}
    for key, name in (("colours", "colours"), ("constrained", "constrained"), ("tensors", "equivariant_tensors")):
        figures |= {f"{name}_{n}": int(data[key].sel(n=n)) for n in data["n"].values}
    figures |= {f"equivariant_functions_{n}": int(data["functions"].sel(n=n)) for n in data["n"].values}
    return figures | {
        "folded_colours": int(data["folded_pattern"].max()) + 1,
        "folded_pattern": [[int(colour) for colour in row] for row in data["folded_pattern"].values],
        "folded_quadratic_colours": [int(number) for number in data["folded_quadratic_colours"].values],
        "folding_dimension": int(data["folding_dimension"]),
        "colours_error": float(data["colours_error"].sel(n=slice(3, None)).min()),
        "constrained_error": float(data["constrained_error"].max()),
        **{f"{method}_error": float(error.sel(layers=method).isel(size=0)) for method in METHODS},
        **{f"{method}_errors": [float(value) for value in error.sel(layers=method)] for method in METHODS},
        **{f"equivariance_error_{method}": float(data["apart"].sel(layers=method).max()) for method in METHODS},
        "weightspace_accuracy": float(read.sel(reader=READERS[0])),
        "flat_accuracy": float(read.sel(reader=READERS[1])),
        "weightspace_changed": float(changed.sel(reader=READERS[0])),
        "flat_changed": float(changed.sel(reader=READERS[1])),
        **run_counts(data),
    }


STUDY = Study(
    title="layers that commute with a group: colours, sets, and a network that reads networks",
    config=Config(),
    quick=Config(networks=4, steps=100, population=48, population_steps=40, readers=2),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
