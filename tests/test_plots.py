"""Pictures of sweeps: what is where."""

import numpy as np
import pytest

from jaxsym import plots


def test_scales_run_from_the_least_to_the_greatest():
    scale = plots.scale("rate", [0.1, 0.001, 10.0, np.inf], logarithmic=True)
    np.testing.assert_allclose(scale.positions[:3], [0.5, 0, 1])
    assert not np.isfinite(scale.positions[3])
    assert [label for _, label in scale.ticks] == ["0.001", "0.1", "10"]
    plain = plots.scale("width", list(range(0, 110, 10)))
    assert plain.ticks == [(0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100")]


def test_scales_of_names_of_one_value_and_of_none():
    assert plots.scale("kind", ["b", "a", "b"]).ticks == [(0.0, "b"), (1.0, "a")]
    assert plots.scale("bias", [True, False]).ticks == [(0.0, "True"), (1.0, "False")]
    assert plots.scale("width", [8, 8]).positions.tolist() == [0.5, 0.5]
    assert plots.scale("loss", [np.nan]).ticks == []


@pytest.mark.parametrize(("maximize", "best"), [(False, [3, 3, 2, 2, 1]), (True, [3, 3, 3, 5, 5])])
def test_the_best_so_far(maximize, best):
    _, (ax,) = plots.panels(1)
    plots.best_so_far(ax, np.array([0, 1, 2, 5, 6]), np.array([3, np.inf, 2, 5, 1.0]), maximize=maximize)
    (line,) = ax.lines
    assert line.get_ydata().tolist() == best
    dots, crosses = ax.collections
    assert dots.get_offsets()[:, 0].tolist() == [0, 2, 5, 6]
    assert crosses.get_offsets()[:, 0].tolist() == [1]


def test_the_best_line_lies_on_top_and_the_rest_is_dashed():
    _, (ax,) = plots.panels(1)
    scales = [plots.scale("x", [1, 2, 3]), plots.scale("loss", [0.1, np.nan, 0.3])]
    plots.parallel_coordinates(ax, scales, np.array([1.0, np.nan, 0.0]))
    drawn = [line.get_ydata().tolist() for line in ax.lines[:3]]
    assert drawn[2] == [0.0, 0.0]
    assert drawn[1] == [1.0, 1.0]
    assert ax.lines[0].get_linestyle() == "--"
    assert np.isnan(drawn[0][1])


def test_a_heat_map_labels_what_there_is_room_for():
    _, (ax,) = plots.panels(1)
    values = np.arange(100.0).reshape(2, 50)
    values[0, 0] = np.nan
    texts = [["x"] * 50] * 2
    columns = [f"value {i}" for i in range(50)]
    image = plots.heat_map(ax, values, ["a", "b"], columns, limits=(1.0, 99.0), logarithmic=True, texts=texts)
    assert len(ax.get_xticks()) == 25
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {40.0}
    assert image.get_array().mask[0, 0]
    assert {text.get_color() for text in ax.texts} == {"black", "white"}


def test_an_empty_series_is_an_empty_row():
    _, (ax,) = plots.panels(1)
    plots.distributions(ax, {"some": np.array([1.0, 2, 4]), "none": np.array([])})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["some", "none"]
    (bar,) = ax.lines
    assert list(bar.get_xdata()) == [2, 2]
    low, high = sorted(ax.get_ylim())
    assert low < 0
    assert high > 1


def test_far_apart_means_positive_and_a_factor_of_ten():
    assert plots.far_apart(np.array([0.1, np.nan, 2]))
    assert not plots.far_apart(np.array([0.1, 0.9]))
    assert not plots.far_apart(np.array([0, 100]))
    assert not plots.far_apart(np.array([np.nan]))


def test_equal_classes_have_equal_colours_and_their_number_on_each_tile():
    _, (ax,) = plots.panels(1)
    classes = np.array([[0, 1, 1], [1, 0, 2]])
    plots.colour_tiles(ax, classes, 3)
    shades = np.asarray(ax.images[0].get_array())
    assert (shades[0, 0] == shades[1, 1]).all()
    assert (shades[0, 1] == shades[1, 0]).all()
    assert (shades[0, 0] != shades[0, 1]).any()
    assert (shades[1, 2] != shades[0, 1]).any()
    assert [text.get_text() for text in ax.texts] == ["1", "2", "2", "2", "1", "3"]
