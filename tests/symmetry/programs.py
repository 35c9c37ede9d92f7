"""Random JAX programs: each a list of operations, any of which can be left out, so that a failing one can be made smaller.

An operation takes a tensor ``[batch, ..., units]`` and returns another; it asks for parameters by shape. A program is ``(operation, number)`` pairs, the number
being the seed of the operation's own choices.
"""

import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BATCH, STEPS, INPUTS = 5, 4, 3


class Parameters:
    """Hands out parameters: made on the first pass, read on all others."""

    def __init__(self, known=None):
        self.known, self.making = {} if known is None else known, known is None

    def __call__(self, name, *shape, positive=False):
        if self.making and name not in self.known:
            noise = np.random.default_rng([len(self.known), *map(ord, name)]).normal(size=shape)
            value = np.exp(0.3 * noise) if positive else noise * max(shape[:1] or (1,)) ** -0.5
            self.known[name] = jnp.asarray(value, jnp.float32)
        return self.known[name]


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "abs": jnp.abs,
    "square": lambda x: 0.3 * jnp.square(x),
    "cube": lambda x: 0.1 * x**3,
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, -1, 1),
    "erf": jax.scipy.special.erf,
    "softsign": jax.nn.soft_sign,
    "where": lambda x: jnp.where(x > 0, x, 0.2 * jnp.sin(x)),
    "squared relu": lambda x: jnp.square(jax.nn.relu(x)),
    "identity": lambda x: x,
}


def dense(p, name, x, units, bias=True):
    y = x @ p(f"{name}/w", x.shape[-1], units)
    return y + p(f"{name}/b", units) if bias else y


def op_dense(p, name, rng, x):
    return dense(p, name, x, rng.choice((2, 3, 4, 5)), rng.random() < 0.7)


def op_shared(p, name, rng, x):
    """A square kernel that all operations of this width have in common."""
    w = p(f"shared{x.shape[-1]}", x.shape[-1], x.shape[-1])
    return x @ (w.T if rng.random() < 0.3 else w)


def op_activation(p, name, rng, x):
    return ACTIVATIONS[rng.choice(list(ACTIVATIONS))](x)


def op_layer(p, name, rng, x):
    return op_activation(p, name, rng, op_dense(p, name, rng, x))


def op_residual(p, name, rng, x):
    inner = op_layer(p, name, rng, x)
    return x + dense(p, f"{name}/out", inner, x.shape[-1], rng.random() < 0.5)


def op_skip(p, name, rng, x):
    """A layer beside a linear path."""
    units = rng.choice((2, 3, 4))
    inner = op_layer(p, name, rng, x)
    return dense(p, f"{name}/out", inner, units) + dense(p, f"{name}/skip", x, units, rng.random() < 0.7)


def op_norm(p, name, rng, x):
    kind, eps = rng.choice(("layer", "rms", "batch", "unit")), rng.choice((0.0, 1e-6))
    if kind == "batch":
        y = (x - p(f"{name}/mean", x.shape[-1])) / jnp.sqrt(p(f"{name}/var", x.shape[-1], positive=True) + eps)
    else:
        y = x - x.mean(-1, keepdims=True) if kind == "layer" else x
        y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + max(eps, 1e-6))
    if kind != "unit" and rng.random() < 0.8:
        y = y * p(f"{name}/gain", x.shape[-1])
    return y + p(f"{name}/offset", x.shape[-1]) if rng.random() < 0.4 else y


def op_gate(p, name, rng, x):
    units = rng.choice((2, 3, 4))
    gate = ACTIVATIONS[rng.choice(list(ACTIVATIONS))](dense(p, f"{name}/gate", x, units))
    return gate * dense(p, f"{name}/value", x, units, rng.random() < 0.5)


def op_concatenate(p, name, rng, x):
    other = op_layer(p, name, rng, x)
    return jnp.concatenate([x, other] if rng.random() < 0.5 else [other, x, other], -1)


def op_split(p, name, rng, x):
    """Two parts, one of them transformed, added or put back."""
    y = dense(p, name, x, 6)
    one, other = jnp.split(y, 2, -1) if rng.random() < 0.5 else (y[..., :3], y[..., 3:])
    one = ACTIVATIONS[rng.choice(list(ACTIVATIONS))](one)
    return rng.choice((lambda: one + other, lambda: one * other, lambda: jnp.concatenate([other, one], -1)))()


def op_reshape(p, name, rng, x):
    """Units in groups, mixed within or across them."""
    y = dense(p, name, x, 6).reshape(*x.shape[:-1], 2, 3)
    choice = rng.choice(("within", "across", "max", "swap", "sum"))
    if choice == "within":
        y = jnp.einsum("...gi,gij->...gj", ACTIVATIONS["tanh"](y), p(f"{name}/g", 2, 3, 4))
    elif choice == "across":
        y = jnp.einsum("...gi,gh->...hi", y, p(f"{name}/h", 2, 2))
    elif choice == "swap":
        y = y.swapaxes(-1, -2)
    elif choice in ("max", "sum"):
        return y.max(-1) if choice == "max" else y.sum(-2)
    return y.reshape(*x.shape[:-1], -1)


