"""Every method: what it asks for lies in the space, and comes again when the search is replayed."""

import contextlib
import json
import logging
import math
import sqlite3

import numpy as np
import optuna
import pytest
from scipy.stats import qmc

from jaxsym.sweep import search, space

SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    "momentum": {"low": 0.0, "high": 0.9},
    "hidden_steps": {"low": 1, "high": 5, "int": True},
    "width": {"low": 2, "high": 64, "int": True, "log": True},
    "scale": {"choices": [0.1, 1, 3.0]},
    "depth": {"choices": [2, 4, 8]},
    "biased": {"choices": [True, False]},
    "one": {"choices": [7]},
}
GRID = {
    "learning_rate": {"low": 1e-4, "high": 1.0, "log": True, "num": 3},
    "biased": {"choices": [True, False]},
    "hidden_steps": {"low": 1, "high": 4, "int": True},
}
BATCHES = 4


def parsed(method, **changes):
    """Four batches, the last one smaller; for a grid 24 points."""
    table = {"method": method, "batch": 7, "metric": "loss", "space": GRID if method == "grid" else SPACE}
    return search.parse(table | ({} if method == "grid" else {"trials": 24}) | changes)


def loss(params):
    """Infinite and undefined here and there, as training is."""
    if params["learning_rate"] > 0.3:
        return math.nan
    if params["hidden_steps"] == 4:
        return -math.inf
    return (math.log10(params["learning_rate"]) + 2) ** 2 + params["biased"] + params.get("momentum", 0)


def bowl(params):
    return sum((value - centre) ** 2 for value, centre in zip(params.values(), (1.3, -2.0, 0.7, -1.0), strict=False))


def run(searcher, objective):
    """Search to the end; the batches and their results."""
    asked, results = [], []
    while batch := searcher.ask():
        asked.append(batch)
        results.append([objective(params) for params in batch])
        searcher.tell(results[-1])
    return asked, results


@pytest.fixture(params=search.METHODS)
def method(request):
    return request.param


def test_the_canonical_form_is_a_fixed_point(method):
    made = parsed(method)
    assert search.parse(made.as_dict()) == made
    stored = json.loads(json.dumps(made.as_dict(), sort_keys=True))
    assert search.parse(stored) == made
    assert list(search.parse(stored).space) == list(made.space)
    assert (made.trials, made.batch, made.direction, made.seed) == (24, 7, "minimize", 0)
    assert search.parse({**made.as_dict(), "batch": 1000}).batch == 24


def test_numbers_become_what_the_array_needs():
    axes = parsed("tpe").space
    assert axes["scale"] == space.Choices((0.1, 1.0, 3.0))
    assert [type(value) for value in axes["scale"].choices] == [float] * 3
    interval = search.parse({**parsed("tpe").as_dict(), "space": {"x": {"low": 0, "high": 2}}}).space["x"]
    assert interval == space.Interval(0.0, 2.0)
    assert type(interval.low) is float


def axis(**entry):
    return {"space": {"learning_rate": entry}}


def choices(*values):
    return axis(choices=list(values))


