"""Where is a minimum flat, and does symmetry say so? Spectra of networks at zero loss, the null space beside the orbit, and sharpness along it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.curvature import effective_dimension, flat, sharpness, spectrum
from jaxsym.curvature.null_space import CONTAINED
from jaxsym.data import Rows, digits, flattened
from jaxsym.models import MLP
from jaxsym.studies.flat_minima_page import SOLVED, page
from jaxsym.studies.study import Clock, Progress, Study, chosen, expect, network_keys, run_counts
from jaxsym.symmetry.count import duplicated_hessian_rank, linear_hessian_rank
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.paths import path_norm
from jaxsym.symmetry.precision import wide
from jaxsym.training import make_train

ROWS = 100
CLUSTERS = (3, 2)  # how the five units of the duplicated kinds copy two
DIGITS = MLP((10, 10), "tanh")
REACH = 3.0  # the unit of the sharpness is rescaled by up to exp of this, both ways
ALONG = 13


class Kind(NamedTuple):
    """Networks of one architecture, and what they learn.

    ``widths`` are input, hidden..., output. ``clusters`` are sizes of groups of units: a network of as many units as groups is trained, and its units
    are copied, their output weights split at random. ``rows`` of inputs. Targets are the outputs of a random network (of the small one), or noise.
    ``rank`` is that of the Hessian at zero loss in closed form, where there is one.
    """

    widths: tuple[int, ...]
    activation: str
    use_bias: bool = True
    clusters: tuple[int, ...] = ()
    rows: int = ROWS
    noise: bool = False
    rank: int | None = None

    def net(self) -> MLP:
        """The network that is looked at."""
        return MLP(self.widths[1:], self.activation, self.use_bias)

    def trained(self) -> MLP:
        """The network that is trained."""
        return MLP((len(self.clusters), self.widths[-1]), self.activation) if self.clusters else self.net()


def _linear(*widths: int) -> Kind:
    return Kind(widths, "identity", use_bias=False, rank=linear_hessian_rank(widths))


def _duplicated(activation: str) -> Kind:
    smooth = activation != "relu"
    rank = duplicated_hessian_rank(3, CLUSTERS, 1, smooth=smooth)
    return Kind((3, sum(CLUSTERS), 1), activation, clusters=CLUSTERS, rank=rank)


KINDS = {
    "tanh 3-4-2": Kind((3, 4, 2), "tanh"),
    "relu 3-4-2": Kind((3, 4, 2), "relu"),
    "linear 3-4-2": _linear(3, 4, 2),
    "linear 5-3-4": _linear(5, 3, 4),
    "linear 3-4-4-2": _linear(3, 4, 4, 2),
    "overparametrised tanh 3-16-1": Kind((3, 16, 1), "tanh", rows=20, noise=True),
    "duplicated tanh 3-2-5-1": _duplicated("tanh"),
    "duplicated relu 3-2-5-1": _duplicated("relu"),
}
SHARP = "relu 3-4-2"  # the kind that is moved along its orbit


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the architectures stay as they are."""

    networks: int = 64
    """Networks of each kind."""
    kinds: str = ",".join(KINDS)
    """Which, separated by commas."""
    adam_steps: int = 2000
    """Iterations of Adam (rate 0.03, cosine decay), before the minima are polished."""
    polish_steps: int = 1500
    """Iterations of L-BFGS, in float64."""
    digits_steps: int = 600
    """Iterations of Adam (rate 0.01) on the digits."""
    sharp: int = 8
    """Networks that are moved along their orbit."""
    test_fraction: float = 0.2
    """Share of the digits kept for testing."""
    seed: int = 0
    """Of the networks and of their data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2, adam_steps=1, polish_steps=1, digits_steps=1, sharp=1)
        self.chosen()

    def chosen(self) -> dict[str, Kind]:
        """The kinds by name, in their own order; that of the sharpness is always there."""
        return chosen(f"{self.kinds},{SHARP}", KINDS, "kind")


class Case(NamedTuple):
    """Data of one network, and its parameters before and after training."""

    inputs: Float[Array, "N n"]
    targets: Float[Array, "N m"]
    start: PyTree
    params: PyTree
    loss: Float[Array, ""]


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train, and look at the Hessian; see the attributes of the variables for what they hold."""
    steps = config.adam_steps + config.polish_steps
    kinds = config.chosen()
    clock = Clock(
        progress, config.networks * (len(kinds) * (steps + 2) + config.digits_steps + 1) + config.sharp * ALONG
    )
    keys = network_keys(config.seed, config.networks)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        found = {name: _kind(clock, config, name, kind, keys) for name, kind in kinds.items()}
        sharp = _sharp(clock, config, found[SHARP].pop("case"))
        for each in found.values():
            each.pop("case", None)
        digit = _digits(clock, config, keys)
    return _dataset(config, found, sharp, digit).assign(clock.variables())


