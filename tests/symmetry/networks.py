"""Networks with the group that theory says they have: one table for all tests of the symmetry package.

Each entry builds ``(apply, params, inputs)`` and names its factors as ``{(kind, size, copies): how many}``.
"""

from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxsym.models import CNN, MLP, GatedMLP, Radial, Recurrent, SoftMixture, Transformer

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 3))
SEQUENCE = jax.random.normal(KEY, (2, 7, 6))
IMAGES = jax.random.normal(KEY, (2, 8, 8, 1))
TOKENS = jax.random.randint(KEY, (3, 4), 0, 7)


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


class Evaluated(nn.Module):
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


class Separable(nn.Module):
    """A depthwise convolution, then a pointwise one with nothing between."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), feature_group_count=4)(nn.relu(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(2)(nn.relu(nn.Conv(6, (1, 1))(x)).mean((1, 2)))


class UNet(nn.Module):
    """Down and up again, and a skip that is concatenated."""

    @nn.compact
    def __call__(self, x):
        skip = nn.relu(nn.Conv(4, (3, 3))(x))
        deep = nn.relu(nn.Conv(5, (3, 3))(nn.max_pool(skip, (2, 2), (2, 2))))
        x = jnp.concatenate([skip, jnp.repeat(jnp.repeat(deep, 2, 1), 2, 2)], -1)
        return nn.Conv(2, (1, 1))(nn.relu(nn.Conv(3, (3, 3))(x)))


class Residual(nn.Module):
    """A linear stream with nonlinear branches."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        for _ in range(2):
            x = x + nn.Dense(6)(nn.tanh(nn.Dense(4)(x)))
        return nn.Dense(2)(x)


class Stream(nn.Module):
    """A residual branch and a read-out, each behind a norm."""

    norm: type

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x)
        x = x + nn.Dense(5)(nn.gelu(nn.Dense(4)(self.norm()(x))))
        return nn.Dense(3)(self.norm()(x))


def attend(q, k, v):
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k)), v)


class MultiQuery(nn.Module):
    """Two heads with queries of their own, one set of keys and values."""

    @nn.compact
    def __call__(self, x):
        q, k, v = nn.DenseGeneral((2, 3))(x), nn.Dense(3)(x), nn.Dense(3)(x)
        weights = jax.nn.softmax(jnp.einsum("bqhk,bsk->bhqs", q, k))
        return nn.DenseGeneral(5, (-2, -1))(jnp.einsum("bhqs,bsk->bqhk", weights, v))


def fused_attention(p, x):
    q, k, v = (part.reshape(*part.shape[:-1], 2, 3) for part in jnp.split(x @ p["qkv"], 3, -1))
    return attend(q, k, v).reshape(*x.shape[:-1], 6) @ p["out"]


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


def skip_layer(inputs, hidden, outputs):
    """What the hidden units' signs change, the linear skip takes up."""
    shapes = {"a": (inputs, hidden), "b": (hidden,), "c": (hidden, outputs), "w": (inputs, outputs), "d": (outputs,)}
    return {name: normal(*shape) for name, shape in shapes.items()}


def beside_a_skip(act, kinds):
    apply = lambda p, x: act(x @ p["a"] + p["b"]) @ p["c"] + x @ p["w"] + p["d"]  # noqa: E731
    factors = {(kind, 4, 1): 1 for kind in ("sign", "permutation", *kinds)}
    return Network(apply, skip_layer(3, 4, 2), (X,), factors)


def skips(p, x):
    for i in range(2):
        x = jax.nn.relu(x @ p[f"a{i}"] + p[f"b{i}"]) @ p[f"c{i}"] + x @ p[f"w{i}"] + p[f"d{i}"]
    return x


def siamese(p, x, y):
    one, other = (jnp.tanh(z @ p["a"] + p["b"]) @ p["c"] + p["d"] for z in (x, y))
    return jnp.sum((one - other) ** 2, -1)


def tied_embedding(p, tokens):
    return jnp.tanh(p["e"][tokens] @ p["a"] + p["b"]) @ p["c"] @ p["e"].T


