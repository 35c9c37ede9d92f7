"""What a page is made of, by other routes: figures by xarray, ranks by sorting, numbers of cells and trials by hand."""

import json

import numpy as np
import pytest

from jaxsym.sweep_page import facts, pictures
from tests.sweep_page import fakes


def taken_apart(data, cells):
    config = json.loads(data.attrs["config"])
    found = facts.points(data, config, cells)
    return found, facts.rank(found, config, data)


@pytest.mark.parametrize("name", fakes.SWEEPS)
def test_figures_agree_with_xarray(name):
    data, cells = fakes.SWEEPS[name]()
    found, _ = taken_apart(data, cells)
    last = data["loss"].isel(step=-1).where(data["finite"]).values.reshape(-1, fakes.SEEDS)
    np.testing.assert_allclose(found.quantiles("loss"), np.nanquantile(last, (0, 0.25, 0.5, 0.75, 1), axis=1).T)
    assert found.lost().sum() == (~data["finite"]).sum() > 0


def test_cells_with_other_steps_end_where_they_end():
    """An outer join leaves NaN where a cell has no record: the narrow networks have fewer steps here, and earlier ones."""
    data, cells = fakes.cross()
    short = data["step"].isin([0, 20, 50])
    data = data.assign({name: data[name].where(short | (data["width"] == 8)) for name in ("loss", "test_accuracy")})
    found, ranked = taken_apart(data, cells)
    assert len(ranked.order) == 12
    whole = data["finite"].sel(width=4).values
    wanted = np.where(whole, data["loss"].sel(width=4, step=50), np.nan)
    np.testing.assert_array_equal(found.last["loss"][:6], wanted.reshape(6, fakes.SEEDS))
    drawn = pictures.curves(data, found, ranked)
    steps = {tuple(line.get_xdata()) for ax in drawn.figure.axes for line in ax.lines}
    assert steps == {(0, 20, 50), tuple(fakes.STEPS)}
    assert all(np.isfinite(line.get_ydata()).all() for ax in drawn.figure.axes for line in ax.lines)


def test_points_of_a_cross_are_those_of_the_dataset():
    data, cells = fakes.cross()
    found, ranked = taken_apart(data, cells)
    place = {"width": 8, "activation": "relu", "learning_rate": 1.0}
    point = next(p for p in range(12) if found.label(p) == "width 8, activation relu, learning_rate 1")
    chosen = data.sel(place)
    middle = chosen["test_accuracy"].isel(step=-1).where(chosen["finite"]).median()
    assert ranked.score[point] == pytest.approx(float(middle))
    assert ranked.order[0] == point
    assert found.cell.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert found.static == ["width", "activation"]
    assert found.left_out == ["weights"]


def test_zipped_axes_lie_on_the_points():
    found, _ = taken_apart(*fakes.zipped())
    assert found.label(5) == "initializer he, learning_rate 0.01, momentum 0.5"
    assert found.along("point") == ["learning_rate", "momentum"]
    assert found.cell.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_batch_that_is_missing_shifts_no_trial():
    data, cells = fakes.search()
    cells = [cell._replace(state="missing") if cell.number == 1 else cell for cell in cells]
    found, ranked = taken_apart(data.isel(trial=[*range(16), *range(32, 64)]), cells)
    assert found.trials.tolist() == [*range(16), *range(32, 64)]
    assert found.cell.tolist() == [0] * 16 + [2] * 16 + [3] * 16
    assert found.done.all()
    best = int(data["objective"].isel(trial=found.trials).idxmin())
    assert found.short(ranked.order[0]) == f"trial {best}"


def test_what_failed_is_neither_finite_nor_lost():
    data, cells = fakes.lose(*fakes.cross(), {3: "failed", 0: "missing"})
    found, ranked = taken_apart(data, cells)
    assert found.done.tolist() == [False] * 3 + [True] * 6 + [False] * 3
    assert not found.finite[~found.done].any()
    assert found.lost().sum() == 4  # of cell 2 alone
    assert set(ranked.order) == set(range(3, 9))


def test_a_search_ranks_by_its_objective_and_not_what_is_not_finite():
    data, cells = fakes.search()
    _, ranked = taken_apart(data, cells)
    objective = data["objective"].values
    assert ranked.order == [i for i in np.argsort(objective, kind="stable") if np.isfinite(objective[i])]
    assert len(ranked.order) == 60
    config = json.loads(data.attrs["config"])
    config["search"]["direction"] = "maximize"
    _, turned = taken_apart(data.assign_attrs(config=json.dumps(config)), cells)
    assert turned.order == ranked.order[::-1]


@pytest.mark.parametrize(
    ("names", "chosen", "maximize"),
    [
        (["loss", "test_loss", "test_accuracy"], "test_accuracy", True),
        (["loss", "test_loss"], "test_loss", False),
        (["norm", "train_accuracy", "train_cost"], "train_accuracy", True),
        (["norm", "cost"], "cost", False),
        (["norm", "units"], "norm", False),
    ],
)
def test_the_main_metric_by_rule(names, chosen, maximize):
    metric = facts.main_metric(names, {})
    assert metric[:2] == (chosen, maximize)
    assert ("higher" if maximize else "lower") in metric.rule


def test_without_variables_there_is_no_metric():
    assert facts.main_metric([], {}) is None


def test_a_series_of_named_things_is_no_history():
    data, cells = fakes.cross()
    kinds = data["loss"].isel(step=slice(3)).rename("by_class").rename(step="kind").assign_coords(kind=["a", "b", "c"])
    series = data["loss"].rename("trace").rename(step="trace_0")
    found, _ = taken_apart(data.drop_vars("loss").assign(by_class=kinds, trace=series), cells)
    assert "trace" in found.last
    assert "by_class" in found.left_out


def test_numbers_that_are_whole_come_after_the_others():
    data, cells = fakes.cross()
    whole = data["loss"].isel(step=-1, drop=True).fillna(0).astype(int)
    data = xr_like(data, {"aardvark": whole, "norm": whole + 0.5})
    _, ranked = taken_apart(data, cells)
    assert ranked.metric.name == "norm"


def xr_like(data, variables):
    return data[["finite"]].assign(variables)
