"""Operations of random programs: one layer each, with every primitive and activation that discovery has a rule for.

An operation takes a tensor ``[batch, steps, units]`` and returns another; it asks for parameters by shape, and draws its own choices. What is more than a layer
is in :mod:`tests.symmetry.blocks`.
"""

import jax
import jax.numpy as jnp
import numpy as np


class Parameters:
    """Hands out parameters: made on the first pass, read on all others."""

    def __init__(self, known=None):
        self.known, self.making = {} if known is None else known, known is None

    def __call__(self, name, *shape, positive=False):
        if self.making and name not in self.known:
            noise = np.random.default_rng([len(self.known), *map(ord, name)]).normal(size=shape)
            value = np.exp(0.3 * noise) if positive else noise * max(shape[:1] or (1,)) ** -0.5
            self.known[name] = np.asarray(value, np.float32)  # not of JAX: nothing is computed while they are made
        return jnp.asarray(self.known[name])


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


UNARY = {
    "exp": lambda x: jnp.exp(0.3 * x),
    "exp2": lambda x: jnp.exp2(0.3 * x),
    "expm1": lambda x: jnp.expm1(0.3 * x),
    "log": lambda x: jnp.log(1.5 + jnp.square(x)),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "sinh": lambda x: jnp.sinh(0.3 * x),
    "cosh": lambda x: jnp.cosh(0.3 * x),
    "tan": lambda x: jnp.tan(jnp.tanh(x)),
    "atanh": lambda x: jnp.arctanh(0.9 * jnp.tanh(x)),
    "asin": lambda x: jnp.arcsin(0.9 * jnp.sin(x)),
    "acos": lambda x: jnp.arccos(0.9 * jnp.tanh(x)),
    "acosh": lambda x: jnp.arccosh(1.5 + x**2),
    "erf_inv": lambda x: jax.scipy.special.erfinv(0.9 * jnp.tanh(x)),
    "erfc": jax.scipy.special.erfc,
    "lgamma": lambda x: jax.scipy.special.gammaln(1 + x**2),
    "digamma": lambda x: jax.scipy.special.digamma(1 + x**2),
    "cbrt": jnp.cbrt,
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "rsqrt": lambda x: jax.lax.rsqrt(1 + x**2),
    "sign": lambda x: x * jnp.sign(x - 0.3),
    "floor": lambda x: x - 0.5 * jnp.floor(x),
    "ceil": lambda x: x + 0.5 * jnp.ceil(x),
    "round": lambda x: x + 0.3 * jnp.round(x),
    "inverse": lambda x: 1 / (1 + jnp.abs(x)),
    "power": lambda x: jnp.abs(x) ** 1.37,
    "cubic": lambda x: x - 0.1 * x**3,
    "quartic": lambda x: 0.05 * x**4,
    "atan2": lambda x: jnp.arctan2(x, 1.5),
    "rem": lambda x: jnp.fmod(x, 2.0),
    "signed square": lambda x: 0.3 * x * jnp.abs(x),
    "relu^3/2": lambda x: jax.nn.relu(x) ** 1.5,
    "hard tanh": jax.nn.hard_tanh,
    "hard sigmoid": jax.nn.hard_sigmoid,
    "hard swish": jax.nn.hard_swish,
    "mish": jax.nn.mish,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "log sigmoid": jax.nn.log_sigmoid,
    "sine and cosine": lambda x: jnp.sin(x) * jnp.cos(x),
    "stopped": lambda x: x * jax.lax.stop_gradient(jnp.tanh(x)),
    "rounded": lambda x: jax.lax.reduce_precision(x, 11, 52) * 1.5,
    "finite": lambda x: jnp.where(jnp.isfinite(x), jnp.tanh(x), 0.0),
}


def op_unary(p, name, rng, x):
    y = op_dense(p, name, rng, x) if rng.random() < 0.6 else x
    return UNARY[rng.choice(list(UNARY))](y)