def op_attention(p, name, rng, x):
    heads, size = 2, rng.choice((2, 3))
    q, k, v = (
        jnp.einsum("...td,dhk->...thk", x, p(f"{name}/{n}", x.shape[-1], heads, size))
        + (p(f"{name}/b{n}", heads, size) if rng.random() < 0.5 else 0)
        for n in "qkv"
    )
    logits = jnp.einsum("...shk,...thk->...hst", q, k)
    if rng.random() < 0.4:
        logits = jnp.where(jnp.tril(jnp.ones((x.shape[-2],) * 2, bool)), logits, -1e30)
    if rng.random() < 0.3:
        logits = logits + p(f"{name}/relative", heads, x.shape[-2], x.shape[-2])
    mixed = jnp.einsum("...hst,...thk->...shk", jax.nn.softmax(logits), v)
    return jnp.einsum("...shk,hkd->...sd", mixed, p(f"{name}/o", heads, size, x.shape[-1]))


def op_scan(p, name, rng, x):
    units = rng.choice((2, 3))
    a, u = p(f"{name}/a", x.shape[-1], units), p(f"{name}/u", units, units)
    act = ACTIVATIONS[rng.choice(("tanh", "relu", "sin", "identity", "gelu"))]

    def step(h, xt):
        h = act(xt @ a + h @ u)
        return h, h

    start = jnp.zeros((*x.shape[:-2], units), x.dtype)
    return jnp.moveaxis(jax.lax.scan(step, start, jnp.moveaxis(x, -2, 0))[1], 0, -2)


def op_convolution(p, name, rng, x):
    """Over the steps."""
    y = x.reshape(-1, *x.shape[-2:])
    w = p(f"{name}/w", 3, x.shape[-1], 4)
    pad = rng.choice(("SAME", "VALID")) if x.shape[-2] > 3 else "SAME"
    y = jax.lax.conv_general_dilated(y, w, (1,), pad, dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


def op_reduce(p, name, rng, x):
    """A summary of the steps, beside every step."""
    reduce = rng.choice((jnp.mean, jnp.max, jnp.sum, jnp.min))
    return (
        x + reduce(x, axis=-2, keepdims=True)
        if rng.random() < 0.5
        else jnp.broadcast_to(reduce(x, axis=-2, keepdims=True), x.shape)
    )


def op_broadcast(p, name, rng, x):
    v = p(f"{name}/v", x.shape[-1])
    return rng.choice(
        (
            lambda: x * v,
            lambda: x + v,
            lambda: jnp.maximum(x, v),
            lambda: x * v.sum(),
            lambda: x - x.mean(-1, keepdims=True) * v,
        )
    )()


def op_slice(p, name, rng, x):
    return (
        rng.choice(
            (
                lambda: x[..., :-1],
                lambda: x[..., ::2],
                lambda: jnp.flip(x, -1),
                lambda: jnp.cumsum(x, -2),
                lambda: jnp.roll(x, 1, -1),
            )
        )()
        if x.shape[-1] > 2
        else x
    )


def op_softmax(p, name, rng, x):
    return jax.nn.softmax(x, axis=rng.choice((-1, -2)))


def op_weight_norm(p, name, rng, x):
    v, g = p(f"{name}/v", x.shape[-1], 3), p(f"{name}/g", 3)
    return x @ (g * v / jnp.sqrt(jnp.sum(v**2, 0)))


OPERATIONS = {name.removeprefix("op_"): op for name, op in list(globals().items()) if name.startswith("op_")}
COMMON = ("dense", "layer", "layer", "activation", "residual")


class Program(NamedTuple):
    """Operations with the seeds of their choices, and whether there is a dense read-out."""

    steps: tuple[tuple[str, int], ...]
    embedded: bool = False

    def run(self, p, x):
        """The outputs."""
        x = p("embedding", 7, 4)[x] + (p("positions", STEPS, 4)) if self.embedded else x
        for number, (name, seed) in enumerate(self.steps):
            x = OPERATIONS[name](p, str(number), random.Random(seed), x)
        return dense(p, "out", x, 2)

    def built(self):
        """``(apply, params, inputs)``."""
        key = jax.random.key(len(self.steps))
        x = (
            jax.random.randint(key, (BATCH, STEPS), 0, 7)
            if self.embedded
            else jax.random.normal(key, (BATCH, STEPS, INPUTS))
        )
        made = Parameters()
        self.run(made, x)
        return lambda params, x: self.run(Parameters(params), x), made.known, (x,)


def drawn(seed):
    """A program of 1 to 5 operations."""
    rng = random.Random(seed)
    names = list(OPERATIONS)
    steps = [
        (rng.choice(COMMON) if rng.random() < 0.4 else rng.choice(names), rng.randrange(10**6))
        for _ in range(rng.randint(1, 5))
    ]
    return Program(tuple(steps), rng.random() < 0.15)
