"""The page of the study ``hidden_symmetries``: every sentence is computed from the dataset or the summary."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy import stats

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table, listed
from jaxsym.symmetry.certify import GAP

NAMES = {"input": "inputs", "width": "width", "depth": "depth"}
INPUTS = {"data": "the training inputs", "anywhere": "random inputs"}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [
        _fractions(data, summary),
        _reasons(data),
        _training(data),
        _generalisation(data, summary),
    ]


def _fractions(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = [str(name) for name in data["architecture"].values]
    fractions = {name: summary[f"fraction_{name}"] for name in names}
    known = data.sel(architecture=[name for name in names if fractions[name] is not None])
    series = {along: _series(known, along) for along in NAMES}
    drawn = [along for along in ("depth", "width", "input") if series[along]]
    pictures = []
    if drawn:
        figure, axes = plots.panels(len(drawn), columns=3, width=11)
        for ax, along in zip(axes, drawn, strict=True):
            _draw(ax, data, summary, along, series[along])
        pictures = [
            Picture(
                "fractions",
                figure,
                "Bars: 95 % intervals (Wilson). One hidden width throughout; lines join networks that differ in one thing.",
                "Fraction of networks that reach the bound, against depth, width and input dimension: "
                + "; ".join(f"{name} {_number(fractions[name])}" for name in names)
                + ".",
            )
        ]
    rows = []
    for name in names:
        own = _clear(data, name)
        bound = int(data["bound"].sel(architecture=name))
        low, high = _interval(data, name)
        rows.append(
            (
                name.replace("_", "-"),
                str(int(data["parameters"].sel(architecture=name))),
                str(bound),
                str(own.sizes["network"]),
                _number(fractions[name]),
                f"{low:.3f} to {high:.3f}",
                f"{_mean(bound - own['dimension']):.2f}",
                str(int(own["dimension"].min())) if own.sizes["network"] else "",
            )
        )
    unclear = summary["networks_without_clear_rank"]
    return Section(
        "Which networks reach the bound?",
        [
            "Rescaling a hidden ReLU unit changes no output, so the outputs depend on at most P minus hidden units of the P parameters: the rank"
            " of the Jacobian of the outputs over many inputs by the parameters, the functional dimension, is at most that. Where it is"
            " less, the network has further, hidden symmetries to first order. Here: He normal kernels, biases of standard deviation 0.3,"
            " 100 P inputs of standard deviation 2.",
            *(_trend(data, summary, along, series[along]) for along in drawn),
            f"The bound is exceeded {summary['bound_violations']} times by the {data.sizes['network']} networks and the"
            f" {2 * data['training_cost'].size} measurements during training. The ranks are clear: the smallest kept singular value is"
            f" at least {summary['smallest_gap']:.1e} times the largest dropped one."
            if not unclear
            else f"The bound is exceeded {summary['bound_violations']} times. {unclear} ranks have no clean gap (less than {GAP:g}, the"
            f" smallest {summary['smallest_gap']:.1e}); they are left out of every fraction and mean at initialisation"
            + (f": networks {', '.join(map(str, _unclear(data)))}." if _unclear(data) else "."),
        ],
        tables=[
            Table(
                (
                    "architecture",
                    "parameters",
                    "bound",
                    "networks",
                    "reach it",
                    "95 % interval",
                    "mean shortfall",
                    "smallest rank",
                ),
                rows,
                "Widths from input to output.",
            )
        ],
        pictures=pictures,
    )


def _series(data: xr.Dataset, along: str) -> list[list[str]]:
    """Architectures of one hidden width that differ in one of input, width and depth only; at least two a series."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name in data["architecture"].values:
        own = data.sel(architecture=name)
        if int(own["width"]):
            others = tuple(int(own[NAMES[other]]) for other in NAMES if other != along)
            found.setdefault((*others, int(own["outputs"])), []).append(str(name))
    place = {str(name): int(data[NAMES[along]].sel(architecture=name)) for name in data["architecture"].values}
    return [sorted(series, key=lambda name: place[name]) for series in found.values() if len(series) > 1]


