"""How often does a ReLU network have no symmetries but permutations and rescalings? The functional dimension of thousands of networks.

At initialisation, against depth, width and input dimension, as in Grigsby, Lindsey, Rolnick 2023, arXiv:2306.06179; and during training.
"""

import dataclasses
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int
from scipy import stats

from jaxsym.data import Rows, titanic
from jaxsym.studies.functional_dimension import CHUNK, Layers, Measured, measure
from jaxsym.studies.hidden_symmetries_page import page
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys, run_counts
from jaxsym.symmetry.certify import GAP, LARGEST
from jaxsym.symmetry.count import functional_dimension
from jaxsym.training import Snapshot, make_train, probes

ARCHITECTURES = (
    "1_3_1,2_4_1,2_5_1,2_8_1,"
    "1_5_5_1,2_3_3_1,2_5_5_1,2_8_8_1,2_10_10_1,5_5_5_1,5_10_10_1,10_5_5_1,10_10_10_1,"
    "2_3_3_3_1,2_5_5_5_1,2_8_8_8_1,5_5_5_5_1,10_5_5_5_1,2_5_5_5_5_1"
)
INPUTS = 100  # per parameter, of standard deviation
SPREAD = 2.0
BIAS = 0.3  # standard deviation; kernels are He normal
MANY = 120  # parameters beyond which there are fewer networks
HIDDEN = (5, 5)  # of the networks that are trained
STARTS = {"he": 1.0, "small": 0.1}  # what the parameters are multiplied with before training
RECORDS = 10
ALIKE = 0.1  # distance of two unit vectors below which they count as one direction


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the distributions of parameters and inputs stay as they are."""

    architectures: str = ARCHITECTURES
    """Widths from input to output joined by _, architectures separated by commas."""
    networks: int = 240
    """Networks of each architecture of at most 120 parameters."""
    few: int = 80
    """Networks of each larger architecture."""
    trained: int = 48
    """Networks that are trained from each start."""
    steps: int = 1000
    """Iterations of Adam (rate 0.01, all training rows)."""
    test_fraction: float = 0.2
    """Share of the 1309 passengers kept for testing."""
    seed: int = 0
    """Of the networks, the inputs and the division into training and test."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble, and names that are no architecture."""
        expect(self, networks=1, few=1, trained=1, steps=1)
        names = self.architectures.split(",")
        for name in names:
            if not re.fullmatch(r"[1-9]\d*(_[1-9]\d*){2,}", name):
                msg = (
                    f"architectures: got {name!r}, expected positive widths from input to output joined by _, with at least one"
                    " hidden layer, and commas between architectures: 2_4_1,2_5_5_5_1 for instance."
                )
                raise ValueError(msg)
            if num_parameters(widths(name)) > LARGEST:
                msg = (
                    f"architectures: {name} has {num_parameters(widths(name))} parameters, expected at most {LARGEST}."
                )
                raise ValueError(msg)
        for name in names:
            if names.count(name) > 1:
                msg = f"architectures: {name} is there {names.count(name)} times; name each once."
                raise ValueError(msg)


def widths(name: str) -> tuple[int, ...]:
    """Widths from input to output.

    >>> widths("2_4_1")
    (2, 4, 1)
    """
    return tuple(int(width) for width in name.split("_"))


def num_parameters(widths: Sequence[int]) -> int:
    """Of a network with biases.

    >>> num_parameters((2, 4, 1))
    17
    """
    return sum((before + 1) * after for before, after in itertools.pairwise(widths))


def draw(key: Array, widths: Sequence[int]) -> tuple[Layers, Float[Array, "N n"]]:
    """A network, with He normal kernels and biases of standard deviation 0.3, and its 100 P inputs of standard deviation 2."""
    size = num_parameters(widths)
    values = jax.random.normal(key, (size * (1 + INPUTS * widths[0]),))
    return layers_of(values[:size], widths), SPREAD * values[size:].reshape(-1, widths[0])


