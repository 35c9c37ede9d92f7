"""What discovery refuses, with the path, what was got, what was expected and what to do; and what it takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

import jaxsym as js
from jaxsym.symmetry.checks import checked

X = jax.random.normal(jax.random.key(0), (5, 3))
PARAMS = {"a": jax.random.normal(jax.random.key(1), (3, 4)), "b": jax.random.normal(jax.random.key(2), (4, 2))}


def apply(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(4)(x)))


def refused(error, *said, apply=apply, params=PARAMS, inputs=(X,)):
    with pytest.raises(error) as caught:
        checked(apply, params, inputs)
    message = str(caught.value)
    assert message.startswith("discover: ")
    assert "\n" not in message
    for words in said:
        assert words in message
    return caught.value


@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        FrozenDict(PARAMS),
        jax.tree.map(np.asarray, PARAMS),
        jax.eval_shape(lambda: PARAMS),
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS),
        PARAMS | {"static": None},  # as in a partitioned Equinox model
        PARAMS | {"number": 1.5},
    ],
)
def test_what_is_taken(params):
    assert checked(apply, params, (X,)) == ()


def test_what_no_group_moves_is_named():
    more = {"step": jnp.array(3), "mask": np.ones(4, bool), "count": 7, "flag": True, "key": jax.random.key(0)}
    assert checked(apply, PARAMS | {"state": more}, (X,)) == tuple(f"state/{name}" for name in sorted(more))
    shapes = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    assert checked(apply, PARAMS | shapes, (X,)) == ("step",)


def test_apply_is_a_function():
    refused(TypeError, "apply is of type dict, expected a function apply(params, *inputs)", apply=PARAMS)
    refused(TypeError, "apply is the text 'relu'", apply="relu")
    params = Net().init(jax.random.key(0), X)
    refused(ValueError, "fails", "of a module pass its .apply", apply=Net(), params=params)


@pytest.mark.parametrize(
    ("leaf", "got"),
    [
        ("relu", "the text 'relu'"),
        (object(), "of type object"),
        (np.array(["a"]), "an array of dtype <U1"),
        (np.array([None]), "an array of dtype object"),
        (jnp.tanh, "of type"),
    ],
)
def test_leaves_are_arrays(leaf, got):
    refused(TypeError, f"layer/c is {got}", "expected an array", params=PARAMS | {"layer": {"c": leaf}})
    refused(TypeError, f"inputs/1 is {got}", inputs=(X, leaf))


def test_complex_parameters():
    refused(ValueError, "b is complex64[4,2], expected real numbers", params=PARAMS | {"b": PARAMS["b"] + 1j})
    shape = jax.ShapeDtypeStruct((4, 2), jnp.complex64)
    refused(ValueError, "b is complex64[4,2], expected real numbers", params=PARAMS | {"b": shape})


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_that_are_not_finite(value, dtype):
    broken = PARAMS["b"].at[1, 0].set(value).astype(dtype)
    said = f"b ({dtype}[4,2]) has 1 entries that are NaN or infinite"
    refused(ValueError, said, "initialise it again", params=PARAMS | {"b": broken})


def test_parameters_that_do_not_fit():
    error = refused(
        ValueError,
        "TypeError: dot_general requires contracting dimensions",
        "params: a float32[3,4], b float32[5,2]; inputs: float32[5,3].",
        "Pass parameters and inputs that fit this function.",
        params=PARAMS | {"b": jnp.ones((5, 2))},
    )
    assert isinstance(error.__cause__, TypeError)
    refused(ValueError, "KeyError: 'b'", "params: a float32[3,4];", params={"a": PARAMS["a"]})
    refused(ValueError, "missing 1 required positional argument: 'x'", "inputs: none", inputs=())


@pytest.mark.parametrize("wrap", [dict, FrozenDict])
def test_a_module_whose_parameters_are_missing(wrap):
    params = Net().init(jax.random.key(0), X)["params"]
    error = refused(
        ValueError,
        "ScopeParamNotFoundError",
        'Could not find parameter named "kernel" in scope "/Dense_0"',
        "params: params/Dense_1/bias float32[4], params/Dense_1/kernel float32[3,4];",
        apply=Net().apply,
        params=wrap({"params": {"Dense_1": params["Dense_1"]}}),
    )
    assert type(error.__cause__).__name__ == "ScopeParamNotFoundError"


def test_none_in_place_of_a_leaf_is_named_where_apply_fails():
    refused(ValueError, "None stands in place of layer/b.", params={"a": PARAMS["a"], "layer": {"b": None}})


def test_a_long_list_and_a_long_message_are_cut():
    params = {f"p{i:02}": jnp.ones(i) for i in range(30)}

    def fails(params, x):
        raise RuntimeError("much\n" * 1000)

    error = refused(ValueError, "RuntimeError: much much", "p07 float32[7] and 22 more", apply=fails, params=params)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("nothing", [None, {}, (), jnp.zeros((0, 3))])
def test_apply_returns_nothing(nothing):
    refused(ValueError, "apply returns", "expected at least one number as output", apply=lambda p, x: nothing)


def test_outputs_that_are_not_finite():
    with pytest.raises(ValueError, match="the outputs are not finite; choose parameters and inputs"):
        js.discover(lambda p, x: jnp.log(-jnp.abs(apply(p, x))), PARAMS, X)
    with pytest.raises(ValueError, match="the outputs are not finite"):
        js.discover(lambda p, x: {"loss": jnp.inf * x.sum(), "logits": apply(p, x)}, PARAMS, X)
    shapes = jax.eval_shape(lambda: PARAMS)
    assert not js.discover(lambda p, x: jnp.log(-jnp.abs(apply(p, x))), shapes, X).verified
