"""The headline figures of the study ``dropout``, and what they say of its claims."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxsym.studies.dropout_network import AVERAGES, CHAPTER, MEASURES, TOGETHER
from jaxsym.studies.study import Claim, above, agreed, below, interval, listed, refuted, run_counts


def claims(figures: Mapping[str, Any]) -> list[Claim]:
    """What the text and its exercises say, what was measured, and whether it holds."""
    swap, longer = ([figures[f"swap_effect{end}"], *figures[f"swap_effect{end}_interval"]] for end in ("", "_longer"))
    interaction, interaction_loss = (
        [figures[key], *figures[f"{key}_interval"]] for key in ("interaction", "interaction_loss")
    )
    ratios = {(layer, way): figures[f"variance_ratio_{layer}_{way}"] for way in ("on", "off") for layer in (1, 2)}
    one, many = (f"probabilities_{figures[f'{end}_masks']}" for end in ("fewest", "most"))
    return [
        (
            "A lower rate near the input is better than the same rates swapped.",
            f"swapping raises the test error by {points(swap)} points, after longer training by {points(longer)}.",
            above(swap),
        ),
        (
            "Dropout lowers the test error.",
            f"it changes by {points(figures['chapter_error_change'])} points, the test loss by {nats(figures['chapter_loss_change'])} nats.",
            below(figures["chapter_error_change"]),
        ),
        (
            "Dropout narrows the gap between training and test.",
            f"the gap of the losses changes by {nats(figures['gap_change'])} nats"
            + ("." if figures["chapter_loss_change"][2] < 0 else ", though the test loss is no lower."),
            below(figures["gap_change"]),
        ),
        (
            "In longer training dropout overfits less.",
            f"the test loss ends above its least along the way by {nats(figures['longer_rise_none'])} nats without dropout and by {nats(figures['longer_rise_dropout'])} with it, {nats(figures['longer_rise_difference'])} apart.",
            below(figures["longer_rise_difference"]),
        ),
        *(
            (
                f"What dropout and weight decay do to the test {what} adds up.",
                f"dropout alone {form(figures[f'{key}_dropout_alone'])}, decay alone {form(figures[f'{key}_decay_alone'])}, both {form(figures[f'{key}_both'])} {unit}; interaction {form(term)}: "
                + ("no departure from a sum beyond chance." if around(term) else "not a sum."),
                None if around(term) else False,
            )
            for what, key, form, unit, term in (
                ("error", "interaction", points, "points", interaction),
                ("loss", "interaction_loss", nats, "nats", interaction_loss),
            )
        ),
        (
            "Dropout left on at test hurts.",
            f"with one mask the test error changes by {points(figures[f'on_error_{one}'])} points, the loss by {nats(figures[f'on_loss_{one}'])} nats.",
            agreed([above(figures[f"on_{key}_{one}"]) for key in ("error", "loss")]),
        ),
        (
            "Averaged over many masks, dropout left on is better than off.",
            f"with {figures['most_masks']} masks the test error changes by {points(figures[f'on_error_{many}'])} points, the loss by {nats(figures[f'on_loss_{many}'])} nats.",
            agreed([below(figures[f"on_{key}_{many}"]) for key in ("error", "loss")]),
        ),
        (
            "Dropout lowers the variance of the activations.",
            "times "
            + listed(
                [
                    f"{moved(ratio)} in layer {layer}, {'as trained' if way == 'on' else 'dropout off'}"
                    for (layer, way), ratio in ratios.items()
                ]
            )
            + ".",
            agreed([below(ratio, 1) for ratio in ratios.values()]),
        ),
    ]


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures; errors in percentage points, losses in nats."""
    grid = {key: data[f"grid_{key}"] for key in MEASURES}

    def at(key: str, pair: tuple[float, float]) -> np.ndarray:
        return grid[key].sel(first=pair[0], second=pair[1]).values.astype(float)

    def end(key: str, length: str, step: int) -> np.ndarray:
        return data[f"long_{key}"].sel(length=length, step=step).values.astype(float)

    def least(length: str) -> np.ndarray:
        return data["long_test_loss"].sel(length=length).min("step").values.astype(float)

    none, steps, last = (0.0, 0.0), data.attrs["steps"], int(data["step"][-1])
    figures: dict[str, Any] = {}
    for key, name in (("test_error", "swap_effect"), ("test_loss", "swap_effect_loss")):
        short, long = at(key, CHAPTER[::-1]) - at(key, CHAPTER), end(key, "swapped", last) - end(key, "dropout", last)
        figures[name], *figures[f"{name}_interval"] = interval(short)
        figures[f"{name}_longer"], *figures[f"{name}_longer_interval"] = interval(long)
    gaps = {pair: at("test_loss", pair) - at("train_loss", pair) for pair in (none, CHAPTER)}
    rise = {name: end("test_loss", name, last) - least(name) for name in ("none", "dropout")}
    figures |= {
        "gap_change": interval(gaps[CHAPTER] - gaps[none]),
        "chapter_error_change": interval(at("test_error", CHAPTER) - at("test_error", none)),
        "chapter_loss_change": interval(at("test_loss", CHAPTER) - at("test_loss", none)),
        "longer_rise_none": interval(rise["none"]),
        "longer_rise_dropout": interval(rise["dropout"]),
        "longer_rise_difference": interval(rise["dropout"] - rise["none"]),
        "longer_error_difference": interval(end("test_error", "dropout", last) - end("test_error", "none", last)),
    }
    figures |= _remedies(data, {key: at(key, none) for key in MEASURES})
    figures |= _interaction(data, figures["weight_decay_chosen"])
    figures |= _left_on(data, {key: at(key, CHAPTER) for key in MEASURES})
    spread = data["variance"].sel(step=steps)
    for layer in data["layer"].values:
        plain = spread.sel(length="none", layer=layer, disturbed=False).values
        for disturbed, name in ((False, "off"), (True, "on")):
            own = spread.sel(length="dropout", layer=layer, disturbed=disturbed).values
            live = (own > 0) & (plain > 0)  # where not all units are off
            found = interval(np.log(own[live] / plain[live])) if live.sum() > 1 else [np.nan] * 3
            figures[f"variance_ratio_{layer}_{name}"] = [float(np.exp(v)) for v in found]
    return {**figures, "claims_that_failed": refuted(claims(figures)), **run_counts(data)}


