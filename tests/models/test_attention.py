"""Transformers: sizes in closed form, what a position sees, ties, and one block by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym.models import Block, Transformer

KEY = jax.random.key(0)
TOKENS = jnp.array([[3, 1, 4, 1, 5, 2], [2, 0, 1, 3, 3, 1]])
SMALL = {"vocabulary": 7, "width": 8, "heads": 2, "layers": 2, "hidden": 12, "length": 6}


def drawn(net, x):
    """Random parameters, biases and gains, too; cheaper to compile than the initializers."""
    keys = map(functools.partial(jax.random.fold_in, KEY), itertools.count())
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), jax.eval_shape(net.init, KEY, x))


def made(**options):
    net = Transformer(**SMALL | options)
    return net, drawn(net, TOKENS)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("tied", [False, True])
def test_size(norm, tied):
    vocabulary, width, _, layers, hidden, length = SMALL.values()
    gains = width * {"layer": 2, "rms": 1}[norm]
    block = 4 * (width + 1) * width + (width + 1) * hidden + (hidden + 1) * width + 2 * gains
    expected = (vocabulary * (1 if tied else 2) + length) * width + layers * block + gains
    params = jax.eval_shape(Transformer(**SMALL, norm=norm, tied=tied).init, KEY, TOKENS)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert ("unembedding" in params["params"]) == (not tied)


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_position_sees(causal):
    net, params = made(causal=causal)
    apply = jax.jit(net.apply)
    out, other = apply(params, TOKENS), apply(params, TOKENS.at[:, 3].set(6))
    changed = jnp.abs(out - other).max((0, 2)) > 1e-4
    assert changed.tolist() == [not causal] * 3 + [True] * 3
    shorter = apply(params, TOKENS[:, :4])
    assert bool(jnp.allclose(shorter, out[:, :4], atol=1e-5)) == causal


@pytest.mark.parametrize("positions", [0.0, 1.0])
def test_only_the_positions_know_the_order(positions):
    net, params = made(causal=False)
    params["params"]["positions"] *= positions
    order = jnp.array([2, 0, 1, 5, 4, 3])
    out, shuffled = net.apply(params, TOKENS), net.apply(params, TOKENS[:, order])
    assert bool(jnp.allclose(out[:, order], shuffled, atol=1e-4)) == (positions == 0)


def test_tied_is_untied_with_the_embedding_transposed():
    tied, params = made(tied=True)
    untied, _ = made()
    kernel = params["params"]["embedding"]["embedding"].T
    same = {"params": params["params"] | {"unembedding": {"kernel": kernel}}}
    np.testing.assert_allclose(tied.apply(params, TOKENS), untied.apply(same, TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_epsilon_reaches_every_norm(norm):
    """With a huge epsilon every norm returns its bias: no token is seen, the logits are equal everywhere."""
    net, params = made(norm=norm, epsilon=1e20)
    blind, _ = made(norm=norm)
    assert jnp.ptp(net.apply(params, TOKENS), (0, 1)).max() < 1e-5
    assert jnp.ptp(blind.apply(params, TOKENS), (0, 1)).max() > 1e-1


def test_block_by_hand():
    x = jax.random.normal(jax.random.key(1), (5, 6))
    block = Block(heads=2, hidden=4, norm="rms", epsilon=1e-3)
    mask = np.tril(np.ones((5, 5), bool))
    params = drawn(block, x)
    p, y = jax.tree.map(np.asarray, params["params"]), np.asarray(x)

    def norm(z, name):
        return z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-3) * p[name]["scale"]

    def project(z, name):
        return np.einsum("ti,ihk->htk", z, p["attention"][name]["kernel"]) + p["attention"][name]["bias"][:, None]

    z = norm(y, "RMSNorm_0")
    scores = project(z, "query") @ project(z, "key").swapaxes(1, 2) / np.sqrt(3)
    weights = np.exp(np.where(mask, scores, -np.inf))
    heads = weights / weights.sum(-1, keepdims=True) @ project(z, "value")
    y = y + np.einsum("htk,hko->to", heads, p["attention"]["out"]["kernel"]) + p["attention"]["out"]["bias"]
    h = jax.nn.gelu(norm(y, "RMSNorm_1") @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    y = y + h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    np.testing.assert_allclose(block.apply(params, x, mask[None]), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"), [({"heads": 3}, "divisor of the width 8"), ({"norm": "lyaer"}, "did you mean layer")]
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**SMALL | options)


def test_a_sequence_longer_than_its_positions():
    with pytest.raises(ValueError, match="at most 4 positions"):
        Transformer(**SMALL | {"length": 4}).init(KEY, TOKENS)
