"""The page of the study ``weight_decay``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, claims_table, interval, listed, tally
from jaxsym.studies.weight_decay_summary import (
    FEW_ROWS,
    at_chosen,
    chosen,
    claims,
    gap,
    hindsight,
    on_axis,
    regret,
    said,
    without,
)


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _claims(data),
        _strengths(data, summary),
        _sparsity(data, summary),
        _choice(data),
        _pairs(data),
        _exactness(data, summary),
    ]


def _penalties(data: xr.Dataset) -> list[str]:
    return [str(name) for name in data["penalty"].values]


def _strength_axis(ax: Axes, data: xr.Dataset) -> np.ndarray:
    """Equal steps from strength to strength, 0 first; of the others every third is named."""
    strengths = data["strength"].values
    places = np.arange(len(strengths))
    named = [0, *range(4, len(strengths), 3)]
    ax.set_xticks(named, [f"{strengths[place]:.3g}" for place in named])
    ax.set_xlabel("strength λ")
    return places


def _claims(data: xr.Dataset) -> Section:
    found = claims(data)
    features = data.sizes["feature"]
    true = int((data["true_weights"].values[0] != 0).sum())
    return Section(
        "What is claimed, and what was measured",
        [
            f"Linear regression without an intercept: {features} normal inputs, of which {true} have a weight between 0.5 and 1.5 in size and the others none, noise of variance {float(data['noise_variance']):.3g}, {listed([str(n) for n in data['size'].values])} training rows,"
            f" {data.sizes['draw']} draws. Minimised is half the mean squared error plus λ |w|₁ (L1), λ |w|²/2 (L2), or half of each (both). Errors on this page are mean squared errors without the half and without the penalty; the test error is the expected one, |w − w*|² plus the variance of the noise, which is exact for such inputs.",
            f"The strength λ is 0 or one of {data.sizes['strength'] - 1} from {float(data['strength'][1]):g} to {float(data['strength'][-1]):g}; it is chosen by the error on {int(data['validation_rows'])} validation rows, for each draw and penalty. Figures are means over draws with their 95% intervals (Student's t), medians where that is said.",
            tally(found),
        ],
        tables=[
            claims_table(
                found,
                "The claims of the chapter and its exercises (Zhang, Lipton, Li, Smola, Dive into Deep Learning).",
            )
        ],
    )


def _strengths(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    sizes, penalties = [int(n) for n in data["size"].values], _penalties(data)
    figure, axes = plots.panels(len(sizes) * 2, width=12, height=2.8, columns=len(sizes))
    floor = float(data["noise_variance"])
    for row, (name, label) in enumerate((("test_error", "test error"), ("train_error", "training error"))):
        for column, size in enumerate(sizes):
            ax = axes[row * len(sizes) + column]
            places = _strength_axis(ax, data)
            plots.bands(
                ax, places, {p: np.maximum(data[name].sel(size=size, penalty=p).values, 1e-8) for p in penalties}
            )
            ax.set_ylim((floor / 2 if name == "test_error" else 1e-6), 20)
            ax.set_yscale("log")
            ax.axhline(floor, color="black", linewidth=1, linestyle="--")
            if row == 0:
                ax.set_title(f"{size} rows")
                ax.set_xlabel("")
        axes[row * len(sizes)].set_ylabel(label)
    plots.legend(axes[len(sizes)], loc="lower right")
    rows = []
    for size in sizes:
        rows.append((f"{size}", "none", "0", *_errors(data, None, size)))
        for penalty in penalties:
            taken = chosen(data).sel(size=size, penalty=penalty).values
            middle = float(np.median(data["strength"].values[taken]))
            rows.append((f"{size}", penalty, f"{middle:.3g}", *_errors(data, penalty, size)))
    lower = without(data, "test_error") - at_chosen(data, "test_error", "L2")
    smaller = gap(data, None) - gap(data, "L2")
    more = at_chosen(data, "train_error", "L2") - without(data, "train_error")
    if interval(smaller)[1] <= 0:
        verdict = "L2 does not surely make the gap smaller"
    elif interval(lower)[1] > 0:
        verdict = f"L2 makes the gap smaller, and the test error lower by {said(lower)}"
    else:
        verdict = f"L2 makes the gap smaller by {said(smaller)}, but not because it predicts better: the training error is higher by {said(more)}, and so is the test error, by {said(-lower)}"
        if interval(lower)[2] >= 0:
            verdict = f"L2 makes the gap smaller by {said(smaller)}, but the test error is not surely lower (by {said(lower)}); the training error is higher by {said(more)}"
    helped = {
        size: interval(without(data, "test_error", size) - at_chosen(data, "test_error", "L2", size))[1] > 0
        for size in sizes
    }
    where = [f"{size}" for size, better in helped.items() if better]
    return Section(
        "Strength, training error and test error",
        [
            f"On {FEW_ROWS} rows the gap between test and training error is {summary['gap_none']:.3g} without a penalty, {summary['gap_l2']:.3g} with L2, {summary['gap_l1']:.3g} with L1 and {summary['gap_both']:.3g} with both. {verdict}. Of {data.sizes['feature']} directions the rows show"
            f" {FEW_ROWS}; L2 shrinks what they show and learns nothing of the others, which no penalty that treats all directions alike can. "
            + (
                f"L2 surely lowers the test error on {listed(where)} rows."
                if where
                else "L2 surely lowers the test error nowhere."
            ),
        ],
        tables=[
            Table(
                (
                    "rows",
                    "penalty",
                    "median λ",
                    "training error",
                    "test error",
                    "gap",
                    "norm on null features",
                    "zeros",
                ),
                rows,
                "At the strength chosen by validation; means over draws, the gap with its 95% interval. Null features have no part in the targets; zeros are weights smaller than 0.001.",
            )
        ],
        pictures=[
            Picture(
                "strengths",
                figure,
                "Median and middle 90% over draws. Dashed: the variance of the noise. Training errors below the lower edge are those of fits that pass through all rows.",
                f"Test and training error against the strength of L1, L2 and both, on {listed([str(n) for n in sizes])} training rows.",
            )
        ],
    )


def _errors(data: xr.Dataset, penalty: str | None, size: int) -> list[str]:
    def at(name: str) -> float:
        values = without(data, name, size) if penalty is None else at_chosen(data, name, penalty, size)
        return float(np.mean(values))

    return [
        f"{at('train_error'):.3g}",
        f"{at('test_error'):.4g}",
        said(gap(data, penalty, size)),
        f"{at('noise_norm'):.3g}",
        f"{at('zeros'):.1%}",
    ]


def _sparsity(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    penalties = _penalties(data)
    sizes = [int(n) for n in data["size"].values]
    path = sizes[min(1, len(sizes) - 1)]
    figure, axes = plots.panels(4, width=11, height=3.0)
    for ax, (name, label) in zip(
        axes, (("zeros", "% of weights that are 0"), ("noise_norm", "norm on null features")), strict=False
    ):
        places = _strength_axis(ax, data)
        factor = 100 if name == "zeros" else 1
        plots.bands(ax, places, {p: factor * data[name].sel(size=FEW_ROWS, penalty=p).values for p in penalties})
        ax.set(title=f"{FEW_ROWS} rows", ylabel=label)
    plots.legend(axes[0])
    true = data["true_weights"].values[0] != 0
    for ax, penalty in zip(axes[2:], ("L1", "L2"), strict=True):
        places = _strength_axis(ax, data)
        own = data["path"].sel(size=path, penalty=penalty).values
        ax.plot(places, own[:, ~true], color=plots.COLOURS[7], linewidth=0.5, alpha=0.6)
        ax.plot(places, own[:, true], color=plots.COLOURS[1], linewidth=1.5)
        ax.set(title=f"{penalty}, {path} rows, one draw", ylabel="weight")
    missed = {size: float(np.mean(at_chosen(data, "true_zeros", "L1", size))) for size in sizes}
    kept = {size: float(np.mean(at_chosen(data, "noise_norm", "L1", size))) for size in sizes}
    null = {p: float(np.mean(at_chosen(data, "noise_norm", p))) for p in penalties}
    least = min(null, key=lambda p: null[p])
    return Section(
        "Zeros, and weights of features that mean nothing",
        [
            f"{np.mean(~true):.0%} of the features have a true weight of 0. At the strength chosen by validation on {FEW_ROWS} rows {summary['zeros_l1']:.1%} of the learned weights are 0 (below 0.001) with L1, {summary['zeros_both']:.1%} with both and {summary['zeros_l2']:.1%} with L2 (there they are merely small). L1 also sets weights to 0 whose true value is not:"
            f" {listed([f'{share:.1%} of these on {size} rows' for size, share in missed.items()])}.",
            f"The norm of the weights on the {int(np.sum(~true))} null features on {FEW_ROWS} rows is {summary['noise_norm_none']:.3g} without a penalty, {listed([f'{value:.3g} with {p}' for p, value in null.items()])}: least with {least}. With L1 it is {listed([f'{value:.2g} on {size} rows' for size, value in kept.items()])}.",
        ],
        pictures=[
            Picture(
                "sparsity",
                figure,
                "Above: median and middle 90% over draws. Below: all weights of one draw; orange: the five true features, grey: the others.",
                "Share of zero weights and norm of the weights on null features against the strength, and the weights of one draw along L1 and L2.",
            )
        ],
    )


def _choice(data: xr.Dataset) -> Section:
    penalties, sizes = _penalties(data), [int(n) for n in data["size"].values]
    figure, axes = plots.panels(len(penalties), width=13, columns=3, height=3.8)
    names = [f"{value:.2g}" for value in data["strength"].values]
    for ax, penalty in zip(axes, penalties, strict=True):
        best, taken = (places.sel(size=FEW_ROWS, penalty=penalty).values for places in (hindsight(data), chosen(data)))
        counts = np.zeros((len(names), len(names)))
        np.add.at(counts, (best, taken), 1)
        image = plots.heat_map(ax, np.where(counts > 0, counts, np.nan), names, names, limits=(1, max(counts.max(), 2)))
        ax.set(title=penalty, xlabel="λ chosen by validation", ylabel="best λ in hindsight")
        figure.colorbar(image, ax=ax, label="draws", ticks=MaxNLocator(5, integer=True))
    spread, dots = plots.panels(len(penalties), width=13, columns=3, height=0.5 * len(sizes) + 1.4)
    for ax, penalty in zip(dots, penalties, strict=True):
        own = 100 * regret(data).sel(penalty=penalty)
        plots.distributions(ax, {f"{size} rows": own.sel(size=size).values for size in sizes})
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(-0.1, max(float(own.max()) * 1.5, 2))
        ax.set(title=penalty, xlabel="% above the best in hindsight")
    rows = []
    apart = abs(chosen(data) - hindsight(data))
    for penalty in penalties:
        for size in sizes:
            excess, steps = (v.sel(penalty=penalty, size=size).values for v in (regret(data), apart))
            rows.append(
                (
                    penalty,
                    f"{size}",
                    f"{np.mean(steps == 0):.0%}",
                    f"{np.mean(steps <= 1):.0%}",
                    f"{np.median(excess):.2%}",
                    f"{np.mean(excess):.2%}",
                    f"{np.quantile(excess, 0.95):.2%}",
                )
            )
    l2 = regret(data).sel(penalty="L2", size=FEW_ROWS).values
    same = float(np.mean(apart.sel(penalty="L2", size=FEW_ROWS).values == 0))
    return Section(
        "The strength chosen by validation, and the best in hindsight",
        [
            f"{int(data['validation_rows'])} validation rows choose, the expected error of a new row judges; regret is by how much the error at the chosen strength is above the least of all strengths.",
            f"How often validation chooses the very strength that is best in hindsight says little by itself: with L2 on {FEW_ROWS} rows it does in {same:.0%} of the draws, and the regret is {np.median(l2):.2%} in the median and {np.quantile(l2, 0.95):.1%} or less in 95% of them"
            + (": many strengths are nearly alike there." if same < 0.5 and np.median(l2) < 0.01 else "."),
        ],
        tables=[
            Table(
                ("penalty", "rows", "same strength", "same or next", "median regret", "mean regret", "95% are below"),
                rows,
                f"Over {data.sizes['draw']} draws.",
            )
        ],
        pictures=[
            Picture(
                "choice",
                figure,
                f"{FEW_ROWS} training rows; numbers of draws, grey where there are none. On the diagonal validation has chosen what is best in hindsight.",
                "Heat maps of the best strength in hindsight against the strength chosen by validation, for L1, L2 and both.",
            ),
            Picture(
                "regret",
                spread,
                "A dot is a draw, the bar the median; the axis is linear up to 1% and logarithmic beyond.",
                "Regret of the strength chosen by validation for every draw, by penalty and number of training rows.",
            ),
        ],
    )


def _pairs(data: xr.Dataset) -> Section:
    hessian, centre = data["pair_hessian"].values[0], data["pair_centre"].values[0]
    figure, axes = plots.panels(2, width=8, height=4.2)
    first, second = np.meshgrid(np.linspace(-0.6, 1.3, 120), np.linspace(-0.5, 2.1, 120))
    apart = np.stack([first - centre[0], second - centre[1]], axis=-1)
    loss = np.einsum("...i,ij,...j->...", apart, hessian, apart) / 2
    angles = np.linspace(0, 2 * np.pi, 201)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    rows = []
    for ax, penalty, order in zip(axes, ("L1", "L2"), (1, 2), strict=True):
        path = data["pair"].sel(pair_penalty=penalty).isel(draw=0).values
        ax.contour(
            first,
            second,
            loss,
            levels=[0.01, 0.05, 0.12, 0.25, 0.45, 0.7, 1.0, 1.4, 1.9],
            colors="#b0b4ba",
            linewidths=0.7,
        )
        for place in (12, 33):
            size = np.linalg.norm(path[place], order)
            ball = circle / np.linalg.norm(circle, order, axis=0) * size
            ax.plot(*ball, color=plots.COLOURS[2], linewidth=1)
        ax.plot(*path.T, "o-", color=plots.COLOURS[1], markersize=3, linewidth=1)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set(title=penalty, xlabel="first weight", ylabel="second weight", xlim=(-0.6, 1.3), ylim=(-0.5, 2.1))
        ax.set_aspect("equal")
        some, share = on_axis(data, penalty)
        zero = (path == 0).any(axis=1) & ~(path == 0).all(axis=1)
        own = f"λ = {data['fraction'].values[zero][0]:.3g} of the largest" if zero.any() else "never"
        rows.append((penalty, own, f"{some:.1%}", f"{share:.1%}"))
    return Section(
        "Two weights",
        [
            f"The picture of the text, by the same training: the minimum of a quadratic loss in two weights with a growing penalty. For the loss that is drawn, and over {data.sizes['draw']} losses with random curvature and minimum (this one among them). A weight counts as 0 only where it is exactly that, in float64.",
            f"The minimum with L1 is on an axis at some strength in {rows[0][2]} of the losses, with L2 in {rows[1][2]}. The diamond has corners, and where the contours touch a corner they do so for a whole range of strengths ({rows[0][3]} of all that were tried); the circle has none.",
        ],
        tables=[
            Table(
                ("penalty", "this loss: first on an axis at", "losses ever on an axis", "of all strengths"),
                rows,
                "Strengths are from 0 to the least at which L1 leaves nothing, both ends excluded.",
            )
        ],
        pictures=[
            Picture(
                "pairs",
                figure,
                "Grey: contours of the loss. Orange: the minimum as the penalty grows, from the loss's own minimum towards 0. Green: the diamond or circle that passes through two of the minima.",
                "Contours of a quadratic loss in two weights with the path of the minimum under L1, which reaches an axis and follows it, and under L2, which does not.",
            )
        ],
    )


def _exactness(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    worst, ridge = data["residual"], data["ridge_error"]
    rows = [
        (
            f"{int(size)}",
            *(f"{float(worst.sel(size=size, penalty=p).max()):.1e}" for p in _penalties(data)),
            f"{float((worst.sel(size=size) < 1e-6).mean()):.1%}",
            f"{float(ridge.sel(size=size).isel(strength=0).max()):.1e}",
            f"{float(ridge.sel(size=size).isel(strength=slice(1, None)).max()):.1e}",
        )
        for size in data["size"].values
    ]
    slow = [str(int(n)) for n in data["size"].values if float(ridge.sel(size=n).isel(strength=0).max()) > 1e-6]
    loose = (worst.max("draw") > 1e-6).any("size")
    where = [
        f"{p} up to λ = {float(data['strength'].values[loose.sel(penalty=p).values].max()):.2g}"
        for p in _penalties(data)
        if loose.sel(penalty=p)[1:].any()
    ]
    where += ["no penalty"] if loose.isel(strength=0).any() else []
    identities = [
        (
            str(shape),
            *(f"{float(data['trace_error'].sel(shape=shape, identity=i).max()):.1e}" for i in data["identity"].values),
        )
        for shape in data["shape"].values
    ]
    return Section(
        "How near the minimum, and the norm as a trace",
        [
            f"Training is in float64. At a minimum the slope of the smooth part is −λ sign(w) where w is not 0, and at most λ in size where it is (both times the share of L1): the largest violation, in units of the largest slope at zero weights, is {summary['residual_max']:.1e} over all networks and {summary['residual_median']:.1e} in the median."
            + (
                f" Violations above 1e-6 occur with {listed(where)}, where training has not quite ended."
                if where
                else ""
            ),
            f"With L2 the weights differ from the closed form by at most {summary['ridge_error_max']:.1e} of their norm. Without any penalty the closed form is the shortest of all best weights, which is where training from zero leads"
            + (
                f"; on {listed(slow)} rows it has not come there (the last columns): the loss is too flat along some directions, and the errors without a penalty are those of a run that was cut short."
                if slow
                else "."
            ),
            f"|W|² (Frobenius) = tr WᵀW = the sum of the squared singular values, and its half has the gradient W: on {data.sizes['matrix']} random matrices of each shape the largest relative error is {summary['trace_error_max']:.1e}, {'rounding' if summary['trace_error_max'] < 1e-12 else 'more than rounding'}.",
        ],
        tables=[
            Table(
                ("rows", *_penalties(data), "below 1e-6", "λ = 0", "λ > 0"),
                rows,
                "Largest violation of the conditions of a minimum over draws and strengths, the share of networks in which it is below 1e-6, and the largest relative distance of L2's weights from the closed form.",
                groups=(("", 1), ("violation", len(_penalties(data)) + 1), ("distance from the closed form", 2)),
            ),
            Table(
                ("shape", *(f"error of the {i}" for i in data["identity"].values)),
                identities,
                "Largest relative errors against the sum of squared entries, and the largest absolute error of an entry of the gradient.",
            ),
        ],
    )
