"""A training run that diverges, and how often clipping, a lower rate, warm-up, the last finite checkpoint or another optimizer rescue it.

The exercise is that of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons". Clipping by the
norm of the whole gradient is that of Pascanu, Mikolov, Bengio 2013 (arXiv:1211.5063), Adam that of Kingma, Ba 2015
(arXiv:1412.6980), linear warm-up that of Goyal et al. 2017 (arXiv:1706.02677). Checkpoints are written and read by Orbax.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.data import Rows, Split, digits, flattened
from jaxsym.models import MLP
from jaxsym.studies.classifying import accuracy
from jaxsym.studies.rescue_page import page
from jaxsym.studies.rescue_pieces import Checkpoints, Programs
from jaxsym.studies.rescue_summary import FIRST, KINDS, POINTS, REMEDIES, summary
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys
from jaxsym.training import Train, Trained, make_train
from jaxsym.training.initial import initializer

NET = MLP((32, 32, 32, 10), "relu", kernel_init=initializer("he_normal"))
BATCH = 32
RATES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
NORMS = (0.03, 0.1, 0.3, 1.0, 3.0)
PARTS = (2.0, 5.0, 10.0, 30.0)
SHARES = (0.02, 0.05, 0.2, 0.5)
NORM, PART, SHARE = 0.3, 10.0, 0.2
"""The remedies where nothing else is said: the largest norm of a gradient, what the rate is divided by, the share of the steps that is warm-up."""
ADAM_RATE = 0.003
EARLY, RAISED = 0.1, 2.0
"""Rates of runs that go well at first: the second one comes midway, by mistake."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 200
    """Starts, the same for all ways."""
    steps: int = 500
    """Of each run."""
    rate: float = 0.7
    """At which runs are to diverge; one of the rates of the sweep."""
    checkpoint_every: int = 5
    """Steps from one checkpoint to the next."""
    seed: int = 0
    """Of networks, batches and the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble, and a rate that is not in the sweep."""
        expect(self, networks=2, steps=10, checkpoint_every=1)
        if self.rate not in RATES:
            msg = f"rate: got {self.rate}, expected one of {', '.join(f'{rate:g}' for rate in RATES)}."
            raise ValueError(msg)
        if self.checkpoint_every > self.steps // 2:
            msg = f"checkpoint_every: got {self.checkpoint_every}, expected at most half of the {self.steps} steps."
            raise ValueError(msg)


def squares(params: PyTree, rows: Rows, key: Array | None = None) -> Float[Array, ""]:
    """Half the squared distance of the outputs from one-hot targets, in the mean over rows."""
    del key
    wanted = jax.nn.one_hot(rows.targets, 10)
    return jnp.mean(jnp.sum((NET.apply(params, rows.inputs) - wanted) ** 2, axis=-1)) / 2


def sgd(learning_rate: Any, max_norm: Any, warm_up: Any) -> optax.GradientTransformation:
    """SGD with a clipped gradient and a linear warm-up; an infinite norm and a warm-up of one step leave both out."""
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        optax.sgd(lambda count: learning_rate * jnp.minimum(1.0, (count + 1) / warm_up)),
    )


