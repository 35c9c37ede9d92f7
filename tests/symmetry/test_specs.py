"""Permutation specifications by hand: the group that is discovered, and every way to get one wrong."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js

PermutationSpec = namedtuple("PermutationSpec", ["perm_to_axes", "axes_to_perm"])
NET, X = js.models.MLP((4, 4, 2), activation="relu"), jax.random.normal(jax.random.key(0), (6, 4))
PARAMS = NET.init(jax.random.key(1), X)
SPEC = {
    "Dense_0/kernel": (None, "P0"),
    "Dense_0/bias": ("P0",),
    "Dense_1/kernel": ("P0", "P1"),
    "Dense_1/bias": ("P1",),
    "Dense_2/kernel": ("P1", None),
    "Dense_2/bias": (None,),
}


def changed(**leaves):
    return SPEC | {name.replace("__", "/"): axes for name, axes in leaves.items()}


def test_it_is_the_group_that_is_discovered():
    sym = js.Symmetry.from_spec(SPEC, PARAMS, NET.apply, X)
    found = js.discover(NET.apply, PARAMS, X)
    assert sym.verified
    assert sym.order == found.order == 24**2
    assert js.verify(NET.apply, sym, PARAMS, X).ok
    theirs = [factor for factor in found.factors if factor.kind == "permutation"]
    places = lambda factors: {frozenset(("/".join(s.path), s.axis) for s in f.slots) for f in factors}  # noqa: E731
    assert places(sym.factors) == places(theirs)


def test_the_form_that_git_re_basin_has():
    listed = {"P0": [("Dense_0/kernel", 1), ("Dense_0/bias", 0), ("Dense_1/kernel", 0)]}
    listed["P1"] = [("Dense_1/kernel", 1), ("Dense_1/bias", 0), ("Dense_2/kernel", 0)]
    sym = js.Symmetry.from_spec(PermutationSpec(listed, SPEC), PARAMS)
    assert (sym.order, sym.verified) == (24**2, False)
    twice = listed | {"P0": [*listed["P0"], ("Dense_0/bias", 0)]}
    with pytest.raises(ValueError, match="names axis 0 of params/Dense_0/bias twice for P0"):
        js.Symmetry.from_spec(PermutationSpec(twice, SPEC), PARAMS)
    short = listed | {"P1": listed["P1"][:2]}
    with pytest.raises(ValueError, match="P1 acts on axis 0 of params/Dense_2/kernel in axes_to_perm alone"):
        js.Symmetry.from_spec(PermutationSpec(short, SPEC), PARAMS)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({name: axes for name, axes in SPEC.items() if name != "Dense_1/bias"}, "params/Dense_1/bias missing from the specification"),
        (changed(Dense_3__bias=(None,)), "there is no leaf 'Dense_3/bias'"),
        (SPEC | {"params/Dense_0/bias": ("P0",)}, "params/Dense_0/bias is named twice"),
        (changed(Dense_0__bias=("P0", None)), r"params/Dense_0/bias has shape \(4,\), and the specification names 2 axes, expected 1"),
        (changed(Dense_2__kernel=(None, "P1")), "P1 acts on axis 1 of params/Dense_1/kernel, of size 4, and on axis 1 of params/Dense_2/kernel, of size 2"),
    ],
)  # fmt: skip
def test_what_shapes_tell(spec, said):
    with pytest.raises(ValueError, match=said):
        js.Symmetry.from_spec(spec, PARAMS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"Dense_0__kernel": ("P0", None)},  # a wrong axis, where the kernel is square
        {"Dense_0__bias": (None,)},  # a leaf left out
        {"Dense_1__kernel": ("P1", "P0")},
    ],
)
def test_what_only_the_function_tells(wrong):
    js.Symmetry.from_spec(changed(**wrong), PARAMS)
    with pytest.raises(
        ValueError,
        match=r"from_spec: P\d?, the permutation of .*, changes the function, by .* times the size of its outputs",
    ):
        js.Symmetry.from_spec(changed(**wrong), PARAMS, NET.apply, X)


def test_units_of_different_heads_are_not_mixed():
    """Values and their readers in two heads of three: one permutation of all six is wrong, though all sizes agree."""

    def apply(params, x):
        heads = jax.nn.softmax(jnp.einsum("tc,ch,sc->hts", x, params["score"], x))
        values = (x @ params["value"]).reshape(len(x), 2, 3)
        return jnp.einsum("hts,shd->thd", heads, values).reshape(len(x), 6) @ params["out"]

    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"score": (4, 2), "value": (4, 6), "out": (6, 3)}
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    spec = {"score": (None, None), "value": (None, "V"), "out": ("V", None)}
    with pytest.raises(ValueError, match=r"axis 1 of value, axis 0 of out, changes the function.*different heads"):
        js.Symmetry.from_spec(spec, params, apply, X)


def test_what_is_no_specification():
    with pytest.raises(TypeError, match="the specification is of type list"):
        js.Symmetry.from_spec([], PARAMS)
    with pytest.raises(TypeError, match="Dense_0/bias: got 'P0', expected a tuple"):
        js.Symmetry.from_spec(changed(Dense_0__bias="P0"), PARAMS)
    for name in (False, "", ["P0"]):
        with pytest.raises(TypeError, match=r"Dense_0/bias: got .*, expected a tuple"):
            js.Symmetry.from_spec(changed(Dense_0__bias=(name,)), PARAMS)


def test_functions_that_do_not_take_what_is_given():
    with pytest.raises(TypeError, match="from_spec: apply is the text 'apply', expected a function"):
        js.Symmetry.from_spec(changed(), PARAMS, "apply")
    with pytest.raises(ValueError, match=r"from_spec: apply\(params, \*inputs\) fails: TypeError: .* inputs: none"):
        js.Symmetry.from_spec(changed(), PARAMS, lambda params, x: x)
    with pytest.raises(
        ValueError, match="there is no leaf 'Dense_0'; keys are the whole paths of leaves: params/Dense_0/bias"
    ):
        js.Symmetry.from_spec({"Dense_0": {"kernel": (None, "P0")}}, PARAMS)


def test_elements_are_permutations_of_the_axes():
    sym = js.Symmetry.from_spec(SPEC, PARAMS)
    first, second = sym.sample(jax.random.key(3))
    moved, given = (tree["params"]["Dense_1"]["kernel"] for tree in (sym.act((first, second), PARAMS), PARAMS))
    np.testing.assert_array_equal(moved, np.asarray(given)[np.asarray(first)][:, np.asarray(second)])


UNITS = {"u": (3, 2), "b": (2,), "v": (2, 2)}


def drawn(shapes):
    return {n: jax.random.normal(jax.random.key(i), shape) for i, (n, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    "spec",
    [{"u": (None, "P"), "b": (None,), "v": ("P", None)}, {"u": (None, None), "b": (None,), "v": (None, "P")}],
)
def test_two_units_are_enough_to_be_wrong(spec):
    """Of two units a random order is the identity as often as not."""
    params, x = drawn(UNITS), jax.random.normal(jax.random.key(9), (5, 3))
    with pytest.raises(ValueError, match="changes the function"):
        js.Symmetry.from_spec(spec, params, lambda p, x: jnp.tanh(x @ p["u"] + p["b"]) @ p["v"], x)


@pytest.mark.parametrize("mask", [-1e9, -jnp.inf])
def test_masked_outputs_hide_nothing(mask):
    params, x = drawn({"u": (3, 6), "v": (6, 4)}), jax.random.normal(jax.random.key(9), (5, 3))
    apply = lambda p, x: (jnp.zeros(3), jnp.tanh(x @ p["u"]) @ p["v"] + jnp.array([0, 0, 0, mask]), x > 0)  # noqa: E731
    assert js.Symmetry.from_spec({"u": (None, "P"), "v": ("P", None)}, params, apply, x).verified
    with pytest.raises(ValueError, match="changes the function"):
        js.Symmetry.from_spec({"u": (None, "P"), "v": (None, None)}, params, apply, x)


def scaled(params, **factors):
    """A network some of whose leaves are scaled, or shifted by a tuple's second number."""
    leaves = js.tree.leaves(params)
    for name, (factor, shift) in factors.items():
        path = f"params/{name.replace('__', '/')}"
        leaves[path] = factor * leaves[path] + shift
    return js.tree.put(params, leaves)


