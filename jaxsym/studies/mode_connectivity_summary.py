"""The headline figures of the study ``mode_connectivity``, and what they say of its claims."""

from typing import Any

import numpy as np
import xarray as xr

from jaxsym.studies.study import Claim, refuted, run_counts, sign_test

MOVES = ("naive", "permutations", "weights", "activations")
"""As it is; by its permutations alone, by weights; by the whole group, by weights and by activations."""
FLAT = 1e-9
"""A loss that changes by less, relative to 1 and in float64, along a curve inside the orbit does not change."""


def height(data: xr.Dataset, move: str, width: int, activation: str = "relu") -> np.ndarray:
    """Barriers of the training loss, one a pair."""
    return data["barrier"].sel(activation=activation, width=width, move=move).values


def orbit_range(data: xr.Dataset) -> float:
    """By how much the loss changes at most along a curve inside an orbit."""
    losses = data["orbit_loss"]
    return float((losses.max("step") - losses.min("step")).max())


def claims(data: xr.Dataset) -> list[Claim]:
    """What is said of independently trained networks, what was measured, and whether it holds: of all pairs."""
    widths = [int(width) for width in data["width"].values]
    barriers = data["barrier"]
    naive = barriers.sel(move="naive")
    found: list[Claim] = []
    for move, text in (("weights", "by weights"), ("activations", "by activations")):
        lower = barriers.sel(move=move) < naive
        found.append(
            (
                f"Moved onto each other {text}, networks have a lower barrier than as they are",
                f"in {int(lower.sum())} of {lower.size} pairs",
                bool(lower.all()) or (None if bool(lower.any()) else False),
            )
        )
    whole, only = barriers.sel(move="weights"), barriers.sel(move="permutations")
    better = int((whole < only).sum()), int((whole > only).sum())
    found.append(
        (
            "The whole group lowers it further than its permutations alone",
            f"in {better[0]} pairs it does, in {better[1]} it is higher, of {whole.size}",
            _signed(*better),
        )
    )
    first, last = (
        barriers.sel(move="activations", width=width, activation="relu").values for width in (widths[0], widths[-1])
    )
    found.append(
        (
            "The wider the networks, the lower the barrier after matching (ReLU, by activations)",
            f"mean {first.mean():.3g} at width {widths[0]}, {last.mean():.3g} at {widths[-1]}",
            None
            if len(widths) < 2
            else bool(last.max() < first.min()) or (None if last.mean() < first.mean() else False),
        )
    )
    change = orbit_range(data)
    found.append(
        (
            "Along a curve inside an orbit the loss does not change",
            f"by {change:.1e} at most, in float64",
            change < FLAT,
        )
    )
    return found


def _signed(better: int, worse: int) -> bool | None:
    """A sign test at 5 %."""
    return better > worse if sign_test(better, worse) < 0.05 else None


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures: means over pairs, of ReLU networks."""
    widths = [int(width) for width in data["width"].values]
    relu = data.sel(activation="relu")
    middle = len(data["point"]) // 2
    figures: dict[str, Any] = {}
    for width in widths:
        own = relu.sel(width=width)
        for move in MOVES:
            figures[f"barrier_{move}_{width}"] = float(own["barrier"].sel(move=move).mean())
        errors = own["error"].sel(move="activations")
        figures[f"midpoint_accuracy_{width}"] = float(1 - errors.isel(point=middle).mean())
        figures[f"endpoint_accuracy_{width}"] = float(1 - errors.isel(point=[0, -1]).mean())
        for move in MOVES:
            figures[f"barrier_{move}_tanh_{width}"] = float(height(data, move, width, "tanh").mean())
    last = data.isel(count=-1)
    figures |= {
        f"merged{int(last['count'])}_accuracy": float(last["merged_accuracy"].sel(way="into a universe")),
        "merged_counts": [int(count) for count in data["count"].values],
        "merged_accuracies": [float(value) for value in data["merged_accuracy"].sel(way="into a universe").values],
        "merged_accuracies_naive": [float(value) for value in data["merged_accuracy"].sel(way="naive").values],
        "single_accuracy": float(data["single_accuracy"].mean()),
        "orbit_path_loss_range": orbit_range(data),
    }
    return figures | {"claims_that_failed": refuted(claims(data))} | run_counts(data)
