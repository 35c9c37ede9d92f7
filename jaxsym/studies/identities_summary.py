"""The headline figures of the study ``identities``, and what they say to the claims of the chapter."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from jaxsym.studies.study import Claim, refuted, run_counts

TOLERANCE = 1e-12
"""Errors up to this are rounding."""
LINEAR = 0.8, 1.2
"""Exponents of a growth that counts as linear."""
HALF = -0.6, -0.4
"""Exponents that count as one over the square root."""
APART = 0.01
"""Outputs farther apart than this, where targets have the standard deviation 1, are of different functions."""


class Growth(NamedTuple):
    """How many pieces there are: the exponent in the number of units, with its standard error over shapes, and pieces for each unit, least and most."""

    exponent: float
    error: float
    least: float
    most: float


def worst(data: xr.Dataset, *starts: str) -> float:
    """The largest error over networks, of all identities or of those whose names begin so."""
    names = [name for name in data["identity"].values if not starts or str(name).startswith(starts)]
    return float(data["error"].sel(identity=names).max())


def growth(data: xr.Dataset) -> Growth:
    """Over all shapes, of the mean number of pieces."""
    pieces, units = data["pieces"].mean("network").values, data["units"].values
    fit = stats.linregress(np.log(units), np.log(pieces))
    each = pieces / units
    return Growth(float(fit.slope), float(fit.stderr), float(each.min()), float(each.max()))


def mismatches(data: xr.Dataset) -> int:
    """Networks with one hidden layer whose pieces are not one more than the units that change on the segment."""
    one = data.isel(shape=data["depth"].values == 1)
    return int((one["pieces"] != 1 + one["crossed"]).sum())


def most_in_one_layer(data: xr.Dataset) -> int:
    """The largest number of pieces beyond the hidden units, one hidden layer; at most 1."""
    one = data.isel(shape=data["depth"].values == 1)
    return int((one["pieces"] - one["units"]).max())


def decay(data: xr.Dataset) -> float:
    """Exponent in the batch size of the difference that batch normalisation makes, median over networks, from 8 rows on."""
    sizes = data["batch"].values
    kept = (sizes >= 8) & (sizes <= data.attrs["rows"] // 8)
    middling = data["standardized_difference"].median("network").values
    return float(stats.linregress(np.log(sizes[kept]), np.log(middling[kept])).slope)


def predicted(data: xr.Dataset) -> np.ndarray:
    """Root mean square difference of batch normalisation of normal numbers, first order: mean and deviation of b rows of N are off by so much."""
    return np.sqrt(1.5 * (1 / data["batch"].values - 1 / data.attrs["rows"]))


def apart(data: xr.Dataset, way: str) -> float:
    """Median distance from the tanh network's outputs after training."""
    return float(data["apart"].sel(way=way).isel(record=-1).median())


def between(data: xr.Dataset) -> float:
    """Share of slopes for which the derivative of pReLU at 0 is between the difference quotients of both sides."""
    sides = data["left"], data["right"]
    low, high = np.minimum(*sides), np.maximum(*sides)
    return float(((data["prelu_at_zero"] >= low) & (data["prelu_at_zero"] <= high)).mean())


def claims(data: xr.Dataset) -> list[Claim]:
    """What the chapter says, or asks, what was measured, and whether that holds here."""
    return [*_relu(data), *_batches(data), *_tanh(data)]


def _relu(data: xr.Dataset) -> list[Claim]:
    prelu, pieces = worst(data, "pReLU"), worst(data, "ReLU")
    finished, beyond, wrong = bool(data["finished"].all()), most_in_one_layer(data), mismatches(data)
    grown = growth(data)
    teeth, tooth_error = data["tooth_pieces"].values, float(data["tooth_error"].max())
    within = between(data)
    return [
        (
            "The derivative of pReLU by x is 1 above 0 and the slope below; by the slope it is min(x, 0).",
            f"largest error {prelu:.1e}",
            prelu <= TOLERANCE,
        ),
        (
            "At 0 automatic differentiation returns a number between the one-sided derivatives.",
            f"for {within:.0%} of the slopes",
            within == 1,
        ),
        (
            "A ReLU network is continuous and piecewise linear.",
            f"{int(data['regions'].sum())} pieces, largest error {pieces:.1e}; {'every walk came to its end' if finished else 'some walks did not come to their end'}",
            pieces <= TOLERANCE and finished,
        ),
        (
            "With one hidden layer of h units there are at most h + 1 pieces, one more than units that change on the segment.",
            f"at most h {beyond:+d}; {wrong} networks with another number",
            beyond <= 1 and wrong == 0,
        ),
        (
            "At initialisation the number of pieces grows about linearly with the number of units (Hanin and Rolnick 2019).",
            f"exponent {grown.exponent:.2f} ± {grown.error:.2f} (standard error); {grown.least:.2f} to {grown.most:.2f} pieces a unit",
            LINEAR[0] <= grown.exponent <= LINEAR[1],
        ),
        (
            "Depth can make exponentially many: a sawtooth of two units a layer has 2^depth.",
            f"{', '.join(str(int(value)) for value in teeth)} pieces; largest error {tooth_error:.1e}",
            bool((teeth == 2 ** data["tooth"].values).all()) and tooth_error <= TOLERANCE,
        ),
    ]


