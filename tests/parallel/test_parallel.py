"""parallel is vmap: in value, in gradient, under every transformation, for every chunk and number of devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsym as js


def network(params, x, scale=1.0):
    """A function with a scan, a random draw and several outputs."""
    drawn = jax.random.normal(params["key"], (3,))
    carry, steps = jax.lax.scan(lambda c, _: (c * 1.1 + params["w"].sum(), c), jnp.zeros(()), None, length=3)
    return {"out": jnp.tanh(params["w"] @ x) * scale + drawn, "scan": (carry, steps)}


def ensemble(num):
    keys = jax.random.split(jax.random.key(1), num)
    return {"w": jax.random.normal(jax.random.key(0), (num, 3, 4)), "key": keys}


@settings(max_examples=5)
@given(num=st.integers(1, 20), chunk=st.sampled_from(["auto", 1, 2, 3, 7, 50]))
def test_equals_vmap(num, chunk):
    params, x = ensemble(num), jnp.arange(4.0)
    expected = jax.vmap(network, (0, None))(params, x)
    chex.assert_trees_all_close(js.parallel(network, (0, None), chunk=chunk)(params, x), expected, rtol=1e-5)


def test_keys_are_untouched():
    keys = jax.random.split(jax.random.key(3), 11)
    seen = js.parallel(lambda key: key, chunk=4)(keys)
    np.testing.assert_array_equal(jax.random.key_data(seen), jax.random.key_data(keys))
    old = jax.random.key_data(keys)
    np.testing.assert_array_equal(js.parallel(lambda key: key, chunk=4)(old), old)


def test_same_chunk_same_bits_whatever_the_company():
    params, x = ensemble(12), jnp.arange(4.0)
    few = jax.tree.map(lambda leaf: leaf[:7], params)
    run = js.parallel(network, (0, None), chunk=4)
    chex.assert_trees_all_equal(run(few, x), jax.tree.map(lambda leaf: leaf[:7], run(params, x)))


@pytest.mark.parametrize("chunk", [1, 3, "auto"])
def test_gradients_pass_through(chunk):
    w, x = ensemble(7)["w"], jnp.arange(4.0) / 4  # where tanh is not flat: its slope there is what rounding leaves

    def total(mapped, w, x):
        return jnp.sum(mapped(lambda w, x: jnp.tanh(w @ x), (0, None))(w, x) ** 3)

    def ours(fn, in_axes):
        return js.parallel(fn, in_axes, chunk=chunk)

    chex.assert_trees_all_close(
        jax.grad(total, (1, 2))(ours, w, x), jax.grad(total, (1, 2))(jax.vmap, w, x), rtol=1e-4, atol=1e-6
    )
    chex.assert_trees_all_close(
        jax.hessian(total, 2)(ours, w, x), jax.hessian(total, 2)(jax.vmap, w, x), rtol=1e-4, atol=1e-5
    )


def test_gradients_reach_what_the_function_closes_over():
    w = ensemble(5)["w"]

    def total(mapped, x):
        return jnp.sum(mapped(lambda w: jnp.sin(w @ x))(w))

    x = jnp.arange(4.0)
    chex.assert_trees_all_close(
        jax.jit(jax.grad(total, 1), static_argnums=0)(js.parallel, x), jax.grad(total, 1)(jax.vmap, x), rtol=1e-5
    )


def test_vmap_of_parallel():
    params, xs = ensemble(5), jnp.arange(8.0).reshape(2, 4)
    expected = jax.vmap(lambda x: jax.vmap(network, (0, None))(params, x))(xs)
    got = jax.vmap(lambda x: js.parallel(network, (0, None), chunk=2)(params, x))(xs)
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


@pytest.mark.parametrize("in_axes", [1, -1, [1], ({"a": 1, "b": None},), (None,)])
def test_in_axes(in_axes):
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(6.0).reshape(2, 3)}

    def fn(tree, *, y):
        return tree["a"] + tree["b"].sum() + y

    ours = js.parallel(fn, in_axes)(tree, y=jnp.arange(3.0))
    axes = tuple(in_axes) if isinstance(in_axes, list) else in_axes
    chex.assert_trees_all_close(ours, jax.vmap(fn, axes)(tree, y=jnp.arange(3.0)))


def test_no_networks_at_all():
    assert js.parallel(lambda x: 2 * x)(jnp.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: js.parallel(jnp.sin, chunk=0), "chunk: got 0"),
        (lambda: js.parallel(jnp.sin, chunk=True), "chunk: got True"),
        (lambda: js.parallel(jnp.sin, devices=[]), "devices: got an empty list"),
        (lambda: js.parallel(jnp.add)(jnp.ones(3), jnp.ones(4)), "argument 0: 3, argument 1: 4"),
        (lambda: js.parallel(jnp.add, (0, None, 0))(jnp.ones(3), 1.0), "in_axes: got"),
        (lambda: js.parallel(jnp.sin, None)(jnp.ones(3)), "no argument is mapped"),
        (lambda: js.parallel(jnp.sin)(1.0), r"argument 0 has shape \(\)"),
        (lambda: js.parallel(lambda *, y: y)(y={"a": jnp.ones(())}), r"keyword y\['a'\] has shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_padding_keeps_an_infinite_gradient():
    """The copies that fill a chunk add nothing to the first network's gradient, which is infinite here."""
    grads = jax.grad(lambda x: js.parallel(jnp.sqrt, chunk=4)(x).sum())(jnp.arange(7.0))
    np.testing.assert_allclose(grads, jax.grad(lambda x: jnp.sqrt(x).sum())(jnp.arange(7.0)))


