"""Recurrent networks against the cell in a loop, and their parameter counts in closed form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym.models import Recurrent

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 6, 3))
SIZES = {  # inputs d, state h; Flax's cells have their biases on one side, but for the GRU's candidate
    nn.SimpleCell: lambda d, h: h * (d + h + 1),
    nn.GRUCell: lambda d, h: 3 * h * (d + h + 1) + h,
    nn.LSTMCell: lambda d, h: 4 * h * (d + h + 1),
    nn.OptimizedLSTMCell: lambda d, h: 4 * h * (d + h + 1),
}


@pytest.mark.parametrize("cell", SIZES)
def test_size_and_loop(cell):
    net = Recurrent(cell, 5, 2)
    variables = net.init(KEY, X)
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])  # biases, too
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[cell](3, 5) + (5 + 1) * 2
    alone = cell(5)
    carry = alone.initialize_carry(KEY, X[:, 0].shape)
    for t in range(X.shape[1]):
        carry, state = alone.apply({"params": params[f"{cell.__name__}_0"]}, carry, X[:, t])
    expected = state @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(net.apply({"params": params}, X), expected, rtol=1e-4, atol=1e-5)


def test_simple_cell_by_hand():
    net = Recurrent(nn.SimpleCell, 4, 1)
    params = net.init(KEY, X)
    p = jax.tree.map(np.asarray, params["params"])
    cell, h = p["SimpleCell_0"], np.zeros((2, 4))
    for t in range(6):
        h = np.tanh(X[:, t] @ cell["i"]["kernel"] + cell["i"]["bias"] + h @ cell["h"]["kernel"])
    np.testing.assert_allclose(net.apply(params, X), h @ p["Dense_0"]["kernel"], rtol=1e-4, atol=1e-5)


def test_every_step_counts():
    net = Recurrent(nn.GRUCell, 5, 2)
    params = net.init(KEY, X)
    slope = jax.grad(lambda x: net.apply(params, x).sum())(X)
    assert jnp.all(jnp.abs(slope).sum((0, 2)) > 0)


@pytest.mark.parametrize("cell", ["gru", nn.GRUCell(5), nn.Dense])
def test_bad_cell(cell):
    with pytest.raises(ValueError, match="expected a class such as"):
        Recurrent(cell, 5, 2)
