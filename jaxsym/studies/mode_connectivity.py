"""Are two networks in one valley? The straight line between independently trained networks: as they are, and after one is moved onto the other.

Measured as Ainsworth, Hayase, Srinivasa 2022 (arXiv:2209.04836) and Entezari et al. 2021 (arXiv:2110.06296): the barrier is the largest excess of the loss over the chord
between its ends.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, PyTree

from jaxsym.alignment import align, barrier, merge, orbit_path, plane
from jaxsym.data import Rows, flattened
from jaxsym.models import MLP
from jaxsym.studies import study
from jaxsym.studies.classifying import accuracy, cross_entropy, load
from jaxsym.studies.mode_connectivity_page import page
from jaxsym.studies.mode_connectivity_summary import MOVES, summary
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.verify import wide
from jaxsym.training import make_train

ACTIVATIONS = ("relu", "tanh")
LAYERS = 3
RATE, BATCH = 1e-3, 64
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
    seed: int = 0
    """Of networks and the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no line."""
        expect(self, pairs=2, merged_width=2, epochs=1, points=3, rows=BATCH)
        for name, least in (("widths", 2), ("merged", 2)):
            numbers(name, getattr(self, name), least)


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
    """Train, move, and walk the lines, width by width; then merge, and draw a plane."""
    split = flattened(load(config.data, config.seed))
    train = jax.tree.map(lambda leaf: leaf[: config.rows], split.train)
    classes, widths, merged = (
        len(split.classes),
        numbers("widths", config.widths, 2),
        numbers("merged", config.merged, 2),
    )
    steps = config.epochs * -(-len(train.targets) // BATCH)
    total = (len(ACTIVATIONS) * len(widths) * 2 * config.pairs + merged[-1]) * steps
    clock = Clock(progress, total)
    keys = network_keys(config.seed, max(2 * config.pairs, merged[-1]))
    found: dict[str, np.ndarray] = {}
    plane_of: dict[str, np.ndarray] = {}
    for place in np.ndindex(len(ACTIVATIONS), len(widths)):
        activation, width = ACTIVATIONS[place[0]], widths[place[1]]
        net = MLP((*[width] * LAYERS, classes), activation)
        networks = _trained(clock, f"{activation}, width {width}", net, train, keys[: 2 * config.pairs], steps)
        sym = group(net, networks, train)
        measures = _measures(net, train, split.test, config.points)
        for pair in range(config.pairs):
            progress(f"{activation}, width {width}: pair {pair + 1} of {config.pairs}", clock.net_steps, total)
            a, b = (jax.tree.map(lambda leaf, i=i: leaf[i], networks) for i in (2 * pair, 2 * pair + 1))
            moved = _moved(sym, net, a, b, train)
            walked = _pair(a, moved, measures) | {"orbit_loss": _orbit(sym, net, a, train)}
            for name, values in walked.items():
                shape = (len(ACTIVATIONS), len(widths), config.pairs, *values.shape)
                found.setdefault(name, np.full(shape, np.nan))[(*place, pair)] = values
            if activation == "relu" and width == widths[-1] and not pair:
                plane_of = _plane(net, a, b, moved["activations"], train)
    together = _merged(clock, config, train, split.test, classes, keys[: merged[-1]], steps, merged)
    return _dataset(config, widths, merged, found, together, plane_of).assign(clock.variables())


def _trained(clock: Clock, label: str, net: MLP, train: Rows, keys: Array, steps: int) -> PyTree:
    """Networks, on the host, from as many keys."""
    one = make_train(
        lambda key: net.init(key, train.inputs[:1]),
        cross_entropy(net.apply),
        optax.adam(RATE),
        train,
        steps=steps,
        batch_size=BATCH,
        record_every=steps,
    )
    return clock.ensemble(label, lambda key: one(key).params, keys, steps=steps)


def group(net: MLP, networks: PyTree, rows: Rows) -> Symmetry:
    """The group of networks that are stacked."""
    return discover(net.apply, jax.tree.map(lambda leaf: leaf[0], networks), rows.inputs[:4])


def permutations(sym: Symmetry) -> Symmetry:
    """The permutations of a group alone, as others move networks."""
    return dataclasses.replace(sym, factors=tuple(f for f in sym.factors if f.kind == "permutation"))


def _measures(net: MLP, train: Rows, test: Rows, num: int) -> Callable[[PyTree, PyTree], dict[str, Array]]:
    """Along the line between two networks: training loss, and error rate on test rows."""
    loss = cross_entropy(net.apply)

    @jax.jit
    def along(a: PyTree, b: PyTree) -> dict[str, Array]:
        losses = barrier(lambda params: loss(params, train), a, b, num)
        errors = barrier(lambda params: 1 - accuracy(net.apply(params, test.inputs), test.targets), a, b, num)
        return {
            "loss": losses.losses,
            "barrier": losses.height,
            "error": errors.losses,
            "error_barrier": errors.height,
        }

    return along


def _moved(sym: Symmetry, net: MLP, a: PyTree, b: PyTree, train: Rows) -> dict[str, PyTree]:
    """One network moved onto another in every way."""
    return {
        "naive": b,
        "permutations": align(permutations(sym), a, b).params,
        "weights": align(sym, a, b).params,
        "activations": align(sym, a, b, objective="activations", apply=net.apply, inputs=(train.inputs,)).params,
    }


def _pair(a: PyTree, moved: dict[str, PyTree], measures: Callable[..., dict[str, Array]]) -> dict[str, np.ndarray]:
    """The lines from one network to another, moved in every way."""
    lines = [jax.device_get(measures(a, moved[name])) for name in MOVES]
    found = {name: np.stack([line[name] for line in lines]) for name in lines[0]}
    return found | {"distance": np.array([_distance(a, moved[name]) for name in MOVES])}


def _distance(a: PyTree, b: PyTree) -> float:
    return float(
        np.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))
    )


def _orbit(sym: Symmetry, net: MLP, params: PyTree, train: Rows) -> np.ndarray:
    """The training loss along a curve inside the orbit, in float64; a network without continuous symmetries stays where it is."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        wide_params, rows = wide((params, train))
        element = sym.exp(jax.random.normal(jax.random.key(0), (sym.dim,)))
        path = orbit_path(sym, wide_params, element, PATH)
        return np.asarray(jax.lax.map(lambda point: cross_entropy(net.apply)(point, rows), path))