DEVICES = """
import warnings; warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
import sys, importlib, jax, jax.numpy as jnp, numpy as np, jaxsym as js
spread = sys.argv[1] == "spread"
if spread:  # as on accelerators
    importlib.import_module("jaxsym.parallel")._by_threads = lambda device: False
def train(key, x):
    w = jax.random.normal(key, (4,))
    return jax.lax.scan(lambda w, _: (w - 0.1 * jax.grad(lambda w: jnp.sum(jnp.tanh(w * x) ** 2))(w), None), w, None, length=20)[0]
x = jnp.arange(4.0)
for num in (1, 7):
    keys = jax.random.split(jax.random.key(0), num)
    expected = jax.vmap(train, (0, None))(keys, x)
    for chunk, devices in ((2, jax.devices()), ("auto", jax.devices()), ("auto", None)):
        run = js.parallel(train, (0, None), chunk=chunk, devices=devices)
        assert len(run(keys, x).devices()) == (jax.device_count() if spread else 1)
        np.testing.assert_allclose(run(keys, x), expected, rtol=1e-5, atol=1e-7)
        loss = lambda f: lambda x: jnp.sum(f(keys, x) ** 2)
        np.testing.assert_allclose(jax.grad(loss(run))(x), jax.grad(loss(jax.vmap(train, (0, None))))(x), rtol=1e-4, atol=1e-6)
    one = js.parallel(train, (0, None), devices=jax.devices()[:1])(keys, x)
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-7)
last = jax.devices()[-1]
assert js.parallel(jnp.sin, devices=[last])(jnp.arange(3.0)).devices() == {last}
moved = js.parallel(jnp.sin, devices=jax.devices())(jax.device_put(jnp.arange(5.0), last))
np.testing.assert_allclose(js.parallel(jnp.cos, devices=jax.devices()[:1])(moved), np.cos(np.sin(np.arange(5.0))), rtol=1e-6)
nested = js.parallel(lambda row: js.parallel(jnp.sin, chunk=2)(row), devices=jax.devices())(jnp.arange(12.0).reshape(4, 3))
np.testing.assert_allclose(nested, np.sin(np.arange(12.0)).reshape(4, 3), rtol=1e-6)
step = js.parallel(lambda x, k: (x + 1, jax.random.fold_in(k, 1)), devices=jax.devices(), donate_argnums=(0, 1))
for num in (24, 7):
    state = jnp.zeros((num, 2)), jax.random.split(jax.random.key(0), num)
    for _ in range(3):
        old, state = state, step(*state)
    assert old[0].is_deleted() and old[1].is_deleted()
    np.testing.assert_array_equal(state[0], 3 * np.ones((num, 2)))
print(jax.device_count())
"""


