"""Are two networks in one valley? The straight line between independently trained networks: as they are, and after one is moved onto the other.

Measured as Ainsworth, Hayase, Srinivasa 2022 (arXiv:2209.04836) and Entezari et al. 2021 (arXiv:2110.06296): the barrier is the largest excess of the loss over the chord
between its ends.
"""

import collections
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array, PyTree

from jaxsym.alignment import merge, orbit_path, plane
from jaxsym.data import Rows, Split, flattened
from jaxsym.models import MLP
from jaxsym.studies import study
from jaxsym.studies.classifying import accuracy, cross_entropy, load
from jaxsym.studies.mode_connectivity_lines import BATCH, Ground, Measured, Pair, ground, group, pairs, stacked, trained
from jaxsym.studies.mode_connectivity_networks import CATALOGUE, Network, plain
from jaxsym.studies.mode_connectivity_page import page
from jaxsym.studies.mode_connectivity_summary import MOVES, summary
from jaxsym.studies.study import Clock, Progress, Study, chosen, expect, network_keys
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.precision import wide

ACTIVATIONS = ("relu", "tanh")
LAYERS = 3
IMAGE_RATE = 3e-3
"""Of Adam, for all architectures but perceptrons."""
PATH = 21
"""Points of the curve inside an orbit."""
GRID = 21
"""Points along each axis of the plane."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    pairs: int = 3
    """Of networks, at each width and for each activation."""
    widths: str = "16,64,256,512"
    """Of the three hidden layers, with commas between."""
    merged: str = "2,4,8,32"
    """How many networks are merged, in rising order, with commas between."""
    merged_width: int = 64
    """Of the networks that are merged."""
    epochs: int = 60
    """Of Adam."""
    points: int = 25
    """Along a straight line."""
    data: str = "digits"
    """A bundled data set, or a folder with the files of MNIST or Fashion-MNIST."""
    rows: int = 1438
    """For training, at most."""
    architectures: str = "resnet,cnn,transformer"
    """On the same data as images, with commas between; none where it is empty."""
    architecture_epochs: int = 30
    """Of Adam, for these."""
    other: str = "mnist_5k"
    """A second data set, or folder, for ReLU perceptrons; none where it is empty."""
    other_widths: str = "64,256"
    """Of the hidden layers there."""
    other_epochs: int = 15
    """Of Adam, there."""
    other_rows: int = 5000
    """For training there, at most."""
    seed: int = 0
    """Of networks and the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no line."""
        expect(
            self,
            pairs=2,
            merged_width=2,
            epochs=1,
            points=3,
            rows=BATCH,
            architecture_epochs=1,
            other_epochs=1,
            other_rows=BATCH,
        )
        for name in ("widths", "merged", "other_widths"):
            numbers(name, getattr(self, name), 2)
        if self.architectures:
            chosen(self.architectures, CATALOGUE, "architecture")


def numbers(name: str, text: str, least: int) -> list[int]:
    """Whole numbers of an option.

    Raises
    ------
    ValueError
        Naming the option, if they are none, too small or not in rising order.
    """
    found = study.numbers(name, text, int)
    if found != sorted(set(found)) or found[0] < least:
        msg = f"{name}: got {text!r}, expected numbers from {least} on in rising order, with commas between."
        raise ValueError(msg)
    return found


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train, move, and walk the lines: perceptrons width by width, other architectures, other data; then merge, and draw a plane."""
    split = load(config.data, config.seed)
    names = list(chosen(config.architectures, CATALOGUE, "architecture")) if config.architectures else []
    if names:
        expect_images(config.data, split)
    widths, merged, others = (numbers(name, getattr(config, name), 2) for name in ("widths", "merged", "other_widths"))
    clock = Clock(progress, 0)
    on = ground(clock, flattened(split), config.rows, config.epochs)
    images = ground(clock, split, config.rows, config.architecture_epochs, IMAGE_RATE)
    clock.total = (len(ACTIVATIONS) * len(widths) * 2 * config.pairs + merged[-1]) * on.steps
    clock.total += len(names) * 2 * config.pairs * images.steps
    if config.other:
        elsewhere = ground(clock, flattened(load(config.other, config.seed)), config.other_rows, config.other_epochs)
        clock.total += len(others) * 2 * config.pairs * elsewhere.steps
    keys = network_keys(config.seed, max(2 * config.pairs, merged[-1]))
    ends = keys[: 2 * config.pairs]

    found = []
    for activation, width in itertools.product(ACTIVATIONS, widths):
        net, label = _perceptron(width, on.classes, activation), f"{activation}, width {width}"
        networks = trained(on, label, net, ends)
        sym = group(net, networks, on.train)
        walked = pairs(on, label, net, sym, networks, config.points)
        found.append(stacked([one.measured | {"orbit_loss": _orbit(sym, net, one.a, on.train)} for one in walked]))
        if activation == "relu" and width == widths[-1]:
            flat = _plane(net, walked[0], on.train)
    perceptrons = {
        name: np.reshape(v, (len(ACTIVATIONS), len(widths), *v.shape[1:])) for name, v in stacked(found).items()
    }
    variables = _lined("", ("activation", "width"), perceptrons) | flat
    coords = {"activation": list(ACTIVATIONS), "width": widths}

    if names:
        variables |= _architectures(images, names, ends, config.points)
        coords |= {"architecture": names}
    if config.other:
        found = []
        for width in others:
            net, label = _perceptron(width, elsewhere.classes, "relu"), f"{config.other}, width {width}"
            networks = trained(elsewhere, label, net, ends)
            sym = group(net, networks, elsewhere.train)
            found.append(stacked([one.measured for one in pairs(elsewhere, label, net, sym, networks, config.points)]))
        variables |= _lined("other_", ("other_width",), stacked(found))
        coords |= {"other_width": others}
    variables |= _merged(on, config.merged_width, keys[: merged[-1]], merged)
    coords |= {
        "move": list(MOVES),
        "point": np.linspace(0, 1, config.points),
        "count": merged,
        "way": ["naive", "onto the first", "into a universe"],
        "corner": ["first", "second", "second, moved"],
    }
    attributes = {
        "data": config.data,
        "rows": len(on.train.targets),
        "merged_width": config.merged_width,
        "epochs": config.epochs,
        "architecture_epochs": config.architecture_epochs,
        "other": config.other,
        "other_rows": len(elsewhere.train.targets) if config.other else 0,
        "other_epochs": config.other_epochs,
    }
    return xr.Dataset(variables, coords=coords).assign_attrs(attributes).assign(clock.variables())


