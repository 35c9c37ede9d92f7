"""Exact laws of steps over 500 of them, in continuous time, and what optimizers break."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsym as js
from jaxsym.dynamics import (
    charges,
    decayed,
    gradient_flow,
    heavy_ball_flow,
    momenta,
    momentum_law,
    oscillated,
    step_law,
)
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS

KEY = jax.random.key(5)
NETWORKS = ("relu", "identity", *(pytest.param(name, marks=pytest.mark.long) for name in ("attention", "cnn")))
SMOOTH = ("identity", "attention")


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network, its group and a loss of one row of inputs and targets, in float64."""
    network = BUILDERS[request.param]()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = perturbed(KEY, wide(network.params), 0.5)
        inputs = wide(tuple(network.inputs))
        sym = js.discover(network.apply, params, *inputs)
        shapes = jax.eval_shape(network.apply, params, *inputs)

        def loss(params, key):
            """Of a random minibatch: inputs and targets of their own."""
            data = jax.tree.map(lambda leaf: leaf * (1 + jax.random.normal(key, leaf.shape)), inputs)
            target = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), shapes)
            pairs = zip(jax.tree.leaves(network.apply(params, *data)), jax.tree.leaves(target), strict=True)
            return sum(jnp.mean((out - y) ** 2) for out, y in pairs)

        yield request.param, sym, params, loss


def trained(case, momentum, decay, lr=0.02, steps=500):
    """Charges measured along a run, and by the law from the state before each step."""
    _, sym, params, loss = case
    kept = charges(sym)
    law = momentum_law(sym) if momentum else step_law(sym)
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(lr, momentum or None))

    def step(carry, key):
        params, state, velocity = carry
        grads = jax.grad(loss)(params, key)
        updates, state = optimizer.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        said = law(params, velocity, grads, lr, momentum, decay) if momentum else law(params, grads, lr, decay)
        velocity = jax.tree.map(lambda v, g, p: momentum * v + g + decay * p, velocity, grads, params)
        return (new, state, velocity), (said, kept(new), kept(velocity))

    start = params, optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    (end, *_), told = jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(KEY, steps)))(start)
    return kept, end, told


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.1), (0.9, 0.1)])
def test_the_law_of_a_step_is_exact(case, momentum, decay):
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        kept, _, (said, measured, _) = trained(case, momentum, decay, lr=0.02 if not momentum else 0.004)
    assert len(kept) > 0
    assert np.isfinite(measured).all()
    scale = np.abs(measured).max()
    np.testing.assert_allclose(said, measured, rtol=0, atol=1e-14 * max(scale, 1) * 10)


def test_a_wrong_law_is_caught(case):
    """Without the square of the gradient, or with another decay, the law fails."""
    name, sym, params, loss = case
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        kept, law = charges(sym), step_law(sym)
        grads = jax.grad(loss)(params, KEY)
        new = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.1 * p), params, grads)
        right, wrong, other = law(params, grads, 0.1, 0.1), 0.99**2 * kept(params), law(params, grads, 0.1, 0.2)
        measured = kept(new)
        assert np.abs(right - measured).max() < 1e-13, name
        assert np.abs(wrong - measured).max() > 1e-6, name
        assert np.abs(other - measured).max() > 1e-6, name


def test_gradient_flow_conserves_and_decay_is_closed(case):
    """To the order of the method where the network is smooth; kinks that the flow crosses cost some of it, but far less than Euler's steps."""
    name, sym, params, loss = case
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        kept = charges(sym)
        flow = jax.jit(
            lambda p, decay, steps: (
                gradient_flow(lambda p: loss(p, KEY), p, 0.5, steps, weight_decay=decay, record=kept).history
            ),
            static_argnums=2,
        )
        slope = jax.grad(lambda p: loss(p, KEY))
        step = lambda p, _: (jax.tree.map(lambda p, g: p - 0.5 / 400 * g, p, slope(p)), None)  # noqa: E731
        moved = jax.jit(lambda p: kept(jax.lax.scan(step, p, length=400)[0]))(params)
        still, rough = flow(params, 0.0, 400), flow(params, 0.0, 100)
        drift, drift_rough = (np.abs(h - h[0]).max() for h in (still, rough))
        euler = np.abs(moved - still[0]).max()
        assert drift < (1e-4 if name in SMOOTH else 1e-2) * euler, name
        if name in SMOOTH:
            assert drift_rough > 50 * drift, name  # 4^4 = 256
        falling = flow(params, 0.3, 400)
        np.testing.assert_allclose(
            falling[-1], decayed(kept, falling[0], 0.5, 0.3), rtol=0, atol=max(2 * drift, 1e-9), err_msg=name
        )


