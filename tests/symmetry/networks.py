"""Networks with the group that theory says they have: one table for all tests of the symmetry package.

Each entry builds ``(apply, params, inputs)`` and names its factors as ``{(kind, size, copies): how many}``.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxsym.models import MLP

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 3))
SEQUENCE = jax.random.normal(KEY, (2, 7, 6))
IMAGES = jax.random.normal(KEY, (2, 8, 8, 1))


class Network(NamedTuple):
    """A function, its parameters and inputs, and the factors that it must have."""

    apply: object
    params: object
    inputs: tuple
    factors: dict


def normal(*shape):
    return jax.random.normal(jax.random.key(len(shape) + sum(shape)), shape)


def module(net, x, factors):
    return Network(net.apply, net.init(KEY, x), (x,), factors)


def mlp(activation, kinds, **options):
    kinds = {(kind, size, 1): 1 for kind in kinds for size in (4, 5)}
    return module(MLP((4, 5, 2), activation, **options), X, kinds)


class CNN(nn.Module):
    """Convolution, pooling, flattening, batch statistics in evaluation mode."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.avg_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions: channels move within their group, groups move whole."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.tanh(nn.Conv(8, (3, 3), feature_group_count=4)(x))
        return nn.Dense(2)(nn.gelu(nn.Conv(6, (3, 3), feature_group_count=2)(x)).mean((1, 2)))


class SwiGLU(nn.Module):
    """A gated unit: the value branch may be multiplied by any number."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.silu(nn.Dense(4)(x)) * nn.Dense(4)(x))


class Residual(nn.Module):
    """A linear stream with nonlinear branches."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        for _ in range(2):
            x = x + nn.Dense(6)(nn.tanh(nn.Dense(4)(x)))
        return nn.Dense(2)(x)


class Recurrent(nn.Module):
    """A cell under ``scan`` with a read-out of the last state."""

    cell: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(self.cell(5))(x)[:, -1])


def fused_attention(p, x):
    q, k, v = (part.reshape(*part.shape[:-1], 2, 3) for part in jnp.split(x @ p["qkv"], 3, -1))
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
    return jnp.einsum("bhqs,bshk->bqhk", weights, v).reshape(*x.shape[:-1], 6) @ p["out"]


def experts(p, x):
    gate = jax.nn.softmax(x @ p["gate"])
    hidden = jax.nn.relu(jnp.einsum("bi,eih->beh", x, p["a"]) + p["b"])
    return jnp.einsum("be,beo->bo", gate, jnp.einsum("beh,eho->beo", hidden, p["c"]))


def stacked(p, x):
    def layer(stream, w):
        return stream + jnp.tanh(stream @ w["a"]) @ w["b"], None

    return jax.lax.scan(layer, x @ p["in"], p["layers"])[0] @ p["out"]


def weight_norm(p, x):
    w = p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)
    return jax.nn.relu(x @ w) @ p["out"]


def radial(p, x):
    z = x @ p["a"]
    length = jnp.sqrt(jnp.sum(z**2, -1, keepdims=True))
    return (jnp.tanh(length) * z) @ p["b"]


def recurrent_linear(p, x):
    h = x @ p["in"]
    for _ in range(3):
        h = h @ p["w"]
    return h @ p["out"]


def branching(p, x):
    h = jax.lax.cond(x[0, 0] > 0, lambda h: jnp.tanh(h), lambda h: jnp.sin(h), x @ p["a"])
    return h @ p["b"]


def looped(p, x):
    h = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, x @ p["a"]))[1]
    return h @ p["b"]


