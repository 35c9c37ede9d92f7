"""The headline figures of the study ``mode_connectivity``, and what they say of its claims."""

from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from jaxsym.studies.study import Claim, below, interval, refuted, run_counts, sign_test

MOVES = ("naive", "permutations", "weights", "activations")
"""As it is; by its permutations alone, by weights; by the whole group, by weights and by activations."""
NAMES = {"resnet": "ResNet with LayerNorm", "cnn": "CNN with BatchNorm", "transformer": "transformer"}
"""Of architectures."""
MATCHED = {"weights": "by weights", "activations": "by activations"}
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
    found = [_lower("networks have", barriers, move) for move in MATCHED]
    whole, only = barriers.sel(move="weights"), barriers.sel(move="permutations")
    better = int((whole < only).sum()), int((whole > only).sum())
    found.append(
        (
            "The whole group lowers the barrier further than its permutations alone, by weights",
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
            below([0.0, *stats.ttest_ind(last, first, equal_var=False).confidence_interval(0.95)])
            if len(widths) > 1
            else None,
        )
    )
    if "other_barrier" in data:
        where = f"ReLU perceptrons on {data.attrs['other']} have"
        found += [_lower(where, data["other_barrier"], move) for move in MATCHED]
    for name in architectures(data):
        own = data["architecture_barrier"].sel(architecture=name)
        found += [_lower(f"pairs of a {NAMES[name]} have", own, move) for move in MATCHED]
        found += _anew(data, name) if restated(data, name) else []
    change = orbit_range(data)
    found.append(
        (
            "Along a curve inside an orbit the loss does not change",
            f"by {change:.1e} at most, in float64",
            change < FLAT,
        )
    )
    return found


def architectures(data: xr.Dataset) -> list[str]:
    """Those that were measured beside perceptrons."""
    return [str(name) for name in data["architecture"].values] if "architecture" in data.coords else []


def restated(data: xr.Dataset, name: str) -> bool:
    """Whether an architecture has statistics that were computed anew."""
    return bool(data["architecture_barrier_anew"].sel(architecture=name).notnull().all())


def _lower(who: str, barriers: xr.DataArray, move: str) -> Claim:
    """That networks which were moved have a lower barrier than as they are."""
    change = barriers.sel(move=move) - barriers.sel(move="naive")
    return (f"Moved onto each other {MATCHED[move]}, {who} a lower barrier than as they are", *_lowers(change))


def _lowers(change: xr.DataArray) -> tuple[str, bool | None]:
    """What the barriers of all pairs change by, and whether they fall."""
    found = interval(change.values.ravel())
    mean, low, high = (f"{value:.3g}" for value in found)
    return f"in {int((change < 0).sum())} of {change.size} pairs; it changes by {mean} nats [{low}, {high}]", below(
        found
    )


def _anew(data: xr.Dataset, name: str) -> list[Claim]:
    """That statistics which are computed anew lower the barrier after matching."""
    own = data.sel(architecture=name)
    found: list[Claim] = []
    for move, text in MATCHED.items():
        change = (own["architecture_barrier_anew"] - own["architecture_barrier"]).sel(move=move)
        claim = f"After matching {text}, statistics that are computed anew lower the barrier of a {NAMES[name]}"
        found.append((claim, *_lowers(change)))
    return found


def _signed(better: int, worse: int) -> bool | None:
    """A sign test at 5 %."""
    return better > worse if sign_test(better, worse) < 0.05 else None


def accuracies(errors: xr.DataArray, name: str) -> dict[str, float]:
    """On test rows, midway after matching by activations, and at the ends: means over pairs."""
    matched = 1 - errors.sel(move="activations")
    return {
        f"midpoint_accuracy_{name}": float(matched.isel(point=len(matched["point"]) // 2).mean()),
        f"endpoint_accuracy_{name}": float(matched.isel(point=[0, -1]).mean()),
    }


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures: means over pairs, of ReLU networks."""
    widths = [int(width) for width in data["width"].values]
    relu = data.sel(activation="relu")
    figures: dict[str, Any] = {}
    for width in widths:
        own = relu.sel(width=width)
        for move in MOVES:
            figures[f"barrier_{move}_{width}"] = float(own["barrier"].sel(move=move).mean())
        figures |= accuracies(own["error"], str(width))
        for move in MOVES:
            figures[f"barrier_{move}_tanh_{width}"] = float(height(data, move, width, "tanh").mean())
    for name in architectures(data):
        own = data.sel(architecture=name)
        for kind in ("", "_anew") if restated(data, name) else ("",):
            for move in MOVES:
                figures[f"barrier_{move}_{name}{kind}"] = float(
                    own[f"architecture_barrier{kind}"].sel(move=move).mean()
                )
                figures[f"error_barrier_{move}_{name}{kind}"] = float(
                    own[f"architecture_error_barrier{kind}"].sel(move=move).mean()
                )
            figures |= accuracies(own[f"architecture_error{kind}"], f"{name}{kind}")
    if "other_barrier" in data:
        for width in data["other_width"].values:
            own = data.sel(other_width=width)
            for move in MOVES:
                figures[f"barrier_{move}_other_{width}"] = float(own["other_barrier"].sel(move=move).mean())
            figures |= accuracies(own["other_error"], f"other_{width}")
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
