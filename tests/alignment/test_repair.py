"""What is mended in an average: running statistics and the spread of hidden units, against sums by hand; what is left alone and refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsym as js
from jaxsym import tree
from jaxsym.alignment import merge, reestimated, repaired


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def drawn(params, seed, num=None, scale=1.0):
    """Normal leaves, positive where they are a variance."""
    lead = () if num is None else (num,)
    leaves = {
        path: scale * normal(*lead, *leaf.shape, seed=(seed, number))
        for number, (path, leaf) in enumerate(tree.leaves(params).items())
    }
    return tree.put(params, {path: np.exp(leaf) if path.endswith("var") else leaf for path, leaf in leaves.items()})


def shapes_of(net, x):
    return jax.eval_shape(net.init, jax.random.key(0), x)


def average(networks, weights=None):
    return jax.tree.map(lambda leaf: np.average(leaf, axis=0, weights=weights), networks)


def pick(stacked, number):
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def alike(one, other, **options):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for path, leaf in tree.leaves(one).items():
        np.testing.assert_allclose(leaf, tree.get(other, path)[path], err_msg=path, **options)


class Normed(nn.Module):
    """Two norms: dense, norm, relu, dense, norm without gains, tanh, dense."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.0)
        x = nn.relu(norm()(nn.Dense(5)(x)))
        x = jnp.tanh(norm(use_scale=False, use_bias=False)(nn.Dense(4, use_bias=False)(x)))
        return nn.Dense(2)(x)


def normed(seed=1):
    net, x = Normed(), 2 * normal(12, 3) + 1
    return net, drawn(shapes_of(net, x), seed), x


