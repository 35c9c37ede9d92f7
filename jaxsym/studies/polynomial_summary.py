"""The headline figures of the study ``polynomial``, and which of the chapter's claims they bear out."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from jaxsym.studies.polynomial_exact import population_loss
from jaxsym.studies.study import Claim, agreed, interval, listed, refuted, run_counts

SCALED, PLAIN = "x^i / i!", "x^i"
CHAPTER_ROWS = 100
NEAR, FAR = 2.0, 10.0
"""A loss below twice the variance of the noise is near it, one above ten times far from it."""


def middle(values: Float[np.ndarray, " networks"]) -> tuple[float, float, float]:
    """Median over networks, and its 95 % interval; what is not finite is infinite."""
    return _median(np.where(np.isfinite(values), values, np.inf))


def higher(one: Float[np.ndarray, " networks"], other: Float[np.ndarray, " networks"]) -> bool:
    """Whether the median of the paired differences is above 0 with its whole interval; what is not finite is infinite."""
    first, second = (np.where(np.isfinite(values), values, np.inf) for values in (one, other))
    tied = first == second
    return _median(np.where(tied, 0, first - np.where(tied, 0, second)))[1] > 0


def compared(one: Float[np.ndarray, " networks"], other: Float[np.ndarray, " networks"]) -> bool | None:
    """Whether the first is surely higher; no where it is surely lower, None where it cannot be told."""
    return True if higher(one, other) else False if higher(other, one) else None


def _median(values: Float[np.ndarray, " networks"]) -> tuple[float, float, float]:
    """With the exact interval by order statistics, NaN for fewer than six."""
    interval = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    return float(np.median(values)), float(interval.low), float(interval.high)


def said(values: Float[np.ndarray, " networks"]) -> str:
    """A median with its interval."""
    found, low, high = middle(values)
    return f"{found:.4g} ({low:.4g} to {high:.4g})" if np.isfinite([low, high]).all() else f"{found:.4g}"


def infinite(value: float) -> str:
    """A loss in few digits, in a word where it is not finite."""
    return f"{value:.4g}" if np.isfinite(value) else "infinite"


def sgd(data: xr.Dataset, part: str, degree: int, size: int = CHAPTER_ROWS, scaling: str = SCALED) -> np.ndarray:
    """Losses of SGD after all epochs, of all networks."""
    at = data[f"sgd_{part}"].sel(size=size, scaling=scaling, degree=degree)
    return np.asarray(at.isel(epoch=-1).values, np.float64)


def exact(data: xr.Dataset, part: str, degree: int, size: int = CHAPTER_ROWS) -> np.ndarray:
    """Losses of the exact fits, of all networks."""
    return np.asarray(data[f"exact_{part}"].sel(size=size, degree=degree).values)


def failed(data: xr.Dataset) -> xr.DataArray:
    """Whether ``[size, network, degree]`` the loss of SGD with 1/i! is not finite at the end."""
    return ~(data["sgd_train"].sel(scaling=SCALED).isel(epoch=-1) < np.inf)


def diverged(data: xr.Dataset) -> xr.DataArray:
    """Share ``[rate, degree]`` of the networks without 1/i! whose loss is not finite at the end."""
    return (~(data["rate_train"] < np.inf)).mean("network")


def rate_medians(data: xr.Dataset) -> np.ndarray:
    """Median training loss ``[rate, degree]`` without 1/i!, infinite where most have diverged."""
    losses = data["rate_train"].values
    return np.median(np.where(np.isfinite(losses), losses, np.inf), axis=1)


def digits(data: xr.Dataset) -> xr.DataArray:
    """Decimal digits ``[scaling, degree, way]`` of the solved weights that are right, in the median; a way that broke down has none."""
    errors = data["weight_error"]
    found = -np.log10(np.clip(errors.where(np.isfinite(errors), 1.0), 1e-16, 1.0))
    return found.median("reference")


def broken(data: xr.Dataset) -> xr.DataArray:
    """Share ``[scaling, degree, way]`` of the networks at which a way of solving gave no numbers."""
    return (~(data["weight_error"] < np.inf)).mean("reference")


class Peak(NamedTuple):
    """The largest median test loss over the degrees."""

    degree: int
    since: int
    """From this degree on all medians up to the peak are within a factor of 1.2 of it."""
    factor: float
    """By which the last degree's is lower."""
    falls: bool
    """Surely."""


