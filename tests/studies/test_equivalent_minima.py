"""The study of equivalent minima, run small: its counts by other routes, its summary from the file, its page from the figures."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsym as js
from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.equivalent_minima import Config
from jaxsym.studies.minima import classes, copies, elements, follow, gap, jumps, polish

SMALL = "--networks 8 --followed 2 --followed-steps 60 --rescalings 50 --weight-decay 0.01 --other-weight-decays 0.02"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("equivalent_minima")
    cli.main(["run", "equivalent_minima", "--out", str(out), "--quick", *SMALL.split()])
    return out


def parts(vector):
    """Hidden bias, hidden kernel, output bias, output kernel: how the parameters of a row are ordered."""
    return vector[:4], vector[4:52].reshape(12, 4), vector[52:53], vector[53:].reshape(4, 1)


def all_copies(vector):
    """The 384 copies of a network, written out."""
    bias, kernel, last, out = parts(vector)
    for order in itertools.permutations(range(4)):
        for signs in itertools.product((1, -1), repeat=4):
            s, p = np.array(signs), list(order)
            yield np.concatenate([s * bias[p], (kernel[:, p] * s).ravel(), last, (out[p] * s[:, None]).ravel()])


def loss_and_gradient(vector, weight_decay):
    """Cross-entropy and weight decay in plain NumPy, differentiated by hand."""
    rows = js.data.titanic(0).train
    x, y = np.asarray(rows.inputs, np.float64), np.asarray(rows.targets, np.float64)
    bias, kernel, last, out = parts(vector)
    hidden = np.tanh(x @ kernel + bias)
    z = (hidden @ out + last)[:, 0]
    error = (1 / (1 + np.exp(-z)) - y) / len(y)
    back = error[:, None] * out[:, 0] * (1 - hidden**2)
    gradient = np.concatenate([back.sum(0), (x.T @ back).ravel(), [error.sum()], hidden.T @ error])
    loss = np.mean(np.logaddexp(0, z) - y * z) + weight_decay / 2 * np.sum(vector**2)
    return loss, gradient + weight_decay * vector


def test_polished_networks_are_minima_by_a_gradient_written_by_hand(results):
    assert results.minimum.all()
    for decay in results.weight_decay.values:
        own = results.sel(weight_decay=decay)
        for vector, loss in zip(own.params.values, own.loss.values, strict=True):
            value, gradient = loss_and_gradient(vector, decay)
            assert value == pytest.approx(loss, rel=1e-12)
            assert np.linalg.norm(gradient) < 2e-10
            for step in np.eye(57)[::8] * 1e-2:  # no way down
                assert min(loss_and_gradient(vector + k * step, decay)[0] for k in (-1, 1)) > value


def test_counts_are_those_of_all_pairs_and_all_elements(results, summary):
    """Greedy, one network after another, in NumPy: a network is new if no copy of it is one that is there."""
    tolerance = summary["tolerance"]
    for i, decay in enumerate(summary["weight_decays"]):
        points = results.params.sel(weight_decay=decay).values
        kept, naive = [], []
        for vector in points:
            if not any(np.linalg.norm(copy - other) < tolerance for copy in all_copies(vector) for other in kept):
                kept.append(vector)
            if not any(np.linalg.norm(vector - other) < tolerance for other in naive):
                naive.append(vector)
        assert summary["distinct_modulo_symmetry_by_weight_decay"][i] == len(kept)
        assert summary["distinct_brute_force_by_weight_decay"][i] == len(kept)
        assert summary["distinct_naive_by_weight_decay"][i] == len(naive)
    assert summary["distinct_modulo_symmetry"] < summary["distinct_naive"] <= 8
    assert summary["distance_gap"] > 1e3


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("equivalent_minima").summary(results)
    assert summary["order"] == js.count.order((12, 4, 1), "tanh") == 384
    assert isinstance(summary["order"], int)
    assert summary["distinct_copies"] == 384
    assert summary["networks"] == 8
    assert summary["gradient_norm_worst"] == results.gradient_norm.sel(weight_decay=0.01).values.max() <= 1e-10


def test_all_copies_of_the_best_network_have_its_loss(results, summary):
    own = results.sel(weight_decay=0.01)
    best = own.params.values[own.loss.values.argmin()]
    losses = [loss_and_gradient(copy, 0.01)[0] for copy in all_copies(best)]
    np.testing.assert_allclose(np.sort(results.copy_loss.values), np.sort(losses), rtol=1e-12)
    assert 0 <= summary["loss_spread_on_orbit"] < 1e-12


def test_rescaled_networks_have_one_loss_and_many_gradients(results, summary):
    assert summary["loss_spread_of_rescalings"] < 1e-12
    assert np.ptp(results.path_loss.values) < 1e-12
    norm = results.rescaled_gradient_norm.values
    assert summary["gradient_norm_ratio_on_orbit"] == norm.max() / norm.min() > 1.5
    factors = results.rescaling.values
    assert 0.1 <= factors.min() < 0.2 < 5 < factors.max() <= 10
    middle = results.path_gradient_norm.values[50]
    np.testing.assert_allclose(middle, middle[0], rtol=1e-9)  # every unit by a factor of 1: the network itself


def test_nearest_copies_by_hand():
    net = js.models.MLP((2, 1))
    x = jnp.ones((3, 2))
    params = net.init(jax.random.key(0), x)
    sym = js.discover(net.apply, params, x)
    every = elements(sym)
    moved = np.asarray(copies(sym, every, params), np.float64)
    assert moved.shape == (8, 9)
    assert len(np.unique(moved.round(6), axis=0)) == 8
    line = moved[0] + np.linspace(0, 1, 5)[:, None] * (moved[3] - moved[0])
    found = follow(line + 1e-9, moved, 1e-6)
    assert found.nearest[0] == 0
    assert found.nearest[-1] == 3
    apart = np.linalg.norm(moved[1:] - moved[0], axis=1)
    assert found.radius == pytest.approx(apart.min() / 2)
    assert found.next == 1 + apart.argmin()
    assert jumps(np.array([5, 1, 2, 1, 2]), np.array([9.0, 0.1, 9.0, 0.1, 0.1]), 1.0) == 1


def test_a_saddle_is_left_and_a_minimum_is_not():
    with jax.enable_x64(True):
        loss = lambda v: (v[0] ** 2 - 1) ** 2 + v[1] ** 2 + 0.1  # noqa: E731
        left = polish(loss, jnp.array([0.0, 0.5]), gradient_norm=1e-10, steps=100)
        stays = polish(loss, jnp.array([1.0, 0.0]), gradient_norm=1e-10, steps=100)
        short = polish(loss, jnp.array([3.0, 0.5]), gradient_norm=1e-10, steps=1)
    assert (int(left.saddles), int(stays.saddles)) == (1, 0)
    assert abs(left.params[0]) == pytest.approx(1, abs=1e-8)
    assert (float(left.gradient_norm) <= 1e-10, float(left.curvature) > 1) == (True, True)
    assert int(stays.steps) == 0
    assert float(short.gradient_norm) > 1e-10


def test_gaps_and_classes():
    distances = np.array([1e-11, 1e-9, 3.0])
    found = gap(distances, reach=1e-6)
    assert (found.below, found.above) == (1e-9, 3.0)
    assert found.tolerance == pytest.approx(np.sqrt(3e-9))
    assert np.isinf(gap(distances[:2], 1e-6).above)  # all of them one
    assert gap(distances[2:], 1e-6).below == 1e-6  # none
    assert list(classes(np.array([1.0, 1e-9, 1.0]), 3, 1e-3)) == [0, 1, 0]


def test_elements_refuses_what_cannot_be_enumerated():
    net, x = js.models.MLP((2, 1), "relu"), jnp.ones((3, 2))
    params = net.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="the group has a scaling"):
        elements(js.discover(net.apply, params, x))
    net = js.models.MLP((8, 1))
    params = net.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="10321920 elements"):
        elements(js.discover(net.apply, params, x))


def test_the_page_says_the_figures_and_needs_nothing_else(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"{summary['distance_above_gap']:.1e}" in page
    assert "Trying all 384 elements on each pair of networks gives the same count" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img ") == len(list((folder / "figures").glob("*.png"))) == 5
    assert page.count("<img ") == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_sentences_follow_the_figures(results):
    """A page made from other figures says something else."""
    page = load("equivalent_minima").page

    def text(dataset):
        return " ".join(paragraph for section in page(dataset) for paragraph in section.paragraphs)

    assert "which is more than rounding" not in text(results)
    assert "All of them got there" in text(results)
    changed = results.copy(deep=True)
    changed["copy_loss"][3] += 1
    changed["minimum"][0, 2] = False
    changed["followed_distance"][:] = 0.0
    changed["followed_nearest"][..., 0] = -1
    changed["followed_jumps"][0, 0, 0] = 3
    said = text(changed)
    assert "more than rounding" in said
    assert "1 of them did not get there" in said
    assert "make 3 jumps" in said
    assert "So jumps happen, at rate 0.1 with all rows" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": 1}, "networks: got 1, expected at least 2"),
        ({"followed": 0}, "followed: got 0"),
        ({"weight_decay": 0.0}, "weight_decay: got 0.0"),
        ({"other_weight_decays": "0.001;0.1"}, "other_weight_decays: got '0.001;0.1'"),
        ({"gradient_norm": 1e-20}, "gradient_norm: got 1e-20"),
        ({"test_fraction": 1.0}, "test_fraction: got 1.0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