@pytest.mark.parametrize("num", [1, 3])
def test_statistics_are_those_of_all_rows(num):
    net, params, x = normed()
    found = reestimated(net.apply, params, [(rows,) for rows in np.split(x, num)] if num > 1 else (x,))
    weights, norm = params["params"], params["params"]["BatchNorm_0"]
    first = np.asarray(x) @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]
    mean, var = first.mean(0), first.var(0)
    hidden = np.maximum((first - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"], 0)
    second = hidden @ weights["Dense_1"]["kernel"]
    expected = {
        "BatchNorm_0": {"mean": mean, "var": var},
        "BatchNorm_1": {"mean": second.mean(0), "var": second.var(0)},
    }
    alike(found, {"params": weights, "batch_stats": expected}, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "net",
    [
        js.models.CNN((4, 6), 3, norm="batch"),
        js.models.ResNet((1, 1), (3, 4), 2, bottleneck=False),
    ],
    ids=["cnn", "resnet"],
)
def test_statistics_are_those_of_training(net):
    """In training every norm takes the statistics of the batch, and what it keeps is 0.9 or 0.99 of what there was and the rest of those."""
    x = normal(6, 16, 16, 1, seed=1)
    params = drawn(shapes_of(net, x), 2)
    empty = params | {"batch_stats": jax.tree.map(jnp.zeros_like, params["batch_stats"])}
    _, kept = jax.jit(functools.partial(net.apply, train=True, mutable=["batch_stats"]))(empty, x)
    rest = 0.01 if isinstance(net, js.models.CNN) else 0.1
    found = reestimated(net.apply, params, (x,))
    alike(found["batch_stats"], jax.tree.map(lambda leaf: leaf / rest, kept["batch_stats"]), rtol=1e-9, atol=1e-9)
    alike(found["params"], params["params"], rtol=0)


def by_hand(root):
    def apply(p, x):
        return root(x @ p["a"] - p["m"], p["v"][None]) * p["g"] + p["b"]

    return apply


@pytest.mark.parametrize(
    "apply",
    [
        by_hand(lambda d, v: d * jax.lax.rsqrt(v + 1e-3)),
        by_hand(lambda d, v: d / jnp.sqrt(1e-3 + v)),
        by_hand(lambda d, v: 3.0 * d * (1 / jnp.sqrt(v + 1e-3))),
        by_hand(lambda d, v: d * (v + 1e-3) ** -0.5),
        jax.vmap(lambda p, x: (p["g"] * (p["a"].T @ x - p["m"])) / jnp.sqrt(p["v"] + 1e-3) + p["b"], (None, 0)),
    ],
    ids=["rsqrt", "sqrt", "one over", "power", "vmap"],
)
def test_spellings(apply):
    params = {name: jnp.full(3, 0.5) for name in "mvgb"} | {"a": normal(2, 3, seed=0)}
    x = normal(7, 2, seed=1)
    z = np.asarray(x @ params["a"])
    alike(reestimated(apply, params, (x,)), params | {"m": z.mean(0), "v": z.var(0)}, rtol=1e-12)


def test_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.a(x), use_running_average=True)

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    x = normal(9, 3, seed=0)
    found = nnx.merge(graph, reestimated(lambda state, x: nnx.merge(graph, state)(x), state, (x,)))
    z = np.asarray(found.a(x))
    np.testing.assert_allclose(found.norm.mean[...], z.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.norm.var[...], z.var(0), rtol=1e-5)


def test_equinox_keeps_sums_that_it_divides():
    """Its state holds the mean times what has been gathered so far."""
    eqx = pytest.importorskip("equinox")
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch", dtype=jnp.float64)
    x = normal(8, 3, seed=0)
    _, state = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
    params, rest = eqx.partition((norm, state), eqx.is_inexact_array)

    def apply(params, x):
        norm, state = eqx.combine(params, rest)
        return jax.vmap(lambda row: norm(row, state, inference=True)[0], axis_name="batch")(x)

    other = 3 * x + 1
    result = apply(reestimated(apply, params, (other,)), other)
    np.testing.assert_allclose(result.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(result.var(0), other.var(0) / (other.var(0) + norm.eps), rtol=1e-12)


REFUSED = {
    "a constant that is subtracted": lambda p, x: (x - p["m"]) * p["v"],
    "no epsilon": lambda p, x: (x - p["m"]) * jax.lax.rsqrt(p["v"]),
    "another root": lambda p, x: (x - p["m"]) * jnp.sqrt(p["v"] + 1e-3),
    "divides": lambda p, x: 1 / (x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3),
    "between": lambda p, x: jnp.tanh(x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3),
    "the mean is also added": lambda p, x: (x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3) + p["m"],
    "the variance also multiplies": lambda p, x: (x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3) * p["v"],
    "the variance is also the output": lambda p, x: ((x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3), p["v"]),
    "other axes": lambda p, x: (x - p["m"]) * jax.lax.rsqrt(p["v"][:, None] + 1e-3),
    "of every entry its own": lambda p, x: (x[0] - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3),
    "no input": lambda p, x: x * ((p["k"] - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3)),
    "a loop": lambda p, x: jax.lax.fori_loop(0, 3, lambda i, x: (x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3), x),
    "a loop beside an input": lambda p, x: jax.lax.fori_loop(
        0, 3, lambda i, h: (x + h - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3), x
    ),
    "twice": lambda p, x: sum((x**n - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3) for n in (1, 2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_leaves_are_no_statistics(name):
    params, x = {"m": jnp.ones(3), "v": jnp.ones(3), "k": jnp.ones((3, 3))}, jnp.ones((3, 3)) + jnp.eye(3)
    with pytest.raises(
        ValueError, match=r"reestimated: no running statistics in apply\(params, \*inputs\): looked for"
    ):
        reestimated(REFUSED[name], params, (x,))


def test_a_leaf_that_looks_alike_stays_beside_true_statistics():
    def apply(p, x):
        z = (x - p["m"]) * jax.lax.rsqrt(p["v"] + 1e-3)
        return (z - p["c"]) * p["s"]

    params = {"m": jnp.ones(3), "v": jnp.ones(3), "c": jnp.ones(3), "s": jnp.ones(3)}
    x = normal(7, 3, seed=0)
    alike(reestimated(apply, params, (x,)), params | {"m": x.mean(0), "v": x.var(0)}, rtol=1e-12)


def mlp(activation="relu", widths=(7, 6, 2)):
    net, x = js.models.MLP(widths, activation), normal(40, 3, seed=9)
    return net, drawn(shapes_of(net, x), 1, num=3), x


def before(params, x):
    """Mean and deviation of the pre-activations of an MLP of three layers with tanh, by hand."""
    found, x = [], np.asarray(x)
    for name in ("Dense_0", "Dense_1"):
        z = x @ np.asarray(params["params"][name]["kernel"]) + np.asarray(params["params"][name]["bias"])
        found.append((z.mean(0), z.std(0)))
        x = np.tanh(z)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_units_spread_as_they_do_in_the_networks(weights, num):
    net, networks, x = mlp("tanh")
    mean = average(networks, weights)
    found = repaired(net.apply, mean, networks, [(rows,) for rows in np.split(x, num)], weights)
    expected = np.average([before(pick(networks, i), x) for i in range(3)], axis=0, weights=weights)
    np.testing.assert_allclose(before(found, x), expected, rtol=1e-6)
    assert abs(before(mean, x) / expected - 1).max() > 0.1
    alike(found["params"]["Dense_2"], mean["params"]["Dense_2"], rtol=0)  # the last layer


def test_channels_of_convolutions_and_of_any_layout():
    """A convolution, columns and rows of kernels, heads, and a number in front of the leaves: by how the units spread."""

    def units(p, x):
        a = jax.lax.conv_general_dilated(x, p["a"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")) + p["ab"]
        b = jnp.einsum("nwc,chd->nwdh", jnp.tanh(a), p["b"].reshape(4, 2, 3)) + 2 * p["bb"]
        c = jax.vmap(jax.vmap(lambda row: p["c"] @ row + p["cb"]))(jnp.tanh(b).reshape(*x.shape[:2], 6))
        d = 0.5 * jnp.einsum("wnc,wcd->nwd", jnp.tanh(c).swapaxes(0, 1), p["d"]) + p["db"][None]
        return a, b, c, d

    def apply(p, x):
        return jnp.tanh(units(p, x)[-1]) @ p["e"]

    shapes = {"a": (3, 2, 4), "ab": (4,), "b": (4, 6), "bb": (3, 2), "c": (5, 6), "cb": (5,)}
    shapes |= {"d": (7, 5, 3), "db": (7, 3), "e": (3, 2)}
    networks = drawn({name: jnp.zeros(shape) for name, shape in shapes.items()}, 0, num=2, scale=0.5)
    x = normal(30, 7, 2, seed=1)
    measured = lambda p: [  # noqa: E731
        moment(z, axis=axes)
        for z, axes in zip(units(p, x), ((0, 1), (0, 1), (0, 1), 0), strict=True)
        for moment in (np.mean, np.std)
    ]
    found = measured(repaired(apply, average(networks), networks, (x,)))
    for one, a, b in zip(found[:6], measured(pick(networks, 0)), measured(pick(networks, 1)), strict=False):
        np.testing.assert_allclose(one, (a + b) / 2, rtol=1e-9, atol=1e-12)


def test_without_a_bias_only_the_scale():
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    networks = {"a": normal(2, 3, 4, seed=0), "b": jnp.ones((2, 4, 1))}
    x = normal(20, 3, seed=1)
    found = repaired(apply, average(networks), networks, (x,))
    spread = [(x @ networks["a"][i]).std(0) for i in range(2)]
    np.testing.assert_allclose((x @ found["a"]).std(0), (spread[0] + spread[1]) / 2, rtol=1e-9)
    ratio = found["a"] / average(networks)["a"]
    np.testing.assert_allclose(ratio, jnp.broadcast_to(ratio[:1], ratio.shape), rtol=1e-9)


def test_constant_units_keep_their_scale():
    net, networks, x = mlp("tanh")
    kernel = networks["params"]["Dense_0"]["kernel"]
    kernel[:, :, 0] = 0  # in all of them
    kernel[2, :, 1] = -kernel[0, :, 1] - kernel[1, :, 1]  # in the average
    for i in range(3):  # in each of them, not in the average: reads but one unit, another one, which is constant there
        kernel[i, :, 2 + i] = 0
        networks["params"]["Dense_1"]["kernel"][i, :, 0] = np.eye(7)[2 + i]
    mean = average(networks)
    whole = repaired(net.apply, mean, networks, (x,))["params"]
    np.testing.assert_allclose(
        whole["Dense_1"]["kernel"][:, 0], mean["params"]["Dense_1"]["kernel"][:, 0], rtol=1e-12, atol=1e-15
    )
    found = whole["Dense_0"]
    np.testing.assert_allclose(found["kernel"][:, :2], mean["params"]["Dense_0"]["kernel"][:, :2], atol=1e-15)
    expected = np.mean([before(pick(networks, i), x)[0, :2] for i in range(3)], axis=0)
    np.testing.assert_allclose(found["bias"][:2], expected, rtol=1e-9)
    assert np.isfinite(found["kernel"]).all()


def test_tied_kernels_and_loops_are_left_alone():
    def apply(p, x):
        x = jnp.tanh(jnp.tanh(x @ p["tied"]) @ p["tied"])
        x = jax.lax.fori_loop(0, 2, lambda i, h: jnp.tanh(jnp.tanh((x + h) @ p["loop"]) @ p["body"]), x)
        return jnp.tanh(x @ p["a"]) @ p["out"]

    still = ("tied", "loop", "body", "out")
    networks = drawn({name: jnp.zeros((3, 3)) for name in (*still, "a")}, 0, num=2)
    mean = average(networks)
    found = repaired(apply, mean, networks, (normal(9, 3, seed=1),))
    alike({name: found[name] for name in still}, {name: mean[name] for name in still}, rtol=0)
    assert abs(found["a"] - mean["a"]).max() > 1e-3


def test_identical_networks_are_left_as_they_are():
    net, params, x = normed()
    params = reestimated(net.apply, params, (x,))
    alike(reestimated(net.apply, params, (x,)), params, rtol=1e-12, atol=1e-12)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
    alike(repaired(net.apply, params, copies, (x,)), params, rtol=1e-9, atol=1e-12)


class Short(nn.Module):
    """Dense, norm, tanh, dense."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.0, use_scale=False, use_bias=False)
        x = nn.Dense(3, use_bias=False)(x)
        return nn.Dense(1)(jnp.tanh(norm(x)))


def in_training(net, params, x):
    return params | net.apply(params, x, train=True, mutable=["batch_stats"])[1]


def test_merged_networks_with_norms():
    net, x = Short(), normal(30, 2, seed=9)
    networks = jax.jit(jax.vmap(lambda params: in_training(net, params, x)))(drawn(shapes_of(net, x), 1, num=2))
    sym = js.discover(net.apply, pick(networks, 0), x)
    found = merge(sym, networks, apply=net.apply, inputs=(x,), repair=True)
    moved = jax.vmap(sym.act)(found.elements, networks)
    expected = repaired(net.apply, average(moved), moved, (x,))
    alike(found.params, reestimated(net.apply, expected, (x,)), rtol=1e-5, atol=1e-6)
    assert (
        abs(found.params["batch_stats"]["BatchNorm_0"]["var"] / expected["batch_stats"]["BatchNorm_0"]["var"] - 1).max()
        > 1e-2
    )


def test_merging_without_norms_repairs_or_is_refused():
    net, networks, x = mlp("tanh", (4, 1))
    weights = [1.0, 2.0, 3.0]
    sym = js.discover(net.apply, pick(networks, 0), x)
    found = merge(sym, networks, weights, apply=net.apply, inputs=[(x[:20],), (x[20:],)], repair=True)
    moved = jax.vmap(sym.act)(found.elements, networks)
    alike(found.params, repaired(net.apply, average(moved, weights), moved, (x,), weights), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"merge: no running statistics in apply\(params, \*inputs\).* repair=True"):
        merge(sym, networks, weights, apply=net.apply, inputs=(x,))


def test_a_group_of_fixed_statistics_is_refused_where_they_are_computed_anew():
    """It shifts a mean and the bias of its norm together; that of training does not."""
    net, x = Normed(), normal(40, 3, seed=9)
    networks = jax.vmap(lambda params: in_training(net, params, x))(drawn(shapes_of(net, x), 1, num=2))
    fixed = js.discover(net.apply, pick(networks, 0), x)
    own = fixed.act(fixed.sample(jax.random.key(5)), pick(networks, 0))
    before, after = (net.apply(reestimated(net.apply, params, (x,)), x) for params in (pick(networks, 0), own))
    assert abs(before - after).max() > 1e-2
    with pytest.raises(
        ValueError, match=r"merge: .* this group is that of fixed statistics. Discover the group in training"
    ):
        merge(fixed, networks, apply=net.apply, inputs=(x,))
    free = js.discover(lambda p, x: net.apply(p, x, train=True, mutable=["batch_stats"])[0], pick(networks, 0), x)
    one = pick(networks, 0)
    copies = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, free.act(free.sample(jax.random.key(6)), one))
    found = merge(free, copies, apply=net.apply, inputs=(x,))
    np.testing.assert_allclose(net.apply(found.params, x), before, rtol=1e-4, atol=1e-5)


def test_what_is_refused():
    net, networks, x = mlp()
    mean = average(networks)
    with pytest.raises(TypeError, match=r"repaired: inputs are of type \w+, expected a tuple of what apply"):
        repaired(net.apply, mean, networks, x)
    with pytest.raises(TypeError, match="reestimated: inputs are an empty list, expected a tuple"):
        reestimated(net.apply, mean, [])
    with pytest.raises(
        ValueError, match=r"repaired: batches of shapes \(\(3, 3\),\) and \(\(2, 3\),\), expected batches of one"
    ):
        repaired(net.apply, mean, networks, [(x[:3],), (x[:2],)])
    with pytest.raises(
        ValueError, match=r"repaired: params/Dense_0/bias has shape \(7,\), expected \(networks, 7\): stack"
    ):
        repaired(net.apply, mean, mean, (x,))
    with pytest.raises(ValueError, match="repaired: networks have no params/Dense_0/bias"):
        repaired(net.apply, mean, {"params": {"Dense_0": {"kernel": networks["params"]["Dense_0"]["kernel"]}}}, (x,))
    with pytest.raises(ValueError, match=r"repaired: weights are .* expected 3 positive numbers"):
        repaired(net.apply, mean, networks, (x,), [1.0])
    with pytest.raises(
        ValueError, match=r"repaired: no hidden layer in apply\(params, \*inputs\): looked for a product"
    ):
        repaired(lambda p, x: x @ p, jnp.ones((3, 2)), jnp.ones((2, 3, 2)), (x,))
    with pytest.raises(ValueError, match=r"reestimated: apply\(params, \*inputs\) fails"):
        reestimated(net.apply, mean, (x[:, :2],))
    with pytest.raises(ValueError, match="inputs: what the layers compute of them is not finite, or too large"):
        repaired(net.apply, mean, networks, [(x,), (np.full_like(x, np.nan),)])
    sym = js.discover(net.apply, mean, x)
    for options in ({"repair": True}, {"apply": net.apply}, {"inputs": (x,), "repair": True}):
        with pytest.raises(ValueError, match="merge: repair and running statistics need both apply"):
            merge(sym, networks, **options)


class Wide(nn.Module):
    """Three dense layers with norms."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(3):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(64, use_bias=False)(x)))
        return nn.Dense(10)(x)


def trained(net, images, labels, seed, steps=800):
    """By Adam on batches of 64, in float32; norms keep statistics."""
    params = net.init(jax.random.key(seed), images)
    rest, optimizer = {k: v for k, v in params.items() if k != "params"}, optax.adam(1e-3)
    options = {"train": True} if rest else {}

    def loss(weights, rest, rows):
        result, kept = net.apply({"params": weights} | rest, images[rows], mutable=["batch_stats"], **options)
        return optax.softmax_cross_entropy_with_integer_labels(result, labels[rows]).mean(), dict(kept)

    def step(carry, key):
        weights, rest, state = carry
        gradient, rest = jax.grad(loss, has_aux=True)(weights, rest, jax.random.randint(key, (64,), 0, len(images)))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, updates), rest, state), None

    start = (params["params"], rest, optimizer.init(params["params"]))
    (weights, rest, _), _ = jax.jit(lambda keys: jax.lax.scan(step, start, keys))(
        jax.random.split(jax.random.key(seed), steps)
    )
    return {"params": weights} | rest


@pytest.mark.long
@pytest.mark.parametrize("net", [js.models.MLP((32, 32, 32, 32, 10), "relu"), Wide()], ids=["mlp", "norms"])
def test_mended_averages_of_trained_networks_are_better(net):
    """The loss of the average of two digit classifiers on images that neither saw: moved, and moved and mended."""
    with jax.enable_x64(False):
        split = js.data.digits()
        (images, labels), (unseen, classes) = (
            (rows.inputs.reshape(len(rows.inputs), -1), rows.targets) for rows in split[:2]
        )
        ends = [trained(net, images, labels, seed) for seed in (0, 1)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ends)
        sym = js.discover(net.apply, ends[0], images[:4])
        batches = [(rows,) for rows in np.split(images[:1200], 4)]

        def loss(params):
            return float(optax.softmax_cross_entropy_with_integer_labels(net.apply(params, unseen), classes).mean())

        found = merge(sym, stacked, reference=0)
        moved = jax.vmap(sym.act)(found.elements, stacked)
        mended = repaired(net.apply, found.params, moved, batches)
        if isinstance(net, Wide):  # where a norm follows, its statistics undo what was repaired
            mended, both = (reestimated(net.apply, each, batches) for each in (found.params, mended))
            assert loss(both) == pytest.approx(loss(mended), rel=1e-3)
        assert max(map(loss, ends)) < loss(mended) < loss(found.params) < loss(average(stacked))
