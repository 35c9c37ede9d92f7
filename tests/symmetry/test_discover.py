"""Discovery against theory on a table of networks, the group laws, and actions that are wrong and must be caught."""

import collections
import dataclasses
import importlib
import itertools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.models import MLP, GatedMLP
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from jaxsym.symmetry.verify import Verification
from tests.symmetry.networks import ATTENTION, BUILDERS, QUICK, Network, Stream, X, normal
from tests.symmetry.wrong import WRONG, relu_group


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in BUILDERS]
)
def found(request):
    """A network and its group; the group is found once a network."""
    network = BUILDERS[request.param]()
    return network, js.discover(network.apply, network.params, *network.inputs)


def test_the_factors_are_those_of_theory(found):
    network, sym = found
    counted = collections.Counter((f.kind, f.size, f.copies) for f in sym.factors)
    assert counted == network.factors
    assert sym.verified


def test_order_and_dim_follow_from_the_factors(found):
    network, sym = found
    order = dim = 1
    dim = 0
    for (kind, size, copies), times in network.factors.items():
        order *= {"permutation": math.factorial(size), "sign": 2**size}.get(kind, 1) ** (copies * times)
        dim += (
            {"scaling": size, "translation": size, "general_linear": size**2, "orthogonal": size * (size - 1) // 2}.get(
                kind, 0
            )
            * copies
            * times
        )
    assert (sym.order, sym.dim) == (order, dim)


def test_the_function_does_not_change(found):
    network, sym = found
    checked = js.verify(network.apply, sym, network.params, *network.inputs, key=jax.random.key(7))
    assert checked.ok
    assert len(checked.by_factor) == len(sym.factors)
    assert checked.residual >= max(checked.by_factor)


def test_group_laws(found):
    network, sym = found
    with jax.enable_x64(True):
        params = perturbed(jax.random.key(1), wide(network.params))
        keys = jax.random.split(jax.random.key(2), 3)
        g, h, k = (sym.sample(key) for key in keys)

        @jax.jit
        def both(g, h, k, params):
            return {
                "action": (sym.act(sym.compose(g, h), params), sym.act(g, sym.act(h, params))),
                "associative": (sym.compose(sym.compose(g, h), k), sym.compose(g, sym.compose(h, k))),
                "inverse": (sym.compose(g, sym.inverse(g)), sym.identity()),
                "other inverse": (sym.compose(sym.inverse(g), g), sym.identity()),
                "identity": (sym.act(sym.identity(), params), params),
                "neutral": (sym.compose(g, sym.identity()), g),
            }

        for one, other in both(g, h, k, params).values():
            chex.assert_trees_all_close(one, other, rtol=1e-7, atol=1e-9)


def test_nothing_hides_by_pinning(found):
    """A sampled element of each factor moves every leaf that the factor claims to move, and no other."""
    network, sym = found
    with jax.enable_x64(True):
        params = perturbed(jax.random.key(1), wide(network.params))
        still = sym.identity()
        for i, factor in enumerate(sym.factors):
            moved_leaves = set()
            for key in jax.random.split(jax.random.key(3), 4):
                part = sym.sample(key)[i]
                moved = sym.act((*still[:i], part, *still[i + 1 :]), params)
                before, after = js.tree.leaves(params), js.tree.leaves(moved)
                moved_leaves |= {name for name in before if not np.allclose(before[name], after[name], rtol=1e-9)}
            assert moved_leaves == {"/".join(slot.path) for slot in factor.slots}


def test_tangents_are_the_derivative_and_lie_in_the_kernel(found):
    network, sym = found
    with jax.enable_x64(True):
        params, inputs = wide(network.params), wide(network.inputs)
        if not sym.dim:
            return
        params = perturbed(jax.random.key(4), params)
        tangents = jax.jit(sym.tangents)(params)
        assert all(
            leaf.shape == (sym.dim, *p.shape)
            for leaf, p in zip(jax.tree.leaves(tangents), jax.tree.leaves(params), strict=True)
        )
        along = jax.jit(jax.vmap(lambda t: jax.jvp(lambda p: network.apply(p, *inputs), (params,), (t,))[1]))
        directions = along(tangents)
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(directions)) < 1e-9