@pytest.mark.parametrize("how", ["threads", "spread"])
@pytest.mark.parametrize("devices", [2, *(pytest.param(devices, marks=pytest.mark.long) for devices in (3, 8))])
def test_devices(python, devices, how):
    assert python(DEVICES, how, devices=devices).strip() == str(devices)


IN_PLACE = """
import jax, jax.numpy as jnp, numpy as np, jaxsym as js
keys = jax.random.split(jax.random.key(0), 6)
spread = js.parallel(lambda key: jax.random.normal(key, (3,)), devices=jax.devices())(keys)
brief = js.parallel(lambda key: jax.random.normal(key, (3,)))
for given in (keys, jax.random.key_data(keys), np.asarray(jax.random.key_data(keys))):
    assert len(brief(given).devices()) == 1
    np.testing.assert_array_equal(brief(given) + spread, 2 * spread)  # the one is tied to no device
norms = js.parallel(jnp.linalg.norm)(spread)
assert norms.devices() == spread.devices()
assert (brief(keys).sum(1) * norms).shape == (6,)
print("ok")
"""


def test_brief_work_combines_with_what_is_spread(python):
    assert python(IN_PLACE, devices=2).strip() == "ok"


TOGETHER = """
import threading, jax, jax.numpy as jnp, numpy as np, jaxsym as js
barrier = threading.Barrier(2)
def meet(x):
    barrier.wait(timeout=60)  # one after the other they would wait in vain
    return x
like = jax.ShapeDtypeStruct((), jnp.float32)
mapped = js.parallel(lambda x: jax.pure_callback(meet, like, x, vmap_method="sequential"), chunk=1)
print(np.asarray(mapped(jnp.arange(6.0))).tolist())
"""