def peaks(data: xr.Dataset) -> dict[tuple[str, int], Peak]:
    """By basis and number of rows."""
    found = {}
    for basis in data["basis"].values:
        for rows in data["few"].values:
            own = data["far_test"].sel(basis=basis, few=rows)
            medians = own.median("network")
            top = int(own["far"][int(medians.argmax("far"))])
            falls = higher(own.sel(far=top).values, own.isel(far=-1).values)
            below = [int(d) for d in own["far"].values if d < top and medians.sel(far=d) < medians.max() / 1.2]
            since = min(int(d) for d in own["far"].values if d > max(below, default=-1))
            found[str(basis), int(rows)] = Peak(top, since, float(medians.max() / medians.isel(far=-1)), falls)
    return found


def claims(data: xr.Dataset) -> list[Claim]:
    """What the exercise says, what was measured, and whether it holds."""
    floor = float(data["noise_floor"])
    degrees = [int(d) for d in data["degree"].values]
    sizes = [int(n) for n in data["size"].values]
    train, test = ({d: sgd(data, part, d) for d in degrees} for part in ("train", "test"))
    others = [d for d in degrees if d != 3]
    beaten = [d for d in others if higher(test[d], test[3])]
    cubic = middle(train[3])[0], middle(test[3])[0]
    shares = diverged(data).sel(degree=20).values
    best = rate_medians(data)[:, degrees.index(20)]
    gaps = data["exact_gap"].values
    gaps = np.where(np.isfinite(gaps), gaps, np.inf)  # SGD has diverged
    below = [f"{sizes[n]} rows at degree {degrees[d]}" for n, d in np.argwhere((gaps < 0).any(axis=1))]
    worse = [d for d in degrees if higher(exact(data, "test", d), test[d])]
    better = [d for d in degrees if higher(test[d], exact(data, "test", d))]
    right, lost = (figures(data).sel(degree=20, way="Cholesky") for figures in (digits, broken))
    excess = np.nan_to_num(data["fit_excess"].sel(degree=20, way="Cholesky").values, nan=np.inf).max()
    found = [
        (
            "Degree 1 underfits: its training loss stays far above the noise",
            f"training loss {said(train[1])}, noise {floor:g}",
            middle(train[1])[0] > FAR * floor and higher(train[1], train[3]),
        ),
        (
            "A cubic fits: training and test loss come near the noise",
            f"training {said(train[3])}, test {said(test[3])}, noise {floor:g}",
            max(cubic) < NEAR * floor,
        ),
        (
            "A cubic generalises best: every other degree has a higher test loss",
            f"surely higher at {len(beaten)} of {len(others)} other degrees",
            agreed(compared(test[d], test[3]) for d in others),
        ),
        (
            "Degree 20 overfits: its test loss is above its training loss and above degree 3's",
            f"test {said(test[20])}, training {said(train[20])}, degree 3's test {said(test[3])}",
            agreed([compared(test[20], train[20]), compared(test[20], test[3])]),
        ),
        (
            "Degree 20 overfits by fitting its training rows more closely than degree 3",
            f"training loss of degree 20 {said(train[20])}, of degree 3 {said(train[3])}",
            compared(train[3], train[20]),
        ),
        *(
            (
                f"More data lowers the test loss of degree {degree}, by SGD for as many epochs",
                ", ".join(f"{middle(sgd(data, 'test', degree, n))[0]:.4g} on {n} rows" for n in sizes),
                agreed(
                    compared(sgd(data, "test", degree, few), sgd(data, "test", degree, many))
                    for few, many in itertools.pairwise(sizes)
                ),
            )
            for degree in (3, 20)
        ),
        (
            "Without 1/i! high degrees are hard to optimise",
            f"degree 20: {shares[0]:.0%} diverge at 0.01; the median training loss at the best rate is {infinite(best.min())}, with 1/i! it is {middle(train[20])[0]:.3g}",
            bool(shares[0] > 0.5 and best.min() > middle(train[20])[0]),
        ),
        (
            "On the training rows the analytic solution is at least as good as SGD",
            f"in {int((gaps >= 0).sum())} of {gaps.size} fits of all degrees and numbers of rows; the smallest difference is {gaps.min():.1e}"
            + (f", in float64; it is below 0 on {listed(below)}" if below else ""),
            bool((gaps >= 0).all()),
        ),
        (
            f"On test rows the analytic solution is as good as SGD or better ({CHAPTER_ROWS} training rows)",
            f"surely better at degrees {spans(better)}, surely worse at degrees {spans(worse)}",
            False if worse else True if better else None,
        ),
        (
            "The normal equations as they stand give the analytic solution (degree 20, float64, Cholesky)",
            listed(
                [
                    f"{scaling}: no factorisation for {float(lost.sel(scaling=scaling)):.0%}, {float(right.sel(scaling=scaling)):.1f} right digits of the weights"
                    for scaling in (SCALED, PLAIN)
                ]
            ),
            bool(excess < 0.01),
        ),
    ]
    return [(claim, measured, None if holds is None else bool(holds)) for claim, measured, holds in found]


