"""Dropout: rates by layer and swapped, longer training, variance of activations, weight decay, DropConnect, noise, masks left on at test, other remedies.

The exercises of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons" (dropout), whose rates are 0.2
for the first hidden layer and 0.5 for the second. Masks left on and averaged as in Gal, Ghahramani 2016 (arXiv:1506.02142); label
smoothing after Szegedy et al. 2016 (arXiv:1512.00567).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxsym.data import Rows
from jaxsym.studies.classifying import Parts, load
from jaxsym.studies.dropout_network import AVERAGES, CHAPTER, MEASURES, TOGETHER, left_on, parts, program
from jaxsym.studies.dropout_page import page
from jaxsym.studies.dropout_summary import summary
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys

RATES = (0.0, 0.2, 0.5, 0.8)
"""Of the grid, for each layer."""
RATIO = CHAPTER[0] / CHAPTER[1]
STRENGTHS: dict[str, tuple[float, ...]] = {
    "dropout": (0.1, 0.3, 0.5, 0.7, 0.85),
    "DropConnect": (0.1, 0.3, 0.5, 0.7, 0.85),
    "Gaussian noise": (0.1, 0.3, 0.5, 0.7, 0.85),
    "noise on inputs": (0.05, 0.1, 0.2, 0.4, 0.8),
    "weight decay": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "label smoothing": (0.02, 0.05, 0.1, 0.2, 0.4),
    TOGETHER: (0.0003, 0.001, 0.003, 0.01, 0.03),
}
"""Equally many for every remedy: rates of the second layer (the first has 0.4 of it), deviations, factors, shares."""
PROGRAMS = {
    "dropout": ("grid", "dropout", "weight decay", "label smoothing", TOGETHER),
    "DropConnect": ("DropConnect",),
    "Gaussian noise": ("Gaussian noise", "noise on inputs"),
}
"""Which settings one program serves, by the kind of its disturbance."""
LONG = {"none": (0.0, 0.0), "dropout": CHAPTER, "swapped": CHAPTER[::-1]}
RECORDS = 10
MASKS = (1, 4, 16, 64)


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    data: str = "mnist_5k"
    """A bundled data set, or a folder with the IDX files of MNIST or Fashion-MNIST."""
    rows: int = 500
    """For training, and as many again for validation; few, so that networks overfit."""
    networks: int = 24
    """For each setting, with the same starts and batches."""
    width: int = 64
    """Units in each of the two hidden layers."""
    steps: int = 1000
    """Of SGD."""
    longer: int = 4
    """Times as many steps in the longer training."""
    batch_size: int = 32
    """Rows a step."""
    rate: float = 0.1
    """Learning rate."""
    members: int = 4
    """Networks in an ensemble."""
    seed: int = 0
    """Of networks, masks and the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no comparison."""
        expect(self, rows=10, networks=4, width=4, steps=10, longer=2, batch_size=1, members=2)
        if self.networks < 2 * self.members:
            msg = f"networks: got {self.networks}, expected at least {2 * self.members}, two ensembles of members = {self.members}."
            raise ValueError(msg)
        if self.batch_size > self.rows:
            msg = f"batch_size: got {self.batch_size}, expected at most rows = {self.rows}."
            raise ValueError(msg)
        if self.steps % RECORDS:
            msg = f"steps: got {self.steps}, expected a multiple of {RECORDS}, the number of records."
            raise ValueError(msg)
        if not 0 < self.rate <= 1:
            msg = f"rate: got {self.rate}, expected a number above 0 and at most 1."
            raise ValueError(msg)


def strengths(remedy: str, value: float) -> dict[str, float]:
    """What the loss is given for a remedy of this strength."""
    calm = {"first": 0.0, "second": 0.0, "decay": 0.0, "smoothing": 0.0}
    pair = {"first": RATIO * value, "second": value}
    return {
        "dropout": calm | pair,
        "DropConnect": pair,
        "Gaussian noise": pair | {"input_noise": 0.0},
        "noise on inputs": {"first": 0.0, "second": 0.0, "input_noise": value},
        "weight decay": calm | {"decay": value},
        "label smoothing": calm | {"smoothing": value},
        TOGETHER: calm | {"first": CHAPTER[0], "second": CHAPTER[1], "decay": value},
    }[remedy]


def run(config: Config, progress: Progress) -> xr.Dataset:
    """The grid of rates and all remedies, a program for each kind of disturbance; longer training; masks left on."""
    split = load(config.data, config.seed)
    data = parts(split, config.rows)
    shape: dict[str, Any] = {"batch_size": config.batch_size, "rate": config.rate}
    shape |= {"width": config.width, "classes": len(split.classes)}
    calm = strengths("dropout", 0.0)
    settings = {name: [strengths(name, value) for value in values] for name, values in STRENGTHS.items()}
    settings["grid"] = [calm | {"first": one, "second": two} for one in RATES for two in RATES]
    runs = sum(map(len, settings.values())) + len(LONG) * config.longer
    clock = Clock(progress, runs * config.networks * config.steps + config.networks * max(MASKS))
    keys = network_keys(config.seed, config.networks)

    def trained(label: str, at: list[dict[str, float]], kind: str, times: int = 1) -> Any:
        steps = times * config.steps
        one = program(data, kind=kind, steps=steps, records=RECORDS * times, **shape)
        given = {name: jnp.repeat(jnp.array([each[name] for each in at]), config.networks) for name in at[0]}
        found = clock.ensemble(label, one, jnp.tile(keys, len(at)), given, steps=steps)
        return jax.tree.map(lambda leaf: leaf.reshape(len(at), config.networks, *leaf.shape[1:]), found)

    found = {}
    for kind, names in PROGRAMS.items():
        ends = trained(kind, [each for name in names for each in settings[name]], kind)
        first = 0
        for name in names:
            rows = slice(first, first + len(settings[name]))
            found[name] = jax.tree.map(lambda leaf, rows=rows: leaf[rows], ends)
            first = rows.stop
    pairs = [calm | {"first": one, "second": two} for one, two in LONG.values()]
    long = trained("longer training", pairs, "dropout", config.longer)
    grids = jax.tree.map(lambda leaf: leaf.reshape(len(RATES), len(RATES), *leaf.shape[1:]), found["grid"])
    chapter = tuple(RATES.index(rate) for rate in CHAPTER)
    masked = clock.ensemble(
        "masks left on",
        left_on(data.test, MASKS, *CHAPTER),
        jax.vmap(lambda key: jax.random.fold_in(key, 4))(keys),
        jax.tree.map(lambda leaf: leaf[chapter], grids["params"]),
        steps=max(MASKS),
    )
    variables = _variables(grids, found, long, masked) | _ensembles(config, data, grids)
    coords = {
        "first": list(RATES),
        "second": list(RATES),
        "remedy": list(STRENGTHS),
        "length": list(LONG),
    }
    coords["strength"] = ("remedy", "choice"), np.array(list(STRENGTHS.values()))
    coords |= {"step": long["step"][0, 0], "layer": [1, 2], "disturbed": [False, True], "part": list(Parts._fields)}
    coords |= {"masks": list(MASKS), "average": list(AVERAGES)}
    attributes = {"data": config.data, "steps": config.steps, "members": config.members, "width": config.width}
    return xr.Dataset(variables, coords=coords).assign_attrs(attributes).assign(clock.variables())


def _variables(grids: Any, found: Mapping[str, Any], long: Any, masked: Any) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    plain = jax.tree.map(lambda leaf: leaf[0, 0], grids)
    stop = np.arange(len(plain["stop"])), plain["stop"]
    for key, text in MEASURES.items():
        ends = np.stack([found[remedy][key][..., -1] for remedy in STRENGTHS])
        variables |= {
            f"grid_{key}": (("first", "second", "network"), grids[key][..., -1], {"long_name": f"{text}, dropout"}),
            f"tuned_{key}": (("remedy", "choice", "network"), ends, {"long_name": text}),
            f"long_{key}": (("length", "network", "step"), long[key], {"long_name": f"{text} along longer training"}),
            f"stopped_{key}": (("network",), plain[key][stop], {"long_name": f"{text}, at the least validation loss"}),
        }
    dims = "length", "network", "step", "layer", "disturbed"
    text = "variance over the training rows of what hidden units give, mean over units"
    variables["variance"] = dims, long["variance"], {"long_name": text}
    for key, unit in (("loss", "nats"), ("error", "percent")):
        text = f"{key} of the test rows with dropout left on ({unit})"
        variables[f"masked_{key}"] = ("network", "average", "masks"), masked[key], {"long_name": text}
    return variables


def _ensembles(config: Config, data: Parts, grids: Any) -> dict[str, Any]:
    """Undisturbed networks in groups that share none, by the mean of their probabilities."""
    groups = config.networks // config.members
    variables: dict[str, Any] = {"rows": (("part",), [len(rows.targets) for rows in data], {"long_name": "rows"})}
    for part in ("train", "test"):
        rows: Rows = getattr(data, part)
        logits = grids[f"{part}_logits"][0, 0, : groups * config.members]
        chances = np.asarray(jax.nn.softmax(logits)).reshape(groups, config.members, *logits.shape[1:]).mean(axis=1)
        targets = np.asarray(rows.targets)
        loss = -np.log(chances[:, np.arange(len(targets)), targets]).mean(axis=1)
        error = 100 * np.mean(chances.argmax(-1) != targets, axis=1)
        for key, values in (("loss", loss), ("error", error)):
            text = f"{key} of the {part} rows, mean probabilities of {config.members} networks"
            variables[f"ensemble_{part}_{key}"] = ("group",), values, {"long_name": text}
    return variables


STUDY = Study(
    title="dropout by layer, swapped, longer, with decay, on at test; beside other noise and other remedies",
    config=Config(),
    quick=Config(networks=8, rows=200, width=32, steps=300, longer=3),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
