"""Verification: right groups pass at every level and precision, wrong ones fail, and what it cannot judge it refuses."""

import dataclasses
import importlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 3))
Y = jax.random.normal(jax.random.key(1), (5, 2))
module = importlib.import_module("jaxsym.symmetry.verify")


@pytest.fixture(scope="module")
def relu():
    """A two-layer network, its parameters, and its group: a scaling and a permutation of four units."""
    net = js.models.MLP((4, 2), "relu")
    params = net.init(KEY, X)
    return net, params, js.discover(net.apply, params, X)


def only(sym, kind):
    return dataclasses.replace(sym, factors=tuple(factor for factor in sym.factors if factor.kind == kind))


def without_last_slot(sym, kind):
    (factor,) = only(sym, kind).factors
    return dataclasses.replace(sym, factors=(factor._replace(slots=factor.slots[:-1]),))


# Levels


def test_each_factor_has_its_residual(relu):
    net, params, sym = relu
    (wrong,) = without_last_slot(sym, "scaling").factors
    mixed = dataclasses.replace(sym, factors=(wrong, *only(sym, "permutation").factors))
    checked = js.verify(net.apply, mixed, params, X)
    assert not checked.ok
    assert checked.by_factor[0] > 1e-3 > checked.tolerance > checked.by_factor[1]
    assert checked.residual >= checked.by_factor[0]
    assert checked == js.verify(net.apply, mixed, params, X)  # the same key, the same figures


@pytest.mark.parametrize("seed", range(3))
def test_relu6_rescaled_fails_with_ordinary_inputs(relu, seed):
    """Inputs of scale 1 do not reach the ceiling of 6 until the trials enlarge them."""
    _, params, sym = relu
    capped = js.models.MLP((4, 2), "relu6")
    assert float(jnp.max(X @ params["params"]["Dense_0"]["kernel"])) < 5
    assert not js.verify(capped.apply, only(sym, "scaling"), params, X, key=jax.random.key(seed)).ok


def test_data_level_is_about_these_inputs(relu):
    _, params, sym = relu
    capped = js.models.MLP((4, 2), "relu6")
    assert js.verify(capped.apply, sym, params, X / 10, level="data").ok  # nothing reaches the ceiling there
    assert not js.verify(capped.apply, sym, params, X / 10, level="function").ok
    assert not js.verify(capped.apply, sym, params, 50 * X, level="data").ok


def test_loss_level(relu):
    net, params, sym = relu

    def loss(params, x, y):
        return jnp.mean((net.apply(params, x) - y) ** 2)

    assert js.verify(loss, sym, params, X, Y, level="loss").ok
    assert not js.verify(loss, without_last_slot(sym, "scaling"), params, X, Y, level="loss").ok
    with pytest.raises(
        ValueError, match=r"got 'loss' with outputs of shape \(5, 2\), expected one scalar: pass the loss"
    ):
        js.verify(net.apply, sym, params, X, level="loss")


def test_tokens_and_keys_stay():
    """An input that is no floating number is given to the function as it is."""
    tree = {"tokens": jnp.arange(4), "mask": jnp.array([True, False]), "key": KEY, "raw": jax.random.PRNGKey(3)}
    chex.assert_trees_all_equal(perturbed(jax.random.key(5), tree), tree)
    assert {name: leaf.dtype for name, leaf in wide(tree).items()} == {name: leaf.dtype for name, leaf in tree.items()}
    params = {"table": jax.random.normal(KEY, (4, 3)), "out": jax.random.normal(KEY, (3, 2))}

    def apply(params, tokens):
        return jnp.tanh(params["table"].at[tokens].get(mode="fill", fill_value=jnp.nan)) @ params["out"]

    sym = js.discover(apply, params, jnp.arange(4))
    assert js.verify(apply, sym, params, jnp.array([3, 0])).ok