def expect_images(name: str, split: Split) -> None:
    """Refuse data that networks for images cannot read.

    Raises
    ------
    ValueError
        If its inputs are no images of one channel.
    """
    shape = split.train.inputs.shape[1:]
    if len(shape) != 2:
        msg = f"architectures: they read images [rows, columns], the inputs of {name} have shape {shape}; pass --architectures '' to leave them out."
        raise ValueError(msg)


def _perceptron(width: int, classes: int, activation: str) -> Network:
    return plain(MLP((*[width] * LAYERS, classes), activation))


def _architectures(on: Ground, names: list[str], keys: Array, points: int) -> dict[str, Any]:
    """Pairs of every architecture; what only some of them have is NaN for the others."""
    found, sizes, groups = [], [], []
    for name in names:
        net = CATALOGUE[name](on.classes)
        networks = trained(on, name, net, keys)
        sym = group(net, networks, on.train)
        found.append(stacked([one.measured for one in pairs(on, name, net, sym, networks, points)]))
        sizes.append(sum(leaf[0].size for leaf in jax.tree.leaves(networks)))
        kinds = collections.Counter(factor.kind for factor in sym.factors)
        groups.append(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    none = {
        f"{name}_anew": np.full_like(found[0][name], np.nan) for name in ("loss", "barrier", "error", "error_barrier")
    }
    variables = _lined("architecture_", ("architecture",), stacked([none | one for one in found]))
    return variables | {
        "architecture_size": (("architecture",), sizes, {"long_name": "number of parameters, statistics among them"}),
        "architecture_group": (("architecture",), groups, {"long_name": "factors of the group, by kind"}),
    }


def _orbit(sym: Symmetry, net: Network, params: PyTree, train: Rows) -> np.ndarray:
    """The training loss along a curve inside the orbit, in float64; a network without continuous symmetries stays where it is."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        wide_params, rows = wide((params, train))
        element = sym.exp(jax.random.normal(jax.random.key(0), (sym.dim,)))
        path = orbit_path(sym, wide_params, element, PATH)
        return np.asarray(jax.lax.map(lambda point: cross_entropy(net.apply)(point, rows), path))


def _plane(net: Network, pair: Pair, train: Rows) -> dict[str, Any]:
    """The training loss on the plane through two networks and the second one moved onto the first."""
    loss = cross_entropy(net.apply)
    found = plane(lambda params: loss(params, train), pair.a, pair.moved["naive"], pair.moved["activations"], GRID)
    return {
        "plane_loss": (("y", "x"), found.losses, {"long_name": "training loss on a plane through three networks"}),
        "plane_points": (("corner", "axis"), found.points, {"long_name": "where these lie on it"}),
        "x": (("x",), np.asarray(found.xs)),
        "y": (("y",), np.asarray(found.ys)),
    }


def _merged(on: Ground, width: int, keys: Array, counts: list[int]) -> dict[str, Any]:
    """Training loss and test accuracy of averages: as networks are, moved onto the first, moved into a universe."""
    net = _perceptron(width, on.classes, "relu")
    networks = trained(on, f"{len(keys)} networks to merge", net, keys)
    sym = group(net, networks, on.train)
    losses, accuracies = [], []
    for count in counts:
        on.clock.progress(f"merging {count} networks", on.clock.net_steps, on.clock.total)
        some = jax.tree.map(lambda leaf, count=count: leaf[:count], networks)
        averages = [
            jax.tree.map(lambda leaf: leaf.mean(0), some),
            merge(sym, some, reference=0).params,
            merge(sym, some).params,
        ]
        losses.append([float(cross_entropy(net.apply)(params, on.train)) for params in averages])
        accuracies.append([float(accuracy(net.apply(params, on.test.inputs), on.test.targets)) for params in averages])
    single = jax.vmap(lambda params: accuracy(net.apply(params, on.test.inputs), on.test.targets))(networks)
    return {
        "merged_loss": (("count", "way"), losses, {"long_name": "training loss of an average"}),
        "merged_accuracy": (("count", "way"), accuracies, {"long_name": "test accuracy of an average"}),
        "single_accuracy": (
            ("network",),
            np.asarray(single),
            {"long_name": "test accuracy of the networks that are merged"},
        ),
    }


def _lined(prefix: str, each: tuple[str, ...], found: Measured) -> dict[str, Any]:
    """Variables of the lines between pairs."""
    texts = {
        "loss": (("move", "point"), "training loss along the straight line"),
        "barrier": (("move",), "largest excess of the training loss over the chord"),
        "error": (("move", "point"), "test error along the straight line"),
        "error_barrier": (("move",), "largest excess of the test error over the chord"),
        "distance": (("move",), "distance of the two networks"),
        "orbit_loss": (("step",), "training loss along a curve inside an orbit"),
    }
    texts |= {
        f"{name}_anew": (dims, f"{text}, statistics computed anew at each point")
        for name, (dims, text) in texts.items()
    }
    return {
        prefix + name: ((*each, "pair", *texts[name][0]), values, {"long_name": texts[name][1]})
        for name, values in found.items()
    }


STUDY = Study(
    title="are two trained networks in one valley: barriers as they are, and moved by the whole group",
    config=Config(),
    quick=Config(
        pairs=2,
        widths="16,64",
        merged="2,8",
        epochs=20,
        architectures="cnn",
        architecture_epochs=10,
        other_widths="64",
        other_epochs=3,
        other_rows=1000,
    ),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
