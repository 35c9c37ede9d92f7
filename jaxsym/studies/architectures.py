"""Small networks of every kind that discovery knows: one catalogue for the study ``symmetry_zoo`` and for the tests.

An entry is a function that builds ``(apply, params, inputs)``: widths of 3 to 6, so that a Jacobian can be decomposed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxsym.models import CNN, MLP, GatedMLP, Radial, Recurrent, SoftMixture, Transformer
from jaxsym.symmetry import draws


class Architecture(NamedTuple):
    """A function, its parameters and its inputs."""

    apply: Callable[..., Any]
    params: PyTree
    inputs: tuple[Any, ...]


Builder = Callable[[], Architecture]


@functools.cache
def start() -> Key[Array, ""]:
    """The key that parameters and inputs come from."""
    return jax.random.key(0)


@functools.cache
def rows() -> Float[Array, "5 3"]:
    """Five inputs of three numbers."""
    return _drawn(start(), 5, 3)


@functools.cache
def sequences() -> Float[Array, "2 7 6"]:
    """Two sequences of seven vectors."""
    return _drawn(start(), 2, 7, 6)


@functools.cache
def images() -> Float[Array, "2 8 8 1"]:
    """Two images."""
    return _drawn(start(), 2, 8, 8, 1)


@functools.cache
def tokens() -> Int[Array, "3 4"]:
    """Three sequences of four tokens, in which all seven tokens occur."""
    return jnp.arange(12).reshape(3, 4) % 7


def normal(*shape: int) -> Float[Array, "..."]:
    """Standard normal numbers, the same for the same shape."""
    return _drawn(jax.random.key(len(shape) + sum(shape)), *shape)


def _drawn(key: Array, *shape: int) -> Float[Array, "..."]:
    return jnp.asarray(draws.normal(key, math.prod(shape)).reshape(shape))


def attention() -> nn.Module:
    """Two heads of two units."""
    return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)


def _module(net: nn.Module, x: Array) -> Architecture:
    return Architecture(net.apply, net.init(start(), x), (x,))


def _mlp(activation: str, **options: Any) -> Architecture:
    return _module(MLP((4, 5, 2), activation, **options), rows())


class _Evaluated(nn.Module):
    """Convolution, pooling, flattening, batch statistics in evaluation mode."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.avg_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class _Grouped(nn.Module):
    """Depthwise and grouped convolutions: channels move within their group, groups move whole."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.tanh(nn.Conv(8, (3, 3), feature_group_count=4)(x))
        return nn.Dense(2)(nn.gelu(nn.Conv(6, (3, 3), feature_group_count=2)(x)).mean((1, 2)))


class _Separable(nn.Module):
    """A depthwise convolution, then a pointwise one with nothing between."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Conv(4, (3, 3), feature_group_count=4)(nn.relu(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(2)(nn.relu(nn.Conv(6, (1, 1))(x)).mean((1, 2)))


class _UNet(nn.Module):
    """Down and up again, and a skip that is concatenated."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        skip = nn.relu(nn.Conv(4, (3, 3))(x))
        deep = nn.relu(nn.Conv(5, (3, 3))(nn.max_pool(skip, (2, 2), (2, 2))))
        x = jnp.concatenate([skip, jnp.repeat(jnp.repeat(deep, 2, 1), 2, 2)], -1)
        return nn.Conv(2, (1, 1))(nn.relu(nn.Conv(3, (3, 3))(x)))


class _Residual(nn.Module):
    """A linear stream with nonlinear branches."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(6)(x)
        for _ in range(2):
            x = x + nn.Dense(6)(nn.tanh(nn.Dense(4)(x)))
        return nn.Dense(2)(x)


class Stream(nn.Module):
    """A residual branch and a read-out, each behind a norm."""

    norm: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch 3"]:
        """The outputs."""
        x = nn.Dense(5)(x)
        x = x + nn.Dense(5)(nn.gelu(nn.Dense(4)(self.norm()(x))))
        return nn.Dense(3)(self.norm()(x))


