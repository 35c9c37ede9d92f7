"""The choice of the chunk: from shapes, by a clock that the test turns, by memory that the test limits."""

import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxsym as js
from jaxsym.parallel import chunk as choice
from jaxsym.parallel import chunk_from_shapes

ENGINE = sys.modules["jaxsym.parallel"]  # the attribute of that name is the function


def test_a_chunk_from_shapes():
    def fn(tree):
        return tree["x"] * 2

    shapes = {"x": jax.ShapeDtypeStruct((1000, 3), jnp.float32)}
    chunk = chunk_from_shapes(fn, shapes)
    assert 1 < chunk <= 256
    assert chunk_from_shapes(fn, {"x": jnp.zeros((1000, 3))}) == chunk
    assert chunk_from_shapes(fn, {"x": jnp.zeros((3, 3))}) == 3
    assert chunk_from_shapes(fn, {"x": jnp.zeros((0, 3))}) == 1
    assert chunk_from_shapes(fn, {"x": jax.ShapeDtypeStruct((1000, 3000, 300), jnp.float32)}) == 1
    with pytest.raises(ValueError, match="argument 0: 3, argument 1: 4"):
        chunk_from_shapes(jnp.add, jnp.ones(3), jnp.ones(4))


def test_the_values_of_a_loop_decide_and_not_its_records():
    data = jnp.ones((5000, 4))

    def train(rows, steps):
        def fn(w):
            def step(w, _):
                return w - 0.1 * jnp.tanh(data[:rows] @ w).sum() * w, w

            return jax.lax.scan(step, w, None, length=steps)

        return fn

    w = jax.ShapeDtypeStruct((1000, 4), jnp.float32)
    small, large = chunk_from_shapes(train(10, 100), w), chunk_from_shapes(train(200, 100), w)
    assert small > large > 1
    assert chunk_from_shapes(train(10, 10_000), w) == small


def test_what_is_brief():
    def traced(fn):
        return jax.make_jaxpr(fn)(jnp.zeros(8))

    one = traced(lambda x: jnp.tanh(x) + 1)
    assert choice.is_brief(one, 256)
    assert not choice.is_brief(one, 10**7)
    assert choice.is_brief(traced(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x), x)), 256)
    assert not choice.is_brief(traced(lambda x: jax.lax.fori_loop(0, 10**5, lambda _, x: jnp.tanh(x), x)), 256)
    assert not choice.is_brief(traced(lambda x: jax.lax.while_loop(lambda x: x[0] < 1, lambda x: x + 1, x)), 1)
    assert not choice.is_brief(traced(lambda x: jax.pure_callback(np.sin, x, x)), 1)


@given(chunk=st.integers(1, 100), share=st.integers(1, 100))
def test_even_chunks(chunk, share):
    even = choice.even(chunk, share)
    assert even <= chunk
    assert math.ceil(share / even) == math.ceil(share / chunk)


class Machine:
    """Runs nothing; its clock goes on by what compiling and computing would take."""

    def __init__(self, cost, compiling=1.0):
        self.cost, self.compiling = cost, compiling
        self.now, self.running = 0.0, 0.0
        self.compiled = []

    def run(self, chunk, rounds):
        if chunk not in self.compiled:
            self.compiled.append(chunk)
            self.now += self.compiling
        self.running += rounds * self.cost(chunk)
        self.now += rounds * self.cost(chunk)

    def tuned(self, share, guess):
        return choice.tuned_chunk(self.run, share, guess, clock=lambda: self.now)


def test_the_fastest_is_taken():
    def cost(chunk):
        return 1e-3 * (1 + chunk + (100 if chunk > 20 else 0))

    machine = Machine(cost)
    assert machine.tuned(100_000, 4) == 16
    assert machine.compiled[0] == 4
    assert sorted(machine.compiled) == [1, 4, 16, 64]


def test_little_work_is_not_tuned():
    machine = Machine(lambda chunk: 1e-3 * chunk)
    assert machine.tuned(1000, 4) == 4
    assert machine.compiled == [4]


def test_a_slow_function_keeps_the_guess():
    machine = Machine(lambda chunk: 5.0 + chunk)
    assert machine.tuned(1000, 1) == 1
    assert machine.compiled == [1]
    assert machine.running == 6


def test_few_chunks_are_not_tuned():
    machine = Machine(lambda chunk: 10.0)
    assert machine.tuned(15, 2) == 2
    assert machine.tuned(1, 1) == 1
    assert machine.compiled == []


def test_a_guess_that_was_timed_in_a_bad_moment_is_timed_again():
    machine = Machine(None)
    machine.cost = lambda chunk: (
        1e-3 * chunk * (10 if len(machine.compiled) == 1 else 1)
    )  # busy before others are timed
    assert machine.tuned(100_000, 4) == 4
    assert len(machine.compiled) == 4