def op_filters(p, name, rng, x):
    """Convolutions of every sort: depthwise, grouped, strided, dilated, transposed."""
    kind = rng.choice(("depthwise", "grouped", "strided", "dilated", "transposed"))
    y, groups, options = dense(p, f"{name}/in", x, 4), 1, {"padding": "SAME"}
    if kind in ("depthwise", "grouped"):
        groups = 4 if kind == "depthwise" else 2
    elif kind == "strided":
        options["window_strides"] = (2,)
    elif kind == "dilated":
        options["rhs_dilation"] = (2,)
    else:
        options |= {"lhs_dilation": (2,), "padding": ((1, 1),)}
    w = p(f"{name}/w", 2, 4 // groups, rng.choice((4, 8)))
    numbers = ("NWC", "WIO", "NWC")
    y = jax.lax.conv_general_dilated(
        y, w, dimension_numbers=numbers, feature_group_count=groups, **{"window_strides": (1,)} | options
    )
    return y + p(f"{name}/b", w.shape[-1]) if rng.random() < 0.5 else y


def op_batch_norm(p, name, rng, x):
    """With the statistics of this batch."""
    eps, axes = rng.choice((0.0, 1e-5)), (0, 1)
    y = dense(p, f"{name}/in", x, 4)
    y = y - y.mean(axes)
    y = y / jnp.sqrt((y**2).mean(axes) + eps) if rng.random() < 0.5 else y * jax.lax.rsqrt(jnp.var(y, axes) + eps)
    y = y * p(f"{name}/gain", 4) if rng.random() < 0.7 else y
    return y + p(f"{name}/offset", 4) if rng.random() < 0.7 else y


def op_group_norm(p, name, rng, x):
    groups, units = rng.choice(((2, 3), (3, 2), (2, 2)))
    y = dense(p, f"{name}/in", x, groups * units).reshape(*x.shape[:-1], groups, units)
    axes = (-1,) if rng.random() < 0.5 else (1, -1)
    y = (y - y.mean(axes, keepdims=True)) / jnp.sqrt(y.var(axes, keepdims=True) + rng.choice((1e-5, 1e-2)))
    y = y.reshape(*x.shape[:-1], groups * units)
    y = y * p(f"{name}/gain", groups * units) if rng.random() < 0.7 else y
    return y + p(f"{name}/offset", groups * units) if rng.random() < 0.4 else y


def op_pool(p, name, rng, x):
    """Windows over the steps."""
    window, strides = (1, 2, 1), (1, rng.choice((1, 2)), 1)
    if rng.random() < 0.5:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "SAME")
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "SAME") / 2


def op_where(p, name, rng, x):
    other = dense(p, name, x, x.shape[-1])
    even = jnp.arange(x.shape[-2])[:, None] % 2 == 0
    return rng.choice(
        (
            lambda: jnp.where(x > other, x, 0.5 * other),
            lambda: jnp.where(even, x, other),
            lambda: jnp.where(other > 0, x, 0.0),
            lambda: jnp.minimum(x, other),
            lambda: jnp.where(x.sum(-1, keepdims=True) > 0, x, other),
            lambda: jnp.clip(x, -1.0, jax.nn.softplus(other)),
            lambda: x * (other >= x.mean(-1, keepdims=True)),
        )
    )()


def op_cumulative(p, name, rng, x):
    cumulative = rng.choice((jax.lax.cumsum, jax.lax.cummax, jax.lax.cummin, jax.lax.cumlogsumexp, jax.lax.cumprod))
    y = dense(p, name, x, 3) if rng.random() < 0.6 else x
    return cumulative(y, axis=rng.choice((1, 1, 2)), reverse=rng.random() < 0.3)


def op_reductions(p, name, rng, x):
    """Over the units: what is left of them stands beside them."""
    return rng.choice(
        (
            lambda: x - jax.nn.logsumexp(x, -1, keepdims=True),
            lambda: x - x.max(-1, keepdims=True),
            lambda: x / (1 + jnp.sqrt((x**2).sum(-1, keepdims=True))),
            lambda: x * jnp.tanh((x**2).mean(-1, keepdims=True)),
            lambda: x / (0.1 + x.std(-1, keepdims=True)),
            lambda: x + x.prod(-1, keepdims=True),
            lambda: x * (x.argmax(-1, keepdims=True) == jnp.arange(x.shape[-1])),
            lambda: jax.nn.log_softmax(x),
            lambda: jax.nn.logsumexp(x, -2, keepdims=True) + x,
        )
    )()


def op_pick(p, name, rng, x):
    """Constant indices: gathers, slices, additions at some places."""
    y = dense(p, name, x, 4) if rng.random() < 0.6 or x.shape[-1] < 3 else x
    some = jnp.array([rng.randrange(3) for _ in range(3)])
    return rng.choice(
        (
            lambda: y[..., some],
            lambda: y[:, jnp.arange(y.shape[1] - 1, -1, -1)],
            lambda: jax.lax.dynamic_slice_in_dim(y, 1, 2, 2),
            lambda: jax.lax.dynamic_slice_in_dim(y, jnp.argmax(some), 1, 1) + y,
            lambda: jnp.take_along_axis(y, jnp.zeros((*y.shape[:2], 2), int) + some[:2], -1),
            lambda: jnp.pad(y, ((0, 0), (0, 0), (1, 0))),
            lambda: jnp.repeat(y, 2, -1),
            lambda: jnp.concatenate([y, y], -1),
            lambda: jnp.stack([y, 2 * y], -2).max(-2),
            lambda: y.at[..., 1].add(1.0),
            lambda: jnp.where(jax.nn.one_hot(1, y.shape[-1]) > 0, y, 0.3 * y),
        )
    )()


def operations(names):
    """Those of a module, by name."""
    return {name.removeprefix("op_"): op for name, op in names.items() if name.startswith("op_")}
