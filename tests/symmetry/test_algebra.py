"""The black-box algebra against closed forms, and discovery against the algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.models import MLP, GatedMLP
from jaxsym.symmetry import lie_algebra
from jaxsym.symmetry.host import svd
from tests.symmetry.networks import ATTENTION, BUILDERS, SEQUENCE, TOKENS, X, normal


def both(net, x):
    return net.apply, net.init(jax.random.key(0), x), (x,)


def weight_norm(p, x):
    return jax.nn.relu(x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0))) @ p["out"]


DIMENSIONS = {  # builder, dim of the vector fields, dim of the orbit
    "relu": (lambda: both(MLP((4, 5, 2), "relu"), X), 4 + 5, 9),
    "tanh": (lambda: both(MLP((4, 5, 2), "tanh"), X), 0, 0),
    "relu6": (lambda: both(MLP((4, 5, 2), "relu6"), X), 0, 0),
    "square": (lambda: both(MLP((4, 2), "square"), X), 4, 4),  # what bends an output bias is not linear
    # gl(4) + gl(5) and a shift of each hidden layer. The stabiliser: n w' with A n = 0 and w' B C = 0 (2), k z' with B k = 0 and z' C = 0 (3)
    "identity": (lambda: both(MLP((4, 5, 2), "identity"), X), 16 + 25 + 4 + 5, 50 - 5),
    "linear": (lambda: both(MLP((4, 2), "identity", use_bias=False), X), 16, 14),  # a stabiliser of 2
    "swiglu": (lambda: both(GatedMLP(4, 2), X), 4, 4),
    "weight norm": (lambda: (weight_norm, {"g": normal(4), "v": normal(3, 4), "out": normal(4, 2)}, (X,)), 8, 8),
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_dimensions(name):
    build, dim, orbit = DIMENSIONS[name]
    apply, params, inputs = build()
    found = lie_algebra(apply, params, *inputs)
    assert (found.dim, found.orbit_dim, len(found.generators)) == (dim, orbit, dim)


def test_attention_has_the_kernel_of_the_oracles():
    """16 for the changes of basis of two heads, 4 for key biases, 4 for value biases that the output's takes up."""
    apply, params, inputs = both(ATTENTION, SEQUENCE)
    assert lie_algebra(apply, params, *inputs).orbit_dim == 24


def test_generators_are_readable_and_move_nothing():
    """One rescaling a unit: its column and bias against its row."""
    apply, params, inputs = both(MLP((4, 3), "relu"), X)
    found = lie_algebra(apply, params, *inputs)
    column, bias, row = "params/Dense_0/kernel axis 1", "params/Dense_0/bias axis 0", "params/Dense_1/kernel axis 0"
    units = np.zeros(4)
    for generator in found.generators:
        assert set(generator) == {column, bias, row}
        np.testing.assert_allclose(generator[column], generator[bias], atol=1e-9)
        np.testing.assert_allclose(generator[column], -generator[row], atol=1e-9)
        units += np.abs(np.diag(generator[column] / np.abs(generator[column]).max()))
    np.testing.assert_allclose(units, 1)
    with jax.enable_x64(True):
        tangents = found.tangents(params)
        outputs = lambda p: apply(jax.tree.map(jnp.float64, p), jnp.float64(X))  # noqa: E731
        wide = jax.tree.map(jnp.float64, params)
        change = jax.vmap(lambda t: jax.jvp(outputs, (wide,), (t,))[1])(tangents)
        np.testing.assert_allclose(change, 0, atol=1e-9)
        np.testing.assert_allclose(tangents["params"]["Dense_0"]["kernel"].shape, (4, 3, 4))


def test_what_holds_on_the_given_inputs_only_is_no_symmetry():
    """One input cannot tell three weights."""
    found = lie_algebra(lambda p, x: x @ p["w"], {"w": normal(3, 2)}, X[:1])
    assert found.dim == 0


def test_many_equations_that_say_the_same_are_not_enough():
    """The front gives most equations and the linear end has most unknowns: what is found must hold at fresh parameters."""
    params = {"a": normal(3, 3), "b": normal(3), "w": normal(3, 6), "h": normal(2, 2), "o": normal(6, 2)}

    def apply(p, x):
        hidden = (x + jax.nn.silu(x @ p["a"] + p["b"])) @ p["w"]
        return jnp.einsum("ngi,gh->nhi", hidden.reshape(-1, 2, 3), p["h"]).reshape(-1, 6) @ p["o"]

    found = lie_algebra(apply, params, X)
    # gl(2) on either side of h, gl(3) beside it, less c, 1/c and c
    assert found.orbit_dim == 4 + 4 + 9 - 1
    assert found.beyond(js.discover(apply, params, X), params) == 0