def layers_of(values: Float[Array, " P"], widths: Sequence[int]) -> Layers:
    """Standard normal numbers as kernels and biases."""
    layers, start = [], 0
    for before, after in itertools.pairwise(widths):
        middle, end = start + before * after, start + (before + 1) * after
        layers.append((math.sqrt(2 / before) * values[start:middle].reshape(before, after), BIAS * values[middle:end]))
        start = end
    return layers


def keys_of(seed: int, widths: Sequence[int], num: int) -> Array:
    """Keys ``[num]`` of an architecture's networks, whatever other architectures there are."""
    keys = network_keys(seed, num)
    for width in widths:
        keys = jax.vmap(lambda key, width=width: jax.random.fold_in(key, width))(keys)
    return keys


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Measure all ensembles, then train and measure; see the attributes of the variables for what they hold."""
    names = config.architectures.split(",")
    counts = [config.networks if num_parameters(widths(name)) <= MANY else config.few for name in names]
    data = titanic(config.seed, config.test_fraction)
    trained = (data.train.inputs.shape[1], *HIDDEN, 1)
    records = -(-config.steps // max(1, config.steps // RECORDS)) + 1
    per_snapshot = _passes(len(data.train.inputs)) + _passes(INPUTS * num_parameters(trained))
    clock = Clock(
        progress,
        sum(num * _passes(INPUTS * num_parameters(widths(name))) for name, num in zip(names, counts, strict=True))
        + len(STARTS) * config.trained * (config.steps + records * per_snapshot),
    )
    results = [_at_initialisation(clock, name, num, config.seed) for name, num in zip(names, counts, strict=True)]
    training = _during_training(clock, config, data.train, data.test, trained)
    affine = np.pad(np.asarray(data.train.inputs, np.float64), ((0, 0), (0, 1)), constant_values=1)
    input_rank = int(np.linalg.matrix_rank(affine))
    found = _dataset(config, names, counts, results, training, trained, input_rank)
    return found.assign(clock.variables())


def _passes(inputs: int) -> int:
    """Chunks of inputs that are differentiated: what a net-step is where nothing is trained."""
    return -(-inputs // CHUNK)


def _at_initialisation(clock: Clock, name: str, num: int, seed: int) -> Measured:
    """Fields ``[num]``."""
    shape = widths(name)

    def one(key: Array) -> Measured:
        return measure(*draw(key, shape), jax.random.key(seed))

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        passes = _passes(INPUTS * num_parameters(shape))
        return clock.ensemble(f"{name} at initialisation", one, keys_of(seed, shape, num), steps=passes)


def _during_training(
    clock: Clock, config: Config, train_rows: Rows, test_rows: Rows, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Arrays ``[starts, trained, records]`` by name, and the steps of the records."""

    def outputs(layers: Layers, rows: Rows) -> Float[Array, " N"]:
        hidden = rows.inputs
        for kernel, bias in layers[:-1]:
            hidden = jax.nn.relu(hidden @ kernel + bias)
        return (hidden @ layers[-1][0] + layers[-1][1])[:, 0]

    def cost(layers: Layers, rows: Rows) -> Float[Array, ""]:
        logits = outputs(layers, rows)
        return jnp.mean(jax.nn.softplus(logits) - rows.targets * logits)

    def units(seen: Snapshot, tolerance: float) -> Int[Array, ""]:
        """Hidden units that differ by more than a rescaling: that read in different directions."""
        counts = []
        for kernel, bias in seen.params[:-1]:
            length = jnp.sqrt((kernel**2).sum(axis=0) + bias**2)
            length = jnp.where(length == 0, 1, length)
            distances = probes.unit_distances({"kernel": kernel / length, "bias": bias / length}, signs=False)
            counts.append(probes.count_distinct(distances, tolerance))
        return jnp.sum(jnp.stack(counts))

    watched = {
        "params": probes.params,
        "distinct_units": lambda seen: units(seen, probes.TOLERANCE),
        "distinct_directions": lambda seen: units(seen, ALIKE),
        "test_cost": lambda seen: cost(seen.params, test_rows),
        "test_error": lambda seen: jnp.mean((outputs(seen.params, test_rows) > 0) != (test_rows.targets == 1)),
    }
    train = make_train(
        lambda key, scale: [
            (scale * kernel, scale * bias)
            for kernel, bias in layers_of(jax.random.normal(key, (num_parameters(shape),)), shape)
        ],
        lambda params, rows, key: cost(params, rows),
        optax.adam(0.01),
        train_rows,
        steps=config.steps,
        probes=watched,
        record_every=max(1, config.steps // RECORDS),
    )
    num = config.trained
    keys = jnp.tile(keys_of(config.seed, shape, num), len(STARTS))
    scales = jnp.repeat(jnp.array(list(STARTS.values())), num)
    history = clock.ensemble(
        "training", lambda key, scale: train(key, scale=scale).history, keys, scales, steps=config.steps
    )
    records = history["step"].shape[1]
    params = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]).astype(np.float64), history.pop("params")
    )  # a network and a record after another

    key = jax.random.key(config.seed)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        seen = np.asarray(train_rows.inputs, np.float64)
        anywhere = SPREAD * jax.random.normal(key, (INPUTS * num_parameters(shape), shape[0]))
        for name, inputs in (("data", jnp.asarray(seen)), ("anywhere", anywhere)):
            found = clock.ensemble(
                f"networks in training, inputs {name}",
                lambda layers, inputs=inputs: measure(layers, inputs, key),
                params,
                steps=_passes(len(inputs)),
            )
            history |= {f"{quantity}_{name}": values for quantity, values in found._asdict().items()}
    step = history.pop("step")[0]
    return {"step": step} | {
        quantity: values.reshape(len(STARTS), num, records) for quantity, values in history.items()
    }


