"""Generators follow their stated law."""

import jax
import numpy as np
import pytest

from jaxsym import data
from jaxsym.models import MLP


def test_polynomial():
    x, y = data.polynomial(jax.random.key(0), 20_000)
    x = np.asarray(x[:, 0], np.float64)
    residual = y - (5 + 1.2 * x - 3.4 * x**2 / 2 + 5.6 * x**3 / 6)
    assert abs(residual.std() - 0.1) < 0.003
    assert abs(residual.mean()) < 0.003
    exact = data.polynomial(jax.random.key(0), 50, coefficients=(1.0, 2.0, 3.0), noise=0.0, factorial=False)
    np.testing.assert_allclose(
        exact.targets, 1 + 2 * exact.inputs[:, 0] + 3 * exact.inputs[:, 0] ** 2, rtol=1e-4, atol=1e-5
    )


def test_teacher():
    net = MLP((4, 2))
    clean = data.teacher(jax.random.key(0), 30, net.init, net.apply, inputs=3)
    again = data.teacher(jax.random.key(0), 30, net.init, net.apply, inputs=3, noise=0.5)
    np.testing.assert_array_equal(clean.inputs, again.inputs)
    assert clean.targets.shape == (30, 2)
    assert 0.2 < float((again.targets - clean.targets).std()) < 0.8


def test_bad_input():
    with pytest.raises(ValueError, match="num=0"):
        data.polynomial(jax.random.key(0), 0)
    with pytest.raises(ValueError, match="inputs=0"):
        data.teacher(jax.random.key(0), 3, MLP((1,)).init, MLP((1,)).apply, inputs=0)