def test_an_epsilon_breaks_it():
    def norm(epsilon):
        return lambda p, x: jnp.tanh((h := x @ p["a"]) / jnp.sqrt((h**2).mean(-1, keepdims=True) + epsilon)) @ p["c"]

    params = {"a": normal(3, 4), "c": normal(4, 2)}
    assert [lie_algebra(norm(epsilon), params, X).dim for epsilon in (0.0, 1e-6)] == [1, 0]


def test_integers_and_what_nothing_depends_on():
    params = {"w": normal(3), "step": jnp.arange(2), "unused": normal(2), "none": jnp.zeros((0, 3))}
    found = lie_algebra(lambda p, x: x * p["w"] + p["step"][0], params, X)
    assert found.orbit_dim == 2
    assert found.tangents(params)["step"].shape == (found.dim, 2)
    assert not found.tangents(params)["step"].any()
    assert lie_algebra(lambda p, x: x, {"w": normal(2)}, X).orbit_dim == 2
    assert lie_algebra(lambda p, x: x, {"step": jnp.arange(2)}, X).dim == 0


AGREE = (
    "relu",
    "tanh",
    "relu6",
    "abs",
    "cube without bias",
    "swiglu",
    "weight norm",
    "siamese",
    "cross entropy",
    "tied embedding",
    "relu beside a linear skip",
)
"""Compared every time; the others by ``scripts/test --all``."""
BEYOND = {"cnn": 4}
"""A running variance and its epsilon, multiplied together, against the gain: affine in the variance, and not found."""
LARGE = ("cnn in training", "group norm", "unet")
"""More than 3000 unknowns."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in AGREE else pytest.mark.long) for name in BUILDERS if name not in LARGE],
)
def test_discovery_finds_all_that_the_algebra_does(name):
    network = BUILDERS[name]()
    inputs = [jnp.arange(x.size).reshape(x.shape) % 7 if x is TOKENS else x for x in network.inputs]  # every one
    sym = js.discover(network.apply, network.params, *inputs)
    found = lie_algebra(network.apply, network.params, *inputs)
    assert found.beyond(sym, network.params) == BEYOND.get(name, 0)


def test_what_discovery_left_out_is_counted():
    apply, params, inputs = both(MLP((4, 2), "relu"), X)
    nothing = js.discover(MLP((4, 2), "tanh").apply, params, *inputs)
    assert lie_algebra(apply, params, *inputs).beyond(nothing, params) == 4


def test_it_says_what_moves():
    apply, params, inputs = both(MLP((4, 2), "relu"), X)
    said = str(lie_algebra(apply, params, *inputs))
    assert said.startswith("4 constant generators, orbits of dimension 4")
    assert "params/Dense_0/kernel axis 1" in said


def test_where_the_fast_decomposition_does_not_converge_the_slow_one_does(monkeypatch):
    def fast(*_, **__):
        raise np.linalg.LinAlgError

    matrix = np.asarray(normal(5, 3), float)
    expected = np.linalg.svd(matrix)[1]
    monkeypatch.setattr(np.linalg, "svd", fast)
    left, values, right = svd(matrix)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(left * values @ right, matrix, atol=1e-12)


def test_without_a_gap_it_refuses():
    """A weight that a millionth of a millionth is multiplied with."""
    apply = lambda p, x: x @ p["a"] * (1 + 4e-12 * p["t"]) / jnp.linalg.norm(p["a"])  # noqa: E731
    with pytest.raises(ValueError, match=r"lie_algebra: the equations have no clean gap: .* take other parameters"):
        lie_algebra(apply, {"a": normal(3, 1), "t": jnp.float32(1)}, X)


def test_bad_input():
    apply, params, inputs = both(MLP((40, 2)), X)
    with pytest.raises(ValueError, match=r"lie_algebra: 5081 unknowns, expected at most 3000: take smaller widths"):
        lie_algebra(apply, params, *inputs)
    with pytest.raises(ValueError, match=r"lie_algebra: params/.* is a shape without values"):
        lie_algebra(apply, jax.eval_shape(lambda: params), *inputs)
    with pytest.raises(ValueError, match="lie_algebra: the Jacobian is not finite"):
        lie_algebra(lambda p, x: jnp.sqrt(p["w"] ** 2 - 100), {"w": normal(2)}, X)
    with pytest.raises(TypeError, match="beyond: sym is of type NoneType"):
        lie_algebra(lambda p, x: x * p["w"], {"w": normal(3)}, X).beyond(None, params)