HUGE = 10**400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trails": 5}, r"search.trails: unknown key 'trails': did you mean trials"),
        ({"method": "tpa"}, r"search.method: unknown method 'tpa': did you mean tpe"),
        ({"method": 3}, r"search.method: got 3, expected one of random, grid"),
        ({"method": None}, r"search.method: got None"),
        ({"metric": ""}, r"search.metric: got '', expected the name of a recorded variable"),
        ({"direction": "down"}, r"search.direction: got 'down', expected minimize or maximize"),
        ({"trials": 0}, r"search.trials: got 0, expected a whole number from 1 to"),
        ({"trials": 2.0}, r"search.trials: got 2.0, expected a whole number"),
        ({"batch": True}, r"search.batch: got True, expected a whole number"),
        ({"seed": -1}, r"search.seed: got -1, expected a whole number from 0"),
        ({"method": "evolution", "batch": 1}, r"search.batch: got 1, expected at least 2, .* of evolution"),
        ({"method": "cma_es", "trials": 3}, r"search.trials: got 3, expected at least 4, .* of cma_es"),
        ({"space": {}}, r"search.space: got \{\}, expected a table of hyperparameters"),
        ({"space": [1]}, r"search.space: got \[1\], expected a table"),
        (
            {"space": {"../x": {"low": 0, "high": 1}}},
            r"search.space.../x: got '../x', expected the name of an argument",
        ),
        ({"space": {"lambda": {"low": 0, "high": 1}}}, r"search.space.lambda: got 'lambda', expected the name"),
        ({"space": {"learning_rate": [0.1, 1.0]}}, r"search.space.learning_rate: got \[0.1, 1.0\], expected a table"),
        (axis(low=0, hihg=1), r"search.space.learning_rate.hihg: unknown key 'hihg': did you mean high"),
        (axis(low=0), r"search.space.learning_rate.high: missing, expected a number"),
        (axis(), r"search.space.learning_rate.low: missing"),
        (axis(low="0", high=1), r"search.space.learning_rate.low: got '0', expected a number"),
        (axis(low=0, high=math.nan), r"search.space.learning_rate.high: got nan, expected a number"),
        (axis(low=0, high=math.inf), r"search.space.learning_rate.high: got inf, expected a number"),
        (axis(low=0, high=HUGE), r"search.space.learning_rate.high: got 1000.*, expected a number"),
        (axis(low=False, high=1), r"search.space.learning_rate.low: got False, expected a number"),
        (axis(low=-1, high=1, log=True), r"search.space.learning_rate.low: got -1, expected a number above 0"),
        (axis(low=1, high=1), r"search.space.learning_rate.low: got 1, expected a number below high = 1"),
        (axis(low=2, high=1), r"search.space.learning_rate.low: got 2, expected a number below high = 1"),
        (axis(low=0, high=1, log=1), r"search.space.learning_rate.log: got 1, expected true or false"),
        (axis(low=0.5, high=3, int=True), r"search.space.learning_rate.low: got 0.5, expected a whole number"),
        (axis(low=0, high=2**31, int=True), r"search.space.learning_rate.high: got 2147483648, expected a whole"),
        (axis(low=0, high=1, num=3), r"search.space.learning_rate.num: got 3, expected no such key: method = \"grid\""),
        (choices(), r"search.space.learning_rate.choices: got \[\], expected a list of at least one"),
        (choices("relu"), r"search.space.learning_rate.choices\[0\]: got 'relu', expected a number .* traced by JAX"),
        (choices(1, True), r"search.space.learning_rate.choices\[1\]: got True, expected a number"),
        (choices(1, [2]), r"search.space.learning_rate.choices\[1\]: got \[2\], expected a number"),
        (choices(1, 1.0), r"search.space.learning_rate.choices: got \[1.0, 1.0\], expected every value once"),
        (choices(1, 2**40), r"search.space.learning_rate.choices\[1\]: got 1099511627776, expected a whole number"),
        (axis(choices=3), r"search.space.learning_rate.choices: got 3, expected a list"),
        (axis(choices=[3], low=1), r"search.space.learning_rate.low: got 1, expected no such key beside choices"),
        ({"method": "grid"}, r"search.space.learning_rate.num: missing, expected a whole number from 2"),
        ({"method": "grid", **axis(low=0, high=1, num=1)}, r"search.space.learning_rate.num: got 1, expected a whole"),
        (
            {"method": "grid", **axis(low=1, high=3, int=True, num=4)},
            r"learning_rate.num: got 4, expected fewer points",
        ),
        ({"method": "grid", **axis(low=0, high=1, num=5)}, r"search.trials: got 24, expected 5, the number of"),
        ({"method": "grid", **axis(low=0, high=10**7, int=True)}, r"search.space: got a grid of 10000001 points"),
    ],
)
def test_an_error_names_the_key(change, message):
    table = {"method": "tpe", "trials": 24, "metric": "loss", "space": SPACE}
    with pytest.raises(ValueError, match=message):
        search.parse(table | change)
    with pytest.raises(ValueError, match=message.replace("search.", "file.", 1)):
        search.parse(table | change, "file")


@pytest.mark.parametrize("key", ["method", "trials", "metric", "space"])
def test_a_missing_key_is_named(key):
    table = {"method": "tpe", "trials": 24, "metric": "loss", "space": SPACE}
    del table[key]
    with pytest.raises(ValueError, match=f"search.{key}: missing, expected"):
        search.parse(table)
    with pytest.raises(ValueError, match="search: got 'tpe', expected a table with method"):
        search.parse("tpe")


