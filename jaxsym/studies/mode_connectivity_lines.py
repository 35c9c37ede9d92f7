"""Pairs of networks of the study ``mode_connectivity``: trained, one moved onto the other in every way, and the straight lines between them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxsym.alignment import align, barrier
from jaxsym.data import Rows, Split
from jaxsym.studies.classifying import accuracy, cross_entropy, take
from jaxsym.studies.mode_connectivity_networks import Network
from jaxsym.studies.mode_connectivity_summary import MOVES
from jaxsym.studies.study import Clock
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.training import make_train

BATCH = 64
Measured = dict[str, np.ndarray]
"""Of one pair, or stacked, by the name of a variable."""


class Ground(NamedTuple):
    """A data set, and how networks are trained on it."""

    clock: Clock
    train: Rows
    test: Rows
    classes: int
    epochs: int
    rate: float = 1e-3
    """Of Adam."""

    @property
    def steps(self) -> int:
        """Updates of one network."""
        return self.epochs * -(-len(self.train.targets) // BATCH)


def ground(clock: Clock, split: Split, rows: int, epochs: int, rate: float = 1e-3) -> Ground:
    """At most so many rows of a data set for training."""
    return Ground(clock, take(split.train, rows), split.test, len(split.classes), epochs, rate)


def trained(on: Ground, label: str, net: Network, keys: Array) -> PyTree:
    """Networks, on the host, from as many keys; their statistics, where they have some, are of all training rows."""
    one = make_train(
        lambda key: net.init(key, on.train.inputs[:1]),
        cross_entropy(net.training),
        optax.adam(on.rate),
        on.train,
        steps=on.steps,
        batch_size=BATCH,
        record_every=on.steps,
    )

    def whole(key: Array) -> PyTree:
        params = one(key).params
        return params if net.restated is None else net.restated(params, on.train.inputs)

    return on.clock.ensemble(label, whole, keys, steps=on.steps)


def group(net: Network, networks: PyTree, rows: Rows) -> Symmetry:
    """The group of networks that are stacked: in training, so that statistics which are computed anew change nothing of what it is."""
    return discover(net.training, jax.tree.map(lambda leaf: leaf[0], networks), rows.inputs[:4])


def permutations(sym: Symmetry) -> Symmetry:
    """The permutations of a group alone, as others move networks."""
    return dataclasses.replace(sym, factors=tuple(f for f in sym.factors if f.kind == "permutation"))


class Pair(NamedTuple):
    """Two networks, the second one moved onto the first in every way, and what was measured."""

    a: PyTree
    moved: dict[str, PyTree]
    measured: Measured


def pairs(on: Ground, label: str, net: Network, sym: Symmetry, networks: PyTree, points: int) -> list[Pair]:
    """The first and second network, the third and fourth, and so on."""
    along = measures(net, on, points)
    anew = measures(net, on, points, anew=True) if net.restated is not None else None
    found = []
    count = len(jax.tree.leaves(networks)[0]) // 2
    for pair in range(count):
        on.clock.progress(f"{label}: pair {pair + 1} of {count}", on.clock.net_steps, on.clock.total)
        a, b = (jax.tree.map(lambda leaf, i=i: leaf[i], networks) for i in (2 * pair, 2 * pair + 1))
        moved = moves(sym, net, a, b, on.train)
        measured = lines(along, a, moved) | {"distance": np.array([_distance(a, moved[name]) for name in MOVES])}
        if anew is not None:
            measured |= {f"{name}_anew": values for name, values in lines(anew, a, moved).items()}
        found.append(Pair(a, moved, measured))
    return found


def measures(net: Network, on: Ground, points: int, anew: bool = False) -> Callable[[PyTree, PyTree], dict[str, Array]]:
    """Along the line between two networks: training loss, and error rate on test rows; with statistics computed anew at each point, or as they come."""
    loss = cross_entropy(net.apply)

    def stated(params: PyTree) -> PyTree:
        return net.restated(params, on.train.inputs) if anew and net.restated is not None else params

    def error(params: PyTree) -> Float[Array, ""]:
        return 1 - accuracy(net.apply(stated(params), on.test.inputs), on.test.targets)

    @jax.jit
    def along(a: PyTree, b: PyTree) -> dict[str, Array]:
        losses = barrier(lambda params: loss(stated(params), on.train), a, b, points)
        errors = barrier(error, a, b, points)
        return {
            "loss": losses.losses,
            "barrier": losses.height,
            "error": errors.losses,
            "error_barrier": errors.height,
        }

    return along


def moves(sym: Symmetry, net: Network, a: PyTree, b: PyTree, train: Rows) -> dict[str, PyTree]:
    """One network moved onto another in every way, with statistics of its own."""
    inputs = (train.inputs,)
    moved = {
        "naive": b,
        "permutations": align(permutations(sym), a, b, settled=0.0).params,
        "weights": align(sym, a, b, settled=0.0).params,
        "activations": align(sym, a, b, objective="activations", apply=net.training, inputs=inputs).params,
    }
    return moved if net.restated is None else {name: net.restated(one, *inputs) for name, one in moved.items()}


def lines(along: Callable[..., dict[str, Array]], a: PyTree, moved: dict[str, PyTree]) -> Measured:
    """The lines from one network to another, moved in every way."""
    return stacked([jax.device_get(along(a, moved[name])) for name in MOVES])


def stacked(several: Sequence[Measured]) -> Measured:
    """Along a new first axis."""
    return {name: np.stack([one[name] for one in several]) for name in several[0]}


def _distance(a: PyTree, b: PyTree) -> float:
    return float(
        np.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))
    )
