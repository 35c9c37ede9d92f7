"""Canonical forms: one point an orbit, for every kind and their products; ties; distances; balance."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS

QUICK = ("attention",)
SLOW = (
    "a bottleneck between",
    "a linear state",
    "a rescaling of what a change of basis moves",
    "rescalings on both sides",
    "up and down",
    "wide in the middle",
    "wider than the inputs",
    "wider than the outputs, later",
)
HELD = ("recurrent linear",)  # a rescaling of all that could tell its change of basis


@functools.cache
def found(name):
    """A network with its group, in float64, and the canonical form as one compiled function."""
    with jax.enable_x64(True):
        network = BUILDERS[name]()
        sym = js.discover(network.apply, network.params, *network.inputs)
        params = perturbed(jax.random.key(3), wide(network.params), 1.0)
        return network, sym, params, jax.jit(functools.partial(js.canonicalize, sym))


def mlp(widths, activation):
    net, x = js.models.MLP(widths[1:], activation), jnp.ones((5, widths[0]))
    params = net.init(jax.random.key(0), x)
    return net, js.discover(net.apply, params, x), wide(params)


def apart(one, other):
    """The largest difference, relative to the leaf or to 1."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.subtract(a, b)).max(initial=0) / max(1, np.abs(b).max(initial=0))) for a, b in pairs)


def same_function(network, one, other):
    try:
        apply = jax.jit(network.apply)  # one program, not one for each of its equations
        difference = apart(*(apply(params, *network.inputs) for params in (one, other)))
    except TypeError:  # carries of a fixed type
        with jax.enable_x64(False):
            difference = apart(*(network.apply(wide(params, "float32"), *network.inputs) for params in (one, other)))
        return difference < 1e-4
    return difference < 1e-9


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in BUILDERS if name not in HELD],
)
def test_laws(name):
    network, sym, params, canonical = found(name)
    with jax.enable_x64(True):
        first = canonical(params)
        assert not any(tie.any() for tie in first.ties)
        params = jax.device_get(params)  # on the host nothing compiles
        assert apart(sym.act(jax.device_get(first.element), params), first.params) < 1e-12
        assert same_function(network, first.params, params)
        assert apart(canonical(first.params).params, first.params) < 1e-9  # idempotent
        for seed in range(2):
            moved = sym.act(jax.device_get(sym.sample(jax.random.key(seed))), params)
            assert apart(canonical(moved).params, first.params) < 1e-9, seed  # constant on the orbit
        other = canonical(perturbed(jax.random.key(7), params, 0.3)).params
        assert apart(other, first.params) > 1e-3  # and not everywhere


@functools.cache
def perceptron(activation, hidden):
    with jax.enable_x64(True):
        _, sym, params = mlp((3, *hidden, 2), activation)
        return sym, params, jax.jit(functools.partial(js.canonicalize, sym))


@pytest.mark.parametrize(
    ("activation", "hidden"),
    [
        ("relu", (1, 5)),
        pytest.param("tanh", (4, 3), marks=pytest.mark.long),
        *(
            pytest.param(name, (2, 3), marks=pytest.mark.long)
            for name in ("sigmoid", "sin", "square", "gelu", "leaky_relu", "prelu", "squared_relu", "abs")
        ),
    ],
)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 2))
def test_laws_of_perceptrons(activation, hidden, seed, scale):
    sym, params, canonical = perceptron(activation, hidden)
    with jax.enable_x64(True):
        params = perturbed(jax.random.key(seed), params)
        first = canonical(params)
        assert not any(tie.any() for tie in first.ties)
        moved = sym.act(sym.sample(jax.random.key(seed + 1), scale), params)
        assert apart(canonical(moved).params, first.params) < 1e-9
        assert apart(canonical(first.params).params, first.params) < 1e-9


