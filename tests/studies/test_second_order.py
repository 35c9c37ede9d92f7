"""The study of the second derivative, run small: its formulas by other routes, its summary from the file, its page from the figures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.second_order import Config, Layers, backpropagation, footprint, graph, objective, problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("second_order")
    cli.main(
        ["run", "second_order", "--out", str(out), "--quick", "--largest-width", "16", "--rows", "32", "--repeats", "2"]
    )
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("second_order").summary(results)
    seconds = results.seconds
    assert summary["hvp_over_gradient"] == pytest.approx(
        float((seconds.sel(task="hvp") / seconds.sel(task="gradient")).median())
    )
    ratio = results.bytes.sel(task="gradient") / results.formula_training
    assert summary["memory_formula_ratio"] == pytest.approx(float(ratio.median()))
    assert summary["backpropagation_error"] < 1e-14
    assert (seconds > 0).all()
    assert results.parameters.values.tolist() == [31 * width + 10 for width in results.width.values]


def test_the_derivation_is_the_slope_of_the_objective():
    """Central differences, in float64."""
    with jax.enable_x64(True):
        params, x, labels, v = problem(3, 5, 12)
        params, x, v = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x, v))
        gradient = backpropagation(params, x, labels)
        along = sum(float(jnp.vdot(g, d)) for g, d in zip(gradient, v, strict=True))

        def value(step):
            return float(objective(Layers(*(p + step * d for p, d in zip(params, v, strict=True))), x, labels))

        assert along == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-8)


def test_the_formula_counts_every_array():
    width, rows = 7, 12
    params, x, labels, _ = problem(0, width, rows)
    hidden = jnp.tanh(x @ params.a + params.b)
    out = hidden @ params.B + params.c
    kept = [*params, x, hidden, out]
    assert footprint(width, rows)["prediction"] == sum(leaf.nbytes for leaf in kept)
    also = [*backpropagation(params, x, labels), labels.astype(jnp.int32), hidden, out]
    assert footprint(width, rows)["training"] == sum(leaf.nbytes for leaf in kept + also)


def test_graphs_grow_and_are_acyclic(results):
    counts = [len(graph(name).primitives) for name in ("loss", "gradient", "hvp", "third")]
    assert counts == sorted(counts) == results.equations.values.tolist()
    assert counts[-1] > 4 * counts[0]
    one = graph("gradient")
    assert (one.edges[:, 0] < one.edges[:, 1]).all()
    assert (one.depth[one.edges[:, 0]] < one.depth[one.edges[:, 1]]).all()
    assert one.primitives.count("dot_general") == 5  # x A and h B; do B', h' do and x' dz


def test_the_page_says_the_figures_and_needs_nothing_else(folder, summary):
    page = (folder / "report.html").read_text()
    assert "second_order, a quick run: too small" in page
    for text in (
        f"{summary['hvp_over_gradient']:.2f} gradients",
        f"P^{summary['hessian_exponent']:.2f}",
        f"is {summary['equations_loss']} equations",
    ):
        assert text in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img ") == 3 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_sentences_follow_the_figures(results):
    def text(dataset):
        return " ".join(paragraph for section in load("second_order").page(dataset) for paragraph in section.paragraphs)

    assert "in float64, over all sizes: rounding." in text(results)
    changed = results.copy(deep=True)
    changed["backpropagation_error"][:] = 1e-3
    assert "more than rounding" in text(changed)


@pytest.mark.parametrize(("name", "value"), [("rows", 0), ("largest_width", 8), ("largest_dense", 2), ("repeats", 0)])
def test_bad_config(name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value}"):
        Config(**{name: value})


def test_attributes(results):
    assert all(array.attrs["long_name"] for array in results.data_vars.values() if array.ndim)
    assert np.isnan(results.seconds.sel(task="hessian")).sum() == 0
