"""The study of flat minima, run small: its integers by other routes, its summary from the file, its page from the figures."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.flat_minima import CLUSTERS, KINDS, SOLVED, Config, duplicated, group, outliers
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide

FEW = ("relu 3-4-2", "linear 3-4-2", "overparametrised tanh 3-16-1", "duplicated tanh 3-2-5-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("flat_minima")
    cli.main(
        [
            "run",
            "flat_minima",
            "--out",
            str(out),
            "--quick",
            "--networks",
            "4",
            "--sharp",
            "1",
            "--digits-steps",
            "20",
            "--kinds",
            ",".join(FEW),
        ]
    )
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("flat_minima").summary(results)
    solved = (results.loss <= SOLVED).values
    assert summary["solved"] == pytest.approx(solved.mean(axis=1))
    linear = results.sel(kind="linear 3-4-2")
    ranks = linear["rank"].values[(linear.loss <= SOLVED).values]
    assert summary["rank_3_4_2"] in ranks
    top = results.digits_eigenvalues.values[:, ::-1]
    ratios = top[:, :20] / top[:, 1:21]
    assert summary["outliers_digits"] == int(np.median(ratios.argmax(axis=1) + 1))
    assert summary["classes"] == 10


def test_the_integers_of_theory(summary):
    """Hessians at zero residual: written down here, not computed by the library."""
    assert summary["rank_3_4_2"] == 6
    assert summary["duplicated_3_2_5_1_smooth"] == 1 + 2 * (1 + 4) == 11
    assert summary["rank_formula_agreement"] == 1
    assert summary["orbit_contained"] == 1
    assert summary["orbit_contained_at_start"] == 0
    assert summary["identity_error_max"] < 1e-12


def test_ranks_are_those_of_the_spectra(results):
    """The gap by eye: eigenvalues above 1e-9 of the largest, at zero loss."""
    for name in ("linear 3-4-2", "overparametrised tanh 3-16-1"):
        own = results.sel(kind=name)
        values = np.abs(own.eigenvalues.values[:, : int(own.parameters)])
        ok = (own.loss <= SOLVED).values
        assert ok.any()
        assert ((values > 1e-9 * values.max(axis=1, keepdims=True)).sum(axis=1) == own["rank"].values)[ok].all()
        split = own.orbit_dim + own.hidden + own.on_data + own.beyond
        assert (split == own.nullity).values[ok].all()


def test_sharpness_moves_and_its_least_does_not(results, summary):
    assert summary["sharpness_largest_ratio"] > 10
    assert summary["sharpness_trace_ratio"] > 10
    assert summary["least_trace_spread"] < 1e-5
    assert summary["path_norm_spread"] < 1e-12
    assert summary["effective_dimension_spread"] == 0
    assert (results.sharp_least_trace <= results.sharp_trace * (1 + 1e-9)).all()
    assert (results.sharp_least_largest <= results.sharp_largest * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["duplicated tanh 3-2-5-1", "duplicated relu 3-2-5-1"])
def test_a_copy_computes_the_same(name):
    kind, x = KINDS[name], jax.random.normal(jax.random.key(0), (9, 3))
    with jax.enable_x64(True):
        small = perturbed(jax.random.key(1), wide(kind.trained().init(jax.random.key(2), x)))
        many = duplicated(jax.random.key(3), small, CLUSTERS)
        outputs = [net.apply(params, wide(x)) for net, params in ((kind.trained(), small), (kind.net(), many))]
    np.testing.assert_allclose(*outputs, rtol=1e-12)
    assert len(np.unique(many["params"]["Dense_1"]["kernel"])) == 5


def test_groups():
    with jax.enable_x64(True):
        dims = [group(KINDS[name]).dim for name in ("relu 3-4-2", "linear 3-4-4-2", "tanh 3-4-2")]
    assert dims == [4, 32, 0]


def test_outliers_are_above_the_widest_gap():
    values = np.sort(np.array([[9.0, 8, 7, 1, 0.9, 0.5, 0.4], [10, 1, 0.9, 0.8, 0.7, 0.6, 0.5]]), axis=1)
    assert outliers(values, 3).tolist() == [3, 1]


def test_the_page_says_the_figures_and_needs_nothing_else(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"{summary['outliers_digits']} eigenvalues stand apart" in page
    assert f"in {summary['orbit_contained']:.1%} of the networks" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img ") == 4 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_sentences_follow_the_figures(results):
    def text(dataset):
        return " ".join(paragraph for section in load("flat_minima").page(dataset) for paragraph in section.paragraphs)

    assert "All ranks at zero loss are those of the formulas" in text(results)
    changed = results.copy(deep=True)
    changed["rank"][:] = 3
    assert "have the rank of their formula" in text(changed)
    unsolved = results.copy(deep=True)
    unsolved["loss"][:] = 1.0
    assert "No network with a formula reached zero loss" in text(unsolved)


@pytest.mark.parametrize(
    ("name", "value"), [("networks", 1), ("adam_steps", 0), ("polish_steps", 0), ("digits_steps", 0), ("sharp", 0)]
)
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})


def test_attributes(results):
    assert all(array.attrs["long_name"] for array in results.data_vars.values() if array.ndim)
    assert jnp.isfinite(results.sharp_largest.values).all()


def test_a_kind_that_is_not_there():
    with pytest.raises(ValueError, match=r"kind .*linear 3-4-2"):
        Config(kinds="linear 3-4-3")


@pytest.mark.long
def test_all_integers_of_theory(tmp_path):
    cli.main(["run", "flat_minima", "--out", str(tmp_path / "out"), "--quick", "--networks", "8", "--sharp", "1"])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (found["rank_3_4_2"], found["rank_5_3_4"], found["rank_3_4_4_2"]) == (6, 18, 6)
    assert (found["duplicated_3_2_5_1_smooth"], found["duplicated_3_2_5_1_relu"]) == (11, 9)
    assert found["orbit_contained"] == 1
