"""The study of connectivity, run small: barriers by hand, merged networks by hand, its summary from the file, its page from the summary."""

import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxsym import cli, data
from jaxsym.alignment import reestimated
from jaxsym.studies import load
from jaxsym.studies.mode_connectivity import Config, expect_images, numbers
from jaxsym.studies.mode_connectivity_lines import ground, measures, permutations, trained
from jaxsym.studies.mode_connectivity_networks import CATALOGUE
from jaxsym.studies.mode_connectivity_page import page
from jaxsym.studies.mode_connectivity_summary import MOVES, NAMES, claims, summary
from jaxsym.studies.study import Clock, silent, tally

WIDTHS, COUNTS = (4, 8), (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("mode_connectivity")
    options = (
        "--quick --pairs 2 --widths 4,8 --merged 2,3 --merged-width 6 --epochs 2 --rows 256 --points 5 --architectures cnn --architecture-epochs 1"
        " --other-widths 4 --other-epochs 1 --other-rows 128"
    )
    cli.main(["run", "mode_connectivity", "--out", str(out), *options.split()])
    return out


@pytest.fixture
def made():
    """A dataset of figures that nobody measured: of all parts, with three pairs and five points."""
    rng, pairs, points = np.random.default_rng(0), 3, np.linspace(0, 1, 5)
    coords = {
        "activation": ["relu", "tanh"],
        "width": [4, 8],
        "other_width": [16],
        "architecture": list(CATALOGUE),
        "move": list(MOVES),
        "point": points,
        "count": [2, 3],
        "way": ["naive", "onto the first", "into a universe"],
        "x": [0.0, 1.0, 2.0],
        "y": [0.0, 1.0, 2.0],
        "corner": ["first", "second", "second, moved"],
    }
    variables = {
        "orbit_loss": (("activation", "width", "pair", "step"), np.ones((2, 2, pairs, 4))),
        "merged_loss": (("count", "way"), rng.uniform(size=(2, 3))),
        "merged_accuracy": (("count", "way"), rng.uniform(size=(2, 3))),
        "single_accuracy": (("network",), rng.uniform(size=3)),
        "plane_loss": (("y", "x"), rng.uniform(size=(3, 3))),
        "plane_points": (("corner", "axis"), np.array([[0.0, 0], [2, 0], [1, 2]])),
        "architecture_size": (("architecture",), [100, 200, 300]),
        "architecture_group": (("architecture",), ["1 sign", "2 scaling", "3 permutation"]),
    } | dict.fromkeys(("networks", "net_steps", "compile_seconds", "run_seconds"), ((), 1))
    for prefix, dims in (
        ("", ("activation", "width")),
        ("architecture_", ("architecture",)),
        ("other_", ("other_width",)),
    ):
        shape = (*(len(coords[dim]) for dim in dims), pairs, len(MOVES))
        for anew in ("", "_anew") if prefix == "architecture_" else ("",):
            for name, height in (("loss", "barrier"), ("error", "error_barrier")):
                values = rng.uniform(size=(*shape, 5))
                chord = values[..., :1] + points * (values[..., -1:] - values[..., :1])
                both = {name: values, height: (values - chord).max(-1)}
                if anew:
                    both = {
                        key: np.where(np.array(list(CATALOGUE)).reshape(-1, *[1] * (v.ndim - 1)) == "cnn", v, np.nan)
                        for key, v in both.items()
                    }
                variables[f"{prefix}{name}{anew}"] = ((*dims, "pair", "move", "point"), both[name])
                variables[f"{prefix}{height}{anew}"] = ((*dims, "pair", "move"), both[height])
        variables[f"{prefix}distance"] = ((*dims, "pair", "move"), rng.uniform(size=shape))
    attributes = {
        "data": "digits",
        "merged_width": 8,
        "epochs": 2,
        "architecture_epochs": 3,
        "other": "mnist_5k",
        "other_rows": 77,
        "other_epochs": 4,
    }
    return xr.Dataset(variables, coords=coords, attrs=attributes)


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("mode_connectivity").summary(results)
    for width in WIDTHS:
        for move in MOVES:
            lines = results.loss.sel(activation="relu", width=width, move=move).values
            chord = lines[:, :1] + np.linspace(0, 1, 5) * (lines[:, -1:] - lines[:, :1])
            assert summary[f"barrier_{move}_{width}"] == pytest.approx((lines - chord).max(1).mean(), abs=1e-6)
        errors = results.error.sel(activation="relu", width=width, move="activations").values
        assert summary[f"midpoint_accuracy_{width}"] == pytest.approx(1 - errors[:, 2].mean())
        assert summary[f"endpoint_accuracy_{width}"] == pytest.approx(1 - errors[:, [0, 4]].mean())
    last = results.merged_accuracy.sel(count=COUNTS[-1], way="into a universe")
    assert summary[f"merged{COUNTS[-1]}_accuracy"] == pytest.approx(float(last))
    assert summary["networks"] == 2 * 2 * 4 + 4 + 4 + 3


@pytest.mark.parametrize("part", ["", "architecture_", "other_"])
def test_a_network_that_was_moved_is_the_same_function(results, part):
    """The ends of every line have one loss and one error, however the second network was moved."""
    for name, tolerance in (("loss", 1e-4), ("error", 1e-6)):
        ends = results[part + name].isel(point=[0, -1])
        assert float(abs(ends - ends.sel(move="naive")).max()) < tolerance


def test_computed_anew_the_statistics_of_a_network_are_its_own(results):
    """So the ends of a line are what they were."""
    for name, tolerance in (("loss", 1e-4), ("error", 1e-6)):
        averaged, anew = (results[f"architecture_{name}{kind}"].isel(point=[0, -1]) for kind in ("", "_anew"))
        assert float(abs(anew - averaged).max()) < tolerance


@pytest.mark.parametrize("part", ["", "architecture_", "other_"])
def test_matching_by_weights_brings_networks_closer(results, part):
    distance = results[f"{part}distance"].transpose("move", ...)
    assert bool((distance.sel(move="weights") < distance.sel(move="naive")).all())
    assert bool((distance.sel(move="permutations") <= distance.sel(move="naive")).all())


def test_along_the_orbit_the_loss_stays(results, summary):
    assert summary["orbit_path_loss_range"] < 1e-9
    assert summary["orbit_path_loss_range"] == float(np.ptp(results.orbit_loss.values, axis=-1).max())
    assert "Along a curve inside an orbit the loss does not change" not in summary["claims_that_failed"]


VERDICTS = [True, False, None]


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("move", ["weights", "activations"])
def test_claims_can_come_out_either_way(made, move, verdict):
    """A claim holds where all pairs say so, and not where none does."""
    change = {True: [-1, -1, -1], False: [1, 1, 1], None: [-1, 1, 1]}[verdict]
    for name in ("barrier", "architecture_barrier", "other_barrier"):
        moved = made[name].sel(move="naive") + xr.DataArray(change, dims="pair")
        made[name] = made[name].where(made.move != move, moved)
    anew = made["architecture_barrier"] + xr.DataArray(change, dims="pair")
    made["architecture_barrier_anew"] = anew.where(made.architecture == "cnn")
    found = {claim: holds for claim, _, holds in claims(made)}
    text = {"weights": "by weights", "activations": "by activations"}[move]
    who = [
        "networks have",
        *(f"pairs of a {name} have" for name in NAMES.values()),
        "ReLU perceptrons on mnist_5k have",
    ]
    for one in who:
        assert found[f"Moved onto each other {text}, {one} a lower barrier than as they are"] is verdict
    anew_claim = f"After matching {text}, statistics that are computed anew lower the barrier of a CNN with BatchNorm"
    assert found[anew_claim] is verdict
    assert (anew_claim in summary(made)["claims_that_failed"]) == (verdict is False)
    assert sum("computed anew" in claim for claim in found) == 2


def test_a_curve_that_leaves_the_orbit_is_told(made):
    bent = made.assign(orbit_loss=made.orbit_loss + xr.DataArray(np.arange(made.sizes["step"]), dims="step"))
    text = "Along a curve inside an orbit the loss does not change"
    assert [{claim: holds for claim, _, holds in claims(one)}[text] for one in (made, bent)] == [True, False]


def test_headline_figures_of_every_part(made):
    figures = summary(made)
    for i, name in enumerate(CATALOGUE):
        for j, move in enumerate(MOVES):
            assert figures[f"barrier_{move}_{name}"] == pytest.approx(made.architecture_barrier.values[i, :, j].mean())
            assert figures[f"error_barrier_{move}_{name}"] == pytest.approx(
                made.architecture_error_barrier.values[i, :, j].mean()
            )
        middle, ends = made.architecture_error.values[i, :, 3, 2], made.architecture_error.values[i, :, 3][:, [0, 4]]
        assert figures[f"midpoint_accuracy_{name}"] == pytest.approx(1 - middle.mean())
        assert figures[f"endpoint_accuracy_{name}"] == pytest.approx(1 - ends.mean())
    assert figures["barrier_weights_cnn_anew"] == pytest.approx(made.architecture_barrier_anew.values[1, :, 2].mean())
    assert not any("resnet_anew" in key or "transformer_anew" in key for key in figures)
    assert figures["barrier_naive_other_16"] == pytest.approx(made.other_barrier.values[0, :, 0].mean())
    assert figures["barrier_naive_8"] == pytest.approx(made.barrier.values[0, 1, :, 0].mean())


def test_the_page_of_every_part(made):
    figures = summary(made)
    sections = {section.title: section for section in page(made, figures)}
    said = " ".join(sections["Other architectures"].paragraphs)
    for name in CATALOGUE:
        assert f"{NAMES[name][1:]}: {figures[f'barrier_naive_{name}']:.3g} nats as they are" in said
    assert "Transformer: " in said
    assert (
        f"{figures['barrier_activations_cnn_anew']:.3g} by activations, and {figures['midpoint_accuracy_cnn_anew']:.1%} midway"
        in said
    )
    assert said.count("With statistics computed anew") == 1
    barriers, about = sections["Other architectures"].tables
    assert [row[0] for row in barriers.rows] == [
        "ResNet with LayerNorm",
        "CNN with BatchNorm",
        "CNN with BatchNorm, statistics anew",
        "transformer",
    ]
    for row, kind in ((1, ""), (2, "_anew")):
        measured = made[f"architecture_barrier{kind}"].values[1].mean(0)
        assert list(barriers.rows[row][1:5]) == [f"{height:.3g}" for height in measured]
    assert [row[2] for row in about.rows] == list(made.architecture_group.values)
    assert "ReLU perceptrons on 77 rows of mnist_5k, 4 epochs" in sections["Other data: mnist_5k"].paragraphs[0]
    some = [name for name in made.variables if str(name).startswith(("architecture", "other"))]
    assert not {"Other architectures", "Other data: mnist_5k"} & {
        one.title for one in page(made.drop_vars(some), figures)
    }


def test_the_page_names_where_more_of_the_group_is_no_better(made):
    """At one width by weights, nowhere by activations."""
    heights = xr.DataArray([4.0, 3.0, 2.0, 1.0], dims="move") + 0.1 * made["barrier"]
    where = (made.activation == "relu") & (made.width == 8) & (made.move == "weights")
    made = made.assign_coords(pair=range(3))
    made["barrier"] = heights.transpose(*made["barrier"].dims).where(~where, 3.5 + made.pair / 10)
    said = {section.title: section for section in page(made, summary(made))}["Barriers against width"].paragraphs[-1]
    assert said == (
        "In the mean over pairs, of the training loss, the whole group by weights brings a higher barrier than permutations alone by weights for ReLU at width 8;"
        " the whole group by activations brings a higher barrier than the whole group by weights nowhere."
    )


@pytest.mark.parametrize(("far", "verdict"), [(0.0, None), (5.0, True), (-5.0, False)])
def test_wider_networks_have_lower_barriers_or_not(made, far, verdict):
    shift = xr.DataArray([far, 0.0], dims="width")
    made["barrier"] = (xr.zeros_like(made["barrier"]) + xr.DataArray([0.1, 0.2, 0.3], dims="pair") + shift).transpose(
        *made["barrier"].dims
    )
    text = "The wider the networks, the lower the barrier after matching (ReLU, by activations)"
    assert {claim: holds for claim, _, holds in claims(made)}[text] is verdict


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("name", CATALOGUE)
def test_architectures_read_images_of_any_side(name, side):
    net, x = CATALOGUE[name](7), jax.ShapeDtypeStruct((3, side, side), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    assert jax.eval_shape(net.apply, params, x).shape == (3, 7)
    assert jax.eval_shape(net.training, params, x).shape == (3, 7)


def test_statistics_computed_anew():
    """What a network computes with them is what it computes by the statistics of these inputs; those of the first norm by hand, and all as the library finds them."""
    net, x = CATALOGUE["cnn"](3), jax.random.normal(jax.random.key(1), (20, 8, 8))
    params = net.init(jax.random.key(0), x)
    anew = net.restated(params, x)
    np.testing.assert_allclose(net.apply(anew, x), net.training(params, x), atol=1e-5)
    assert float(abs(net.apply(params, x) - net.training(params, x)).max()) > 0.1
    kernel = np.asarray(params["params"]["Conv_0"]["kernel"])[:, :, 0]
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1)))
    maps = sum(padded[:, i : i + 8, j : j + 8, None] * kernel[i, j] for i in range(3) for j in range(3))
    stored = anew["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stored["mean"], maps.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(stored["var"], maps.var((0, 1, 2)), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, anew["params"], params["params"])
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), anew, reestimated(net.apply, params, (x,))
    )