def _draw(ax: Axes, data: xr.Dataset, summary: Mapping[str, Any], along: str, series: Sequence[Sequence[str]]) -> None:
    others = [other for other in NAMES if other != along]
    for i, group in enumerate(series):
        values = np.array([summary[f"fraction_{name}"] for name in group])
        bars = np.abs(np.array([_interval(data, name) for name in group]).reshape(-1, 2).T - values)
        own = data.sel(architecture=group[0])
        label = ", ".join(f"{other} {int(own[NAMES[other]])}" for other in others)
        x = [int(data[NAMES[along]].sel(architecture=name)) for name in group]
        style = "-" if i < len(plots.COLOURS) else "--"
        ax.errorbar(
            x, values, bars, fmt="o" + style, color=plots.COLOURS[i % len(plots.COLOURS)], capsize=2, label=label
        )
    ax.set(
        xlabel={"depth": "hidden layers", "width": "hidden width", "input": "input dimension"}[along],
        ylabel="fraction that reaches the bound",
        ylim=(-0.03, 1.03),
    )
    ax.set_xticks(
        sorted({int(value) for group in series for value in data[NAMES[along]].sel(architecture=group).values})
    )
    plots.legend(ax)


def _trend(data: xr.Dataset, summary: Mapping[str, Any], along: str, series: Sequence[Sequence[str]]) -> str:
    """How often the fraction rises and falls from one architecture to the next of a series."""
    pairs = [(one, other) for group in series for one, other in itertools.pairwise(group)]
    signs = {pair: _difference(data, *pair) for pair in pairs}
    up, down = ([pair for pair, sign in signs.items() if sign == wanted] for wanted in (1, -1))
    step = {"depth": "more hidden layers", "width": "wider hidden layers", "input": "more inputs"}[along]
    expected = {
        "depth": "falls with depth",
        "width": "grows with width",
        "input": "grows with the input dimension",
    }[along]
    against, agrees = (up, down) if along == "depth" else (down, up)
    text = (
        f"From one network to the next with {step} and all else equal, the fraction rises in {len(up)} of {len(pairs)} comparisons,"
        f" falls in {len(down)} and does not change for certain in {len(pairs) - len(up) - len(down)} (Fisher's exact test at 5 %)."
        f" Grigsby, Lindsey and Rolnick (2023) found that it {expected}: "
    )
    if not against:
        return text + ("so it does here." if agrees else "nothing here speaks for it or against it.")
    said = [f"{one.replace('_', '-')} to {other.replace('_', '-')}" for one, other in against]
    text += f"here it is the other way round from {listed(said)}"
    if along == "width":
        wider = [data.sel(architecture=other) for _, other in against]
        if all(int(own["width"]) > int(own["inputs"]) for own in wider):
            text += ", all of them to layers wider than the input"
        square = data["architecture"].values[(data["width"] == data["inputs"]).values]
        if len(square) > 1:
            text += ". Where hidden layers are as wide as the input: " + ", ".join(
                f"{str(name).replace('_', '-')} {_number(summary[f'fraction_{name}'])}" for name in square
            )
    return text + "."


def _difference(data: xr.Dataset, one: str, other: str) -> int:
    """1 where the fraction of the other architecture is certainly larger, -1 smaller, 0 neither."""
    table = []
    for name in (one, other):
        reached = (_clear(data, name)["dimension"] == data["bound"].sel(architecture=name)).values
        table.append((int(reached.sum()), int((~reached).sum())))
    if stats.fisher_exact(table).pvalue >= 0.05:
        return 0
    (a, b), (c, d) = table
    return 1 if c * (a + b) > a * (c + d) else -1


