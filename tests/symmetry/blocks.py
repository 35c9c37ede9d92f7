"""Operations of random programs that are more than a layer: heads, experts, gates, loops, layers that share weights."""

import jax
import jax.numpy as jnp

from tests.symmetry.layers import ACTIVATIONS, dense


def activation(rng):
    return ACTIVATIONS[rng.choice(list(ACTIVATIONS))]


def op_linear_attention(p, name, rng, x):
    """Heads without a softmax, or with one key and value for all queries, or normalised queries and keys."""
    kind, size = rng.choice(("linear", "one key", "normalised", "fused")), 2
    if kind == "fused":
        q, k, v = jnp.moveaxis(dense(p, f"{name}/qkv", x, 3 * 2 * size).reshape(*x.shape[:-1], 3, 2, size), -3, 0)
    else:
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p(f"{name}/{n}", x.shape[-1], 2, size)) for n in "qkv")
    if kind == "one key":
        k, v = (jnp.broadcast_to(part[..., :1, :], part.shape) for part in (k, v))
    if kind == "normalised":
        q, k = (part / jnp.sqrt((part**2).sum(-1, keepdims=True) + 1e-6) for part in (q, k))
    logits = jnp.einsum("bshk,bthk->bhst", q, k)
    weights = logits / x.shape[1] if kind == "linear" else jax.nn.softmax(logits)
    mixed = jnp.einsum("bhst,bthk->bshk", weights, v)
    return jnp.einsum("bshk,hkd->bsd", mixed, p(f"{name}/o", 2, size, x.shape[-1]))


def op_rotary(p, name, rng, x):
    """Pairs of units that turn with the step."""
    q, k = (dense(p, f"{name}/{n}", x, 4, False).reshape(*x.shape[:-1], 2, 2) for n in "qk")
    angle = jnp.arange(x.shape[1])[:, None] * jnp.array([1.0, 0.3])

    def turned(z):
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([z[..., 0] * c - z[..., 1] * s, z[..., 0] * s + z[..., 1] * c], -1)

    weights = jax.nn.softmax(jnp.einsum("bsij,btij->bst", turned(q), turned(k)))
    return weights @ dense(p, f"{name}/v", x, 3)


def op_experts(p, name, rng, x):
    gate = jax.nn.softmax(dense(p, f"{name}/gate", x, 2))
    hidden = activation(rng)(jnp.einsum("bti,eij->btej", x, p(f"{name}/a", 2, x.shape[-1], 3)) + p(f"{name}/b", 2, 3))
    return jnp.einsum("bte,btej,ejo->bto", gate, hidden, p(f"{name}/c", 2, 3, rng.choice((2, 3))))


def op_gru(p, name, rng, x):
    """A scan whose carry is gated."""
    units = 2
    a, u = p(f"{name}/a", x.shape[-1], 3 * units), p(f"{name}/u", units, 3 * units)
    act = activation(rng)

    def step(h, xt):
        z, r, n = jnp.split(xt @ a, 3, -1)
        hz, hr, hn = jnp.split(h @ u, 3, -1)
        z, r = jax.nn.sigmoid(z + hz), jax.nn.sigmoid(r + hr)
        h = (1 - z) * h + z * act(n + r * hn)
        return h, h

    start = jnp.zeros((x.shape[0], units), x.dtype)
    return jnp.moveaxis(jax.lax.scan(step, start, jnp.moveaxis(x, 1, 0), reverse=rng.random() < 0.3)[1], 0, 1)


def op_stacked(p, name, rng, x):
    """A scan over layers."""
    act, units = activation(rng), x.shape[-1]
    layers = {"a": p(f"{name}/a", 2, units, 3), "b": p(f"{name}/b", 2, 3, units)}
    if rng.random() < 0.5:
        layers["c"] = p(f"{name}/c", 2, 3)

    def layer(stream, w):
        return stream + 0.5 * act(stream @ w["a"] + w.get("c", 0)) @ w["b"], None

    return jax.lax.scan(jax.checkpoint(layer) if rng.random() < 0.3 else layer, x, layers)[0]


def op_loop(p, name, rng, x):
    """The same layer again and again."""
    w, act = p(f"{name}/w", x.shape[-1], x.shape[-1]), activation(rng)
    kind = rng.choice(("for", "while", "cond"))
    if kind == "for":
        return jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(act(h) @ w), x)
    if kind == "while":
        return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))[1]
    return jax.lax.cond(x[0, 0, 0] > 0, lambda h: jnp.tanh(h @ w), lambda h: act(h @ w), x)


def op_siamese(p, name, rng, x):
    """One layer on two views."""
    w, act = p(f"{name}/w", x.shape[-1], 3), activation(rng)
    one, other = act(x @ w), act(jnp.roll(x, 1, 1) @ w)
    return rng.choice((lambda: one - other, lambda: one * other, lambda: jnp.concatenate([one, other], -1)))()


def op_autoencoder(p, name, rng, x):
    """Decoded by the transpose."""
    w = p(f"{name}/w", x.shape[-1], 4)
    hidden = activation(rng)(x @ w + (p(f"{name}/b", 4) if rng.random() < 0.5 else 0))
    return hidden @ w.T + (p(f"{name}/c", x.shape[-1]) if rng.random() < 0.5 else 0)


def op_bilinear(p, name, rng, x):
    one, other = (dense(p, f"{name}/{n}", x, 2, rng.random() < 0.5) for n in "ab")
    return jnp.einsum("bti,btj,ijk->btk", one, other, p(f"{name}/t", 2, 2, 3))


def op_mix_steps(p, name, rng, x):
    """A layer along the steps, as in a mixer, and an outer product with them."""
    y = x.swapaxes(1, 2)
    if rng.random() < 0.3:
        return y @ p(f"{name}/u", x.shape[1], 3)
    y = activation(rng)(y @ p(f"{name}/w", x.shape[1], 3)) @ p(f"{name}/v", 3, x.shape[1])
    return x + y.swapaxes(1, 2) if rng.random() < 0.5 else y.swapaxes(1, 2)


def op_low_rank(p, name, rng, x):
    """A kernel and an update of it by two thin ones."""
    update = p(f"{name}/down", x.shape[-1], 2) @ p(f"{name}/up", 2, 3)
    return x @ (p(f"{name}/w", x.shape[-1], 3) + update) if rng.random() < 0.5 else x @ update


def op_maxout(p, name, rng, x):
    y = dense(p, name, x, 6).reshape(*x.shape[:-1], 3, 2)
    return rng.choice((y.max, y.min, lambda axis: jax.nn.logsumexp(y, axis), lambda axis: (y**2).sum(axis)))(-1)