def test_batches_lie_in_the_space(method):
    made = parsed(method)
    asked, _ = run(search.Searcher(made), loss)
    assert [len(batch) for batch in asked] == [7, 7, 7, 3]
    for params in (params for batch in asked for params in batch):
        assert list(params) == list(made.space)
        for name, one in made.space.items():
            value = params[name]
            if isinstance(one, space.Choices):
                assert (type(value), value) in [(type(choice), choice) for choice in one.choices]
            else:
                assert type(value) is (int if one.whole else float)
                assert one.low <= value <= one.high
    for name in ("learning_rate", "hidden_steps", "biased"):  # none is stuck
        assert len({params[name] for batch in asked for params in batch}) > 1


@pytest.mark.parametrize("entry", [{"low": 0, "high": 9, "int": True}, {"choices": [3]}, {"choices": [False, True]}])
def test_one_axis_is_enough(method, entry):
    made = search.parse(
        {"method": method, "metric": "loss", "space": {"x": entry}, "batch": 4}
        | ({} if method == "grid" else {"trials": 12})
    )
    asked, _ = run(search.Searcher(made), lambda params: (params["x"] - 3) ** 2)
    assert sum(map(len, asked)) == made.trials
    assert {params["x"] for batch in asked for params in batch} <= set(made.space["x"].grid())


def test_points_are_arrays():
    made = parsed("random")
    batch = search.Searcher(made).ask()
    points = search.points(made, batch)
    assert {name: array.dtype.name for name, array in points.items()} == {
        "learning_rate": "float64",
        "momentum": "float64",
        "hidden_steps": "int32",
        "width": "int32",
        "scale": "float64",
        "depth": "int32",
        "biased": "bool",
        "one": "int32",
    }
    assert all(array.shape == (7,) for array in points.values())
    assert points["width"].tolist() == [params["width"] for params in batch]


def test_a_replayed_search_asks_the_same(method):
    made = parsed(method)
    asked, results = run(search.Searcher(made), loss)
    assert len(asked) == BATCHES
    assert run(search.Searcher(made), loss)[0] == asked
    for stop in range(BATCHES + 1):
        searcher = search.replay(made, results[:stop], asked[:stop])
        assert [trial.params for trial in searcher.trials] == [params for batch in asked[:stop] for params in batch]
        assert run(searcher, loss)[0] == asked[stop:]
    if method != "grid":
        assert run(search.Searcher(parsed(method, seed=1)), loss)[0] != asked


def test_a_replayed_search_asks_the_same_in_another_process(python, monkeypatch, tmp_path):
    runs = {}
    for method in search.METHODS:
        asked, results = run(search.Searcher(parsed(method)), loss)
        runs[method] = {"search": parsed(method).as_dict(), "asked": asked, "results": results}
    (tmp_path / "runs.json").write_text(json.dumps(runs, sort_keys=True))
    monkeypatch.setenv("PYTHONHASHSEED", "17")
    code = """
import json, sys
from jaxsym.sweep import search
assert "optuna" not in sys.modules
for method, run in json.load(open(sys.argv[1])).items():
    searcher = search.replay(search.parse(run["search"]), run["results"][:-1], run["asked"][:-1])
    assert searcher.ask() == run["asked"][-1], method
    print(method)
"""
    assert python(code, tmp_path / "runs.json").split() == sorted(search.METHODS)


def test_what_was_told_decides(method):
    made = parsed(method)
    asked, results = run(search.Searcher(made), bowl)
    other = search.replay(made, [results[0][::-1], [-value for value in results[1]]]).ask()
    assert (other == asked[2]) == (method in ("random", "grid", "quasi_random"))