ROWS = 2 * jax.random.normal(jax.random.key(0), (400, 4))
KERNELS = {  # module, inputs, kernel, of which the group explains
    "relu": (MLP((4, 2), "relu"), ROWS[:, :3], 4, 4),
    "linear": (MLP((4, 2), "identity", use_bias=False), ROWS[:, :3], 14, 14),
    # sum_j B_j (A_j x + b_j)^2 is any quadratic form twice over: two biases of the outputs are hidden in the hidden units
    "square": (MLP((4, 2), "square"), ROWS[:, :3], 6, 4),
    "tanh": (MLP((4, 2), "tanh"), ROWS[:, :3], 0, 0),
    "gelu": (MLP((4, 2), "gelu"), ROWS[:, :3], 0, 0),
    "swiglu": (GatedMLP(4, 2), ROWS[:, :3], 4, 4),
    "attention": (ATTENTION, jax.random.normal(jax.random.key(0), (20, 7, 6)), 24, 24),
    "rms norm": (Stream(nn.RMSNorm), ROWS, 20, 20),
    "layer norm": (Stream(nn.LayerNorm), ROWS, 43, 43),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("relu", "linear", "square") else pytest.mark.long) for name in KERNELS],
)
def test_the_group_explains_the_whole_kernel(name):
    """The oracles' table by a plain SVD: the minimum over a dozen parameters."""
    net, x, kernel, explained = KERNELS[name]
    with jax.enable_x64(True):
        x = wide(x)
        start = wide(net.init(jax.random.key(0), x))
        sym = js.discover(net.apply, start, x)
        flat, back = ravel_pytree(start)

        def spectrum(key):
            point, _ = ravel_pytree(perturbed(key, start, 1.0))
            return jnp.linalg.svd(jax.jacfwd(lambda p: net.apply(back(p), x).ravel())(point), compute_uv=False)

        values = np.asarray(jax.jit(jax.vmap(spectrum))(jax.random.split(jax.random.key(1), 12)))
        params = perturbed(jax.random.key(2), start, 1.0)
        tangents = jax.tree.leaves(jax.jit(sym.tangents)(params))
        orbit = np.concatenate([np.reshape(leaf, (sym.dim, leaf[0].size)) for leaf in tangents], 1) if sym.dim else None
    assert values.shape[1] == flat.size
    assert min((values < 1e-12 * values[:, :1]).sum(axis=1)) == kernel
    assert (0 if orbit is None else np.linalg.matrix_rank(orbit, tol=1e-8)) == explained


class Normed(nn.Module):
    epsilon: float

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.tanh(nn.LayerNorm(self.epsilon)(nn.Dense(4, name="before")(x))))


def whole_scalings(factors):
    return [{"/".join(slot.path) for slot in f.slots} for f in factors if (f.kind, f.size) == ("scaling", 1)]


def test_what_an_epsilon_breaks_is_approximate():
    """A norm divides by the length of what comes: the layer before it may be multiplied, but for the epsilon."""
    before = [{"params/before/kernel", "params/before/bias"}]
    net = Normed(1e-6)
    params = net.init(jax.random.key(0), X)
    sym = js.discover(net.apply, params, X)
    assert whole_scalings(a.factor for a in sym.approximate) == before
    assert not whole_scalings(sym.factors)
    assert js.verify(net.apply, sym, params, X).tolerance < sym.approximate[0].residual < 1e-2
    unmeasured = js.discover(net.apply, jax.eval_shape(lambda: params), X).approximate
    assert [a.residual for a in unmeasured] == [None]
    exact = js.discover(Normed(0.0).apply, params, X)
    assert (whole_scalings(exact.factors), exact.approximate) == (before, ())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_actions_fail(name):
    apply, sym, params, inputs = WRONG[name]()
    assert not js.verify(apply, sym, params, *inputs).ok


def test_a_slot_that_is_left_out_fails():
    net, params, sym = relu_group()
    assert js.verify(net.apply, sym, params, X).ok
    permutation = sym.factors[-1]
    for leave in permutation.slots:
        fewer = permutation._replace(slots=tuple(slot for slot in permutation.slots if slot is not leave))
        assert not js.verify(net.apply, dataclasses.replace(sym, factors=(fewer,)), params, X).ok


def test_permutations_of_one_layer_are_all_of_them():
    """By brute force: of all permutations of two 3-unit layers' units, exactly those of the group leave the function alone."""
    params = {"a": normal(3, 3), "b": normal(3, 2)}

    def apply(p, x):
        return jax.nn.gelu(x @ p["a"]) @ p["b"]

    assert js.discover(apply, params, X).order == 6
    expected = apply(params, X)
    kept = 0
    for first, second in itertools.product(itertools.permutations(range(3)), repeat=2):
        moved = {"a": params["a"][:, jnp.array(first)], "b": params["b"][jnp.array(second)]}
        kept += bool(jnp.allclose(apply(moved, X), expected, atol=1e-4))
    assert kept == 6


def test_act_under_vmap():
    net, params, sym = relu_group()
    elements = jax.vmap(sym.sample)(jax.random.split(jax.random.key(0), 5))
    stacked = jax.vmap(lambda g: sym.act(g, params))(elements)
    outputs = jax.vmap(lambda p: net.apply(p, X))(stacked)
    chex.assert_trees_all_close(outputs, jnp.broadcast_to(net.apply(params, X), outputs.shape), rtol=1e-4, atol=1e-5)