@pytest.mark.long
def test_trained_statistics_are_those_of_all_rows_and_a_line_heals_wrong_ones():
    on = ground(Clock(silent, 0), data.digits(), 128, 1)
    net = CATALOGUE["cnn"](10)
    stacked = trained(on, "cnn", net, jax.random.split(jax.random.key(0), 2))
    a, b = (jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(2))
    for one in (a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), one, net.restated(one, on.train.inputs))
    wrong = b | {"batch_stats": jax.tree.map(lambda leaf: 4 * leaf, b["batch_stats"])}
    anew = measures(net, on, 3, anew=True)
    right, healed, spoiled = anew(a, b), anew(a, wrong), measures(net, on, 3)(a, wrong)
    np.testing.assert_allclose(right["loss"], healed["loss"], rtol=1e-4)
    assert abs(float(spoiled["loss"][-1] - right["loss"][-1])) > 0.01


def test_rows_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match=r"inputs of titanic have shape \(12,\); pass --architectures ''"):
        expect_images("titanic", data.titanic())


def test_the_page_says_the_figures(folder, results, summary):
    text = (folder / "report.html").read_text()
    assert f"{summary['barrier_naive_8']:.3g} nats as they are" in text
    assert html.escape(tally(claims(results))) in text
    assert text.count("<img ") == 6 == len(re.findall(r"alt=\"[^\"]{30,}\"", text))