def _attend(q: Array, k: Array, v: Array) -> Array:
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k)), v)


class _MultiQuery(nn.Module):
    """Two heads with queries of their own, one set of keys and values."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        q, k, v = nn.DenseGeneral((2, 3))(x), nn.Dense(3)(x), nn.Dense(3)(x)
        weights = jax.nn.softmax(jnp.einsum("bqhk,bsk->bhqs", q, k))
        return nn.DenseGeneral(5, (-2, -1))(jnp.einsum("bhqs,bsk->bqhk", weights, v))


class _Fused(nn.Module):
    """Queries, keys and values in one layer, taken apart by a reshape."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = nn.Dense(18)(x).reshape(*x.shape[:-1], 3, 2, 3)
        return nn.DenseGeneral(6, (-2, -1))(_attend(*jnp.moveaxis(parts, -3, 0)))


def _fused_attention(p: PyTree, x: Array) -> Array:
    q, k, v = (part.reshape(*part.shape[:-1], 2, 3) for part in jnp.split(x @ p["qkv"], 3, -1))
    return _attend(q, k, v).reshape(*x.shape[:-1], 6) @ p["out"]


def _causal_attention() -> Architecture:
    net, x = attention(), sequences()
    return Architecture(lambda p, x: net.apply(p, x, mask=nn.make_causal_mask(x[..., 0])), net.init(start(), x), (x,))


def _transformer(**options: Any) -> Architecture:
    return _module(Transformer(vocabulary=7, width=6, heads=2, layers=1, hidden=5, length=4, **options), tokens())


def _experts(p: PyTree, x: Array) -> Array:
    gate = jax.nn.softmax(x @ p["gate"])
    hidden = jax.nn.relu(jnp.einsum("bi,eih->beh", x, p["a"]) + p["b"])
    return jnp.einsum("be,beo->bo", gate, jnp.einsum("beh,eho->beo", hidden, p["c"]))


def _stacked(p: PyTree, x: Array) -> Array:
    def layer(stream: Array, w: PyTree) -> tuple[Array, None]:
        return stream + jnp.tanh(stream @ w["a"]) @ w["b"], None

    return jax.lax.scan(layer, x @ p["in"], p["layers"])[0] @ p["out"]


def _weight_norm(p: PyTree, x: Array) -> Array:
    w = p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)
    return jax.nn.relu(x @ w) @ p["out"]


def _recurrent_linear(p: PyTree, x: Array) -> Array:
    h = x @ p["in"]
    for _ in range(3):
        h = h @ p["w"]
    return h @ p["out"]


def _branching(p: PyTree, x: Array) -> Array:
    h = jax.lax.cond(x[0, 0] > 0, lambda h: jnp.tanh(h), lambda h: jnp.sin(h), x @ p["a"])
    return h @ p["b"]


def _looped(p: PyTree, x: Array) -> Array:
    h = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, x @ p["a"]))[1]
    return h @ p["b"]


def _skip_layer(inputs: int, hidden: int, outputs: int) -> dict[str, Array]:
    """What the hidden units' signs change, the linear skip takes up."""
    shapes = {"a": (inputs, hidden), "b": (hidden,), "c": (hidden, outputs), "w": (inputs, outputs), "d": (outputs,)}
    return {name: normal(*shape) for name, shape in shapes.items()}


def _beside_a_skip(act: Callable[[Array], Array]) -> Architecture:
    apply = lambda p, x: act(x @ p["a"] + p["b"]) @ p["c"] + x @ p["w"] + p["d"]  # noqa: E731
    return Architecture(apply, _skip_layer(3, 4, 2), (rows(),))


def _skips(p: PyTree, x: Array) -> Array:
    for i in range(2):
        x = jax.nn.relu(x @ p[f"a{i}"] + p[f"b{i}"]) @ p[f"c{i}"] + x @ p[f"w{i}"] + p[f"d{i}"]
    return x