def mean_squared(net: MLP, params: PyTree, inputs: Array, targets: Array) -> Float[Array, ""]:
    """Half the mean over rows of the squared error, summed over outputs."""
    return jnp.mean(jnp.sum((net.apply(params, inputs) - targets) ** 2, axis=-1)) / 2


def case(kind: Kind, config: Config) -> Callable[[Array], Case]:
    """A function of a network's key: its data, and its training."""
    net = kind.trained()

    def loss(params: PyTree, batch: None, key: Array, inputs: Array, targets: Array) -> Float[Array, ""]:
        del batch, key
        return mean_squared(net, params, inputs, targets)

    def train(optimizer: optax.GradientTransformation, steps: int) -> Callable[..., Any]:
        return make_train(lambda key, start: start, loss, optimizer, steps=steps, record_every=steps)

    adam = train(optax.adam(optax.cosine_decay_schedule(0.03, config.adam_steps)), config.adam_steps)
    polish = train(optax.lbfgs(), config.polish_steps)

    def made(key: Array) -> Case:
        rows, teacher, noise, start, split = jax.random.split(key, 5)
        inputs = jax.random.normal(rows, (kind.rows, kind.widths[0]))
        target = perturbed(teacher, wide(net.init(teacher, inputs)))
        targets = net.apply(target, inputs)
        if kind.noise:
            targets = jax.random.normal(noise, targets.shape)
        first = wide(net.init(start, inputs))
        rough = adam(start, start=first, inputs=inputs, targets=targets)
        ended = polish(start, start=rough.params, inputs=inputs, targets=targets)
        params = duplicated(split, ended.params, kind.clusters) if kind.clusters else ended.params
        first = duplicated(split, first, kind.clusters) if kind.clusters else first
        return Case(inputs, targets, first, params, mean_squared(kind.net(), params, inputs, targets))

    return made


def duplicated(key: Array, params: PyTree, clusters: tuple[int, ...]) -> PyTree:
    """A wider network of one hidden layer that computes the same: each unit copied, and its output weights split at random."""
    layers = params["params"]
    of = np.repeat(np.arange(len(clusters)), clusters)
    shares = jax.random.uniform(key, of.shape, minval=0.5, maxval=1.5)
    shares = shares / jax.ops.segment_sum(shares, of, len(clusters))[of]
    hidden, out = layers["Dense_0"], layers["Dense_1"]
    return {
        "params": {
            "Dense_0": {"bias": hidden["bias"][of], "kernel": hidden["kernel"][:, of]},
            "Dense_1": {"bias": out["bias"], "kernel": out["kernel"][of] * shares[:, None]},
        }
    }


def group(kind: Kind) -> Symmetry:
    """Of the network, from shapes."""
    net, x = kind.net(), jax.ShapeDtypeStruct((kind.rows, kind.widths[0]), jnp.float64)
    return discover(net.apply, jax.eval_shape(lambda key, x: wide(net.init(key, x)), jax.random.key(0), x), x)


def _kind(clock: Clock, config: Config, name: str, kind: Kind, keys: Array) -> dict[str, Any]:
    net, sym = kind.net(), group(kind)
    cases = clock.ensemble(f"{name}: training", case(kind, config), keys, steps=config.adam_steps + config.polish_steps)

    def looked_at(params: PyTree, inputs: Array, targets: Array) -> dict[str, Array]:
        def loss(params: PyTree) -> Float[Array, ""]:
            return mean_squared(net, params, inputs, targets)

        found = flat(loss, params, sym, apply=net.apply, inputs=(inputs,))
        return found._asdict() | {"outside": found.outside.max(initial=0)}

    def both(case: Case) -> dict[str, Array]:
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), case.params, case.start)
        found = jax.lax.map(lambda params: looked_at(params, case.inputs, case.targets), points)
        end, start = ({name: values[i] for name, values in found.items()} for i in (0, 1))
        told = ("orbit_dim", "outside", "identity", "gradient_norm", "rank")
        return end | {"loss": case.loss} | {f"start_{name}": start[name] for name in told}

    return clock.ensemble(f"{name}: curvature", both, cases, steps=2) | {"case": cases, "dim": sym.dim}


