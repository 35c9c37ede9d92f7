"""Alignment by activations: assignments of correlations and distances that NumPy gives, too; batches; what was moved comes back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxsym as js
from jaxsym.alignment import align
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS

LONG = (
    "cnn",
    "attention",
    "causal attention",
    "group norm",
    "layer norm",
    "experts",
    "stacked layers",
    "rnn",
    "transformer",
)
SLOPES = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}


def perceptrons(activation, widths=(6, 5, 2), num=2):
    """A perceptron with its group, inputs, and networks with normal kernels and biases."""
    net, x = js.models.MLP(widths, activation), np.asarray(jax.random.normal(jax.random.key(7), (40, 3)))
    params = net.init(jax.random.key(0), x)
    with jax.enable_x64(True):
        some = [jax.device_get(perturbed(jax.random.key(seed), wide(params), 1.0)) for seed in range(num)]
    return net, js.discover(net.apply, params, x[:4]), x, some


def hidden(params, x, activation):
    """What the two hidden layers compute, ``[units, rows]``, by hand."""
    found = []
    for name in ("Dense_0", "Dense_1"):
        layer = {leaf: np.asarray(values) for leaf, values in params["params"][name].items()}
        x = SLOPES[activation](x @ layer["kernel"] + layer["bias"])
        found.append(x.T)
    return found


def liked(one, other, measure):
    """Correlations, or minus mean squared distances, of all pairs of rows."""
    if measure == "distance":
        return -((one[:, None] - other[None]) ** 2).mean(-1)
    centred = [side - side.mean(1, keepdims=True) for side in (one, other)]
    spread = np.outer(*(np.sqrt((side**2).mean(1)) for side in centred))
    product = centred[0] @ centred[1].T / one.shape[1]
    return np.divide(product, spread, out=np.zeros_like(product), where=spread > 0)


@pytest.mark.parametrize("measure", ["correlation", "distance"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_assignment_is_that_of_what_units_compute(activation, measure):
    net, sym, x, (a, b) = perceptrons(activation)
    with jax.enable_x64(True):
        a, b = (jax.device_get(js.symmetry.balance(sym, params)) for params in (a, b))
        found = align(sym, a, b, objective="activations", apply=net.apply, inputs=(x,), measure=measure)
    movers = [np.asarray(part) for part, f in zip(found.element, sym.factors, strict=True) if f.kind == "permutation"]
    for order, one, other in zip(movers, hidden(a, x, activation), hidden(b, x, activation), strict=True):
        ways = [1, -1] if activation == "tanh" else [1]  # a unit of tanh may be turned around
        gain = np.max([liked(one, way * other, measure) for way in ways], axis=0)
        best = scipy.optimize.linear_sum_assignment(gain, maximize=True)[1]
        rows = np.arange(len(order))
        assert gain[rows, order].sum() == pytest.approx(gain[rows, best].sum(), rel=1e-9)
    assert found.start == "activations"
    moved = hidden(found.params, x, activation)
    if activation == "tanh":  # signs are those that make units more alike
        for one, other in zip(hidden(a, x, activation), moved, strict=True):
            assert (np.diag(liked(one, other, measure)) > np.diag(liked(one, -other, measure))).all()


@pytest.mark.parametrize("measure", ["correlation", "distance"])
def test_batches_count_as_one(measure):
    net, sym, x, (a, b) = perceptrons("tanh")
    options = {"objective": "activations", "apply": net.apply, "measure": measure}
    whole = align(sym, a, b, inputs=(x,), **options)
    parts = align(sym, a, b, inputs=[(x[:20],), (x[20:],)], **options)
    for one, other in zip(whole.element, parts.element, strict=True):
        np.testing.assert_array_equal(one, other)
    other = align(sym, a, b, inputs=(x[:5],), **options)  # fewer rows say something else
    assert any((np.asarray(one) != two).any() for one, two in zip(whole.element, other.element, strict=True))


def many(x):
    """Fifty rows of random inputs, of integers those that were given."""
    key, shape = jax.random.key(4), (50, *np.shape(x)[1:])
    if jnp.issubdtype(jnp.result_type(x), jnp.integer):
        return np.asarray(jax.random.randint(key, shape, 0, int(np.max(x)) + 1))
    return np.asarray(jax.random.normal(key, shape))


@pytest.mark.parametrize("name", ["relu", "tanh", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_what_was_moved_comes_back(name):
    with jax.enable_x64(True):
        network = BUILDERS[name]()
        sym = js.discover(network.apply, network.params, *network.inputs)
        params = jax.device_get(perturbed(jax.random.key(3), wide(network.params), 1.0))
        inputs = tuple(many(x) for x in network.inputs)
        moved = sym.act(jax.device_get(sym.sample(jax.random.key(5))), params)
        found = align(sym, params, moved, objective="activations", apply=network.apply, inputs=inputs)
        size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params)))
        assert found.distance < 1e-8 * size


class Grouped(nn.Module):
    """Units in two groups, which are copies of one another."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.GroupNorm(num_groups=2)(nn.Dense(6)(x))))


