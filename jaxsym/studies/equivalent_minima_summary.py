"""The headline figures of the study ``equivalent_minima``, from its dataset alone."""

from typing import Any

import numpy as np
import xarray as xr

from jaxsym.studies.minima import classes

LATE = 0.1
"""A run whose nearest copy changes in this last share of the training has not chosen one."""


def counts(data: xr.Dataset, weight_decay: float) -> dict[str, Any]:
    """Of one weight decay: the minima, and how many they are by each way of counting."""
    own = data.sel(weight_decay=weight_decay)
    good = own["minimum"].values
    pairs = np.triu_indices(good.size, 1)
    both = good[pairs[0]] & good[pairs[1]]
    found: dict[str, Any] = {"minima": int(good.sum())}
    for kind in ("naive", "canonical", "brute_force"):
        labels = classes(own[f"distance_{kind}"].values[both], int(good.sum()), float(data["tolerance"]))
        found[kind] = labels
    sizes = np.bincount(found["brute_force"])
    orbits = [
        float(data["order"]) / own["stabiliser"].values[good][found["brute_force"] == label].min()
        for label in range(sizes.size)
    ]
    found["expected_naive"] = float(
        sum(size * (1 - (1 - 1 / size) ** times) for size, times in zip(orbits, sizes, strict=True))
    )
    return found


def distinct(labels: np.ndarray) -> int:
    """Number of classes."""
    return int(np.unique(labels).size)


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures. Those of minima are at the headline weight decay, where nothing else is said."""
    headline = float(data["headline"])
    own = data.sel(weight_decay=headline)
    decays = [float(value) for value in data["weight_decay"].values]
    by_decay = {value: counts(data, value) for value in decays}
    found = by_decay[headline]
    good = own["minimum"].values
    loss, norm = data["copy_loss"].values, data["rescaled_gradient_norm"].values
    above = float(data["gap_above"])
    changes, last, settled = moves(data)
    figures: dict[str, Any] = {
        "networks": data.sizes["network"],
        "weight_decay": headline,
        "minima": found["minima"],
        "not_minima": int((~good).sum()),
        "saddles": int(own["saddles"].sum()),
        "ties": int((own["tied"].values & good).sum()),
        "distinct_naive": distinct(found["naive"]),
        "distinct_modulo_symmetry": distinct(found["canonical"]),
        "distinct_brute_force": distinct(found["brute_force"]),
        "expected_naive": found["expected_naive"],
        "expected_naive_by_weight_decay": [by_decay[value]["expected_naive"] for value in decays],
        "order": int(data["order"]),
        "group": str(data["group"].values),
        "gradient_norm_worst": float(own["gradient_norm"].values[good].max(initial=0)),
        "tolerance": float(data["tolerance"]),
        "distance_below_gap": float(data["gap_below"]),
        "distance_above_gap": above if np.isfinite(above) else None,
        "distance_gap": above / float(data["gap_below"]) if np.isfinite(above) else None,
        "weight_decays": decays,
        "distinct_naive_by_weight_decay": [distinct(by_decay[value]["naive"]) for value in decays],
        "distinct_modulo_symmetry_by_weight_decay": [distinct(by_decay[value]["canonical"]) for value in decays],
        "distinct_brute_force_by_weight_decay": [distinct(by_decay[value]["brute_force"]) for value in decays],
        "distinct_copies": distinct(data["copy_class"].values),
        "loss_spread_on_orbit": float(np.ptp(loss) / np.abs(loss).max()),
        "loss_spread_of_rescalings": float(np.ptp(data["rescaled_loss"].values) / data["rescaled_loss"].values.max()),
        "gradient_norm_ratio_on_orbit": float(norm.max() / norm.min()),
    }
    jumped = data["followed_jumps"].values
    late, after = last > 1 - LATE, changes_after_settling(data)
    for i, batch in enumerate(data["batch"].values):
        name = str(batch).replace(" ", "_")
        figures |= {
            f"jumps_fraction_changed_{name}": changes[i].mean(axis=-1).tolist(),
            f"jumps_last_change_{name}": last[i].max(axis=-1).tolist(),
            f"jumps_fraction_settled_{name}": settled[i].mean(axis=-1).tolist(),
            f"jumps_fraction_wandering_{name}": late[i].mean(axis=-1).tolist(),
            f"jumps_between_neighbourhoods_{name}": jumped[i].sum(axis=-1).tolist(),
        }
    excess, barrier = at_last_change(data), data["followed_barrier"].values
    return figures | {
        "jumps_rates": [float(rate) for rate in data["rate"].values],
        "jumps_runs": int(jumped.size),
        "jumps_runs_that_change": int(changes.sum()),
        "jumps_runs_settled": int(settled.sum()),
        "jumps_runs_that_change_after_settling": int((after > 0).sum()),
        "jumps_runs_wandering": int(late.sum()),
        "jumps_runs_that_jump": int((jumped > 0).sum()),
        "jumps_total": int(jumped.sum()),
        "jumps_loss_above_minimum_at_last_change": float(np.median(excess[changes])) if changes.any() else None,
        "jumps_barrier": float(np.median(barrier[changes])) if changes.any() else None,
        "jumps_last_changes_below_barrier": int((excess < barrier)[changes].sum()),
        "net_steps": int(data["net_steps"]),
        "compile_seconds": float(data["compile_seconds"]),
        "run_seconds": float(data["run_seconds"]),
    }


def moves(data: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By batch, rate and run: whether the nearest copy ever changes, after which share of the training for the last time, whether a copy is settled at."""
    nearest, step = data["followed_nearest"].values, data["step"].values
    differs = nearest[..., 1:] != nearest[..., :-1]
    settled = data["followed_distance"].values < data["followed_radius"].values[..., None]
    return np.any(differs, axis=-1), np.max(differs * step[1:] / step[-1], axis=-1), np.any(settled, axis=-1)


def changes_after_settling(data: xr.Dataset) -> np.ndarray:
    """By batch, rate and run: how often the nearest copy changes after the run has been settled for the first time."""
    nearest = data["followed_nearest"].values
    settled = data["followed_distance"].values < data["followed_radius"].values[..., None]
    since = np.maximum.accumulate(settled, axis=-1)[..., :-1]
    return np.sum((nearest[..., 1:] != nearest[..., :-1]) & since, axis=-1)


def at_last_change(data: xr.Dataset) -> np.ndarray:
    """By batch, rate and run: how far the objective is above the run's own minimum where the nearest copy changes for the last time, at the lower of the two records."""
    nearest, objective = data["followed_nearest"].values, data["followed_objective"].values
    differs = nearest[..., 1:] != nearest[..., :-1]
    last = differs.shape[-1] - 1 - differs[..., ::-1].argmax(axis=-1)
    both = [np.take_along_axis(objective, (last + k)[..., None], axis=-1)[..., 0] for k in (0, 1)]
    return np.minimum(*both) - data["followed_loss"].values