PERMUTED_CELL = {("sign", 5, 1): 1, ("permutation", 5, 1): 1}
BUILDERS = {
    "identity": lambda: mlp("identity", ["general_linear", "translation"]),
    **{
        name: lambda name=name: mlp(name, ["scaling", "permutation"])
        for name in ("relu", "leaky_relu", "prelu", "squared_relu")
    },
    **{name: lambda name=name: mlp(name, ["sign", "permutation"]) for name in ("tanh", "sin")},
    **{name: lambda name=name: mlp(name, ["permutation"]) for name in ("sigmoid", "softplus", "gelu", "silu", "relu6")},
    **{name: lambda name=name: mlp(name, ["scaling", "sign", "permutation"]) for name in ("square", "cube", "abs")},
    "cube without bias": lambda: mlp("cube", ["scaling", "sign", "permutation"], use_bias=False),
    "cnn": lambda: module(
        CNN(),
        IMAGES,
        {
            ("scaling", 4, 1): 2,
            ("scaling", 5, 1): 1,
            ("sign", 4, 1): 1,
            ("permutation", 4, 1): 1,
            ("permutation", 5, 1): 1,
            ("translation", 4, 1): 1,  # the running mean, taken up by the bias after it
        },
    ),
    "grouped": lambda: module(
        Grouped(),
        IMAGES,
        {
            ("scaling", 2, 2): 1,
            ("sign", 2, 4): 1,
            ("permutation", 3, 2): 1,
            ("permutation", 2, 4): 1,
            ("permutation", 2, 2): 1,
            ("permutation", 2, 1): 1,
        },
    ),
    "swiglu": lambda: module(SwiGLU(), X, {("scaling", 4, 1): 1, ("sign", 4, 1): 1, ("permutation", 4, 1): 1}),
    "residual": lambda: module(
        Residual(),
        X,
        {("translation", 6, 1): 3, ("general_linear", 6, 1): 1, ("sign", 4, 1): 2, ("permutation", 4, 1): 2},
    ),
    "rnn": lambda: module(Recurrent(nn.SimpleCell), SEQUENCE, PERMUTED_CELL),
    "gru": lambda: module(Recurrent(nn.GRUCell), SEQUENCE, PERMUTED_CELL),
    "lstm": lambda: module(Recurrent(nn.LSTMCell), SEQUENCE, PERMUTED_CELL),
    "optimized lstm": lambda: module(Recurrent(nn.OptimizedLSTMCell), SEQUENCE, PERMUTED_CELL),
    "attention": lambda: module(
        nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4),
        SEQUENCE,
        {("translation", 2, 2): 2, ("general_linear", 2, 2): 2, ("permutation", 2, 1): 1},
    ),
    "fused attention": lambda: Network(
        fused_attention,
        {"qkv": normal(6, 18), "out": normal(6, 6)},
        (SEQUENCE,),
        {("general_linear", 3, 2): 2, ("permutation", 2, 1): 1},
    ),
    "tied autoencoder": lambda: Network(
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["w"].T + p["c"],
        {"w": normal(3, 4), "b": normal(4), "c": normal(3)},
        (X,),
        {("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
    "deep set": lambda: Network(
        lambda p, x: jax.nn.relu(x[..., None] @ p["a"] + p["b"]).sum(1) @ p["c"],
        {"a": normal(1, 4), "b": normal(4), "c": normal(4, 2)},
        (X,),
        {("scaling", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
    "concatenated skip": lambda: Network(
        lambda p, x: jnp.concatenate([h := jnp.tanh(x @ p["a"]), jax.nn.relu(h @ p["b"])], -1) @ p["c"],
        {"a": normal(3, 4), "b": normal(4, 5), "c": normal(9, 2)},
        (X,),
        {("sign", 4, 1): 1, ("scaling", 5, 1): 1, ("permutation", 4, 1): 1, ("permutation", 5, 1): 1},
    ),
    "experts": lambda: Network(
        experts,
        {"gate": normal(3, 2), "a": normal(2, 3, 4), "b": normal(2, 4), "c": normal(2, 4, 5)},
        (X,),
        {("translation", 3, 1): 1, ("scaling", 4, 2): 1, ("permutation", 4, 2): 1, ("permutation", 2, 1): 1},
    ),
    "stacked layers": lambda: Network(
        stacked,
        {"in": normal(3, 6), "layers": {"a": normal(3, 6, 4), "b": normal(3, 4, 6)}, "out": normal(6, 2)},
        (X,),
        {("general_linear", 6, 1): 1, ("sign", 4, 3): 1, ("permutation", 4, 3): 1},
    ),
    "weight norm": lambda: Network(
        weight_norm,
        {"g": normal(4), "v": normal(3, 4), "out": normal(4, 2)},
        (X,),
        {("scaling", 4, 1): 2, ("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
    "radial": lambda: Network(radial, {"a": normal(3, 4), "b": normal(4, 2)}, (X,), {("orthogonal", 4, 1): 1}),
    "maxout": lambda: Network(
        lambda p, x: jnp.max((x @ p["a"] + p["b"]).reshape(-1, 4, 3), -1) @ p["c"],
        {"a": normal(3, 12), "b": normal(12), "c": normal(4, 2)},
        (X,),
        {("scaling", 4, 1): 1, ("permutation", 3, 4): 1, ("permutation", 4, 1): 1},
    ),
    "recurrent linear": lambda: Network(  # besides the change of basis: w -> c w, in -> c^-3 in
        recurrent_linear,
        {"in": normal(3, 4), "w": normal(4, 4), "out": normal(4, 2)},
        (X,),
        {("general_linear", 4, 1): 1, ("scaling", 1, 1): 1, ("sign", 1, 1): 1},
    ),
    "cond": lambda: Network(
        branching, {"a": normal(3, 4), "b": normal(4, 2)}, (X,), {("sign", 4, 1): 1, ("permutation", 4, 1): 1}
    ),
    "while": lambda: Network(
        looped,
        {"a": normal(3, 4), "w": normal(4, 4), "b": normal(4, 2)},
        (X,),
        {("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
}
QUICK = ("relu", "tanh", "fused attention", "stacked layers", "radial")
"""Run every time; the others by ``scripts/test --all``."""