def test_shapes_alone_suffice():
    net, params, sym = relu_group()
    shapes = jax.eval_shape(lambda: params)
    unverified = js.discover(net.apply, shapes, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert not unverified.verified
    assert [f._replace(slots=()) for f in unverified.factors] == [f._replace(slots=()) for f in sym.factors]


def test_the_same_group_every_time():
    """Which of two is primal and which dual, the order of factors: nothing depends on where objects lie in memory."""
    network, apart = BUILDERS["rms transformer"](), []
    shapes = jax.eval_shape(lambda: network.params)
    found = set()
    for number in range(5):
        apart.append([object() for _ in range(997 * number)])
        found.add(str(js.discover(network.apply, shapes, *network.inputs)))
    assert len(found) == 1


def test_an_unknown_primitive_pins():
    """A matrix inverse has no rule: everything that it touches stays, and a warning names it."""
    params = {"a": normal(3, 4), "w": normal(4, 4), "b": normal(4, 2)}

    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ jnp.linalg.cholesky(p["w"] @ p["w"].T + 4 * jnp.eye(4)) @ p["b"]

    with pytest.warns(UserWarning, match="no rule for the primitive cholesky"):
        sym = js.discover(apply, params, X)
    assert all(factor.kind != "permutation" for factor in sym.factors)
    assert any("cholesky" in pinned.reason for pinned in sym.pinned)


def test_pinned_axes_have_reasons_and_are_the_rest():
    _, params, sym = relu_group()
    moved = {(slot.path, slot.axis) for factor in sym.factors for slot in factor.slots}
    pinned = {(p.path, p.axis) for p in sym.pinned}
    every = {
        (tuple(name.split("/")), axis) for name, leaf in js.tree.leaves(params).items() for axis in range(leaf.ndim)
    }
    assert moved | pinned == every
    assert not moved & pinned
    assert {p.reason for p in sym.pinned} == {"an input", "an output"}


def test_leaves_that_cannot_move_are_pinned():
    params = {"a": normal(3, 4), "b": normal(4, 2), "step": jnp.arange(4), "unused": normal(2, 4)}
    sym = js.discover(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["step"][0], params, X)
    reasons = {("/".join(p.path), p.axis): p.reason for p in sym.pinned}
    assert reasons["step", 0] == "a leaf of type int32 is not moved"
    assert {reasons["unused", 0], reasons["unused", 1]} == {"the function does not depend on it"}
    assert sym.order == 384


def test_what_fails_its_verification_is_dropped_aloud(monkeypatch):
    """The warning is an error wherever a test does not expect it."""
    net, params, _ = relu_group()
    failing = Verification(1.0, (1.0, 0.0), False, 1e-9)
    monkeypatch.setattr(importlib.import_module("jaxsym.symmetry.discover"), "verify", lambda *_: failing)
    with pytest.warns(UserWarning, match="dropped what failed its verification.*scaling of params/Dense_0/bias"):
        assert [f.kind for f in js.discover(net.apply, params, X).factors] == ["permutation"]
    with pytest.raises(UserWarning, match="dropped what failed"):
        js.discover(net.apply, params, X)


def test_the_table_can_be_read():
    _, _, sym = relu_group()
    text = str(sym)
    for word in (
        "24 elements",
        "dim 4",
        "verified",
        "scaling",
        "permutation",
        "params/Dense_0/kernel axis 1",
        "^-1",
        "an input",
    ):
        assert word in text


def test_bad_input():
    _, params, sym = relu_group()
    other = js.models.MLP((3, 2), "relu").init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"params/Dense_0/bias has shape \(3,\), the group was found on \(4,\)"):
        sym.act(sym.identity(), other)
    with pytest.raises(ValueError, match="params/Dense_0/bias is missing"):
        sym.act(sym.identity(), {"params": {}})
    with pytest.raises(ValueError, match=r"expected \(4,\), the group's dim"):
        sym.exp(jnp.zeros(3))
    with pytest.raises(ValueError, match="apply returns nothing"):
        js.discover(lambda p, x: (), params, X)
    with pytest.raises(ValueError, match="level: got 'loss'"):
        js.verify(lambda p, x: x, sym, params, X, level="loss")
    with pytest.raises(ValueError, match="not finite"):
        js.verify(lambda p, x: jnp.log(-jnp.abs(x)), sym, params, X)


def test_a_network_without_symmetry():
    network = Network(lambda p, x: jnp.tanh(x * p["w"]) + p["b"], {"w": normal(3), "b": normal(3)}, (X,), {})
    sym = js.discover(network.apply, network.params, *network.inputs)
    assert (sym.order, sym.dim, sym.factors) == (1, 0, ())
    assert "nothing moves" in str(sym)