def test_the_devices_work_at_the_same_time(python):
    assert python(TOGETHER, devices=2).strip() == str([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


SETTINGS = """
import jax, jax.numpy as jnp, numpy as np, jaxsym as js
def fn(x, scale):
    return jax.lax.fori_loop(0, 10**5, lambda _, y: jnp.cos(y) * scale, x)
mapped = js.parallel(fn, (0, None), chunk=2)
for _ in range(2):
    assert mapped(np.ones((8, 30)), 0.5).dtype == jnp.float32
    with jax.enable_x64():
        assert mapped(np.ones((8, 30)), 0.5).dtype == jnp.float64
for device in jax.devices():
    there = jax.device_put(np.ones((8, 30), np.float32), device)
    assert mapped(there, 0.5).devices() == {device}
    given = jax.device_put(np.ones((4, 30), np.float32), device)
    js.parallel(lambda x: fn(x, 0.5), chunk=4, donate_argnums=0)(given)
    assert given.is_deleted()
inner = js.parallel(fn, (0, None), chunk=1)
like = jax.ShapeDtypeStruct((), jnp.float32)
host = lambda x: np.asarray(inner(np.full(4, x), 0.5))[0]
outer = js.parallel(lambda x: jax.pure_callback(host, like, x, vmap_method="sequential"), chunk=1)
np.testing.assert_allclose(outer(jnp.arange(6.0)), fn(jnp.arange(6.0), 0.5), rtol=1e-5)
print("ok")
"""


def test_threads_work_with_the_settings_of_their_caller_and_within_one_another(python):
    assert python(SETTINGS, devices=2).strip() == "ok"


DIGEST = """
import hashlib, jax, jax.numpy as jnp, numpy as np, optax, jaxsym as js
x = jnp.sin(jnp.arange(64 * 30.0)).reshape(64, 30)
def init(key):
    w = jax.random.uniform(key, (31, 8), minval=-0.2, maxval=0.2)
    return {"w": w[:30], "v": w[30:].T}
train = js.make_train(init, lambda p, x, key: jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - 1) ** 2), optax.adam(0.01), x, steps=40)
def show(num, chunk, tree):
    print(num, chunk, hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))).hexdigest())
keys = jax.random.split(jax.random.key(0), 13)
here = jax.devices()
run = js.parallel(train.start, chunk=3)(keys)
run = js.parallel(train.advance, (0, None, None), chunk=3, devices=here, donate_argnums=0)(run, 0, 40)
show(13, 3, (run.params, run.optimizer, run.history))
for num, chunk in [(5, 1), (5, 50)]:
    show(num, chunk, js.parallel(lambda w: jnp.tanh(x @ w).sum(), chunk=chunk, devices=here)(run.params["w"][:5]))
"""


def test_an_explicit_chunk_gives_the_same_bits_on_any_number_of_devices(python):
    digests = {devices: python(DIGEST, devices=devices) for devices in (1, 2, 3, 8)}
    assert digests[1].count("\n") == 3
    assert set(digests.values()) == {digests[1]}


@pytest.mark.parametrize(("num", "chunk", "batch"), [(7, 3, 3), (7, 50, 7), (7, 7, 7), (1, 4, 1)])
def test_an_explicit_chunk_is_used_as_given(num, chunk, batch):
    jaxpr = jax.make_jaxpr(js.parallel(lambda x: jnp.sin(x), chunk=chunk))(jnp.zeros((num, 5)))
    assert f"f32[{batch},5] = sin" in str(jaxpr)


def test_weak_types_and_scalars_of_numpy_are_as_under_vmap():
    keys = jax.random.split(jax.random.key(0), 4)
    here = jax.devices()

    def draw(key, rate):
        return rate * jax.random.normal(key, (3,), jnp.bfloat16)

    weak = jnp.full((4,), 0.1)
    got = js.parallel(draw, devices=here)(keys, weak)
    assert got.dtype == jax.vmap(draw)(keys, weak).dtype == jnp.bfloat16
    for shared in (np.float32(2), np.bool_(True), 2.0):
        ours = js.parallel(lambda a, s: a * s, (0, None), chunk=1, devices=here)(jnp.ones((4, 3)), shared)
        np.testing.assert_array_equal(ours, np.ones((4, 3)) * shared)


def test_callables_without_a_hash():
    class Scale:
        __hash__ = None

        def __call__(self, x):
            return 2 * x

    np.testing.assert_array_equal(js.parallel(Scale())(jnp.arange(3.0)), [0, 2, 4])


def test_it_is_traced_once_for_a_shape():
    traced = []

    def fn(x, y):
        traced.append(x.shape)
        return jnp.sin(x) + y

    mapped = js.parallel(fn, (0, None))
    first = mapped(jnp.ones((5, 3)), 1.0)
    once = len(traced)
    assert once >= 1
    np.testing.assert_array_equal(mapped(jnp.ones((5, 3)), 1.0), first)
    mapped(np.zeros((5, 3), np.float32), 7.5)
    assert len(traced) == once
    mapped(jnp.ones((6, 3)), 1.0)
    mapped(jnp.ones((6, 3)), 1.0)
    assert len(traced) <= 2 * once


def test_what_is_donated_is_used_and_the_rest_is_kept():
    step = js.parallel(
        lambda run, key, rate: ({"w": run["w"] * rate, "i": run["i"] + 1}, jax.random.normal(key)),
        (0, 0, None),
        donate_argnums=(0, 1),
        devices=jax.devices()[:1],
    )
    keys = jax.random.split(jax.random.key(0), 5)
    first = {"w": jnp.ones((5, 3)), "i": jnp.zeros(5, int)}
    second, _ = step(first, keys, 2.0)
    place = second["w"].unsafe_buffer_pointer()
    third, _ = step(second, keys, 2.0)  # the keys are not: nothing of their type comes out
    assert second["w"].is_deleted()
    assert third["w"].unsafe_buffer_pointer() == place
    np.testing.assert_array_equal(third["w"], 4 * np.ones((5, 3)))
    kept = jnp.ones(4)
    js.parallel(jnp.sin)(kept)
    assert not kept.is_deleted()
    within = jax.jit(lambda x: js.parallel(jnp.sin, donate_argnums=0)(x))
    within(kept)
    assert not kept.is_deleted()
    with pytest.raises(ValueError, match=r"donate_argnums: got 2, but there are 1 positional"):
        js.parallel(jnp.sin, donate_argnums=2)(kept)


def test_the_same_bits_outside_and_within_a_trace():
    params, x = ensemble(11), jnp.arange(4.0)
    mapped = js.parallel(network, (0, None), chunk=4)
    chex.assert_trees_all_equal(mapped(params, x), jax.jit(mapped)(params, x))


def test_a_call_with_arrays_under_a_trace():
    w = ensemble(5)["w"]
    mapped = js.parallel(lambda w: jnp.tanh(w).sum())
    got = jax.jit(lambda scale: mapped(w) * scale)(2.0)
    np.testing.assert_allclose(got, 2 * jax.vmap(lambda w: jnp.tanh(w).sum())(w), rtol=1e-5)
    asked = []
    with pytest.raises(ValueError, match="chunk_for: called under a trace"):
        jax.jit(lambda w: asked.append(mapped.chunk_for(w)))(w)


def test_all_cores_and_too_late(python):
    code = "import jaxsym as js, jax, jax.numpy as jnp; n = js.use_all_cores(); assert n == jax.device_count() == js.use_all_cores(); keys = jax.random.split(jax.random.key(0), 8);"
    code += (
        "eig = js.parallel(lambda key: jnp.linalg.eigvalsh(jax.random.normal(key, (300, 300))))(keys);"  # used to hang
    )
    code += "assert eig.shape == (8, 300); print('ok')"
    assert python(code).strip() == "ok"
    late = "import jax, jaxsym as js; jax.devices(); js.use_all_cores()"
    result = python(late, devices=97, check=False)
    assert "use_all_cores() came too late" in result.stderr
    assert "97 CPU device(s)" in result.stderr


DECOMPOSED = """
import jax, jax.numpy as jnp, numpy as np, jaxsym as js
keys = jax.random.split(jax.random.key(0), 400)
def one(key):
    matrix = jax.random.normal(key, (40, 40))
    return jnp.linalg.eigvalsh(matrix + matrix.T)
for _ in range(5):
    found = js.parallel(one, chunk=8)(keys)
np.testing.assert_allclose(found, jax.lax.map(one, keys), atol=1e-3)
print("ok")
"""


def test_batches_of_decompositions_do_not_wait_for_each_other(python, monkeypatch):
    """Two threads, and a pool of XLA with no thread to spare: that hung."""
    monkeypatch.setenv("NPROC", "2")
    assert python(DECOMPOSED, devices=2).strip() == "ok"


def test_debugging_is_that_of_vmap():
    run = js.parallel(lambda x: jnp.log(x) * jnp.ones(5000), chunk=3)
    given = jnp.arange(1.0, 8)
    with jax.disable_jit():
        np.testing.assert_allclose(run(given), jax.vmap(jnp.log)(given)[:, None] * np.ones(5000), rtol=1e-6)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="in log"):
        run(given.at[-1].set(-1.0))


def test_strict_promotion_of_types():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = js.parallel(lambda x: x @ x, chunk=3)(jnp.ones((7, 4)))
    np.testing.assert_array_equal(found, np.full(7, 4.0))


LATE = """
import threading, jax, jax.numpy as jnp, jaxsym as js
run = js.parallel(lambda x: jnp.outer(x, x).max() + jnp.outer(x, jnp.cumsum(x)).max(), chunk=1)
given = jnp.ones((64, 1000))
threading.Thread(target=lambda: (threading.main_thread().join(), print(float(run(given).sum())))).start()
"""


def test_a_thread_works_on_when_the_main_one_has_ended(python):
    assert python(LATE, devices=2).strip() == str(64 * 1001.0)