def test_other_results_are_refused():
    made = parsed("tpe")
    asked, results = run(search.Searcher(made), loss)
    with pytest.raises(ValueError, match="batch 1 holds other trials than the search asks for"):
        search.replay(made, results[:2], [asked[0], asked[2]])
    with pytest.raises(ValueError, match="got 6 objectives, expected 7"):
        search.replay(made, [results[0], results[1][:-1]])
    with pytest.raises(ValueError, match="got 1 objectives, expected 0"):
        search.replay(made, [*results, [0.0]])
    searcher = search.Searcher(made)
    with pytest.raises(ValueError, match="got 7 objectives, expected 0"):
        searcher.tell(results[0])
    searcher.ask()
    with pytest.raises(ValueError, match=r"got ask\(\) before tell\(\), expected the 7 objectives"):
        searcher.ask()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_counts_as_very_bad(method, direction, bad):
    made = parsed(method, direction=direction)
    sign = 1 if direction == "minimize" else -1

    def objective(instead):
        return lambda params: instead if params["learning_rate"] > 0.02 else sign * params["learning_rate"]

    searcher = search.Searcher(made)
    asked, results = run(searcher, objective(bad))
    assert asked == run(search.Searcher(made), objective(sign * 1e30))[0]
    told = [trial.value for trial in searcher.trials]
    np.testing.assert_array_equal(told, np.concatenate(results))
    assert 0 < np.isfinite(told).sum() < 24


def test_a_search_survives_where_nothing_is_finite(method):
    asked, _ = run(search.Searcher(parsed(method)), lambda params: math.nan)
    assert sum(map(len, asked)) == 24


def test_failed_trials_are_failed_in_the_database(tmp_path):
    searcher = search.Searcher(parsed("quasi_random", trials=3))
    run(searcher, lambda params: math.nan)
    search.write_database(tmp_path / "study.db", searcher)
    with study(tmp_path / "study.db") as stored:
        assert {trial.state.name for trial in stored.trials} == {"FAIL"}


def test_a_grid_is_visited_once():
    axes = GRID | {"width": {"low": 1, "high": 100, "int": True, "log": True, "num": 3}}
    made = search.parse({"method": "grid", "metric": "loss", "batch": 10, "space": axes})
    assert made.trials == 3 * 2 * 4 * 3
    asked, _ = run(search.Searcher(made), lambda params: 0.0)
    trials = [tuple(params.values()) for batch in asked for params in batch]
    assert len(trials) == len(set(trials)) == made.trials
    assert list(made.space) == ["biased", "hidden_steps", "learning_rate", "width"]
    assert [len(set(column)) for column in zip(*trials, strict=True)] == [2, 4, 3, 3]
    np.testing.assert_allclose(made.space["learning_rate"].grid(), [1e-4, 1e-2, 1])
    assert made.space["width"].grid() == [1, 10, 100]
    assert [row[-1] for row in trials[:4]] == [1, 10, 100, 1]


def quadratic(method):
    axes = {name: {"low": -5.0, "high": 5.0} for name in "wxyz"}
    table = {"method": method, "trials": 48, "batch": 8, "metric": "loss", "seed": 4, "space": axes}
    return search.parse(table)


@pytest.mark.parametrize("method", ["tpe", "cma_es"])
def test_a_model_beats_random_on_a_bowl(method):
    def values(method):
        return np.concatenate(run(search.Searcher(quadratic(method)), bowl)[1])

    drawn, modelled = values("random"), values(method)
    assert modelled.min() < drawn.min() / 1.5
    assert modelled[-16:].mean() < drawn[-16:].mean() / 2


@pytest.mark.parametrize("method", ["cma_es", "evolution"])
def test_a_generation_is_a_batch(method):
    """Every value of a batch counts, the first batch's and the last value too."""
    made = search.parse({**quadratic(method).as_dict(), "batch": 20, "trials": 60})
    values = [bowl(params) for params in search.Searcher(made).ask()]
    first, second = (search.replay(made, [told]).ask() for told in (values, [*values[:-1], -1.0]))
    assert first != second


def test_the_first_batch_of_cma_es_is_drawn_by_it():
    points = search.points(quadratic("cma_es"), search.Searcher(quadratic("cma_es")).ask())
    assert np.std([*points.values()]) < 2.3  # a sixth of the range; of uniform draws, 2.9


def test_a_batch_of_tpe_is_diverse(monkeypatch):
    def nearest():
        """The distance of a trial to the next one of its batch, where there is a model but little data."""
        searcher = search.Searcher(quadratic("tpe"))
        found = []
        while batch := searcher.ask():
            points = np.stack([*search.points(searcher.search, batch).values()], axis=1)
            distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(len(points), np.inf))
            found.append(np.median(distances.min(axis=1)))
            searcher.tell([bowl(params) for params in batch])
        return np.mean(found[2:4])

    diverse = nearest()
    greedy = search.Method(
        "without a liar", lambda made, _: optuna.samplers.TPESampler(seed=made.seed, constant_liar=False)
    )
    monkeypatch.setitem(search.METHODS, "tpe", greedy)
    assert diverse > 1.5 * nearest()


