"""Barriers, curves inside orbits, trained curves and planes, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.alignment import along, barrier, curve, orbit_path, plane
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS


def well(w):
    return ((w["x"] ** 2 - 1) ** 2).sum()


def test_the_barrier_of_a_double_well():
    """(t^2 - 1)^2 from -1 to 1 is 1 in the middle; from -1 to 0.5 it is above the chord by what calculus says."""
    found = barrier(well, {"x": jnp.array([-1.0])}, {"x": jnp.array([1.0])})
    np.testing.assert_allclose(found.ts, np.linspace(0, 1, 25))
    np.testing.assert_allclose(found.losses, ((2 * np.linspace(0, 1, 25) - 1) ** 2 - 1) ** 2, rtol=1e-5)
    assert found.height == pytest.approx(1.0)
    x = np.linspace(-1, 0.5, 1001)
    fine = barrier(well, {"x": jnp.array([-1.0])}, {"x": jnp.array([0.5])}, num=1001)
    assert fine.height == pytest.approx(((x**2 - 1) ** 2 - (x + 1) / 1.5 * 0.5625).max(), rel=1e-4)


def test_a_convex_loss_has_no_barrier():
    found = barrier(lambda w: (w["x"] ** 2).sum(), {"x": jnp.array([3.0, 1.0])}, {"x": jnp.array([-2.0, 5.0])})
    assert found.height == 0.0


def test_the_barrier_under_jit_and_vmap():
    ends = jnp.linspace(0.5, 2, 4)
    heights = jax.jit(jax.vmap(lambda end: barrier(well, {"x": -end[None]}, {"x": end[None]}).height))(ends)
    np.testing.assert_allclose(heights, np.maximum(2 * ends**2 - ends**4, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["relu", "layer norm", "attention", "radial"])
def test_a_curve_inside_the_orbit_is_one_function(name):
    with jax.enable_x64(True):
        network = BUILDERS[name]()
        sym = js.discover(network.apply, network.params, *network.inputs)
        params = perturbed(jax.random.key(3), wide(network.params), 1.0)
        drawn = list(sym.exp(0.5 * jax.random.normal(jax.random.key(1), (sym.dim,))))
        path = orbit_path(sym, params, tuple(drawn), num=5)
        outputs = jax.jit(jax.vmap(lambda p: network.apply(p, *network.inputs)))(path)
        for leaf in jax.tree.leaves(outputs):
            assert float(jnp.abs(leaf - leaf[0]).max()) < 1e-9 * float(jnp.abs(leaf).max())
        for stacked, first, end in zip(
            *map(jax.tree.leaves, (path, params, jax.jit(sym.act)(tuple(drawn), params))), strict=True
        ):
            np.testing.assert_allclose(stacked[0], first, atol=1e-12)
            np.testing.assert_allclose(stacked[-1], end, rtol=1e-9, atol=1e-9)
        moved = [float(jnp.abs(leaf[1:] - leaf[:-1]).max()) for leaf in jax.tree.leaves(path) if leaf.size]
        assert max(moved) > 1e-3


def test_a_half_turn_is_turned():
    """The matrix -1 in two dimensions has no real logarithm on its own eigenvectors, but a plane to be turned in."""
    sym = js.discover(
        lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}, jnp.ones((1, 3))
    )
    params = {"a": jax.random.normal(jax.random.key(0), (3, 2)), "b": jax.random.normal(jax.random.key(1), (2, 3))}
    (identity,) = sym.identity()
    path = orbit_path(sym, params, (-identity,), num=9)
    products = jnp.einsum("nij,njk->nik", path["a"], path["b"])
    np.testing.assert_allclose(products, jnp.broadcast_to(params["a"] @ params["b"], products.shape), atol=1e-5)
    np.testing.assert_allclose(path["a"][-1], -params["a"], atol=1e-6)


def test_where_no_curve_leads():
    net, x = js.models.MLP((4, 1), "tanh"), jnp.ones((5, 3))
    params = net.init(jax.random.key(0), x)
    sym = js.discover(net.apply, params, x)
    with pytest.raises(ValueError, match="orbit_path: g has a sign of params/Dense_0/bias that moves units"):
        orbit_path(
            sym,
            params,
            tuple(-part if f.kind == "sign" else part for f, part in zip(sym.factors, sym.identity(), strict=True)),
        )
    linear = js.discover(
        lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}, jnp.ones((1, 3))
    )
    with pytest.raises(ValueError, match="a matrix of a whose determinant is not positive"):
        orbit_path(linear, {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}, (jnp.diag(jnp.array([1.0, -1.0]))[...],))


def test_elements_that_are_none():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    sym = js.discover(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"orbit_path: the general_linear of g .* has 4 entries that are NaN"):
        orbit_path(sym, params, (np.full((2, 2), np.nan),))
    with pytest.raises(TypeError, match="orbit_path: g is a tracer"):
        jax.jit(lambda g: orbit_path(sym, params, g))(sym.identity())
    with pytest.raises(ValueError, match=r"element: got a float, expected a tuple of 1 arrays"):
        orbit_path(sym, params, 1.0)


def test_a_trained_curve_goes_around():
    """From one side of a ring of minima to the other: the straight line passes its hill, the curve does not."""
    ring = lambda w, key: ((w**2).sum() - 1) ** 2  # noqa: E731
    a, b = jnp.array([1.0, 0.0]), jnp.array([-0.995, 0.1])
    found = curve(ring, a, b, jax.random.key(0), steps=1000)
    path = along(a, found.middle, b, 33)
    np.testing.assert_allclose(path[jnp.array([0, -1])], jnp.stack([a, b]), atol=1e-6)
    height = max(float(ring(point, None)) for point in path)
    assert height < 0.3 * float(barrier(lambda w: ring(w, None), a, b).height)
    again = curve(ring, a, b, jax.random.key(0), steps=1000)
    np.testing.assert_array_equal(found.middle, again.middle)


def test_the_plane_of_a_quadratic():
    a, b, c = (jnp.array(v) for v in ([0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [1.0, 3.0, 1.0]))
    found = plane(lambda w: (w**2).sum(), a, b, c, num=7)
    np.testing.assert_allclose(found.points, [[0, 0], [2, 0], [1, 3]], atol=1e-6)
    x, y = np.meshgrid(found.xs, found.ys)
    np.testing.assert_allclose(found.losses, x**2 + y**2 + 1, rtol=1e-5)
    with pytest.raises(ValueError, match="lie on a line"):
        plane(lambda w: (w**2).sum(), a, b, (a + b) / 2)


def test_networks_of_different_shapes_are_refused():
    one, other = {"x": jnp.ones(2), "y": jnp.ones(1)}, {"x": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"barrier: x has shape \(2,\) in the first network and has shape \(3,\) in the second"
    ):
        barrier(well, one, other)
    with pytest.raises(ValueError, match="barrier: num is 2"):
        barrier(well, one, one, num=2)


def test_complex_leaves_are_refused():
    one = {"w": jnp.array([1 + 1j, 2])}
    loss = lambda p, *_: (jnp.abs(p["w"]) ** 2).sum()  # noqa: E731
    for name, act in {
        "barrier": lambda: barrier(loss, one, one),
        "curve": lambda: curve(loss, one, one, jax.random.key(0)),
        "plane": lambda: plane(loss, one, one, one),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: w is of type complex64, expected real numbers"):
            act()


def test_a_plane_of_half_precision():
    """Whose squares a sum in the type of its leaves does not hold."""
    a, b, c = (jax.random.normal(jax.random.key(i), (300, 300), jnp.float16) for i in range(3))
    found = plane(lambda w: (w.astype(jnp.float32) ** 2).mean(), a, b, c, num=3)
    assert found.points[1, 0] == pytest.approx(float(jnp.linalg.norm(b.astype(float) - a.astype(float))), rel=1e-3)
    with pytest.raises(ValueError, match="plane: the three networks are not finite"):
        plane(lambda w: (w**2).sum(), a, b, c * jnp.nan)


def test_an_element_whose_determinant_underflows():
    sym = js.discover(
        lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.ones((60, 40)), "b": jnp.ones((40, 60))}, jnp.ones((1, 60))
    )
    params = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(sym.shapes.items())}
    path = orbit_path(sym, params, (jnp.eye(40) * np.exp(-20.0),), num=2)
    np.testing.assert_array_equal(path["a"][0], params["a"])


@pytest.mark.parametrize("num", [10.0, "3", True])
def test_numbers_of_points_that_are_none(num):
    one = {"x": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"barrier: num is .*, expected at least 3 points"):
        barrier(well, one, one, num=num)


def test_leaves_that_are_not_real_stay():
    """Counters and flags, which a plane and a curve do not move."""
    point = lambda u, v: {"w": jnp.array([u, v]), "step": jnp.array(3), "on": jnp.array(True)}  # noqa: E731
    loss = lambda p: ((p["w"] ** 2).sum() - 1) ** 2 + p["step"] * p["on"]  # noqa: E731
    a, b, c = point(1.0, 0.0), point(-1.0, 0.1), point(0.2, 1.0)
    found = plane(loss, a, b, c, num=5)
    reference = plane(lambda w: ((w**2).sum() - 1) ** 2 + 3, a["w"], b["w"], c["w"], num=5)
    np.testing.assert_allclose(found.losses, reference.losses, rtol=1e-6)
    bent = curve(lambda p, key: loss(p), a, b, jax.random.key(0), steps=5)
    assert int(bent.middle["step"]) == 3
    assert bool(bent.middle["on"])


def test_losses_that_are_refused():
    a, b = jnp.ones(2), jnp.zeros(2)
    with pytest.raises(ValueError, match=r"barrier: loss returned .* expected a scalar"):
        barrier(lambda w: w, a, b)
    for name, call in (("barrier", lambda loss: barrier(loss, a, b)), ("plane", lambda loss: plane(loss, a, b, a))):
        with pytest.raises(TypeError, match=rf"{name}: loss\(w, key\) does not take \(params\): .* fix the key"):
            call(lambda w, key: w.sum())
        with pytest.raises(TypeError, match=f"{name}: loss is of type str, expected a function"):
            call("loss")
    with pytest.raises(TypeError, match=r"curve: loss\(w\) does not take \(params, key\)"):
        curve(lambda w: w.sum(), a, b, jax.random.key(0))
    with pytest.raises(ValueError, match="curve: steps is 0, expected a number from 1 on"):
        curve(lambda w, key: w.sum(), a, b, jax.random.key(0), steps=0)
