"""Initializers: the conformance of every catalogue entry, and what each of them promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym.training.initial import CATALOGUE, initializer

SHAPE = (400, 300)


@pytest.mark.parametrize("name", CATALOGUE)
class TestEntry:
    """Every entry of the catalogue."""

    def test_shape_dtype_determinism(self, name):
        init = initializer(name)
        draw = init(jax.random.key(0), (6, 4), jnp.float32)
        assert draw.shape == (6, 4)
        assert draw.dtype == jnp.float32
        np.testing.assert_array_equal(draw, init(jax.random.key(0), (6, 4), jnp.float32))

    def test_under_vmap(self, name):
        keys = jax.random.split(jax.random.key(0), 3)
        stacked = jax.vmap(lambda key: initializer(name)(key, (6, 4), jnp.float32))(keys)
        np.testing.assert_allclose(stacked[1], initializer(name)(keys[1], (6, 4), jnp.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("normal", 0.01),
        ("xavier_normal", (2 / 700) ** 0.5),
        ("xavier_uniform", (2 / 700) ** 0.5),
        ("he_normal", (2 / 400) ** 0.5),
        ("he_uniform", (2 / 400) ** 0.5),
        ("lecun_normal", (1 / 400) ** 0.5),
        ("lecun_uniform", (1 / 400) ** 0.5),
    ],
)
def test_moments(name, deviation):
    draw = initializer(name)(jax.random.key(0), SHAPE, jnp.float32)
    assert abs(float(draw.std()) / deviation - 1) < 0.01
    assert abs(float(draw.mean())) < 0.02 * deviation


def test_equal_units():
    draw = initializer("tied")(jax.random.key(0), SHAPE, jnp.float32)
    assert (draw == draw[:, :1]).all()
    assert abs(float(draw[:, 0].std()) * 20 - 1) < 0.1
    assert (initializer("constant", c=0.3)(jax.random.key(0), SHAPE, jnp.float32) == jnp.float32(0.3)).all()
    assert not initializer("zeros")(jax.random.key(0), SHAPE, jnp.float32).any()


def test_orthogonal():
    draw = initializer("orthogonal")(jax.random.key(0), (30, 20), jnp.float32)
    np.testing.assert_allclose(draw.T @ draw, np.eye(20), atol=1e-5)


def test_the_scale_may_be_traced():
    draw = jax.jit(lambda s: initializer("normal", stddev=s)(jax.random.key(0), (3, 2), jnp.float32))
    np.testing.assert_allclose(draw(2.0), 200 * draw(0.01), rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="did you mean xavier"):
        initializer("xavier")
    with pytest.raises(ValueError, match="unknown option of the initializer 'constant' 'd'"):
        initializer("constant", d=1.0)
