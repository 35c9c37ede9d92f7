"""Which optimizers see a rescaling? SGD, path-SGD and balanced SGD, from balanced starts and from unbalanced points of the same orbits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.data import digits, flattened
from jaxsym.dynamics import balancing, charges, path_sgd
from jaxsym.models import MLP
from jaxsym.studies.invariant_optimizers_page import page
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys, run_counts
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.precision import wide
from jaxsym.symmetry.scales import balance
from jaxsym.training import make_train

NET = MLP((16, 10), "relu")
BATCH = 128
OPTIMIZERS: dict[str, tuple[float, ...]] = {
    "SGD": (0.1, 0.3, 1.0),
    "balanced SGD": (0.1, 0.3, 1.0),
    "path-SGD": (0.3, 1.0, 3.0),
}
"""With the learning rates that are tried: each optimizer's best, on balanced starts, is shown."""
STARTS = ("balanced", "unbalanced")
COMMUTED = 30  # steps after which both ways round are compared


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 128
    """Of each optimizer, rate and start."""
    steps: int = 300
    """Updates."""
    spread: float = 1.5
    """Standard deviation of the logarithm by which units are rescaled."""
    seed: int = 0
    """Of the networks, of their batches, and of the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=2, steps=10)
        if not self.spread > 0:
            msg = f"spread: got {self.spread}, expected more than 0."
            raise ValueError(msg)


def optimizer(name: str, sym: Symmetry, rate: Any, row: Array) -> optax.GradientTransformation:
    """One of ``OPTIMIZERS``; ``row`` is one input."""
    if name == "path-SGD":
        return path_sgd(NET.apply, rate, row)
    plain = optax.sgd(rate)
    return balancing(plain, sym) if name == "balanced SGD" else plain


def _cost(params: PyTree, batch: Any, key: Array) -> Float[Array, ""]:
    del key
    return optax.softmax_cross_entropy_with_integer_labels(NET.apply(params, batch.inputs), batch.targets).mean()


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train from both kinds of starts; then measure in float64 which optimizers commute with a rescaling."""
    split = flattened(digits(config.seed))
    row = split.train.inputs[:1]
    sym = discover(NET.apply, jax.eval_shape(NET.init, jax.random.key(0), row), row)
    rates = np.array(list(OPTIMIZERS.values()))
    each = config.steps * rates.size * len(STARTS) + 2 * COMMUTED * len(OPTIMIZERS)
    clock = Clock(progress, config.networks * each)
    keys = network_keys(config.seed, config.networks)

    def start(key: Array, name: str) -> PyTree:
        params = balance(sym, NET.init(key, row))
        return params if name == "balanced" else sym.act(sym.sample(jax.random.fold_in(key, 1), config.spread), params)

    def trained(name: str, where: str) -> Callable[[Array, Array], dict[str, Array]]:
        def one(key: Array, rate: Array) -> dict[str, Array]:
            train = make_train(
                lambda key: start(key, where),
                _cost,
                optimizer(name, sym, rate, row),
                split.train,
                steps=config.steps,
                batch_size=BATCH,
                probes={"whole": lambda seen: _cost(seen.params, split.train, key)},
                record_every=max(1, config.steps // 50),
            )
            done = train(key)
            logits = NET.apply(done.params, split.test.inputs)
            error = jnp.mean(jnp.argmax(logits, axis=-1) != split.test.targets)
            return {"step": done.history["step"], "loss": done.history["whole"], "error": error}

        return one

    curves: dict[str, dict[str, Any]] = {}
    for name, tried in OPTIMIZERS.items():
        pairs = jnp.repeat(keys, len(tried)), jnp.tile(jnp.array(tried), config.networks)
        for where in STARTS:
            found = clock.ensemble(f"{name}, {where}", trained(name, where), *pairs, steps=config.steps)
            curves[f"{name}/{where}"] = {
                key: values.reshape(config.networks, len(tried), *values.shape[1:]) for key, values in found.items()
            }
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        wide_rows = wide(split.train.inputs[:BATCH])
        commuted = {
            name: clock.ensemble(
                f"{name}: commutes?",
                _commutation(name, sym, tried[1], wide_rows, split.train.targets[:BATCH], start, config.spread),
                keys,
                steps=2 * COMMUTED,
            )
            for name, tried in OPTIMIZERS.items()
        }
    return _dataset(curves, commuted, rates).assign(clock.variables())


def _commutation(
    name: str,
    sym: Symmetry,
    rate: float,
    inputs: Array,
    targets: Array,
    start: Callable[[Array, str], PyTree],
    spread: float,
) -> Callable[[Array], dict[str, Array]]:
    """Train and then rescale, or rescale and then train: how far apart parameters and outputs are."""
    opt = optax.with_extra_args_support(optimizer(name, sym, rate, inputs[:1]))

    def loss(params: PyTree) -> Float[Array, ""]:
        return optax.softmax_cross_entropy_with_integer_labels(NET.apply(params, inputs), targets).mean()

    def after(params: PyTree) -> PyTree:
        def step(carry: tuple[PyTree, PyTree], number: Array) -> tuple[tuple[PyTree, PyTree], None]:
            params, state = carry
            updates, state = opt.update(jax.grad(loss)(params), state, params, step=number)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, opt.init(params)), jnp.arange(COMMUTED))[0][0]

    def measured(key: Array) -> dict[str, Array]:
        params = wide(start(key, "balanced"))
        element = sym.sample(jax.random.fold_in(key, 2), spread)
        here, there = after(params), after(sym.act(element, params))
        moved = sym.act(element, here)
        apart = optax.tree.norm(optax.tree.sub(moved, there)) / optax.tree.norm(moved)
        outputs = NET.apply(here, inputs)
        return {
            "commutation_error": apart,
            "output_error": jnp.abs(NET.apply(there, inputs) - outputs).max() / jnp.abs(outputs).max(),
            "charge": jnp.abs(charges(sym)(balance(sym, there))).max(),
            "charge_of_end": jnp.abs(charges(sym)(there)).max(),
        }

    return measured