def _reasons(data: xr.Dataset) -> Section:
    names = [str(name) for name in data["architecture"].values]
    parts: dict[str, list[float]] = {"silent parameters": [], "always-on units": [], "anything else": []}
    counts = dict.fromkeys(("short", "dead", "always_on", "silent", "none"), 0)
    reaching = 0
    rows = []
    total = np.zeros(3)
    for name in names:
        own = _clear(data, name)
        bound = int(data["bound"].sel(architecture=name))
        short = (bound - own["dimension"]).values
        by = [own["by_silent"].values, own["by_always_on"].values]
        by.append(short - by[0] - by[1])
        for part, values in zip(parts.values(), by, strict=True):
            part.append(_mean(values))
        total += [values.sum() for values in by]
        flaws = {flaw: own[flaw].values > 0 for flaw in ("dead", "always_on", "silent")}
        flawed = flaws["dead"] | flaws["always_on"] | flaws["silent"]
        counts["short"] += int((short > 0).sum())
        counts["none"] += int(((short > 0) & ~flawed).sum())
        for flaw, has in flaws.items():
            counts[flaw] += int(((short > 0) & has).sum())
        reaching += int(((short <= 0) & flawed).sum())
        rows.append(
            (
                name.replace("_", "-"),
                f"{_mean(own['dead']):.2f}",
                f"{_mean(own['always_on']):.2f}",
                f"{_mean(own['silent']):.2f}",
                *(f"{_mean(values):.2f}" for values in by),
            )
        )
    num_short = max(counts["short"], 1)
    shares = total / max(total.sum(), 1)
    figure, (ax,) = plots.panels(1, width=9, height=0.3 * len(names) + 1.2)
    left = np.zeros(len(names))
    for colour, (reason, lost) in zip(plots.COLOURS, parts.items(), strict=False):
        ax.barh([name.replace("_", "-") for name in names], lost, left=left, color=colour, label=reason)
        left += lost
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="dimensions below the bound, mean over the networks")
    plots.legend(ax)
    return Section(
        "What the shortfall is made of",
        [
            "Three things take dimensions away. A silent parameter moves no output at any input: everything around a dead unit, which is"
            " active nowhere, and connections between units that are never active together. Units of a layer that are always on are linear:"
            " the next layer undoes a shift of their biases and any change of basis among them. The rest are coincidences of more units, such"
            " as one that is only active where those that it reads are all linear. The directions of the first two are known in closed"
            " form, so that the rank of their span says how many there are.",
            f"Of all dimensions that are missing, {shares[0]:.0%} are silent parameters, {shares[1]:.0%} always-on units and"
            f" {shares[2]:.0%} neither. {counts['short']} networks fall short of the bound: {counts['dead'] / num_short:.0%} of them"
            f" have a dead unit, {counts['always_on'] / num_short:.0%} one that is always on, {counts['silent'] / num_short:.0%} a silent"
            f" parameter, {counts['none']} none of these.",
            f"The other way round, {reaching} networks reach the bound with a dead, an always-on or a silent one"
            + (": any of them suffices to miss it." if reaching == 0 else "."),
        ],
        tables=[
            Table(
                (
                    "architecture",
                    "dead units",
                    "always on",
                    "silent parameters",
                    "lost to silent",
                    "to always-on",
                    "to anything else",
                ),
                rows,
                "Means over the networks; the last three columns add up to the shortfall.",
            )
        ],
        pictures=[
            Picture(
                "shortfall",
                figure,
                "Mean number of dimensions below the bound, by reason.",
                "Mean shortfall by architecture: "
                + "; ".join(f"{row[0]} {row[4]} silent, {row[5]} always on, {row[6]} else" for row in rows)
                + ".",
            )
        ],
    )


def _training(data: xr.Dataset) -> Section:
    starts = [str(start) for start in data["start"].values]
    labels = {start: f"{start} (x {float(data['scale'].sel(start=start)):g})" for start in starts}
    figure, axes = plots.panels(6, columns=3, width=11)
    shown = (
        ("trained_dimension_data", "functional dimension, training inputs"),
        ("trained_dimension_anywhere", "functional dimension, random inputs"),
        ("trained_dead_data", "dead units, training inputs"),
        ("distinct_directions", "distinct units, to within 0.1"),
        ("training_cost", "training cost (nats)"),
        ("test_error", "test error"),
    )
    for ax, (name, title) in zip(axes, shown, strict=True):
        plots.bands(ax, data["step"].values, {labels[s]: data[name].sel(start=s).values for s in starts}, share=0.5)
        for colour, start in zip(plots.COLOURS, starts, strict=False):
            ax.plot(data["step"], data[name].sel(start=start).mean("trained"), ":", color=colour)
        ax.set(title=title, xlabel="iteration")
    for ax, ceiling in zip(axes, ("trained_bound_data", "trained_bound"), strict=False):
        ax.axhline(float(data[ceiling]), color="black", linewidth=1, linestyle="--")
    plots.legend(axes[-1])

    def moves(name: str, start: str, form: str = ".1f") -> str:
        values = data[name].sel(start=start)
        return f"{float(values.isel(step=0).mean()):{form}} to {float(values.isel(step=-1).mean()):{form}}"

    sentences = []
    for start in starts:
        change = {
            where: (data[f"trained_dimension_{where}"].isel(step=-1) - data[f"trained_dimension_{where}"].isel(step=0))
            .sel(start=start)
            .values
            for where in INPUTS
        }
        sentences.append(
            f"Start {labels[start]}, means: functional dimension on the training inputs {moves('trained_dimension_data', start)}"
            f" ({_moved(change['data'])}), on random inputs {moves('trained_dimension_anywhere', start)}"
            f" ({_moved(change['anywhere'])}); dead units on the training inputs {moves('trained_dead_data', start, '.2f')}, always-on"
            f" {moves('trained_always_on_data', start, '.2f')}; distinct units {moves('distinct_units', start, '.2f')}, or"
            f" {moves('distinct_directions', start, '.2f')} where units within 0.1 of one another count as one; test error"
            f" {moves('test_error', start, '.3f')}."
        )
    bound, on_data, parameters = (int(data[f"trained_{kind}"]) for kind in ("bound", "bound_data", "parameters"))
    name = str(data["trained_widths"].values).replace("_", "-")
    return Section(
        "During training",
        [
            f"{data.sizes['trained']} networks {name} from each of two starts learn who survived the Titanic, with Adam for"
            f" {int(data['step'][-1])} iterations: parameters as above ('{starts[0]}'), and the same multiplied by"
            f" {float(data['scale'].sel(start=starts[-1])):g} ('{starts[-1]}'). The bound is {bound} of {parameters} parameters"
            + (f", and {on_data} on the training inputs, whose columns are dependent" if on_data < bound else "")
            + ". Units are"
            " distinct when they read in different directions: a rescaling does not make another unit.",
            *sentences,
        ],
        pictures=[
            Picture(
                "training",
                figure,
                "Median over networks, with the middle 50 %; dotted: mean; dashed: the bound.",
                "Functional dimension, dead units, distinct units, cost and test error over the iterations. "
                + " ".join(sentences),
            )
        ],
    )