def test_drift_is_the_one_of_the_oracle():
    """The linear network of the oracles: drift at time 1 in proportion to the rate."""
    n, m, r = 3, 4, 5
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        params = {"u": jax.random.normal(keys[0], (n, r)), "v": jax.random.normal(keys[1], (r, m))}
        x, y = jax.random.normal(keys[2], (20, n)), jax.random.normal(keys[3], (20, m))
        apply = lambda p, x: x @ p["u"] @ p["v"]  # noqa: E731
        kept = charges(js.discover(apply, params, x))
        assert len(kept) == r * (r + 1) // 2

        def drift(lr):
            grad = jax.grad(lambda p: jnp.mean(jnp.sum((apply(p, x) - y) ** 2, axis=1)) / 2)
            step = lambda p, _: (jax.tree.map(lambda p, g: p - lr * g, p, grad(p)), None)  # noqa: E731
            end = jax.lax.scan(step, params, length=round(1 / lr))[0]
            return float(jnp.linalg.norm(kept(end) - kept(params)))

        drifts = [drift(lr) for lr in (0.02, 0.01, 0.005, 0.0025)]
    slopes = np.diff(np.log(drifts)) / np.log(0.5)
    np.testing.assert_allclose(slopes, 1, atol=0.1)


def test_the_modified_equation_of_momentum(case):
    """Kunin et al. 2021: a damped oscillator, right to first order in the rate, where the law without momentum is wrong."""
    name, _, _, _ = case
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        errors = []
        for lr in (0.002, 0.001):
            kept, _, (_, measured, drive) = trained(case, 0.9, 0.05, lr=lr, steps=round(0.4 / lr))
            start = kept(case[2])
            said = oscillated(kept, start, drive, lr, 0.9, 0.05)[1:]
            errors.append(float(np.abs(said - measured).max()))
            change = np.abs(measured - start).max()
        assert errors[1] < 0.1 * change, (name, errors, change)
        assert errors[1] < 0.7 * errors[0], (name, errors)


def test_momenta_of_the_heavy_ball():
    """Antisymmetric generators: J decays by friction alone, and by the factor of momentum in each step."""
    network = BUILDERS["identity"]()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, (x,) = perturbed(KEY, wide(network.params)), wide(tuple(network.inputs))
        sym = js.discover(network.apply, params, x)
        turning, kept = momenta(sym), charges(sym)
        velocity = jax.tree.map(lambda leaf: 0.3 * jnp.cos(3 * leaf), params)
        loss = lambda p: jnp.mean((network.apply(p, x) - 1) ** 2)  # noqa: E731
        record = lambda p, v: (turning(p, v), jax.jvp(kept, (p,), (v,))[1])  # noqa: E731
        flow = jax.jit(lambda p, v: heavy_ball_flow(loss, p, v, 1.0, 400, friction=0.7, record=record).history)
        turned, symmetric = flow(params, velocity)
        time = np.linspace(0, 1, 401)
        np.testing.assert_allclose(turned, turned[0] * np.exp(-0.7 * time)[:, None], rtol=0, atol=1e-9)
        assert (
            np.abs(symmetric - symmetric[0] * np.exp(-0.7 * time)[:, None]).max() > 1e-3
        )  # a symmetric one is not conserved
        grads = jax.grad(loss)(params)
        fast = jax.tree.map(lambda v, g: 0.8 * v + g, velocity, grads)
        new = jax.tree.map(lambda p, v: p - 0.1 * v, params, fast)
        np.testing.assert_allclose(turning(new, fast), 0.8 * turning(params, velocity), rtol=1e-10, atol=1e-14)