def _sharp(clock: Clock, config: Config, cases: Case) -> dict[str, Any]:
    """Measures along the orbit: one unit of each network is rescaled."""
    kind = KINDS[SHARP]
    net, sym = kind.net(), group(kind)
    solved = np.flatnonzero(cases.loss <= SOLVED)
    chosen = jax.tree.map(
        lambda leaf: leaf[(solved if len(solved) else np.arange(len(cases.loss)))[: config.sharp]], cases
    )
    logs = np.linspace(-REACH, REACH, ALONG)
    size = len(chosen.loss)

    def measured(case: Case, log: Array) -> dict[str, Array]:
        moved = sym.act(sym.exp(jnp.zeros(sym.dim).at[0].set(log)), case.params)
        found = sharpness(lambda params: mean_squared(net, params, case.inputs, case.targets), moved, sym)
        return {
            "trace": found.trace,
            "largest": found.largest,
            "least_trace": found.least_trace,
            "least_largest": found.least_largest,
            "trace_settled": found.trace_settled,
            "path_norm": path_norm(net.apply, moved, case.inputs[:1]),
            "effective_dimension": effective_dimension(net.apply, moved, case.inputs),
        }

    every = jax.tree.map(lambda leaf: np.repeat(leaf, ALONG, axis=0), chosen)
    found = clock.ensemble("sharpness along the orbit", measured, every, np.tile(logs, size), steps=1)
    return {name: values.reshape(size, ALONG) for name, values in found.items()} | {"log": logs}


def _digits(clock: Clock, config: Config, keys: Array) -> dict[str, Any]:
    split = flattened(digits(config.seed, config.test_fraction))

    def cost(params: PyTree, rows: Rows) -> Float[Array, ""]:
        logits = DIGITS.apply(params, rows.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows.targets).mean()

    train = make_train(
        lambda key: wide(DIGITS.init(key, split.train.inputs[:1])),
        lambda params, rows, key: cost(params, rows),
        optax.adam(0.01),
        split.train,
        steps=config.digits_steps,
        record_every=config.digits_steps,
    )
    trained = clock.ensemble("digits: training", train, keys, steps=config.digits_steps)
    train_rows, test_rows = jax.tree.map(jnp.asarray, (split.train, split.test))

    def looked_at(params: PyTree) -> dict[str, Array]:
        right = jnp.argmax(DIGITS.apply(params, test_rows.inputs), axis=1) == test_rows.targets
        return {
            "eigenvalues": spectrum(lambda params: cost(params, train_rows), params).eigenvalues,
            "accuracy": right.mean(),
        }

    found = clock.ensemble("digits: spectra", looked_at, trained.params, steps=1)
    return found | {"loss": trained.history["loss"][:, -1], "classes": len(split.classes)}


def outliers(eigenvalues: Float[np.ndarray, "networks P"], classes: int) -> np.ndarray:
    """How many eigenvalues stand apart at the top of each spectrum: above the widest gap (as a ratio) among the largest ``2 classes``."""
    top = eigenvalues[:, ::-1][:, : 2 * classes + 1]
    return np.argmax(top[:, :-1] / np.maximum(top[:, 1:], np.finfo(float).tiny), axis=1) + 1


TEXTS = {
    "loss": "half the mean squared error after training",
    "rank": "of the Hessian after training",
    "nullity": "parameters less rank",
    "orbit_dim": "dimension of the orbit",
    "contained": "whether the orbit lies in the null space",
    "gap": "smallest kept eigenvalue over the largest dropped one",
    "negative": "negative eigenvalues that are kept",
    "gradient_norm": "of the loss",
    "critical": "whether the gradient counts as zero",
    "outside": "sine of the angle between the worst generator and the null space",
    "identity": "|H xi + (D xi)' grad L| / (|H| |xi|), the worst generator",
    "unexplained": "null dimensions beside the orbit",
    "hidden": "of these, that change no output at any input",
    "on_data": "of these, that change no output at the inputs of the data",
    "beyond": "of these, that change outputs",
    "start_orbit_dim": "before training: dimension of the orbit",
    "start_outside": "before training: sine of the angle between the worst generator and the null space",
    "start_identity": "before training: |H xi + (D xi)' grad L| / (|H| |xi|)",
    "start_gradient_norm": "before training: of the loss",
    "start_rank": "before training: rank of the Hessian",
}


