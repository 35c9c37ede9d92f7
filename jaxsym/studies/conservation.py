"""What does training conserve? Charges of hundreds of networks under gradient flow, and exactly how each optimizer breaks them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.dynamics import Charges, charges, decayed, gradient_flow, momentum_law, step_law
from jaxsym.models import MLP
from jaxsym.studies.conservation_page import page
from jaxsym.studies.study import Clock, Progress, Study, chosen, expect, network_keys, run_counts
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.precision import wide
from jaxsym.training import make_train

ROWS, BATCH = 64, 16
RATES = (0.04, 0.02, 0.01, 0.005)
TIME = 1.0  # of gradient flow, and rate times steps of every run that is compared with it
DECAY, MOMENTUM = 0.1, 0.9
LAW_RATE = 0.01
ADAM_RATE = 0.005


class Attention(nn.Module):
    """Two heads, with biases, and a mean over positions."""

    @nn.compact
    def __call__(self, x: Float[Array, "N t d"]) -> Float[Array, "N m"]:
        """Outputs ``[N, 2]``."""
        return nn.Dense(2)(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x).mean(axis=1))


class Convolution(nn.Module):
    """Two convolutions with ReLU, and a mean over positions."""

    @nn.compact
    def __call__(self, x: Float[Array, "N h w c"]) -> Float[Array, "N m"]:
        """Outputs ``[N, 2]``."""
        for channels in (4, 3):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


class Kind(NamedTuple):
    """A network, and the shape of one of its inputs."""

    net: nn.Module
    shape: tuple[int, ...]


KINDS = {
    "relu 4-8-3": Kind(MLP((8, 3), "relu"), (4,)),
    "linear 3-5-4": Kind(MLP((5, 4), "identity", use_bias=False), (3,)),
    "attention": Kind(Attention(), (5, 6)),
    "convolution": Kind(Convolution(), (6, 6, 1)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the architectures stay as they are."""

    networks: int = 64
    """Networks of each kind."""
    kinds: str = ",".join(KINDS)
    """Which, separated by commas."""
    law_steps: int = 500
    """Steps over which the exact laws are followed."""
    flow_steps: int = 200
    """Of Runge and Kutta's method."""
    seed: int = 0
    """Of the networks and of their data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2, law_steps=10, flow_steps=10)
        chosen(self.kinds, KINDS, "kind")


class Case(NamedTuple):
    """Where a network begins, and its data."""

    params: PyTree
    inputs: Float[Array, "N ..."]
    targets: Float[Array, "N m"]


def case(kind: Kind) -> Callable[[Array], Case]:
    """A function of a network's key; targets are outputs of another network of its kind, with noise."""

    def made(key: Array) -> Case:
        rows, start, move, teacher, noise = jax.random.split(key, 5)
        inputs = jax.random.normal(rows, (ROWS, *kind.shape))
        params = perturbed(move, wide(kind.net.init(start, inputs)))
        targets = kind.net.apply(perturbed(teacher, params, 1.0), inputs)
        return Case(params, inputs, targets + 0.1 * jax.random.normal(noise, targets.shape))

    return made