def spans(numbers: list[int]) -> str:
    """Numbers in rising order, runs of them by their ends.

    >>> spans([1, 2, 3, 7])
    '1 to 3 and 7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return listed([f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]) if runs else "none"


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures: medians over networks."""
    limits = data["limit_loss"].sel(limit=1).values
    gap = data["exact_gap"].sel(size=CHAPTER_ROWS, degree=3).values
    at_20 = digits(data).sel(degree=20)
    return {
        **{f"train_loss_degree_{d}": middle(sgd(data, "train", d))[0] for d in (1, 3, 20)},
        **{f"test_loss_degree_{d}": middle(sgd(data, "test", d))[0] for d in (1, 3, 20)},
        **{f"test_loss_n_{n}": middle(sgd(data, "test", 3, n))[0] for n in (10, 50, 500)},
        "noise_floor": float(data["noise_floor"]),
        "exact_gap_degree_3": middle(gap)[0],
        "exact_train_loss_degree_20": middle(exact(data, "train", 20))[0],
        "exact_test_loss_degree_20": middle(exact(data, "test", 20))[0],
        "linear_loss_closed_form": population_loss(1),
        "linear_loss_measured": float(limits.mean()),
        "linear_loss_measured_interval": interval(limits)[1:],
        "diverged_with_factorial": float(failed(data).mean()),
        "smallest_train_loss_degree_1": float(
            data["sgd_train"].sel(scaling=SCALED, degree=1, size=CHAPTER_ROWS).isel(epoch=-1).min()
        ),
        "diverged_without_factorial_by_degree": [float(v) for v in diverged(data).isel(rate=0).values],
        "digits_degree_20_factorial": [float(v) for v in at_20.sel(scaling=SCALED).values],
        "digits_degree_20_plain": [float(v) for v in at_20.sel(scaling=PLAIN).values],
        "digits_ways": [str(way) for way in data["way"].values],
        "double_descent_rows": [int(n) for n in data["few"].values],
        "double_descent_peak_degree": [peaks(data)[SCALED, int(n)].degree for n in data["few"].values],
        "double_descent_peak_degree_hermite": [peaks(data)["Hermite", int(n)].degree for n in data["few"].values],
        "claims_that_failed": refuted(claims(data)),
        **run_counts(data),
    }
