"""The headline figures of the study ``weight_decay``, and which of the chapter's claims they bear out."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from jaxsym.studies.study import Claim, interval, listed, refuted, run_counts

FEW_ROWS = 20
NEAR, OFTEN = 0.1, 0.9
"""A test error at most this share above the best in hindsight is near it; the share of draws in which it should be."""


def said(values: Float[np.ndarray, " draws"]) -> str:
    """A mean with its interval."""
    found, low, high = interval(values)
    return f"{found:.4g} ({low:.4g} to {high:.4g})"


def chosen(data: xr.Dataset) -> xr.DataArray:
    """Place ``[size, draw, penalty]`` of the strength with the lowest validation error."""
    return data["validation_error"].argmin("strength")


def hindsight(data: xr.Dataset) -> xr.DataArray:
    """Place ``[size, draw, penalty]`` of the strength with the lowest expected error."""
    return data["test_error"].argmin("strength")


def at_chosen(data: xr.Dataset, name: str, penalty: str, size: int = FEW_ROWS) -> np.ndarray:
    """A variable at the strength chosen by validation, for every draw."""
    places = chosen(data).sel(size=size, penalty=penalty)
    return np.asarray(data[name].sel(size=size, penalty=penalty).isel(strength=places).values)


def without(data: xr.Dataset, name: str, size: int = FEW_ROWS) -> np.ndarray:
    """A variable without any penalty, for every draw."""
    return np.asarray(data[name].sel(size=size, strength=0.0).isel(penalty=0).values)


def gap(data: xr.Dataset, penalty: str | None, size: int = FEW_ROWS) -> np.ndarray:
    """Expected error of a new row less the error on the training rows, for every draw; ``None`` is no penalty."""
    test, train = (
        without(data, name, size) if penalty is None else at_chosen(data, name, penalty, size)
        for name in ("test_error", "train_error")
    )
    return test - train


def regret(data: xr.Dataset) -> xr.DataArray:
    """By how much ``[size, draw, penalty]`` the test error is above the best in hindsight, in units of it."""
    return data["test_error"].isel(strength=chosen(data)) / data["test_error"].min("strength") - 1


def on_axis(data: xr.Dataset, penalty: str) -> tuple[float, float]:
    """Share of the pairs whose minimum lies on an axis (one weight exactly 0) at some strength in between, and at how many of these strengths."""
    zero = data["pair"].sel(pair_penalty=penalty).isel(fraction=slice(1, -1)) == 0
    one = zero.sum("coordinate") == 1
    return float(one.any("fraction").mean()), float(one.mean())


def rises(data: xr.Dataset) -> xr.DataArray:
    """Whether the training error ``[size, draw, penalty, strength]`` is no lower than at the next smaller strength."""
    return data["train_error"].diff("strength") >= 0


def claims(data: xr.Dataset) -> list[Claim]:
    """What the exercise says, what was measured, and whether it holds."""
    penalties = [str(name) for name in data["penalty"].values]
    found: list[Claim] = []
    for penalty in ("L2", "L1"):
        saved = gap(data, None) - gap(data, penalty)
        lower = without(data, "test_error") - at_chosen(data, "test_error", penalty)
        found += [
            (
                f"{penalty} with a strength chosen by validation shrinks the gap between test and training error ({FEW_ROWS} rows)",
                f"from {np.mean(gap(data, None)):.4g} to {np.mean(gap(data, penalty)):.4g}, a difference of {said(saved)}",
                interval(saved)[1] > 0,
            ),
            (
                f"{penalty} with a strength chosen by validation lowers the test error ({FEW_ROWS} rows)",
                f"from {np.mean(without(data, 'test_error')):.4g} to {np.mean(at_chosen(data, 'test_error', penalty)):.4g}, a difference of {said(lower)}",
                interval(lower)[1] > 0,
            ),
        ]
    zeros = {penalty: float(np.mean(at_chosen(data, "zeros", penalty))) for penalty in ("L1", "L2")}
    axis = {penalty: on_axis(data, penalty) for penalty in ("L1", "L2")}
    largest = {name: data[name].sel(size=FEW_ROWS).isel(strength=-1) for name in ("train_error", "test_error")}
    under = {
        penalty: [
            interval(largest[name].sel(penalty=penalty).values - at_chosen(data, name, penalty))[1] > 0
            for name in largest
        ]
        for penalty in penalties
    }
    near = (regret(data) <= NEAR).mean("draw")
    steps = rises(data)
    return [
        *found,
        (
            f"L1 gives sparse weights ({FEW_ROWS} rows, strength chosen by validation)",
            f"{zeros['L1']:.1%} of the weights are 0; 95% of the true ones are",
            zeros["L1"] > 0.5,
        ),
        (
            "L2 does not",
            f"{zeros['L2']:.1%} of the weights are smaller than 0.001",
            zeros["L2"] < 0.05,
        ),
        (
            "Of two weights, L1 sets one to 0 exactly at some strengths, and L2 does not",
            listed(
                [
                    f"{penalty}: in {some:.1%} of the losses, at {share:.1%} of all strengths"
                    for penalty, (some, share) in axis.items()
                ]
            ),
            axis["L1"][0] > 0.5 and axis["L2"][0] == 0,
        ),
        (
            "The training error rises with the strength",
            f"in {float(steps.mean()):.3%} of {steps.size} steps from one strength to the next",
            bool(steps.all()),
        ),
        (
            f"The strength chosen by validation is near the best in hindsight (test error within {NEAR:.0%} of it in {OFTEN:.0%} of the draws or more, for all numbers of rows)",
            listed([f"{penalty}: in {float(near.sel(penalty=penalty).min()):.1%} or more" for penalty in penalties]),
            float(near.min()) >= OFTEN,
        ),
        (
            f"A large strength underfits: training and test error are above those at the chosen one ({FEW_ROWS} rows, strength {float(data['strength'][-1]):g})",
            listed(
                [
                    f"{penalty}: training {float(largest['train_error'].sel(penalty=penalty).mean()):.3g}, test {float(largest['test_error'].sel(penalty=penalty).mean()):.3g}"
                    for penalty in penalties
                ]
            ),
            all(all(both) for both in under.values()),
        ),
    ]


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures: means over draws, at 20 training rows where nothing else is said."""
    same = (chosen(data) == hindsight(data)).mean("draw").sel(size=FEW_ROWS)
    medians = regret(data).median("draw").sel(size=FEW_ROWS)
    names = {"L1": "l1", "L2": "l2", "both": "both"}
    return {
        "gap_none": float(np.mean(gap(data, None))),
        **{f"gap_{short}": float(np.mean(gap(data, name))) for name, short in names.items()},
        "test_error_none": float(np.mean(without(data, "test_error"))),
        **{f"test_error_{short}": float(np.mean(at_chosen(data, "test_error", name))) for name, short in names.items()},
        **{f"zeros_{short}": float(np.mean(at_chosen(data, "zeros", name))) for name, short in names.items()},
        "noise_norm_none": float(np.mean(without(data, "noise_norm"))),
        **{f"noise_norm_{short}": float(np.mean(at_chosen(data, "noise_norm", name))) for name, short in names.items()},
        **{f"regret_median_{short}": float(medians.sel(penalty=name)) for name, short in names.items()},
        **{f"same_strength_{short}": float(same.sel(penalty=name)) for name, short in names.items()},
        "pairs_on_axis_l1": on_axis(data, "L1")[0],
        "pairs_on_axis_l2": on_axis(data, "L2")[0],
        "residual_max": float(data["residual"].max()),
        "residual_median": float(data["residual"].median()),
        "ridge_error_max": float(data["ridge_error"].isel(strength=slice(1, None)).max()),
        "trace_error_max": float(data["trace_error"].max()),
        "claims_that_failed": refuted(claims(data)),
        **run_counts(data),
    }
