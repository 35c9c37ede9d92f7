"""What do charges decide? One function, many points of its orbit: which minimum each start reaches; and where noise and decay drive the charges.

The equilibrium of noise is that of Ziyin et al. 2024 (arXiv:2402.07193): the charge drifts until both layers' squared gradients are equal in the mean.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree
from scipy import stats

from jaxsym.curvature import hessian
from jaxsym.dynamics import charges
from jaxsym.models import MLP
from jaxsym.studies.implicit_bias_page import page
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys, run_counts
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.scales import balance

LEVELS = np.linspace(0, 3, 7)
"""By the exponential of these what comes in is made larger, and what goes out smaller: the function stays."""
SMALL = 0.3  # size of the balanced starts of linear networks, of a usual one
STEP = 0.5  # rates, times the sharpness at the start
NOISE, NOISE_RATE, NOISE_INPUTS = 1.0, 0.02, 4
DECAYS = (0.05, 0.2, 0.4, 0.7, 1.2, 2.5)
SINGULAR = (2.0, 1.0, 0.5, 0.3, 0.1)
DECAY_RATE, DECAY_STEPS = 0.05, 4000
ALIVE = 1e-3  # singular values, or norms of units, below this are 0


class Problem(NamedTuple):
    """What a network is to fit: rows for training and for the test."""

    inputs: Array
    targets: Array
    test_inputs: Array
    test_targets: Array


class Kind(NamedTuple):
    """Networks, and how a problem of theirs is drawn; ``size`` multiplies the initialisation."""

    net: MLP
    inputs: int
    rows: int
    teacher: MLP
    size: float


KINDS = {
    "linear 10-10-10": Kind(
        MLP((10, 10), "identity", use_bias=False), 10, 6, MLP((2, 10), "identity", use_bias=False), SMALL
    ),
    "relu 10-50-1": Kind(MLP((50, 1), "relu"), 10, 40, MLP((2, 1), "relu"), 0.5),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 64
    """Of each kind, at each level; of the noise and of each decay."""
    steps: int = 4000
    """Of gradient descent."""
    noise_steps: int = 20000
    """Of SGD with noisy labels."""
    seed: int = 0
    """Of networks and problems."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2, steps=10, noise_steps=10)


def problem(kind: Kind, key: Array) -> Problem:
    """Inputs are normal; targets are outputs of a narrow network."""
    rows, more, start = jax.random.split(key, 3)
    inputs, others = (jax.random.normal(k, (n, kind.inputs)) for k, n in ((rows, kind.rows), (more, 200)))
    params = kind.teacher.init(start, inputs)
    scale = jnp.std(kind.teacher.apply(params, others))
    return Problem(
        inputs, kind.teacher.apply(params, inputs) / scale, others, kind.teacher.apply(params, others) / scale
    )


def unbalanced(sym: Symmetry, params: PyTree, level: Array) -> PyTree:
    """The point of the orbit at which every unit's inputs are larger by ``exp(level)``."""
    return sym.act(sym.exp(level * along(sym)), params)


