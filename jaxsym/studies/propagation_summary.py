"""The headline figures of the study ``propagation``, and what they say to the claims of the chapter."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from jaxsym.studies.study import Claim, listed, refuted, run_counts, sign_test

TOLERANCE = 1e-10
"""A singular value beyond its bound by more than this share of it is a violation; less is rounding."""
NEAR = 1.0
"""Within a factor of 10 (the logarithm is at most this, in size) counts as near 1: over 49 layers that is 5 % a layer."""
FAR = 3.0
"""By a factor of 1000 counts as vanishing or exploding."""
DEAD = -299
"""Logarithm of a variance that is none."""
LEARNED = 0.5
"""A median accuracy above this is of networks that have learned; chance is 0.1."""
FEW = 10
"""A mean that fewer networks than this carry decides nothing."""
APART = 0.02
"""Accuracies closer than this are equal."""
GROWTH = (np.pi / (np.pi - 1)) ** 0.5
"""Factor by which a layer of a wide ReLU network with batch normalisation of many rows makes gradients larger: half of the units pass them, divided by the variance 1/2 - 1/(2 pi)."""


class Best(NamedTuple):
    """The initialiser that keeps variance and gradient nearest to 1, the next, and the interval of their paired difference."""

    name: str
    drift: float
    second: str
    second_drift: float
    low: float
    high: float

    @property
    def tied(self) -> bool:
        """Whether the difference of the two could be nothing."""
        return not self.low > 0


class Training(NamedTuple):
    """Accuracies at each initialiser's best rate, and the shares of runs that ended with outputs that are not finite."""

    accuracy: xr.DataArray
    diverged: xr.DataArray


def change(data: xr.Dataset) -> xr.DataArray:
    """log10 of the variance of the last layer's activations over that of the first's."""
    return (data["variance"].isel(layer=-1) - data["variance"].isel(layer=0)).astype(float)


def ratio(data: xr.Dataset) -> xr.DataArray:
    """log10 of the gradient's norm at the first layer over that at the last, at the largest depth."""
    return data["gradient_ratio"].isel(depth=-1).astype(float)


def kernel_ratio(data: xr.Dataset) -> xr.DataArray:
    """:func:`ratio` of the gradients by kernels; NaN where all units of the last layer are off."""
    return data["weight_gradient_ratio"].isel(depth=-1).where(data["variance"].isel(layer=-1) > DEAD)


def drift(data: xr.Dataset) -> xr.DataArray:
    """Orders of magnitude by which variance and gradient change, together."""
    return abs(change(data)) + abs(ratio(data))


def middle(values: xr.DataArray) -> xr.DataArray:
    """Medians over networks."""
    return values.median("network")


def best(data: xr.Dataset, activation: str, architecture: str = "plain") -> Best:
    """The initialiser with the least median drift, and whether the next is farther."""
    own = drift(data).sel(architecture=architecture, activation=activation)
    order = own.median("network").argsort().values
    names = [str(own["initializer"].values[index]) for index in order[:2]]
    first, second = (own.sel(initializer=name).transpose("network").values for name in names)
    interval = stats.quantile_test(second - first, q=0, p=0.5).confidence_interval(0.95)
    return Best(
        names[0], float(np.median(first)), names[1], float(np.median(second)), float(interval.low), float(interval.high)
    )


def violations(data: xr.Dataset) -> dict[str, int]:
    """How often each bound was checked, how often it says something, and how often it was violated."""
    own = data.sel(architecture=["plain", "residual"])
    margin = np.log10(1 + TOLERANCE)
    upper = np.concatenate(
        [
            (values <= bound + margin).values.ravel()
            for values, bound in (
                (own["largest"], own["largest_bound"]),
                (data["normalized_largest"], data["normalized_largest_bound"]),
            )
        ]
    )
    lower = (own["smallest"] >= own["smallest_bound"] - margin).values
    empty = np.isneginf(own["smallest_bound"].values)
    return {
        "checked": upper.size + lower.size,
        "lower": int((~empty).sum()),
        "empty": int(empty.sum()),
        "violated": int((~upper).sum() + (~lower).sum()),
    }


def inner(data: xr.Dataset) -> dict[str, list[float]]:
    """For each inner width the share of chains beyond the lower and beyond the upper bound."""
    lower = data["inner_lower"] < 1 - TOLERANCE
    upper = data["inner_upper"] > 1 + TOLERANCE
    return {name: [float(value) for value in each.mean("chain")] for name, each in (("lower", lower), ("upper", upper))}


def training(data: xr.Dataset) -> Training:
    """Each initialiser at the rate with the least median training loss, over networks."""
    losses = data["training_loss"].where(~data["diverged"], np.inf).fillna(np.inf)
    rates = losses.median("trained").argmin("rate")
    return Training(data["accuracy"].isel(rate=rates), data["diverged"].mean(("rate", "trained")))


