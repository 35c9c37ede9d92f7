"""Teleports: the published examples, losses unchanged, momentum carried; optimizers that see no rescaling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsym as js
from jaxsym.dynamics import balancing, charges, path_sgd, teleport, teleporting
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import BUILDERS

KEY = jax.random.key(2)


def turned(to, back):
    """Rotations in the plane of two functions of the parameters, of which the loss is the sum of squares."""

    def act(angle, p):
        u, v = to(p)
        c, s = jnp.cos(angle[0]), jnp.sin(angle[0])
        return back(jnp.array([c * u - s * v, s * u + c * v]))

    return js.Symmetry.from_action(act, 1), lambda p: jnp.sum(jnp.array(to(p)) ** 2)


BOOTH = turned(
    lambda p: (p[0] + 2 * p[1] - 7, 2 * p[0] + p[1] - 5),
    lambda w: jnp.array([(2 * (w[1] + 5) - (w[0] + 7)) / 3, (2 * (w[0] + 7) - (w[1] + 5)) / 3]),
)
ROSENBROCK = turned(
    lambda p: (10 * (p[0] ** 2 - p[1]), p[0] - 1), lambda w: jnp.array([w[1] + 1, (w[1] + 1) ** 2 - w[0] / 10])
)


def descend(function, start, lr, steps, moments):
    sym, loss = function
    p = jnp.array(start)
    grad, value = jax.jit(jax.grad(loss)), jax.jit(loss)
    jump = jax.jit(lambda p: teleport(sym, loss, p, radius=math.pi, starts=16, steps=30).params)
    for i in range(steps):
        if i in moments:
            moved = jump(p)
            assert abs(value(moved) - value(p)) < 1e-12 * max(1, value(p))
            p = moved
        p = p - lr * grad(p)
    return float(value(p))


def test_booth():
    with jax.enable_x64(True):
        assert descend(BOOTH, (5.0, -5.0), 0.08, 10, ()) == pytest.approx(2.2025, abs=1e-4)
        assert descend(BOOTH, (5.0, -5.0), 0.08, 10, (4,)) == pytest.approx(9.45e-4, rel=0.01)


def test_rosenbrock():
    with jax.enable_x64(True):
        assert descend(ROSENBROCK, (-1.0, -1.0), 1e-3, 1000, ()) == pytest.approx(0.11134, abs=1e-5)
        assert descend(ROSENBROCK, (-1.0, -1.0), 1e-3, 1000, range(100, 1000, 100)) < 1e-6


BRIEF = {"steps": 4, "starts": 1}


@pytest.fixture(
    scope="module", params=["relu", *(pytest.param(name, marks=pytest.mark.long) for name in ("identity", "attention"))]
)
def case(request):
    network = BUILDERS[request.param]()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, inputs = perturbed(KEY, wide(network.params)), wide(tuple(network.inputs))
        sym = js.discover(network.apply, params, *inputs)
        loss = lambda p: jnp.mean((network.apply(p, *inputs) - 1) ** 2)  # noqa: E731
        yield sym, params, loss


def test_the_loss_stays_and_the_gradient_grows(case):
    sym, params, loss = case
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        found = jax.jit(lambda p: teleport(sym, loss, p, radius=0.5))(params)
        before, after = (optax.tree.norm(jax.grad(loss)(p)) for p in (params, found.params))
        assert abs(loss(found.params) - loss(params)) < 1e-12
        np.testing.assert_allclose(after - before, found.gain, rtol=1e-9)
        assert found.gain > 0.01 * before
        assert jnp.linalg.norm(found.coordinates) <= 0.5 * (1 + 1e-9)
        assert bool(found.bounded) == bool(jnp.linalg.norm(found.coordinates) > 0.4999)
        there = sym.act(found.element, params)  # here without jit, which fuses: alike but for the last bits
        for one, other in zip(jax.tree.leaves(there), jax.tree.leaves(found.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13)


def test_an_objective_of_ones_own_and_curvature(case):
    sym, params, loss = case
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        small = lambda p: -optax.tree.norm(p)  # noqa: E731
        found = teleport(sym, loss, params, objective=small, radius=0.3, **BRIEF)
        assert small(found.params) > small(params)
        assert teleport(sym, loss, params, objective="gradient_curvature", radius=0.3, **BRIEF).gain > 0
        endless = teleport(sym, loss, params, objective=lambda p: optax.tree.norm(p) ** 2, radius=0.3)
        assert bool(endless.bounded)
        nowhere = teleport(sym, loss, params, objective=lambda p: jnp.nan * optax.tree.norm(p), **BRIEF)
        assert nowhere.gain == 0
        np.testing.assert_array_equal(nowhere.coordinates, 0)


@pytest.mark.parametrize(
    "make",
    [pytest.param(lambda: optax.sgd(0.01, 0.9), marks=pytest.mark.long), lambda: optax.adam(0.01)],
    ids=["momentum", "adam"],
)
def test_what_is_remembered_moves_along(case, make):
    """Gradients of the past are what they would have been on the other side; squares too, for rescalings exactly."""
    sym, params, loss = case
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        inner = make()
        _, state = inner.update(jax.grad(loss)(params), inner.init(params), params)
        opt = teleporting(make(), sym, loss, every=1, first=0, radius=0.4, **BRIEF)
        start = opt.init(params)._replace(inner=state)
        updates, after = opt.update(jax.grad(loss)(params), start, params)
        there = teleport(sym, loss, params, radius=0.4, **BRIEF).params
        fresh = jax.grad(loss)(there)
        _, moved = inner.update(fresh, inner.init(there), there)
        want, want_state = inner.update(fresh, moved, there)
        got = optax.apply_updates(params, updates)
        memory = lambda state: jax.tree.leaves(state[0].trace if hasattr(state[0], "trace") else state[0].mu)  # noqa: E731
        for one, other in zip(memory(after.inner), memory(want_state), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-11)
        diagonal = all(factor.kind not in ("general_linear", "orthogonal") for factor in sym.factors)
        if diagonal or hasattr(state[0], "trace"):
            for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(optax.apply_updates(there, want)), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.long
def test_squares_are_carried_by_the_square_of_the_map():
    """For changes of basis the estimate from signs is near the exact one, entry by entry squared."""
    network = BUILDERS["identity"]()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        from jax.flatten_util import ravel_pytree

        from jaxsym.dynamics.teleport import _remembered

        params = wide(network.params)
        sym = js.discover(network.apply, params, *wide(tuple(network.inputs)))
        element = sym.sample(KEY, 0.2)
        there, back = sym.act(element, params), sym.inverse(element)
        at, unravel = ravel_pytree(there)
        matrix = np.asarray(jax.jacobian(lambda at: ravel_pytree(sym.act(back, unravel(at)))[0])(at)).T
        _, pull = jax.vjp(lambda p: sym.act(back, p), there)
        squares = jax.tree.map(lambda leaf: leaf**2 + 0.1, params)
        state = optax.ScaleByAdamState(jnp.zeros([], int), params, squares)
        moved = _remembered(lambda v: pull(v)[0], params, state, "test")
        np.testing.assert_allclose(ravel_pytree(moved.mu)[0], matrix @ ravel_pytree(params)[0], atol=1e-12)
        want = matrix**2 @ ravel_pytree(squares)[0]
        got = np.asarray(ravel_pytree(moved.nu)[0])
        assert np.abs(got / want - 1).mean() < 0.3
        assert (got > 0).all()


def test_it_trains_under_scan_and_vmap_and_jumps_only_when_due():
    net, x = js.models.MLP((6, 1), "relu"), jax.random.normal(KEY, (20, 3))
    params = net.init(KEY, x)
    sym = js.discover(net.apply, params, x)
    cost = lambda p, batch, key: jnp.mean((net.apply(p, x) - jnp.sin(x[:, :1])) ** 2)  # noqa: E731

    def train(optimizer):
        return js.make_train(
            lambda key: perturbed(key, params),
            cost,
            optimizer,
            steps=12,
            probes={"charges": lambda seen: charges(sym)(seen.params)},
        )

    moving = train(teleporting(optax.sgd(1e-3), sym, every=5, radius=0.5))
    keys = jax.random.split(KEY, 3)
    run = jax.jit(jax.vmap(moving))(keys)
    jumps = np.abs(np.diff(run.history["charges"], axis=1)).max(axis=2) > 1e-2
    np.testing.assert_array_equal(np.flatnonzero(jumps.all(axis=0)), [5, 10])
    np.testing.assert_array_equal(np.flatnonzero(jumps.any(axis=0)), [5, 10])
    still = jax.jit(jax.vmap(train(optax.sgd(1e-3))))(keys)
    assert (run.history["loss"][:, -1] < still.history["loss"][:, -1]).all()
    # in one piece or in several, the branch that teleports is taken for all networks at once: it stays a branch
    pieces = jax.vmap(moving.advance, in_axes=(0, None, None))
    started = jax.jit(jax.vmap(moving.start))(keys)
    text = str(jax.make_jaxpr(pieces)(started, 0, 12))
    assert text.count("cond[") >= 1
    advanced = jax.jit(pieces)(started, 0, 12)
    for one, other in zip(jax.tree.leaves(advanced.params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_lane_computes_a_teleport_that_is_not_due():
    """Counted on the host: under vmap a mapped counter would call in every step."""
    net, x = js.models.MLP((4, 1), "relu"), jax.random.normal(KEY, (20, 3))
    params = net.init(KEY, x)
    sym = js.discover(net.apply, params, x)
    calls = []

    def counted(p):
        jax.debug.callback(lambda _: calls.append(1), p["params"]["Dense_1"]["bias"][0])
        return optax.tree.norm(p)

    cost = lambda p, batch, key: jnp.mean((net.apply(p, x) - 1) ** 2)  # noqa: E731
    opt = teleporting(optax.sgd(1e-3), sym, every=4, objective=counted, steps=1, starts=1)
    train = js.make_train(lambda key: perturbed(key, params), cost, opt, steps=9)
    keys = jax.random.split(KEY, 3)
    jax.block_until_ready(jax.jit(jax.vmap(train))(keys))
    jax.effects_barrier()
    once = len(calls)
    assert 0 < once <= 2 * 3 * 3  # two teleports (4 and 8), three networks, at most three looks each
    calls.clear()
    started = jax.jit(jax.vmap(train.start))(keys)
    jax.block_until_ready(jax.jit(jax.vmap(train.advance, in_axes=(0, None, None)))(started, 0, 9))
    jax.effects_barrier()
    assert len(calls) == once


def test_path_sgd_commutes_with_rescaling_where_sgd_does_not():
    net, x = js.models.MLP((5, 4, 2), "relu"), jax.random.normal(KEY, (20, 3))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, x = perturbed(KEY, wide(net.init(KEY, x))), wide(x)
        sym = js.discover(net.apply, params, x)
        y = jnp.sin(x[:, :2])
        element = sym.exp(0.7 * jax.random.normal(KEY, (sym.dim,)))

        def after(opt, p):
            @jax.jit
            def step(carry, _):
                p, state = carry
                updates, state = opt.update(jax.grad(lambda p: jnp.mean((net.apply(p, x) - y) ** 2))(p), state, p)
                return (optax.apply_updates(p, updates), state), None

            return jax.lax.scan(step, (p, opt.init(p)), length=30)[0][0]

        def error(opt):
            one = sym.act(element, after(opt, params))
            other = after(opt, sym.act(element, params))
            return max(
                float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
            )

        assert error(path_sgd(net.apply, 0.05, x[:1])) < 1e-12
        assert error(optax.sgd(0.05)) > 1e-2


def test_kappa_by_hand():
    """The sum over paths through each weight, of two layers without biases."""
    apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    with jax.enable_x64(True):
        a, b = np.arange(1.0, 7).reshape(2, 3), np.arange(1.0, 7).reshape(3, 2) - 2.5
        opt = path_sgd(apply, 1.0, jnp.ones((1, 2)))
        params, ones = {"a": a, "b": b}, {"a": np.ones((2, 3)), "b": np.ones((3, 2))}
        updates, _ = opt.update(ones, opt.init(params), params)
        np.testing.assert_allclose(updates["a"], -1 / np.broadcast_to((b**2).sum(1), (2, 3)), rtol=1e-12)
        np.testing.assert_allclose(updates["b"], -1 / np.broadcast_to((a**2).sum(0)[:, None], (3, 2)), rtol=1e-12)


def test_balancing_keeps_every_charge_at_zero():
    net, x = js.models.MLP((5, 4, 2), "relu"), jax.random.normal(KEY, (20, 3))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, x = perturbed(KEY, wide(net.init(KEY, x))), wide(x)
        sym = js.discover(net.apply, params, x)
        kept = charges(sym)
        loss = lambda p: jnp.mean((net.apply(p, x) - 1) ** 2)  # noqa: E731
        opt, balance = balancing(optax.sgd(0.05, 0.9), sym), jax.jit(lambda p: js.symmetry.balance(sym, p))
        update, gradient = jax.jit(opt.update), jax.jit(jax.grad(loss))
        state, p = opt.init(params), params
        for _ in range(3):
            updates, state = update(gradient(p), state, p)
            p = optax.apply_updates(p, updates)
        assert np.abs(kept(params)).max() > 0.1
        assert np.abs(kept(balance(p))).max() < 1e-12
        plain = optax.sgd(0.05, 0.9)
        q, memory = balance(params), plain.init(params)
        updates, memory = plain.update(jax.grad(loss)(q), memory, q)
        q = optax.apply_updates(q, updates)
        first, _ = update(gradient(params), opt.init(params), params)
        for one, other in zip(jax.tree.leaves(optax.apply_updates(params, first)), jax.tree.leaves(q), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def gated(p, x):
    return ((x @ p["w"]) * jax.nn.sigmoid(x @ p["v"])) @ p["o"]


def test_a_group_of_signs_and_orders_beside_a_continuous_part():
    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((3, 4)), "o": jnp.ones((4, 2))}
    x = jax.random.normal(KEY, (8, 3))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = perturbed(KEY, wide(params))
        sym = js.discover(gated, params, x)
        assert sym.dim > 0
        assert sym.order > 1
        loss = lambda p: jnp.mean((gated(p, x) - 1) ** 2)  # noqa: E731
        opt = teleporting(optax.sgd(0.0), sym, loss, every=1, first=0, radius=0.2, **BRIEF)
        updates, _ = jax.jit(opt.update)(jax.grad(loss)(params), opt.init(params), params)
        moved = optax.apply_updates(params, updates)
        assert abs(loss(moved) - loss(params)) < 1e-12
        assert optax.tree.norm(jax.grad(loss)(moved)) > 1.01 * optax.tree.norm(jax.grad(loss)(params))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (optax.adamax(0.1), "does not move as gradients"),
        (optax.novograd(0.1), "does not move as gradients"),
        (optax.rmsprop(0.1, momentum=0.9), "does not move as gradients"),
        (optax.chain(optax.scale_by_adam(), optax.trace(0.9)), "does not move as gradients"),
        (optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9)), "does not move as gradients"),
        (
            optax.masked(optax.adam(0.1), {"u": True, "v": False}),
            r"does not move as gradients|remembers state.inner_state\[0\].mu\['u'\]",
        ),
        (optax.optimistic_gradient_descent(0.1), r"remembers state\[0\].previous_gradient"),
    ],
    ids=["adamax", "novograd", "rmsprop", "adam before momentum", "decay before momentum", "masked", "optimistic"],
)
@pytest.mark.parametrize("shape", [(1,), ()])
def test_what_cannot_be_carried_is_refused(optimizer, said, shape):
    scaled = js.Symmetry.from_action(lambda t, p: {"u": p["u"] * jnp.exp(t[0]), "v": p["v"] * jnp.exp(-t[0])}, 1)
    params = {"u": jnp.full(shape, 2.0), "v": jnp.ones(shape)}
    with pytest.raises(ValueError, match=said):
        teleporting(optimizer, scaled, lambda p: (p["u"] * p["v"] - 3) ** 2, every=1).init(params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-3, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
        optax.adam(1e-3, mu_dtype=jnp.bfloat16),
        optax.adagrad(0.1),
        optax.rmsprop(0.1, centered=True),
        optax.inject_hyperparams(optax.adam)(1e-3),
    ],
    ids=["adamw", "clipped", "half precision", "adagrad", "rmsprop", "injected"],
)
def test_what_can_be_carried_is_not(optimizer):
    scaled = js.Symmetry.from_action(lambda t, p: {"u": p["u"] * jnp.exp(t[0]), "v": p["v"] * jnp.exp(-t[0])}, 1)
    params = {"u": jnp.full(3, 2.0), "v": jnp.ones(3)}
    loss = lambda p: jnp.sum((p["u"] * p["v"] - 3) ** 2)  # noqa: E731
    opt = teleporting(optimizer, scaled, loss, every=1, first=0, **BRIEF)
    updates, _ = opt.update(jax.grad(loss)(params), opt.init(params), params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_states_are_tried_in_single_precision_at_least(dtype):
    scaled = js.Symmetry.from_action(lambda t, p: p | {"u": p["u"] * jnp.exp(t[0]), "v": p["v"] * jnp.exp(-t[0])}, 1)
    params = {"u": jnp.ones(2, dtype), "v": jnp.ones(2, dtype), "none": jnp.ones((0, 3), dtype)}
    loss = lambda p: jnp.sum((p["u"] * p["v"] - 3) ** 2)  # noqa: E731
    for fine in (optax.adagrad(0.1), optax.yogi(0.1), optax.adam(0.1)):
        teleporting(fine, scaled, loss, every=1).init(params)
    decayed = teleporting(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9)), scaled, loss, every=1)
    with pytest.raises(ValueError, match="does not move as gradients"):
        decayed.init(params)


def test_a_rate_may_be_traced():
    scaled = js.Symmetry.from_action(lambda t, p: p * jnp.exp(t[0] * jnp.array([1.0, -1])), 1)
    loss = lambda p: (p[0] * p[1] - 3) ** 2  # noqa: E731
    start = jax.jit(lambda lr: teleporting(optax.adam(lr), scaled, loss, every=1).init(jnp.ones(2)))(0.1)
    assert int(start.number) == 0


def test_paths_are_found_inside_jit():
    relu = lambda z: jnp.where(z > 0, z, 0)  # noqa: E731
    opt = path_sgd(lambda p, x: relu(x @ p["a"]) @ p["b"], 0.1, jnp.ones((1, 2)))
    assert int(jax.jit(opt.init)({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))})) == 0


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_group_of_another_loss_is_refused(is_wide):
    """With parameters in float32 whatever the loss is computed in, in half and in double precision."""
    net = js.models.MLP((4, 1), "relu")
    with jax.enable_x64(is_wide):
        x = jax.random.normal(KEY, (20, 3), "float32")
        params = perturbed(KEY, net.init(KEY, x))
        sym = js.discover(net.apply, params, x)
        plain = lambda p: jnp.mean((net.apply(p, x) - 1) ** 2)  # noqa: E731
        solved = lambda p: jnp.mean((net.apply(p, x) - net.apply(params, x)) ** 2)  # noqa: E731
        for loss in (plain, solved):
            assert teleport(sym, loss, params, **BRIEF).change < 1e-3
        decayed = lambda p: plain(p) + 0.1 * optax.tree.norm(p, squared=True)  # noqa: E731
        with pytest.raises(
            ValueError, match=r"teleport: the loss changes by .*weight decay belongs into the optimizer"
        ):
            teleport(sym, decayed, params, **BRIEF)
        if is_wide:
            slightly = lambda p: plain(p) + 1e-2 * optax.tree.norm(p, squared=True)  # noqa: E731
            with pytest.raises(ValueError, match="the loss changes by"):
                teleport(sym, slightly, wide(params), radius=0.1, **BRIEF)
        else:
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
            assert teleport(sym, plain, half, radius=0.1, **BRIEF).change < 0.1


def test_bad_input():
    net, x = js.models.MLP((4, 1), "relu"), jnp.ones((5, 3))
    params = net.init(KEY, x)
    sym = js.discover(net.apply, params, x)
    loss = lambda p: jnp.mean(net.apply(p, x) ** 2)  # noqa: E731
    with pytest.raises(TypeError, match="teleport: sym is of type dict"):
        teleport({}, loss, params)
    for radius in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"radius: got {radius}, expected more than 0 and finite"):
            teleport(sym, loss, params, radius=radius)
    with pytest.raises(ValueError, match="teleport: steps: got 2\\.5, expected an int"):
        teleport(sym, loss, params, steps=2.5)
    with pytest.raises(ValueError, match=r"the objective returns .*expected one real number"):
        teleport(sym, loss, params, objective=lambda p: p["params"]["Dense_0"]["bias"])
    with pytest.raises(ValueError, match="params/Dense_0/kernel is missing"):
        teleport(sym, loss, {"params": {"Dense_0": {"bias": jnp.ones(4)}}})
    with pytest.raises(TypeError, match=r"teleport: step has dtype int.*expected a floating one; close over it"):
        teleport(sym, loss, params | {"step": 3})
    with pytest.raises(TypeError, match="path_sgd: step has dtype int"):
        path_sgd(net.apply, 0.1, x).init(params | {"step": 3})
    with pytest.raises(TypeError, match="teleporting: optimizer is of type str, expected one of optax"):
        teleporting("adam", sym, loss, every=1)
    with pytest.raises(ValueError, match="starts: got 0"):
        teleport(sym, loss, params, starts=0)
    with pytest.raises(ValueError, match="objective"):
        teleport(sym, loss, params, objective="sharpest")
    with pytest.raises(ValueError, match="every: got 0"):
        teleporting(optax.sgd(0.1), sym, loss, every=0)
    with pytest.raises(ValueError, match="the optimizer remembers"):
        teleporting(optax.lbfgs(), sym, loss, every=1).init(params)
    opt = teleporting(optax.sgd(0.1), sym, every=1)
    with pytest.raises(ValueError, match="no loss"):
        opt.update(params, opt.init(params), params)
    with pytest.raises(ValueError, match="update needs the parameters"):
        opt.update(params, opt.init(params))
    with pytest.raises(ValueError, match=r"path_sgd: the network has tanh"):
        path_sgd(js.models.MLP((4, 1), "tanh").apply, 0.1, x).init(params)
    finite = js.discover(js.models.MLP((4, 1), "tanh").apply, params, x)
    still = teleport(finite, loss, params)
    assert (still.gain, bool(still.bounded), still.coordinates.shape) == (0, False, (0,))
