"""The study of polynomials, run small: least squares by other ways, the closed form by sampling, its sentences from its figures."""

import math
import re
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxsym import cli
from jaxsym.studies import load, polynomial
from jaxsym.studies.polynomial import Config
from jaxsym.studies.polynomial_exact import (
    COEFFICIENTS,
    WAYS,
    best_fits,
    factorials,
    features,
    hermite,
    population_loss,
    reference,
    solved,
)
from jaxsym.studies.polynomial_summary import SCALED, claims, higher, middle, spans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("polynomial")
    small = ["--networks", "6", "--epochs", "40", "--rates", "0.01,1e-6"]
    cli.main(["run", "polynomial", "--out", str(out), "--quick", *small])
    return out


def drawn(seed, num):
    x = np.random.default_rng(seed).normal(size=num)
    y = sum(c * x**i / math.factorial(i) for i, c in enumerate(COEFFICIENTS))
    return x, y + 0.1 * np.random.default_rng(seed + 1).normal(size=num)


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("polynomial").summary(results)
    end = results.sel(scaling=SCALED).isel(epoch=-1)
    for part in ("train", "test"):
        for degree in (1, 3, 20):
            values = end[f"sgd_{part}"].sel(size=100, degree=degree).values
            assert summary[f"{part}_loss_degree_{degree}"] == pytest.approx(np.median(values))
    for size in (10, 50, 500):
        values = end["sgd_test"].sel(size=size, degree=3).values
        assert summary[f"test_loss_n_{size}"] == pytest.approx(np.median(values))
    gap = end["sgd_train"].sel(size=100, degree=3) - results["exact_train"].sel(size=100, degree=3)
    assert summary["exact_gap_degree_3"] == pytest.approx(float(gap.median()), rel=1e-3)
    assert summary["noise_floor"] == pytest.approx(0.01)
    failed = [claim for claim, _, holds in claims(results) if holds is False]
    assert summary["claims_that_failed"] == failed


def test_degrees_are_nested_and_the_exact_fit_is_the_lowest(results):
    """More features never fit the training rows worse, and nothing trained fits them better than the exact fit."""
    exact = results["exact_train"].transpose("size", "network", "degree").values
    assert (np.diff(exact[results["size"].values >= 50], axis=-1) <= 1e-12).all()
    gaps = results["exact_gap"].values
    assert (gaps[np.isfinite(gaps)] > -1e-9).all()


def test_what_diverges_is_kept(results, summary):
    """At 0.01 the powers of degree 20 overflow; at a small rate the low ones do not."""
    assert not np.isfinite(results["rate_train"].sel(rate=0.01, degree=20)).any()
    assert summary["diverged_without_factorial_by_degree"][19] == 1
    assert np.isfinite(results["rate_train"].sel(rate=1e-6, degree=1)).all()
    assert summary["diverged_without_factorial_by_degree"][0] == 0


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_population_loss_is_that_of_many_rows(degree):
    """By Gauss-Hermite quadrature: the weighted least squares fit at the nodes is the fit of the population."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    target = sum(c * nodes**i / math.factorial(i) for i, c in enumerate(COEFFICIENTS))
    root = np.sqrt(weights)
    fit = np.linalg.lstsq(root[:, None] * nodes[:, None] ** np.arange(degree + 1), root * target)[0]
    left = weights @ (nodes[:, None] ** np.arange(degree + 1) @ fit - target) ** 2
    assert population_loss(degree) == pytest.approx(left + 0.01, rel=1e-10)


def test_the_linear_loss_by_hand():
    assert population_loss(1) == pytest.approx((3.4 / 2) ** 2 * 2 + (5.6 / 6) ** 2 * 6 + 0.01)


def test_best_fits_are_least_squares():
    x, y = drawn(0, 30)
    columns = features(x, factorials(8))[None]
    degrees = [1, 3, 7]
    for degree, weights in zip(degrees, best_fits(columns, y[None], degrees), strict=True):
        expected = np.linalg.lstsq(columns[0, :, : degree + 1], y)[0]
        np.testing.assert_allclose(weights[0, : degree + 1], expected, rtol=1e-7)
        assert (weights[0, degree + 1 :] == 0).all()


def test_best_fits_are_the_shortest_where_many_fit():
    x, y = drawn(1, 5)
    columns = hermite(x, 12)
    weights = best_fits(columns[None], y[None], [11])[0, 0]
    np.testing.assert_allclose(columns @ weights, y, atol=1e-10)
    null = np.linalg.svd(columns)[2][5:]
    np.testing.assert_allclose(null @ weights, 0, atol=1e-10)


def test_reference_is_the_solution_in_fractions():
    x, y = drawn(2, 7)
    rows = [[Fraction(float(v)) ** i for i in range(4)] for v in x]
    targets = [Fraction(float(v)) for v in y]
    system = [
        [sum(r[i] * r[j] for r in rows) for j in range(4)] + [sum(r[i] * t for r, t in zip(rows, targets, strict=True))]
        for i in range(4)
    ]
    for i in range(4):
        system[i] = [v / system[i][i] for v in system[i]]
        for j in range(4):
            if j != i:
                system[j] = [a - system[j][i] * b for a, b in zip(system[j], system[i], strict=True)]
    np.testing.assert_allclose(reference(x, y, [3])[0], [float(row[-1]) for row in system], rtol=1e-15)


def test_ways_of_solving_agree_where_it_is_easy_and_not_where_it_is_hard():
    x, y = drawn(3, 100)
    for degree, agree in ((3, True), (20, False)):
        best = reference(x, y, [degree])[0]
        columns = features(x, np.ones(degree + 1))
        errors = np.linalg.norm(solved(columns, y) - best, axis=1) / np.linalg.norm(best)
        by_way = dict(zip(WAYS, errors, strict=True))
        assert by_way["QR"] < 1e-5
        assert (by_way["LU"] < 1e-12) == agree
        assert not by_way["Cholesky"] > 1e-12 if agree else not by_way["Cholesky"] < 1e-3


def test_cholesky_breaks_down_where_columns_are_equal():
    columns = np.ones((9, 2))
    columns[:, 1] += 1e-12 * np.arange(9)
    found = dict(zip(WAYS, solved(columns, np.arange(9.0)), strict=True))
    assert np.isnan(found["Cholesky"]).all()
    assert np.isfinite(found["QR"]).all()


def test_features_are_those_of_jax_too():
    x = np.array([-1.5, 0.0, 2.0])
    expected = [[v**i / math.factorial(i) for i in range(5)] for v in x]
    np.testing.assert_allclose(features(x, factorials(5)), expected)
    np.testing.assert_allclose(jax.jit(features)(x, factorials(5)), expected, rtol=1e-6)


def test_hermite_columns_are_orthonormal():
    """By Gauss-Hermite quadrature, which is exact for their products."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    columns = hermite(nodes, 9)
    np.testing.assert_allclose(columns.T @ (weights[:, None] / weights.sum() * columns), np.eye(9), atol=1e-10)