def test_what_adam_and_sign_descent_break_and_keep():
    """On a product u v: gradient flow keeps u^2 - v^2, sign descent |u| - |v|; Adam neither."""
    with jax.enable_x64(True):
        apply = lambda p, x: x * p["u"] * p["v"]  # noqa: E731
        params, x = {"u": jnp.array([1.5]), "v": jnp.array([0.4])}, jnp.array([1.0])
        kept = charges(js.discover(apply, params, x))
        grad = jax.grad(lambda p: ((apply(p, x) - 3) ** 2).sum())

        def end(optimizer):
            state, p = optimizer.init(params), params
            for _ in range(100):
                updates, state = optimizer.update(grad(p), state, p)
                p = optax.apply_updates(p, updates)
            return float(kept(p)[0] - kept(params)[0]), float((abs(p["u"]) - abs(p["v"]))[0] - 1.1)

        slow, adam, sign = end(optax.sgd(1e-4)), end(optax.adam(1e-2)), end(optax.sign_sgd(1e-3))
    assert abs(slow[0]) < 1e-4
    assert abs(slow[1]) > 1e-3
    assert abs(adam[0]) > 0.1
    assert abs(adam[1]) > 1e-3
    assert abs(sign[1]) < 1e-12
    assert abs(sign[0]) > 0.1


def test_flows_by_closed_form():
    with jax.enable_x64(True):
        end = gradient_flow(lambda x: x**2 / 2, jnp.array(2.0), 1.0, 100, weight_decay=0.5).params
        np.testing.assert_allclose(end, 2 * np.exp(-1.5), rtol=1e-9)
        swung = heavy_ball_flow(lambda x: 2 * x**2, jnp.array(1.0), jnp.array(0.0), 1.0, 200, friction=0.4)
        w = np.sqrt(4 - 0.04)
        want = np.exp(-0.2) * (np.cos(w) + 0.2 / w * np.sin(w))
        np.testing.assert_allclose(swung.params, want, rtol=1e-8)
    swung = heavy_ball_flow(lambda x: x**2 / 2, jnp.array(1.0), 0, np.pi, 40)  # a velocity in integers
    np.testing.assert_allclose(swung.params, -1, atol=1e-5)
    for flow in (gradient_flow, lambda loss, params, *rest: heavy_ball_flow(loss, params, params, *rest)):
        with pytest.raises(TypeError, match=r"a has dtype complex.*, expected a floating one; keep its real"):
            flow(lambda p: jnp.abs(p["a"]) ** 2, {"a": jnp.array(1 + 1j)}, 1.0, 4)
    with pytest.raises(ValueError, match="steps: got 0, expected an int of at least 1"):
        gradient_flow(lambda x: x**2, jnp.array(1.0), 1.0, 0)


@pytest.mark.parametrize("wrong", [jnp.ones(2), optax.constant_schedule(0.1), {"a": 0.1}, True])
def test_rates_are_numbers(wrong):
    apply = lambda p, x: jax.nn.relu(x * p["a"]) * p["b"]  # noqa: E731
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    sym = js.discover(apply, params, jnp.ones(1))
    with pytest.raises(TypeError, match=r"step_law: lr is .*, expected one number"):
        step_law(sym)(params, params, wrong)
    with pytest.raises(TypeError, match=r"momentum_law: momentum is .*, expected one number"):
        momentum_law(sym)(params, params, params, 0.1, wrong)
    with pytest.raises(TypeError, match=r"decayed: time is .*, expected one number"):
        decayed(charges(sym), jnp.ones(1), wrong, 0.1)
    with pytest.raises(TypeError, match=r"oscillated: lr is .*, expected one number"):
        oscillated(charges(sym), jnp.ones(1), jnp.ones((3, 1)), wrong)