def _dataset(config: Config, found: dict[str, Any], sharp: dict[str, Any], digit: dict[str, Any]) -> xr.Dataset:
    """Name the dimensions; spectra of several kinds are padded with NaN."""
    width = max(each["eigenvalues"].shape[1] for each in found.values())

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=np.nan)

    variables: dict[str, Any] = {
        name: (("kind", "network"), np.stack([each[name] for each in found.values()]), text)
        for name, text in TEXTS.items()
    }
    variables |= {
        "eigenvalues": (
            ("kind", "network", "index"),
            np.stack([padded(each["eigenvalues"]) for each in found.values()]),
            "of the Hessian after training, ascending; NaN beyond the number of parameters",
        ),
        "parameters": (("kind",), [each["eigenvalues"].shape[1] for each in found.values()], "number of parameters"),
        "dim": (("kind",), [each["dim"] for each in found.values()], "Lie dimension of the group"),
        "formula": (
            ("kind",),
            [np.nan if kind.rank is None else kind.rank for kind in config.chosen().values()],
            "rank at zero loss in closed form; NaN where there is none",
        ),
        "digits_eigenvalues": (
            ("network", "digits_index"),
            digit["eigenvalues"],
            "of the Hessian on the digits, ascending",
        ),
        "digits_loss": (("network",), digit["loss"], "cross-entropy on the training digits (nats)"),
        "digits_accuracy": (("network",), digit["accuracy"], "share of the test digits"),
        "classes": ((), digit["classes"], "of the digits"),
    }
    texts = {
        "trace": "of the Hessian",
        "largest": "eigenvalue of the Hessian",
        "least_trace": "least along the orbit",
        "least_largest": "least largest eigenvalue along the orbit",
        "trace_settled": "whether the gradient of the trace along the orbit vanishes there",
        "path_norm": "sum over paths of squared products of weights, square root",
        "effective_dimension": "rank of the Jacobian of the outputs on the data",
    }
    variables |= {f"sharp_{name}": (("moved", "log"), sharp[name], text) for name, text in texts.items()}
    arrays = {name: (dims, values, {"long_name": text}) for name, (dims, values, text) in variables.items()}
    return xr.Dataset(
        arrays,
        coords={
            "kind": list(found),
            "network": np.arange(config.networks),
            "log": sharp["log"],
        },
    )


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures; ranks are the most frequent ones among networks at zero loss, None where no network is."""
    solved = (data["loss"] <= SOLVED).values
    figures: dict[str, Any] = {}
    agreement = []
    for name, ranks, ok, formula in zip(
        data["kind"].values, data["rank"].values, solved, data["formula"].values, strict=True
    ):
        values, counts = np.unique(ranks[ok], return_counts=True)
        most = int(values[counts.argmax()]) if len(values) else None
        figures[_key(str(name))] = most
        if len(values) and np.isfinite(formula):
            agreement.append(float(np.mean(ranks[ok] == formula)))
    critical = data["critical"].values & (data["orbit_dim"].values > 0)
    moving = data["start_orbit_dim"].values > 0
    count = outliers(data["digits_eigenvalues"].values, int(data["classes"]))
    sharp = {name: data[f"sharp_{name}"].values for name in ("largest", "trace", "least_trace", "path_norm")}
    return figures | {
        "rank_formula_agreement": min(agreement, default=None),
        "orbit_contained": float(data["contained"].values[critical].mean()) if critical.any() else None,
        "orbit_contained_at_start": float((data["start_outside"].values[moving] <= CONTAINED).mean()),
        "identity_error_max": float(max(data["identity"].max(), data["start_identity"].max())),
        "solved": [float(ok.mean()) for ok in solved],
        "outliers_digits": int(np.median(count)),
        "outliers_digits_mean": float(count.mean()),
        "classes": int(data["classes"]),
        "sharpness_largest_ratio": float((sharp["largest"].max(1) / sharp["largest"].min(1)).max()),
        "sharpness_trace_ratio": float((sharp["trace"].max(1) / sharp["trace"].min(1)).max()),
        "least_trace_spread": float((np.ptp(sharp["least_trace"], axis=1) / sharp["least_trace"].min(1)).max()),
        "path_norm_spread": float((np.ptp(sharp["path_norm"], axis=1) / sharp["path_norm"].min(1)).max()),
        "effective_dimension_spread": int(np.ptp(data["sharp_effective_dimension"].values, axis=1).max()),
        **run_counts(data),
    }


def _key(name: str) -> str:
    """``rank_3_4_2`` for linear networks, ``duplicated_3_2_5_1_relu``, and so on."""
    *words, widths = name.replace("-", "_").split()
    if words[0] == "duplicated":
        return f"duplicated_{widths}_{'relu' if words[1] == 'relu' else 'smooth'}"
    return f"rank_{widths}" if words == ["linear"] else f"rank_{'_'.join(words)}_{widths}"


STUDY = Study(
    title="where minima are flat: null spaces beside orbits, ranks, outliers, sharpness along an orbit",
    config=Config(),
    quick=Config(networks=6, adam_steps=500, polish_steps=400, digits_steps=100, sharp=2),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