def training(split: Split, steps: int, *, adam: bool = False) -> Train:
    """A run of SGD, or of Adam; its hyperparameters are traced."""
    optimizer = (
        optax.inject_hyperparams(optax.adam)(learning_rate=ADAM_RATE)
        if adam
        else optax.inject_hyperparams(sgd)(learning_rate=0.1, max_norm=jnp.inf, warm_up=1.0)
    )
    return make_train(
        lambda key: NET.init(key, split.train.inputs[:1]),
        squares,
        optimizer,
        split.train,
        steps=steps,
        batch_size=BATCH,
        record_every=max(1, steps // 100),
    )


def remedies(config: Config, rate: float) -> dict[str, dict[str, float]]:
    """The hyperparameters of SGD by remedy."""
    plain = {"learning_rate": rate, "max_norm": np.inf, "warm_up": 1.0}
    return {
        "unchanged": plain,
        "clipping": plain | {"max_norm": NORM},
        "lower rate": plain | {"learning_rate": rate / PART},
        "warm-up": plain | {"warm_up": SHARE * config.steps},
    }


def strengths(config: Config) -> dict[str, list[dict[str, float]]]:
    """The hyperparameters of SGD along the strengths of each remedy."""
    plain = remedies(config, config.rate)["unchanged"]
    return {
        "clipping": [plain | {"max_norm": norm} for norm in NORMS],
        "lower rate": [plain | {"learning_rate": config.rate / part} for part in PARTS],
        "warm-up": [plain | {"warm_up": max(1.0, share * config.steps)} for share in SHARES],
    }


def outcome(split: Split) -> Callable[[Trained], dict[str, Array]]:
    """What is kept of a run: the loss on all training rows, the test accuracy, and the losses of batches along it."""

    def kept(trained: Trained) -> dict[str, Array]:
        return {
            "loss": squares(trained.params, split.train),
            "accuracy": accuracy(NET.apply(trained.params, split.test.inputs), split.test.targets),
            "history": trained.history["loss"],
        }

    return kept


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Sweep the rates, apply the remedies from the start, then from checkpoints of the runs that diverged."""
    split = flattened(digits(config.seed))
    keys = network_keys(config.seed, config.networks)
    kept = outcome(split)
    plain, adam = (training(split, config.steps, adam=other).then(kept) for other in (False, True))
    grid = [hyper for rate in RATES for hyper in remedies(config, rate).values()]
    grid += [hyper for several in strengths(config).values() for hyper in several]
    late = len(KINDS) * (1 + len(POINTS) * len(REMEDIES))  # at most
    clock = Clock(progress, config.networks * config.steps * (len(grid) + 2 + late))
    hypers = {name: jnp.tile(jnp.array([h[name] for h in grid], jnp.float32), config.networks) for name in grid[0]}
    found = clock.ensemble(
        "rates and remedies",
        lambda key, hyper: plain(key, **hyper),
        jnp.repeat(keys, len(grid)),
        hypers,
        steps=config.steps,
    )
    found = {name: np.moveaxis(v.reshape(config.networks, len(grid), *v.shape[1:]), 0, 1) for name, v in found.items()}
    sgd_runs, adam_runs = (Programs(clock, train, keys) for train in (plain, adam))
    others = [adam_runs.whole({"learning_rate": rate}, f"Adam at {rate:g}") for rate in (ADAM_RATE, config.rate)]
    parts = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = _watched(config, kind, sgd_runs, split, Path(folder))
            parts.append(_resumed(config, kind, sgd_runs, adam_runs, checkpoints) | checkpoints.variables())
    return _dataset(config, found, others, parts).assign(clock.variables())


def rate_of(config: Config, kind: str) -> float:
    """At which runs diverge."""
    return config.rate if kind == FIRST else RAISED


def _watched(config: Config, kind: str, programs: Programs, split: Split, folder: Path) -> Checkpoints:
    """The runs at the rate at which they diverge, with a checkpoint on disk every few steps."""
    half = config.steps // 2 // config.checkpoint_every * config.checkpoint_every
    since = 0 if kind == FIRST else half
    kept = Checkpoints(folder, config.networks, _state_of(split), since)
    begun = programs.start(remedies(config, rate_of(config, kind))["unchanged"])
    state = begun if kind == FIRST else programs.start(remedies(config, EARLY)["unchanged"])
    for step in range(0, config.steps, config.checkpoint_every):
        programs.say(f"{kind}, in pieces, with checkpoints: step {step}")
        state = state._replace(optimizer=begun.optimizer) if step == since else state
        kept.save(step, state)
        state = programs.advance(state, step, min(config.checkpoint_every, config.steps - step))
    programs.clock.networks += config.networks
    kept.save(config.steps, state)
    return kept


def _state_of(split: Split) -> Callable[[PyTree], tuple[Array, Array]]:
    """Of one network: the loss on all training rows, and whether it and all parameters are finite."""

    def state(params: PyTree) -> tuple[Array, Array]:
        loss = squares(params, split.train)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
        return loss, jnp.stack([jnp.isfinite(loss), *finite]).all()

    return state


def _resumed(
    config: Config, kind: str, sgd_runs: Programs, adam_runs: Programs, checkpoints: Checkpoints
) -> dict[str, Any]:
    """Go on from each point of each network that diverged, with every remedy; read from disk, not from memory."""
    shape = len(POINTS), len(REMEDIES), config.networks
    records = jax.tree.leaves(jax.eval_shape(sgd_runs.train.start, jax.random.key(0)).history)[0].shape
    out = {name: np.full(shape, np.nan, np.float32) for name in ("loss", "accuracy")}
    out["history"] = np.full((*shape, *records), np.nan, np.float32)
    starts = {name: sgd_runs.start(hyper) for name, hyper in remedies(config, rate_of(config, kind)).items()}
    starts["Adam"] = adam_runs.start({"learning_rate": ADAM_RATE})
    index, diverged = checkpoints.points(), checkpoints.diverged()
    for place in np.unique(index[:, diverged]):
        restored = checkpoints.restore(int(place))
        step = checkpoints.steps[place]
        networks = np.flatnonzero((index == place).any(axis=0) & diverged)
        for programs, names in ((sgd_runs, REMEDIES[:-1]), (adam_runs, REMEDIES[-1:])):
            programs.say(f"from the checkpoint at step {step}: {len(networks)} networks")
            begun = [
                restored if name == "unchanged" else restored._replace(optimizer=starts[name].optimizer)
                for name in names
            ]
            together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *begun)
            jobs = [(remedy, network) for remedy in range(len(names)) for network in networks]
            for first in range(0, len(jobs), config.networks):
                block = jobs[first : first + config.networks]
                rows = np.resize([remedy * config.networks + network for remedy, network in block], config.networks)
                run = jax.tree.map(lambda leaf, rows=rows: leaf[rows], together)
                run = programs.advance(run, step, config.steps - step, len(block))
                end = programs.finish(run)
                programs.clock.networks += len(block)
                for row, (remedy, network) in enumerate(block):
                    for point in np.flatnonzero(index[:, network] == place):
                        for name, values in end.items():
                            out[name][point, REMEDIES.index(names[remedy]), network] = values[row]
    told = "from a checkpoint; NaN too where the run did not diverge"
    return {
        f"late_{name}": (
            ("point", "remedy", "network", "record")[: values.ndim],
            values,
            {"long_name": f"{TEXTS[name]}, {told}"},
        )
        for name, values in out.items()
    }


TEXTS = {
    "loss": "loss on all training rows at the end",
    "accuracy": "test accuracy at the end",
    "history": "loss of a batch along the run",
}


def _dataset(config: Config, found: PyTree, others: list[PyTree], parts: list[dict[str, Any]]) -> xr.Dataset:
    names = list(remedies(config, config.rate))
    size = len(RATES) * len(names)
    at = RATES.index(config.rate) * len(names)
    variables: dict[str, Any] = {}
    for name in ("loss", "accuracy"):
        text = TEXTS[name]
        swept = found[name][:size].reshape(len(RATES), len(names), config.networks)
        started = np.concatenate([found[name][at : at + len(names)], np.stack([other[name] for other in others])])
        variables |= {
            f"sweep_{name}": (("rate", "remedy_of_sweep", "network"), swept, {"long_name": f"{text}, from the start"}),
            f"start_{name}": (("way", "network"), started, {"long_name": f"{text}, from the start"}),
        }
        first = size
        for remedy, several in strengths(config).items():
            short = remedy.replace(" ", "_").replace("-", "_")
            values = found[name][first : first + len(several)]
            variables[f"{short}_{name}"] = (
                (f"{short}_strength", "network"),
                values,
                {"long_name": f"{text}, {remedy}"},
            )
            first += len(several)
    histories = np.concatenate([found["history"][at : at + len(names)], np.stack([o["history"] for o in others])])
    variables |= {
        "start_history": (("way", "network", "record"), histories, {"long_name": TEXTS["history"]}),
        "restored_kind": (
            ("restored",),
            np.repeat(KINDS, [len(part["restored_step"][1]) for part in parts]),
            {"long_name": "of which runs a checkpoint was read again"},
        ),
    }
    for name, (dims, _, attributes) in parts[0].items():
        values = [part[name][1] for part in parts]
        variables[name] = (
            (dims, np.concatenate(values), attributes)
            if dims == ("restored",)
            else (("kind", *dims), np.stack(values), attributes)
        )
    every = max(1, config.steps // 100)
    steps = np.minimum(every * np.arange(histories.shape[-1]), config.steps)
    coords = {
        "rate": list(RATES),
        "remedy_of_sweep": names,
        "way": [*names, "Adam", "Adam at the same rate"],
        "remedy": list(REMEDIES),
        "kind": list(KINDS),
        "point": list(POINTS),
        "record": steps,
        "clipping_strength": list(NORMS),
        "lower_rate_strength": list(PARTS),
        "warm_up_strength": list(SHARES),
    }
    facts = {"chosen_rate": config.rate, "adam_rate": ADAM_RATE, "norm": NORM, "part": PART, "share": SHARE}
    facts |= {"early_rate": EARLY, "raised_rate": RAISED}
    variables |= {name: ((), value, {"long_name": name.replace("_", " ")}) for name, value in facts.items()}
    return xr.Dataset(variables, coords=coords)


STUDY = Study(
    title="a run that diverges, and what rescues it: clipping, rate, warm-up, checkpoint, optimizer",
    config=Config(),
    quick=Config(networks=24, steps=200),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
