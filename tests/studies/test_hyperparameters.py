"""The study of hyperparameters, run small: a masked network is the network that stands alone, searches replayed, figures by hand."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxsym import cli
from jaxsym.models import MLP
from jaxsym.studies import hyperparameters, load
from jaxsym.studies.classifying import load as load_data
from jaxsym.studies.hyperparameters import (
    ACTIVATIONS,
    BASE,
    INITIALISERS,
    JOINT,
    WAYS,
    Config,
    Net,
    OneAtATime,
    parts,
    program,
    ratio,
    sampler_seeds,
    space,
)
from jaxsym.studies.hyperparameters_page import CAP, claims
from jaxsym.studies.study import silent, tally
from jaxsym.sweep.search import Searcher, parse
from jaxsym.training import make_train
from jaxsym.training.initial import initializer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("hyperparameters")
    options = (
        "--quick --networks 2 --searches 2 --trials 16 --batch 8 --steps 20 --rows 200 --most-units 32 --widest 32"
    )
    cli.main(["run", "hyperparameters", "--out", str(out), *options.split()])
    return out


def point(**changed):
    return {name: jnp.asarray(value) for name, value in {**BASE, **changed}.items()}


def alone(params, units, depth):
    """The part that a trial uses, as the parameters of a plain perceptron."""
    names = ["first", *(f"inner{layer}" for layer in range(1, depth)), "last"]
    layers = {}
    for place, name in enumerate(names):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        rows = slice(None) if name == "first" else slice(units)
        columns = slice(None) if name == "last" else slice(units)
        layers[f"Dense_{place}"] = {"kernel": kernel[rows, columns], "bias": bias[columns]}
    return {"params": layers}


@pytest.mark.parametrize(("units", "depth", "activation"), [(5, 2, "tanh"), (8, 1, "relu"), (3, 3, "sigmoid")])
def test_a_masked_network_trains_as_if_it_stood_alone(units, depth, activation):
    data = parts(load_data("digits"), 100)
    net = Net(64, 8, 10, deepest=3)
    at = point(units=units, depth=depth, activation=ACTIVATIONS.index(activation))
    key = jax.random.key(3)
    found = jax.jit(program(net, data, 30, 16))(key, at)

    plain = MLP((*[units] * depth, 10), activation)

    def init(key):
        shape = {name: at[name] for name in ("units", "depth", "initialiser")}
        return alone(net.init(key, **shape), units, depth)

    def loss(params, rows, key=None):
        return optax.softmax_cross_entropy_with_integer_labels(plain.apply(params, rows.inputs), rows.targets).mean()

    trained = jax.jit(make_train(init, loss, optax.sgd(0.1), data.train, steps=30, batch_size=16))(key)
    for name, rows in data._asdict().items():
        assert float(found[name]) == pytest.approx(float(loss(trained.params, rows)), rel=2e-5)
    if activation != "relu":
        other = MLP((*[units] * depth, 10), "relu").apply(trained.params, data.test.inputs)
        assert not np.allclose(other, plain.apply(trained.params, data.test.inputs), atol=1e-3)


@pytest.mark.parametrize("name", INITIALISERS)
def test_scales_at_the_start_are_those_of_the_catalogue(name):
    units = 60
    net = Net(50, 64, 10, deepest=2)
    params = net.init(jax.random.key(0), jnp.asarray(units), jnp.asarray(2), jnp.asarray(INITIALISERS.index(name)))
    catalogue = {"constant 0.1": ("constant", {"c": 0.1}), "normal 0.01": ("normal", {"stddev": 0.01})}
    own, options = catalogue.get(name, (name, {}))
    for place, rows, columns in (("first", 50, units), ("inner1", units, units), ("last", units, 10)):
        kernel = np.asarray(params[place]["kernel"])
        drawn = np.asarray(initializer(own, **options)(jax.random.key(1), (rows, columns)))
        assert np.sqrt(np.mean(kernel[:rows, :columns] ** 2)) == pytest.approx(np.sqrt(np.mean(drawn**2)), rel=0.1)
        assert not kernel[rows:].any()
        assert not kernel[:, columns:].any()


def test_one_change_at_a_time():
    config = Config(trials=96, batch=16)
    axes = parse({"method": "random", "trials": 96, "metric": "validation", "space": space(config)}).space
    search, known = OneAtATime(axes, 16, 96), []
    best = BASE
    while batch := search.ask():
        assert all(sum(trial[name] != best[name] for name in BASE) <= 1 for trial in batch)
        values = [
            abs(np.log(trial["learning_rate"])) + abs(trial["units"] - 20) / 50 + trial["depth"] for trial in batch
        ]
        search.tell(values)
        known += list(zip(values, batch, strict=True))
        best = min(known, key=lambda pair: pair[0])[1]
    assert len(known) == 96
    assert best["depth"] == 1
    assert abs(best["units"] - 20) <= 3
    assert best["learning_rate"] == pytest.approx(1, rel=0.5)


def test_ratio_is_a_t_interval_of_logarithms():
    one, other = np.array([1.0, 2.0, 4.0, np.inf]), np.array([2.0, 1.0, 1.0, 50.0])
    logs = np.log([0.5, 2.0, 4.0, CAP / 50])
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert ratio(one, other) == pytest.approx([np.exp(logs.mean()), np.exp(low), np.exp(high)])


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("hyperparameters").summary(results)
    for number, way in enumerate(WAYS):
        best = [min(search) for search in results.validation.values[number]]
        assert summary[f"best_{way}"] == pytest.approx(sorted(best)[0] / 2 + sorted(best)[1] / 2)
    where = [i for i, axis in enumerate(results.axis.values) if axis == "learning_rate"]
    shares = results.alone_diverged.values[where].mean(axis=1)
    rates = np.array([float(v) for v in results.value.values[where]])
    assert summary["diverged_learning_rate"] == rates[shares > 0.5].min()
    assert summary["learning_rate_diverged"][0] == 0
    blocks = results.validation.values[: len(JOINT)].min(axis=2)
    assert summary["friedman_p"] == pytest.approx(stats.friedmanchisquare(*blocks).pvalue)
    assert summary["networks"] == (6 + 5 + 13 + 5 + 6) * 2 + len(WAYS) * 2 * (16 + 2)


SEARCHES, BATCH, NETWORKS = 4, 8, 3


@pytest.fixture(scope="module")
def untrained():
    """A run whose losses are drawn instead of computed, and the keys of each of its programs."""
    keys = {}

    def drawn(clock, label, fn, own, at, *, steps):
        keys[label] = np.asarray(jax.random.key_data(own))
        rng = np.random.default_rng(len(keys))
        names = ("train", "validation", "test", "accuracy")
        found = {name: rng.lognormal(size=len(own)) for name in names}
        return found | {"diverged": rng.random(len(own)) < 0.5}

    sizes = {"searches": SEARCHES, "networks": NETWORKS, "trials": 2 * BATCH, "batch": BATCH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hyperparameters.Clock, "ensemble", drawn)
        data = hyperparameters.run(Config(**sizes, rows=100, most_units=32, widest=32), silent)
    return data, keys


def test_all_ways_of_searching_have_the_same_keys(untrained):
    """A key for each search, the same in all its trials; what was chosen has others."""
    _, keys = untrained
    first, second = (keys[f"search: batch {n}"].reshape(len(WAYS), SEARCHES, BATCH, -1) for n in (1, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, np.broadcast_to(first[:1, :, :1], first.shape))
    afresh = keys["what was chosen"].reshape(len(WAYS) * SEARCHES, NETWORKS, -1)
    np.testing.assert_array_equal(afresh, np.broadcast_to(afresh[:1], afresh.shape))
    assert len(np.unique(np.concatenate([first[0, :, 0], afresh[0]]), axis=0)) == SEARCHES + NETWORKS


def test_comparisons_of_searches_by_hand(untrained):
    """The four with random search have intervals of 98.75%, so that all of them hold together with 95%."""
    data, _ = untrained
    found = hyperparameters.summary(data)
    best = np.log(data.validation.values.min(axis=2))
    afresh = np.log(np.median(data.chosen_validation.values, axis=2))
    random, one = WAYS.index("random"), WAYS.index("one_at_a_time")

    def agrees(key, logs, level):
        interval = stats.t.interval(level, SEARCHES - 1, logs.mean(), stats.sem(logs))
        np.testing.assert_allclose(found[key], np.exp([logs.mean(), *interval]))

    for place, way in enumerate(WAYS[:5]):
        if place != random:
            agrees(f"over_random_{way}", best[place] - best[random], 0.9875)
            agrees(f"afresh_over_random_{way}", afresh[place] - afresh[random], 0.9875)
        agrees(f"over_one_at_a_time_{way}", best[place] - best[one], 0.95)
    agrees("joint_over_one_at_a_time", best[:5].mean(axis=0) - best[one], 0.95)
    agrees("luck", afresh.mean(axis=0) - best.mean(axis=0), 0.95)


@pytest.mark.parametrize("enough", [1, 4, 16, 32])
def test_units_are_enough_where_no_doubling_helps_any_more(untrained, enough):
    data = untrained[0].copy(deep=True)
    units = data.axis.values == "units"
    widths = data.value.values[units].astype(int)
    assert widths.tolist() == [1, 2, 4, 8, 16, 32]
    data.alone_validation[units] = np.outer(1 / np.minimum(widths, enough), np.arange(1, NETWORKS + 1))
    found = hyperparameters._alone_figures(data)
    assert found["units_enough"] == enough
    np.testing.assert_allclose(found["units_gain"], [1 / enough] * 3)


def test_trials_are_those_that_the_samplers_ask_for(results):
    """Random search again, from its seed alone; and the chosen hyperparameters are in the ranges."""
    config = Config(searches=2, trials=16, batch=8, most_units=32)
    for number, seed in enumerate(sampler_seeds(config)):
        table = {"method": "random", "trials": 16, "batch": 8, "metric": "v", "seed": seed, "space": space(config)}
        searcher = Searcher(parse(table))
        trials = [*searcher.ask()]
        searcher.tell([0.0] * 8)
        trials += searcher.ask()
        for name in BASE:
            stored = results[f"trial_{name}"].sel(way="random").values[number]
            np.testing.assert_allclose(stored, [trial[name] for trial in trials])
    assert results.trial_units.min() >= 2
    assert results.trial_units.max() <= 32


def test_claims_can_come_out_either_way(summary):
    turned = {
        key: [1 / value[0], 1 / value[2], 1 / value[1]] if "over_" in key or key == "layer_ratio" else value
        for key, value in summary.items()
    }
    given, other = ({claim: holds for claim, _, holds in claims(figures)} for figures in (summary, turned))
    assert given.keys() == other.keys()
    for claim in given:
        if "beats" in claim or "layer" in claim:
            assert not (given[claim] and other[claim])
    better = summary | {"over_random_tpe": [0.5, 0.4, 0.6], "units_enough": 8, "units_gain": [0.5, 0.4, 0.6]}
    held = [claim for claim, _, holds in claims(better) if holds]
    assert "TPE beats random search." in held
    assert "More hidden units are better, up to a point." in held
    assert summary["claims_that_failed"] == [claim for claim, holds in given.items() if holds is False]


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert (
        f"The least rate of the grid at which more than half of the networks diverge is {summary['diverged_learning_rate']:g}."
        in page
    )
    assert f"p = {summary['friedman_p']:.2g}" in page
    assert tally(claims(summary)) in page
    assert page.count("<img ") == 4 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": 1}, "networks: got 1"),
        ({"trials": 50}, "trials: got 50, expected a multiple of batch = 16"),
        ({"batch_size": 2000}, "batch_size: got 2000, expected at most 1200"),
        ({"most_units": 4}, "most_units: got 4"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


@pytest.mark.long
def test_a_quick_run_finds_what_must_be_so(tmp_path):
    cli.main(["run", "hyperparameters", "--out", str(tmp_path), "--quick"])
    figures = json.loads((tmp_path / "summary.json").read_text())
    guessing = figures["guessing_loss"]
    assert 1 < figures["diverged_learning_rate"] <= 100
    assert figures["initialiser_losses"][0] > 0.95 * guessing  # zeros learn the classes' shares at most
    assert min(figures["initialiser_losses"]) < 0.5 * guessing
    assert figures["units_losses"][-1] < figures["units_losses"][0]
    assert all(figures[f"best_{way}"] < guessing / 2 for way in WAYS)