def test_permutations_alone():
    from tests.alignment.test_match import mlp

    _, sym, params = mlp((3, 5, 2), "relu")
    alone = permutations(sym)
    assert (alone.order, alone.dim) == (120, 0)
    moved = alone.act(jax.device_get(alone.sample(jax.random.key(0))), params)
    given, other = (np.asarray(tree["params"]["Dense_0"]["kernel"]) for tree in (params, moved))
    np.testing.assert_array_equal(np.sort(given.sum(0)), np.sort(other.sum(0)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": 1}, "pairs: got 1"),
        ({"widths": "64,16"}, "widths: got '64,16', expected numbers from 2 on in rising order"),
        ({"merged": "1,2"}, "merged: got '1,2'"),
        ({"merged": "two"}, "merged: got 'two'"),
        ({"points": 2}, "points: got 2"),
        ({"rows": 10}, "rows: got 10"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"architectures": "cnn,resnot"}, "resnot"),
        ({"architecture_epochs": 0}, "architecture_epochs: got 0"),
        ({"other_widths": "1"}, "other_widths: got '1'"),
        ({"other_epochs": 0}, "other_epochs: got 0"),
        ({"other_rows": 1}, "other_rows: got 1"),
    ],
)
def test_bad_config(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)


def test_numbers():
    assert numbers("widths", "16, 64", 2) == [16, 64]