def _relu_skips() -> Architecture:
    layers = [_skip_layer(3, 4, 6), _skip_layer(6, 5, 2)]
    params = {f"{name}{i}": leaf for i, layer in enumerate(layers) for name, leaf in layer.items()}
    return Architecture(_skips, params, (rows(),))


def _siamese(p: PyTree, x: Array, y: Array) -> Array:
    one, other = (jnp.tanh(z @ p["a"] + p["b"]) @ p["c"] + p["d"] for z in (x, y))
    return jnp.sum((one - other) ** 2, -1)


def _tied_embedding(p: PyTree, tokens: Array) -> Array:
    return jnp.tanh(p["e"][tokens] @ p["a"] + p["b"]) @ p["c"] @ p["e"].T


def _with_nnx() -> Architecture:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a, self.b, self.c = (nnx.Linear(*shape, rngs=rngs) for shape in ((3, 4), (4, 5), (5, 2)))

        def __call__(self, x: Array) -> Array:
            return self.c(nnx.tanh(self.b(nnx.tanh(self.a(x)))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return Architecture(lambda state, x: nnx.merge(graph, state)(x), state, (rows(),))


def _with_equinox() -> Architecture:
    import equinox as eqx  # not needed by anything else: where it is missing, only this entry is

    layers = [eqx.nn.Linear(n, m, key=jax.random.key(n)) for n, m in ((3, 4), (4, 5), (5, 2))]
    net = eqx.nn.Sequential([layers[0], eqx.nn.Lambda(jnp.tanh), layers[1], eqx.nn.Lambda(jnp.tanh), layers[2]])
    params, static = eqx.partition(net, eqx.is_array)
    return Architecture(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, (rows(),))


def _trained_cnn() -> Architecture:
    """The statistics are those of the batch: the stored ones are not used."""
    net, x = CNN((4, 6), 3, norm="batch"), images()
    apply = lambda variables, x: net.apply(variables, x, True, mutable=["batch_stats"])[0]  # noqa: E731
    return Architecture(apply, net.init(start(), x), (x,))


def _cross_entropy(activation: str) -> Architecture:
    net, x = MLP((4, 3), activation), rows()

    def loss(params: PyTree, x: Array, labels: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), labels).mean()

    return Architecture(loss, net.init(start(), x), (x, jnp.arange(5) % 3))


def _plain(
    apply: Callable[..., Any], shapes: dict[str, tuple[int, ...]], x: Callable[[], Array] = rows
) -> Callable[[], Architecture]:
    """A function of arrays by name, standard normal at the start."""
    return lambda: Architecture(apply, {name: normal(*shape) for name, shape in shapes.items()}, (x(),))


ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "prelu",
    "squared_relu",
    "tanh",
    "sigmoid",
    "sin",
    "softplus",
    "gelu",
    "silu",
    "relu6",
    "square",
    "cube",
    "abs",
)
BESIDE_A_SKIP: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "leaky relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}

