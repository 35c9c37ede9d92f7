"""Why identical weights never learn: hundreds of small networks on the Titanic, from many starts, in a few programs.

The three cases follow the well-known exercise on breaking symmetry (logistic regression from zero, a hidden layer from
zero, a hidden layer from small random weights); the rest is what that exercise mentions in passing, over ensembles.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree
from scipy.spatial import distance

from jaxsym import tree
from jaxsym.data import Rows, Split, titanic
from jaxsym.models import MLP
from jaxsym.studies import minima
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys
from jaxsym.studies.titanic_page import page
from jaxsym.symmetry.canonical import canonicalize
from jaxsym.training import Probe, Snapshot, make_train, probes
from jaxsym.training.initial import initializer

HIDDEN = 4
CASE0_STEPS, CASE_STEPS = 1000, 3000  # of the exercise
INITIALIZERS = {
    "zeros": "zeros",
    "constant": "constant",
    "tied": "tied",
    "normal": "normal",
    "xavier": "xavier_normal",
    "he": "he_normal",
    "orthogonal": "orthogonal",
}
SCALES = (0.01, 0.1, 1.0, 10.0)
TIES = {"constant units, random output": ("constant", "tied"), "tied units, constant output": ("tied", "constant")}
MINIMA = (
    "xavier"  # whose ends are polished to minima, with this weight decay: without any there may be no finite minimum
)
WEIGHT_DECAY, GRADIENT_NORM, NEWTON_STEPS = 0.003, 1e-10, 200
DEPTHS = {2: (HIDDEN, HIDDEN, 1), 3: (HIDDEN, HIDDEN, HIDDEN, 1)}

Start = Callable[[Array], PyTree]


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the exercise's own numbers (4 tanh units, 1000 and 3000 iterations, rates) stay as they are."""

    networks: int = 256
    """Networks for each initializer."""
    few: int = 24
    """Networks for each of the smaller comparisons (scales, ties, depth)."""
    converge_steps: int = 300
    """Iterations of Adam (rate 0.1, cosine decay) in the runs until convergence."""
    test_fraction: float = 0.2
    """Share of the 1309 passengers kept for testing."""
    splits: int = 8
    """How many other divisions into training and test are tried, to see what one division is worth."""
    seed: int = 1
    """Of the networks and of the division into training and test."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=1, few=1, splits=1, converge_steps=1)


class _Program(NamedTuple):
    """Everything that shares one static shape: one architecture, one optimizer, any number of starts."""

    label: str
    features: tuple[int, ...]
    optimizer: optax.GradientTransformation
    steps: int
    starts: Mapping[Any, tuple[Start, int]]
    """Name -> how to draw the initial parameters from a key, and how many networks to train from there."""

    @property
    def net_steps(self) -> int:
        return self.steps * sum(num for _, num in self.starts.values())


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train all ensembles; see the attributes of the variables for what they hold."""
    data = titanic(config.seed, config.test_fraction)
    programs = _programs(config, data.train.inputs[:1])
    other_splits = config.splits * config.few * config.converge_steps
    polishing = config.few * NEWTON_STEPS
    clock = Clock(progress, sum(program.net_steps for program in programs.values()) + other_splits + polishing)
    max_networks = max(config.networks, config.few)
    results = {name: _train(clock, data, program, config.seed, max_networks) for name, program in programs.items()}
    splits = ("split", "few"), _other_splits(clock, config), {"long_name": "Xavier, at the end, on other divisions"}
    polished = _minima(clock, config, data, results["starts"][MINIMA]["end"])
    return _dataset(config, data, results).assign(polished | clock.variables() | {"split_test_accuracy": splits})


