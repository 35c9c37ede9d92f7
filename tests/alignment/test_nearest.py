"""Least squares over the continuous part: closed forms, a gradient that vanishes, never farther, exact on an orbit; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxsym as js
from jaxsym.alignment import align, nearest
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS


def squared(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(((np.asarray(x) - np.asarray(y)) ** 2).sum()) for x, y in pairs)


def two(name):
    """Two networks of different orbits, with their group, in float64."""
    network = BUILDERS[name]()
    sym = js.discover(network.apply, network.params, *network.inputs)
    draw = lambda seed: jax.device_get(perturbed(jax.random.key(seed), wide(network.params), 1.0))  # noqa: E731
    return sym, draw(3), draw(4)


def layers(shapes, seed):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: np.asarray(jax.random.normal(key, shape), np.float64)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def test_one_rescaled_unit_is_a_quartic():
    """``|u_a - s u_b|^2 + |v_a - v_b / s|^2`` is least at a root of ``|u_b|^2 s^4 - u_a.u_b s^3 + v_a.v_b s - |v_b|^2``."""
    with jax.enable_x64(True):
        shapes = {"u": (3, 5), "v": (5, 2)}
        a, b = (layers(shapes, seed) for seed in (0, 1))
        network = lambda p, x: jax.nn.relu(x @ p["u"]) @ p["v"]  # noqa: E731
        sym = js.discover(network, a, jnp.ones((4, 3)))
        found = sym.act(nearest(sym, a, b), b)
    for i in range(5):
        (ua, va), (ub, vb) = ((p["u"][:, i], p["v"][i]) for p in (a, b))
        roots = np.roots([ub @ ub, -ua @ ub, 0, va @ vb, -vb @ vb])
        scales = roots[(abs(roots.imag) < 1e-9) & (roots.real > 0)].real
        cost = lambda s, ua=ua, ub=ub, va=va, vb=vb: ((ua - s * ub) ** 2).sum() + ((va - vb / s) ** 2).sum()  # noqa: E731
        best = min(scales, key=cost)
        np.testing.assert_allclose(found["u"][:, i], best * ub, rtol=1e-5)
        np.testing.assert_allclose(found["v"][i], vb / best, rtol=1e-5)


def test_a_translation_is_a_mean():
    """A shift of one bias against another: closest where both are off by the same."""
    with jax.enable_x64(True):
        a, b = (layers({"c": (4,), "d": (4,)}, seed) for seed in (0, 1))
        sym = js.discover(lambda p, x: x + p["c"] + p["d"], a, jnp.ones((2, 4)))
        assert {factor.kind for factor in sym.factors} == {"translation"}
        found = sym.act(nearest(sym, a, b), b)
    off = (a["c"] + a["d"] - b["c"] - b["d"]) / 2
    np.testing.assert_allclose(found["c"], a["c"] - off, atol=1e-7)
    np.testing.assert_allclose(found["d"], a["d"] - off, atol=1e-7)


def test_a_change_of_basis_is_what_another_method_finds():
    """A linear network of one hidden layer, by matrices and a trust region instead of coordinates of the algebra."""
    with jax.enable_x64(True):
        a, b = (layers({"u": (4, 3), "v": (3, 4)}, seed) for seed in (0, 1))
        b = {name: a[name] + 0.4 * leaf for name, leaf in b.items()}
        sym = js.discover(lambda p, x: x @ p["u"] @ p["v"], a, jnp.ones((5, 4)))
        assert [factor.kind for factor in sym.factors] == ["general_linear"]
        found = squared(a, sym.act(nearest(sym, a, b), b))

    def rest(flat):
        matrix = flat.reshape(3, 3)
        return np.concatenate([(a["u"] - b["u"] @ matrix).ravel(), (a["v"] - np.linalg.solve(matrix, b["v"])).ravel()])

    other = scipy.optimize.least_squares(rest, np.eye(3).ravel(), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    assert found == pytest.approx(2 * other.cost, rel=1e-8)
    assert found < 0.9 * squared(a, b)


def stationary(sym, a, b, found):
    """Steps along random directions of the algebra, to either side, make it no better than to second order."""
    moved = sym.act(found, b)
    least, step = squared(a, moved), 1e-4
    for seed in range(5):
        direction = np.asarray(jax.random.normal(jax.random.key(seed), (sym.dim,)), np.float64)
        direction = direction / np.linalg.norm(direction)
        up, down = (squared(a, sym.act(sym.exp(side * step * direction), moved)) for side in (1, -1))
        assert abs(up - down) / (2 * step) < 1e-4 * max(1, least)
        assert up + down - 2 * least > -1e-9 * least


@pytest.mark.parametrize(
    "name", ["attention", *(pytest.param(name, marks=pytest.mark.long) for name in ("radial", "layer norm"))]
)
def test_the_gradient_vanishes(name):
    with jax.enable_x64(True):
        sym, a, b = two(name)
        found = nearest(sym, a, b)
        assert squared(a, sym.act(found, b)) < 0.9 * squared(a, b)
        stationary(sym, a, b, found)


@pytest.mark.parametrize(
    "name", ["relu", *(pytest.param(name, marks=pytest.mark.long) for name in ("identity", "attention"))]
)
def test_align_goes_on_to_the_nearest(name):
    with jax.enable_x64(True):
        sym, a, b = two(name)
        balanced = align(sym, a, b)
        found = align(sym, a, b, nearest=True)
        assert found.distance < 0.95 * balanced.distance
        assert found.distance == pytest.approx(np.sqrt(squared(a, found.params)), rel=1e-12)
        assert squared(found.params, sym.act(found.element, b)) < 1e-18 * squared(a, b)
        np.testing.assert_array_equal(found.history, balanced.history)
        stationary(sym, a, b, found.element)


@pytest.mark.parametrize("name", ["relu", pytest.param("fused attention", marks=pytest.mark.long)])
def test_an_orbit_is_recovered_without_a_step(name):
    with jax.enable_x64(True):
        sym, a, _ = two(name)
        moved = sym.act(jax.device_get(sym.sample(jax.random.key(0))), a)
        found = align(sym, a, moved, nearest=True)
        assert found.distance < 1e-9
        assert "nearest" not in vars(sym)  # nothing was compiled
        assert nearest(sym, a, moved, found.element) is found.element


def test_rescalings_alone_come_back():
    """From far away, not from where it was balanced."""
    with jax.enable_x64(True):
        sym, a, _ = two("relu")
        moved = sym.act(sym.exp(np.linspace(-1, 1, sym.dim)), a)
        assert squared(a, sym.act(nearest(sym, a, moved), moved)) < 1e-8


def test_never_farther():
    """A unit that goes to 0 has no nearest rescaling: it stops, and is not farther than before."""
    with jax.enable_x64(True):
        network = lambda p, x: jax.nn.relu(x @ p["u"]) @ p["v"]  # noqa: E731
        a, b = (layers({"u": (3, 2), "v": (2, 2)}, seed) for seed in (0, 1))
        b = {name: leaf.copy() for name, leaf in b.items()}
        b["v"][0] = 0
        b["u"][:, 0] = -a["u"][:, 0]
        sym = js.discover(network, a, jnp.ones((4, 3)))
        found = sym.act(nearest(sym, a, b), b)
        assert np.isfinite(found["u"]).all()
        assert squared(a, found) <= squared(a, b)
        np.testing.assert_allclose(found["u"][:, 0], 0, atol=1e-3)


def test_a_group_without_continuous_part_stays():
    with jax.enable_x64(True):
        sym, a, b = two("tanh")
        element = sym.sample(jax.random.key(0))
        assert nearest(sym, a, b, element) is element


def test_an_action_of_the_user():
    sym = js.Symmetry.from_action(lambda t, p: {"u": p["u"] * jnp.exp(t), "v": {"w": p["v"]["w"] * jnp.exp(-t)}}, 1)
    a, b = ({"u": np.float64(u), "v": {"w": np.float64(v)}} for u, v in ((2.0, 2.0), (1.0, 4.0)))
    found = sym.act(nearest(sym, a, b), b)
    np.testing.assert_allclose([found["u"].item(), found["v"]["w"].item()], 2, rtol=1e-5)


class TestWhatIsRefused:
    def test_no_group(self):
        with pytest.raises(TypeError, match="nearest: sym is of type str"):
            nearest("S_5", {}, {})

    def test_numbers_that_are_none(self):
        sym, a, b = two("relu")
        b = jax.tree.map(np.copy, b)
        b["params"]["Dense_0"]["kernel"][0, 0] = np.nan
        with pytest.raises(ValueError, match=r"nearest: b: params/Dense_0/kernel .* has 1 entries that are NaN"):
            nearest(sym, a, b)

    def test_another_architecture(self):
        sym, a, _ = two("relu")
        with pytest.raises(ValueError, match=r"nearest: b: .* the group was found on"):
            nearest(sym, a, jax.tree.map(lambda leaf: leaf[..., :1], a))