FAMILIES: dict[str, dict[str, Builder]] = {
    "activations": {
        **{name: lambda name=name: _mlp(name) for name in ACTIVATIONS},  # type: ignore[misc]
        "cube without bias": lambda: _mlp("cube", use_bias=False),
        "radial": lambda: _module(Radial(4, 2), rows()),
        "maxout": _plain(
            lambda p, x: jnp.max((x @ p["a"] + p["b"]).reshape(-1, 4, 3), -1) @ p["c"],
            {"a": (3, 12), "b": (12,), "c": (4, 2)},
        ),
    },
    "gates and mixtures": {
        "swiglu": lambda: _module(GatedMLP(4, 2), rows()),
        "glu": lambda: _module(GatedMLP(4, 2, gate="sigmoid"), rows()),
        "mixture": lambda: _module(SoftMixture(3, 4, 2), rows()),
        "experts": _plain(_experts, {"gate": (3, 2), "a": (2, 3, 4), "b": (2, 4), "c": (2, 4, 5)}),
    },
    "skips": {
        "residual": lambda: _module(_Residual(), rows()),
        **{f"{name} beside a linear skip": lambda act=act: _beside_a_skip(act) for name, act in BESIDE_A_SKIP.items()},  # type: ignore[misc]
        "relu skips": _relu_skips,
        "concatenated skip": _plain(
            lambda p, x: jnp.concatenate([h := jnp.tanh(x @ p["a"]), jax.nn.relu(h @ p["b"])], -1) @ p["c"],
            {"a": (3, 4), "b": (4, 5), "c": (9, 2)},
        ),
        "stacked layers": lambda: Architecture(
            _stacked,
            {"in": normal(3, 6), "layers": {"a": normal(3, 6, 4), "b": normal(3, 4, 6)}, "out": normal(6, 2)},
            (rows(),),
        ),
    },
    "shared weights": {
        "siamese": lambda: Architecture(
            _siamese,
            {"a": normal(3, 4), "b": normal(4), "c": normal(4, 5), "d": normal(5)},
            (rows(), normal(5, 3)),
        ),
        "tied embedding": _plain(_tied_embedding, {"e": (7, 4), "a": (4, 5), "b": (5,), "c": (5, 4)}, tokens),
        "tied autoencoder": _plain(
            lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["w"].T + p["c"], {"w": (3, 4), "b": (4,), "c": (3,)}
        ),
        "deep set": _plain(
            lambda p, x: jax.nn.relu(x[..., None] @ p["a"] + p["b"]).sum(1) @ p["c"],
            {"a": (1, 4), "b": (4,), "c": (4, 2)},
        ),
    },
    "convolutions": {
        "cnn": lambda: _module(_Evaluated(), images()),
        "cnn in training": _trained_cnn,
        "group norm": lambda: _module(CNN((4, 6), 3, norm="group"), images()),
        "grouped": lambda: _module(_Grouped(), images()),
        "separable": lambda: _module(_Separable(), images()),
        "unet": lambda: _module(_UNet(), images()),
    },
    "recurrence": {
        "rnn": lambda: _module(Recurrent(nn.SimpleCell, 5, 2), sequences()),
        "gru": lambda: _module(Recurrent(nn.GRUCell, 5, 2), sequences()),
        "lstm": lambda: _module(Recurrent(nn.LSTMCell, 5, 2), sequences()),
        "optimized lstm": lambda: _module(Recurrent(nn.OptimizedLSTMCell, 5, 2), sequences()),
        "recurrent linear": _plain(_recurrent_linear, {"in": (3, 4), "w": (4, 4), "out": (4, 2)}),
    },
    "norms": {
        "layer norm": lambda: _module(Stream(nn.LayerNorm), rows()),
        "rms norm": lambda: _module(Stream(nn.RMSNorm), rows()),
        "weight norm": _plain(_weight_norm, {"g": (4,), "v": (3, 4), "out": (4, 2)}),
    },
    "attention": {
        "attention": lambda: _module(attention(), sequences()),
        "causal attention": _causal_attention,
        "multi-query attention": lambda: _module(_MultiQuery(), sequences()),
        "fused attention": _plain(_fused_attention, {"qkv": (6, 18), "out": (6, 6)}, sequences),
        "fused attention with biases": lambda: _module(_Fused(), sequences()),
    },
    "transformers": {
        "transformer": _transformer,
        "tied transformer": lambda: _transformer(tied=True),
        "rms transformer": lambda: _transformer(norm="rms"),
        "tied rms transformer": lambda: _transformer(norm="rms", tied=True),
    },
    "losses": {
        "cross entropy": lambda: _cross_entropy("tanh"),
        "sigmoid cross entropy": lambda: _cross_entropy("sigmoid"),
    },
    "other libraries and control flow": {
        "nnx": _with_nnx,
        "equinox": _with_equinox,
        "cond": _plain(_branching, {"a": (3, 4), "b": (4, 2)}),
        "while": _plain(_looped, {"a": (3, 4), "w": (4, 4), "b": (4, 2)}),
    },
}
"""Builders by family."""
CATALOGUE: dict[str, Builder] = {name: build for family in FAMILIES.values() for name, build in family.items()}