def _remedies(data: xr.Dataset, none: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Each remedy at the strength with the least validation loss, beside no remedy."""
    figures: dict[str, Any] = {}

    def described(name: str, found: Mapping[str, np.ndarray], beside: Mapping[str, np.ndarray]) -> None:
        figures[f"{name}_test_loss"] = interval(found["test_loss"])
        figures[f"{name}_test_error"] = interval(found["test_error"])
        figures[f"{name}_gap"] = interval(found["test_loss"] - found["train_loss"])
        figures[f"{name}_loss_change"] = interval(found["test_loss"] - beside["test_loss"])
        figures[f"{name}_error_change"] = interval(found["test_error"] - beside["test_error"])

    described("none", none, none)
    described("early_stopping", {key: data[f"stopped_{key}"].values.astype(float) for key in MEASURES}, none)
    for remedy in data["remedy"].values:
        name = identifier(str(remedy))
        tuned = {key: data[f"tuned_{key}"].sel(remedy=remedy).values.astype(float) for key in MEASURES}
        place = int(np.nan_to_num(tuned["validation_loss"].mean(axis=1), nan=np.inf).argmin())
        figures[f"{name}_chosen"] = float(data["strength"].sel(remedy=remedy)[place])
        described(name, {key: values[place] for key, values in tuned.items()}, none)
    members, keys = data.attrs["members"], ("train_loss", "test_loss", "train_error", "test_error")
    groups = data.sizes["group"]
    single = {key: none[key][: groups * members].reshape(groups, members).mean(axis=1) for key in keys}
    described("ensemble", {key: data[f"ensemble_{key}"].values.astype(float) for key in keys}, single)
    return figures


def _interaction(data: xr.Dataset, decay: float) -> dict[str, Any]:
    """What decay does with dropout, less what it does without, at each decay and at the one chosen for decay alone."""
    figures: dict[str, Any] = {"interaction_decay": decay}
    strengths = data["strength"].sel(remedy=TOGETHER).values
    place = int(np.flatnonzero(strengths == decay)[0])
    for key, name in (("test_error", "interaction"), ("test_loss", "interaction_loss")):
        alone, both = (
            data[f"tuned_{key}"].sel(remedy=remedy).values.astype(float) for remedy in ("weight decay", TOGETHER)
        )
        grid = data[f"grid_{key}"]
        none, dropped = (grid.sel(first=one, second=two).values.astype(float) for one, two in ((0, 0), CHAPTER))
        terms = (both - alone) - (dropped - none)
        figures[name], *figures[f"{name}_interval"] = interval(terms[place])
        figures[f"{name}_by_decay"] = [interval(term)[0] for term in terms]
        figures[f"{name}_low_by_decay"] = [interval(term)[1] for term in terms]
        figures[f"{name}_high_by_decay"] = [interval(term)[2] for term in terms]
        figures[f"{name}_decay_alone"] = interval((alone - none)[place])
        figures[f"{name}_dropout_alone"] = interval(dropped - none)
        figures[f"{name}_both"] = interval((both - none)[place])
    return figures


def _left_on(data: xr.Dataset, off: Mapping[str, np.ndarray]) -> dict[str, Any]:
    masks = data["masks"].values
    figures: dict[str, Any] = {"fewest_masks": int(masks[0]), "most_masks": int(masks[-1])}
    for key in ("loss", "error"):
        figures[f"off_{key}"] = float(off[f"test_{key}"].mean())
        for average in AVERAGES:
            for num in masks:
                on = data[f"masked_{key}"].sel(average=average, masks=num).values.astype(float)
                figures[f"on_{key}_{average}_{num}"] = interval(on - off[f"test_{key}"])
    return figures


def identifier(name: str) -> str:
    """A remedy's name as part of a key of the summary."""
    return name.replace(" ", "_").lower()


def around(found: Sequence[float]) -> bool:
    """Whether an interval contains 0."""
    return found[1] <= 0 <= found[2]


def moved(found: Sequence[float]) -> str:
    """A factor with its interval."""
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def nats(found: Sequence[float]) -> str:
    """A change of a loss with its interval."""
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def points(found: Sequence[float]) -> str:
    """A change of an error with its interval."""
    return f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"
