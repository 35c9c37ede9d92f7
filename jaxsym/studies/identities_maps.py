"""The same function as a tanh and as a sigmoid network: the map, its metric, and what gradient descent makes of both."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsym import tree
from jaxsym.data import Rows, teacher
from jaxsym.models import MLP
from jaxsym.symmetry.canonical import orbit_distance
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry
from jaxsym.training import make_train
from jaxsym.training.initial import initializer

TRAINED = (8,)
INPUTS, ROWS = 3, 64
RATE = 0.1
WAYS = ("tanh", "sigmoid, same rate", "sigmoid, a rate a leaf", "sigmoid, the metric")


def to_sigmoid(params: PyTree) -> PyTree:
    """The parameters of the sigmoid network that is the same function as a tanh network, ``tanh(z) = 2 sigmoid(2 z) - 1``; linear."""
    layers, moved = params["params"], {}
    for number, name in enumerate(layers):
        kernel, bias = layers[name]["kernel"], layers[name]["bias"]
        if number > 0:
            kernel, bias = 2 * kernel, bias - kernel.sum(0)
        if number < len(layers) - 1:
            kernel, bias = 2 * kernel, 2 * bias
        moved[name] = {"kernel": kernel, "bias": bias}
    return {"params": moved}


def to_tanh(params: PyTree) -> PyTree:
    """The inverse of :func:`to_sigmoid`."""
    layers, moved = params["params"], {}
    for number, name in enumerate(layers):
        kernel, bias = layers[name]["kernel"], layers[name]["bias"]
        if number < len(layers) - 1:
            kernel, bias = kernel / 2, bias / 2
        if number > 0:
            kernel = kernel / 2
            bias = bias + kernel.sum(0)
        moved[name] = {"kernel": kernel, "bias": bias}
    return {"params": moved}


def metric(gradient: PyTree) -> PyTree:
    """``M M^T`` times a gradient of the sigmoid network, M the matrix of :func:`to_sigmoid`: the step that gradient descent of the tanh network makes."""
    zero = jax.tree.map(jnp.zeros_like, gradient)
    (covector,) = jax.vjp(to_sigmoid, zero)[1](gradient)
    return jax.jvp(to_sigmoid, (zero,), (covector,))[1]


def by_leaf(gradient: PyTree) -> PyTree:
    """A rate for every leaf, the square of what :func:`to_sigmoid` multiplies it by: the metric but for what ties a bias to the kernel beside it.

    Of one hidden layer.
    """
    rates = jax.tree.map(lambda leaf: 4.0, gradient)
    rates["params"]["Dense_1"]["bias"] = 1.0
    return jax.tree.map(lambda rate, leaf: rate * leaf, rates, gradient)


def _same(params: PyTree) -> PyTree:
    return params


def networks(hidden: tuple[int, ...]) -> tuple[MLP, MLP]:
    """The tanh and the sigmoid network, with normal biases; parameters in float64."""

    def double(init: Any) -> Any:
        return lambda key, shape, dtype: init(key, shape, jnp.float64)

    starts = {
        "kernel_init": double(initializer("lecun_normal")),
        "bias_init": double(initializer("normal", stddev=1.0)),
    }
    tanh, sigmoid = (MLP((*hidden, 1), name, **starts) for name in ("tanh", "sigmoid"))
    return tanh, sigmoid


def groups(hidden: tuple[int, ...]) -> tuple[Symmetry, Symmetry]:
    """The groups of both."""
    x = jax.ShapeDtypeStruct((1, INPUTS), jnp.float64)
    found = []
    for net in networks(hidden):
        params = net.init(jax.random.key(0), jnp.ones((1, INPUTS)))
        found.append(discover(net.apply, params, x))
    return found[0], found[1]


def mapped(kinds: dict[tuple[int, ...], tuple[Symmetry, Symmetry]]) -> Callable[[Array], dict[str, Array]]:
    """For each kind of network: the same function, there and back, and the group of the one carried to that of the other; of the first, canonical forms too."""

    def one(key: Array) -> dict[str, Array]:
        start_key, input_key, move_key = jax.random.split(key, 3)
        x = 2 * jax.random.normal(input_key, (ROWS, INPUTS))
        found: dict[str, list[Array]] = {name: [] for name in ("map", "map_back", "map_group")}
        for number, (hidden, (sym, other)) in enumerate(kinds.items()):
            net, sigmoid = networks(hidden)
            params = net.init(start_key, x)
            there = to_sigmoid(params)
            element = sym.sample(move_key)
            moved = to_sigmoid(sym.act(element, params))
            found["map"].append(error(sigmoid.apply(there, x), net.apply(params, x)))
            found["map_back"].append(error(to_tanh(there), params))
            found["map_group"].append(error(moved, other.act(element, there)))
            if number == 0:
                distance = orbit_distance(other, moved, there)
        return {name: jnp.stack(values) for name, values in found.items()} | {"map_orbit": distance}

    return one


def trained(steps: int, seed: int) -> Callable[[Array], dict[str, Any]]:
    """Gradient descent in four ways, from the same function, on the same rows: losses, and the outputs' distance from the tanh network's."""
    net, sigmoid = networks(TRAINED)
    own = MLP((3, 1), "tanh", kernel_init=jax.nn.initializers.normal(1.0))
    drawn = teacher(jax.random.key(seed), 2 * ROWS, own.init, own.apply, INPUTS)
    targets = (drawn.targets - drawn.targets.mean()) / drawn.targets.std()
    data, others = Rows(drawn.inputs[:ROWS], targets[:ROWS]), drawn.inputs[ROWS:]

    def train(module: MLP, into: Callable[[PyTree], PyTree], step: Callable[[PyTree], PyTree]) -> Any:
        def loss(params: PyTree, rows: Rows, key: Array) -> Array:
            del key
            return jnp.mean((module.apply(params, rows.inputs) - rows.targets) ** 2)

        return make_train(
            lambda key: into(net.init(key, data.inputs)),
            loss,
            optax.chain(optax.stateless(lambda grads, params: step(grads)), optax.sgd(RATE)),
            data,
            steps=steps,
            probes={"outputs": lambda seen: module.apply(seen.params, others)[:, 0]},
            record_every=max(1, steps // 50),
        )

    trains = [train(net, _same, _same), *(train(sigmoid, to_sigmoid, step) for step in (_same, by_leaf, metric))]

    def one(key: Array) -> dict[str, Any]:
        histories = [train(key).history for train in trains]
        outputs = jnp.stack([history["outputs"] for history in histories])
        return {
            "training_loss": jnp.stack([history["loss"] for history in histories]),
            "apart": jnp.sqrt(jnp.mean((outputs - outputs[0]) ** 2, axis=-1)),
        }

    return one


def error(a: PyTree, b: PyTree) -> Array:
    """The largest difference of two pytrees, over the larger of 1 and the largest entry."""
    pairs = list(zip(tree.leaves(a).values(), tree.leaves(b).values(), strict=True))
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(y)) for _, y in pairs]))
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x - y)) for x, y in pairs])) / jnp.maximum(size, 1.0)