def _programs(config: Config, x: Array) -> dict[str, _Program]:
    def start(
        features: tuple[int, ...], kernel: str, bias: str = "zeros", output: str | None = None, **options: Any
    ) -> Start:
        """Draw a network; ``output`` names another initializer for the last layer."""
        bias_options = {"stddev": options["stddev"]} if bias == "normal" else {}
        net = MLP(features, kernel_init=initializer(kernel, **options), bias_init=initializer(bias, **bias_options))

        def draw(key: Array) -> PyTree:
            params = net.init(key, x)
            if output is None:
                return params
            other = MLP(features, kernel_init=initializer(output)).init(key, x)
            last = f"Dense_{len(features) - 1}"
            return {"params": params["params"] | {last: other["params"][last]}}

        return draw

    one = (HIDDEN, 1)
    starts: dict[Any, tuple[Start, int]] = {
        n: (start(one, kernel), config.networks) for n, kernel in INITIALIZERS.items()
    }
    starts |= {n: (start(one, units, output=output), config.few) for n, (units, output) in TIES.items()}
    starts |= {
        (scale, bias): (start(one, "normal", bias, stddev=scale), config.few)
        for scale in SCALES
        for bias in ("zeros", "normal")
    }
    logistic = {
        "zeros": (start((1,), "zeros"), config.networks),
        "random": (start((1,), "normal", stddev=1.0), config.networks),
    }
    adam = _adam(config.converge_steps)
    hidden = {"case1": (start(one, "zeros"), config.few), "case2": (start(one, "normal"), config.networks)}
    programs = {
        "case0": _Program("case 0, gradient descent", (1,), optax.sgd(0.001), CASE0_STEPS, logistic),
        "case0_converged": _Program("case 0, Adam", (1,), adam, config.converge_steps, logistic),
        "hidden": _Program("cases 1 and 2, gradient descent", one, optax.sgd(0.01), CASE_STEPS, hidden),
        "starts": _Program("all starts, Adam", one, adam, config.converge_steps, starts),
    }
    for depth, features in DEPTHS.items():
        deep = {n: (start(features, INITIALIZERS[n]), config.few) for n in ("zeros", "normal", "xavier")}
        programs[f"depth{depth}"] = _Program(
            f"{depth} hidden layers, Adam", features, adam, config.converge_steps, deep
        )
    return programs


def _cost(net: MLP, params: PyTree, rows: Rows) -> Array:
    """Mean cross-entropy of a sigmoid output, in nats."""
    logits = net.apply(params, rows.inputs)[:, 0]
    return jnp.mean(
        jax.nn.softplus(logits) - rows.targets * logits
    )  # optax has the same with two softplus, 19 % slower


def _accuracy(net: MLP, params: PyTree, rows: Rows) -> Array:
    return jnp.mean((net.apply(params, rows.inputs)[:, 0] > 0) == (rows.targets == 1))


def _adam(steps: int) -> optax.GradientTransformation:
    """What the runs until convergence use."""
    return optax.adam(optax.cosine_decay_schedule(0.1, steps))


def _train(clock: Clock, data: Split, program: _Program, seed: int, max_networks: int) -> dict[Any, dict[str, Any]]:
    """Train every network of a program in one compiled call; results by start, arrays ``[networks, ...]``."""
    net = MLP(program.features)

    def saturation(seen: Snapshot) -> Array:
        """Fraction of first-layer activations beyond 0.99, over the training rows."""
        layer = seen.params["params"]["Dense_0"]
        return jnp.mean(jnp.abs(jnp.tanh(data.train.inputs @ layer["kernel"] + layer["bias"])) > 0.99)

    watched: dict[str, Probe] = {"gradient_norm": probes.gradient_norm, "largest": probes.largest_entries}
    if len(program.features) > 1:
        watched |= {"distinct_units": probes.distinct_units(), "saturation": saturation}
    train = make_train(
        lambda key, start: start,
        lambda params, rows, key: _cost(net, params, rows),
        program.optimizer,
        data.train,
        steps=program.steps,
        record_every=max(1, program.steps // 50),
        probes=watched | ({"params": probes.params} if program.label.startswith("cases") else {}),
    )

    def one(key: Array, start: PyTree) -> dict[str, Any]:
        params, history = train(key, start=start)
        return history | {
            "end": params,
            "train_accuracy": _accuracy(net, params, data.train),
            "test_accuracy": _accuracy(net, params, data.test),
            "test_cost": _cost(net, params, data.test),
            "distances": probes.unit_distances(params["params"]["Dense_0"]),
        }

    counts = [num for _, num in program.starts.values()]
    keys = network_keys(seed, max_networks)  # every start draws as many, so that few shapes compile
    drawn = [
        jax.tree.map(lambda leaf, num=num: leaf[:num], jax.vmap(draw)(keys)) for draw, num in program.starts.values()
    ]
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *drawn)
    all_keys = jnp.concatenate([keys[:num] for num in counts])
    result = clock.ensemble(program.label, one, all_keys, together, steps=program.steps)
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    return {
        name: jax.tree.map(lambda leaf, rows=rows: leaf[rows], result)
        for name, rows in zip(program.starts, parts, strict=True)
    }