@pytest.mark.parametrize("activation", ["tanh", pytest.param("relu", marks=pytest.mark.long)])
def test_signs_and_order_without_biases(activation):
    with jax.enable_x64(True):
        _, sym, params = mlp((3, 6, 2), activation)  # biases 0, as initialised
        canonical = jax.jit(functools.partial(js.canonicalize, sym))
        first, other = (canonical(sym.act(sym.sample(jax.random.key(seed)), params)) for seed in (1, 2))
        assert apart(first.params, other.params) < 1e-9
        assert not any(tie.any() for tie in first.ties)


def test_every_copy_has_one_form():
    with jax.enable_x64(True):
        _, sym, params = mlp((2, 3, 1), "tanh")
        params = perturbed(jax.random.key(1), params)
        elements = [
            tuple(np.array({"permutation": order, "sign": signs}[factor.kind]) for factor in sym.factors)
            for order in itertools.permutations(range(3))
            for signs in itertools.product((-1.0, 1.0), repeat=3)
        ]
        assert len(elements) == sym.order
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *elements)
        copies = jax.jit(jax.vmap(lambda g: sym.act(g, params)))(stacked)
        assert len(np.unique(np.asarray(copies["params"]["Dense_0"]["kernel"]).reshape(48, -1), axis=0)) == 48
        forms = jax.vmap(lambda p: js.canonicalize(sym, p).params)(copies)
        chex.assert_trees_all_close(
            forms, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), forms), rtol=1e-12
        )


def test_canonical_relu_charges_are_zero():
    with jax.enable_x64(True):
        _, params, canonical = perceptron("relu", (1, 5))
        even = canonical(perturbed(jax.random.key(1), params, 1.0)).params["params"]
        for i in range(2):
            into = (even[f"Dense_{i}"]["kernel"] ** 2).sum(0) + even[f"Dense_{i}"]["bias"] ** 2
            np.testing.assert_allclose(into, (even[f"Dense_{i + 1}"]["kernel"] ** 2).sum(1), rtol=1e-12)


def test_duplicates_are_said():
    with jax.enable_x64(True):
        _, sym, params = mlp((3, 4, 2), "tanh")
        params = perturbed(jax.random.key(1), params)
        kernel, bias, out = (
            params["params"]["Dense_0"]["kernel"],
            params["params"]["Dense_0"]["bias"],
            params["params"]["Dense_1"]["kernel"],
        )
        params["params"]["Dense_0"] = {"kernel": kernel.at[:, 1].set(-kernel[:, 3]), "bias": bias.at[1].set(-bias[3])}
        params["params"]["Dense_1"]["kernel"] = out.at[1].set(-out[3])
        tied = {factor.kind: tie for factor, tie in zip(sym.factors, js.canonicalize(sym, params).ties, strict=True)}
        assert tied["permutation"].sum() == 2
        assert not tied["sign"].any()
        dead = jax.tree.map(jnp.zeros_like, params)
        assert js.canonicalize(sym, dead).ties[1].all()


def test_a_unit_that_could_shrink_for_ever():
    with jax.enable_x64(True):
        _, sym, params = mlp((3, 4, 2), "relu")
        params["params"]["Dense_1"]["kernel"] = jnp.zeros((4, 2))
        forms = [js.canonicalize(sym, sym.act(sym.sample(jax.random.key(seed), 2.0), params)).params for seed in (1, 2)]
        assert apart(*forms) < 1e-9
        np.testing.assert_allclose((forms[0]["params"]["Dense_0"]["kernel"] ** 2).sum(0), 1, rtol=1e-9)


