"""The networks of the study ``symmetry_breaking``, the ways that may separate their units, and how tied units are."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxsym.data import Rows
from jaxsym.symmetry.group import Symmetry
from jaxsym.training.probes import count_distinct

UNITS, HEADS = 8, 4
MINIBATCH = 32
ADAM = 0.05  # its rate, of what SGD would take

Drop = Callable[..., Array]


def dense(x: Float[Array, "N 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """Hidden tanh units on all pixels."""
    return drop(jnp.tanh(nn.Dense(UNITS)(x.reshape(len(x), -1))))


def convolution(x: Float[Array, "N 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """Filters of 3 x 3 pixels at every second position, tanh."""
    return drop(jnp.tanh(nn.Conv(UNITS, (3, 3), strides=2)(x[..., None]))).reshape(len(x), -1)


def recurrent(x: Float[Array, "N 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """The last state of a simple cell that reads one row of the image after another."""
    return drop(nn.RNN(nn.SimpleCell(UNITS, param_dtype=x.dtype))(x)[:, -1])


def lstm(x: Float[Array, "N 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """The same with an LSTM."""
    return drop(nn.RNN(nn.OptimizedLSTMCell(UNITS, param_dtype=x.dtype))(x)[:, -1])


def attention(x: Float[Array, "N 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """Heads that attend over the rows of the image; what is dropped are attention weights."""
    queries, keys, values = (nn.DenseGeneral((HEADS, 2))(x) for _ in range(3))
    weights = drop(jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", queries, keys) / 2**0.5))
    return jnp.einsum("nhqk,nkhd->nhd", weights, values).reshape(len(x), -1) / x.shape[1]


def siamese(x: Float[Array, "N 2 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """Squared differences of the hidden units of two images, which share their weights by design."""
    shared = nn.Dense(UNITS)
    first, second = (drop(jnp.tanh(shared(x[:, i].reshape(len(x), -1))), i) for i in range(2))
    return (first - second) ** 2


def twins(x: Float[Array, "N 2 8 8"], drop: Drop) -> Float[Array, "N h"]:
    """The same with weights of their own for both images, which start equal."""
    first, second = (drop(jnp.tanh(nn.Dense(UNITS)(x[:, i].reshape(len(x), -1))), i) for i in range(2))
    return (first - second) ** 2


def kept(values: Array, which: int = 0) -> Array:
    """Nothing is dropped."""
    del which
    return values


class Net(nn.Module):
    """What a body makes of its input, and a dense layer on it."""

    body: Callable[[Array, Drop], Array]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "N ..."], drop: Drop = kept) -> Float[Array, "N outputs"]:
        """Logits."""
        hidden = self.body(x, drop)
        return nn.Dense(self.num_outputs)(hidden)


NETS = {
    "mlp": Net(dense, 10),
    "cnn": Net(convolution, 10),
    "rnn": Net(recurrent, 10),
    "lstm": Net(lstm, 10),
    "attention": Net(attention, 10),
    "siamese": Net(siamese, 2),
    "twins": Net(twins, 2),
}
PAIRED = ("siamese", "twins")
"""Those that see two images and say whether they show the same digit."""
TIED_UNITS = {"attention": HEADS}
"""Number of units that may be tied, where it is not :data:`UNITS`."""
PLACES = {"cnn": ("Conv_0", "positions"), "rnn": ("RNN_0", "time steps"), "lstm": ("RNN_0", "time steps")}
"""Layers whose one set of weights is used at many places."""

WAYS: dict[str, dict[str, float | tuple[float, float]]] = {
    "nothing": {},
    "random": {"random": 1.0},
    "weight_decay_l1": {"l1": (1e-4, 1e-2)},
    "weight_decay_l2": {"l2": (1e-4, 1e-2)},
    "dropout": {"dropout": (0.1, 0.5)},
    "augmentation": {"augmentation": 1.0},
    "minibatch": {"minibatch": 1.0},
    "noise_inputs": {"noise_inputs": (0.03, 0.5)},
    "noise_weights": {"noise_weights": (0.01, 0.1)},
    "noise_gradients": {"noise_gradients": (1e-3, 1e-1)},
    "momentum": {"momentum": (0.5, 0.95)},
    "adam": {"adam": 1.0},
    "together": {
        "l1": (1e-4, 1e-2),
        "l2": (1e-4, 1e-2),
        "augmentation": 1.0,
        "minibatch": 1.0,
        "noise_inputs": (0.03, 0.5),
        "momentum": (0.5, 0.95),
    },
}
"""What each sets; a pair is a range of strengths, from which a network takes one (uniform in the logarithm)."""
NEUTRAL = {
    **dict.fromkeys(("random", "l1", "l2", "dropout", "augmentation", "minibatch", "momentum", "adam"), 0.0),
    **dict.fromkeys(("noise_inputs", "noise_weights", "noise_gradients"), 0.0),
}


def hyperparameters(
    way: Mapping[str, float | tuple[float, float]], strength: Float[Array, " n"], rate: Float[Array, " n"]
) -> dict[str, Float[Array, " n"]]:
    """Of one network each, for a strength in [0, 1] and a learning rate."""
    chosen = {
        name: value[0] * (value[1] / value[0]) ** strength if isinstance(value, tuple) else jnp.full_like(rate, value)
        for name, value in (NEUTRAL | dict(way)).items()
    }
    slower = jnp.where(chosen["adam"] > 0, ADAM, 1 - chosen["momentum"])
    return chosen | {"learning_rate": rate * slower}


@optax.inject_hyperparams
def optimizer(learning_rate: Array, momentum: Array, adam: Array) -> optax.GradientTransformation:
    """SGD with momentum, or Adam where ``adam`` is not 0: one program for both."""
    heavy, moments = optax.trace(momentum), optax.scale_by_adam()

    def init(params: PyTree) -> PyTree:
        return heavy.init(params), moments.init(params)

    def update(grads: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        del params
        (plain, first), (scaled, second) = heavy.update(grads, state[0]), moments.update(grads, state[1])
        steps = jax.tree.map(lambda a, b: -learning_rate * jnp.where(adam > 0, b, a), plain, scaled)
        return steps, (first, second)

    return optax.GradientTransformation(init, update)


def start(net: Net, x: Array) -> Callable[..., PyTree]:
    """``init(key, random, constant)``: every kernel a constant and every bias 0, or as Flax draws them."""

    def init(key: Array, *, random: Array, constant: Array) -> PyTree:
        drawn = jax.tree.map(lambda leaf: leaf.astype(x.dtype), net.init(key, x))
        return jax.tree.map(lambda leaf: jnp.where(random > 0, leaf, constant * (leaf.ndim > 1)), drawn)

    return init


def loss(net: Net) -> Callable[..., Float[Array, ""]]:
    """The cross-entropy with all that may separate units, each of which its hyperparameter turns off at 0."""

    def value(
        params: PyTree,
        rows: Rows,
        key: Array,
        *,
        l1: Array,
        l2: Array,
        dropout: Array,
        augmentation: Array,
        minibatch: Array,
        noise_inputs: Array,
        noise_weights: Array,
        noise_gradients: Array,
    ) -> Float[Array, ""]:
        shift_key, input_key, weight_key, gradient_key, drop_key, row_key = jax.random.split(key, 6)
        x = shifted(rows.inputs, shift_key, augmentation)
        x = x + noise_inputs * jax.random.normal(input_key, x.shape, jnp.float32)
        noisy = jax.tree.map(lambda leaf, noise: leaf + noise_weights * noise, params, _noise(weight_key, params))

        def drop(values: Array, which: int = 0) -> Array:
            stays = jax.random.uniform(jax.random.fold_in(drop_key, which), values.shape, jnp.float32) >= dropout
            return jnp.where(stays, values / (1 - dropout), 0)

        each = optax.softmax_cross_entropy_with_integer_labels(net.apply(noisy, x, drop), rows.targets)
        first = jax.random.permutation(row_key, len(each)) < MINIBATCH
        cost = jnp.sum(each * jnp.where(minibatch > 0, first / MINIBATCH, 1 / len(each)))
        kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
        signs = [jax.lax.stop_gradient(jnp.sign(leaf)) for leaf in kernels]  # 0 at 0, where JAX gives |x| a slope of 1
        cost += sum(
            l1 * jnp.vdot(sign, leaf) + l2 / 2 * (leaf**2).sum() for sign, leaf in zip(signs, kernels, strict=True)
        )
        pushes = jax.tree.map(
            lambda leaf, noise: jnp.vdot(noise, leaf - jax.lax.stop_gradient(leaf)),
            params,
            _noise(gradient_key, params),
        )
        return cost + noise_gradients * sum(jax.tree.leaves(pushes))  # 0, with the noise as its gradient

    return value


def shifted(images: Float[Array, "N ..."], key: Array, augmentation: Array) -> Float[Array, "N ..."]:
    """Every row moved by at most a pixel in both directions, at random; as it is where ``augmentation`` is 0."""
    room = [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)]
    by = jax.random.randint(key, (len(images), 2), -1, 2) * (augmentation > 0) + 1

    def cut(image: Array, by: Array) -> Array:
        at = [jnp.zeros_like(by[0])] * (image.ndim - 2) + [by[0], by[1]]
        return jax.lax.dynamic_slice(image, at, images.shape[1:])

    return jax.vmap(cut)(jnp.pad(images, room), by)


def _noise(key: Array, params: PyTree) -> PyTree:
    flat, restore = ravel_pytree(params)
    return restore(
        jax.random.normal(key, flat.shape, flat.dtype)
    )  # drawn at once: a draw for each leaf takes long to compile


def transpositions(sym: Symmetry, params: PyTree, size: int) -> Int[np.ndarray, "pairs P"]:
    """Where each parameter comes from when two units are exchanged, for every two of ``size`` units of one layer.

    Raises
    ------
    ValueError
        If the group has no permutation of so many units.
    """
    found = [i for i, each in enumerate(sym.factors) if (each.kind, each.size, each.copies) == ("permutation", size, 1)]
    if len(found) != 1:
        msg = f"symmetry: got {len(found)} permutations of {size} units, expected one."
        raise ValueError(msg)
    flat, restore = ravel_pytree(params)
    places = restore(jnp.arange(flat.size, dtype=flat.dtype))

    @jax.jit
    @jax.vmap
    def exchanged(order: Int[Array, " size"]) -> Float[Array, " P"]:
        element = tuple(order if n == found[0] else part for n, part in enumerate(sym.identity()))
        return ravel_pytree(sym.act(element, places))[0]

    one, other = np.triu_indices(size, 1)
    orders, rows = np.tile(np.arange(size), (len(one), 1)), np.arange(len(one))
    orders[rows, one], orders[rows, other] = other, one
    return np.asarray(exchanged(orders)).astype(int)


def apart(params: PyTree, moved: Int[np.ndarray, "pairs P"]) -> Float[Array, " pairs"]:
    """How far exchanging two units moves the parameters, relative to the norm of what it exchanges; 0 where that is 0.

    For units that are nearly equal this is their distance over their norm.
    """
    flat, _ = ravel_pytree(params)
    own = moved != np.arange(flat.size)
    norms = jnp.sqrt(jnp.sum(jnp.where(own, flat**2, 0), axis=1))
    return jnp.linalg.norm(flat[moved] - flat, axis=1) / jnp.where(norms == 0, 1, norms)


def distinct(distances: Float[Array, " pairs"], size: int) -> Int[Array, ""]:
    """Number of different units, from the distances of every two."""
    one, other = np.triu_indices(size, 1)
    matrix = jnp.zeros((size, size)).at[one, other].set(distances)
    return count_distinct(matrix + matrix.T)