TANH = js.models.MLP((4, 4, 2), activation="tanh")


@pytest.mark.parametrize(
    ("spec", "params", "apply", "x"),
    [
        (changed(Dense_0__kernel=("IN", "P0")), PARAMS, NET.apply, jnp.ones((4, 4))),  # inputs that are all alike
        (changed(Dense_0__kernel=(None, None)), PARAMS, NET.apply, jnp.zeros((1, 4))),  # ... that see no kernel
        (changed(Dense_1__kernel=(None, "P1")), scaled(PARAMS, Dense_0__bias=(1, -10.0)), NET.apply, X),  # dead units
        (
            changed(Dense_0__bias=(None,)),
            scaled(PARAMS, Dense_0__kernel=(300, 0.0)),
            TANH.apply,
            X[:1],
        ),  # saturated ones
        (changed(Dense_1__bias=(None,)), PARAMS, lambda p, x: 1 + 1e-7 * NET.apply(p, x), X),  # beside a large offset
    ],
)
def test_a_point_at_which_little_is_seen_hides_no_mistake(spec, params, apply, x):
    with pytest.raises(ValueError, match="changes the function"):
        js.Symmetry.from_spec(spec, params, apply, x)


def test_positive_leaves_stay_positive():
    apply = lambda p, x: jax.nn.relu((x @ p["k"] - p["m"]) / jnp.sqrt(p["v"])) @ p["o"]  # noqa: E731
    params = drawn({"k": (3, 4), "m": (4,), "o": (4, 2)}) | {"v": jnp.array([0.1, 0.5, 3.0, 0.2])}
    spec = {"k": (None, "P"), "m": ("P",), "v": ("P",), "o": ("P", None)}
    assert js.Symmetry.from_spec(spec, params, apply, X[:, :3]).verified
    with pytest.raises(ValueError, match="changes the function"):
        js.Symmetry.from_spec(spec | {"v": (None,)}, params, apply, X[:, :3])


