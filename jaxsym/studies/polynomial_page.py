"""The page of the study ``polynomial``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.polynomial_exact import population_loss
from jaxsym.studies.polynomial_summary import (
    CHAPTER_ROWS,
    PLAIN,
    SCALED,
    broken,
    claims,
    compared,
    digits,
    diverged,
    exact,
    failed,
    higher,
    middle,
    peaks,
    rate_medians,
    said,
    sgd,
    spans,
)
from jaxsym.studies.study import Picture, Section, Table, claims_table, interval, listed, tally

SHOWN = (1, 2, 3, 4, 5, 10, 20)
CURVES = (1, 3, 20)


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _claims(data),
        _degrees(data, summary),
        _log(data, summary),
        _rows(data),
        _rates(data, summary),
        _solving(data, summary),
        _beyond(data),
    ]


def _claims(data: xr.Dataset) -> Section:
    found = claims(data)
    return Section(
        "What is claimed, and what was measured",
        [
            f"The data: y = 5 + 1.2 x − 3.4 x²/2! + 5.6 x³/3! + noise of standard deviation 0.1, x standard normal; the loss is the mean squared error without a half, so that no model's expected loss is below {float(data['noise_floor']):g}."
            f" {data.sizes['network']} draws of {CHAPTER_ROWS} training rows (where nothing else is said) and {int(data['test_rows'])} test rows; a polynomial of degree d has the features x^i / i! for i = 0 to d; SGD starts from zero, its rate is 0.01, with ten rows a step, for {int(data['epoch'][-1])} epochs.",
            "The powers of x are heavy-tailed: a few rows decide most losses, and means over draws say little. All figures are medians over draws (in brackets their exact 95% intervals), bands are the middle 90%; “surely” means that the 95% interval of the"
            " median of the paired differences does not reach 0. A loss that is not finite counts as infinite.",
            tally(found),
        ],
        tables=[
            claims_table(
                found,
                "The chapter's claims (Zhang, Lipton, Li, Smola, Dive into Deep Learning), and some that it makes without saying so.",
            )
        ],
    )


def _finite(values: np.ndarray) -> np.ndarray:
    """For a picture: what has diverged lies far above its upper edge."""
    return np.where(np.isfinite(values), values, 1e30)


def _degrees(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    degrees, floor = data["degree"].values, summary["noise_floor"]
    curves, lines = plots.panels(len(CURVES), width=12, columns=3, height=3.2)
    for ax, degree in zip(lines, CURVES, strict=True):
        own = {label: _finite(data[f"curve_{part}"].sel(degree=degree).values) for part, label in _PARTS.items()}
        plots.bands(ax, data["record"].values, own)
        top = 3 * max(np.median(values, axis=0).max() for values in own.values())
        ax.set_ylim(floor / 3, top)
        plots.logarithmic(ax, "y")
        ax.axhline(floor, color="black", linewidth=1, linestyle="--")
        ax.set(title=f"degree {degree}", xlabel="epoch")
    lines[0].set_ylabel("mean squared error")
    plots.legend(lines[0])
    figure, axes = plots.panels(2, width=11)
    for ax, (part, label) in zip(axes, _PARTS.items(), strict=True):
        both = {
            "SGD": _finite(np.stack([sgd(data, part, int(d)) for d in degrees], axis=1)),
            "exact": np.stack([exact(data, part, int(d)) for d in degrees], axis=1),
        }
        plots.bands(ax, degrees, both)
        ax.set_ylim(floor / 3, 10 * max(np.median(values, axis=0).max() for values in both.values()))
        plots.logarithmic(ax, "y")
        ax.axhline(floor, color="black", linewidth=1, linestyle="--")
        ax.set(title=label, xlabel="degree", xticks=[1, 3, 5, 10, 15, 20])
    axes[0].set_ylabel("mean squared error")
    plots.legend(axes[0])
    rows = [
        (
            f"{degree}",
            *(
                f"{middle(data[f'sgd_{part}'].sel(size=CHAPTER_ROWS, scaling=SCALED, degree=degree).isel(epoch=at).values)[0]:.4g}"
                for part in _PARTS
                for at in (0, 1)
            ),
            *(f"{middle(exact(data, part, degree))[0]:.4g}" for part in _PARTS),
        )
        for degree in SHOWN
    ]
    half, whole = (int(v) for v in data["epoch"].values)
    train, test = ({d: sgd(data, part, d) for d in (3, 20)} for part in _PARTS)
    if higher(train[20], train[3]):
        cause = "but its training loss is higher than the cubic's as well: so many steps have not come to the least loss, and what separates the two is unfinished optimisation rather than fitted noise"
    elif higher(train[3], train[20]):
        cause = "and its training loss is lower: it has fitted the noise of its rows"
    else:
        cause = "and its training loss is not surely another"
    worse = "higher" if higher(test[20], test[3]) else "not surely higher"
    by_exact = [
        compared(exact(data, "test", 20), exact(data, "test", 3)),
        compared(exact(data, "train", 3), exact(data, "train", 20)),
    ]
    fits = (
        "this is what overfitting looks like; so few epochs of SGD do not get there"
        if all(by_exact)
        else "it does not overfit either"
        if False in by_exact
        else "whether it overfits these draws do not tell"
    )
    return Section(
        "The degree",
        [
            f"Degree 1 stays at {summary['train_loss_degree_1']:.4g} on the training rows, degree 3 comes to {summary['train_loss_degree_3']:.4g} ({summary['test_loss_degree_3']:.4g} on test rows). Degree 20's test loss"
            f" of {summary['test_loss_degree_20']:.4g} is {worse} than the cubic's, {cause}.",
            f"The exact fit of degree 20 has a training loss of {summary['exact_train_loss_degree_20']:.4g} and a test loss of {summary['exact_test_loss_degree_20']:.3g}:"
            f" {fits}.",
            _far_out(data, summary),
        ],
        tables=[
            Table(
                ("degree", *(f"{n} epochs" for _ in _PARTS for n in (half, whole)), "training", "test"),
                rows,
                f"Medians over draws of {CHAPTER_ROWS} training rows. The SGD of {half} epochs is that of {whole}, looked at halfway.",
                groups=(("", 1), ("SGD, training loss", 2), ("SGD, test loss", 2), ("exact fit", 2)),
            )
        ],
        pictures=[
            Picture(
                "curves",
                curves,
                "Median and middle 90% along SGD. Dashed: the variance of the noise.",
                f"Training and test loss against the epoch for degrees {listed([str(d) for d in CURVES])}, beside the variance of the noise.",
            ),
            Picture(
                "degrees",
                figure,
                f"After {whole} epochs, and exactly: median and middle 90%. Dashed: the variance of the noise.",
                "Training loss and test loss against the degree from 1 to 20, for SGD and for the exact fit.",
            ),
        ],
    )


def _far_out(data: xr.Dataset, summary: Mapping[str, Any]) -> str:
    share, lost = summary["diverged_with_factorial"], failed(data).any("degree").values
    if not share:
        return "No run with 1/i! has diverged."
    largest = data["largest_input"].values
    return (
        f"Not finite at the end, of all degrees and numbers of rows with 1/i!: {share:.2%}. It takes a row far out, where the features are large: the largest |x| of these {int(lost.sum())} of {lost.size} training sets is {largest[lost].min():.2f} or more,"
        f" that of the others {np.median(largest[~lost]):.2f} in the median."
    )


_PARTS = {"train": "training loss", "test": "test loss"}


def _log(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    floor, least = summary["noise_floor"], summary["smallest_train_loss_degree_1"]
    rows, inside = [], []
    for degree in data["limit"].values:
        losses = data["limit_loss"].sel(limit=degree).values
        _, low, high = interval(losses)
        predicted = population_loss(int(degree))
        inside.append(bool(low <= predicted <= high))
        rows.append(
            (
                f"{degree}",
                f"{predicted:.5g}",
                f"{losses.mean():.5g}",
                f"{low:.5g} to {high:.5g}",
                "yes" if inside[-1] else "no",
            )
        )
    linear = summary["linear_loss_closed_form"]
    return Section(
        "Could a printed log reach the noise at degree 1?",
        [
            "In Hermite polynomials, which are orthogonal for a standard normal input, x² = He₂ + 1 and x³ = He₃ + 3 x. A straight line can take over nothing of He₂ (variance 2) and He₃ (variance 6): what it leaves is"
            f" (3.4/2)²·2 + (5.6/6)²·6 + 0.1² = {linear:.4f}, {linear / floor:.0f} times the variance of the noise.",
            f"Of {data.sizes['network']} draws of {CHAPTER_ROWS} rows, none has a degree-1 training loss below {least:.3g} after SGD"
            + (
                f". A printed log that comes to {floor:g} at degree 1 is therefore not of these data: what the quadratic and cubic terms of its targets added to a straight line must have had far less than 1/{(linear - floor) / floor:.0f} of the variance"
                " that the text's coefficients give it (that much alone doubles the loss), as when only the first two coefficients are in use."
                if least > 2 * floor
                else f": a log that comes to {floor:g} at degree 1 can be of these data."
            ),
            f"The closed form is {'within' if all(inside) else 'not everywhere within'} the 95% intervals of the measured means.",
        ],
        tables=[
            Table(
                ("degree", "closed form", "measured mean", "95% interval", "inside"),
                rows,
                f"Least expected loss: the closed form, and the exact fit on {int(data['limit_rows'])} rows in the mean of {data.sizes['draw']} draws (Student's t).",
            )
        ],
    )


def _rows(data: xr.Dataset) -> Section:
    sizes = data["size"].values
    figure, axes = plots.panels(2, width=11)
    rows = []
    for ax, degree in zip(axes, (3, 20), strict=True):
        both = {
            "SGD": _finite(np.stack([sgd(data, "test", degree, int(n)) for n in sizes], axis=1)),
            "exact": np.stack([exact(data, "test", degree, int(n)) for n in sizes], axis=1),
        }
        plots.bands(ax, sizes, both)
        ax.set_ylim(float(data["noise_floor"]) / 3, 10 * max(np.median(v, axis=0).max() for v in both.values()))
        plots.logarithmic(ax, "x")
        plots.logarithmic(ax, "y")
        ax.axhline(float(data["noise_floor"]), color="black", linewidth=1, linestyle="--")
        ax.set(title=f"degree {degree}", xlabel="training rows")
        for way, take in (("SGD", sgd), ("exact", exact)):
            rows.append((f"{degree}", way, *(f"{middle(take(data, 'test', degree, int(n)))[0]:.4g}" for n in sizes)))
    axes[0].set_ylabel("test loss")
    plots.legend(axes[0])
    first, last = int(sizes[0]), int(sizes[-1])
    wild = [f"{middle(exact(data, 'test', 20, int(n)))[0]:.2g} on {int(n)}" for n in sizes]
    few, many = (middle(sgd(data, "test", 3, n))[0] / middle(exact(data, "test", 3, n))[0] for n in (first, last))
    return Section(
        "More data",
        [
            f"With as many epochs, more rows are also more steps: {int(data['epoch'][-1])} epochs are {int(data['epoch'][-1]) * first // 10} steps on {first} rows and {int(data['epoch'][-1]) * last // 10} on {last}. The exact fit shows what the rows do alone:"
            f" at degree 3 SGD's median test loss is {few:.3g} times the exact one's on {first} rows, {many:.3g} times on {last}."
            + (" Most of what more data bring SGD here is that it gets done." if few > 10 * many else "")
            + f" The exact fit of degree 20 has a median test loss of {listed(wild)} rows.",
        ],
        tables=[Table(("degree", "fit", *(f"{n} rows" for n in sizes)), rows, "Median test losses over draws.")],
        pictures=[
            Picture(
                "rows",
                figure,
                "Median and middle 90%; what leaves the picture at its upper edge goes on. Dashed: the variance of the noise.",
                f"Test loss against the number of training rows from {first} to {last} for degrees 3 and 20, by SGD and exactly.",
            )
        ],
    )


def _rates(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    degrees = [int(d) for d in data["degree"].values]
    rates = [f"{float(rate):g}" for rate in data["rate"].values]
    shares, medians = diverged(data).values, rate_medians(data)
    figure, (left, right) = plots.panels(2, width=12.5, height=0.32 * len(rates) + 1.6)
    columns = [str(d) for d in degrees]
    figure.colorbar(plots.heat_map(left, 100 * shares, rates, columns, limits=(0, 100)), ax=left, label="% not finite")
    shown = np.where(np.isfinite(medians), medians, np.nan)
    limits = (summary["noise_floor"] / 2, float(np.nanmax(shown)) * 1.01)
    image = plots.heat_map(right, shown, rates, columns, limits=limits, logarithmic=True, palette="viridis_r")
    figure.colorbar(image, ax=right, label="training loss")
    left.set(title="runs that diverge", xlabel="degree", ylabel="rate")
    right.set(title="median training loss (grey: infinite)", xlabel="degree")
    at_chapter = shares[0]
    best, place = medians.min(axis=0), medians.argmin(axis=0)
    start = float(data["start_loss"].median())
    rows = [
        (
            f"{d}",
            f"{at_chapter[d - 1]:.0%}",
            *((rates[place[d - 1]], f"{best[d - 1]:.4g}") if np.isfinite(best[d - 1]) else ("none", "infinite")),
            f"{middle(sgd(data, 'train', d))[0]:.4g}",
        )
        for d in SHOWN
    ]
    lost = [d for d in degrees if at_chapter[d - 1] > 0.5]
    smaller = (
        "A smaller rate keeps more runs finite, but what is small enough for the highest power is too small for the others. "
        if shares[-1].sum() < shares[0].sum()
        else ""
    )
    never = [d for d in degrees if not np.isfinite(best[d - 1])]
    near = [d for d in degrees if best[d - 1] > start / 2]
    return Section(
        "Without 1/i!",
        [
            f"Powers that are not divided: on {CHAPTER_ROWS} rows, at the chapter's rate of 0.01, more than half of the runs diverge at degrees {spans(lost)}. {smaller}At the best rate of those tried, down to {rates[-1]}, more than half of the"
            f" start's loss ({start:.3g}, of zero weights) is left at degrees {spans(near)}"
            + (f"; at degrees {spans(never)} no rate tried keeps half of the runs finite." if never else "."),
        ],
        tables=[
            Table(
                ("degree", "diverge at 0.01", "best rate", "its training loss", "with 1/i! at 0.01"),
                rows,
                "Losses are medians over draws after all epochs, infinite where half of the runs have diverged.",
            )
        ],
        pictures=[
            Picture(
                "rates",
                figure,
                f"SGD on powers that are not divided by i!, {CHAPTER_ROWS} rows, {data.sizes['network']} draws for each tile.",
                "Heat maps over rate and degree: the share of runs without 1/i! that are not finite at the end, and their median training loss.",
            )
        ],
    )


def _solving(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    degrees, kept, lost = data["degree"].values, digits(data), broken(data)
    excess = data["fit_excess"].median("reference")
    figure, axes = plots.panels(2, width=11)
    for ax, scaling in zip(axes, (SCALED, PLAIN), strict=True):
        for colour, way, style in zip(plots.COLOURS, data["way"].values, ("-", "--", "-", "--"), strict=False):
            ax.plot(degrees, kept.sel(scaling=scaling, way=way), style, color=colour, label=str(way))
        ax.set(title=f"features {scaling}", xlabel="degree", ylim=(-0.5, 16.5), xticks=[1, 5, 10, 15, 20])
    axes[0].set_ylabel("right digits of the weights")
    plots.legend(axes[0])
    rows = [
        (
            scaling,
            str(way),
            *(f"{float(kept.sel(scaling=scaling, way=way, degree=d)):.1f}" for d in (3, 10, 15, 20)),
            f"{float(lost.sel(scaling=scaling, way=way, degree=20)):.0%}",
            f"{float(excess.sel(scaling=scaling, way=way, degree=20)):.1e}",
        )
        for scaling in (SCALED, PLAIN)
        for way in data["way"].values
    ]
    gap = data["exact_gap"].sel(size=CHAPTER_ROWS, degree=3).values
    half = {
        scaling: [int(d) for d in degrees if float(kept.sel(scaling=scaling, way="Cholesky", degree=d)) < 8]
        for scaling in (SCALED, PLAIN)
    }
    apart = float(abs(kept.sel(way="Cholesky", scaling=SCALED) - kept.sel(way="Cholesky", scaling=PLAIN)).max())
    cut = float(excess.sel(scaling=SCALED, way="SVD", degree=20))
    return Section(
        "The exact solution, and how to solve for it",
        [
            f"At degree 3 SGD's training loss is {said(gap)} above the least one: {middle(gap)[0] / summary['noise_floor']:.1%} of the variance of the noise.",
            f"Four ways to the least squares in float64 on {CHAPTER_ROWS} rows, against the normal equations solved with 200 decimal places ({data.sizes['reference']} draws). QR and SVD work on the features; Cholesky and LU on the normal equations, whose condition number is the square of the"
            f" features': they have lost half of the 16 digits at degrees {listed([f'{spans(found)} ({scaling})' for scaling, found in half.items()])}. With and without the 1/i! Cholesky's digits differ by at most {apart:.1f}{', for dividing columns by numbers does not change how nearly dependent they are' if apart < 3 else ''}.",
            f"Cholesky finds no factor at degree 20 in {float(lost.sel(scaling=SCALED, way='Cholesky', degree=20)):.0%} of the draws with 1/i! and {float(lost.sel(scaling=PLAIN, way='Cholesky', degree=20)):.0%} without: to rounding the matrix is not positive definite. LU always gives weights, right or not: at degree 20 with 1/i! it has {float(kept.sel(scaling=SCALED, way='LU', degree=20)):.1f} right digits, though"
            f" its training loss exceeds the least one by only {float(excess.sel(scaling=SCALED, way='LU', degree=20)):.1e} of it: the errors lie where the features hardly differ on the training rows.",
            f"SVD drops singular values below rounding: with 1/i! at degree 20 the training loss is {cut:.2g} of the least one above it"
            + (
                ", a price for the shortest weights that QR does not pay. The exact fits on this page are by QR where there are enough rows."
                if cut > 1e-3
                else "."
            ),
        ],
        tables=[
            Table(
                ("features", "way", *(f"degree {d}" for d in (3, 10, 15, 20)), "broke down", "excess"),
                rows,
                "Right decimal digits of the weights (median over draws; none where a way broke down). At degree 20 also: the share of draws in which it broke down, and by how much the training loss exceeds the least one, in units of it"
                " (median; of the draws in which there are weights).",
                groups=(("", 2), ("right digits of the weights", 4), ("at degree 20", 2)),
            )
        ],
        pictures=[
            Picture(
                "digits",
                figure,
                "Medians over draws.",
                "Right decimal digits of the weights against the degree, for SVD, QR, Cholesky and LU, with features divided by i! and not.",
            )
        ],
    )


def _beyond(data: xr.Dataset) -> Section:
    found, few = peaks(data), [int(n) for n in data["few"].values]
    bases = [str(basis) for basis in data["basis"].values]
    figure, axes = plots.panels(len(few), width=11)
    for ax, rows in zip(axes, few, strict=True):
        own = {basis: data["far_test"].sel(basis=basis, few=rows).transpose("network", "far").values for basis in bases}
        plots.bands(ax, data["far"].values, own)
        low = float(data["noise_floor"]) / 3
        ax.set_ylim(low, 1e3 * max(np.median(own["Hermite"], axis=0).max(), 1))
        ax.set_yscale("log")
        ax.axvline(rows - 1, color="black", linewidth=1, linestyle="--")
        ax.set(title=f"{rows} training rows", xlabel="degree")
    axes[0].set_ylabel("test loss")
    plots.legend(axes[-1], loc="lower right")
    table = []
    for basis in bases:
        for rows in few:
            medians = data["far_test"].sel(basis=basis, few=rows).median("network")
            top, factor = found[basis, rows].degree, found[basis, rows].factor
            table.append(
                (
                    basis,
                    f"{rows}",
                    *(f"{float(medians.sel(far=d)):.3g}" for d in (3, rows - 1, 2 * rows, int(data["far"][-1]))),
                    f"{top}",
                    f"{factor:.3g}",
                )
            )
    verdicts = [
        f"{basis}, {rows} rows: the peak is at degree {top}{f' (from degree {since} on the median is within a factor of 1.2 of it)' if since < top else ''}, and "
        + (
            f"at degree {int(data['far'][-1])} the median is lower by a factor of {factor:.3g}{'' if falls else ', though not surely'}"
            if factor > 2
            else "there is no second descent"
            if factor < 1.01
            else f"beyond it the median is nearly flat (lower by a factor of {factor:.3g})"
        )
        for (basis, rows), (top, since, factor, falls) in found.items()
    ]
    return Section(
        "As many coefficients as rows, and more",
        [
            f"On {listed([str(n) for n in few])} rows, up to degree {int(data['far'][-1])}. Where there are more coefficients than rows many polynomials pass through all rows, and the shortest weights are taken; which these are depends on the features. Double descent would be a test loss that is largest where"
            " coefficients and rows are equal in number (degree + 1 = rows, dashed) and falls beyond.",
            f"{'; '.join(verdicts)}. Hermite polynomials divided by the root of i! are orthonormal for these inputs.",
        ],
        tables=[
            Table(
                (
                    "features",
                    "rows",
                    "degree 3",
                    "degree rows − 1",
                    "degree 2 · rows",
                    f"degree {int(data['far'][-1])}",
                    "degree of the peak",
                    "factor below it at the end",
                ),
                table,
                "Medians of the exact fits' test losses; the last column: by which factor the last degree's median is below the peak's.",
            )
        ],
        pictures=[
            Picture(
                "beyond",
                figure,
                "Median and middle 90% of the exact fits; curves may leave the picture at its upper edge. Dashed: as many coefficients as rows.",
                f"Test loss of exact fits on {listed([str(n) for n in few])} rows against the degree up to 40, for three sets of features, with the interpolation threshold.",
            )
        ],
    )
