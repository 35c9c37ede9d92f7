"""Networks on which discovery was once wrong, or fell: what must come out now."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsym as js
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import IMAGES, KEY, X, normal

SQUARE, MASK = normal(4, 4), jax.random.bernoulli(KEY, 0.5, (5, 3))
LAYER = {"a": normal(3, 4), "b": normal(4), "c": normal(4, 2)}
ROWS = {"e": normal(5, 4), "q": normal(4), "c": normal(4, 2)}
STACK = {"s": normal(2, 3, 4)}
MASKED = {"a": normal(3, 3), "b": normal(3), "v": normal(3, 2), "d": normal(2)}
FLIPS = {("sign", 4, 1): 1, ("permutation", 4, 1): 1}
RELU = {("scaling", 4, 1): 1, ("permutation", 4, 1): 1}
CONVOLVED = {"a": normal(3, 3, 1, 4), "b": normal(4), "v": normal(4, 2)}


def relu(p, x):
    return jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]


def power(p, x):
    return jnp.abs(x @ p["a"]) ** 1.37 @ p["c"]


def looked_up(p, tokens, fill):
    return p["e"].at[tokens].get(mode="fill", fill_value=fill)


def masked(p, x, mask):
    return jnp.where(mask, x @ p["a"] + p["b"], -1e9)


def pooled(p, x):
    maps = lax.conv_general_dilated(x, p["a"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["b"]
    return lax.reduce_window(maps, 0.5, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID") @ p["v"]


def shuffled(p, x):
    h = jax.nn.relu(x @ p["a"])
    return (h + h.reshape(-1, 2, 4).transpose(0, 2, 1).reshape(-1, 8)) @ p["c"]


def skew(p, x):
    return x @ p["a"] @ (p["w"] - p["w"].T) @ p["c"]


TRAPS = {
    "a power that is no simple fraction": (power, LAYER, (X,), {**FLIPS, ("scaling", 4, 1): 1}),
    "an output that dwarfs the others": (
        lambda p, x: (power(p, x), jnp.float32(1e12)),
        LAYER,
        (X,),
        {**FLIPS, ("scaling", 4, 1): 1},
    ),
    "a symmetric part that is taken off": (
        skew,
        {"a": normal(3, 4), "w": normal(4, 4), "c": normal(4, 2)},
        (X,),
        {("general_linear", 4, 1): 1, ("scaling", 1, 1): 1, ("sign", 1, 1): 1},
    ),
    "one of a stack": (lambda p, x: x @ p["s"][0], STACK, (X,), {("translation", 4, 3): 1}),
    "one of a stack, with a free direction": (
        lambda p, x: jax.nn.softmax(x @ p["s"][0]),
        STACK,
        (X,),
        {("translation", 4, 3): 1, ("translation", 3, 1): 1},
    ),
    "one of a cut of a stack": (
        lambda p, x: x @ p["s"][:, :, 0:2][:, :, 0].T,
        STACK,
        (X,),
        {("translation", 2, 6): 1, ("translation", 3, 2): 1, ("general_linear", 2, 6): 1},
    ),
    "two of a stack": (
        lambda p, x: jax.nn.relu(x @ p["s"][0]) @ p["t"][0] + jax.nn.relu(x @ p["s"][1]) @ p["t"][1],
        STACK | {"t": normal(2, 4, 2)},
        (X,),
        {("scaling", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
    "a cut across two leaves": (
        lambda p, x: jax.nn.softmax(jnp.concatenate([p["b"], p["c"]])[2:5] + x),
        {"b": normal(3), "c": normal(4)},
        (X,),
        {("translation", 2, 1): 2, ("general_linear", 2, 1): 2},
    ),
    "a cut across two products": (
        lambda p, x: jax.nn.softmax(jnp.concatenate([x @ p["w"], x @ p["v"]], -1)[:, 1:4] + p["b"]),
        {"w": normal(3, 3), "v": normal(3, 3), "b": normal(3)},
        (X,),
        {("translation", 2, 3): 1, ("translation", 1, 1): 1, ("translation", 3, 1): 1, ("general_linear", 2, 1): 1},
    ),
    "rows that do not exist are one": (
        lambda p, t: jax.nn.relu(looked_up(p, t, 1.0) + p["q"]) @ p["c"],
        ROWS,
        (jnp.array([0, 1, 9]),),
        {("permutation", 4, 1): 1},
    ),
    "rows that do not exist are zero": (lambda p, t: looked_up(p, t, 0.0) + p["q"], ROWS, (jnp.array([0, 9]),), {}),
    "a mask before something linear": (lambda p, x, m: masked(p, x, m) @ p["v"] + p["d"], MASKED, (X, MASK), {}),
    "a mask and its maximum before something linear": (
        lambda p, x, m: (masked(p, x, m) - masked(p, x, m).max(-1, keepdims=True)) @ p["v"] + p["d"],
        MASKED,
        (X, MASK),
        {},
    ),
    "a mask before a softmax": (
        lambda p, x, m: jax.nn.softmax(masked(p, x, m)),
        MASKED,
        (X, MASK),
        {("translation", 3, 1): 1, ("translation", 1, 1): 1},
    ),
    "linear but near zero": (
        lambda p, x: (lambda h: jnp.where(jnp.abs(h) > 1e-4, h, 0))(x @ p["a"]) @ p["c"],
        LAYER,
        (X,),
        FLIPS,
    ),
    "linear but far out": (lambda p, x: jnp.clip(x @ p["a"], -1e9, 1e9) @ p["c"], LAYER, (X,), FLIPS),
    "a sum that multiplies": (
        lambda p, x: x * p["b"].sum(),
        {"b": normal(4)},
        (X,),
        {("translation", 3, 1): 1, ("orthogonal", 3, 1): 1},
    ),
    "a small coefficient": (lambda p, x: 1e-10 * (x @ p["a"]), {"a": normal(3, 2)}, (1e10 * X,), {}),
    "a mean along the other axis": (
        lambda p, x: (lambda h: h - h.mean(0)[:, None])(x + p["b"]),
        {"b": normal(4)},
        (SQUARE,),
        {("translation", 1, 1): 1},
    ),
    "a softmax along the other axis": (
        lambda p, x: (jnp.exp(x) / jnp.exp(x).sum(1)[None, :]) @ (x + p["b"]) + p["q"],
        {"b": normal(4), "q": normal(4)},
        (SQUARE,),
        {},
    ),
    "a variance along two axes": (
        lambda p, x: (lambda h: (h**2).mean(0)[None, :] - h.mean(0)[:, None] ** 2)(x + p["b"]),
        {"b": normal(4)},
        (SQUARE,),
        {},
    ),
    "an imaginary factor": (lambda p, x: (x @ p["a"]) * 1j, LAYER, (X,), {}),
    "a window with gaps": (
        lambda p, x: (
            lax.reduce_window(x + p["b"], 0.0, lax.add, (1, 2), (1, 1), ((0, 0), (0, 0)), base_dilation=(1, 2)) + p["c"]
        ),
        {"b": jnp.float32(0.3), "c": jnp.float32(0.7)},
        (SQUARE,),
        {},
    ),
    "a channel shuffle": (
        shuffled,
        {"a": normal(3, 8), "c": normal(8, 2)},
        (X,),
        {("scaling", 2, 1): 1, ("permutation", 2, 1): 1},
    ),
    "a slice that cuts through groups": (
        lambda p, x: (
            (lambda h: jnp.where(h[0, 0] > 0, jnp.tanh(h @ p["w"]), jnp.sin(h @ p["w"])))(
                jnp.tanh(x @ p["a"]).reshape(5, 2, 2).reshape(5, 4)
            )
            @ p["c"]
        ),
        {"a": normal(3, 4), "w": normal(4, 4), "c": normal(4, 2)},
        (X,),
        {("sign", 4, 1): 1, ("permutation", 4, 1): 1},
    ),
    "a layer of no units": (relu, {"a": normal(3, 0), "b": normal(0), "c": normal(0, 2)}, (X,), {}),
    "rows that are looked up along their own index": (
        lambda p, x: jnp.take_along_axis(x, jnp.zeros((5, 2), int) + jnp.arange(2), 1).reshape(-1) @ p["v"],
        {"v": normal(10, 3)},
        (X,),
        {},
    ),
    "a reshape of nothing": (
        lambda p, x: jnp.pad(relu(p, x), ((0, 0), (1, 1)), mode="edge") + jnp.zeros((0, 3)).reshape(0, 1, 3).sum(),
        LAYER,
        (X,),
        RELU,
    ),
    "a leaf without numbers": (
        lambda p, x: relu(p, x) + p["e"].sum(),
        LAYER | {"e": jnp.zeros((0, 3))},
        (X,),
        RELU,
    ),
    "a key among the outputs": (
        lambda p, x, key: (relu(p, x), jax.random.split(key)[0]),
        LAYER,
        (X, jax.random.key(0)),
        RELU,
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps(name):
    apply, params, inputs, expected = TRAPS[name]
    sym = js.discover(apply, params, *inputs)  # a factor that is dropped warns, and a warning is an error here
    assert collections.Counter((f.kind, f.size, f.copies) for f in sym.factors) == expected
    with jax.enable_x64(True):
        point = perturbed(jax.random.key(1), wide(params))
        g, h = (sym.sample(key) for key in jax.random.split(jax.random.key(2)))
        chex.assert_trees_all_close(sym.act(sym.compose(g, h), point), sym.act(g, sym.act(h, point)), rtol=1e-8)


def centred(h):
    return h - h.mean(-1, keepdims=True)


def alike(p, x):
    """Four copies of one number, which no change of basis of what reads them tells apart from another four."""
    return jnp.broadcast_to((x @ p["a"])[:, :1], (5, 4))


ALIKE = {  # operations that hand on an axis along which all is the same
    "neg": lambda p, x: -alike(p, x) @ p["c"],
    "slice": lambda p, x: alike(p, x)[:3] @ p["c"],
    "split": lambda p, x: jnp.split(alike(p, x), [2], 0)[0] @ p["c"],
    "squeeze": lambda p, x: lax.squeeze(alike(p, x)[:1], (0,)) @ p["c"],
    "rev": lambda p, x: lax.rev(alike(p, x), (0,)) @ p["c"],
    "cumsum": lambda p, x: jnp.cumsum(alike(p, x), 0) @ p["c"],
    "pad": lambda p, x: jnp.pad(alike(p, x), ((1, 0), (0, 0))) @ p["c"],
    "gather": lambda p, x: (x @ p["a"])[:, jnp.array([1, 1, 1, 1])] @ p["c"],
    "gather of rows": lambda p, x: alike(p, x)[jnp.array([1, 0, 1])] @ p["c"],
    "dynamic slice": lambda p, x: lax.dynamic_slice(alike(p, x), (jnp.argmax(x[:, 0]), 0), (2, 4)) @ p["c"],
    "scan in": lambda p, x: lax.scan(lambda c, h: (c, h @ p["c"]), 0.0, alike(p, x))[1],
    "scan out": lambda p, x: lax.scan(lambda c, h: (c, jnp.broadcast_to((h @ p["a"])[:1], (4,))), 0.0, x)[1] @ p["c"],
    "tile": lambda p, x: jnp.tile((x @ p["a"])[:, :1], (1, 4)) @ p["c"],
    "convolution": lambda p, x: lax.conv_general_dilated(
        jnp.broadcast_to(alike(p, x)[:, None], (5, 3, 4)),
        p["c"][None],
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_alike_has_no_basis(name):
    params = {"a": normal(3, 2), "c": normal(4, 2)}
    sym = js.discover(ALIKE[name], params, X)
    found = [factor.kind for factor in sym.factors for slot in factor.slots if slot.path == ("c",) and factor.size == 4]
    assert found == ["permutation"]


TOGETHER = {
    "stack": lambda p, h: jnp.stack([h, h**3], 1).reshape(5, -1) @ p["c"],
    "stack at the end": lambda p, h: jnp.einsum("bji,ijk->bk", jnp.stack([h, h**3], -1), p["c"].reshape(2, 4, 2)),
    "tile": lambda p, h: jnp.tile(h, (1, 2)) @ p["c"] + h @ p["d"],
}


@pytest.mark.parametrize("name", TOGETHER)
def test_operations_that_newer_versions_write_in_one(name):
    """``stack`` and ``tile`` are what they do together with others: a unit and what is made of it move alike."""
    params = {"a": normal(3, 4), "c": normal(8, 2)} | ({"d": normal(4, 2)} if name == "tile" else {})
    sym = js.discover(lambda p, x: TOGETHER[name](p, jnp.tanh(x @ p["a"])), params, X)
    copies = {("permutation", 2, 4): 1} if name == "tile" else {}
    assert collections.Counter((f.kind, f.size, f.copies) for f in sym.factors) == FLIPS | copies


OVERLAPS = {
    "rows and columns of embeddings": (
        lambda p, t: jnp.tanh(centred(p["e"][t] + p["q"]) @ p["a"]) @ p["c"],
        {"e": normal(7, 6), "q": normal(4, 6), "a": normal(6, 5), "c": normal(5, 2)},
        (jax.random.randint(KEY, (3, 4), 0, 7),),
        32,
    ),
    "a kernel between two norms": (
        lambda p, x: jnp.tanh(centred(centred(x @ p["a"]) @ p["w"])) @ p["c"],
        {"a": normal(3, 6), "w": normal(6, 5), "c": normal(5, 2)},
        (X,),
        24,
    ),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_no_direction_is_counted_twice(name):
    apply, params, inputs, dim = OVERLAPS[name]
    sym = js.discover(apply, params, *inputs)
    with jax.enable_x64(True):
        tangents = jax.tree.leaves(sym.tangents(perturbed(jax.random.key(1), wide(params))))
        rank = np.linalg.matrix_rank(np.concatenate([np.reshape(leaf, (sym.dim, -1)) for leaf in tangents], 1))
    assert sym.dim == rank == dim


@pytest.mark.parametrize(
    ("apply", "params", "x", "primitive"),
    [
        (lambda p, x: lax.reduce(relu(p, x), 0.0, lambda u, v: jnp.sqrt(u * u + v * v), (1,)), LAYER, X, "reduce"),
        (pooled, CONVOLVED, IMAGES, "reduce_window"),
    ],
)
def test_general_reductions_pin(apply, params, x, primitive):
    with pytest.warns(UserWarning, match=f"no rule for the primitive {primitive};"):
        sym = js.discover(apply, params, x)
    assert sym.verified


def test_a_print_is_passed_over(capsys):
    sym = js.discover(lambda p, x: (jax.debug.print("{}", x[0, 0]), relu(p, x))[1], LAYER, X)
    assert sym.order == 24
    capsys.readouterr()