def test_the_excess_of_zero_weights_is_by_pythagoras(monkeypatch):
    """Targets are a fit and what is left, at right angles: zero weights lose the mean square of the fit."""
    x, y = drawn(4, 30)
    monkeypatch.setattr(polynomial, "solved", lambda columns, y: np.zeros((len(WAYS), columns.shape[1])))
    found = polynomial._compared(x[None], y[None])
    np.testing.assert_allclose(found["error"], 1)
    for degree in (1, 2, 3, 5):
        left = np.polynomial.polynomial.polyfit(x, y, degree, full=True)[1][0][0] / len(x)
        np.testing.assert_allclose(found["excess"][:, 0, degree - 1], np.mean(y**2) / left - 1, rtol=1e-8)


def test_the_fits_of_many_rows_lose_the_least_expected_loss(results):
    """The noise of variance 0.01, of which a fit of four weights takes four rows' worth; without the cubic, far more."""
    rows = int(results.limit_rows)
    assert rows == 4000
    losses = results.limit_loss.sel(limit=3).values
    spread = 0.01 * np.sqrt(2 / (rows - 4))
    assert losses.mean() == pytest.approx(0.01 * (1 - 4 / rows), abs=4 * spread / np.sqrt(len(losses)))
    assert losses.std(ddof=1) == pytest.approx(spread, rel=0.2)
    for degree in (1, 2):
        lost = results.limit_loss.sel(limit=degree).values
        assert lost.mean() == pytest.approx(population_loss(degree), abs=4 * lost.std() / np.sqrt(len(lost)))


def test_the_interval_of_a_median_is_by_order_statistics():
    """Of ten values: fewer than two heads in ten tosses have a chance of 1.1%, fewer than three one of 5.5%."""
    values = np.array([7.0, 3, 10, 1, 9, 4, 6, 2, 8, 5])
    assert middle(values) == (5.5, 2, 9)
    assert higher(values - 1.5, np.zeros(10))
    assert not higher(values - 2.5, np.zeros(10))


def test_infinite_losses_are_above_all_others():
    some = np.array([1.0, 2.0, np.nan, 4.0, np.inf, 3.0, 5.0])
    assert middle(some)[0] == 4
    assert not higher(some, some)
    assert higher(np.full(8, np.inf), np.arange(8.0))
    assert not higher(np.arange(8.0), np.full(8, np.nan))
    assert spans([]) == "none"
    assert spans([2, 4, 5]) == "2 and 4 to 5"


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"Degree 1 stays at {summary['train_loss_degree_1']:.4g} on the training rows" in page
    assert "= 11.0167, 1102 times the variance of the noise" in page
    assert "--epochs 40" in page
    assert page.count("<img ") == 6 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    for claim in summary["claims_that_failed"]:
        assert claim.replace("'", "&#39;") in page


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("networks", 5, "5"),
        ("epochs", 100, "100"),
        ("epochs", 0, "0"),
        ("sizes", "10,50,100", "10,50,100"),
        ("sizes", "10,50,75,100,500", "10,50,75"),
        ("sizes", "ten", "'ten'"),
        ("rates", "0.1", "0.1"),
        ("rates", "0.01,-1", "0.01,-1"),
        ("seed", -1, "-1"),
    ],
)
def test_bad_config(name, value, got):
    with pytest.raises(ValueError, match=f"{name}: got {got}"):
        Config(**{name: value})


@pytest.mark.long
def test_findings(tmp_path):
    """At the quick setting: what the chapter says of degrees 1 and 3, and what it does not say of degree 20."""
    cli.main(["run", "polynomial", "--out", str(tmp_path / "run"), "--quick"])
    import xarray as xr

    with xr.open_dataset(tmp_path / "run" / "results.nc", engine="h5netcdf") as data:
        held = {claim: holds for claim, _, holds in claims(data.load())}
    assert held["Degree 1 underfits: its training loss stays far above the noise"]
    assert held["A cubic fits: training and test loss come near the noise"]
    assert held["Degree 20 overfits: its test loss is above its training loss and above degree 3's"]
    assert not held["Degree 20 overfits by fitting its training rows more closely than degree 3"]
    assert held["On the training rows the analytic solution is at least as good as SGD"]
