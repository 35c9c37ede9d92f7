"""make_train against a plain Python loop, written from the definition."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsym as js
from jaxsym.training import probes

KEY = jax.random.key(7)
with jax.enable_x64(True):
    DATA = tuple(np.asarray(jax.random.normal(jax.random.key(i), shape)) for i, shape in enumerate([(20, 3), (20,)]))


@pytest.fixture(autouse=True)
def float64():
    """Adam amplifies the rounding of small gradients; in float64 the comparison is sharp."""
    with jax.enable_x64(True):
        yield


def init(key, scale=1.0):
    return {"w": scale * jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def loss(params, batch, key):
    x, y = batch
    noise = 0.1 * jax.random.normal(key, y.shape)
    return jnp.mean((x @ params["w"] + params["b"] - y - noise) ** 2)


def by_hand(optimizer, steps, batch_size=None, scale=1.0):
    """The same run without scan, and all its snapshots."""
    init_key, order_key, loss_key = jax.random.split(KEY, 3)
    params = init(init_key, scale)
    state, snapshots = optimizer.init(params), []
    for step in range(steps + 1):
        batch = DATA
        if batch_size:
            per_epoch = 20 // batch_size
            order = jax.random.permutation(jax.random.fold_in(order_key, step // per_epoch), 20)
            rows = order[step % per_epoch * batch_size :][:batch_size]
            batch = tuple(leaf[rows] for leaf in DATA)
        value, grads = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(loss_key, step))
        snapshots.append((step, params, grads, value))
        if step < steps:
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    return params, snapshots


LOOPS = list(itertools.product((1, 5, 100), (None, 6), ("momentum", "adam")))
QUICK = {(1, None, "momentum"), (5, 6, "adam"), (100, None, "adam"), (100, 6, "momentum")}  # each value at least once


@pytest.mark.parametrize(
    ("record_every", "batch_size", "optimizer"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.long) for case in LOOPS],
)
def test_equals_a_python_loop(record_every, batch_size, optimizer):
    optimizer = {"momentum": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(0.1)}[optimizer]
    watched = {"w": lambda seen: seen.params["w"], "norm": probes.gradient_norm}
    train = js.make_train(
        init, loss, optimizer, DATA, steps=13, batch_size=batch_size, probes=watched, record_every=record_every
    )
    trained = jax.jit(train)(KEY)
    params, snapshots = by_hand(optimizer, 13, batch_size)
    chex.assert_trees_all_close(trained.params, params, rtol=1e-10, atol=1e-12)
    kept = [s for s in snapshots if s[0] == 13 or s[0] % record_every == 0]
    history = trained.history
    np.testing.assert_array_equal(history["step"], [s[0] for s in kept])
    np.testing.assert_allclose(history["loss"], [s[3] for s in kept], rtol=1e-10)
    np.testing.assert_allclose(history["w"], [s[1]["w"] for s in kept], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(history["norm"], [optax.tree.norm(s[2]) for s in kept], rtol=1e-10)


def test_hyperparameters_are_traced():
    train = js.make_train(init, loss, optax.inject_hyperparams(optax.adamw)(0.05, weight_decay=0.0), DATA, steps=9)
    rates, decays, scales = jnp.array([0.1, 0.3]), jnp.array([0.0, 0.2]), jnp.array([1.0, 2.0])
    run = jax.jit(jax.vmap(lambda r, d, s: train(KEY, learning_rate=r, weight_decay=d, scale=s).params))
    got = run(rates, decays, scales)
    for i in range(2):
        expected, _ = by_hand(optax.adamw(rates[i], weight_decay=decays[i]), 9, scale=scales[i])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], got), expected, rtol=1e-10, atol=1e-12)
    default, _ = by_hand(optax.adamw(0.05, weight_decay=0.0), 9)
    chex.assert_trees_all_close(train(KEY).params, default, rtol=1e-10, atol=1e-12)


def test_an_integer_default_takes_a_fraction():
    train = js.make_train(init, loss, optax.inject_hyperparams(optax.sgd)(learning_rate=0), DATA, steps=5)
    expected, _ = by_hand(optax.sgd(0.1), 5)
    chex.assert_trees_all_close(train(KEY, learning_rate=0.1).params, expected, rtol=1e-10)


def test_hyperparameters_of_a_chain_and_of_the_loss():
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(0.1))

    def decayed(params, batch, key, decay=0.0):
        return loss(params, batch, key) + decay * jnp.sum(params["w"] ** 2)

    train = js.make_train(init, decayed, optimizer, DATA, steps=5)
    plain = js.make_train(
        init, functools.partial(decayed, decay=0.3), optax.chain(optax.clip(1.0), optax.sgd(0.2)), DATA, steps=5
    )
    chex.assert_trees_all_close(train(KEY, learning_rate=0.2, decay=0.3).params, plain(KEY).params, rtol=1e-10)


def test_a_start_may_be_given_as_a_hyperparameter():
    start = {"w": jnp.ones(3), "b": jnp.zeros(())}
    train = js.make_train(lambda key, start: start, loss, optax.sgd(0.0), DATA, steps=2)
    chex.assert_trees_all_equal(train(KEY, start=start).params, start)


def test_an_epoch_sees_every_row_once():
    rows = jnp.arange(12)
    train = js.make_train(
        lambda key: jnp.zeros(12),
        lambda params, batch, key: jnp.sum(params[batch]),
        optax.sgd(1.0),
        rows,
        steps=6,
        batch_size=4,
        record_every=3,
        probes={"params": probes.params},
    )
    visits = -train(KEY).history["params"]
    np.testing.assert_array_equal(visits[1], np.ones(12))
    np.testing.assert_array_equal(visits[2], 2 * np.ones(12))


def test_lbfgs_reaches_the_least_squares_solution():
    def least_squares(params, batch, key):
        return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)

    trained = js.make_train(init, least_squares, optax.lbfgs(), DATA, steps=30)(KEY)
    expected = np.linalg.lstsq(*map(np.asarray, DATA), rcond=None)[0]
    np.testing.assert_allclose(trained.params["w"], expected, rtol=1e-6)


def test_ensembles_train_alike_alone_and_together():
    train = js.make_train(init, loss, optax.adam(0.1), DATA, steps=20, batch_size=5)
    keys = jax.random.split(KEY, 6)
    together = js.parallel(train, chunk=4)(keys)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[3], together), train(keys[3]), rtol=1e-10, atol=1e-12)


def test_bits_are_reproducible():
    train = jax.jit(js.make_train(init, loss, optax.adam(0.1), DATA, steps=20, batch_size=5))
    chex.assert_trees_all_equal(train(KEY), train(KEY))


PIECES = [
    {"optimizer": optax.adam(0.1)},
    {"optimizer": optax.sgd(0.1, momentum=0.9), "batch_size": 6, "record_every": 5},
    {"optimizer": optax.inject_hyperparams(optax.sgd)(0.1), "batch_size": 20, "record_every": 100},
]


@pytest.mark.parametrize(
    "options",
    [pytest.param(PIECES[0], marks=pytest.mark.long), PIECES[1], pytest.param(PIECES[2], marks=pytest.mark.long)],
    ids=["adam", "minibatches", "injected"],
)
def test_a_run_in_pieces(options):
    """Close to the whole run, and the same to the bit however it is cut."""
    watched = {"w": lambda seen: seen.params["w"], "norm": probes.gradient_norm}
    train = js.make_train(init, loss, data=DATA, steps=13, probes=watched, **options)
    keys = jax.random.split(KEY, 3)
    start, finish = js.parallel(train.start), js.parallel(train.finish)
    traces = []
    advance = js.parallel(lambda *args: traces.append(1) or train.advance(*args), (0, None, None), chunk=2)
    once = advance(start(keys), 0, 13)
    assert jax.tree.all(jax.tree.map(lambda leaf: isinstance(leaf, jax.Array), once))
    len_once = len(traces)
    for cuts in [(1, 2, 3, 6, 1), (5, 5, 5, 5), (0, 13, 4)]:
        run, first = start(keys), 0
        for num in cuts:
            run = advance(run, first, num)
            first = min(first + num, 13)
            np.testing.assert_array_equal(run.step, first)
        chex.assert_trees_all_equal(*jax.tree.map(bits, (run, once)))
    assert len(traces) == len_once  # one program serves them all
    whole = js.parallel(train, chunk=2)(keys)
    chex.assert_trees_all_close(finish(once), whole, rtol=1e-10, atol=1e-12)


def bits(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_pieces_keep_the_hyperparameters():
    def decayed(params, batch, key, decay=0.0):
        return loss(params, batch, key) + decay * jnp.sum(params["w"] ** 2)

    train = js.make_train(init, decayed, optax.inject_hyperparams(optax.sgd)(0.1), DATA, steps=7)
    hyper = {"learning_rate": 0.2, "decay": 0.3, "scale": 2.0}
    run = train.start(KEY, **hyper)
    for first in range(0, 7, 3):
        run = train.advance(run, first, 3)
    chex.assert_trees_all_close(train.finish(run), train(KEY, **hyper), rtol=1e-10)


def test_a_run_passes_through_a_file(tmp_path):
    train = js.make_train(init, loss, optax.adam(0.1), DATA, steps=8, batch_size=5)
    run = jax.jit(train.advance)(jax.jit(train.start)(KEY), 0, 3)
    leaves, structure = jax.tree.flatten(run)
    np.savez(tmp_path / "run.npz", *map(np.asarray, map(bits, leaves)))
    with np.load(tmp_path / "run.npz") as stored:
        back = [
            jax.random.wrap_key_data(array) if bits(leaf) is not leaf else jnp.asarray(array)
            for leaf, array in zip(leaves, stored.values(), strict=True)
        ]
    back = jax.tree.unflatten(structure, back)
    advance = jax.jit(train.advance)
    chex.assert_trees_all_equal(*jax.tree.map(bits, (advance(run, 3, 5), advance(back, 3, 5))))


def test_then_and_the_arguments_of_a_run():
    train = js.make_train(init, loss, optax.adam(0.1), DATA, steps=4)
    last = train.then(lambda trained: trained.history["loss"][-1])
    halved = last.then(lambda value: {"half": value / 2})
    assert halved.steps == train.steps == 4
    expected = train(KEY).history["loss"][-1]
    np.testing.assert_array_equal(last(KEY), expected)
    np.testing.assert_array_equal(halved(KEY)["half"], expected / 2)
    np.testing.assert_allclose(halved.finish(train.advance(train.start(KEY), 0, 4))["half"], expected / 2, rtol=1e-10)
    wrapped = functools.wraps(halved)(lambda key: halved(key))
    np.testing.assert_array_equal(wrapped(KEY)["half"], expected / 2)


def test_the_whole_run_can_be_differentiated():
    train = js.make_train(init, loss, optax.inject_hyperparams(optax.sgd)(0.1), DATA, steps=5, record_every=2)

    def final(rate):
        return train(KEY, learning_rate=rate).history["loss"][-1]

    step = 1e-6
    expected = (final(0.1 + step) - final(0.1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(final)(0.1), expected, rtol=1e-5)


def make(**changes):
    options = {"init": init, "loss": loss, "optimizer": optax.sgd(0.1), "data": DATA, "steps": 3} | changes
    return js.make_train(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"steps": 2.5}, "steps: got 2.5"),
        ({"record_every": 0}, "record_every: got 0"),
        ({"batch_size": 21}, "batch_size: got 21, but the data has 20 rows"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"data": None, "batch_size": 2}, "there is no data"),
        ({"data": (DATA[0], DATA[1][:7])}, r"do not match \(0: \(20, 3\), 1: \(7,\)\)"),
        ({"data": (DATA[0][:0], DATA[1][:0])}, "got 0 rows"),
        (
            {"data": (DATA[0], np.where(np.arange(20) == 4, np.nan, DATA[1]))},
            r"data: 1 has 1 value\(s\) that are not finite, the first at index \(4,\)",
        ),
        ({"data": {"x": np.full((3, 1), np.inf)}}, "data: x has 3 value"),
        ({"loss": lambda params, batch, key: batch[1]}, r"loss: got a value of shape \(20,\), expected a scalar"),
        ({"init": lambda key: {"n": jnp.zeros(3, int)}}, "params: n has type int"),
        ({"loss": lambda params, batch, key: jnp.zeros((), int)}, "loss: got a value of type int"),
        ({"probes": [probes.params]}, "probes: expected a dict"),
        ({"probes": {"loss": probes.gradient_norm}}, "the name 'loss' is taken"),
    ],
)
def test_bad_input_at_construction(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_input_at_the_call():
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    with pytest.raises(ValueError, match="'learning_rat': did you mean learning_rate"):
        make(optimizer=injected)(KEY, learning_rat=0.2)
    scheduled = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1.0, 0.0, 10))
    with pytest.raises(ValueError, match="without a schedule"):
        make(optimizer=scheduled)(KEY, learning_rate=0.2)
    with pytest.raises(ValueError, match="expected a scalar"):
        make(init=lambda key, n: init(key), loss=lambda params, batch, key: batch[1])(KEY, n=1.0)
