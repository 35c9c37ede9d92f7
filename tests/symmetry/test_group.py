"""Elements on the host and in JAX, under jit and vmap; translations, phases and signs with a shift; a user's own action."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import KEY, SEQUENCE, X


class Norms(nn.Module):
    """Every kind of translation at once: a stream that is normalised, and attention on it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(nn.LayerNorm()(x))
        return nn.Dense(3)(nn.LayerNorm()(x))


def sine(params, x):
    return jnp.sin(x @ params["a"] + params["b"]) @ params["c"]


def sigmoid(params, x):
    return jax.nn.sigmoid(x @ params["a"] + params["b"]) @ params["c"] + params["d"]


LAYER = {
    name: jax.random.normal(KEY, shape) for name, shape in {"a": (3, 4), "b": (4,), "c": (4, 2), "d": (2,)}.items()
}


@pytest.fixture(scope="module", params=["norms", "sine", "sigmoid"])
def case(request):
    if request.param == "norms":
        net = Norms()
        apply, params, x = net.apply, net.init(KEY, SEQUENCE), SEQUENCE
    else:
        apply, params, x = {"sine": sine, "sigmoid": sigmoid}[request.param], dict(LAYER), X
        if request.param == "sine":
            del params["d"]
    sym = js.discover(apply, params, x)
    with jax.enable_x64(True):
        start = perturbed(jax.random.key(1), wide(params), 1.0)
        g, h = (sym.sample(jax.random.key(seed)) for seed in (2, 3))
    return apply, sym, start, wide(x), g, h


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), one, other)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def test_the_host_and_jax_agree(case):
    _, sym, start, _, g, h = case
    with jax.enable_x64(True):
        moved = sym.act(host(g), host(start))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(moved))
        close(moved, jax.jit(sym.act)(g, start))
        close(sym.compose(host(g), host(h)), jax.jit(sym.compose)(g, h))


def test_group_laws_on_the_host(case):
    _, sym, start, _, g, h = case
    with jax.enable_x64(True):
        g, h, start = host(g), host(h), host(start)
        close(sym.act(sym.compose(g, h), start), sym.act(g, sym.act(h, start)))
        close(sym.act(sym.inverse(g), sym.act(g, start)), start)
        close(sym.act(g, sym.act(sym.inverse(g), start)), start)


def test_translations_commute(case):
    _, sym, start, _, g, h = case
    still = sym.still()
    with jax.enable_x64(True):
        only = [
            tuple(
                p if f.kind == "translation" else s for f, p, s in zip(sym.factors, host(element), still, strict=True)
            )
            for element in (g, h)
        ]
        close(sym.act(only[0], sym.act(only[1], host(start))), sym.act(only[1], sym.act(only[0], host(start))))


def test_elements_under_vmap(case):
    apply, sym, start, x, *_ = case
    with jax.enable_x64(True):
        outputs = jax.jit(jax.vmap(lambda key: apply(sym.act(sym.sample(key), start), x)))(jax.random.split(KEY, 3))
        close(outputs, jnp.broadcast_to(apply(start, x), outputs.shape))


def test_elements_of_the_continuous_part_under_jit(case):
    apply, sym, start, x, *_ = case

    def there_and_back(coordinates):
        g = sym.exp(coordinates)
        moved = sym.act(sym.compose(sym.inverse(g), sym.compose(g, g)), start)
        return moved, sym.act(sym.compose(g, sym.inverse(g)), start), sym.act(g, start)

    with jax.enable_x64(True):
        moved, back, once = jax.jit(there_and_back)(jnp.full(sym.dim, 0.1))
        close(moved, once)
        close(back, start)
        close(apply(moved, x), apply(start, x))


def test_kinds():
    assert {f.kind for f in js.discover(sine, {k: LAYER[k] for k in "abc"}, X).factors} == {
        "phase",
        "sign",
        "permutation",
    }
    sym = js.discover(sigmoid, LAYER, X)
    assert {f.kind for f in sym.factors} == {"sign", "permutation"}
    assert sym.order == 24 * 2**4
    without = {k: v for k, v in LAYER.items() if k != "d"}  # nothing takes the constant up
    sym = js.discover(lambda p, x: sigmoid({**p, "d": 0}, x), without, X)
    assert {f.kind for f in sym.factors} == {"permutation"}


def test_a_half_period_is_what_a_phase_adds():
    params = {k: LAYER[k] for k in "abc"}
    sym = js.discover(sine, params, X)
    (number,) = (i for i, factor in enumerate(sym.factors) if factor.kind == "phase")
    element = list(sym.identity())
    element[number] = jnp.array([1.0, 0, 2, -1])
    moved = sym.act(tuple(element), params)
    np.testing.assert_allclose(moved["b"] - params["b"], np.pi * np.array([1, 0, 2, -1]), rtol=1e-5)
    np.testing.assert_allclose(moved["c"], params["c"] * np.array([-1, 1, 1, -1])[:, None])


def test_a_users_own_action():
    def rescale(t, params):
        factor = jnp.exp(t)
        return {"a": params["a"] * factor, "c": params["c"] / factor[:, None]}

    def apply(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["c"]

    params = {k: LAYER[k] for k in "ac"}
    sym = js.Symmetry.from_action(rescale, 4)
    assert (sym.dim, sym.order) == (4, 1)
    assert js.verify(apply, sym, params, X).ok
    assert not js.verify(lambda p, x: jnp.tanh(x @ p["a"]) @ p["c"], sym, params, X).ok
    found = js.discover(apply, params, X)
    with jax.enable_x64(True):
        flat = [
            np.concatenate([np.reshape(leaf, (4, -1)) for leaf in jax.tree.leaves(s.tangents(wide(params)))], 1)
            for s in (sym, found)
        ]
    assert np.linalg.matrix_rank(np.concatenate(flat), tol=1e-8) == 4  # the same four directions
    g, h = (sym.sample(jax.random.key(seed)) for seed in (1, 2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        sym.act(sym.compose(g, h), params),
        sym.act(g, sym.act(h, params)),
    )
    assert "by a function of its own" in str(sym)
    with pytest.raises(TypeError, match="act is of type int"):
        js.Symmetry.from_action(3, 1)
    with pytest.raises(ValueError, match="dim is 0, expected a positive integer"):
        js.Symmetry.from_action(rescale, 0)