def _generalisation(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    starts = [str(start) for start in data["start"].values]
    end = data.isel(step=-1)
    figure, axes = plots.panels(2)
    sentences = []
    for ax, (where, text) in zip(axes, INPUTS.items(), strict=True):
        for colour, start in zip(plots.COLOURS, starts, strict=False):
            own = end.sel(start=start)
            ax.scatter(
                own[f"trained_dimension_{where}"],
                own["test_error"],
                s=14,
                alpha=0.6,
                color=colour,
                label=start,
                linewidths=0,
            )
            rho, p = summary[f"spearman_{where}_{start}"], summary[f"p_value_{where}_{start}"]
            sentences.append(
                f"start {start}, {text}: does not vary"
                if rho is None
                else f"start {start}, {text}: {rho:+.2f} (p = {p:.2g})"
            )
        ax.set(xlabel=f"functional dimension on {text}", ylabel="test error")
        plots.legend(ax, title="start")
    every = end.stack(network_of=("start", "trained"), create_index=False)
    least = every.isel(network_of=int(every["trained_dimension_data"].values.argmin()))
    found = [
        summary[f"p_value_{where}_{start}"]
        for where in INPUTS
        for start in starts
        if summary[f"p_value_{where}_{start}"] is not None
    ]
    below = sum(p < 0.05 / max(len(found), 1) for p in found)
    verdict = (
        f"Of {len(found)} correlations {below} {'is' if below == 1 else 'are'} significant at 5 % when the number of tests is allowed for"
        + (
            ": among these networks the final functional dimension says nothing certain about the test error."
            if below == 0
            else "."
        )
    )
    return Section(
        "Functional dimension against test error",
        [
            "Spearman's rank correlation over the networks, at the end of training: " + "; ".join(sentences) + ".",
            verdict,
            f"The smallest functional dimension on the training inputs at the end is {int(least['trained_dimension_data'])}, of a network"
            f" from start {least['start'].item()} with test error {float(least['test_error']):.3f}; the median test error is"
            f" {float(end['test_error'].median()):.3f}.",
        ],
        pictures=[
            Picture(
                "test_error",
                figure,
                "One dot a network, at the end of training; darker where several lie on one another.",
                "Test error against functional dimension; rank correlations: " + "; ".join(sentences) + ".",
            )
        ],
    )


def _moved(change: np.ndarray) -> str:
    return f"up in {int((change > 0).sum())} networks, down in {int((change < 0).sum())}"


def _clear(data: xr.Dataset, name: str) -> xr.Dataset:
    """The networks of an architecture whose rank is clear."""
    return data.isel(network=((data["widths"] == name) & (data["gap"] >= GAP)).values)


def _unclear(data: xr.Dataset) -> list[str]:
    """The others, of all architectures, by architecture and number."""
    bad = data.isel(network=(data["gap"] < GAP).values)
    return [f"{number} ({name})" for number, name in zip(bad["network"].values, bad["widths"].values, strict=True)]


def _interval(data: xr.Dataset, name: str) -> tuple[float, float]:
    """Of the fraction that reaches the bound, 95 %."""
    own = _clear(data, name)
    if not own.sizes["network"]:
        return 0.0, 1.0
    reached = int((own["dimension"] == data["bound"].sel(architecture=name)).sum())
    found = stats.binomtest(reached, own.sizes["network"]).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if np.size(values) else 0.0


def _number(value: float | None) -> str:
    return "unclear" if value is None else f"{value:.3f}"
