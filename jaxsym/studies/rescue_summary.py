"""What the study ``rescue`` counts: runs that recover, with their intervals, and the claims."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool
from scipy import stats

from jaxsym.studies.study import Claim, agreed, refuted, run_counts

REMEDIES = ("unchanged", "clipping", "lower rate", "warm-up", "Adam")
KINDS = ("from the first step", "midway")
FIRST, MIDWAY = KINDS
POINTS = ("last healthy checkpoint", "last finite checkpoint", "first checkpoint that is not finite")
HEALTHY, FINITE, LOST = POINTS
NEAR = 0.9
"""A run has recovered if its test accuracy is at least this share of the reference's."""


class Share(NamedTuple):
    """Some of several, with the exact 95% interval of the share (Clopper and Pearson 1934)."""

    some: int
    of: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The share with its interval."""
        return f"{self.value:.1%} (95%: {self.low:.1%} to {self.high:.1%})" if self.of else "no run diverged"

    @property
    def recover(self) -> str:
        """How many recover, in words."""
        return f"{self} recover" if self.of else "no run diverged"


def share(ok: Bool[np.ndarray, " n"]) -> Share:
    """Which share of some runs it is.

    >>> str(share(np.array([True, True, True, False])))
    '75.0% (95%: 19.4% to 99.4%)'
    """
    some, of = int(np.sum(ok)), int(np.size(ok))
    if not of:
        return Share(0, 0, float("nan"), 0.0, 1.0)
    found = stats.binomtest(some, of).proportion_ci(0.95, method="exact")
    return Share(some, of, some / of, float(found.low), float(found.high))


def reference(data: xr.Dataset) -> tuple[float, float]:
    """The rate of the sweep at which SGD has the greatest median test accuracy, and that accuracy."""
    medians = data["sweep_accuracy"].sel(remedy_of_sweep="unchanged").median("network")
    return float(medians["rate"][int(medians.values.argmax())]), float(medians.max())


def good(data: xr.Dataset, name: str) -> xr.DataArray:
    """Whether runs end finite and near the reference; ``name`` is that of their variables, such as ``sweep``."""
    return xr.apply_ufunc(np.isfinite, data[f"{name}_loss"]) & (data[f"{name}_accuracy"] >= NEAR * reference(data)[1])


def diverged(data: xr.Dataset, kind: str = FIRST) -> Bool[np.ndarray, " networks"]:
    """The networks whose run with checkpoints is not finite at the end; all shares of rescued runs are of these."""
    return data["diverged"].sel(kind=kind).values


def recovered(data: xr.Dataset, remedy: str, point: str | None = None, kind: str = FIRST) -> Share:
    """Of the runs that diverge, those that recover with a remedy from a point; without a point, from the start."""
    late = good(data, "late").sel(kind=kind)
    own = good(data, "start").sel(way=remedy) if point is None else late.sel(remedy=remedy, point=point)
    return share(own.values[diverged(data, kind)])


def ways(data: xr.Dataset) -> dict[str, Share]:
    """The five ways of the exercise."""
    return {
        "clipping": recovered(data, "clipping"),
        "lower rate": recovered(data, "lower rate"),
        "warm-up": recovered(data, "warm-up"),
        "roll-back": recovered(data, "lower rate", FINITE),
        "Adam": recovered(data, "Adam"),
    }


def lost(data: xr.Dataset, kind: str = FIRST) -> dict[str, Share]:
    """What remedies do without a roll-back, once a run is not finite."""
    return {remedy: recovered(data, remedy, LOST, kind) for remedy in REMEDIES}


def largest_rate(data: xr.Dataset, remedy: str) -> float:
    """The largest rate of the sweep at which more than half of all runs end well, those that do not diverge too; NaN without one."""
    ok = (good(data, "sweep").sel(remedy_of_sweep=remedy).mean("network") > 0.5).values
    return float(data["rate"].values[ok].max()) if ok.any() else float("nan")


def spanned(data: xr.Dataset, remedy: str) -> str:
    """The rates of the sweep at which more than half of all runs end well: from the least to the largest, or one by one where there are gaps."""
    ok = (good(data, "sweep").sel(remedy_of_sweep=remedy).mean("network") > 0.5).values
    places, names = np.flatnonzero(ok), [f"{rate:g}" for rate in data["rate"].values]
    if len(places) > 1 and places[-1] - places[0] == len(places) - 1:
        return f"{names[places[0]]} to {names[places[-1]]}"
    return " or ".join(names[place] for place in places)


def rescues(one: Share) -> bool | None:
    """Whether more than half recover; None where the interval contains one half, or no run diverged."""
    return True if one.low > 0.5 else False if one.of and one.high < 0.5 else None


def claims(data: xr.Dataset) -> list[Claim]:
    """What the exercise says, what was measured, and whether it holds."""
    found, rate = ways(data), float(data["chosen_rate"])
    all_runs = share(diverged(data))
    unchanged = {kind: recovered(data, "unchanged", FINITE, kind) for kind in KINDS}
    midway = recovered(data, "lower rate", FINITE, MIDWAY)
    late = [one for kind in KINDS for one in lost(data, kind).values()]
    texts = {
        "clipping": f"Clipping the gradient to a norm of {float(data['norm']):g} rescues a diverging run",
        "lower rate": f"A learning rate of 1/{float(data['part']):g} rescues it",
        "warm-up": f"Linear warm-up to the same rate, over {float(data['share']):.0%} of the steps, rescues it",
        "roll-back": f"Rolling back to the last finite checkpoint and going on with 1/{float(data['part']):g} of the rate rescues it",
        "Adam": f"Another optimizer (Adam at {float(data['adam_rate']):g}) rescues it",
    }
    return [
        (f"At a rate of {rate:g} most runs diverge", f"{all_runs} end not finite", rescues(all_runs)),
        *((text, found[way].recover, rescues(found[way])) for way, text in texts.items()),
        (
            f"The same roll-back rescues a run whose rate is raised midway, from {float(data['early_rate']):g} to {float(data['raised_rate']):g}",
            midway.recover,
            rescues(midway),
        ),
        (
            "Rolling back alone, with nothing changed, does not rescue it: the same batches come again",
            "; ".join(f"{kind}: {one.recover}" for kind, one in unchanged.items()),
            agreed(
                [None if (verdict := rescues(one)) is None else not verdict for one in unchanged.values() if one.of]
            ),
        ),
        (
            "Once the parameters are not finite, no remedy helps without rolling back",
            f"{sum(one.some for one in late)} of {sum(one.of for one in late)} runs recover",
            agreed([not one.some for one in late if one.of]),
        ),
    ]


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    rate, accuracy = reference(data)
    unchanged = xr.apply_ufunc(np.isfinite, data["sweep_loss"].sel(remedy_of_sweep="unchanged"))
    found = ways(data)
    keys = {
        "clipping": "clipping",
        "lower rate": "lower_rate",
        "warm-up": "warm_up",
        "roll-back": "roll_back",
        "Adam": "optimizer",
    }
    names = {"unchanged": "none", "clipping": "clipping", "lower rate": "lower_rate", "warm-up": "warm_up"}
    return {
        "chosen_rate": float(data["chosen_rate"]),
        "diverged": share(diverged(data)).value,
        "diverged_by_rate": [float(value) for value in (~unchanged).mean("network").values],
        "reference_rate": rate,
        "reference_accuracy": accuracy,
        "recovers_from_accuracy": NEAR * accuracy,
        **{f"recovered_{key}": found[way].value for way, key in keys.items()},
        **{f"recovered_{key}_interval": [found[way].low, found[way].high] for way, key in keys.items()},
        "recovered_unchanged": recovered(data, "unchanged").value,
        "recovered_optimizer_same_rate": recovered(data, "Adam at the same rate").value,
        "recovered_roll_back_unchanged": recovered(data, "unchanged", FINITE).value,
        "recovered_roll_back_clipping": recovered(data, "clipping", FINITE).value,
        "recovered_roll_back_warm_up": recovered(data, "warm-up", FINITE).value,
        "recovered_roll_back_optimizer": recovered(data, "Adam", FINITE).value,
        "recovered_roll_back_healthy": recovered(data, "lower rate", HEALTHY).value,
        "diverged_midway": share(diverged(data, MIDWAY)).value,
        "recovered_roll_back_midway": recovered(data, "lower rate", FINITE, MIDWAY).value,
        "recovered_roll_back_midway_unchanged": recovered(data, "unchanged", FINITE, MIDWAY).value,
        "recovered_roll_back_midway_clipping": recovered(data, "clipping", FINITE, MIDWAY).value,
        "recovered_roll_back_midway_warm_up": recovered(data, "warm-up", FINITE, MIDWAY).value,
        "recovered_roll_back_midway_optimizer": recovered(data, "Adam", FINITE, MIDWAY).value,
        **{f"recovered_late_{key}": lost(data)[way].value for way, key in keys.items() if way in REMEDIES},
        **{f"largest_rate_{key}": largest_rate(data, way) for way, key in names.items()},
        "restored_bit_equal": bool(data["restored_equal"].all()),
        "checkpoints_restored": int(data["restored_equal"].size),
        "claims_that_failed": refuted(claims(data)),
        **run_counts(data),
    }
