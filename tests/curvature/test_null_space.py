"""Null spaces against the integers of theory, and orbits inside them where they must be, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym.curvature import Flat, checks, effective_dimension, flat, hessian, sharpness
from jaxsym.curvature.null_space import ranked
from jaxsym.symmetry.certify import GAP
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.paths import path_norm
from jaxsym.symmetry.precision import wide

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def case(widths, activation, *, use_bias=True, rows=60, seed=0):
    """A network at random parameters, and targets that it meets exactly."""
    keys = jax.random.split(jax.random.key(seed), 3)
    net = js.models.MLP(widths[1:], activation, use_bias)
    x = jax.random.normal(keys[0], (rows, widths[0]))
    params = perturbed(keys[1], wide(net.init(keys[2], x)), 1.0)
    y = net.apply(params, x)

    away = jax.random.normal(jax.random.key(7), y.shape)

    def loss(params, distance=0.0):
        return jnp.mean(jnp.sum((net.apply(params, x) - y - distance * away) ** 2, axis=-1)) / 2

    return net, x, params, loss


@pytest.mark.parametrize(
    ("widths", "at_zero", "elsewhere"),
    [
        ((3, 4, 2), 6, 18),
        pytest.param((5, 3, 4), 18, 27, marks=pytest.mark.long),
        pytest.param((3, 4, 4, 2), 6, 30, marks=pytest.mark.long),
        pytest.param((5, 3, 4, 2), None, None, marks=pytest.mark.long),
    ],
)
def test_linear_networks_have_the_rank_of_the_formula(widths, at_zero, elsewhere):
    net, x, params, loss = case(widths, "identity", use_bias=False)
    sym = js.discover(net.apply, params, x)
    found = flat(loss, params, sym, apply=net.apply, inputs=(x,))
    assert int(found.rank) == js.count.linear_hessian_rank(widths)
    assert found.gap > 1e6
    assert bool(found.contained)
    assert bool(found.critical)
    assert (
        int(found.unexplained)
        == int(found.nullity - found.orbit_dim)
        == int(found.hidden + found.on_data + found.beyond)
    )
    away = flat(lambda params: loss(params, 0.7), params, sym)
    assert not bool(away.contained)
    assert not bool(away.critical)
    assert found.identity < 1e-13
    assert away.identity < 1e-13
    if at_zero:
        assert (int(found.rank), int(away.rank)) == (at_zero, elsewhere)
        assert js.count.linear_hessian_rank(widths, zero_residual=False) == elsewhere
    if len(widths) == 4 and at_zero is None:
        assert int(found.nullity) > int(found.orbit_dim)


def test_the_rank_of_the_data_counts():
    net, x, params, _ = case((5, 3, 4), "identity", use_bias=False)
    flattened = np.asarray(x) * [1, 1, 1, 1, 0]
    y = net.apply(params, flattened)
    found = flat(lambda p: jnp.mean((net.apply(p, flattened) - y) ** 2), params, js.discover(net.apply, params, x))
    assert int(found.rank) == js.count.linear_hessian_rank((5, 3, 4), 4)


@pytest.mark.parametrize(("activation", "nullity"), [("tanh", 0), ("relu", 4), ("square", 6)])
def test_null_spaces_at_zero_residual_are_kernels_of_the_jacobian(activation, nullity):
    net, x, params, _ = case((3, 4, 2), activation, rows=200)
    sym = js.discover(net.apply, params, x)

    @jax.vmap
    def found(key):  # at several parameters: dead and always-on units add to the null space
        there = perturbed(key, params, 1.0)
        y = net.apply(there, x)
        return flat(lambda p: jnp.mean((net.apply(p, x) - y) ** 2), there, sym, apply=net.apply, inputs=(x,))

    seen = jax.jit(found)(jax.random.split(KEY, 12))
    clear = seen.gap >= 1e4
    assert clear.sum() >= 8
    assert seen.contained.all()
    assert (seen.orbit_dim == sym.dim).all()
    assert (seen.on_data == 0)[clear].all()
    assert (seen.beyond == 0)[clear].all()
    assert seen.nullity[clear].min() == nullity
    assert seen.hidden[clear].min() == nullity - sym.dim


@pytest.mark.parametrize(("hidden", "rows"), [(6, 10), pytest.param(16, 20, marks=pytest.mark.long)])
def test_too_few_data_are_told_apart_from_symmetry(hidden, rows):
    net, x, params, loss = case((3, hidden, 1), "tanh", rows=rows)
    found = flat(loss, params, js.discover(net.apply, params, x), apply=net.apply, inputs=(x,))
    more = 5 * hidden + 1 - rows
    assert (int(found.nullity), int(found.hidden), int(found.on_data), int(found.beyond)) == (more, 0, more, 0)
    said = f"{more} flat dimensions are not the group's (0 are): 0 at any input, {more} on these inputs only, 0 of the loss"
    assert said in str(found)


def test_one_row_is_told_apart_from_symmetry_too():
    """However few outputs there are, further draws have more of them than there are parameters."""
    net, x, params, loss = case((3, 6, 1), "tanh", rows=1)
    found = flat(loss, params, js.discover(net.apply, params, x), apply=net.apply, inputs=(x,))
    assert (int(found.hidden), int(found.on_data), int(found.beyond)) == (0, 30, 0)


def test_away_from_critical_points_the_null_space_is_not_the_orbit():
    """One ReLU unit: the Hessian of (a b - 6)^2 / 2 is singular where a b = 2 or 6, at 2 along (a, b), across the orbit."""

    def apply(params, x):
        return jax.nn.relu(x * params["a"]) * params["b"]

    params, x = {"a": jnp.ones(1), "b": 2 * jnp.ones(1)}, jnp.ones(1)
    sym = js.discover(apply, params, x)
    found = flat(lambda p: ((apply(p, x) - 6) ** 2).sum() / 2, params, sym, apply=apply, inputs=(x,))
    assert (int(found.nullity), int(found.orbit_dim), bool(found.contained)) == (1, 1, False)
    assert (int(found.unexplained), int(found.hidden), int(found.on_data), int(found.beyond)) == (1, 0, 0, 1)


@pytest.mark.parametrize("distance", [0.0, 0.7])
def test_parts_add_up_and_none_is_negative(distance):
    """At targets that float32 rounds, and at others."""
    net, x, params, _ = case((3, 4, 2), "relu")
    away = jax.random.normal(jax.random.key(7), (60, 2))
    y = np.asarray(net.apply(params, x) + distance * away, np.float32)
    sym = js.discover(net.apply, params, x)
    found = flat(lambda p: ((net.apply(p, x) - y) ** 2).mean(), params, sym, apply=net.apply, inputs=(x,))
    parts = [int(found.hidden), int(found.on_data), int(found.beyond)]
    assert sum(parts) == int(found.unexplained)
    assert min(parts) >= 0
    if not distance:
        assert (int(found.nullity), int(found.unexplained)) == (4, 0)


@pytest.mark.parametrize(("given", "hidden"), [(3, 4 * 2 + 2 * 2), (7, 2 * 2)])
def test_integers_stay_as_they_are(given, hidden):
    """Tokens that are not given may have any embedding; tanh(e) w is the same for (tanh(e) A) (A^-1 w), which no linear group on e is."""

    def apply(params, tokens):
        return jnp.tanh(params["e"][tokens]) @ params["w"]

    params = {"e": jax.random.normal(KEY, (7, 2)), "w": jax.random.normal(jax.random.key(1), (2, 3))}
    tokens = jnp.arange(given)
    y = apply(params, tokens)
    sym = js.discover(apply, params, tokens)
    found = flat(lambda p: ((apply(p, tokens) - y) ** 2).sum(), params, sym, apply=apply, inputs=(tokens,))
    assert (int(found.hidden), int(found.on_data), int(found.beyond)) == (hidden, 0, 0)


class TestRefused:
    def test_a_network_that_computes_in_less(self):
        net, x, params, _ = case((3, 4, 2), "relu")
        sym = js.discover(net.apply, params, x)

        def coarse(params, x):
            return net.apply(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), x)

        said = "computes in bfloat16 somewhere, though its parameters are float64"
        with pytest.raises(ValueError, match=f"flat: the function {said}"):
            flat(lambda params: (coarse(params, x) ** 2).mean(), params, sym)
        with pytest.raises(ValueError, match=f"flat: the function {said}"):
            flat(lambda params: (net.apply(params, x) ** 2).mean(), params, sym, apply=coarse, inputs=(x,))
        with pytest.raises(ValueError, match=f"effective_dimension: the function {said}"):
            effective_dimension(coarse, params, x)

        rounded = lambda params, x: jax.lax.reduce_precision(net.apply(params, x), 8, 7)  # noqa: E731
        with pytest.raises(ValueError, match="effective_dimension: the function computes in reduced precision"):
            effective_dimension(rounded, params, x)

    def test_outputs_that_are_no_real_numbers(self):
        assert effective_dimension(lambda p, x: jnp.fft.fft(p * x), jnp.ones(4), jnp.ones(4)) == 4
        with pytest.raises(ValueError, match="effective_dimension: apply returns no real or complex numbers"):
            effective_dimension(lambda p, x: jnp.argmax(p * x), jnp.ones(4), jnp.ones(4))

    def test_derivatives_that_are_not_finite(self):
        def apply(params, x):
            return jnp.sqrt(params["w"]) * x

        params, x = {"w": jnp.array([1.0, 0.0])}, jnp.ones(2)
        with pytest.raises(ValueError, match=r"effective_dimension: derivatives of the outputs .* has 1 entries"):
            effective_dimension(apply, params, x)
        assert jax.jit(lambda params: effective_dimension(apply, params, x))(params) == -1
        with pytest.raises(ValueError, match=r"effective_dimension: derivatives of the outputs"):
            effective_dimension(lambda params, x: params["w"] * x, params, x * jnp.nan)

    def test_float64_where_jax_computes_in_float32(self):
        net, x, params, loss = case((3, 4, 2), "relu")
        sym = js.discover(net.apply, params, x)
        with jax.enable_x64(False), pytest.raises(TypeError, match=r"is float64 where JAX computes in float32: do all"):
            jax.jit(lambda params: flat(loss, params, sym))(params)

    @pytest.mark.parametrize("small", [0, -1, 1, np.nan])
    def test_a_part_that_is_none(self, small):
        net, x, params, loss = case((3, 4, 2), "relu")
        with pytest.raises(ValueError, match=r"flat: small: got .*, expected a part of the largest eigenvalue"):
            flat(loss, params, js.discover(net.apply, params, x), small=small)

    def test_inputs_that_are_no_tuple(self):
        net, x, params, loss = case((3, 4, 2), "relu")
        with pytest.raises(TypeError, match=r"flat: inputs is of type .*, expected a tuple"):
            flat(loss, params, js.discover(net.apply, params, x), apply=net.apply, inputs=x)

    def test_a_jacobian_that_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(checks, "_free_bytes", lambda: 2**20)
        with pytest.raises(ValueError, match=r"effective_dimension: .* take 0.. GiB, .*; take fewer inputs"):
            effective_dimension(lambda w, x: x @ w, jnp.ones(1000), jnp.ones((1000, 1000)))


@pytest.mark.long
def test_the_softmax_shift_is_flat_everywhere():
    net, x, params, _ = case((4, 6, 3), "tanh", rows=100)
    labels = np.arange(100) % 3

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), labels).mean()

    found = flat(loss, params, js.discover(loss, params), apply=net.apply, inputs=(x,))
    assert (int(found.nullity), int(found.orbit_dim), bool(found.contained), bool(found.critical)) == (
        7,
        7,
        True,
        False,
    )
    assert int(found.unexplained) == 0
    of_the_network = flat(loss, params, js.discover(net.apply, params, x), apply=net.apply, inputs=(x,))
    assert (int(of_the_network.unexplained), int(of_the_network.beyond)) == (7, 7)


@pytest.mark.parametrize(
    "clusters", [(3, 2), *(pytest.param(clusters, marks=pytest.mark.long) for clusters in ((1, 1), (4, 1)))]
)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_copied_units_have_the_rank_of_the_formula(activation, outputs, clusters):
    net, x, params, _ = case((3, sum(clusters), outputs), activation, rows=200)
    of = np.repeat(np.arange(len(clusters)), clusters)
    first = np.searchsorted(of, of)  # every unit reads what the first of its group reads

    @jax.vmap
    def rank(key):
        layers = perturbed(key, params, 1.0)["params"]
        layer = layers["Dense_0"]
        there = {"params": layers | {"Dense_0": {"kernel": layer["kernel"][:, first], "bias": layer["bias"][first]}}}
        y = net.apply(there, x)
        matrix = hessian(lambda p: jnp.mean((net.apply(p, x) - y) ** 2), there)
        return ranked(jnp.abs(jnp.linalg.eigvalsh(matrix)), 1e-6)[0]

    ranks = jax.jit(rank)(jax.random.split(KEY, 12))
    assert int(ranks.max()) == js.count.duplicated_hessian_rank(3, clusters, outputs, smooth=activation == "tanh")


def test_a_group_of_another_loss_is_no_orbit_of_this_one():
    _net, x, params, loss = case((3, 4, 2), "tanh")
    relu = js.models.MLP((4, 2), "relu")
    found = flat(loss, params, js.discover(relu.apply, params, x))
    assert not bool(found.contained)
    away = flat(lambda params: loss(params, 0.7), params, js.discover(relu.apply, params, x))
    assert away.identity > 1e-3  # the identity of a symmetry fails
    assert "this loss does not have this group" in str(away)


def test_many_at_once_are_as_each_alone():
    net, x, params, loss = case((3, 4, 2), "relu")
    sym = js.discover(net.apply, params, x)
    many = jax.vmap(lambda key: perturbed(key, params))(jax.random.split(KEY, 5))
    found = js.parallel(lambda params: flat(loss, params, sym, apply=net.apply, inputs=(x,)), chunk=2)(many)
    assert found.outside.shape == (5, 4)
    for i in (0, 4):
        alone = flat(loss, jax.tree.map(lambda leaf: leaf[i], many), sym, apply=net.apply, inputs=(x,))  # noqa: B023
        assert [int(getattr(found, name)[i]) for name in ("rank", "nullity", "hidden", "negative")] == [
            int(getattr(alone, name)) for name in ("rank", "nullity", "hidden", "negative")
        ]


@pytest.mark.parametrize(
    ("sizes", "rank"),
    [
        ([3.0, 1e-3, 1e-13, 1e-15], 2),
        ([1.0, 0.5], 2),
        ([0.0, 0.0], 0),
        ([5.0, 1e-4, 0.0], 2),
        ([1.0, 1e-3, 1e-8, 1e-16], 3),
        ([1.0, 0.1, 0.003, 2e-5, 9e-7], 5),
        ([1.0, 1e-5, 3e-7, 1e-8, 1e-9], 5),
        ([2.0], 1),
    ],
)
def test_ranks_by_the_widest_gap(sizes, rank):
    found, gap, limit = ranked(jnp.array(sizes), 1e-6)
    assert int(found) == rank
    assert (np.array(sizes) > float(limit)).sum() == rank
    assert gap > 10 or rank == 0


@pytest.mark.parametrize(
    ("sizes", "trusted"),
    [([1.0, 1e-3, 5e-6, 1e-8, 1e-17], True), ([1.0, 1e-2, 1e-9, 1e-17], False)],  # gaps of 500 and 4e7, of 1e7 and 4e6
)
def test_two_gaps_of_like_width_leave_the_rank_in_doubt(sizes, trusted):
    _, gap, _ = ranked(jnp.array(sizes), 1e-6)
    assert bool(gap >= GAP) is trusted


def test_targets_in_float32_and_a_dead_unit_leave_the_rank_in_doubt():
    def apply(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]

    keys = jax.random.split(KEY, 4)
    x = jax.random.normal(keys[0], (60, 2))
    params = {
        "w": jax.random.normal(keys[1], (2, 3)),
        "b": jnp.array([-10.0, 0.1, -0.2]),
        "v": jax.random.normal(keys[2], (3, 1)),
    }
    sym, exact = js.discover(apply, params, x), apply(params, x)
    coarse = exact.astype(jnp.float32).astype(jnp.float64)
    found = [flat(lambda p, y=y: jnp.mean((apply(p, x) - y) ** 2), params, sym) for y in (exact, coarse)]
    assert (int(found[0].rank), bool(found[0].gap >= GAP)) == (6, True)
    assert int(found[1].rank) == 6 or found[1].gap < GAP
    assert int(found[1].rank) == effective_dimension(apply, params, x)


@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_ranks_are_the_same_along_the_orbit(factor):
    net, x, params, loss = case((3, 3, 2), "relu", use_bias=False, rows=40)
    sym = js.discover(net.apply, params, x)
    kernels = {name: layer["kernel"] for name, layer in params["params"].items()}
    factors = jnp.array([factor, 1.0, 1 / factor])
    moved = {
        "params": {
            "Dense_0": {"kernel": kernels["Dense_0"] * factors},
            "Dense_1": {"kernel": kernels["Dense_1"] / factors[:, None]},
        }
    }
    here, there = flat(loss, params, sym), flat(loss, moved, sym, apply=net.apply, inputs=(x,))
    assert int(here.rank) == int(there.rank) == effective_dimension(net.apply, moved, x) == 12
    assert bool(there.contained)
    assert there.gap > 1e6
    assert int(there.unexplained) == 0
    values = hessian(loss, moved)
    np.testing.assert_allclose(there.eigenvalues, np.linalg.eigvalsh(values), atol=1e-12 * np.abs(values).max())
    np.testing.assert_allclose(there.outside, here.outside, atol=1e-9)


@pytest.mark.parametrize("factor", [1e3, 1e6])
@pytest.mark.parametrize("silent", [slice(0, 1), slice(None)])
def test_units_that_nothing_reads_are_taken_at_size_one(silent, factor):
    net, x, params, _ = case((3, 4, 2), "relu", use_bias=False)
    kernels = [params["params"][f"Dense_{i}"]["kernel"] for i in range(2)]
    y = net.apply(params, x) if silent.stop else jax.random.normal(KEY, (60, 2))

    def found(size):
        layers = [kernels[0].at[:, silent].mul(size), kernels[1].at[silent].set(0)]
        at = {"params": {f"Dense_{i}": {"kernel": layer} for i, layer in enumerate(layers)}}
        target = net.apply(at, x) if silent.stop else y
        return flat(lambda p: jnp.mean((net.apply(p, x) - target) ** 2), at, js.discover(net.apply, params, x))

    near, far = found(1.0), found(factor)
    assert min(near.gap, far.gap) > 1e6
    told = ("rank", "negative", "critical", "contained", "unexplained")
    assert [int(getattr(near, name)) for name in told] == [int(getattr(far, name)) for name in told]
    assert bool(far.critical) == bool(silent.stop)


def test_a_dead_unit_of_any_size_makes_no_point_critical():
    net, x, params, _ = case((3, 4, 2), "relu")
    layers = params["params"]
    hidden, out = layers["Dense_0"], layers["Dense_1"]
    hidden = {"kernel": hidden["kernel"].at[:, 0].mul(1e6), "bias": hidden["bias"].at[0].set(-1e8)}
    params = {"params": {"Dense_0": hidden, "Dense_1": out | {"kernel": out["kernel"].at[0].mul(1e6)}}}
    sym, y = js.discover(net.apply, params, x), net.apply(params, x)
    away = 1e-4 * jax.random.normal(KEY, y.shape)
    at, off = (flat(lambda p, y=y: jnp.mean((net.apply(p, x) - y) ** 2), params, sym) for y in (y, y + away))
    assert (bool(at.critical), bool(at.contained)) == (True, True)
    assert (bool(off.critical), bool(off.contained)) == (False, False)


def test_it_says_which_case_it_is():
    net, x, params, loss = case((3, 4, 2), "relu")
    sym = js.discover(net.apply, params, x)
    here, away = str(flat(loss, params, sym)), str(flat(lambda params: loss(params, 0.5), params, sym))
    assert "a critical point" in here
    assert "the orbit lies in the null space" in here
    assert "no critical point" in away
    assert "the orbit does not lie in the null space, as it need not" in away
    assert "does not have this group" not in away
    assert isinstance(flat(loss, params, sym), Flat)
    smooth = js.models.MLP((4, 2), "tanh")
    nothing = str(flat(lambda p: (smooth.apply(p, x) ** 2).mean(), params, js.discover(smooth.apply, params, x)))
    assert "there is no continuous symmetry" in nothing
    many = jax.vmap(lambda key: perturbed(key, params))(jax.random.split(KEY, 3))
    said = str(jax.jit(jax.vmap(lambda params: flat(loss, params, sym)))(many))
    assert said.startswith("3 networks: rank ")
    assert "0 at critical points" in said


def test_a_group_is_wanted():
    net, _, params, loss = case((3, 4, 2), "relu")
    with pytest.raises(TypeError, match="flat: sym is of type method, expected a Symmetry"):
        flat(loss, params, net.init)


class TestWhatSymmetryCannotFool:
    def moved(self, log):
        net, x, params, loss = case((3, 4, 2), "relu")
        sym = js.discover(net.apply, params, x)
        return net, x, sym.act(sym.exp(jnp.zeros(sym.dim).at[1].set(log)), params), loss, sym

    @pytest.mark.long
    def test_raw_sharpness_grows_without_bound_and_its_minimum_stays(self):
        found = []
        for log in (0.0, 2.0, 6.0):
            net, x, params, loss, sym = self.moved(log)
            matrix = hessian(loss, params)
            measured = sharpness(loss, params, sym)
            np.testing.assert_allclose(measured.trace, np.trace(matrix), rtol=1e-10)
            np.testing.assert_allclose(measured.largest, np.linalg.eigvalsh(matrix)[-1], rtol=1e-10)
            found.append((measured, path_norm(net.apply, params, x[:1]), effective_dimension(net.apply, params, x)))
        (first, norm, dimension), _, (last, moved_norm, moved_dimension) = found
        assert last.largest > 1e3 * first.largest
        assert last.trace > 1e3 * first.trace
        for one, _, _ in found:
            np.testing.assert_allclose(one.least_trace, first.least_trace, rtol=1e-6)
            np.testing.assert_allclose(one.least_largest, first.least_largest, rtol=1e-2)
            assert one.least_trace < one.trace
            assert one.least_largest < one.largest
            assert bool(one.trace_settled)
        np.testing.assert_allclose(norm, moved_norm, rtol=1e-6)
        assert int(dimension) == int(moved_dimension) == int(np.linalg.matrix_rank(self.jacobian()))

    def jacobian(self):
        net, x, params, _ = case((3, 4, 2), "relu")
        vector, back = ravel_pytree(params)
        return np.asarray(jax.jacrev(lambda vector: net.apply(back(vector), x).ravel())(vector))

    @pytest.mark.long
    def test_the_least_is_no_more_than_at_hundreds_of_random_points_of_the_orbit(self):
        _, _, params, loss, sym = self.moved(0.0)
        least = sharpness(loss, params, sym)
        there = jax.vmap(lambda key: sym.act(sym.sample(key, 0.3), params))(jax.random.split(KEY, 300))
        values = np.asarray(js.parallel(lambda params: jnp.linalg.eigvalsh(hessian(loss, params)))(there))
        assert values.sum(axis=1).min() > least.least_trace * (1 - 1e-9)
        assert values.max(axis=1).min() > least.least_largest * (1 - 1e-3)

    def test_without_a_continuous_group_raw_is_least(self):
        net, x, params, loss = case((3, 4, 2), "tanh")
        found = sharpness(loss, params, js.discover(net.apply, params, x))
        assert float(found.trace) == float(found.least_trace)
        assert float(found.largest) == float(found.least_largest)

    def test_a_group_of_another_loss(self):
        _, x, params, loss = case((3, 4, 2), "tanh")
        sym = js.discover(js.models.MLP((4, 2), "relu").apply, params, x)
        with pytest.raises(ValueError, match=r"sharpness: the loss changes by .* of its size along the orbit"):
            sharpness(loss, params, sym)

    def test_a_measure_without_a_minimum(self):
        """-(a b)^2: the trace falls along the orbit for ever, beyond all floating numbers; what is returned belongs to its coordinates."""
        params = {"a": jnp.ones((1, 1)), "b": jnp.ones(1)}
        sym = js.discover(lambda p, x: x @ p["a"] * p["b"], params, jnp.ones((3, 1)))
        found = sharpness(lambda p: -((p["a"] * p["b"]).sum() ** 2), params, sym)
        assert np.isfinite(found.least_trace)
        a, b = (float(leaf.sum()) for leaf in sym.act(sym.exp(found.trace_coordinates), params).values())
        assert found.least_trace == pytest.approx(-2 * (a**2 + b**2))

    def test_too_many_parameters(self):
        net, x, params, loss = case((3, 400, 2), "relu", rows=5)
        with pytest.raises(ValueError, match="sharpness: 2402 parameters, expected at most 2000"):
            sharpness(loss, params, js.discover(net.apply, params, x))


def test_a_largest_point_of_an_orbit_is_no_least_one():
    """-(a b)^2 has the trace -2 (a^2 + b^2): largest where it is balanced, and without bound below."""
    params = {"a": jnp.ones((1, 1)), "b": jnp.ones(1)}
    sym = js.discover(lambda p, x: x @ p["a"] * p["b"], params, jnp.ones((3, 1)))
    found = sharpness(lambda p: -((p["a"] * p["b"]).sum() ** 2), params, sym)
    assert found.trace == pytest.approx(-4)
    assert found.least_trace < found.trace
    assert not found.trace_settled
    still = sharpness(lambda p: 0 * (p["a"] * p["b"]).sum(), params, sym)
    assert still.least_trace == 0
    assert still.trace_settled
