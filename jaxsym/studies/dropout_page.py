"""The page of the study ``dropout``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxsym import plots
from jaxsym.studies.dropout_summary import around, claims, moved, nats, points
from jaxsym.studies.study import Picture, Section, Table, claims_table, listed, tally

WHAT = {
    "none": "no remedy",
    "early_stopping": "early stopping",
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "noise_on_inputs": "noise on inputs",
    "dropout": "dropout",
    "dropconnect": "DropConnect",
    "gaussian_noise": "Gaussian noise on units",
    "dropout_and_decay": "dropout and decay",
    "ensemble": "an ensemble",
}
LINES = {"none": "no dropout", "dropout": "0.2, then 0.5", "swapped": "0.5, then 0.2"}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _claims(data, summary),
        _rates(data, summary),
        _longer(data, summary),
        _variance(data, summary),
        _decay(data, summary),
        _left_on(data, summary),
        _remedies(data, summary),
    ]


def _claims(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    found = claims(summary)
    train, validation, test = (int(n) for n in data["rows"].values)
    return Section(
        "What is claimed, and whether it holds",
        [
            f"Perceptrons with two hidden ReLU layers of {data.attrs['width']} units on {data.attrs['data']}: {train} training rows, {validation} for validation, {test} for the test; {data.attrs['steps']} steps of SGD,"
            f" longer training {int(data['step'][-1])}. {data.sizes['network']} networks for each setting, with the same starts and batches for all settings.",
            f"{tally(found)} Numbers in brackets are 95 % t intervals over networks, of paired differences; they know of starts, batches and masks, but of one division of the data only."
            " A claim holds when its whole interval is on its side, and does not when it is on the other (an interval that contains 0 is no proof of a sum). Unless it is said otherwise, dropout has the chapter's rates 0.2 and 0.5, and is off when it is measured.",
        ],
        tables=[claims_table(found, "Errors in percentage points, losses in nats.")],
    )


def _rates(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, axes = plots.panels(2, width=11, height=3.6)
    names = [f"{rate:g}" for rate in data["first"].values]
    for ax, key, label, form in zip(
        axes, ("error", "loss"), ("test error (%)", "test loss (nats)"), (".1f", ".2f"), strict=True
    ):
        tiles = data[f"grid_test_{key}"].mean("network").values
        top = min(tiles.max(), 1.6 * tiles.min())  # so that a ruined corner does not take all colours
        texts = [[f"{value:{form}}" for value in row] for row in tiles]
        image = plots.heat_map(ax, tiles, names, names, limits=(tiles.min(), top), texts=texts)
        figure.colorbar(image, ax=ax, extend="max" if top < tiles.max() else "neither")
        ax.set(title=label, xlabel="rate of the second layer", ylabel="rate of the first layer")
    means = data["grid_test_error"].mean("network")
    place = np.unravel_index(int(means.values.argmin()), means.shape)
    best = [float(data[name][i]) for name, i in zip(("first", "second"), place, strict=True)]
    effects = {
        when: [summary[f"swap_effect{end}"], *summary[f"swap_effect{end}_interval"]]
        for when, end in (
            ("error", ""),
            ("error, longer training", "_longer"),
            ("loss", "_loss"),
            ("loss, longer training", "_loss_longer"),
        )
    }
    clear = [f"{when}: {'higher' if found[0] > 0 else 'lower'}" for when, found in effects.items() if not around(found)]
    verdict = (
        f"Beyond chance, swapped ({listed(clear)}); for the other measures below the interval contains 0."
        if 0 < len(clear) < len(effects)
        else f"Beyond chance, swapped ({listed(clear)})."
        if clear
        else "Which comes first makes no difference that these networks could show."
    )
    return Section(
        "Rates for each layer, and swapped",
        [
            f"Swapping 0.2 and 0.5 changes the test error by {points(effects['error'])} percentage points. {verdict}"
            f" Of the grid the least test error is at {best[0]:g} and {best[1]:g}, {float(means.min()):.2f} %; without dropout it is {float(means[0, 0]):.2f} %. (The least of {means.size} has luck in it.)",
        ],
        tables=[
            Table(
                ("swapping changes the test", "mean", "95 % interval", "networks in which it is worse"),
                [
                    (when, f"{found[0]:+.3f}", f"{found[1]:+.3f} to {found[2]:+.3f}", _worse(data, when))
                    for when, found in effects.items()
                ],
                "Errors in percentage points, losses in nats; rates (0.5, 0.2) less rates (0.2, 0.5), the same starts and batches.",
            )
        ],
        pictures=[
            Picture(
                "rates",
                figure,
                "Means over networks, at the end of the ordinary training.",
                f"Test error and test loss for rates {listed(names)} of the first layer by those of the second; the least error is at {best[0]:g} and {best[1]:g}.",
            )
        ],
    )


def _worse(data: xr.Dataset, when: str) -> str:
    key, _, long = when.partition(", ")
    if long:
        last = data[f"long_test_{key}"].isel(step=-1)
        change = last.sel(length="swapped") - last.sel(length="dropout")
    else:
        grid = data[f"grid_test_{key}"]
        change = grid.sel(first=0.5, second=0.2) - grid.sel(first=0.2, second=0.5)
    return f"{int((change > 0).sum())} of {change.size}"


def _longer(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, axes = plots.panels(3, width=13, columns=3)
    shown = {"train_loss": "training loss (nats)", "test_loss": "test loss (nats)", "test_error": "test error (%)"}
    for ax, (key, label) in zip(axes, shown.items(), strict=True):
        series = {
            LINES[str(name)]: data[f"long_{key}"].sel(length=name).values[:, 1:] for name in data["length"].values
        }
        plots.bands(ax, data["step"].values[1:], series)
        ax.axvline(data.attrs["steps"], color="black", linewidth=0.8, linestyle="--")
        ax.set(xlabel="step", ylabel=label)
    plots.logarithmic(axes[0], "y")
    plots.legend(axes[0])
    last, steps = int(data["step"][-1]), data.attrs["steps"]
    rows = [
        (
            LINES[str(name)],
            *(
                f"{float(data[f'long_{key}'].sel(length=name, step=step).mean()):.3g}"
                for key in shown
                for step in (steps, last)
            ),
        )
        for name in data["length"].values
    ]
    learned = {name: float(data["long_train_loss"].sel(length=name, step=steps).mean()) for name in ("none", "dropout")}
    difference, error = summary["longer_rise_difference"], summary["longer_error_difference"]
    verdict = (
        "it rises less with dropout"
        if difference[2] < 0
        else "it rises more with dropout"
        if difference[1] > 0
        else "one cannot tell them apart"
    )
    return Section(
        "Longer training",
        [
            f"At step {last} the test loss is above its least along the way by {nats(summary['longer_rise_none'])} nats without dropout and by {nats(summary['longer_rise_dropout'])} with it,"
            f" {nats(difference)} apart: {verdict}. At step {steps} the training loss is {learned['none']:.3g} without dropout and {learned['dropout']:.3g} with it{', which has not learned as much by then: part of what dropout changes there is that it learns more slowly' if learned['dropout'] > 2 * learned['none'] else ''}. At step {last} the test error with dropout is {points(error)} points from that without.",
        ],
        tables=[
            Table(
                ("dropout", *(f"step {step}" for _ in shown for step in (steps, last))),
                rows,
                "Means over networks.",
                groups=[("", 1), *((label, 2) for label in shown.values())],
            )
        ],
        pictures=[
            Picture(
                "longer",
                figure,
                f"Median over networks, with the middle 90 %. Dashed: where the ordinary training ends, at step {steps}.",
                "Training loss, test loss and test error along longer training, without dropout and with it in both orders of the rates.",
            )
        ],
    )


def _variance(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    figure, axes = plots.panels(2, width=11)
    lines = {
        "no dropout": ("none", False),
        "dropout, off when measured": ("dropout", False),
        "dropout, as trained": ("dropout", True),
    }
    for ax, layer in zip(axes, data["layer"].values, strict=True):
        series = {
            label: data["variance"].sel(length=length, layer=layer, disturbed=on).values[:, 1:]
            for label, (length, on) in lines.items()
        }
        plots.bands(ax, data["step"].values[1:], series)
        ax.set(title=f"hidden layer {layer}", xlabel="step", ylabel="variance of the activations")
        plots.logarithmic(ax, "y")
    plots.legend(axes[0])
    found = [
        f"{moved(summary[f'variance_ratio_{layer}_{way}'])} in layer {layer}"
        for way in ("off", "on")
        for layer in (1, 2)
    ]
    return Section(
        "The variance of the activations",
        [
            f"Over the training rows, in the mean over the units of a layer. At step {data.attrs['steps']}, as multiples of what networks without dropout have: with dropout off for the measurement {found[0]} and {found[1]};"
            f" as it trains, masks and the factor 1 / (1 - rate) included, {found[2]} and {found[3]}.",
            "A mask adds rate / (1 - rate) times the mean square of an activation to its variance: 0.25 of it in layer 1, once in layer 2.",
        ],
        pictures=[
            Picture(
                "variance",
                figure,
                "Median over networks, with the middle 90 %.",
                "Variance of the activations of both hidden layers along training, without dropout, with dropout off when measured, and with dropout as it trains.",
            )
        ],
    )


def _decay(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    decays = data["strength"].sel(remedy="weight decay").values
    grid = data["grid_test_error"]
    none, dropped = (grid.sel(first=one, second=two).values for one, two in ((0, 0), (0.2, 0.5)))
    figure, (left, right) = plots.panels(2, width=11)
    series = {
        name: data["tuned_test_error"].sel(remedy=name).values.T for name in ("weight decay", "dropout and decay")
    }
    plots.bands(left, decays, series)
    for values, name, style in ((none, "neither", ":"), (dropped, "dropout alone", "--")):
        left.axhline(float(np.median(values)), color="black", linewidth=1, linestyle=style, label=name)
    left.set(xlabel="weight decay", ylabel="test error (%)")
    plots.legend(left)
    middle, low, high = (np.array(summary[f"interaction{end}_by_decay"]) for end in ("", "_low", "_high"))
    right.errorbar(decays, middle, [middle - low, high - middle], fmt="o", color=plots.COLOURS[0], capsize=3)
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="weight decay", ylabel="interaction (percentage points)")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(list(decays), [f"{decay:g}" for decay in decays])
        ax.minorticks_off()
    interaction = [summary["interaction"], *summary["interaction_interval"]]
    loss = [summary["interaction_loss"], *summary["interaction_loss_interval"]]
    sums = [
        sum(summary[f"{name}_{alone}_alone"][0] for alone in ("dropout", "decay"))
        for name in ("interaction", "interaction_loss")
    ]

    def verdict(found: Sequence[float], total: float, form: str) -> str:
        if around(found):
            return "its interval contains 0, which is no proof of a sum"
        return f"together they are {'worse' if found[0] > 0 else 'better'} than the sum of what each does alone, {total:{form}}"

    rows = [
        (label, points(summary[f"interaction_{key}"]), nats(summary[f"interaction_loss_{key}"]))
        for label, key in (("dropout alone", "dropout_alone"), ("weight decay alone", "decay_alone"), ("both", "both"))
    ]
    rows.append(("interaction", points(interaction), nats(loss)))
    return Section(
        "With weight decay",
        [
            f"Two by two: none, dropout, weight decay ({summary['interaction_decay']:g}, chosen for decay alone by the validation loss), both. The interaction is what decay does beside dropout less what it does without:"
            f" (both - decay) - (dropout - none). For the test error it is {points(interaction)} points: {verdict(interaction, sums[0], '+.2f')}. For the test loss it is {nats(loss)} nats: {verdict(loss, sums[1], '+.3f')}.",
            f"At {sum(not (a < 0 < b) for a, b in zip(low, high, strict=True))} of the {len(decays)} decays that were tried the interval of the error's interaction does not contain 0 (each at 95 %).",
        ],
        tables=[
            Table(
                ("", "test error, change (points)", "test loss, change (nats)"),
                rows,
                "Beside neither; means over networks with 95 % intervals.",
            )
        ],
        pictures=[
            Picture(
                "decay",
                figure,
                "Left: median and middle 90 % of the networks. Right: mean over networks with its 95 % interval.",
                f"Test error against weight decay with and without dropout, and their interaction, {interaction[0]:+.2f} points at the chosen decay.",
            )
        ],
    )


def _left_on(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    masks = data["masks"].values
    figure, axes = plots.panels(2, width=11)
    for ax, key, label in zip(axes, ("loss", "error"), ("test loss (nats)", "test error (%)"), strict=True):
        series = {f"mean {name}": data[f"masked_{key}"].sel(average=name).values for name in data["average"].values}
        plots.bands(ax, masks, series)
        ax.axhline(
            float(data[f"grid_test_{key}"].sel(first=0.2, second=0.5).median()),
            color="black",
            linewidth=1,
            linestyle="--",
            label="off",
        )
        ax.set(xlabel="masks", ylabel=label)
        plots.logarithmic(ax, "x")
        ax.set_xticks(list(masks), [str(num) for num in masks])
        ax.minorticks_off()
    plots.legend(axes[0])
    rows = [
        (
            str(num),
            *(
                form(summary[f"on_{key}_{name}_{num}"])
                for name in ("probabilities", "logits")
                for key, form in (("loss", nats), ("error", points))
            ),
        )
        for num in masks
    ]
    better = [str(num) for num in masks if summary[f"on_loss_probabilities_{num}"][2] < 0]
    return Section(
        "Dropout left on at test",
        [
            f"Off, the networks have {summary['off_loss']:.3f} nats and {summary['off_error']:.2f} % test error. Left on, a mask is drawn for every row, and predictions are averaged over masks, by their probabilities or by their logits. "
            + (
                f"By the mean of probabilities the loss is lower than off with {listed(better)} masks."
                if better
                else "With no number of masks is the loss lower than off beyond chance."
            ),
        ],
        tables=[
            Table(
                ("masks", "loss", "error", "loss", "error"),
                rows,
                "What is different from dropout off: nats and percentage points, means over networks with 95 % intervals.",
                groups=[("", 1), ("mean of probabilities", 2), ("mean of logits", 2)],
            )
        ],
        pictures=[
            Picture(
                "left_on",
                figure,
                "Median over networks, with the middle 90 %; dashed: the median with dropout off.",
                f"Test loss and error against the number of masks that are averaged, {masks[0]} to {masks[-1]}, beside dropout turned off.",
            )
        ],
    )


def _remedies(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    strengths = {
        str(name).replace(" ", "_").lower(): data["strength"].sel(remedy=name).values for name in data["remedy"].values
    }
    order = sorted(WHAT, key=lambda name: summary[f"{name}_test_error"][0])
    rows = []
    for name in order:
        chosen = (
            f"{summary[f'{name}_chosen']:g}"
            if name in strengths
            else str(data.attrs["members"])
            if name == "ensemble"
            else ""
        )
        changes = (
            ("", "")
            if name == "none"
            else (points(summary[f"{name}_error_change"]), nats(summary[f"{name}_loss_change"]))
        )
        ends = [
            f"{summary[f'{name}_test_error'][0]:.2f}",
            f"{summary[f'{name}_test_loss'][0]:.3f}",
            f"{summary[f'{name}_gap'][0]:.3f}",
        ]
        rows.append((WHAT[name], chosen, *ends, *changes))
    better = [WHAT[name] for name in order if name != "none" and summary[f"{name}_error_change"][2] < 0]
    worse = [WHAT[name] for name in order if name != "none" and summary[f"{name}_error_change"][1] > 0]
    calmer = [WHAT[name] for name in order if name != "none" and summary[f"{name}_loss_change"][2] < 0]
    edges = [WHAT[name] for name, values in strengths.items() if summary[f"{name}_chosen"] in (values[0], values[-1])]
    shown = [name for name in order if name != "none"]
    figure, (left, right) = plots.panels(2, width=12, height=4.2)
    for ax, key, label in (
        (left, "error", "test error, change (percentage points)"),
        (right, "loss", "test loss, change (nats)"),
    ):
        for row, name in enumerate(shown):
            middle, low, high = summary[f"{name}_{key}_change"]
            ax.errorbar(middle, row, xerr=[[middle - low], [high - middle]], fmt="o", capsize=3, color=plots.COLOURS[0])
        ax.axvline(0, color="black", linewidth=1)
        ax.set_yticks(range(len(shown)), [WHAT[name] for name in shown])
        ax.set(xlabel=label, ylim=(len(shown) - 0.4, -0.6))
        ax.locator_params(axis="x", nbins=6)
    values = len(next(iter(strengths.values())))
    return Section(
        "All remedies",
        [
            f"Dropout, DropConnect, Gaussian noise (the factor of a unit is normal, with dropout's variance; all three with 0.4 of the second layer's rate in the first), noise added to inputs, weight decay, label smoothing, and decay beside dropout:"
            f" {values} strengths each, the one with the least mean validation loss is taken, and only its test figures are looked at. DropConnect has one mask for all rows of a batch, on the weights that leave each hidden layer, and is off at test. Early stopping takes the record with the least validation"
            f" loss of {_records(data)}. An ensemble is the mean of the probabilities of {data.attrs['members']} networks without remedy, beside the mean of the same networks one by one; there are {data.sizes['group']} such groups without a common member.",
            (
                f"A lower test error than without remedy beyond chance: {listed(better)}."
                if better
                else "No remedy lowers the test error beyond chance."
            )
            + (f" A higher one: {listed(worse)}." if worse else "")
            + (f" A lower test loss: {listed(calmer)}." if calmer else " No remedy lowers the test loss beyond chance.")
            + (
                f" At an end of the strengths that were tried, so that another might do better: {listed(edges)}."
                if edges
                else ""
            ),
        ],
        tables=[
            Table(
                (
                    "remedy",
                    "strength",
                    "test error (%)",
                    "test loss (nats)",
                    "gap (nats)",
                    "change of the error (points)",
                    "change of the loss (nats)",
                ),
                rows,
                "In the order of the test error. Means over networks, and paired changes with 95 % intervals; the gap is test loss less training loss. Strengths: rates of the second layer, deviations of the noise on inputs, factors of the decay (beside dropout at 0.2 and 0.5 in the"
                " last kind), the share of a label that is spread, networks.",
            )
        ],
        pictures=[
            Picture(
                "remedies",
                figure,
                "Paired changes beside no remedy: means over networks (over groups for the ensemble), with 95 % intervals.",
                f"Changes of test error and test loss by {len(shown)} remedies with their intervals; {WHAT[order[0]]} has the least error.",
            )
        ],
    )


def _records(data: xr.Dataset) -> str:
    return f"{int((data['step'] <= data.attrs['steps']).sum())} records along the training"