@pytest.mark.parametrize("widths", [(3, 5, 2, 2), (3, 2, 2, 2, 2)])
def test_what_nothing_but_zeros_leads_to(widths):
    """Where weights are 0, rescalings of several layers may do the same to all others: one form, and finite."""
    with jax.enable_x64(True):
        net, sym, params = mlp(widths, "relu")
        flat, back = ravel_pytree(params)
        x = jax.random.normal(jax.random.key(4), (7, 3))

        def forms(key):
            there, values = jax.random.split(key)
            blank = iter(jax.random.bernoulli(there, 0.4, (len(jax.tree.leaves(params)),)))
            one = jax.tree.map(
                lambda leaf: jnp.where(next(blank), 0, leaf), back(jax.random.normal(values, flat.shape))
            )
            found = [js.canonicalize(sym, p) for p in (one, sym.act(sym.sample(key), one))]
            tied = functools.reduce(jnp.logical_or, [tie.any() for form in found for tie in form.ties])
            return *(form.params for form in found), tied, net.apply(one, x) - net.apply(found[0].params, x)

        one, other, tied, change = js.parallel(forms)(jax.random.split(jax.random.key(0), 200))
        chex.assert_tree_all_finite((one, other))
        assert float(jnp.abs(change).max()) < 1e-9
        assert 20 < tied.sum() < 150  # of units that nothing tells apart
        told = [jax.tree.map(lambda leaf: leaf[~tied], forms) for forms in (one, other)]
        chex.assert_trees_all_close(*told, atol=1e-6)


def test_units_that_share_what_could_shrink_for_ever():
    """Gains that rescalings of their units move and one of the whole stream, before a change of basis: not all squares can add up to 1."""

    def apply(p, x):
        normed = lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True))  # noqa: E731
        h = x @ p["in"]
        return normed(h + jax.nn.relu(normed(h) * p["gain"] @ p["up"]) @ p["down"]) @ p["out"]

    shapes = {"in": (3, 4), "gain": (4,), "up": (4, 5), "down": (5, 4), "out": (4, 2)}
    with jax.enable_x64(True):
        params = {n: jax.random.normal(jax.random.key(i), shape) for i, (n, shape) in enumerate(shapes.items())}
        sym = js.discover(apply, params, jax.random.normal(jax.random.key(9), (7, 3)))
        assert sorted(f.size for f in sym.factors if f.kind == "scaling") == [1, 4, 5]
        moved = [sym.act(sym.sample(jax.random.key(seed)), params) for seed in (1, 2)]
        forms = [js.canonicalize(sym, one) for one in moved]
        assert apart(*(form.params for form in forms)) < 1e-9
        assert not any(tie.any() for form in forms for tie in form.ties)
        assert js.align(sym, params, moved[0]).distance < 1e-9


def test_the_distance_is_a_metric():
    with jax.enable_x64(True):
        _, sym, params = mlp((3, 4, 2), "relu")
        points = [perturbed(jax.random.key(seed), params, 1.0) for seed in range(4)]
        distance = jax.jit(functools.partial(js.orbit_distance, sym))
        for a, b, c in itertools.permutations(points, 3):
            moved = sym.act(sym.sample(jax.random.key(9)), a)
            assert distance(a, moved) < 1e-9
            assert abs(distance(a, b) - distance(b, a)) < 1e-12
            assert abs(distance(moved, b) - distance(a, b)) < 1e-9
            assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12
            assert distance(a, b) > 1e-3


def test_hundreds_in_one_call():
    with jax.enable_x64(True):
        net, sym, params = mlp((3, 4, 2), "tanh")
        x = jax.random.normal(jax.random.key(4), (7, 3))
        start = perturbed(jax.random.key(1), params)
        many = jax.jit(jax.vmap(lambda key: sym.act(sym.sample(key), start)))(jax.random.split(jax.random.key(2), 256))
        forms = js.parallel(lambda p: js.canonicalize(sym, p).params)(many)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: leaf.std(0), forms), jax.tree.map(lambda leaf: 0 * leaf[0], forms), atol=1e-12
        )
        chex.assert_trees_all_close(jax.vmap(lambda p: net.apply(p, x))(forms)[5], net.apply(start, x), rtol=1e-9)