def with_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b, self.c = (nnx.Linear(*shape, rngs=rngs) for shape in ((3, 4), (4, 5), (5, 2)))

        def __call__(self, x):
            return self.c(nnx.tanh(self.b(nnx.tanh(self.a(x)))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return Network(lambda state, x: nnx.merge(graph, state)(x), state, (X,), ODD)


def with_equinox():
    layers = [eqx.nn.Linear(n, m, key=jax.random.key(n)) for n, m in ((3, 4), (4, 5), (5, 2))]
    net = eqx.nn.Sequential([layers[0], eqx.nn.Lambda(jnp.tanh), layers[1], eqx.nn.Lambda(jnp.tanh), layers[2]])
    params, static = eqx.partition(net, eqx.is_array)
    return Network(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, (X,), ODD)


def trained_cnn():
    """The statistics are those of the batch: the stored ones are not used."""
    net = CNN((4, 6), 3, norm="batch")
    kinds = {(kind, size, 1): 1 for kind in ("scaling", "sign", "translation", "permutation") for size in (4, 6)}
    apply = lambda variables, x: net.apply(variables, x, True, mutable=["batch_stats"])[0]  # noqa: E731
    return Network(apply, net.init(KEY, IMAGES), (IMAGES,), kinds)


def cross_entropy(activation="tanh"):
    net = MLP((4, 3), activation)

    def loss(params, x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), labels).mean()

    shifts = {("translation", 4, 1): 1, ("translation", 1, 1): 1}  # of a row of the kernel, and of the bias
    kinds = {("sign", 4, 1): 1, ("permutation", 4, 1): 1}
    return Network(loss, net.init(KEY, X), (X, jnp.arange(5) % 3), shifts | kinds)


def transformer(factors, **options):
    net = Transformer(vocabulary=7, width=6, heads=2, layers=1, hidden=5, length=4, **options)
    return module(net, TOKENS, ATTENTION_BLOCK | factors)


ATTENTION = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
ODD = {(kind, size, 1): 1 for kind in ("sign", "permutation") for size in (4, 5)}
VALUE = {("scaling", 4, 1): 1, ("sign", 4, 1): 1, ("permutation", 4, 1): 1}
HEADS = {("translation", 2, 2): 2, ("general_linear", 2, 2): 2, ("permutation", 2, 1): 1}
ATTENTION_BLOCK = {
    ("general_linear", 3, 2): 2,  # queries against keys, values against outputs
    ("permutation", 2, 1): 1,  # heads
    ("permutation", 5, 1): 1,  # hidden units
}


class Fused(nn.Module):
    """Queries, keys and values in one layer, taken apart by a reshape."""

    @nn.compact
    def __call__(self, x):
        parts = nn.Dense(18)(x).reshape(*x.shape[:-1], 3, 2, 3)
        return nn.DenseGeneral(6, (-2, -1))(attend(*jnp.moveaxis(parts, -3, 0)))


PERMUTED_CELL = {("sign", 5, 1): 1, ("permutation", 5, 1): 1}
BUILDERS = {
    "identity": lambda: mlp("identity", ["general_linear", "translation"]),
    **{
        name: lambda name=name: mlp(name, ["scaling", "permutation"])
        for name in ("relu", "leaky_relu", "prelu", "squared_relu")
    },
    **{
        name: lambda name=name: mlp(name, ["sign", "permutation"]) for name in ("tanh", "sigmoid")
    },  # sigmoid: with a shift
    "sin": lambda: mlp("sin", ["phase", "sign", "permutation"]),
    **{name: lambda name=name: mlp(name, ["permutation"]) for name in ("softplus", "gelu", "silu", "relu6")},
    **{name: lambda name=name: mlp(name, ["scaling", "sign", "permutation"]) for name in ("square", "cube", "abs")},
    "cube without bias": lambda: mlp("cube", ["scaling", "sign", "permutation"], use_bias=False),
    "cnn": lambda: module(
        Evaluated(),
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
    "swiglu": lambda: module(GatedMLP(4, 2), X, VALUE),
    "glu": lambda: module(GatedMLP(4, 2, gate="sigmoid"), X, VALUE),
    "separable": lambda: module(
        Separable(),
        IMAGES,
        {
            ("scaling", 4, 1): 2,
            ("scaling", 6, 1): 1,
            ("sign", 4, 1): 1,
            ("translation", 4, 1): 1,
            ("permutation", 4, 1): 1,
            ("permutation", 6, 1): 1,
        },
    ),
    "cnn in training": trained_cnn,
    "group norm": lambda: module(  # a shift of each group's biases is not found
        CNN((4, 6), 3, norm="group"),
        IMAGES,
        {("scaling", 2, 2): 1, ("scaling", 3, 2): 1, ("sign", 2, 1): 2}
        | {("permutation", 2, 2): 1, ("permutation", 3, 2): 1, ("permutation", 2, 1): 2},
    ),
    "unet": lambda: module(
        UNet(), IMAGES, {(kind, size, 1): 1 for kind in ("scaling", "permutation") for size in (3, 4, 5)}
    ),
    "residual": lambda: module(
        Residual(),
        X,
        {("translation", 6, 1): 3, ("general_linear", 6, 1): 1, ("sign", 4, 1): 2, ("permutation", 4, 1): 2},
    ),
    "rnn": lambda: module(Recurrent(nn.SimpleCell, 5, 2), SEQUENCE, PERMUTED_CELL),
    "gru": lambda: module(Recurrent(nn.GRUCell, 5, 2), SEQUENCE, PERMUTED_CELL),
    "lstm": lambda: module(Recurrent(nn.LSTMCell, 5, 2), SEQUENCE, PERMUTED_CELL),
    "optimized lstm": lambda: module(Recurrent(nn.OptimizedLSTMCell, 5, 2), SEQUENCE, PERMUTED_CELL),
    "attention": lambda: module(
        ATTENTION,
        SEQUENCE,
        HEADS,
    ),
    "causal attention": lambda: Network(
        lambda p, x: ATTENTION.apply(p, x, mask=nn.make_causal_mask(x[..., 0])),
        ATTENTION.init(KEY, SEQUENCE),
        (SEQUENCE,),
        HEADS,
    ),
    "multi-query attention": lambda: module(
        MultiQuery(),
        SEQUENCE,
        {("translation", 3, 1): 2, ("general_linear", 3, 1): 2, ("permutation", 2, 1): 1},
    ),
    "fused attention": lambda: Network(
        fused_attention,
        {"qkv": normal(6, 18), "out": normal(6, 6)},
        (SEQUENCE,),
        {("general_linear", 3, 2): 2, ("permutation", 2, 1): 1},
    ),
    "layer norm": lambda: module(
        Stream(nn.LayerNorm),
        X,
        {
            ("orthogonal", 4, 1): 1,  # turns about (1, ..., 1)
            ("scaling", 5, 1): 2,
            ("sign", 5, 1): 2,
            ("sign", 1, 1): 1,  # of the whole stream: -1 of the orthogonal group leaves (1, ..., 1) alone
            ("translation", 5, 1): 2,  # of the norms' biases against those of their readers
            # along (1, ..., 1): what writes to the stream, and in the gains' frame what reads it
            ("translation", 3, 1): 2,
            ("translation", 4, 1): 2,
            ("translation", 1, 1): 2,
            ("permutation", 4, 1): 1,
        },
    ),
    "rms norm": lambda: module(
        Stream(nn.RMSNorm),
        X,
        {("orthogonal", 5, 1): 1, ("scaling", 5, 1): 2, ("sign", 5, 1): 2, ("permutation", 4, 1): 1},
    ),
    "rms transformer": lambda: transformer(
        {
            ("orthogonal", 6, 1): 1,
            ("scaling", 6, 1): 3,
            ("sign", 6, 1): 3,
            ("translation", 6, 1): 1,  # embedding against positions
            ("translation", 3, 2): 2,  # biases of keys and values
        },
        norm="rms",
    ),
    "tied rms transformer": lambda: transformer(
        {
            ("scaling", 6, 1): 2,
            ("sign", 6, 1): 3,
            ("translation", 3, 2): 2,
            ("permutation", 6, 1): 1,
        },
        norm="rms",
        tied=True,
    ),
    "nnx": with_nnx,
    "equinox": with_equinox,
    "cross entropy": cross_entropy,
    "siamese": lambda: Network(
        siamese,
        {"a": normal(3, 4), "b": normal(4), "c": normal(4, 5), "d": normal(5)},
        (X, normal(5, 3)),
        {("orthogonal", 5, 1): 1, ("translation", 5, 1): 1, ("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
    "tied embedding": lambda: Network(
        tied_embedding,
        {"e": normal(7, 4), "a": normal(4, 5), "b": normal(5), "c": normal(5, 4)},
        (TOKENS,),
        {("general_linear", 4, 1): 1, ("sign", 5, 1): 1, ("permutation", 5, 1): 1},
    ),
    "mixture": lambda: module(
        SoftMixture(3, 4, 2),
        X,
        {
            ("translation", 3, 1): 1,  # the same for all gates: per input, and of the bias
            ("translation", 1, 1): 1,
            ("scaling", 4, 3): 1,
            ("permutation", 4, 3): 1,
            ("permutation", 3, 1): 1,
        },
    ),
    **{
        f"{name} beside a linear skip": lambda act=act, kinds=kinds: beside_a_skip(act, kinds)
        for name, act, kinds in (
            ("relu", jax.nn.relu, ("scaling",)),
            ("leaky relu", jax.nn.leaky_relu, ("scaling",)),
            ("gelu", jax.nn.gelu, ()),
            ("silu", jax.nn.silu, ()),
            ("softplus", jax.nn.softplus, ()),
        )
    },
    "relu skips": lambda: Network(
        skips,
        {f"{n}{i}": leaf for i, size in enumerate((3, 6)) for n, leaf in skip_layer(size, 4 + i, (6, 2)[i]).items()},
        (X,),
        {("general_linear", 6, 1): 1, ("translation", 6, 1): 1}
        | {(kind, size, 1): 1 for kind in ("sign", "scaling", "permutation") for size in (4, 5)},
    ),
    "sigmoid cross entropy": lambda: cross_entropy("sigmoid"),
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
    "radial": lambda: module(Radial(4, 2), X, {("orthogonal", 4, 1): 1}),
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
    "fused attention with biases": lambda: module(
        Fused(), SEQUENCE, {("translation", 6, 1): 2, ("general_linear", 3, 2): 2, ("permutation", 2, 1): 1}
    ),
    "transformer": lambda: transformer(
        {
            ("orthogonal", 5, 1): 1,
            ("scaling", 6, 1): 3,
            ("sign", 6, 1): 3,
            ("sign", 1, 1): 1,  # of the stream
            ("translation", 7, 1): 1,  # along (1, ..., 1), which the norms remove: embedding,
            ("translation", 3, 1): 1,  # positions, less what they have in common with the next but two,
            ("translation", 5, 1): 2,  # output of the hidden layer (and, in the gains' frame, its reader),
            ("translation", 1, 1): 2,  # both biases that write to the stream
            ("translation", 6, 1): 3,  # embedding against positions, biases of two norms against those of their readers
            ("translation", 3, 2): 6,  # output of the heads; readers q, k, v in the gains' frame; biases k, v
        }
    ),
    "tied transformer": lambda: transformer(
        {
            ("scaling", 6, 1): 2,
            ("sign", 6, 1): 2,
            ("sign", 1, 1): 1,  # of the stream
            ("translation", 4, 1): 1,
            ("translation", 5, 1): 2,
            ("translation", 1, 1): 2,
            ("translation", 6, 1): 2,
            ("translation", 3, 2): 6,
            ("permutation", 6, 1): 1,
        },
        tied=True,
    ),
}
QUICK = (
    "relu",
    "tanh",
    "swiglu",
    "fused attention",
    "stacked layers",
    "radial",
    "equinox",
    "cross entropy",
    "relu skips",
)
"""Run every time; the others by ``scripts/test --all``."""