def _dataset(
    config: Config,
    names: Sequence[str],
    counts: Sequence[int],
    results: Sequence[Measured],
    training: dict[str, Any],
    trained: Sequence[int],
    input_rank: int,
) -> xr.Dataset:
    """Name the dimensions. ``network`` runs through the networks of all architectures, one architecture after another."""
    shapes = [widths(name) for name in names]
    fields = {field: np.concatenate([getattr(found, field) for found in results]) for field in Measured._fields}
    texts = {
        "dimension": "rank of the Jacobian of the outputs over the inputs",
        "gap": "smallest kept singular value over the largest dropped one",
        "dead": "hidden units that are active on no input",
        "always_on": "hidden units that are active on all inputs",
        "silent": "parameters that move no output at any input",
        "by_silent": "directions lost to silent parameters",
        "by_always_on": "further directions lost to always-on units",
    }
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {
        "parameters": (("architecture",), [num_parameters(shape) for shape in shapes], "number of parameters"),
        "bound": (("architecture",), [functional_dimension(shape) for shape in shapes], "parameters less hidden units"),
        "inputs": (("architecture",), [shape[0] for shape in shapes], "input dimension"),
        "depth": (("architecture",), [len(shape) - 2 for shape in shapes], "hidden layers"),
        "width": (
            ("architecture",),
            [shape[1] if len(set(shape[1:-1])) == 1 else 0 for shape in shapes],
            "of every hidden layer; 0 where they differ",
        ),
        "outputs": (("architecture",), [shape[-1] for shape in shapes], "output dimension"),
        "widths": (("network",), np.repeat(names, counts), "architecture of the network"),
        **{field: (("network",), values, texts[field]) for field, values in fields.items()},
    }
    per = ("start", "trained", "step")
    where = {"data": "on the training inputs", "anywhere": "on random inputs"}
    variables |= {
        "training_cost": (per, training["loss"], "nats"),
        "test_cost": (per, training["test_cost"], "nats"),
        "test_error": (per, training["test_error"], "fraction of the test rows"),
        "distinct_units": (per, training["distinct_units"], f"up to rescaling, to within {probes.TOLERANCE:g}"),
        "distinct_directions": (per, training["distinct_directions"], f"as distinct_units, to within {ALIKE:g}"),
        **{
            f"trained_{field}_{name}": (per, training[f"{field}_{name}"], f"{texts[field]}, {text}")
            for name, text in where.items()
            for field in Measured._fields
        },
        "trained_bound": ((), functional_dimension(trained), "of the networks that are trained"),
        "trained_parameters": ((), num_parameters(trained), "of the networks that are trained"),
        "trained_bound_data": (
            (),
            functional_dimension(trained) - trained[1] * (trained[0] + 1 - input_rank),
            "on the training inputs: as many less as their columns are dependent, for each unit that reads them",
        ),
        "trained_widths": ((), "_".join(map(str, trained)), "of the networks that are trained"),
    }
    coordinates = {
        "architecture": list(names),
        "network": np.arange(sum(counts)),
        "start": list(STARTS),
        "trained": np.arange(config.trained),
        "step": training["step"],
        "scale": ("start", list(STARTS.values())),
    }
    arrays = {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}
    return xr.Dataset(arrays, coords=coordinates)


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures. Fractions are of the networks whose rank is clear."""
    figures: dict[str, Any] = {}
    shortfalls: dict[str, Any] = {}
    violations = 0
    for name, bound in zip(data["architecture"].values, data["bound"].values, strict=True):
        own = data.isel(network=((data["widths"] == name) & (data["gap"] >= GAP)).values)
        rank = own["dimension"].values
        figures[f"fraction_{name}"] = float(np.mean(rank == bound)) if rank.size else None
        shortfalls[f"mean_shortfall_{name}"] = float(np.mean(bound - rank)) if rank.size else None
        violations += int((rank > bound).sum())
    unclear = int((data["gap"] < GAP).sum())
    gaps = [data["gap"].values.min()]
    for where in ("data", "anywhere"):
        clear = data[f"trained_gap_{where}"] >= GAP
        violations += int(((data[f"trained_dimension_{where}"] > data["trained_bound"]) & clear).sum())
        unclear += int((~clear).sum())
        gaps.append(data[f"trained_gap_{where}"].values.min())
    figures |= {
        "bound_violations": violations,
        "networks_without_clear_rank": unclear,
        "smallest_gap": float(min(gaps)),
    }
    figures |= shortfalls
    end = data.isel(step=-1)
    for start in data["start"].values:
        own = end.sel(start=start)
        figures |= {
            f"trained_dimension_{where}_{start}_{when}": float(
                data[f"trained_dimension_{where}"].sel(start=start).isel(step=index).mean()
            )
            for where in ("data", "anywhere")
            for when, index in (("first", 0), ("last", -1))
        }
        figures[f"test_error_{start}"] = float(own["test_error"].mean())
        for where in ("data", "anywhere"):
            ranks, probability = _correlation(own[f"trained_dimension_{where}"].values, own["test_error"].values)
            figures |= {f"spearman_{where}_{start}": ranks, f"p_value_{where}_{start}": probability}
    return figures | run_counts(data)


def _correlation(one: np.ndarray, other: np.ndarray) -> tuple[float | None, float | None]:
    """Spearman's rank correlation and its p-value; None where one of the two does not vary."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few networks, exact ties: the p-value is an approximation
        found = stats.spearmanr(one, other)
    return float(found.statistic), float(found.pvalue)


STUDY = Study(
    title="how often ReLU networks have hidden symmetries, by depth, width and input, and in training",
    config=Config(),
    quick=Config(
        architectures="1_3_1,2_4_1,2_3_3_1,2_5_5_1,2_5_5_5_1,5_5_5_1", networks=24, few=8, trained=6, steps=100
    ),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