def test_masks_with_infinities():
    """An additive mask of minus infinity stays one, and its zeros are perturbed like any input."""
    mask = jnp.where(jnp.arange(4) < 2, 0.0, -jnp.inf)
    moved = perturbed(KEY, mask)
    assert bool(jnp.all(moved[2:] == -jnp.inf))
    assert bool(jnp.all(jnp.isfinite(moved[:2]) & (moved[:2] != 0)))
    params = {"a": jax.random.normal(KEY, (3, 4)), "b": jax.random.normal(KEY, (4, 4)), "c": jnp.ones((4, 2))}

    def apply(params, x, mask):
        return jax.nn.softmax(jnp.tanh(x @ params["a"]) @ params["b"] + mask) @ params["c"]

    checked = js.verify(apply, js.discover(apply, params, X, mask), params, X, mask)
    assert checked.ok
    assert checked.by_factor


def test_perturbation_keeps_signs_and_sizes():
    tree = {"zero": jnp.zeros(100), "positive": jnp.full(100, 1e-3), "large": 1e3 * jax.random.normal(KEY, (100,))}
    moved = perturbed(jax.random.key(1), tree, 3.0)
    assert float(moved["positive"].min()) > 0
    assert bool(jnp.all(moved["zero"] != 0))
    assert 1e3 < float(moved["large"].std()) < 1e4


# In distribution


class Dropout(nn.Module):
    """One hidden layer with dropout."""

    activation: str = "relu"

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = getattr(nn, self.activation)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.3)(x, deterministic=deterministic))


def noisy(net):
    return lambda params, x, key: net.apply(params, x, deterministic=False, rngs={"dropout": key})


@pytest.fixture(scope="module")
def dropout():
    """The group of the network without dropout."""
    net = Dropout()
    params = net.init(KEY, X)
    return net, params, js.discover(net.apply, params, X)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_dropout_is_symmetric_in_distribution_only(dropout, key):
    net, params, sym = dropout
    assert js.verify(net.apply, sym, params, X).ok
    fixed = js.verify(noisy(net), sym, params, X, key)
    kinds = [factor.kind for factor in sym.factors]
    passes = dict(zip(kinds, (residual <= fixed.tolerance for residual in fixed.by_factor), strict=True))
    assert passes == {"scaling": True, "permutation": False}  # the mask sits at other units now
    checked = js.verify(noisy(net), sym, params, X, key, level="distribution")
    assert checked.ok
    assert 1e-9 < checked.tolerance < 0.2
    assert checked.by_factor[kinds.index("scaling")] < 1e-5 * checked.tolerance  # exact for every key


def test_wrong_groups_fail_in_distribution(dropout):
    net, params, sym = dropout
    for kind in ("scaling", "permutation"):
        wrong = without_last_slot(sym, kind)
        assert not js.verify(noisy(net), wrong, params, X, KEY, level="distribution").ok
    bounded = noisy(Dropout("tanh"))
    assert not js.verify(bounded, only(sym, "scaling"), params, X, KEY, level="distribution").ok
    assert js.verify(bounded, only(sym, "permutation"), params, X, KEY, level="distribution").ok


@pytest.fixture
def wrongly_swapped(relu):
    """A function of four weights, of which the first is special by ``bias`` in the mean, and all are by the noise; its wrong group."""
    (factor,) = only(relu[2], "permutation").factors
    slot = factor.slots[0]._replace(path=("w",), axis=0, axes=(0,))
    swap = dataclasses.replace(relu[2], factors=(factor._replace(slots=(slot,)),), shapes={"w": (4,)})

    def checked(bias, num_keys, **options):
        def apply(params, key):
            return bias * params["w"][0] + params["w"] @ jax.random.normal(key, (4,))

        weights = {"w": jnp.array([-1.0, 2.0, 3.0, 4.0])}
        return js.verify(apply, swap, weights, KEY, level="distribution", num_keys=num_keys, **options)

    return checked


def test_the_limit_is_that_of_a_standard_error(wrongly_swapped):
    few, many = (wrongly_swapped(0.0, num, num=1) for num in (256, 4096))
    assert few.ok
    assert many.ok
    np.testing.assert_allclose(few.tolerance / many.tolerance, 4, rtol=0.2)