def test_quasi_random_covers_better():
    def discrepancy(method):
        made = search.parse(
            {
                "method": method,
                "trials": 64,
                "batch": 64,
                "metric": "loss",
                "space": {name: {"low": 0, "high": 1} for name in "xy"},
            }
        )
        return qmc.discrepancy(np.stack([*search.points(made, search.Searcher(made).ask()).values()], axis=1))

    assert discrepancy("quasi_random") < discrepancy("random") / 5


@contextlib.contextmanager
def study(path):
    """Optuna's study of a file, closed at the end."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        yield optuna.load_study(study_name="search", storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


@pytest.mark.parametrize(("method", "direction"), [("tpe", "minimize"), ("grid", "maximize"), ("cma_es", "maximize")])
def test_the_database_is_a_study_of_optuna(method, direction, tmp_path):
    path = tmp_path / "search" / "study.db"
    searcher = search.Searcher(parsed(method, direction=direction))
    search.write_database(path, searcher)
    with study(path) as stored:
        assert stored.trials == []
    while batch := searcher.ask():
        searcher.tell([loss(params) for params in batch])
        search.write_database(path, searcher)
    assert [file.name for file in path.parent.iterdir()] == ["study.db"]
    with study(path) as stored:
        assert stored.direction.name.lower() == direction
        assert stored.metric_names == ["loss"]
        assert len(stored.trials) == 24
        for number, (trial, told) in enumerate(zip(stored.trials, searcher.trials, strict=True)):
            assert (trial.number, trial.params) == (number, told.params)
            assert (trial.state.name, trial.value) == (
                ("COMPLETE", told.value) if math.isfinite(told.value) else ("FAIL", None)
            )
            assert not trial.user_attrs
            assert not trial.system_attrs
        rate = stored.trials[0].distributions["learning_rate"]
        assert rate == optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
        assert stored.trials[0].distributions["biased"] == optuna.distributions.CategoricalDistribution([True, False])
        finite = [trial.value for trial in searcher.trials if math.isfinite(trial.value)]
        assert stored.best_value == (min if direction == "minimize" else max)(finite)


def test_the_database_holds_no_state_of_a_sampler(tmp_path):
    searcher = search.Searcher(parsed("cma_es"))
    run(searcher, loss)
    search.write_database(tmp_path / "study.db", searcher)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
        for table in ("trial_system_attributes", "trial_user_attributes", "study_user_attributes"):
            assert database.execute(f"select count(*) from {table}").fetchone() == (0,)
        attributes = database.execute("select key, value_json from study_system_attributes").fetchall()
    assert attributes == [("study:metric_names", '["loss"]')]


def test_the_database_of_a_replayed_search_is_the_same(tmp_path):
    made = parsed("evolution")
    searcher = search.Searcher(made)
    results = []
    while batch := searcher.ask():
        results.append([loss(params) for params in batch])
        searcher.tell(results[-1])
        search.write_database(tmp_path / "first.db", searcher)  # a batch each time
    search.write_database(tmp_path / "second.db", search.replay(made, results))
    with study(tmp_path / "first.db") as first, study(tmp_path / "second.db") as second:
        for one, other in zip(first.trials, second.trials, strict=True):
            assert (one.params, one.values, one.state) == (other.params, other.values, other.state)


def test_an_unwritable_database_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"study.db: cannot be written"):
        search.write_database(tmp_path / "file" / "study.db", search.Searcher(parsed("random")))


def test_optuna_stays_quiet_and_as_the_user_set_it(capfd):
    logger = logging.getLogger("optuna")
    handler = logging.StreamHandler()  # on the stream that is captured here
    logger.addHandler(handler)
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        run(search.Searcher(parsed("cma_es")), loss)
        assert logger.level == logging.INFO
        assert capfd.readouterr() == ("", "")
        optuna.create_study()
        assert "A new study created" in capfd.readouterr().err
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