class Upright(nn.Module):
    """Signs of inputs, which no permutation moves, behind LayerNorm."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(4)(nn.LayerNorm()(x))))


class Causal(nn.Module):
    """Attention with a mask that is made in the program."""

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        return nn.Dense(2)(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x, x, mask=mask))


class Tilted(nn.Module):
    """Batch statistics."""

    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))))


def experts(params, x):
    return jnp.einsum("beh,eho->bo", jnp.tanh(jnp.einsum("bi,eih->beh", x, params["a"])), params["b"])


def scanned(params, x):
    """Residual layers whose hidden units never leave a loop."""
    return jax.lax.scan(lambda h, layer: (h + jnp.tanh(h @ layer["a"]) @ layer["b"], None), x, params)[0]


HIDDEN = {"a": (3, 3, 4), "b": (3, 4, 3)}


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (scanned, (40, 3)),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in [(Grouped(), (40, 3)), (Upright(), (40, 3)), (Causal(), (10, 5, 3)), (experts, (40, 3))]
        ),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_is_seen_and_what_is_not_comes_back(net, shape):
    with jax.enable_x64(True):
        x = np.asarray(jax.random.normal(jax.random.key(7), shape))
        key = jax.random.key(1)
        apply = net.apply if isinstance(net, nn.Module) else net
        begun = net.init(key, x) if apply is not net else {n: jax.random.normal(key, s) for n, s in HIDDEN.items()}
        params = jax.device_get(perturbed(jax.random.key(3), wide(begun), 1.0))
        sym = js.discover(apply, params, x)
        for seed in range(2):
            moved = sym.act(jax.device_get(sym.sample(jax.random.key(seed))), params)
            found = align(sym, params, moved, objective="activations", apply=apply, inputs=(x,))
            size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params)))
            assert found.distance < 1e-8 * size


def test_a_specification_that_is_wrong_is_refused():
    """By the first function that sees it: its bias stays where it is."""
    net, _, x, (a, b) = perceptrons("tanh", (6, 2))
    axes = {
        "Dense_0/kernel": (None, "P"),
        "Dense_0/bias": (None,),
        "Dense_1/kernel": ("P", None),
        "Dense_1/bias": (None,),
    }
    with pytest.raises(ValueError, match=r"align: apply computes something else once a network is moved by the group"):
        align(js.Symmetry.from_spec(axes, a), a, b, objective="activations", apply=net.apply, inputs=(x,))


@pytest.mark.long
def test_a_function_that_the_group_changes_is_refused():
    """Running statistics stay where they are when a network in training is moved: in evaluation that is another function."""
    net, x = Tilted(), np.asarray(jax.random.normal(jax.random.key(7), (40, 3)))
    params = net.init(jax.random.key(0), x, train=False)
    training = lambda params, x: net.apply(params, x, mutable=["batch_stats"])[0]  # noqa: E731
    sym = js.discover(training, params, x)
    evaluation = lambda params, x: net.apply(params, x, train=False)  # noqa: E731
    with pytest.raises(ValueError, match=r"align: apply computes something else once a network is moved .*in training"):
        align(sym, params, params, objective="activations", apply=evaluation, inputs=(x,))
    assert align(sym, params, params, objective="activations", apply=training, inputs=(x,)).distance < 1e-5


def test_signs_that_are_not_seen_are_those_of_weights():
    """Before batch statistics, which undo the sign of what they normalise, and ReLU: units go together that are alike, not those that are opposite."""
    x = np.asarray(jax.random.normal(jax.random.key(7), (200, 3)))

    def apply(params, x):
        z = x @ params["kernel"]
        z = params["gain"] * (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5) + params["bias"]
        return jax.nn.relu(z) @ params["last"]

    shapes = {"kernel": (3, 6), "gain": (6,), "bias": (6,), "last": (6, 2)}
    with jax.enable_x64(True):
        a, b = (
            {
                name: np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), shape))
                for i, (name, shape) in enumerate(shapes.items())
            }
            for seed in range(2)
        )
        sym = js.discover(apply, a, x)
        assert {factor.kind for factor in sym.factors} >= {"permutation", "sign"}
        found = align(sym, a, b, objective="activations", apply=apply, inputs=(x,))
    moved = {name: np.asarray(leaf) for name, leaf in found.params.items()}
    gain = liked(*(normalized(params, x) for params in (a, moved)), "correlation")
    best = scipy.optimize.linear_sum_assignment(gain, maximize=True)[1]
    assert np.trace(gain) == pytest.approx(gain[np.arange(6), best].sum(), rel=1e-6)
    together = (a["kernel"] * moved["kernel"]).sum(0) + a["gain"] * moved["gain"]
    assert (together >= 0).all()


def normalized(params, x):
    """What units behind batch statistics compute, ``[units, rows]``, by hand."""
    z = x @ params["kernel"]
    return np.maximum(params["gain"] * (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) + params["bias"], 0).T


def test_a_dead_unit_goes_with_what_is_left():
    net, sym, x, (a, b) = perceptrons("relu")
    a, b = (jax.tree.map(np.array, params) for params in (a, b))
    for params in (a, b):
        params["params"]["Dense_0"]["bias"][2] = -1e3
    found = align(sym, a, b, objective="activations", apply=net.apply, inputs=(x,))
    order = next(
        np.asarray(p)
        for p, f in zip(found.element, sym.factors, strict=True)
        if f.kind == "permutation" and f.size == 6
    )
    assert sorted(order) == list(range(6))
    assert np.isfinite(found.distance)


def test_what_is_refused():
    net, sym, x, (a, b) = perceptrons("relu")
    with pytest.raises(ValueError, match="align: activations need apply, the network's function, and inputs"):
        align(sym, a, b, objective="activations", inputs=(x,))
    with pytest.raises(ValueError, match=r"align: what the units of .* compute is not finite"):
        align(sym, a, b, objective="activations", apply=net.apply, inputs=(np.full_like(x, np.nan),))
    with pytest.raises(TypeError, match="align: inputs are of type ndarray"):
        align(sym, a, b, objective="activations", apply=net.apply, inputs=x)
    with pytest.raises(ValueError, match="align: measure is 'cosine', expected 'correlation' or 'distance'"):
        align(sym, a, b, objective="activations", apply=net.apply, inputs=(x,), measure="cosine")
    with pytest.raises(TypeError, match="align: inputs are of type ndarray, expected a tuple"):
        align(sym, a, b, objective="activations", apply=net.apply, inputs=[x])