@pytest.mark.long
def test_a_small_bias_is_noticed_with_enough_keys(wrongly_swapped):
    """A tenth of the noise: below the limit of few keys, above that of many."""
    assert [wrongly_swapped(0.1, num).ok for num in (128, 2**15)] == [True, False]


def test_right_groups_pass_for_other_keys(wrongly_swapped):
    """Means that agree are taken as such for several keys, three trials each."""
    assert all(wrongly_swapped(0.0, 256, key=jax.random.key(seed)).ok for seed in range(4))


def test_without_variance_the_ordinary_tolerance_holds(relu):
    net, params, sym = relu
    exact = js.verify(lambda p, x, key: net.apply(p, x), sym, params, X, KEY, level="distribution", num_keys=100)
    assert exact.ok
    assert exact.tolerance == 1e-9


def test_distribution_wants_a_key(relu):
    net, params, sym = relu
    for inputs, said in [((), "there is no input"), ((X,), "the last of 1 inputs is not one")]:
        with pytest.raises(ValueError, match=said):
            js.verify(net.apply, sym, params, *inputs, level="distribution")
    with pytest.raises(ValueError, match="num_keys: got 10, expected at least 100"):
        js.verify(net.apply, sym, params, X, KEY, level="distribution", num_keys=10)


# Precision


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float16", 16 * 2.0**-10), ("bfloat16", 16 * 2.0**-7)]
)
def test_a_cast_is_found_and_said(relu, dtype, tolerance):
    """Within a loop and a call."""
    _, params, sym = relu

    def apply(params, x):
        one, two = params["params"]["Dense_0"], params["params"]["Dense_1"]

        def body(carry, x):
            hidden = jax.jit(lambda x: (x @ one["kernel"]).astype(dtype).astype(x.dtype))(x) + one["bias"]
            return carry, jax.nn.relu(hidden) @ two["kernel"] + two["bias"]

        return jax.lax.scan(body, 0, x)[1]

    checked = js.verify(apply, sym, params, X)
    assert checked.ok
    assert (checked.precision, checked.tolerance) == (dtype, tolerance)
    assert checked.residual > 1e-9
    for kind in ("scaling", "permutation"):
        assert not js.verify(apply, without_last_slot(sym, kind), params, X).ok


def test_a_flax_network_in_bfloat16():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(8, dtype=jnp.bfloat16)(x))
            return nn.Dense(2, dtype=jnp.bfloat16)(x)

    net = Half()
    params = net.init(KEY, X)
    sym = js.discover(net.apply, params, X)
    checked = js.verify(net.apply, only(sym, "permutation"), params, X)
    assert len(checked.by_factor) == 1
    assert checked.ok
    assert checked.precision == "bfloat16"


def test_a_contraction_in_float32_is_a_cast(relu):
    _, params, sym = relu

    def apply(params, x):
        one, two = params["params"]["Dense_0"], params["params"]["Dense_1"]
        hidden = jnp.matmul(x, one["kernel"], preferred_element_type=jnp.float32) + one["bias"]
        return jax.nn.relu(hidden) @ two["kernel"] + two["bias"]

    checked = js.verify(apply, sym, params, X)
    assert checked.ok
    assert checked.precision == "float32"


def test_a_constant_or_noise_in_float32_is_no_cast(relu):
    net, params, sym = relu
    shift = jnp.linspace(0, 1, 3, dtype=jnp.float32)

    def apply(params, x, key):
        return net.apply(params, x + shift + jax.random.normal(key, (3,), jnp.float32))

    checked = js.verify(apply, sym, params, X, KEY)
    assert checked.ok
    assert (checked.precision, checked.tolerance) == ("float64", 1e-9)


def test_a_function_that_refuses_float64_is_verified_in_float32():
    net = nn.RNN(nn.GRUCell(4))  # its carry is float32
    x = jax.random.normal(KEY, (2, 5, 3))
    params = net.init(KEY, x)

    def read_out(params, x):
        return jnp.sum(net.apply(params, x), -1)

    sym = js.discover(read_out, params, x)
    checked = js.verify(read_out, sym, params, x)
    assert checked.ok
    assert (checked.precision, checked.tolerance) == ("float32", 1e-4)


