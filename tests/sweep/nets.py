"""What the tests sweep over: small factories, good and bad."""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import jaxsym as js

X = jnp.linspace(-1, 1, 12).reshape(6, 2)
Y = jnp.sin(X.sum(1))


def net(width=3, steps=30, record_every=10, slow=0, batch_size=None):
    """A tanh layer by ``make_train``; ``slow`` makes a step cost more."""

    def init(key):
        first, second = jax.random.split(key)
        return {"a": jax.random.normal(first, (2, width)), "b": jax.random.normal(second, (width, 1))}

    def loss(params, rows, key):
        x, y = rows
        extra = jnp.linalg.matrix_power(jnp.eye(max(slow, 1)) * params["b"][0, 0], 3)[0, 0] if slow else 0.0
        return jnp.mean(((jnp.tanh(x @ params["a"]) @ params["b"])[:, 0] - y) ** 2) + 1e-9 * extra

    return js.make_train(
        init,
        loss,
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        (X, Y),
        steps=steps,
        batch_size=batch_size,
        record_every=record_every,
        probes={"norm": js.training.probes.parameter_norm, "largest": js.training.probes.largest_entries},
    )


def accurate(width=3):
    """The same, with a result of its own."""
    return net(width).then(lambda trained: {"last": trained.history["loss"][-1], "b": trained.params["b"][:, 0]})


def beside(width=3, wrong=False):
    """The curves of a run with a result of its own beside them, or wrongly among them."""

    def keep(trained):
        last = trained.history["loss"][-1]
        return (
            trained._replace(history={**trained.history, "last": last[None]})
            if wrong
            else {"run": trained, "last": last}
        )

    return net(width).then(keep)


def plain(power=1):
    """No training run: a function of the key and two traced numbers."""

    def train(key, rate, offset=0.0):
        drawn = jax.random.normal(key, (4,)) ** power
        return {"value": drawn.sum() * rate + offset, "drawn": drawn, "whole": jnp.int32(7), "yes": drawn[0] > 0}

    return train


def bowl(centre=0.3):
    """For searches."""
    return lambda key, x, y=0.0: {"loss": (x - centre) ** 2 + y**2 + 1e-3 * jax.random.uniform(key)}


def blows_up(limit=1.0):
    """Not finite above a limit."""
    return lambda key, rate: {"loss": jnp.where(rate > limit, jnp.nan, rate)}


def fails(width=1):
    """Raises in one cell."""
    if width == 2:
        message = "no network of width 2 today"
        raise RuntimeError(message)
    return lambda key: {"loss": jax.random.normal(key)}


def fails_later(width=1):
    """Results of every kind, in the first cell only."""
    if width == 2:
        message = "no network of width 2 today"
        raise RuntimeError(message)
    return lambda key: {"loss": jax.random.normal(key), "yes": jnp.bool_(True), "whole": jnp.int32(7)}


def stepped(step=1):
    """A training run whose factory has an argument of that name."""
    return net(steps=10 * step)


def shaped(width=2):
    """Results whose shape depends on a static axis."""
    return lambda key: {"weights": jax.random.normal(key, (width,)), "loss": jnp.float32(width)}


def named(kind="vector"):
    """Results whose names or dimensions may clash."""
    made = {
        "vector": {"y": jnp.arange(3.0)},
        "both": {"y": jnp.arange(3.0), "y_0": jnp.float32(1)},
        "nested": {"a": {"b": jnp.float32(1)}, "a.b": jnp.float32(2)},
    }[kind]
    return lambda key, rate=1.0, y=0.0, y_0=0.0: made


def wrong(kind="list"):
    """Results that a sweep does not take."""
    made = {
        "list": [1.0],
        "empty": {},
        "key": {"key_data": jax.random.key(0)},
        "complex": {"z": jnp.complex64(1j)},
        "seed": {"seed": 1.0},
        "path": {"../../outside": 1.0},
        "none": {"loss": None},
        "text": {"loss": "low"},
    }[kind]
    return lambda key: made


def dies(marker="", width=1):
    """Kills its own process once, then works: the marker is a file."""
    path = Path(marker)
    if width == 2 and not path.exists():
        path.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
    return lambda key: {"loss": jax.random.normal(key)}


NOT_A_FUNCTION = 3