TEXTS = {
    "commutation_error": "parameters, trained and then rescaled, less rescaled and then trained, relative",
    "output_error": "outputs of both, relative",
    "charge": "largest charge after balancing",
    "charge_of_end": "largest charge before",
}


def _dataset(curves: dict[str, Any], commuted: dict[str, Any], rates: np.ndarray) -> xr.Dataset:
    names = list(OPTIMIZERS)

    def stacked(key: str) -> np.ndarray:
        return np.stack([[curves[f"{name}/{where}"][key] for where in STARTS] for name in names])

    variables: dict[str, Any] = {
        "loss": (
            ("optimizer", "start", "network", "rate", "record"),
            stacked("loss"),
            {"long_name": "cross-entropy of all training rows"},
        ),
        "error": (("optimizer", "start", "network", "rate"), stacked("error"), {"long_name": "test error"}),
        "tried": (("optimizer", "rate"), rates, {"long_name": "learning rates"}),
    }
    for key, text in TEXTS.items():
        values = np.stack([commuted[name][key] for name in names])
        variables[key] = (("optimizer", "network"), values, {"long_name": text})
    steps = curves[f"{names[0]}/{STARTS[0]}"]["step"][0, 0]
    return xr.Dataset(variables, coords={"optimizer": names, "start": list(STARTS), "record": steps})


def best(data: xr.Dataset) -> xr.DataArray:
    """Index of the rate with the lowest median loss at the end, on balanced starts, for each optimizer."""
    last = data["loss"].sel(start="balanced").isel(record=-1).median("network")
    return last.fillna(np.inf).argmin("rate").reset_coords(drop=True)


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    chosen = best(data)
    last = data["loss"].isel(record=-1, rate=chosen).median("network")
    error = data["error"].isel(rate=chosen).median("network")
    figures: dict[str, Any] = {
        "path_sgd_commutation_error": float(data["commutation_error"].sel(optimizer="path-SGD").max()),
        "sgd_commutation_error": float(data["commutation_error"].sel(optimizer="SGD").median()),
        "balanced_output_error": float(data["output_error"].sel(optimizer="balanced SGD").max()),
        "balanced_charge_max": float(data["charge"].max()),
    }
    for name in OPTIMIZERS:
        short = name.lower().replace(" ", "_").replace("-", "_")
        figures[f"{short}_rate"] = float(data["tried"].sel(optimizer=name).isel(rate=int(chosen.sel(optimizer=name))))
        for where in STARTS:
            figures[f"{short}_{where}_loss"] = float(last.sel(optimizer=name, start=where))
            figures[f"{short}_{where}_error"] = float(error.sel(optimizer=name, start=where))
    return figures | run_counts(data)


STUDY = Study(
    title="optimizers that see no rescaling: SGD, path-SGD and balanced SGD from unbalanced starts",
    config=Config(),
    quick=Config(networks=4, steps=40),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data), best(data)),
)
