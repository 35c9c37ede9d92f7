"""The straight-through estimator: brute force over all permutations, never worse than the start, deterministic; what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsym as js
from jaxsym.alignment import align, straight_through
from jaxsym.alignment.connect import between

X = jax.random.normal(jax.random.key(9), (32, 3))
Y = jnp.tanh(3 * X[:, :2])


def two(activation, width, seed):
    """Two perceptrons of one hidden layer, with their group and loss."""
    net = js.models.MLP((width, 2), activation)
    a, b = (
        jax.tree.map(
            lambda leaf, i=i: jax.random.normal(jax.random.fold_in(jax.random.key(seed), leaf.size + i), leaf.shape),
            net.init(jax.random.key(0), X),
        )
        for i in (0, 100)
    )
    loss = lambda params, key: ((net.apply(params, X) - Y) ** 2).mean()  # noqa: E731
    return js.discover(net.apply, a, X), loss, a, b


def halfway(loss, a, params, key=None):
    return float(loss(between(a, params, 0.5), key))


def reordered(params, order):
    first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
    order = np.array(order)
    return {
        "params": {
            "Dense_0": {"kernel": first["kernel"][:, order], "bias": first["bias"][order]},
            "Dense_1": {"kernel": second["kernel"][order], "bias": second["bias"]},
        }
    }


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (4, 6))])
def test_what_brute_force_finds_and_weights_do_not(seed):
    """Of all orders of four units the best halfway, which matched weights are far from."""
    sym, loss, a, b = two("gelu", 4, seed)
    least = min(halfway(loss, a, reordered(b, order)) for order in itertools.permutations(range(4)))
    matched = align(sym, a, b)
    found = straight_through(sym, loss, a, b, jax.random.key(0), steps=200)
    assert halfway(loss, a, matched.params) > 1.3 * least
    assert halfway(loss, a, found.params) == pytest.approx(least, rel=1e-5)
    assert found.history[0] == pytest.approx(halfway(loss, a, matched.params), rel=1e-5)
    assert found.history[-1] == pytest.approx(least, rel=1e-5)
    assert found.start == matched.start


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_never_worse_than_the_start(activation):
    """With a step that is far too large, from a random element: on the orbit, and not above the start at the key of the comparison."""
    sym, loss, a, b = two(activation, 5, 3)
    noisy = lambda params, key: loss(params, None) * (1 + 0.5 * jax.random.uniform(key))  # noqa: E731
    key, start = jax.random.key(1), sym.sample(jax.random.key(2))
    found = straight_through(sym, noisy, a, b, key, steps=20, optimizer=optax.sgd(1e3), start=start)
    held = jax.random.split(key, 21)[0]
    assert found.history.shape == (21,)
    assert (np.diff(found.history) <= 0).all()
    assert found.history[0] == pytest.approx(halfway(noisy, a, sym.act(start, b), held), rel=1e-5)
    assert found.history[-1] == pytest.approx(halfway(noisy, a, found.params, held), rel=1e-5)
    assert found.start == "given"
    for one, other in zip(jax.tree.leaves(sym.act(found.element, b)), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    apart = sum(((x - y) ** 2).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(found.params), strict=True))
    assert found.distance == pytest.approx(float(jnp.sqrt(apart)), rel=1e-5)


def test_the_start_stays_where_nothing_is_better():
    """Copies of one network: halfway is where it was, at a loss of 0."""
    sym, _, a, _ = two("relu", 5, 0)
    net = js.models.MLP((5, 2), "relu")
    target = net.apply(a, X)
    loss = lambda params, key: ((net.apply(params, X) - target) ** 2).mean()  # noqa: E731
    found = straight_through(sym, loss, a, sym.act(sym.sample(jax.random.key(0)), a), jax.random.key(0), steps=5)
    assert found.history[-1] < 1e-10
    assert found.distance < 1e-5


@pytest.mark.long
def test_rotations_too():
    """A change of basis of a linear network is turned: the loss halfway falls."""
    net = js.models.MLP((4, 2), "identity")
    draw = lambda seed: net.init(jax.random.key(seed), X)  # noqa: E731
    a, b = draw(0), draw(1)
    sym = js.discover(net.apply, a, X)
    loss = lambda params, key: ((net.apply(params, X) - Y) ** 2).mean()  # noqa: E731
    found = straight_through(sym, loss, a, b, jax.random.key(0), steps=30)
    assert found.history[-1] < found.history[0]
    np.testing.assert_allclose(net.apply(found.params, X), net.apply(b, X), atol=1e-4)


def test_the_same_bits():
    sym, loss, a, b = two("tanh", 5, 0)
    one, other = (straight_through(sym, loss, a, b, jax.random.key(0), steps=10) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


class TestWhatIsRefused:
    @pytest.mark.parametrize("steps", [0, True, 1.5])
    def test_no_steps(self, steps):
        sym, loss, a, b = two("relu", 3, 0)
        with pytest.raises(ValueError, match=r"straight_through: steps is .*, expected a number from 1 on"):
            straight_through(sym, loss, a, b, jax.random.key(0), steps=steps)

    def test_no_loss(self):
        sym, _, a, b = two("relu", 3, 0)
        with pytest.raises(TypeError, match="straight_through: loss is of type float"):
            straight_through(sym, 1.0, a, b, jax.random.key(0))

    def test_a_loss_of_many_numbers(self):
        sym, _, a, b = two("relu", 3, 0)
        with pytest.raises(ValueError, match="expected a scalar: take the mean"):
            straight_through(sym, lambda params, key: jnp.zeros(3), a, b, jax.random.key(0))

    def test_no_group(self):
        with pytest.raises(TypeError, match="straight_through: sym is of type str"):
            straight_through("S_5", None, {}, {}, jax.random.key(0))

    def test_a_free_copy_that_is_lost(self):
        sym, _, a, b = two("relu", 3, 0)

        def steep(params, key):
            return jnp.sqrt((0 * jax.tree.leaves(params)[0]).sum())

        with pytest.raises(ValueError, match="free copy is not finite after 1 steps: give an optimizer"):
            straight_through(sym, steep, a, b, jax.random.key(0))

    def test_a_loss_that_is_no_number(self):
        sym, loss, a, b = two("relu", 3, 0)
        with pytest.raises(ValueError, match="straight_through: loss halfway is nan at the start, expected a finite"):
            straight_through(sym, lambda params, key: jnp.nan * loss(params, key), a, b, jax.random.key(0))
