"""The study of identities, run small: pieces against Flax's own networks, the map by hand, and wrong identities that are caught."""

import math
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxsym import cli
from jaxsym.models import MLP
from jaxsym.studies import identities, identities_maps, identities_pieces, load
from jaxsym.studies.identities import SHAPES, Config, prelu
from jaxsym.studies.identities_maps import by_leaf, mapped, metric, networks, to_sigmoid, to_tanh
from jaxsym.studies.identities_pieces import INPUTS, MOST, Pieces, checked, outputs, random_chain, sawtooth, walk
from jaxsym.studies.identities_summary import TOLERANCE, claims, mismatches, predicted

OPTIONS = ["--quick", "--networks", "5", "--steps", "40", "--hidden", "3; 3, 2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a tiny run."""
    out = tmp_path_factory.mktemp("identities")
    cli.main(["run", "identities", "--out", str(out), *OPTIONS])
    return out


@pytest.fixture(scope="module")
def walked():
    """A network of two layers of 8 units, on its line, walked; and as Flax's own."""
    with jax.enable_x64(True):
        chain, line = random_chain(jax.random.key(3), jnp.array(8), jnp.array(2))
        found = jax.tree.map(np.asarray, jax.jit(walk)(chain, line))
        net = MLP((8, 8, 1), "relu")
        layers = [(chain.kernels[0, :INPUTS, :8], chain.biases[0, :8]), (chain.kernels[1, :8, :8], chain.biases[1, :8])]
        layers.append((chain.out[:8, None], jnp.zeros(1)))
        params = {"params": {f"Dense_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(layers)}}
        t = np.linspace(-2, 2, 4001)
        values = net.apply(params, (line.origin + t[:, None] * line.direction)[:, :INPUTS])[:, 0]
    return found, t, np.asarray(values)


def test_flax_interpolated_through_the_breakpoints_is_the_network(walked):
    """Nothing between them bends; and where one of them is left out, it shows."""
    found, t, values = walked
    num = int(found.valid.sum())
    knots = np.append(found.start[:num], found.end[num - 1])
    at = np.append(
        (found.value + found.slope * found.start)[:num], found.value[num - 1] + found.slope[num - 1] * knots[-1]
    )
    assert num > 5
    assert knots[0] == -2
    assert knots[-1] == 2
    assert (np.diff(knots) > 0).all()
    np.testing.assert_allclose(np.interp(t, knots, at), values, atol=1e-12)
    errors = [np.abs(np.interp(t, np.delete(knots, i), np.delete(at, i)) - values).max() for i in range(1, num)]
    assert min(errors) > 1e-6


def test_breakpoints_are_where_second_differences_are(walked):
    found, t, values = walked
    bent = np.flatnonzero(np.abs(np.diff(values, 2)) > 1e-9)
    inner = found.end[: int(found.valid.sum()) - 1]
    assert all(np.abs(t[bent + 1] - knot).min() <= t[1] - t[0] for knot in inner)
    assert all(np.abs(inner - t[index + 1]).min() <= t[1] - t[0] for index in bent)


def test_wrong_pieces_are_found_out(monkeypatch):
    """One line instead of all pieces: what it misses at five points, and how the network bends between them."""
    with jax.enable_x64(True):
        chain, line = random_chain(jax.random.key(3), jnp.array(8), jnp.array(2))
        at = np.array([-1.6, -0.8, 0.0, 0.8, 1.6])
        asked = np.asarray(jax.jit(jax.vmap(lambda t: outputs(chain, line, t)[0]))(jnp.array(at)))
        valid = jnp.arange(2) < 1
        one = [jnp.where(valid, value, 0) for value in (-2.0, 2.0, 0.7, 0.3)]
        monkeypatch.setattr(identities_pieces, "walk", lambda chain, line: Pieces(*one, valid))
        found = jax.jit(checked)(chain, line)
    size = max(1.0, np.abs(asked).max())
    missed = np.abs(asked - 0.7 - 0.3 * at).max() / size
    bent = max(abs(asked[0] + asked[4] - 2 * asked[2]), abs(asked[1] + asked[3] - 2 * asked[2])) / size
    assert min(missed, bent) > 0.01
    assert float(found["value_error"]) == pytest.approx(missed)
    assert float(found["second_difference"]) == pytest.approx(bent)
    assert int(found["regions"]) == 1


def test_a_walk_that_is_too_long_says_so(results):
    assert bool(results.finished.all())
    assert int(results.regions.max()) < MOST


def test_sawtooth_is_the_tent_composed(results):
    np.testing.assert_array_equal(results.tooth_pieces, [2, 4, 8, 16, 32, 64])
    with jax.enable_x64(True):
        chain, line = sawtooth(jnp.array(3))
        for t in (0.01, 0.3, 0.55, 0.9):
            value = t
            for _ in range(3):
                value = 1e-3 + (1 - 2e-3) * (2 * value if value < 0.5 else 2 - 2 * value)
            assert float(outputs(chain, line, jnp.array(t))[0]) + 1e-3 == pytest.approx(value, abs=1e-12)


def test_one_hidden_layer_is_counted_by_another_way(results):
    one = results.isel(shape=results.depth.values == 1)
    assert (one.pieces == 1 + one.crossed).all()
    assert (one.pieces <= one.units + 1).all()
    wrong = results.copy(deep=True)
    wrong["pieces"][0, 0] += 1
    assert mismatches(wrong) == 1


def test_prelu_by_hand():
    slope = jnp.array(0.3)
    assert float(jax.grad(prelu, 1)(slope, jnp.array(-2.0))) == pytest.approx(0.3)
    assert float(jax.grad(prelu, 0)(slope, jnp.array(-2.0))) == -2
    assert float(jax.grad(prelu, 0)(slope, jnp.array(2.0))) == 0
    assert float(jax.grad(prelu, 1)(slope, jnp.array(0.0))) == 1 != float(jax.grad(jax.nn.relu)(0.0))
    assert float(prelu(jnp.array(0.0), jnp.array(-3.0))) == 0 == float(jax.nn.relu(-3.0))


@pytest.mark.parametrize("hidden", [(3,), (3, 2)])
def test_the_map_is_right_and_its_neighbours_are_wrong(hidden):
    with jax.enable_x64(True):
        tanh, sigmoid = networks(hidden)
        x = jax.random.normal(jax.random.key(0), (7, 2))
        params = tanh.init(jax.random.key(1), x)
        there = to_sigmoid(params)
        np.testing.assert_allclose(sigmoid.apply(there, x), tanh.apply(params, x), atol=1e-13)
        np.testing.assert_allclose(ravel_pytree(to_tanh(there))[0], ravel_pytree(params)[0], atol=1e-15)
        own = params["params"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(there["params"]["Dense_0"]["kernel"], 2 * own)
        last = f"Dense_{len(hidden)}"
        there["params"][last]["bias"] = params["params"][last]["bias"]  # the shift forgotten
        assert float(jnp.abs(sigmoid.apply(there, x) - tanh.apply(params, x)).max()) > 0.01


@pytest.mark.parametrize(
    ("name", "broken"), [("to_tanh", {"map_back"}), ("to_sigmoid", {"map", "map_back"}), (None, set())]
)
def test_a_map_that_does_nothing_is_found_out(monkeypatch, name, broken):
    """The group of the signs and permutations is left out: it moves nothing here."""
    still = types.SimpleNamespace(sample=lambda key: None, act=lambda element, params: params)
    monkeypatch.setattr(identities_maps, "orbit_distance", lambda *_: jnp.zeros(()))
    if name:
        monkeypatch.setattr(identities_maps, name, lambda params: params)
    with jax.enable_x64(True):
        found = mapped({(2,): (still, still)})(jax.random.key(0))
    for key in ("map", "map_back"):
        assert (float(found[key][0]) > 0.1) == (key in broken)
        assert key in broken or float(found[key][0]) < 1e-14


def test_the_metric_is_the_matrix_times_its_transpose():
    with jax.enable_x64(True):
        tanh, _ = networks((3,))
        params = tanh.init(jax.random.key(1), jnp.ones((1, 2)))
        flat, back = ravel_pytree(params)
        matrix = np.asarray(jax.jacobian(lambda p: ravel_pytree(to_sigmoid(back(p)))[0])(flat))
        np.testing.assert_allclose(ravel_pytree(metric(params))[0], matrix @ matrix.T @ flat, atol=1e-13)
        leaf = ravel_pytree(jax.tree.map(lambda a, b: a - b, by_leaf(params), metric(params)))[0]
        assert np.count_nonzero(np.abs(leaf) > 1e-12) == 1 + 3  # the output bias and the kernel beside it
        off = matrix @ matrix.T - np.diag(np.diag(matrix @ matrix.T))
        assert np.abs(off).max() == 2


def test_gradient_descent_by_hand(results):
    """One step of both networks: with the metric they stay one function, with one rate they do not."""
    with jax.enable_x64(True):
        tanh, sigmoid = networks((8,))
        x = jax.random.normal(jax.random.key(5), (9, 3))
        params = tanh.init(jax.random.key(6), x)
        there = to_sigmoid(params)
        gradient, other = (
            jax.grad(lambda p, net=net: jnp.mean(net.apply(p, x) ** 2))(p)
            for net, p in ((tanh, params), (sigmoid, there))
        )
        moved = tanh.apply(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), x)
        followed = sigmoid.apply(jax.tree.map(lambda p, g: p - 0.1 * g, there, metric(other)), x)
        left = sigmoid.apply(jax.tree.map(lambda p, g: p - 0.1 * g, there, other), x)
        np.testing.assert_allclose(followed, moved, atol=1e-13)
        assert float(jnp.abs(left - moved).max()) > 1e-3
    assert float(results.apart.sel(way="sigmoid, the metric").max()) < TOLERANCE
    assert float(results.apart.sel(way="sigmoid, same rate").isel(record=-1).min()) > 1e-3


def test_groups_have_the_orders_of_the_closed_form(results):
    for hidden in results.hidden.values:
        widths = [int(width) for width in str(hidden).split(",")]
        order = math.prod(math.factorial(width) * 2**width for width in widths)
        assert [int(found) for found in results.order.sel(hidden=hidden).values] == [order, order]


def test_batch_normalisation_of_two_rows_is_a_sign(results):
    """By hand: it sees which of both is larger, and nothing else; and the expected difference is met for many rows."""
    norm = nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False, epsilon=0.0)
    stats = {"batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
    found = norm.apply(stats, jnp.array([[3.0], [7.0]]), mutable=["batch_stats"])[0]
    np.testing.assert_allclose(found, [[-1], [1]], atol=1e-5)
    measured = results.standardized_difference.median("network").values
    np.testing.assert_allclose(measured[2:6], predicted(results)[2:6], rtol=0.15)
    assert float(results.alone.max()) == 0


def test_the_mean_of_minibatch_gradients_by_hand():
    """Of tanh, that on all rows; with batch normalisation before it something else, by how much from the formulas."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        found = jax.jit(identities._batches(256))(key)
        shapes = (256, 4), (4, 16), (16,), (256,)
        draws = [
            np.asarray(jax.random.normal(own, shape))
            for own, shape in zip(jax.random.split(key, 4), shapes, strict=True)
        ]
    x, kernel, out, targets = draws[0], draws[1] / 2, draws[2] / 4, draws[3]

    def gradient(x, targets):
        """Backward through the mean square, tanh and batch normalisation; its variances have 1e-5 added."""
        z = x @ kernel
        spread = np.sqrt(z.var(axis=0) + 1e-5)
        normal = (z - z.mean(axis=0)) / spread
        written = np.tanh(normal)
        back = np.outer(2 / len(x) * (written @ out - targets), out) * (1 - written**2)
        back = (back - back.mean(axis=0) - normal * (back * normal).mean(axis=0)) / spread
        return x.T @ back

    whole = gradient(x, targets)
    parts = [gradient(x[first : first + 8], targets[first : first + 8]) for first in range(0, 256, 8)]
    expected = np.linalg.norm(np.mean(parts, axis=0) - whole) / np.linalg.norm(whole)
    assert expected > 0.01
    assert float(found["normalized_gradient"]) == pytest.approx(expected, rel=1e-6)
    assert float(found["elementwise_gradient"]) < 1e-14


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("identities").summary(results)
    largest = max(float(results.error.values.max()), float(results.tooth_error.values.max()))
    assert summary["max_error"] == largest < TOLERANCE
    assert summary["sawtooth_pieces"] == [2**depth for depth in range(1, 7)]
    slope = np.polyfit(np.log([w * d for w, d in SHAPES]), np.log(results.pieces.values.mean(1)), 1)[0]
    assert summary["pieces_exponent"] == pytest.approx(slope)
    assert summary["claims_that_failed"] == []


def test_a_wrong_identity_fails_its_claim(results):
    for index, name in enumerate(results.identity.values):
        wrong = results.copy(deep=True)
        wrong["error"][index, 0] = 10 * TOLERANCE
        failed = [claim for claim, _, holds in claims(wrong) if not holds]
        assert len(failed) == 1, name


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"The largest error of all is {summary['max_error']:.1e}" in page
    assert f"to the power {summary['pieces_exponent']:.2f}" in page
    assert f"end {summary['apart_same_rate']:.2g} from those of the tanh network" in page
    assert page.count(">no</td>") == len(summary["claims_that_failed"])
    assert page.count("<img ") == 4 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("networks", 1),
        ("hidden", "8; 1"),
        ("hidden", "200"),
        ("rows", 256),
        ("rows", 700),
        ("steps", 0),
        ("seed", 2**31),
        ("hidden", "8; x"),
        ("hidden", "8, 0"),
    ],
)
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value!r}"):
        Config(**{name: value})
