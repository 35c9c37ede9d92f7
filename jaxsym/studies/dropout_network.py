"""A perceptron of two hidden layers that is disturbed while it trains: the disturbances, the loss with every strength traced, what is measured.

Dropout as in Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014, with Gaussian noise in its place (section 10); DropConnect
after Wan, Zeiler, Zhang, LeCun, Fergus 2013.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxsym.data import Rows, Split, flattened
from jaxsym.models import MLP
from jaxsym.studies.classifying import Parts, accuracy, take
from jaxsym.training import make_train, probes

KINDS = ("dropout", "DropConnect", "Gaussian noise")
CHAPTER = 0.2, 0.5
"""Rates of the first and the second hidden layer."""
TOGETHER = "dropout and decay"
AVERAGES = ("probabilities", "logits")
MEASURES = {
    f"{part}_{what}": f"{what} of the {name} rows ({unit})"
    for part, name in (("train", "training"), ("validation", "validation"), ("test", "test"))
    for what, unit in (("loss", "nats"), ("error", "percent"))
}
MOST_PIXELS = 16  # a side; larger images are averaged over squares of 2 x 2


def parts(split: Split, rows: int) -> Parts:
    """The first rows of the training part, as many again for validation, and at most 1000 for the test."""

    def small(given: Rows) -> Rows:
        images = given.inputs
        while images.ndim == 3 and images.shape[1] > MOST_PIXELS:
            num, high, wide = images.shape
            images = images[:, : high // 2 * 2, : wide // 2 * 2].reshape(num, high // 2, 2, wide // 2, 2).mean((2, 4))
        return given._replace(inputs=images)

    if len(split.train.targets) < 2 * rows:
        msg = f"rows: got {rows}, expected at most {len(split.train.targets) // 2}, half of the training part of the data."
        raise ValueError(msg)
    split = flattened(split._replace(train=small(take(split.train, 2 * rows)), test=small(take(split.test, 1000))))
    train, validation = (
        jax.tree.map(lambda leaf, part=part: leaf[part], split.train) for part in (slice(rows), slice(rows, None))
    )
    return Parts(train, validation, split.test)


def factor(kind: str, key: Array, rate: Array | float, shape: Sequence[int]) -> Float[Array, "..."]:
    """Random factors of mean 1 and variance ``rate / (1 - rate)``: 0 or ``1 / (1 - rate)``, or normal."""
    if kind == "Gaussian noise":
        return 1 + jnp.sqrt(rate / (1 - rate)) * jax.random.normal(key, shape)
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def forward(
    params: PyTree,
    inputs: Float[Array, "N inputs"],
    key: Array | None = None,
    rates: Sequence[Array | float] = (),
    kind: str = "dropout",
) -> list[Float[Array, "N units"]]:
    """What both hidden layers and the output give; disturbed, layer by layer, where there are rates.

    Dropout and Gaussian noise change every unit of every row by a factor of its own; DropConnect, every weight that leaves the
    layer, by one factor for all rows of the batch.
    """
    layers, given = [params["params"][f"Dense_{i}"] for i in range(3)], []
    h = inputs
    kernels = [layer["kernel"] for layer in layers]
    for i, layer in enumerate(layers):
        h = h @ kernels[i] + layer["bias"]
        if i < 2:
            h = jax.nn.relu(h)
            if key is not None and rates:
                own = jax.random.fold_in(key, i)
                if kind == "DropConnect":
                    kernels[i + 1] *= factor(kind, own, rates[i], kernels[i + 1].shape)
                else:
                    h *= factor(kind, own, rates[i], h.shape)
        given.append(h)
    return given


def cross_entropy(logits: Float[Array, "N classes"], rows: Rows, smoothing: Array | float = 0.0) -> Float[Array, ""]:
    """The mean over rows; ``smoothing`` is the share of a label that goes to all classes alike."""
    labels = optax.smooth_labels(jax.nn.one_hot(rows.targets, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, labels).mean()


def make_loss(kind: str) -> Callable[..., Float[Array, ""]]:
    """``loss(params, rows, key, **strengths)``; a strength that is not given costs nothing."""

    def loss(
        params: PyTree,
        rows: Rows,
        key: Array,
        first: Array | None = None,
        second: Array | None = None,
        decay: Array | None = None,
        smoothing: Array | float = 0.0,
        input_noise: Array | None = None,
    ) -> Float[Array, ""]:
        inputs = rows.inputs
        if input_noise is not None:
            inputs = inputs + input_noise * jax.random.normal(jax.random.fold_in(key, 2), inputs.shape)
        rates = () if first is None or second is None else (first, second)
        value = cross_entropy(forward(params, inputs, key, rates, kind)[-1], rows, smoothing)
        if decay is not None:
            value += decay / 2 * sum(jnp.sum(layer["kernel"] ** 2) for layer in params["params"].values())
        return value

    return loss


def program(
    data: Parts, width: int, classes: int, *, kind: str, steps: int, batch_size: int, rate: float, records: int
) -> Callable[[Array, dict[str, Array]], dict[str, Array]]:
    """``one(key, strengths) -> measures``: a whole run, looked at ``records`` times, undisturbed.

    ``{part}_loss`` and ``{part}_error`` (percent) ``[R]``; ``stop``, the record with the least validation loss; ``variance``
    ``[R, layer, disturbed]`` of what hidden units give to the training rows, in the mean over units; ``params`` at the end and
    ``train_logits`` and ``test_logits``.
    """
    net = MLP((width, width, classes), "relu", kernel_init=jax.nn.initializers.he_normal())
    train = make_train(
        lambda key: net.init(key, data.train.inputs[:1]),
        make_loss(kind),
        optax.sgd(rate),
        data.train,
        steps=steps,
        batch_size=batch_size,
        probes={"params": probes.params},
        record_every=max(1, steps // records),
    )

    def one(key: Array, strengths: dict[str, Array]) -> dict[str, Array]:
        trained = train(key, **strengths)
        rates = [strengths[name] for name in ("first", "second") if name in strengths]

        def look(params: PyTree) -> dict[str, Array]:
            found = {}
            for name, rows in data._asdict().items():
                *hidden, logits = forward(params, rows.inputs)
                found[f"{name}_loss"] = cross_entropy(logits, rows)
                found[f"{name}_error"] = 100 * (1 - accuracy(logits, rows.targets))
                if name == "train":
                    calm = hidden
            disturbed = forward(params, data.train.inputs, jax.random.fold_in(key, 3), rates, kind)[:2]
            found["variance"] = jnp.array(
                [[jnp.var(h, axis=0).mean() for h in pair] for pair in zip(calm, disturbed, strict=True)]
            )
            return found

        curves = jax.lax.map(look, trained.history["params"])
        return {
            **curves,
            "step": trained.history["step"],
            "stop": jnp.argmin(jnp.nan_to_num(curves["validation_loss"], nan=jnp.inf)),
            "params": trained.params,
            **{f"{name}_logits": forward(trained.params, getattr(data, name).inputs)[-1] for name in ("train", "test")},
        }

    return one


def left_on(
    test: Rows, masks: Sequence[int], first: float, second: float
) -> Callable[[Array, PyTree], dict[str, Array]]:
    """``one(key, params) -> measures [average, masks]``: dropout left on, probabilities or logits averaged over so many masks."""
    num = max(masks)

    def one(key: Array, params: PyTree) -> dict[str, Array]:
        def add(sums: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], dict[str, Array]]:
            logits = forward(params, test.inputs, jax.random.fold_in(key, index), (first, second))[-1]
            sums = sums[0] + jax.nn.softmax(logits), sums[1] + logits
            means = jnp.stack([jnp.log(sums[0] / (index + 1)), sums[1] / (index + 1)])
            loss = jax.vmap(lambda logits: cross_entropy(logits, test))(means)
            return sums, {"loss": loss, "error": 100 * (1 - accuracy(means, test.targets))}

        empty = jnp.zeros((len(test.targets), params["params"]["Dense_2"]["bias"].shape[0]))
        _, found = jax.lax.scan(add, (empty, empty), jnp.arange(num))
        return {name: values[np.array(masks) - 1].T for name, values in found.items()}

    return one