def test_balance():
    with jax.enable_x64(True):
        net, sym, params = mlp((3, 4, 5, 2), "relu")
        x = jax.random.normal(jax.random.key(4), (7, 3))
        params = perturbed(jax.random.key(1), params, 1.0)
        far = sym.act(sym.exp(np.linspace(-6, 6, sym.dim)), params)
        for norm, size in (
            (2, lambda leaf, axis: (leaf**2).sum(axis)),
            (math.inf, lambda leaf, axis: abs(leaf).max(axis)),
        ):
            balance = jax.jit(functools.partial(js.symmetry.balance, sym, norm=norm))
            even = balance(far)
            np.testing.assert_allclose(net.apply(even, x), net.apply(params, x), rtol=1e-9)
            for i in range(2):
                layer = even["params"][f"Dense_{i}"]
                into = size(jnp.concatenate([layer["kernel"], layer["bias"][None]]), 0)
                np.testing.assert_allclose(into, size(even["params"][f"Dense_{i + 1}"]["kernel"], 1), rtol=1e-9)
            if norm == 2:
                chex.assert_trees_all_close(even, balance(params), rtol=1e-9)


def test_balance_has_the_least_norm():
    with jax.enable_x64(True):
        _, sym, params = mlp((3, 4, 5, 2), "squared_relu")
        even = js.symmetry.balance(sym, perturbed(jax.random.key(1), params, 1.0))
        norm = lambda p: sum((leaf**2).sum() for leaf in jax.tree.leaves(p))  # noqa: E731
        for seed in range(5):
            step = 0.1 * jax.random.normal(jax.random.key(seed), (sym.dim,))
            assert norm(sym.act(sym.exp(step), even)) > norm(even)


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 4.0), ("float32", 2e9), ("float32", 1e-24)])
def test_balance_at_the_ends_of_a_precision(dtype, factor):
    net, x = js.models.MLP((4, 2), "relu", use_bias=False), jax.random.normal(jax.random.key(4), (7, 3))
    params = net.init(jax.random.key(0), x)
    sym = js.discover(net.apply, params, x)
    kernels = [params["params"][f"Dense_{i}"]["kernel"].astype(dtype) for i in range(2)]
    layers = [kernels[0] * factor, kernels[1] / (1 if dtype == "float16" else factor)]
    far = {"params": {f"Dense_{i}": {"kernel": layer} for i, layer in enumerate(layers)}}
    even = js.symmetry.balance(sym, far)
    (into, out) = (even["params"][f"Dense_{i}"]["kernel"].astype("float32") for i in range(2))
    close = (8 + 4 * abs(math.log(factor))) * float(jnp.finfo(dtype).eps)  # a factor is the exponential of a coordinate
    np.testing.assert_allclose((into**2).sum(0), (out**2).sum(1), rtol=close)
    np.testing.assert_allclose(net.apply(wide(even), x), net.apply(wide(far), x), rtol=close, atol=close)


def recurrent(p, x):
    h = jnp.zeros((len(x), 3))
    for i in range(x.shape[1]):
        h = jax.nn.relu(x[:, i] @ p["a"] + h @ p["w"])
    return h @ p["c"]


@pytest.mark.parametrize("silent", ["a", "c"])
def test_units_that_can_only_shrink_together_stay(silent):
    with jax.enable_x64(True):
        params = weights(a=(2, 3), w=(3, 3), c=(3, 2))
        sym = js.discover(recurrent, params, jnp.ones((4, 3, 2)))
        once = params | {silent: 0 * params[silent]}
        balance = jax.jit(functools.partial(js.symmetry.balance, sym))
        chex.assert_trees_all_equal(balance(once), once)
        assert bool(js.canonicalize(sym, once).ties[0].all())
        assert float(jnp.abs(js.dynamics.charges(sym)(balance(params))).max()) < 1e-13


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_units_stay_whatever_else_there_is(factor):
    def beside(p, x):
        return recurrent(p["r"], x) + jax.nn.relu(x[:, 0] @ p["a"]) @ p["b"]

    with jax.enable_x64(True):
        params = {"r": weights(a=(2, 3), w=(3, 3), c=(3, 2)), **weights(b=(3, 2), a=(2, 3))}
        sym = js.discover(beside, params, jnp.ones((4, 3, 2)))
        once = {
            "r": params["r"] | {"c": 0 * params["r"]["c"]},
            "a": factor * params["a"],
            "b": params["b"] / factor,
        }
        even = js.symmetry.balance(sym, once)
        chex.assert_trees_all_equal(even["r"], once["r"])
        np.testing.assert_allclose((even["a"] ** 2).sum(0), (even["b"] ** 2).sum(1), rtol=1e-12)
        assert any(bool(tie.any()) for tie in js.canonicalize(sym, once).ties)