def _other_splits(clock: Clock, config: Config) -> np.ndarray:
    """Test accuracy ``[splits, few]`` of Xavier networks that each learn from another division of the passengers."""
    splits = [titanic(config.seed + 1 + i, config.test_fraction) for i in range(config.splits)]
    train_rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[split.train for split in splits])
    test_rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[split.test for split in splits])
    net = MLP((HIDDEN, 1), kernel_init=initializer(INITIALIZERS["xavier"]))
    steps = config.converge_steps

    def one(key: Array, split: Array) -> Array:
        train_part, test_part = jax.tree.map(lambda leaf: leaf[split], (train_rows, test_rows))
        train = make_train(
            lambda key: net.init(key, train_part.inputs[:1]),
            lambda params, rows, key: _cost(net, params, rows),
            _adam(steps),
            train_part,
            steps=steps,
            record_every=steps,
        )
        return _accuracy(net, train(key).params, test_part)

    keys = jnp.tile(network_keys(config.seed, config.few), config.splits)
    which = jnp.repeat(jnp.arange(config.splits), config.few)
    return clock.ensemble("other divisions", one, keys, which, steps=steps).reshape(config.splits, config.few)


def _minima(clock: Clock, config: Config, data: Split, ends: PyTree) -> dict[str, Any]:
    """The group, and a few networks polished to minima, as variables of the dataset."""
    net = MLP((HIDDEN, 1))
    start = minima.vectors(minima.wide(ends))[: config.few]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        problem = minima.Problem.of(net, jax.tree.map(lambda leaf: leaf[0], ends), data)

        def one(start: Array) -> tuple[minima.Polished, Array]:
            polished = problem.polish(start, WEIGHT_DECAY, GRADIENT_NORM, NEWTON_STEPS)
            canonical = canonicalize(problem.sym, problem.unravel(polished.params)).params
            return polished, ravel_pytree(canonical)[0]

        polished, canonical = clock.ensemble("polishing to minima", one, start, steps=NEWTON_STEPS)
    clock.networks -= len(start)  # the same networks again
    factors = problem.sym.factors
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {
        "group_order": ((), problem.sym.order, "elements of the group of the network with a hidden layer"),
        "group_dim": ((), problem.sym.dim, "continuous dimension of that group"),
        "factor_size": (("factor",), [factor.size for factor in factors], "units that the factor moves"),
        "factor_moves": (
            ("factor",),
            [", ".join("/".join(slot.path[1:]) + f" axis {slot.axis}" for slot in factor.slots) for factor in factors],
            "leaves",
        ),
        "minimum_loss": (("few",), polished.loss, f"with weight decay {WEIGHT_DECAY:g}, nats"),
        "minimum_gradient_norm": (("few",), polished.gradient_norm, "polished"),
        "minimum_curvature": (("few",), polished.curvature, "smallest eigenvalue of the Hessian"),
        "minimum_params": (("few", "parameter"), polished.params, "polished"),
        "minimum_canonical": (("few", "parameter"), canonical, "their canonical forms"),
        "minimum_weight_decay": ((), WEIGHT_DECAY, "of the minima"),
        "minimum_wanted": ((), GRADIENT_NORM, "what the gradient's norm was polished to"),
        "factor": (("factor",), [factor.kind for factor in factors], "kind"),
    }
    return {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}