def _plane(net: MLP, a: PyTree, b: PyTree, moved: PyTree, train: Rows) -> dict[str, np.ndarray]:
    """The training loss on the plane through two networks and the second one moved onto the first."""
    return plane(lambda params: cross_entropy(net.apply)(params, train), a, b, moved, GRID)._asdict()


def _merged(
    clock: Clock,
    config: Config,
    train: Rows,
    test: Rows,
    classes: int,
    keys: Array,
    steps: int,
    counts: list[int],
) -> dict[str, np.ndarray]:
    """Training loss and test accuracy of averages: as networks are, moved onto the first, moved into a universe."""
    net = MLP((*[config.merged_width] * LAYERS, classes), "relu")
    networks = _trained(clock, f"{len(keys)} networks to merge", net, train, keys, steps)
    sym = group(net, networks, train)
    figures: dict[str, list[list[float]]] = {"loss": [], "accuracy": []}
    for count in counts:
        clock.progress(f"merging {count} networks", clock.net_steps, clock.total)
        some = jax.tree.map(lambda leaf, count=count: leaf[:count], networks)
        averages = [
            jax.tree.map(lambda leaf: leaf.mean(0), some),
            merge(sym, some, reference=0).params,
            merge(sym, some).params,
        ]
        figures["loss"].append([float(cross_entropy(net.apply)(params, train)) for params in averages])
        figures["accuracy"].append(
            [float(accuracy(net.apply(params, test.inputs), test.targets)) for params in averages]
        )
    single = jax.vmap(lambda params: accuracy(net.apply(params, test.inputs), test.targets))(networks)
    return {name: np.array(values) for name, values in figures.items()} | {"single": np.asarray(single)}


def _dataset(
    config: Config,
    widths: list[int],
    merged: list[int],
    found: dict[str, np.ndarray],
    together: dict[str, np.ndarray],
    plane_of: dict[str, np.ndarray],
) -> xr.Dataset:
    each = ("activation", "width", "pair")
    texts = {
        "loss": ((*each, "move", "point"), "training loss along the straight line"),
        "barrier": ((*each, "move"), "largest excess of the training loss over the chord"),
        "error": ((*each, "move", "point"), "test error along the straight line"),
        "error_barrier": ((*each, "move"), "largest excess of the test error over the chord"),
        "distance": ((*each, "move"), "distance of the two networks"),
        "orbit_loss": ((*each, "step"), "training loss along a curve inside an orbit"),
    }
    variables: dict[str, Any] = {name: (dims, found[name], {"long_name": text}) for name, (dims, text) in texts.items()}
    variables |= {
        "merged_loss": (("count", "way"), together["loss"], {"long_name": "training loss of an average"}),
        "merged_accuracy": (("count", "way"), together["accuracy"], {"long_name": "test accuracy of an average"}),
        "single_accuracy": (
            ("network",),
            together["single"],
            {"long_name": "test accuracy of the networks that are merged"},
        ),
        "plane_loss": (
            ("y", "x"),
            plane_of["losses"],
            {"long_name": "training loss on a plane through three networks"},
        ),
        "plane_points": (("corner", "axis"), plane_of["points"], {"long_name": "where these lie on it"}),
    }
    coords = {
        "activation": list(ACTIVATIONS),
        "width": widths,
        "move": list(MOVES),
        "point": np.linspace(0, 1, config.points),
        "count": merged,
        "way": ["naive", "onto the first", "into a universe"],
        "x": np.asarray(plane_of["xs"]),
        "y": np.asarray(plane_of["ys"]),
        "corner": ["first", "second", "second, moved"],
    }
    return xr.Dataset(variables, coords=coords).assign_attrs(
        data=config.data, merged_width=config.merged_width, epochs=config.epochs
    )


STUDY = Study(
    title="are two trained networks in one valley: barriers as they are, and moved by the whole group",
    config=Config(),
    quick=Config(pairs=2, widths="16,64", merged="2,8", epochs=20),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