def chain(p, x):
    for k in range(len(p)):
        x = x @ p[f"w{k}"]
    return x


def scanned(p, x):
    return jax.lax.scan(lambda h, row: (h @ p["w"] + row @ p["a"], (h @ p["c"])), jnp.zeros((3, 5)), x)[1]


def weights(**shapes):
    return {
        name: jax.random.normal(jax.random.key(i), shape, "float64") for i, (name, shape) in enumerate(shapes.items())
    }


def linear(*widths):
    return chain, {f"w{k}": pair for k, pair in enumerate(itertools.pairwise(widths))}


def unit(h):
    return h / jnp.sqrt((h**2).mean(-1, keepdims=True))


BASES = {
    "wider than the inputs": linear(3, 8, 8, 8, 2),
    "wider than the outputs, later": linear(2, 5, 4, 3),
    "wide in the middle": linear(2, 6, 14, 6, 2),
    "a bottleneck between": linear(2, 6, 4, 9, 3, 7, 5, 2),
    "up and down": linear(2, 4, 8, 4, 8, 4, 3),
    "narrow": linear(6, 5, 4, 3),
    "a linear state": (scanned, {"a": (2, 5), "w": (5, 5), "c": (5, 2)}),
    "a rescaling of what a change of basis moves": (
        lambda p, x: unit(x @ p["a"] @ p["b"]) @ p["c"],
        {"a": (7, 2), "b": (2, 4), "c": (4, 3)},
    ),
    "units that only a product tells apart": (
        lambda p, x: jnp.tanh(x @ p["a"] @ p["b"]).sum(-1),
        {"a": (3, 4), "b": (4, 4)},
    ),
    "rotations that hold each other": (
        lambda p, x: unit(x @ p["b"]) @ p["c"] @ p["d"],
        {"b": (3, 6), "c": (6, 6), "d": (6, 2)},
    ),
    "rescalings on both sides": (
        lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] @ p["c"]) @ p["d"],
        {"a": (7, 5), "b": (5, 2), "c": (2, 4), "d": (4, 3)},
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in BASES]
)
def test_changes_of_basis(name):
    with jax.enable_x64(True):
        apply, shapes = BASES[name]
        params = weights(**shapes)
        x = jax.random.normal(jax.random.key(9), (4, 3, next(iter(shapes.values()))[0]))
        sym = js.discover(apply, params, x)
        canonical = jax.jit(functools.partial(js.canonicalize, sym))
        first = canonical(params)
        assert any(factor.kind == "general_linear" for factor in sym.factors)
        assert not any(tie.any() for tie in first.ties)
        chex.assert_trees_all_close(apply(first.params, x), apply(params, x), rtol=1e-9, atol=1e-9)
        params = jax.device_get(params)  # on the host nothing compiles
        assert apart(sym.act(jax.device_get(first.element), params), first.params) < 1e-12
        assert apart(canonical(first.params).params, first.params) < 1e-9
        for seed in range(2):
            moved = sym.act(sym.sample(jax.random.key(seed), 0.3), params)
            assert apart(canonical(moved).params, first.params) < 1e-9, seed


