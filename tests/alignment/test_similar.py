"""Alignment by activations: assignments of correlations and distances that NumPy gives, too; batches; what was moved comes back."""

import jax
import numpy as np
import pytest
import scipy.optimize

import jaxsym as js
from jaxsym.alignment import align
from jaxsym.symmetry.verify import perturbed, wide
from tests.symmetry.networks import BUILDERS

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


@pytest.mark.parametrize("measure", ["correlation", "distance"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_assignment_is_that_of_what_units_compute(activation, measure):
    net, sym, x, (a, b) = perceptrons(activation)
    with jax.enable_x64(True):
        a, b = (jax.device_get(js.symmetry.balance(sym, params)) for params in (a, b))
        found = align(sym, a, b, objective="activations", apply=net.apply, inputs=(x,), measure=measure)
    movers = [np.asarray(part) for part, f in zip(found.element, sym.factors, strict=True) if f.kind == "permutation"]
    for order, one, other in zip(movers, hidden(a, x, activation), hidden(b, x, activation), strict=True):
        if measure == "correlation":
            size = len(one)
            spread = np.outer(one.std(1), other.std(1))
            gain = np.divide(
                (one - one.mean(1, keepdims=True)) @ (other - other.mean(1, keepdims=True)).T,
                spread * 40,
                out=np.zeros((size, size)),
                where=spread > 0,
            )
        else:
            gain = -((one[:, None] - other[None]) ** 2).mean(-1)
        gain = np.abs(gain) if activation == "tanh" else gain
        best = scipy.optimize.linear_sum_assignment(gain, maximize=True)[1]
        rows = np.arange(len(order))
        assert gain[rows, order].sum() == pytest.approx(gain[rows, best].sum(), rel=1e-9)
    assert found.start == "activations"
    moved = hidden(found.params, x, activation)
    if activation == "tanh" and measure == "correlation":  # signs are those that make correlations positive
        for one, other in zip(hidden(a, x, activation), moved, strict=True):
            assert all(np.corrcoef(u, v)[0, 1] > 0 for u, v in zip(one, other, strict=True))


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


@pytest.mark.parametrize(
    "name", ["relu", "tanh", *(pytest.param(name, marks=pytest.mark.long) for name in ("cnn", "attention", "rnn"))]
)
def test_what_was_moved_comes_back(name):
    with jax.enable_x64(True):
        network = BUILDERS[name]()
        sym = js.discover(network.apply, network.params, *network.inputs)
        params = jax.device_get(perturbed(jax.random.key(3), wide(network.params), 1.0))
        inputs = tuple(np.asarray(jax.random.normal(jax.random.key(4), (50, *np.shape(x)[1:]))) for x in network.inputs)
        moved = sym.act(jax.device_get(sym.sample(jax.random.key(5))), params)
        found = align(sym, params, moved, objective="activations", apply=network.apply, inputs=inputs)
        size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params)))
        assert found.distance < 1e-8 * size


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
    with pytest.raises(ValueError, match="align: measure is 'cosine', expected 'correlation' or 'distance'"):
        align(sym, a, b, objective="activations", apply=net.apply, inputs=(x,), measure="cosine")
    with pytest.raises(TypeError, match="align: inputs are of type ndarray, expected a tuple"):
        align(sym, a, b, objective="activations", apply=net.apply, inputs=[x])