def along(sym: Symmetry) -> Float[np.ndarray, " dim"]:
    """Coordinates of the generator that makes what all hidden units read larger."""
    parts = []
    for factor in sym.factors:
        if factor.kind in ("scaling", "general_linear"):
            grows = next(slot.exponent for slot in factor.slots if slot.path[-2] == "Dense_0")
            one = np.eye(factor.size).ravel() if factor.kind == "general_linear" else np.ones(factor.size)
            parts.append(one / grows)
    return np.concatenate(parts)


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Descend from every level of every network; then noise, then decay."""
    pairs = config.networks * len(LEVELS)
    total = len(KINDS) * pairs * config.steps + config.networks * (config.noise_steps + len(DECAYS) * DECAY_STEPS)
    clock = Clock(progress, total)
    keys = network_keys(config.seed, config.networks)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        found = {}
        for name, kind in KINDS.items():
            both = jnp.repeat(keys, len(LEVELS)), jnp.tile(jnp.array(LEVELS), config.networks)
            ends = clock.ensemble(
                f"{name}: from {len(LEVELS)} points of an orbit",
                _descent(kind, config.steps),
                *both,
                steps=config.steps,
            )
            found[name] = {key: values.reshape(config.networks, len(LEVELS)) for key, values in ends.items()}
        ratios = jnp.exp(jnp.linspace(-4, 4, config.networks))
        noise = clock.ensemble("noise", _noise(config.noise_steps), keys, ratios, steps=config.noise_steps)
        decays = jnp.repeat(keys, len(DECAYS)), jnp.tile(jnp.array(DECAYS), config.networks)
        collapsed = clock.ensemble("weight decay", _collapse, *decays, steps=DECAY_STEPS)
    return _dataset(config, found, np.asarray(ratios), noise, collapsed).assign(clock.variables())


def _descent(kind: Kind, steps: int) -> Callable[[Array, Array], dict[str, Array]]:
    row = jax.ShapeDtypeStruct((1, kind.inputs), jnp.float64)
    sym = discover(kind.net.apply, jax.eval_shape(kind.net.init, jax.random.key(0), row), row)
    kept = charges(sym)

    def one(key: Array, level: Array) -> dict[str, Array]:
        data = problem(kind, key)

        def loss(params: PyTree) -> Float[Array, ""]:
            return jnp.mean(jnp.sum((kind.net.apply(params, data.inputs) - data.targets) ** 2, axis=-1)) / 2

        drawn = kind.net.init(jax.random.fold_in(key, 1), data.inputs)
        start = unbalanced(sym, balance(sym, jax.tree.map(lambda leaf: kind.size * leaf, drawn)), level)
        rate = STEP / jnp.maximum(jnp.abs(jnp.linalg.eigvalsh(hessian(loss, start))).max(), 1.0)

        def step(params: PyTree, _: None) -> tuple[PyTree, None]:
            return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params)), None

        end, _ = jax.lax.scan(step, start, length=steps)
        first = end["params"]["Dense_0"]["kernel"]
        last = end["params"]["Dense_1"]["kernel"]
        shown = first @ last if kind.net.activation == "identity" else first * jnp.linalg.norm(last, axis=1)
        values = jnp.linalg.svd(shown, compute_uv=False)
        share = values / values.sum()
        apart = kind.net.apply(end, data.test_inputs) - data.test_targets
        return {
            "charge": jnp.linalg.norm(kept(start)),
            "charge_at_end": jnp.linalg.norm(kept(end)),
            "loss": loss(end),
            "test_error": jnp.mean(jnp.sum(apart**2, axis=-1)) / jnp.mean(jnp.sum(data.test_targets**2, axis=-1)),
            "rank": jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)))),
            "norm": values.sum(),
            "sharpness": jnp.linalg.eigvalsh(hessian(loss, end))[-1],
        }

    return one


def _noise(steps: int) -> Callable[[Array, Array], dict[str, Array]]:
    """One linear unit ``v u . x`` under SGD with one normal input a step, and a noisy label: ``|u|^2 / v^2`` along the way."""

    def one(key: Array, ratio: Array) -> dict[str, Array]:
        target = jnp.zeros(NOISE_INPUTS).at[0].set(1.0)
        start = ratio**0.25 * target, ratio**-0.25

        def step(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            u, v = state
            one, two = jax.random.split(key)
            x = jax.random.normal(one, (NOISE_INPUTS,))
            residual = v * (u @ x) - target @ x - NOISE * jax.random.normal(two)
            scale = jnp.minimum(NOISE_RATE, 0.2 / (v**2 * NOISE_INPUTS + u @ u))  # no step leaps over the minimum
            u, v = u - scale * residual * v * x, v - scale * residual * (u @ x)
            return (u, v), jnp.log((u @ u) / v**2)

        (u, v), ratios = jax.lax.scan(step, start, jax.random.split(key, steps))
        records = ratios[:: max(1, steps // 200)]
        return {"ratio": jnp.exp(records), "end": jnp.exp(jnp.mean(ratios[steps // 2 :])), "product": v * u[0]}

    return one


def _collapse(key: Array, decay: Array) -> dict[str, Array]:
    """Weight decay on products ``u_i v_i``, a linear and a tanh network: units, singular values, and directions that are read, of those there were."""
    size = len(SINGULAR)
    first, second, third = jax.random.split(key, 3)
    target = jnp.diag(jnp.array(SINGULAR))

    def fitted(a: Array, b: Array) -> Array:
        return jnp.sum((a @ b - target) ** 2) / 2 + decay / 2 * (jnp.sum(a**2) + jnp.sum(b**2))

    def alone(u: Array, v: Array) -> Array:
        return jnp.sum((u * v - jnp.array(SINGULAR)) ** 2) / 2 + decay / 2 * (jnp.sum(u**2) + jnp.sum(v**2))

    inputs = jax.random.normal(third, (50, size))

    def bent(a: Array, b: Array) -> Array:
        return jnp.sum((jnp.tanh(inputs @ a) @ b - inputs @ target) ** 2) / (2 * len(inputs)) + decay / 2 * (
            jnp.sum(a**2) + jnp.sum(b**2)
        )

    start = jax.random.normal(first, (size, size)) / 2, jax.random.normal(second, (size, size)) / 2

    def descended(loss: Callable[[Array, Array], Array], start: tuple[Array, Array]) -> tuple[Array, Array]:
        def step(at: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            return jax.tree.map(lambda p, g: p - DECAY_RATE * g, at, jax.grad(lambda at: loss(*at))(at)), None

        return jax.lax.scan(step, start, length=DECAY_STEPS)[0]

    a, b = descended(fitted, start)
    c, _ = descended(bent, start)
    u, v = descended(alone, (start[0][0], start[1][0]))
    return {
        "alive": (jnp.linalg.svd(a @ b, compute_uv=False) > ALIVE).sum(),
        "directions": (jnp.linalg.svd(c, compute_uv=False) > ALIVE).sum(),
        "units": (jnp.abs(u * v) > ALIVE).sum(),
    }


TEXTS = {
    "charge": "norm of the charges at the start",
    "charge_at_end": "norm of the charges at the end",
    "loss": "training loss at the end",
    "test_error": "mean square error on the test rows, in units of the targets'",
    "rank": "effective rank (exponential of the entropy of the singular values) of the map, or of the units",
    "norm": "nuclear norm of the same",
    "sharpness": "largest eigenvalue of the Hessian at the end",
}


def _dataset(config: Config, found: dict[str, Any], ratios: np.ndarray, noise: Any, collapsed: Any) -> xr.Dataset:
    variables: dict[str, Any] = {
        key: (("kind", "network", "level"), np.stack([each[key] for each in found.values()]), {"long_name": text})
        for key, text in TEXTS.items()
    }
    shape = config.networks, len(DECAYS)
    records = np.arange(0, config.noise_steps, max(1, config.noise_steps // 200))
    variables |= {
        "noise_ratio": (
            ("network", "record"),
            noise["ratio"],
            {"long_name": "|u|^2 / v^2 along SGD with noisy labels"},
        ),
        "noise_end": (("network",), noise["end"], {"long_name": "its geometric mean over the second half"}),
        "noise_product": (("network",), noise["product"], {"long_name": "v u_1 at the end; the target is 1"}),
        "noise_start": (("network",), ratios, {"long_name": "|u|^2 / v^2 at the start"}),
        "alive": (
            ("network", "decay"),
            collapsed["alive"].reshape(shape),
            {"long_name": "singular values left, linear"},
        ),
        "directions": (
            ("network", "decay"),
            collapsed["directions"].reshape(shape),
            {"long_name": "directions that are read, tanh"},
        ),
        "units": (("network", "decay"), collapsed["units"].reshape(shape), {"long_name": "units left, products"}),
    }
    coords = {"kind": list(found), "level": LEVELS, "decay": list(DECAYS), "record": records}
    return xr.Dataset(variables, coords=coords)


def predicted(decay: float) -> int:
    """Singular values that weight decay leaves: the minimum shrinks each by the decay, and what would be below 0 is 0."""
    return sum(value > decay for value in SINGULAR)


def _correlated(charge: xr.DataArray, error: xr.DataArray, fitted: xr.DataArray, kind: int, network: int) -> float:
    """Rank correlation over the levels of one network, which have one problem; NaN where fewer than three have fitted it."""
    ok = fitted.values[kind, network]
    pair = charge.values[kind, network][ok], error.values[kind, network][ok]
    return float(stats.spearmanr(*pair).statistic) if ok.sum() > 2 else float("nan")


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    fitted = data["loss"] < FITTED
    within = [
        [
            _correlated(data["charge"], data["test_error"], fitted, kind, network)
            for network in range(data.sizes["network"])
        ]
        for kind in range(data.sizes["kind"])
    ]
    correlations = [float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for values in within]
    agreement = [
        data[key].sel(decay=decay).values == predicted(float(decay))
        for key in ("alive", "units")
        for decay in data["decay"].values
    ]
    return {
        "charge_test_error_correlation": float(np.mean(correlations)),
        "charge_test_error_correlations": correlations,
        "fitted": [float(value) for value in fitted.mean(("network", "level")).values],
        "noise_ratio": float(np.exp(np.log(data["noise_end"]).mean())),
        "noise_ratio_predicted": NOISE_INPUTS,
        "noise_ratio_start_correlation": float(stats.spearmanr(data["noise_start"], data["noise_end"]).statistic),
        "collapse_agreement": float(np.mean(agreement)),
        **run_counts(data),
    }


FITTED = 1e-3
"""A training loss below this counts as fitted: other networks have not reached a minimum, and no correlation counts them."""

STUDY = Study(
    title="what charges decide: the minimum that is reached, where noise drives them, what decay removes",
    config=Config(),
    quick=Config(networks=4, steps=200, noise_steps=2000),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data), {float(d): predicted(float(d)) for d in data["decay"].values}, FITTED),
)