def test_a_function_that_refuses_float64():
    def apply(p, x):
        def step(h, row):
            return jnp.tanh(row @ p["a"] + h @ p["b"]), None

        return jax.lax.scan(step, jnp.zeros(4, jnp.float32), x)[0] @ p["c"]

    params = drawn({"a": (4, 4), "b": (4, 4), "c": (4, 2)})
    assert js.Symmetry.from_spec({"a": (None, "P"), "b": ("P", "P"), "c": ("P", None)}, params, apply, X).verified
    with pytest.raises(ValueError, match="changes the function"):
        js.Symmetry.from_spec({"a": (None, "P"), "b": (None, "P"), "c": ("P", None)}, params, apply, X)


def test_outputs_that_are_no_numbers():
    apply = lambda p, x: jnp.log(-jnp.abs(x @ p["u"])) @ p["v"]  # noqa: E731
    with pytest.raises(ValueError, match="from_spec: apply returns NaN at the parameters and inputs that were given"):
        js.Symmetry.from_spec({"u": (None, "P"), "v": ("P", None)}, drawn({"u": (4, 3), "v": (3, 2)}), apply, X)


def test_outputs_that_are_all_rounding():
    """A phase of which rounding moves many turns."""
    apply = lambda p, x: jnp.sin(1e20 * (jnp.tanh(x @ p["u"]) @ p["v"]))  # noqa: E731
    with pytest.raises(ValueError, match=r"from_spec: rounding alone changes the outputs of apply by more than 0.001"):
        js.Symmetry.from_spec({"u": (None, "P"), "v": ("P", None)}, drawn({"u": (4, 3), "v": (3, 2)}), apply, X)


def test_where_the_given_point_is_all_rounding_another_tells():
    """A logistic map, iterated: networks one rounding apart are far apart after eighty steps, but not where all weights are small."""

    def apply(p, x):
        state = jax.nn.sigmoid(jnp.tanh(x @ p["u"]) @ p["v"])
        return jax.lax.fori_loop(0, 80, lambda _, s: 3.99 * s * (1 - s), state)

    params = drawn({"u": (4, 3), "v": (3, 2)})
    assert js.Symmetry.from_spec({"u": (None, "P"), "v": ("P", None)}, params, apply, X).verified
    with pytest.raises(ValueError, match="changes the function"):
        js.Symmetry.from_spec({"u": (None, "P"), "v": (None, None)}, params, apply, X)


def test_a_step_that_rounding_seldom_crosses_refutes_nothing():
    """Sums in another order lie on the other side of a step now and then; what is no symmetry changes the function at each point."""

    def apply(p, x):
        out = (jnp.tanh(x @ p["u"]) @ p["v"]).mean()
        return out + jnp.floor(out * 2.0**50) % 2

    for seed in range(25):  # four of them were refused
        first, second = jax.random.split(jax.random.key(seed))
        params = {"u": jax.random.normal(first, (4, 8)), "v": jax.random.normal(second, (8, 2))}
        inputs = jax.random.normal(jax.random.key(5), (3, 4))
        assert js.Symmetry.from_spec({"u": (None, "P"), "v": ("P", None)}, params, apply, inputs).verified
        with pytest.raises(ValueError, match="changes the function"):
            js.Symmetry.from_spec({"u": (None, "P"), "v": (None, None)}, params, apply, inputs)
