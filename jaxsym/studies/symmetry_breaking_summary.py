"""The headline figures of the study ``symmetry_breaking``, and what of the text they bear out."""

from typing import Any

import xarray as xr

from jaxsym.studies.study import Claim, listed, refuted, run_counts
from jaxsym.studies.symmetry_breaking_networks import PLACES

SEPARATED = 0.95
"""Of the units that there are, at least so many must be distinct in the mean for a way to count as separating them."""
ALL_TIED = 1.0
STILL = 0.0


def ends(data: xr.Dataset) -> xr.DataArray:
    """Distinct units at the end, ``[start, way, network]``."""
    return data["distinct"].isel(record=-1)


def mean(data: xr.Dataset, way: str, start: int = 0) -> float:
    """Distinct units of perceptrons at the end, in the mean over networks."""
    return float(ends(data).sel(way=way).isel(start=start).mean())


def separates(data: xr.Dataset, way: str) -> bool:
    """Whether a way leaves perceptrons with as many distinct units as they have, or nearly."""
    return mean(data, way) >= SEPARATED * int(data["units"].sel(architecture="mlp"))


def places(data: xr.Dataset, kind: str) -> str:
    """How many of the places that share a layer's weights have different activations, and how many of its units."""
    own = data.sel(shared=kind)
    return (
        f"{float(own['place_distinct'].mean()):.1f} of {int(own['places'])} {PLACES[kind][1]} differ in their activations,"
        f" {float(own['place_units'].mean()):.1f} of {int(data['units'].sel(architecture=kind))} units"
    )


def tower_distance(data: xr.Dataset, kind: str) -> float:
    """Of twins with shared weights the largest, whatever the way; of others the mean with nothing but descent."""
    own = data["towers"].sel(pair_of_towers=kind)
    return float(own.max() if kind == "siamese" else own.sel(way="nothing").mean())


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    ways = [str(way) for way in data["way"].values]
    kinds = [str(kind) for kind in data["architecture"].values]
    share = data["kind_distinct"].isel(record=-1).mean("few")
    starts = [str(start) for start in data["regression_start"].values]
    still = data["largest_kernel"].isel(start=1) == STILL
    return {
        **{f"distinct_{way}": mean(data, way) for way in ways},
        **{f"distinct_from_zeros_{way}": mean(data, way, 1) for way in ways},
        "still_at_zero": [way for way in ways if bool(still.sel(way=way).all())],
        **{
            f"separating_{kind}": [
                way
                for way in ways
                if float(share.sel(architecture=kind, way=way)) >= SEPARATED * int(data["units"].sel(architecture=kind))
            ]
            for kind in kinds
        },
        **{
            f"accuracy_{way}": float(data["accuracy"].isel(start=0).sel(way=way).mean())
            for way in ("nothing", "random", "dropout")
        },
        **{
            f"softmax_{name}_accuracy": float(data["softmax_accuracy"].sel(regression_start=start).mean())
            for start, name in zip(starts, ("zero_init", "constant_init", "random_init"), strict=True)
        },
        **{
            f"linear_{name}_error": float(data["linear_error"].sel(regression_start=start).mean())
            for start, name in zip(starts, ("zero_init", "constant_init", "random_init"), strict=True)
        },
        **{f"tower_distance_{kind}": tower_distance(data, kind) for kind in map(str, data["pair_of_towers"].values)},
        "claims_that_failed": refuted(claims(data)),
        **run_counts(data),
    }


def claims(data: xr.Dataset) -> list[Claim]:
    """What the exercises and the text say, and whether it came out."""
    size = int(data["units"].sel(architecture="mlp"))

    def units(way: str) -> str:
        return f"{mean(data, way):.2f} of {size} units are distinct at the end"

    helps = {
        "random": "random weights separate hidden units that would stay equal",
        "weight_decay_l2": "weight decay (L2) helps to break the symmetry",
        "weight_decay_l1": "weight decay (L1) helps to break the symmetry",
        "dropout": "dropout helps to break the symmetry",
        "augmentation": "data augmentation helps to break the symmetry",
    }
    accuracies = data["softmax_accuracy"].mean("network")
    errors = data["linear_error"].mean("network")
    learned = accuracies[:2].min() > 2 * float(data.attrs["chance"])
    moves = float(data["largest_kernel"].isel(start=1).sel(way="nothing").max())
    return [
        *((text, units(way), mean(data, way) > ALL_TIED) for way, text in helps.items()),
        (
            "softmax regression does not learn from equal weights",
            f"test accuracy {float(accuracies[0]):.3f} from zeros, {float(accuracies[1]):.3f} from 0.1, {float(accuracies[2]):.3f} from random weights",
            not bool(learned),
        ),
        (
            "linear regression does not learn from equal weights",
            f"squared distance from the true weights, over theirs: {float(errors[0]):.1e} from zeros, {float(errors[1]):.1e} from 0.1, {float(errors[2]):.1e} from random weights",
            bool(errors[:2].max() > LEARNED),
        ),
        (
            "from zero weights plain descent never moves a kernel of a perceptron",
            f"largest entry of a kernel at the end: {moves:.1e}",
            moves == STILL,
        ),
        *_places(data),
    ]


def _places(data: xr.Dataset) -> list[Claim]:
    kinds = [str(kind) for kind in data["shared"].values]
    if not kinds:
        return []
    return [
        (
            "in a convolutional network it is positions, and in a recurrent one time steps, that must be made different",
            listed([f"{kind}: {places(data, kind)} at the start" for kind in kinds]),
            any(int(data["place_distinct"].sel(shared=kind).max()) == 1 for kind in kinds),
        )
    ]


LEARNED = 0.01
"""A linear regression whose squared distance from the true weights is below this share of theirs has learned them."""