def group(kind: Kind) -> Symmetry:
    """Of the network, from shapes."""
    x = jax.ShapeDtypeStruct((ROWS, *kind.shape), jnp.float64)
    return discover(kind.net.apply, jax.eval_shape(lambda key, x: wide(kind.net.init(key, x)), jax.random.key(0), x), x)


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train and follow the charges; see the attributes of the variables for what they hold."""
    kinds = chosen(config.kinds, KINDS, "kind")
    slow = sum(round(TIME / rate) for rate in RATES) + round(TIME / ADAM_RATE)
    each = 1 + slow + 2 * config.law_steps + 2 * config.flow_steps
    clock = Clock(progress, config.networks * len(kinds) * each)
    keys = network_keys(config.seed, config.networks)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        found = {name: _kind(clock, config, name, kind, keys) for name, kind in kinds.items()}
    return _dataset(config, found).assign(clock.variables())


def _kind(clock: Clock, config: Config, name: str, kind: Kind, keys: Array) -> dict[str, Any]:
    sym = group(kind)
    kept = charges(sym)
    cases = clock.ensemble(f"{name}: networks", case(kind), keys, steps=1)

    def loss(params: PyTree, inputs: Array, targets: Array) -> Float[Array, ""]:
        return jnp.mean(jnp.sum((kind.net.apply(params, inputs) - targets) ** 2, axis=-1)) / 2

    def drift(optimizer: optax.GradientTransformation, steps: int) -> Callable[[Case], Array]:
        """By how much the charges differ at the end."""

        def after(case: Case) -> Array:
            def cost(params: PyTree, batch: None, key: Array) -> Array:
                del batch, key
                return loss(params, case.inputs, case.targets)

            train = make_train(lambda key: case.params, cost, optimizer, steps=steps, record_every=steps)
            return kept(train(jax.random.key(0)).params) - kept(case.params)

        return after

    def flowed(case: Case, decay: float) -> Array:
        cost = lambda params: loss(params, case.inputs, case.targets)  # noqa: E731
        end = gradient_flow(cost, case.params, TIME, config.flow_steps, weight_decay=decay).params
        return kept(end) - decayed(kept, kept(case.params), TIME, decay)

    def both(case: Case) -> dict[str, Array]:
        return {"flow": flowed(case, 0.0), "flow_decay": flowed(case, DECAY)}

    drifts = [
        clock.ensemble(
            f"{name}: SGD at {rate}", drift(optax.sgd(rate), round(TIME / rate)), cases, steps=round(TIME / rate)
        )
        for rate in RATES
    ]
    steps = round(TIME / ADAM_RATE)
    adam = clock.ensemble(f"{name}: Adam", drift(optax.adam(ADAM_RATE), steps), cases, steps=steps)
    flows = clock.ensemble(f"{name}: gradient flow", both, cases, steps=2 * config.flow_steps)
    laws = {
        label: clock.ensemble(
            f"{name}: the law of a step{label and ' with momentum'}",
            _followed(kept, sym, loss, momentum, config.law_steps),
            cases,
            keys,
            steps=config.law_steps,
        )
        for label, momentum in (("", 0.0), ("momentum_", MOMENTUM))
    }
    size = lambda values: np.linalg.norm(values, axis=-1)  # noqa: E731
    found = {
        "drift": np.stack([size(values) for values in drifts], axis=-1),
        "adam_drift": size(adam),
        "flow_drift": size(flows["flow"]),
        "flow_decay_error": size(flows["flow_decay"]),
        "initial": size(laws[""]["measured"][:, 0]),
        "charges": laws[""]["measured"],
        "law": laws[""]["said"],
        "names": kept.names,
        "without": sum(one.dim for one in kept.missing),
    }
    for label, law in laws.items():
        found[f"{label}law_error"] = np.abs(law["said"] - law["measured"]).max(axis=(1, 2))
    return found


def _followed(
    kept: Charges, sym: Symmetry, loss: Callable[..., Array], momentum: float, steps: int
) -> Callable[[Case, Array], dict[str, Array]]:
    """Minibatch SGD with weight decay: charges as measured ``[steps + 1, charges]``, and as the law says from the step before."""
    rate = LAW_RATE * (1 - momentum)
    law = momentum_law(sym) if momentum else step_law(sym)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, momentum or None))

    def followed(case: Case, key: Array) -> dict[str, Array]:
        def step(carry: tuple[PyTree, PyTree, PyTree], key: Array) -> tuple[Any, tuple[Array, Array]]:
            params, state, velocity = carry
            rows = jax.random.choice(key, ROWS, (BATCH,), replace=False)
            grads = jax.grad(loss)(params, case.inputs[rows], case.targets[rows])
            updates, state = optimizer.update(grads, state, params)
            new = optax.apply_updates(params, updates)
            said = law(params, velocity, grads, rate, momentum, DECAY) if momentum else law(params, grads, rate, DECAY)
            velocity = jax.tree.map(lambda v, g, p: momentum * v + g + DECAY * p, velocity, grads, params)
            return (new, state, velocity), (said, kept(new))

        start = case.params, optimizer.init(case.params), jax.tree.map(jnp.zeros_like, case.params)
        _, (said, measured) = jax.lax.scan(step, start, jax.random.split(key, steps))
        first = kept(case.params)[None]
        return {"said": jnp.concatenate([first, said]), "measured": jnp.concatenate([first, measured])}

    return followed


TEXTS = {
    "adam_drift": "of the charges by Adam, a norm, after as many steps as SGD at the last rate",
    "flow_drift": "of the charges by gradient flow, a norm, at time 1",
    "flow_decay_error": "gradient flow with weight decay: charges at time 1 less the closed form, a norm",
    "initial": "norm of the charges before training",
    "law_error": "the law of a step of SGD with minibatches and weight decay: largest error over steps and charges",
    "momentum_law_error": "the same with momentum",
}


def _dataset(config: Config, found: dict[str, Any]) -> xr.Dataset:
    """Name the dimensions; kinds have different numbers of charges, padded with NaN."""
    most = max(len(each["names"]) for each in found.values())

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, 0), (0, most - values.shape[-1])), constant_values=np.nan)

    stacked: dict[str, Any] = {
        name: (("kind", "network"), np.stack([each[name] for each in found.values()]), {"long_name": text})
        for name, text in TEXTS.items()
    }
    stacked["drift"] = (
        ("kind", "network", "rate"),
        np.stack([each["drift"] for each in found.values()]),
        {"long_name": "of the charges by SGD, a norm, at rate times steps = 1"},
    )
    for name, text in (
        ("charges", "along SGD with minibatches and weight decay"),
        ("law", "as the law of a step says"),
    ):
        values = np.stack([padded(each[name]) for each in found.values()])
        stacked[name] = (("kind", "network", "step", "charge"), values, {"long_name": text})
    names = np.array([[*each["names"], *[""] * (most - len(each["names"]))] for each in found.values()])
    stacked["name"] = (("kind", "charge"), names, {"long_name": "of the charge"})
    stacked["count"] = (("kind",), [len(each["names"]) for each in found.values()], {"long_name": "number of charges"})
    stacked["without"] = (
        ("kind",),
        [each["without"] for each in found.values()],
        {"long_name": "generators without a charge"},
    )
    coords = {"kind": list(found), "rate": list(RATES), "step": np.arange(config.law_steps + 1)}
    return xr.Dataset(stacked, coords=coords)


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    middle = data["drift"].median("network").values
    slopes = [float(np.polyfit(np.log(data["rate"].values), np.log(line), 1)[0]) for line in middle]
    return {
        "drift_slope": float(np.median(slopes)),
        "drift_slopes": slopes,
        "step_law_max_error": float(data["law_error"].max()),
        "momentum_law_max_error": float(data["momentum_law_error"].max()),
        "flow_drift": float(data["flow_drift"].median("network").max()),
        "flow_decay_error": float(data["flow_decay_error"].median("network").max()),
        "flow_drift_over_sgd": float((data["flow_drift"] / data["drift"].isel(rate=-1)).median("network").max()),
        "adam_drift_over_sgd": float((data["adam_drift"] / data["drift"].isel(rate=-1)).median("network").min()),
        "charges": [int(n) for n in data["count"].values],
        **run_counts(data),
    }


STUDY = Study(
    title="what training conserves: charges under gradient flow, SGD, momentum, weight decay and Adam",
    config=Config(),
    quick=Config(networks=4, law_steps=60, flow_steps=50),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