@pytest.mark.long
def test_a_folder_with_the_files_of_mnist(tmp_path):
    """Images of 28 x 28, as 784 inputs and as images."""
    rng = np.random.default_rng(0)
    for part, rows in (("train", 128), ("t10k", 20)):
        labels = np.arange(rows, dtype=np.uint8) % 10
        images = (rng.uniform(size=(rows, 28, 28)) * 20 * (labels[:, None, None] + 1)).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(header + values.tobytes())
    options = "--pairs 2 --widths 4 --merged 2 --merged-width 4 --epochs 1 --points 3 --architectures cnn --architecture-epochs 1 --other-widths 5 --other-epochs 1"
    folders = ["--data", str(tmp_path), "--other", str(tmp_path)]
    cli.main(["run", "mode_connectivity", "--quick", "--out", str(tmp_path / "run"), *options.split(), *folders])
    with xr.open_dataset(tmp_path / "run" / "results.nc", engine="h5netcdf") as found:
        assert (found.attrs["rows"], found.attrs["other_rows"]) == (128, 128)
        assert bool(found.barrier.notnull().all() & found.other_barrier.notnull().all())
        assert found.architecture_size.item() > 3000


@pytest.mark.long
def test_findings(tmp_path):
    """At the quick setting: matching takes most of the barrier away, more so where networks are wide."""
    cli.main(["run", "mode_connectivity", "--quick", "--out", str(tmp_path / "run")])
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert figures["barrier_activations_64"] < 0.3 * figures["barrier_naive_64"]
    assert figures["barrier_weights_64"] < 0.3 * figures["barrier_naive_64"]
    assert figures["barrier_activations_64"] < figures["barrier_activations_16"]
    assert figures["merged8_accuracy"] > figures["merged_accuracies_naive"][-1] + 0.3