def test_a_difference_that_may_be_noise_changes_nothing():
    machine = Machine(lambda chunk: 1e-3 * chunk * (0.93 if chunk == 16 else 1))
    assert machine.tuned(100_000, 4) == 4


@given(
    share=st.integers(1, 5000),
    guess=st.integers(1, 256),
    start=st.floats(1e-6, 3),
    growth=st.lists(st.floats(0, 1), min_size=8, max_size=8),
)
def test_the_budget_is_kept(share, guess, start, growth):
    """Whatever the times, if they grow at most in proportion: no more than the budget beyond the guess itself."""
    guess = choice.even(guess, share)
    chunks = sorted({guess, *(choice.even(c, share) for c in choice.CANDIDATES if c <= share)})
    costs = {chunks[0]: start}
    for (small, large), power in zip(itertools.pairwise(chunks), growth, strict=False):
        costs[large] = costs[small] * (large / small) ** power
    machine = Machine(costs.__getitem__)
    assert machine.tuned(share, guess) in chunks
    assert machine.running <= max(choice.BUDGET, costs[guess]) * (1 + 1e-9)


def test_the_tuned_chunk_is_used_and_nothing_donated_is_lost(monkeypatch):
    asked = []

    def tuned(run, share, guess):
        asked.append((share, guess))
        for rounds in (0, 1, 1):
            run(3, rounds)
        return 3

    monkeypatch.setattr(ENGINE, "tuned_chunk", tuned)
    seen = []

    def fn(x):
        seen.append(x.shape)
        return jnp.tanh(x) * 2

    mapped = js.parallel(fn, donate_argnums=0, devices=jax.devices()[:1])
    x = jnp.arange(40.0).reshape(10, 4)
    expected = np.tanh(np.asarray(x)) * 2
    assert mapped.chunk_for(x) == 3
    assert not x.is_deleted()
    traces = len(seen)
    np.testing.assert_allclose(mapped(x), expected, rtol=1e-6)
    assert asked == [(10, 10)]
    assert len(seen) == traces
    jaxpr = jax.make_jaxpr(mapped)(jnp.asarray(expected))
    assert "f32[10,4] = tanh" in str(jaxpr)  # under a trace shapes decide
    assert js.parallel(fn, chunk=4).chunk_for(jnp.zeros((10, 4))) == 4
    assert len(asked) == 1


def test_timing_computes_the_chunks_that_it_is_asked_for(monkeypatch):
    computed = []

    def tuned(run, share, guess):
        for rounds in (0, 1, 2, 100):
            jax.effects_barrier()
            before = len(computed)
            run(2, rounds)
            jax.effects_barrier()
            counts.append(len(computed) - before)
        return 2

    counts = []
    monkeypatch.setattr(ENGINE, "tuned_chunk", tuned)

    def fn(x):
        jax.debug.callback(lambda x: computed.append(float(x)), x)
        return x

    mapped = js.parallel(fn, devices=jax.devices()[:1])
    assert mapped.chunk_for(jnp.arange(6.0)) == 2
    assert counts == [0, 2, 4, 6]


def test_the_chunk_is_halved_until_it_fits(monkeypatch):
    def fn(x):
        y = jnp.outer(x, x)
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sort(jnp.cos(y), axis=0) + y.T, y).mean()  # carried in memory

    x = jax.random.normal(jax.random.key(0), (64, 40))

    def needed(chunk):
        monkeypatch.setattr(ENGINE, "free_bytes", lambda device: None)
        memory = jax.jit(js.parallel(fn, chunk=chunk)).lower(x).compile().memory_analysis()
        return memory.temp_size_in_bytes

    monkeypatch.setattr(ENGINE, "_by_threads", lambda device: False)
    assert needed(16) > 3 * needed(4)
    for limit, expected in [(10**9, 64), (needed(16) * 1.2, 16), (10, 1)]:
        monkeypatch.setattr(ENGINE, "free_bytes", lambda device, limit=limit: limit)
        mapped = js.parallel(fn, devices=jax.devices()[:1])
        assert mapped.chunk_for(x) == expected
        np.testing.assert_allclose(mapped(x), jax.vmap(fn)(x), rtol=1e-4)


def test_memory_that_is_left():
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    assert choice.free_bytes(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert choice.free_bytes(Device(None)) is None
    assert choice.free_bytes(jax.devices("cpu")[0]) is None


def test_a_program_too_large_to_compile_is_halved_too():
    def compile_with(chunk):
        if chunk > 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return jax.jit(lambda x: x + 1).lower(jnp.ones(chunk)).compile()

    assert choice.chunk_that_fits(compile_with, 20, 10**9) == 5
    assert choice.chunk_that_fits(compile_with, 20, None) == 20

    def broken(chunk):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        choice.chunk_that_fits(broken, 20, 10**9)
