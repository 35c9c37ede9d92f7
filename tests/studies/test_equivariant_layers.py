"""The study of equivariant layers: its tables by hand, a small run, its sentences from its figures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.equivariant_layers import METHODS, NETS, POINTS, Config, _broken, _counted, standardised


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("equivariant_layers")
    cli.main(["run", "equivariant_layers", "--out", str(out), "--quick"])
    return out


def test_the_tables():
    found = _counted()
    assert found["colours"] == [6, 9, 11, 13, 15, 17, 19]
    assert found["constrained"][1:] == [7, 8, 9, 10, 11, 12]
    assert found["tensors"] == [4, 5, 5, 5, 5, 5, 5]
    assert found["functions"] == [3, 4, 4, 4, 4, 4, 4]
    assert found["linear_colours"] == found["linear_dimension"] == [2] * 7
    assert found["folded_pattern"].tolist() == [[0, 1, 1, 2, 3, 4], [1, 0, 1, 2, 3, 4], [1, 1, 0, 2, 3, 4]]
    assert found["folded"] == [2, 4, 5, 6]
    assert found["folded_quadratic"] == [4, 18, 30, 43]
    assert (found["folded_first_three"], found["folded_by_folding"], found["folding_dimension"]) == (True, False, 2)
    assert found["folding_tensor"].tolist() == [[0, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 1, 0]]
    assert min(found["colours_error"][1:]) > 0.1
    assert max(found["constrained_error"]) < 1e-12


def test_how_far_from_equivariant():
    square = np.zeros((3, 3, 3))
    square[range(3), range(3), range(3)] = 1  # y_k = x_k^2
    assert _broken(square) == 0
    square[0, 0, 0] = 2
    assert _broken(square) == 0.5


def test_the_task_commutes_with_permutations():
    x = jax.random.normal(jax.random.key(0), (5, POINTS))
    y = standardised(x)
    np.testing.assert_allclose(standardised(x[:, ::-1]), y[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose((y**2).mean(-1), 1, atol=1e-5)


def test_networks_are_of_like_size():
    sizes = {
        method: sum(leaf.size for leaf in jax.tree.leaves(NETS[method].init(jax.random.key(0), jnp.ones((1, POINTS)))))
        for method in METHODS
    }
    assert sizes["tied"] < sizes["dense"] == sizes["augmented"] < 4 * sizes["tied"]


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("equivariant_layers").summary(results)
    last = results.error.isel(record=-1)
    for number, method in enumerate(METHODS):
        assert summary[f"{method}_error"] == pytest.approx(np.median(last.values[number][:, 0]))
        assert summary[f"{method}_errors"] == pytest.approx(list(np.median(last.values[number], axis=0)))
        assert summary[f"equivariance_error_{method}"] == pytest.approx(results.apart.values[number].max())
    assert summary["weightspace_accuracy"] == pytest.approx(results.read_accuracy.values[0].mean())
    assert summary["flat_accuracy"] == pytest.approx(results.read_accuracy.values[1].mean())
    assert summary["colours_8"] == 19


def test_shared_weights_commute_and_others_do_not(results, summary):
    assert summary["equivariance_error_tied"] < 1e-10
    assert min(summary["equivariance_error_dense"], summary["equivariance_error_augmented"]) > 1e-2
    assert float(results.broken.sel(layers="tied").max()) < 1e-3
    assert float(results.broken.sel(layers="dense").min()) > 1e-2
    assert summary["weightspace_changed"] == 0


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert "equivariant_layers, a quick run: too small" in page
    assert "2N + 3, and N + 4 with line 8, from N = 3 on" in page
    assert f"right in {summary['weightspace_accuracy']:.1%}" in page
    assert page.count("<img ") == 4 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


@pytest.mark.parametrize(("name", "value"), [("networks", 1), ("steps", 2), ("population", 3), ("readers", 1)])
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})