def gains(data: xr.Dataset, architecture: str) -> np.ndarray:
    """Median accuracy beyond the plain chain's, for every activation and initialiser."""
    middling = training(data).accuracy.median("trained")
    return (middling.sel(architecture=architecture) - middling.sel(architecture="plain")).values.ravel()


def mean_factor(values: xr.DataArray) -> float:
    """The arithmetic mean over networks of what ``values`` is the logarithm of."""
    return float(np.mean(10**values.values))


def carrying(values: xr.DataArray) -> float:
    """How many networks carry the mean of what ``values`` is the logarithm of: the square of the sum over the sum of squares (Kish 1965)."""
    sizes = 10 ** (values.values - values.values.max())
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def power(value: float) -> str:
    """A number from its logarithm.

    >>> power(-7.2), power(0.1), power(-float("inf"))
    ('10^-7.2', '1.3', '0')
    """
    if np.isneginf(value):
        return "0"
    return f"{10**value:.2g}" if abs(value) < 2 else f"10^{value:.1f}"


def near(values: xr.DataArray) -> xr.DataArray:
    """Whether medians are near 1."""
    return abs(values) <= NEAR


def claims(data: xr.Dataset) -> list[Claim]:
    """What the chapter says, what was measured, and whether that holds here."""
    signals = change(data), ratio(data)
    depth = int(data["depth"][-1])
    return [*_bounds(data, depth), *_sigmoid(data, depth), *_kept(*signals), *_helped(*signals), *_learned(data)]  # fmt: skip


def _bounds(data: xr.Dataset, depth: int) -> list[Claim]:
    linear = middle(data["largest"]).sel(architecture="plain", activation="identity").isel(depth=-1)
    small, large = (float(linear.sel(initializer=name)) for name in ("normal 0.01", "normal 1"))
    found, shares = violations(data), inner(data)
    widths = data["inner_width"].values
    outer = 3
    wide = [share for width, share in zip(widths, shares["lower"], strict=True) if width > outer]
    narrow = [share for width, share in zip(widths, shares["lower"], strict=True) if width <= outer]
    return [
        (
            "Products of many matrices vanish or explode.",
            f"largest singular value of {depth} matrices: {power(small)} from 0.01 x normal entries, {power(large)} from normal ones",
            small < -FAR and large > FAR,
        ),
        (
            "The singular values of a product of square matrices lie between the products of the smallest and of the largest ones.",
            f"{found['violated']} violations in {found['checked']} comparisons",
            found["violated"] == 0,
        ),
        (
            "Of matrices that are not square, the lower bound fails where the inner width is the largest, and the upper one never.",
            f"inner widths beyond {outer}: lower bound violated by {min(wide):.0%} to {max(wide):.0%} of the chains; the others: {max(narrow):.0%} at most; upper bound: {max(shares['upper']):.0%}",
            min(wide) > 0 and max(narrow) == 0 and max(shares["upper"]) == 0,
        ),
    ]


def _sigmoid(data: xr.Dataset, depth: int) -> list[Claim]:
    own = data.sel(architecture="plain", activation="sigmoid")
    ratios = middle(ratio(data)).sel(architecture="plain", activation="sigmoid")
    slopes = own["slope"].mean("layer").median("network")
    top, low = (
        str(ratios["initializer"].values[index]) for index in (int(ratios.values.argmax()), int(ratios.values.argmin()))
    )
    flattest = str(slopes["initializer"].values[int(slopes.values.argmin())])
    return [
        (
            "Gradients vanish in deep sigmoid networks.",
            f"first layer over last at depth {depth}: at most {power(float(ratios.max()))} ({top}), at least {power(float(ratios.min()))} ({low})",
            float(ratios.max()) < -FAR,
        ),
        (
            "They vanish the most where the units are most saturated.",
            f"smallest gradient: {low}, whose derivatives are {float(slopes.sel(initializer=low)):.3f} in the root mean square (0.25 at most); most saturated: {flattest}, {float(slopes.sel(initializer=flattest)):.3f}",
            low == flattest,
        ),
    ]


def _kept(changes: xr.DataArray, ratios: xr.DataArray) -> list[Claim]:
    found: list[Claim] = []
    for start, activation, kind in (
        ("xavier", "identity", "linear"),
        ("xavier", "tanh", "tanh"),
        ("he", "relu", "ReLU"),
    ):
        name = start.capitalize()
        variance, gradient = (
            values.sel(architecture="plain", activation=activation, initializer=start) for values in (changes, ratios)
        )
        means = mean_factor(variance), mean_factor(2 * gradient)
        held = min(carrying(variance), carrying(2 * gradient))
        middling = float(variance.median()), float(gradient.median())
        found += [
            (
                f"{name} keeps variance and squared gradient of {kind} networks in the mean over networks.",
                f"mean factors {means[0]:.2g} and {means[1]:.2g} from end to end"
                + ("" if held > FEW else f"; {held:.1f} of {variance.size} networks carry them"),
                all(abs(np.log10(value)) <= NEAR for value in means) if held > FEW else None,
            ),
            (
                f"{name} keeps variance and gradient of the median {kind} network.",
                f"median factors {power(middling[0])} and {power(middling[1])}",
                all(abs(value) <= NEAR for value in middling),
            ),
        ]
    return found