def _batches(data: xr.Dataset) -> list[Claim]:
    own = worst(data, "elementwise")
    other = float(data["elementwise_other_row"].max())
    slope = decay(data)
    least, bias = float(data["normalized_other_row"].min()), float(data["normalized_gradient"].median())
    return [
        (
            "An elementwise nonlinearity does not see the batch: one minibatch at a time is the same as all rows.",
            f"largest error {own:.1e}; derivative by another row at most {other:.1e}",
            own <= TOLERANCE and other == 0,
        ),
        (
            "Statistics over the batch do: a row's output depends on the others, and so does the mean gradient.",
            f"derivative by another row of 8 at least {least:.2g}; mean of the minibatches' gradients off by {bias:.1%} in the median",
            least > APART and bias > APART,
        ),
        (
            "The difference falls as one over the square root of the batch size.",
            f"exponent {slope:.2f}",
            HALF[0] <= slope <= HALF[1],
        ),
    ]


def _tanh(data: xr.Dataset) -> list[Claim]:
    scalar, maps = worst(data, "tanh(x)", "its"), worst(data, "tanh net", "and back")
    carried = worst(data, "group", "on one")
    orders = data["order"]
    same = bool((orders.sel(activation="tanh") == orders.sel(activation="sigmoid")).all())
    gone, kept = apart(data, "sigmoid, same rate"), worst(data, "gradient descent")
    return [
        ("tanh(x) + 1 = 2 sigmoid(2x).", f"largest error {scalar:.1e}, derivatives too", scalar <= TOLERANCE),
        (
            "Tanh and sigmoid networks are the same functions: each is mapped to the other.",
            f"largest error {maps:.1e}, there and back, hidden layers {'; '.join(str(name) for name in orders['hidden'].values)}",
            maps <= TOLERANCE,
        ),
        (
            "The map carries the group of the one to that of the other.",
            f"orders {'equal' if same else 'differ'}; largest error {carried:.1e}",
            same and carried <= TOLERANCE,
        ),
        (
            "But they do not learn the same: gradient descent from one function leads to two.",
            f"outputs {gone:.2g} apart in the median at the end",
            gone > APART,
        ),
        (
            "With the metric of the map in the sigmoid network's steps they do.",
            f"outputs at most {kept:.1e} apart at the end",
            kept <= TOLERANCE,
        ),
    ]


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    grown = growth(data)
    return {
        "max_error": max(worst(data), float(data["tooth_error"].max())),
        "prelu_at_zero": float(data["prelu_at_zero"].mean()),
        "relu_at_zero": float(data["relu_at_zero"].mean()),
        "prelu_at_zero_between": between(data),
        "pieces_mismatches": mismatches(data),
        "pieces_exponent": grown.exponent,
        "pieces_exponent_error": grown.error,
        "pieces_per_unit": [grown.least, grown.most],
        "sawtooth_pieces": [int(value) for value in data["tooth_pieces"].values],
        "batch_difference_exponent": decay(data),
        "batch_gradient_bias": float(data["normalized_gradient"].median()),
        "orders": [int(value) for value in data["order"].sel(activation="tanh").values],
        "orders_sigmoid": [int(value) for value in data["order"].sel(activation="sigmoid").values],
        "apart_same_rate": apart(data, "sigmoid, same rate"),
        "apart_rate_a_leaf": apart(data, "sigmoid, a rate a leaf"),
        "apart_metric": float(data["apart"].sel(way="sigmoid, the metric").max()),
        "training_losses": [float(value) for value in data["training_loss"].isel(record=-1).median("network").values],
        "claims_that_failed": refuted(claims(data)),
        **run_counts(data),
    }