def _dataset(config: Config, data: Split, results: Mapping[str, dict[Any, dict[str, Any]]]) -> xr.Dataset:
    """Name the dimensions."""
    case0, converged, hidden, starts = (results[name] for name in ("case0", "case0_converged", "hidden", "starts"))
    pairs = np.triu_indices(HIDDEN, k=1)

    def stack(group: Mapping[Any, dict[str, Any]], names: Any, quantity: str) -> np.ndarray:
        return np.stack([group[name][quantity] for name in names])

    def by_scale(quantity: str) -> np.ndarray:
        return np.stack([stack(starts, [(s, b) for b in ("zeros", "normal")], quantity) for s in SCALES])

    def by_depth(quantity: str) -> np.ndarray:
        return np.stack([stack(results[f"depth{d}"], ("zeros", "normal", "xavier"), quantity) for d in DEPTHS])

    def frozen(largest: Mapping[str, np.ndarray], num_layers: int) -> np.ndarray:
        """The largest entry that any leaf but the output bias ever had, per network."""
        kept = [leaf for name, leaf in largest.items() if name != f"params/Dense_{num_layers - 1}/bias"]
        return np.max(np.stack(kept), axis=(0, 2))

    weights = {name: tree.leaves(hidden[name]["params"]) for name in ("case1", "case2")}
    weight_names = [
        f"{path.removeprefix('params/')}{list(index)}"
        for path, leaf in weights["case1"].items()
        for index in np.ndindex(leaf.shape[2:])
    ]
    largest = hidden["case1"]["largest"]
    names = list(INITIALIZERS)
    deep = {d: results[f"depth{d}"]["zeros"] for d in DEPTHS}
    last_bias = {d: f"params/Dense_{len(DEPTHS[d]) - 1}/bias" for d in DEPTHS}

    def first_network(leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([leaf[0].reshape(leaf.shape[1], -1) for leaf in leaves.values()], axis=1)

    final = ("initializer", "network")
    variables: dict[str, tuple[tuple[str, ...], Any, str]] = {
        "case0_cost": (("case0_start", "network", "case0_step"), stack(case0, case0, "loss"), "training cost, nats"),
        "case0_converged_cost": (
            ("case0_start", "network", "adam_step"),
            stack(converged, converged, "loss"),
            "training cost, nats",
        ),
        "case0_test_accuracy": (
            ("case0_start", "network"),
            stack(converged, converged, "test_accuracy"),
            "at convergence",
        ),
        "case0_gradient_norm": (
            ("case0_start", "network"),
            stack(converged, converged, "gradient_norm")[..., -1],
            "at convergence",
        ),
        "case1_cost": (("few", "case_step"), hidden["case1"]["loss"], "training cost, nats"),
        "case1_largest": (
            ("leaf", "few", "case_step"),
            np.stack(list(largest.values())),
            "largest absolute entry of each leaf",
        ),
        "case1_weights": (("case_step", "weight"), first_network(weights["case1"]), "all parameters of network 0"),
        "case1_output_bias": (("few",), weights["case1"]["params/Dense_1/bias"][:, -1, 0], "at the end"),
        "case2_cost": (("network", "case_step"), hidden["case2"]["loss"], "training cost, nats"),
        "case2_weights": (("case_step", "weight"), first_network(weights["case2"]), "all parameters of network 0"),
        "case1_distinct_units": (("few", "case_step"), hidden["case1"]["distinct_units"], "up to sign"),
        "case2_distinct_units": (("network", "case_step"), hidden["case2"]["distinct_units"], "up to sign"),
        "cost": ((*final, "adam_step"), stack(starts, names, "loss"), "training cost, nats"),
        "distinct_units": ((*final, "adam_step"), stack(starts, names, "distinct_units"), "up to sign"),
        "unit_distance": (
            (*final, "pair"),
            stack(starts, names, "distances")[..., pairs[0], pairs[1]],
            "of two units, up to sign, relative to the larger norm, at the end",
        ),
        "gradient_norm": (final, stack(starts, names, "gradient_norm")[..., -1], "at the end"),
        "train_accuracy": (final, stack(starts, names, "train_accuracy"), "at the end"),
        "test_accuracy": (final, stack(starts, names, "test_accuracy"), "at the end"),
        "test_cost": (final, stack(starts, names, "test_cost"), "at the end, nats"),
        "tie_distinct_units": (("tie", "few", "adam_step"), stack(starts, TIES, "distinct_units"), "up to sign"),
        "tie_cost": (("tie", "few", "adam_step"), stack(starts, TIES, "loss"), "training cost, nats"),
        "tie_distance": (
            ("tie", "few", "pair"),
            stack(starts, TIES, "distances")[..., pairs[0], pairs[1]],
            "as unit_distance",
        ),
        "scale_cost": (("scale", "bias", "few", "adam_step"), by_scale("loss"), "training cost, nats"),
        "scale_saturation": (
            ("scale", "bias", "few", "adam_step"),
            by_scale("saturation"),
            "fraction of |tanh| > 0.99",
        ),
        "scale_test_accuracy": (("scale", "bias", "few"), by_scale("test_accuracy"), "at the end"),
        "scale_test_cost": (("scale", "bias", "few"), by_scale("test_cost"), "at the end, nats"),
        "depth_cost": (("depth", "depth_start", "few", "adam_step"), by_depth("loss"), "training cost, nats"),
        "depth_test_accuracy": (("depth", "depth_start", "few"), by_depth("test_accuracy"), "at the end"),
        "depth_zeros_largest": (
            ("depth", "few"),
            np.stack([frozen(deep[d]["largest"], d + 1) for d in DEPTHS]),
            "largest entry ever, from zero, output bias excepted",
        ),
        "depth_zeros_output_bias": (
            ("depth", "few"),
            np.stack([deep[d]["largest"][last_bias[d]][:, -1] for d in DEPTHS]),
            "absolute, at the end, from zero",
        ),
        "surviving": ((), float(np.mean(np.asarray(data.train.targets))), "fraction of the training rows of class 1"),
    }
    coordinates = {
        "case0_start": list(case0),
        "case0_step": case0["zeros"]["step"][0],
        "case_step": hidden["case1"]["step"][0],
        "adam_step": starts["zeros"]["step"][0],
        "initializer": names,
        "network": np.arange(config.networks),
        "few": np.arange(config.few),
        "leaf": [name.removeprefix("params/") for name in largest],
        "weight": weight_names,
        "pair": [f"{i}-{j}" for i, j in zip(*pairs, strict=True)],
        "tie": list(TIES),
        "scale": list(SCALES),
        "bias": ["zero", "random"],
        "depth": list(DEPTHS),
        "depth_start": ["zeros", "normal", "xavier"],
    }
    arrays = {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}
    return xr.Dataset(arrays, coords=coordinates)


def _not_finite(data: xr.Dataset) -> int:
    """Networks whose final cost is no number; the means leave them out, the page says how many there are."""
    costs = [
        array.isel({array.dims[-1]: -1})
        for name, array in data.data_vars.items()
        if str(name).endswith("cost") and "step" in str(array.dims[-1:])
    ]
    return int(sum((~np.isfinite(cost)).sum() for cost in costs))


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""

    def mean(array: xr.DataArray) -> float:
        return float(array.mean())

    end0, end, case = {"case0_step": -1}, {"adam_step": -1}, {"case_step": -1}
    largest = data["case1_largest"].isel(case).max("few")
    apart = data["unit_distance"].values
    ties, gaps = apart[apart < probes.TOLERANCE], apart[apart >= probes.TOLERANCE]
    figures = {
        f"case0_cost_{start}_{CASE0_STEPS}": mean(data["case0_cost"].sel(case0_start=start).isel(end0))
        for start in ("zeros", "random")
    }
    figures |= {
        f"case0_cost_{start}": mean(data["case0_converged_cost"].sel(case0_start=start).isel(end))
        for start in ("zeros", "random")
    }
    figures |= {
        "case1_max_abs_kernel": float(largest.sel(leaf=["Dense_0/kernel", "Dense_1/kernel"]).max()),
        "case1_max_abs_hidden_bias": float(largest.sel(leaf="Dense_0/bias")),
        "case1_output_bias": mean(data["case1_output_bias"]),
        "case1_cost_first": mean(data["case1_cost"].isel(case_step=0)),
        f"case1_cost_{CASE_STEPS}": mean(data["case1_cost"].isel(case)),
        f"case2_cost_{CASE_STEPS}": mean(data["case2_cost"].isel(case)),
    }
    for name in data["initializer"].values:
        chosen = data.sel(initializer=name)
        figures |= {
            f"distinct_units_{name}": mean(chosen["distinct_units"].isel(end)),
            f"cost_{name}": mean(chosen["cost"].isel(end)),
            f"test_accuracy_{name}": mean(chosen["test_accuracy"]),
        }
    good = (
        (data["minimum_gradient_norm"] <= data["minimum_wanted"]) & (data["minimum_curvature"] > minima.FLAT)
    ).values
    naive, canonical = (distance.pdist(data[f"minimum_{kind}"].values[good]) for kind in ("params", "canonical"))
    reach = 2 * float((data["minimum_gradient_norm"] / data["minimum_curvature"]).values[good].max(initial=0))
    between = minima.gap(np.concatenate([naive, canonical]), reach)

    def distinct(distances: np.ndarray) -> int:
        return len(np.unique(minima.classes(distances, int(good.sum()), between.tolerance)))

    seconds = float(data["run_seconds"])
    by_split = data["split_test_accuracy"].mean("few")
    return figures | {
        "test_accuracy_xavier_other_splits": float(by_split.mean()),
        "test_accuracy_xavier_split_deviation": float(by_split.std()),
        "largest_distance_of_equal_units": float(ties.max()) if ties.size else None,
        "smallest_distance_of_distinct_units": float(gaps.min()) if gaps.size else None,
        "group_order": int(data["group_order"]),
        "group_dim": int(data["group_dim"]),
        "minima": int(good.sum()),
        "minima_tolerance": between.tolerance,
        "distinct_naive": distinct(naive),
        "distinct_modulo_symmetry": distinct(canonical),
        "networks": int(data["networks"]),
        "networks_not_finite": _not_finite(data),
        "net_steps": int(data["net_steps"]),
        "net_steps_per_second": float(data["net_steps"]) / seconds,
        "compile_seconds": float(data["compile_seconds"]),
        "run_seconds": seconds,
    }


STUDY = Study(
    title="what identical weights never learn and random ones do: hundreds of networks on the Titanic",
    config=Config(),
    quick=Config(networks=16, few=4, splits=2, converge_steps=200),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