def _helped(changes: xr.DataArray, ratios: xr.DataArray) -> list[Claim]:
    variance, gradient = middle(changes), middle(ratios)
    cells = variance.sel(architecture="plain").size
    both = (near(variance) & near(gradient)).sum(("activation", "initializer"))
    residual, normalized = (gradient.sel(architecture=name) for name in ("residual", "batch norm"))
    kept = int(near(variance.sel(architecture="batch norm")).sum())
    calm = int(near(normalized).sum())
    return [
        (
            "With residual connections gradients do not vanish.",
            f"smallest median ratio {power(float(residual.min()))}; without {power(float(gradient.sel(architecture='plain').min()))}",
            float(residual.min()) > -NEAR,
        ),
        (
            "Residual connections keep variance and gradient near 1.",
            f"in {int(both.sel(architecture='residual'))} of {cells} pairs of activation and initialiser; without in {int(both.sel(architecture='plain'))}; largest median gradient {power(float(residual.max()))}",
            int(both.sel(architecture="residual")) == cells,
        ),
        (
            "Batch normalisation keeps the variance of activations near 1.",
            f"in {kept} of {cells} pairs",
            kept == cells,
        ),
        (
            "Batch normalisation keeps gradients near 1 at initialisation.",
            f"in {calm} of {cells} pairs; largest median ratio {power(float(normalized.max()))}",
            calm == cells,
        ),
    ]


def _learned(data: xr.Dataset) -> list[Claim]:
    found: list[Claim] = []
    middling = training(data).accuracy.median("trained")
    for activation in data["trained_activation"].values:
        own = middling.sel(architecture="plain", trained_activation=activation)
        found_best = best(data, str(activation))
        equals = [found_best.name, *([found_best.second] if found_best.tied else [])]
        winner = max(equals, key=lambda name: float(own.sel(initializer=name)))
        at = float(own.sel(initializer=winner))
        not_learned = [str(name) for name in own["initializer"].values if float(own.sel(initializer=name)) <= LEARNED]
        found.append(
            (
                f"The initialiser that keeps both near 1 trains a deep {activation} network where others fail.",
                f"{winner}{' (tied with ' + next(name for name in equals if name != winner) + ')' if len(equals) > 1 else ''}: accuracy {at:.2f}, the best is {float(own.max()):.2f}; not learned from {listed(not_learned) if not_learned else 'none'}",
                at > LEARNED and at >= float(own.max()) - APART and bool(not_learned) and winner not in not_learned,
            )
        )
    for architecture, what in (("residual", "Residual connections help"), ("batch norm", "Batch normalisation helps")):
        gained = gains(data, architecture)
        better, worse = int((gained > APART).sum()), int((gained < -APART).sum())
        chance = sign_test(better, worse)
        found.append(
            (
                f"{what} a deep network to learn.",
                f"better than the plain chain by more than {APART} in {better} and worse in {worse} of {gained.size} pairs of activation and initialiser (sign test: p = {chance:.2g}); median gain {np.median(gained):+.2f}",
                better > worse if chance < 0.05 else None,
            )
        )
    return found


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    found, shares = violations(data), inner(data)
    bests = {str(activation): best(data, str(activation)) for activation in data["activation"].values}
    growth = middle(ratio(data)).sel(architecture="batch norm", activation="relu").median("initializer")
    middling = training(data).accuracy.median("trained")
    figures: dict[str, Any] = {
        "bound_violations": found["violated"],
        "bounds_checked": found["checked"],
        "lower_bounds_of_nothing": found["empty"],
    }
    for activation, winner in bests.items():
        figures |= {
            f"best_initializer_{activation}": winner.name,
            f"best_drift_{activation}": winner.drift,
            f"second_initializer_{activation}": winner.second,
            f"second_drift_{activation}": winner.second_drift,
            f"best_is_tied_{activation}": winner.tied,
        }
    figures |= {
        "inner_widths": [int(width) for width in data["inner_width"].values],
        "inner_lower_violations": shares["lower"],
        "inner_upper_violations": shares["upper"],
        "batch_norm_growth_relu": float(10 ** (growth / (data.sizes["layer"] - 1))),
        "batch_norm_growth_relu_predicted": float(GROWTH),
    }
    for activation in data["trained_activation"].values:
        for architecture in data["architecture"].values:
            own = middling.sel(trained_activation=activation, architecture=architecture)
            name = f"accuracy_{activation}_{architecture}".replace(" ", "_")
            figures[name] = [float(value) for value in own.values]
    return figures | {"claims_that_failed": refuted(claims(data))} | run_counts(data)
