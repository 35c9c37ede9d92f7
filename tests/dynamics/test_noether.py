"""Charges: their gradients are the generators, for every network of the catalogue; their numbers are those of theory, and of a black box."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.dynamics import charges, momenta
from jaxsym.dynamics.noether import SOURCES
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.factors import CATALOGUE
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS, QUICK

KEY = jax.random.key(3)


def flat(tangents):
    """``[dim, P]``."""
    return np.concatenate(
        [np.asarray(leaf).reshape(len(leaf), np.prod(leaf.shape[1:], dtype=int)) for leaf in jax.tree.leaves(tangents)],
        axis=1,
    )


def test_every_continuous_kind_has_a_source():
    continuous = {name for name, kind in CATALOGUE.items() if kind.exp is not None}
    assert set(SOURCES) == continuous - {"action"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in BUILDERS]
)
def test_the_gradient_of_a_charge_is_its_generator(name):
    network = BUILDERS[name]()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = perturbed(KEY, wide(network.params))
        inputs = wide(tuple(network.inputs))
        sym = js.discover(network.apply, params, *inputs)
        found = charges(sym)
        slopes, tangents = jax.jit(lambda p: (jax.jacrev(found)(p), sym.tangents(p)))(params)
        slopes, tangents = flat(slopes), flat(tangents)
        np.testing.assert_allclose(
            slopes, found.coordinates @ tangents, rtol=0, atol=1e-12 * np.abs(tangents).max(initial=1)
        )
        assert len(found.names) == len(set(found.names)) == len(found) == len(found.degrees)
        assert len(found) + sum(one.dim for one in found.missing) == sym.dim
        outputs = jax.eval_shape(network.apply, params, *inputs)
        target = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape), outputs)

        def loss(params):
            pairs = zip(jax.tree.leaves(network.apply(params, *inputs)), jax.tree.leaves(target), strict=True)
            return sum(jnp.sum((jnp.real(out) - y) ** 2) for out, y in pairs)

        slope = jax.jacfwd if name == "while" else jax.grad  # a loop of unknown length has no reverse mode
        gradient = ravel_pytree(jax.jit(slope(loss))(params))[0]
        scale = np.linalg.norm(slopes, axis=1) * np.linalg.norm(gradient)
        assert (np.abs(slopes @ gradient) <= 1e-9 * scale + 1e-12).all()
        # and what is said to have none has none: no combination of these generators with a symmetric Jacobian was left out
        degrees = jax.jit(found)(jax.tree.map(lambda leaf: 3 * leaf, params)) / jax.jit(found)(params)
        np.testing.assert_allclose(degrees, 3.0**found.degrees, rtol=1e-9)


def by_hand(sym, params):
    """How many independent combinations of generators have a symmetric Jacobian, densely."""
    at, back = ravel_pytree(params)
    jacobian = jax.jit(jax.jacfwd(lambda at: jnp.asarray(flat_traced(sym.tangents(back(at))))))
    crooked = [np.asarray(j - j.swapaxes(1, 2)).reshape(sym.dim, -1) for j in (jacobian(at), jacobian(2 * at + 1))]
    return sym.dim - np.linalg.matrix_rank(np.concatenate(crooked, axis=1), tol=1e-9)


def flat_traced(tangents):
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tangents)], axis=1)


@pytest.mark.parametrize(
    "name", ["relu", "identity", "fused attention", "layer norm", "rms norm", "cross entropy", "radial"]
)
def test_no_combination_of_generators_is_left_out(name):
    network = BUILDERS[name]()
    with jax.enable_x64(True):
        params = perturbed(KEY, wide(network.params))
        sym = js.discover(network.apply, params, *wide(tuple(network.inputs)))
        assert len(charges(sym)) == by_hand(sym, params)


def shifted(p, x):
    return jnp.tanh((x @ p["w"] + p["b"] + p["c"]) * p["g"] + p["h"]) @ p["o"]


def positioned(p, x):
    return jnp.tanh((p["e"][x] + p["q"] + p["b"]) @ p["w"] + p["h"])


SUMS = {
    "two biases before a gain": (
        shifted,
        {"w": (3, 4), "b": (4,), "c": (4,), "g": (4,), "h": (4,), "o": (4, 2)},
        jnp.ones((5, 3)),
        4,
    ),
    "embedding, positions and a bias": (
        positioned,
        {"e": (5, 3), "q": (4, 3), "b": (3,), "w": (3, 4), "h": (4,)},
        jnp.array([[0, 1, 2, 3], [4, 3, 2, 1]]),
        6,
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_translations_in_which_coefficients_cancel(name):
    apply, shapes, x, linear = SUMS[name]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        keys = jax.random.split(KEY, len(shapes))
        params = {n: jax.random.normal(key, shape) for key, (n, shape) in zip(keys, shapes.items(), strict=True)}
        sym = js.discover(apply, params, x)
        found = charges(sym)
        assert len(found) == by_hand(sym, params)
        assert (found.degrees == 1).sum() == linear
        assert len(found) + sum(one.dim for one in found.missing) == sym.dim
        gradient = jax.grad(lambda p: jnp.sum((apply(p, x) - 1) ** 2))(params)
        slopes = flat(jax.jacrev(found)(params))
        np.testing.assert_allclose(slopes, found.coordinates @ flat(sym.tangents(params)), atol=1e-12)
        np.testing.assert_allclose(slopes @ ravel_pytree(gradient)[0], 0, atol=1e-12)
        assert len(set(found.names)) == len(found)
        assert len([name for name in momenta(sym).names if " - " in name]) == linear
        inside = jax.jit(lambda params: charges(sym)(params))(params)  # found inside of jit, too
        np.testing.assert_allclose(inside, found(params))


def test_charges_of_a_relu_unit_are_what_comes_in_less_what_goes_out():
    net, x = js.models.MLP((4, 2), "relu"), jnp.ones((5, 3))
    params = perturbed(KEY, net.init(KEY, x))
    sym = js.discover(net.apply, params, x)
    found, (sign,) = charges(sym), {slot.exponent for slot in sym.factors[0].slots if slot.path[1] == "Dense_0"}
    into, out = params["params"]["Dense_0"], params["params"]["Dense_1"]
    want = ((into["kernel"] ** 2).sum(0) + into["bias"] ** 2 - (out["kernel"] ** 2).sum(1)) / 2
    np.testing.assert_allclose(sign * found(params), want, rtol=1e-5)
    assert found.names == tuple(f"scaling params/Dense_0/bias unit {i}" for i in range(4))
    assert "4 quadratic, 0 linear" in str(found)


def test_charges_of_a_linear_layer_are_a_symmetric_matrix():
    apply = lambda p, x: x @ p["a"] @ p["b"]  # noqa: E731
    params = {"a": jax.random.normal(KEY, (3, 4)), "b": jax.random.normal(jax.random.key(1), (4, 2))}
    found = charges(js.discover(apply, params, jnp.ones((5, 3))))
    gram = (params["a"].T @ params["a"] - params["b"] @ params["b"].T) / 2
    sign = np.sign(float(found(params)[0] / gram[0, 0]))
    np.testing.assert_allclose(sign * found(params), gram[np.triu_indices(4)], atol=1e-5)
    (missing,) = found.missing
    assert (missing.dim, "rotation" in missing.reason) == (6, True)


def test_a_key_bias_is_conserved_itself_and_a_value_bias_is_not():
    network = BUILDERS["attention"]()
    found = charges(js.discover(network.apply, network.params, *network.inputs))
    linear = [name for name, degree in zip(found.names, found.degrees, strict=True) if degree == 1]
    assert len(linear) == 4
    assert all("key" in name for name in linear)
    assert any("depends on parameters" in one.reason and "value" in one.name for one in found.missing)


def test_what_follows_no_gradient_has_no_charge():
    net, x = js.models.MLP((4, 2), "relu"), jnp.ones((5, 3))
    sym = js.discover(net.apply, net.init(KEY, x), x)
    assert len(charges(sym, frozen=["params/Dense_1"])) == 0
    for wrong in ("params/Dense", "params/Dense_2", 3):
        with pytest.raises(ValueError, match=f"frozen: there is no leaf at {wrong!r}, expected a path"):
            charges(sym, frozen=[wrong])
    with pytest.raises(TypeError, match="frozen: got the string 'params', expected several paths"):
        charges(sym, frozen="params")
    (missing,) = charges(sym, frozen=["params/Dense_1/kernel"]).missing
    assert "params/Dense_1/kernel, which follows no gradient" in missing.reason


def test_a_group_without_continuous_part_has_none():
    net, x = js.models.MLP((4, 2), "tanh"), jnp.ones((5, 3))
    params = net.init(KEY, x)
    found = charges(js.discover(net.apply, params, x))
    assert (len(found), found(params).shape, found.missing, str(found)) == (
        0,
        (0,),
        (),
        "0 charges: 0 quadratic, 0 linear",
    )
    assert momenta(js.discover(net.apply, params, x))(params, params).shape == (0,)


def test_a_snapshot_is_no_pytree_of_parameters():
    net, x = js.models.MLP((4, 2), "relu"), jnp.ones((5, 3))
    params = net.init(KEY, x)
    found = charges(js.discover(net.apply, params, x))
    cost = lambda p, batch, key: jnp.mean(net.apply(p, x) ** 2)  # noqa: E731
    with pytest.raises(ValueError, match="give the params of this Snapshot"):
        js.make_train(lambda key: params, cost, optax.sgd(0.1), steps=2, probes={"charges": found})(KEY)
    assert repr(found).startswith("4 charges: 4 quadratic, 0 linear")
    assert repr(momenta(found.sym)) == "0 momenta"


def test_bad_input():
    with pytest.raises(TypeError, match="charges: sym is of type dict, expected a Symmetry"):
        charges({})
    with pytest.raises(ValueError, match="a user's own action"):
        charges(js.Symmetry.from_action(lambda c, p: p * jnp.exp(c[0]), 1))
    with pytest.raises(ValueError, match="momenta: the group contains a user's own action"):
        momenta(js.Symmetry.from_action(lambda c, p: p * jnp.exp(c[0]), 1))


def test_probes_of_many_networks():
    net, x = js.models.MLP((4, 2), "relu"), jnp.ones((5, 3))
    params = net.init(KEY, x)
    found = charges(js.discover(net.apply, params, x))
    train = js.make_train(
        lambda key: perturbed(key, params),
        lambda p, batch, key: jnp.mean((net.apply(p, x) - 1) ** 2),
        optax.sgd(0.01),
        steps=6,
        probes={"charges": lambda seen: found(seen.params)},
    )
    history = js.parallel(train)(jax.random.split(KEY, 3)).history
    assert history["charges"].shape == (3, 7, 4)
    assert np.ptp(history["charges"], axis=1).max() < 0.03


@pytest.mark.parametrize("name", ["identity", "radial", "siamese", "attention"])
def test_momenta_belong_to_antisymmetric_generators(name):
    network = BUILDERS[name]()
    with jax.enable_x64(True):
        params = perturbed(KEY, wide(network.params))
        sym = js.discover(network.apply, params, *wide(tuple(network.inputs)))
        found = momenta(sym)
        assert len(found) == len(set(found.names)) > 0
        velocity = jax.tree.map(lambda leaf: jnp.sin(leaf + 1), params)
        tangents = flat(sym.tangents(params))
        np.testing.assert_allclose(found(params, velocity), found.coordinates @ tangents @ ravel_pytree(velocity)[0])
        straight = [i for i, one in enumerate(found.names) if not one.startswith("translation")]
        np.testing.assert_allclose(np.asarray(found(params, params))[straight], 0, atol=1e-12)  # <theta, A theta> = 0


@pytest.mark.parametrize("r", [1, 2, 3])
def test_momenta_of_a_linear_layer(r):
    params = {"a": jnp.ones((3, r)), "b": jnp.ones((r, 2))}
    sym = js.discover(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((5, 3)))
    assert len(momenta(sym)) == math.comb(r, 2)