def test_float32_on_request(relu):
    net, params, sym = relu
    checked = js.verify(net.apply, sym, params, X, precision="float32")
    assert checked.ok
    assert (checked.precision, checked.tolerance) == ("float32", 1e-4)
    assert checked.residual > 1e-12
    assert not js.verify(net.apply, without_last_slot(sym, "scaling"), params, X, precision="float32").ok


# Points at which nothing can be decided


def chaotic(params, x):
    def step(state, _):
        return jnp.sin(state @ params["w"]), None

    return jax.lax.scan(step, x @ params["in"], None, length=100)[0] @ params["out"]


def test_a_trial_in_chaos_is_repeated_nearby(monkeypatch):
    """Strongly perturbed, 100 recurrent steps amplify the last digit to one; the group is right nevertheless."""
    keys = jax.random.split(KEY, 3)
    params = {
        "in": jax.random.normal(keys[0], (3, 16)),
        "w": 0.2 * jax.random.normal(keys[1], (16, 16)),
        "out": jax.random.normal(keys[2], (16, 2)),
    }
    sym = js.discover(chaotic, params, X)
    assert {factor.kind for factor in sym.factors} == {"sign", "permutation"}
    assert js.verify(chaotic, sym, params, X).ok
    assert not js.verify(chaotic, without_last_slot(sym, "permutation"), params, X).ok
    monkeypatch.setattr(module, "SHRINK", (1.0, 1.0))  # without the repetition
    assert not js.verify(chaotic, sym, params, X).ok


def test_an_overflow_is_repeated_nearby(relu):
    net, params, sym = relu

    def apply(params, x):
        return jnp.exp(60 * net.apply(params, x))

    checked = js.verify(apply, sym, params, X)
    assert np.isfinite(checked.residual)
    assert checked.ok
    assert not js.verify(apply, without_last_slot(sym, "scaling"), params, X).ok


def test_an_action_that_leaves_the_domain_fails(relu):
    _, _, sym = relu
    (factor,) = only(sym, "scaling").factors
    slot = factor.slots[0]._replace(path=("w",), axis=0, axes=(0,))
    flip = factor._replace(kind="sign", slots=(slot,))
    wrong = dataclasses.replace(sym, factors=(flip,), shapes={"w": (4,)})
    checked = js.verify(lambda p: jnp.log(p["w"]), wrong, {"w": jnp.ones(4)}, key=jax.random.key(2))
    assert not checked.ok
    assert checked.residual == np.inf


# What is compared


def test_complex_outputs_are_compared_whole(relu):
    net, params, sym = relu

    def apply(params, x):
        return 1j * net.apply(params, x)

    assert js.verify(apply, sym, params, X).ok
    assert not js.verify(apply, without_last_slot(sym, "scaling"), params, X).ok


def test_a_group_without_factors(relu):
    net, params, sym = relu
    checked = js.verify(net.apply, dataclasses.replace(sym, factors=()), params, X)
    assert checked == (0.0, (), True, 1e-9, "float64")
    assert js.verify(lambda p, x: x, dataclasses.replace(sym, factors=(), shapes={}), {}, X).ok


def test_what_is_refused(relu):
    net, params, sym = relu
    with pytest.raises(ValueError, match="unknown level 'functions': did you mean function"):
        js.verify(net.apply, sym, params, X, level="functions")
    with pytest.raises(ValueError, match="unknown precision 'bfloat16'"):
        js.verify(net.apply, sym, params, X, precision="bfloat16")
    with pytest.raises(ValueError, match="num: got 0"):
        js.verify(net.apply, sym, params, X, num=0)
    with pytest.raises(ValueError, match=r"params/params/Dense_0/bias is a shape without values"):
        js.verify(net.apply, sym, jax.eval_shape(lambda: params), X)
    with pytest.raises(ValueError, match="apply returns nothing"):
        js.verify(lambda p, x: {}, sym, params, X)
    with pytest.raises(ValueError, match="not finite"):
        js.verify(lambda p, x: jnp.log(-1 - jnp.abs(x)), sym, params, X)