@pytest.mark.long
def test_wide_linear_layers_show_what_does_not_compute():
    """Of 6 + 14 + 6 units of a linear network of rank 2 the canonical form leaves 2 in each layer to compute, and identities between the others."""
    with jax.enable_x64(True):
        apply, shapes = BASES["wide in the middle"]
        params = weights(**shapes)
        sym = js.discover(apply, params, jnp.ones((4, 2)))
        form = js.canonicalize(sym, params).params
        np.testing.assert_allclose(form["w1"][:4], np.eye(4, 14), atol=1e-9)
        np.testing.assert_allclose(form["w2"][:12, :4], np.eye(12, 4), atol=1e-9)
        for name, axis, spare in (("w0", 1, 4), ("w3", 0, 4)):
            assert abs(np.moveaxis(form[name], axis, 0)[:spare]).max() < 1e-9


def test_less_than_the_generic_rank_ties():
    with jax.enable_x64(True):
        apply, shapes = linear(3, 4, 5, 2)
        params = weights(**shapes)
        x = jax.random.normal(jax.random.key(9), (7, 3))
        sym = js.discover(apply, params, x)
        for less in (params["w0"].at[2].set(params["w0"][0]), 0 * params["w0"]):
            form = js.canonicalize(sym, params | {"w0": less})
            assert all(tie.all() for tie in form.ties)
            np.testing.assert_allclose(apply(form.params, x), apply(params | {"w0": less}, x), atol=1e-9)


def test_what_is_not_finite_ties():
    _, sym, params = mlp((3, 4, 2), "tanh")
    params = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), params)
    assert all(tie.all() for tie in js.canonicalize(sym, params).ties)


@pytest.mark.long
@pytest.mark.parametrize("name", ["relu", "attention", "sin", "tanh", "identity"])
def test_parameters_in_float32_where_float64_is_on(name):
    network = BUILDERS[name]()
    with jax.enable_x64(True):
        params = wide(network.params, "float32")
        sym = js.discover(network.apply, params, *network.inputs)
        form = js.canonicalize(sym, params).params
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(form))
        moved = sym.act(sym.sample(jax.random.key(1), 0.1), params)
        assert js.orbit_distance(sym, params, moved) < 1e-3
        for norm in (2, math.inf):
            chex.assert_trees_all_equal_shapes_and_dtypes(js.symmetry.balance(sym, params, norm), params)


def test_no_distance_where_generic_units_tie():
    with jax.enable_x64(True):
        params = weights(a=(3, 6), b=(6, 5))
        sym = js.discover(lambda p, x: jax.nn.relu(x @ p["a"] @ p["b"]).sum(-1), params, jnp.ones((4, 3)))
        assert any(tie.any() for tie in js.canonicalize(sym, params).ties)
        with pytest.raises(
            ValueError, match=r"orbit_distance: canonical forms of this group are not determined, as \d+ units"
        ):
            js.orbit_distance(sym, params, params)


@pytest.mark.parametrize("name", HELD)
def test_changes_of_basis_that_hold_each_other_are_refused(name):
    network = BUILDERS[name]()
    sym = js.discover(network.apply, network.params, *network.inputs)
    with pytest.raises(ValueError, match="hold each other"):
        js.canonicalize(sym, network.params)


def test_bad_input():
    with jax.enable_x64(True):
        _, sym, params = mlp((3, 4, 2), "tanh")
    with pytest.raises(
        ValueError, match=r"canonicalize: params/.* is of type bfloat16, expected float64, or float32: cast"
    ):
        js.canonicalize(sym, wide(params, "bfloat16"))
    with pytest.raises(
        ValueError, match=r"has shape \(2, 4\), the group was found on \(4,\): map over the leading axes with jax.vmap"
    ):
        js.canonicalize(sym, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params))
    with pytest.raises(TypeError, match=r"canonicalize: sym is of type dict, expected a Symmetry"):
        js.canonicalize({}, params)
    with pytest.raises(ValueError, match=r"params/Dense_0/bias is missing"):
        js.canonicalize(sym, {"params": {}})
    with pytest.raises(ValueError, match=r"norm is 1, expected 2 or math\.inf"):
        js.symmetry.balance(sym, params, norm=1)
    own = js.Symmetry.from_action(lambda t, p: p, 1)
    with pytest.raises(ValueError, match="a user's own action"):
        js.canonicalize(own, params)
