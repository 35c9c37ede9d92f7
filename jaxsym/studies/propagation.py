"""What depth does to signals: activation variance, gradients and Jacobians of deep chains at initialisation, by initialiser and activation.

The exercises on numerical stability and initialisation in Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons": products of many matrices,
saturation, the initialisers of Glorot and Bengio 2010 and He et al. 2015 (arXiv:1502.01852); beside them residual connections, and batch normalisation, whose gradients Yang et al. 2019
(arXiv:1902.08129) find to explode.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, PyTree

from jaxsym import data
from jaxsym.data import Rows
from jaxsym.models.activation import resolve
from jaxsym.studies.classifying import accuracy, cross_entropy, take
from jaxsym.studies.propagation_page import page
from jaxsym.studies.propagation_summary import summary
from jaxsym.studies.study import Clock, Progress, Study, expect, network_keys
from jaxsym.training import make_train
from jaxsym.training.initial import initializer

LAYERS = 50
DEPTHS = (2, 5, 10, 20, 50)
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu", "gelu")
INITIALIZERS = {
    "normal 0.01": initializer("normal", stddev=0.01),
    "normal 1": initializer("normal", stddev=1.0),
    "xavier": initializer("xavier_normal"),
    "he": initializer("he_normal"),
    "orthogonal": initializer("orthogonal"),
    "orthogonal x 1.41": initializer("orthogonal", scale=2**0.5),
}
"""LeCun's is Xavier's where layers have as many outputs as inputs, as here."""
NOTHING = 1e-300
"""What a variance or gradient of 0 counts as: of networks all of whose units are off."""
PLAIN, RESIDUAL, NORMALIZED = range(3)
ARCHITECTURES = ("plain", "residual", "batch norm")
NORMALIZED_WIDTH, NORMALIZED_ROWS = 8, 6
"""Of the chains whose Jacobians couple all rows of the batch."""
INNER_WIDTHS = (1, 2, 3, 4, 5, 8, 16, 32)
OUTER_WIDTH = 3
TRAINED = ("tanh", "relu")
RATES = (0.003, 0.02, 0.1)
TRAINED_LAYERS, TRAINED_WIDTH, BATCH = 20, 32, 64


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    networks: int = 100
    """Of each architecture, activation and initialiser."""
    width: int = 32
    """Of every layer."""
    rows: int = 32
    """Of the batch that variances and gradients are taken over."""
    few: int = 24
    """Networks with batch normalisation of each activation and initialiser, whose Jacobians couple all rows."""
    chains: int = 1000
    """Chains of two factors that are not square, for each inner width."""
    trained: int = 4
    """Networks of each architecture, activation, initialiser and rate that are trained."""
    steps: int = 600
    """Of their training."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no ensemble."""
        expect(self, networks=6, width=2, rows=2, few=2, chains=2, trained=2, steps=1)


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Signals, Jacobians, chains that are not square, and a short training."""
    cells = len(ACTIVATIONS) * len(INITIALIZERS)
    grid = np.array(list(np.ndindex(len(ARCHITECTURES), len(TRAINED), len(INITIALIZERS), len(RATES), config.trained)))
    total = config.networks * 3 * cells + config.few * cells + config.chains * len(INNER_WIDTHS)
    clock = Clock(progress, total + len(grid) * config.steps)
    keys = network_keys(config.seed, max(config.networks, config.few, config.chains, config.trained))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        signals = clock.ensemble("signals", _signals(config), keys[: config.networks], steps=3 * cells)
        normalized = clock.ensemble("batch normalisation", _normalized, keys[: config.few], steps=cells)
        chains = clock.ensemble("two factors", _two_factors, keys[: config.chains], steps=len(INNER_WIDTHS))
        apart = float(_composed_to_nothing())
    digits = data.flattened(data.digits())
    architecture, activation, start, rate, network = grid.T
    ends = clock.ensemble(
        f"training {TRAINED_LAYERS} layers",
        _training(digits, config.steps),
        keys[network],
        jnp.array(architecture),
        jnp.array(activation),
        jax.tree.map(lambda leaf: leaf[start, network], _starts(digits, keys[: config.trained])),
        jnp.array(RATES)[rate],
        steps=config.steps,
    )
    trained = {name: values.reshape(3, len(TRAINED), -1, len(RATES), config.trained) for name, values in ends.items()}
    return _dataset(signals, normalized, chains, trained, apart).assign(clock.variables())


def read(
    hidden: Float[Array, "rows width"], kernel: Float[Array, "width width"], architecture: Int[Array, ""]
) -> Float[Array, "rows width"]:
    """What the units of a layer read; with batch normalisation standardised over the rows."""
    return jax.lax.cond(
        architecture == NORMALIZED,
        lambda z: jax.nn.standardize(z, axis=0, variance=jnp.var(z, axis=0, keepdims=True)),
        lambda z: z,
        hidden @ kernel,
    )


def layer(
    hidden: Float[Array, "rows width"],
    kernel: Float[Array, "width width"],
    architecture: Int[Array, ""],
    act: Callable[[Array], Array],
) -> Float[Array, "rows width"]:
    """One layer of any architecture."""
    written = act(read(hidden, kernel, architecture))
    return jax.lax.cond(architecture == RESIDUAL, lambda: hidden + written, lambda: written)


def chosen_activation(number: Int[Array, ""], names: tuple[str, ...] = ACTIVATIONS) -> Callable[[Array], Array]:
    """The activation of a traced number."""
    return lambda z: jax.lax.switch(number, [resolve(name) for name in names], z)


def draw(key: Array, start: Int[Array, ""], num: int, shape: tuple[int, int]) -> Float[Array, "layers inputs outputs"]:
    """Kernels of the initialiser of a traced number, one key a layer."""
    dtype = jnp.result_type(float)
    draws = [
        lambda keys, init=init: jax.vmap(lambda key: init(key, shape, dtype))(keys) for init in INITIALIZERS.values()
    ]
    return jax.lax.switch(start, draws, jax.random.split(key, num))


def _signals(config: Config) -> Callable[[Array], dict[str, Array]]:
    shape = config.rows, config.width

    def one(key: Array) -> dict[str, Array]:
        kernel_key, input_key, output_key = jax.random.split(key, 3)
        inputs, outputs = jax.random.normal(input_key, shape), jax.random.normal(output_key, shape)

        def cell(numbers: tuple[Array, Array, Array]) -> dict[str, Array]:
            architecture, activation, start = numbers
            act = chosen_activation(activation)
            kernels = draw(kernel_key, start, LAYERS, (config.width, config.width))

            def probe(kernels: Array, shifts: Array) -> Array:
                """A loss whose gradient at the last layer is the same for all networks."""
                step = lambda h, both: (layer(h, both[0], architecture, act) + both[1], None)  # noqa: E731
                return jnp.sum(outputs * jax.lax.scan(step, inputs, (kernels, shifts))[0]) / config.rows

            def step(hidden: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
                z = read(hidden, kernel, architecture)
                slope = jax.jvp(act, (z,), (jnp.ones_like(z),))[1]
                after = layer(hidden, kernel, architecture, act)
                return after, (hidden[0], jnp.var(after), jnp.mean(slope**2))

            _, (before, variance, slope) = jax.lax.scan(step, inputs, kernels)
            found = {"variance": _log(jnp.maximum(variance, NOTHING)), "slope": jnp.sqrt(slope)}
            ratios = []
            for depth in DEPTHS:
                by_kernel, by_output = jax.grad(probe, (0, 1))(kernels[:depth], jnp.zeros((depth, *shape)))
                weights, hidden = (
                    _log(jnp.maximum(jnp.linalg.norm(g, axis=(1, 2)), NOTHING)) for g in (by_kernel, by_output)
                )
                ratios.append((weights[0] - weights[-1], hidden[0] - hidden[-1]))
            weight_ratio, gradient_ratio = (jnp.stack(each) for each in zip(*ratios, strict=True))
            profiles = {"gradient": hidden, "weight_gradient": weights}
            jacobians = jax.vmap(
                jax.jacobian(lambda h, kernel: layer(h[None], kernel, jnp.minimum(architecture, RESIDUAL), act)[0])
            )
            extremes = jax.lax.cond(
                architecture == NORMALIZED,
                lambda: jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), _nothing()),
                lambda: extreme_values(jacobians(before, kernels)),
            )
            return (
                found | profiles | {"weight_gradient_ratio": weight_ratio, "gradient_ratio": gradient_ratio} | extremes
            )

        return _over(cell, len(ARCHITECTURES), len(ACTIVATIONS), len(INITIALIZERS))

    return one


def _over(cell: Callable[[Any], PyTree], *sizes: int) -> PyTree:
    """One cell of a grid after another; of what depends on the numbers alone only the branch that is chosen is computed."""
    grid = tuple(jnp.array(axis) for axis in np.array(list(np.ndindex(*sizes))).T)
    return jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), jax.lax.map(cell, grid))


def extreme_values(factors: Float[Array, "layers n n"]) -> dict[str, Float[Array, " depths"]]:
    """Logarithms (base 10) of the extreme singular values of products of the first factors, and their bounds, at every depth of ``DEPTHS``.

    The smallest value of a product is one over the largest of its inverse, the product of the inverses: taken from the product itself, it would be lost to rounding as soon
    as it is 1e-16 of the largest. Both products are scaled at every step, so that nothing overflows. A factor that is singular to rounding, once its rows are made equally long, has
    no inverse: from there on the smallest value, and its bound, are 0. All matrices are decomposed in one call: several calls at a time could wait for each other for ever.
    """
    size = factors.shape[-1]
    rows = jnp.max(jnp.abs(factors), axis=-1)
    scaled = factors / jnp.where(rows > 0, rows, 1)[..., None]
    scaled = jnp.where(jnp.all(rows > 0, axis=-1)[:, None, None], scaled, jnp.eye(size))
    inverses = jnp.linalg.inv(scaled)
    condition = jnp.linalg.norm(scaled, jnp.inf, axis=(-2, -1)) * jnp.linalg.norm(inverses, jnp.inf, axis=(-2, -1))
    regular = jnp.all(rows > 0, axis=-1) & (condition * size * jnp.finfo(factors.dtype).eps < 1)
    inverses = jnp.where(regular[:, None, None], inverses / jnp.where(rows > 0, rows, 1)[:, None, :], jnp.eye(size))
    ahead, behind = _products(factors), _products(inverses.swapaxes(-1, -2))
    at = np.array([depth - 1 for depth in DEPTHS])
    singular = jnp.cumsum(~regular)[at] > 0
    norms = _log(_norm(jnp.concatenate([ahead[0][at], behind[0][at], factors, inverses])))
    largest, largest_inverse, each, each_inverse = jnp.split(norms, np.cumsum([len(at), len(at), len(factors)]))
    return {
        "largest": largest + ahead[1][at],
        "largest_bound": jnp.cumsum(each)[at],
        "smallest": jnp.where(singular, -jnp.inf, -largest_inverse - behind[1][at]),
        "smallest_bound": jnp.where(singular, -jnp.inf, -jnp.cumsum(each_inverse)[at]),
    }


def _nothing() -> dict[str, Array]:
    return {name: jnp.zeros(len(DEPTHS)) for name in ("largest", "largest_bound", "smallest", "smallest_bound")}


def _products(factors: Float[Array, "layers n n"]) -> tuple[Float[Array, "layers n n"], Float[Array, " layers"]]:
    """The products of the first 1, 2, ... factors (later ones from the left), each scaled, and the logarithms of the scales."""

    def step(carry: tuple[Array, Array], factor: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        product = factor @ carry[0]
        size = jnp.max(jnp.abs(product))
        size = jnp.where(size > 0, size, 1)
        state = product / size, carry[1] + _log(size)
        return state, state

    return jax.lax.scan(step, (jnp.eye(factors.shape[-1]), jnp.zeros(())), factors)[1]


def _normalized(key: Array) -> dict[str, Array]:
    """Jacobians of whole batches with batch normalisation: the largest singular value of their product, and its bound.

    Its factors have a null space (a shift, the same for all rows, changes nothing), so that their smallest singular values are 0; ``null`` is the largest of them that was computed, relative to the largest.
    """
    kernel_key, input_key = jax.random.split(key)
    shape = NORMALIZED_ROWS, NORMALIZED_WIDTH
    inputs = jax.random.normal(input_key, shape)

    def cell(numbers: tuple[Array, Array]) -> dict[str, Array]:
        act = chosen_activation(numbers[0])
        kernels = draw(kernel_key, numbers[1], LAYERS, (NORMALIZED_WIDTH, NORMALIZED_WIDTH))
        step = lambda h, kernel: (layer(h, kernel, jnp.array(NORMALIZED), act), h)  # noqa: E731
        _, before = jax.lax.scan(step, inputs, kernels)
        whole = jax.vmap(jax.jacobian(lambda h, kernel: layer(h, kernel, jnp.array(NORMALIZED), act)))(before, kernels)
        factors = whole.reshape(LAYERS, inputs.size, inputs.size)
        products, scales = _products(factors)
        at = np.array([depth - 1 for depth in DEPTHS])
        values = jnp.linalg.svd(jnp.concatenate([factors, products[at]]), compute_uv=False)
        each, whole = values[:LAYERS], values[LAYERS:]
        return {
            "normalized_largest": _log(whole[:, 0]) + scales[at],
            "normalized_largest_bound": jnp.cumsum(_log(each[:, 0]))[at],
            "normalized_null": jnp.max(each[:, -1] / each[:, 0]),
        }

    return _over(cell, len(ACTIVATIONS), len(INITIALIZERS))


def _two_factors(key: Array) -> dict[str, Float[Array, " widths"]]:
    """A tanh network 3 -> m -> 3 with Xavier's kernels: the extreme singular values of its Jacobian over the products of its factors' extremes.

    Of a matrix of a rows and b columns these are the first and the last of min(a, b) values; of the product, of as many as can be other than 0.
    """
    first_key, second_key, input_key = jax.random.split(key, 3)
    most = max(INNER_WIDTHS)
    first = jax.random.normal(first_key, (OUTER_WIDTH, most))
    second = jax.random.normal(second_key, (most, OUTER_WIDTH))
    inputs = jax.random.normal(input_key, (OUTER_WIDTH,))

    def one(width: Array) -> dict[str, Array]:
        present = jnp.arange(most) < width
        size = jnp.sqrt(2 / (OUTER_WIDTH + width))
        a, b = size * first * present, size * second * present[:, None]
        factor, other = (1 - jnp.tanh(inputs @ a) ** 2)[:, None] * a.T, b.T
        product = jnp.pad(other @ factor, ((0, 0), (0, most - OUTER_WIDTH)))
        values = jnp.linalg.svd(jnp.stack([product, other, factor.T]), compute_uv=False)
        last = jnp.minimum(width, OUTER_WIDTH) - 1
        return {
            "inner_upper": values[0][0] / (values[1][0] * values[2][0]),
            "inner_lower": values[0][last] / (values[1][last] * values[2][last]),
        }

    return jax.vmap(one)(jnp.array(INNER_WIDTHS))


def _composed_to_nothing() -> Float[Array, ""]:
    """The norm of a product 3 x 8 times 8 x 3 of two matrices whose singular values are all 1: what the one writes the other does not read."""
    both = jnp.eye(8)
    return jnp.linalg.norm(both[-OUTER_WIDTH:] @ both[:, :OUTER_WIDTH])


def _starts(digits: data.Split, keys: Array) -> PyTree:
    """Kernels of a layer in, ``TRAINED_LAYERS`` hidden layers and a layer out ``[initializers, networks, ...]``.

    A program has one decomposition at most: several at a time could wait for each other for ever.
    """
    shapes = {
        "in": (1, (digits.train.inputs.shape[1], TRAINED_WIDTH)),
        "hidden": (TRAINED_LAYERS, (TRAINED_WIDTH, TRAINED_WIDTH)),
        "out": (1, (TRAINED_WIDTH, len(digits.classes))),
    }

    def drawn(number: int, num: int, shape: tuple[int, int]) -> Array:
        def cell(start: Array) -> Array:
            return jax.vmap(lambda key: draw(jax.random.fold_in(key, number), start, num, shape))(keys)

        return jax.jit(lambda: jax.lax.map(cell, jnp.arange(len(INITIALIZERS))))()

    return {name: drawn(number, *each) for number, (name, each) in enumerate(shapes.items())}


def _training(digits: data.Split, steps: int) -> Callable[..., dict[str, Array]]:
    """SGD on the digits from given kernels, without biases."""

    def init(key: Array, start: PyTree) -> PyTree:
        del key
        return start

    def apply(params: PyTree, inputs: Array, architecture: Array, activation: Array) -> Array:
        act = chosen_activation(activation, TRAINED)
        hidden = act(read(inputs, params["in"][0], architecture))
        step = lambda h, kernel: (layer(h, kernel, architecture, act), None)  # noqa: E731
        return jax.lax.scan(step, hidden, params["hidden"])[0] @ params["out"][0]

    def loss(params: PyTree, batch: Rows, key: Array, architecture: Array, activation: Array) -> Array:
        return cross_entropy(lambda params, inputs: apply(params, inputs, architecture, activation))(params, batch, key)

    train = make_train(
        init,
        loss,
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        digits.train,
        steps=steps,
        batch_size=BATCH,
        record_every=steps,
    )
    seen = take(digits.train, 512)

    def one(key: Array, architecture: Array, activation: Array, start: PyTree, rate: Array) -> dict[str, Array]:
        params = train(key, architecture=architecture, activation=activation, start=start, learning_rate=rate).params
        logits = apply(params, digits.test.inputs, architecture, activation)
        finite = jnp.all(jnp.isfinite(logits))
        return {
            "accuracy": jnp.where(finite, accuracy(logits, digits.test.targets), 0.0),
            "training_loss": loss(params, seen, key, architecture, activation),
            "diverged": ~finite,
        }

    return one


def _norm(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    return jnp.linalg.svd(matrices, compute_uv=False)[..., 0]


def _log(values: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.log10(values)


CELL = ("architecture", "activation", "initializer")
TEXTS = {
    "variance": (("layer",), "log10 of the variance of the activations of a layer, over rows and units; -300 where it is 0"),
    "slope": (("layer",), "root mean square of the activation's derivative, over rows and units"),
    "gradient": (("layer",), "log10 of the norm of the loss's gradient by the outputs of a layer, in the whole network"),
    "weight_gradient": (("layer",), "log10 of the norm of the loss's gradient by the kernel of a layer, in the whole network"),
    "gradient_ratio": (("depth",), "log10 of the norm of the gradient by the outputs of the first layer over that of the last"),
    "weight_gradient_ratio": (("depth",), "log10 of the norm of the gradient by the kernel of the first layer over that of the last"),
    "largest": (("depth",), "log10 of the largest singular value of the product of the Jacobians"),
    "largest_bound": (("depth",), "log10 of the product of the Jacobians' largest singular values"),
    "smallest": (("depth",), "log10 of the smallest singular value of the product of the Jacobians"),
    "smallest_bound": (("depth",), "log10 of the product of the Jacobians' smallest singular values"),
}  # fmt: skip
EXACT = ("largest", "largest_bound", "smallest", "smallest_bound")


def _dataset(signals: Any, normalized: Any, chains: Any, trained: Any, apart: float) -> xr.Dataset:
    variables: dict[str, Any] = {
        name: (
            ("network", *CELL, *own),
            signals[name] if name in EXACT else signals[name].astype(np.float32),
            {"long_name": text},
        )
        for name, (own, text) in TEXTS.items()
    }
    batch = "of the Jacobians of whole batches with batch normalisation"
    for name, text, own in (
        ("normalized_largest", f"log10 of the largest singular value of the product {batch}", ("depth",)),
        ("normalized_largest_bound", f"log10 of the product of the largest singular values {batch}", ("depth",)),
        ("normalized_null", f"largest over layers of the smallest singular value over the largest, {batch}", ()),
    ):
        variables[name] = ("few", "activation", "initializer", *own), normalized[name], {"long_name": text}
    for name, text in (("inner_upper", "largest"), ("inner_lower", "smallest")):
        long_name = f"{text} singular value of a product of two Jacobians over the product of theirs"
        variables[name] = ("chain", "inner_width"), chains[name], {"long_name": long_name}
    variables["composed_to_nothing"] = (), apart, {"long_name": "norm of a product of two matrices without a singular value other than 1"}  # fmt: skip
    for name, text in (
        ("accuracy", "accuracy on the test rows after training; 0 where outputs are not finite"),
        ("training_loss", "cross-entropy on training rows after training"),
        ("diverged", "whether outputs after training are not finite"),
    ):
        dims = "architecture", "trained_activation", "initializer", "rate", "trained"
        variables[name] = dims, trained[name], {"long_name": text}
    coords = {
        "architecture": list(ARCHITECTURES),
        "activation": list(ACTIVATIONS),
        "initializer": list(INITIALIZERS),
        "layer": np.arange(1, LAYERS + 1),
        "depth": list(DEPTHS),
        "inner_width": list(INNER_WIDTHS),
        "trained_activation": list(TRAINED),
        "rate": list(RATES),
    }
    return xr.Dataset(variables, coords=coords)


STUDY = Study(
    title="what depth does to signals: variance, gradients and Jacobians by initialiser and activation",
    config=Config(),
    quick=Config(networks=8, width=16, rows=16, few=3, chains=100, trained=2, steps=60),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
