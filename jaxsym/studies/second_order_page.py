"""The page of the study ``second_order``: every sentence is computed from the dataset or the summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxsym import plots
from jaxsym.studies.study import Picture, Section, Table

SHOWN = {
    "loss": "loss",
    "gradient": "gradient",
    "hvp": "Hessian times vector",
    "ggn_vp": "Gauss-Newton times vector",
    "hessian": "full Hessian",
}
GROUPS = {  # of primitives, by colour
    "products": ("dot_general",),
    "shapes": (
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "convert_element_type",
        "expand_dims",
        "gather",
        "concatenate",
        "iota",
    ),
    "sums": ("reduce_sum", "reduce_max", "argmax"),
}


def page(data: xr.Dataset, summary: Mapping[str, Any]) -> list[Section]:
    """The sections, in the order in which one reads them."""
    return [_cost(data, summary), _memory(data, summary), _graph(data, summary), _by_hand(summary)]


def _cost(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    size = data["parameters"].values
    figure, (left, right) = plots.panels(2, width=11)
    for (name, label), colour in zip(SHOWN.items(), plots.COLOURS, strict=False):
        own = data["seconds"].sel(task=name).values
        left.plot(size, own, "o-", color=colour, label=label, markersize=3, linewidth=1)
        if name not in ("loss", "gradient", "hessian"):
            right.plot(
                size,
                own / data["seconds"].sel(task="gradient").values,
                "o-",
                color=colour,
                label=label,
                markersize=3,
                linewidth=1,
            )
    left.set(title="time", xlabel="parameters", ylabel="seconds, median")
    left.set_yscale("log")
    right.set(title="in units of the gradient", xlabel="parameters", ylim=(0, None))
    for ax in (left, right):
        ax.set_xscale("log")
        plots.legend(ax)
    crossover, largest = summary["crossover_parameters"], summary["largest_dense_parameters"]
    beyond = f", by extrapolation beyond the {largest} that were measured" if crossover and crossover > largest else ""
    ratios = (data["seconds"].sel(task="hvp") / data["seconds"].sel(task="gradient")).values
    return Section(
        "How long it takes",
        [
            f"A Hessian times a vector takes {summary['hvp_over_gradient']:.2f} gradients (median over sizes; {ratios.min():.2f} to {ratios.max():.2f} between {int(size[0])} and"
            f" {int(size[-1])} parameters), a Gauss-Newton product {summary['ggn_over_gradient']:.2f}, and a gradient {summary['gradient_over_loss']:.2f} times the loss. The full Hessian is"
            f" as many products as there are parameters: over the upper half of its sizes its time grows as P^{summary['hessian_exponent']:.2f}, that of one product as"
            f" P^{summary['hvp_exponent']:.2f}. At {summary['largest_dense_parameters']} parameters it takes as long as {summary['hessian_over_hvp']:.0f} products.",
            "Where some 60 products tell what is asked, as Krylov methods do for the extreme eigenvalues, they are the cheaper way"
            + (f" from about {crossover:.0f} parameters on{beyond}." if crossover else " at every size here."),
        ],
        pictures=[
            Picture(
                "cost",
                figure,
                "One hidden layer, 20 inputs and 10 outputs; the batch is the same for all sizes.",
                f"Time against the number of parameters on logarithmic axes, and products in units of the gradient: about {summary['hvp_over_gradient']:.1f} for the"
                f" Hessian's, while the full Hessian grows as P^{summary['hessian_exponent']:.1f}.",
            )
        ],
    )


def _memory(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    size = data["parameters"].values
    figure, (ax,) = plots.panels(1, width=6.5, height=4)
    for (name, label), colour in zip((SHOWN | {"prediction": "prediction"}).items(), plots.COLOURS, strict=False):
        if name != "loss":
            ax.plot(
                size,
                data["bytes"].sel(task=name).values / 2**20,
                "o-",
                color=colour,
                label=label,
                markersize=3,
                linewidth=1,
            )
    for name, style in (("prediction", ":"), ("training", "--")):
        ax.plot(
            size, data[f"formula_{name}"].values / 2**20, style, color="0.3", linewidth=1.2, label=f"formula, {name}"
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set(xlabel="parameters", ylabel="MiB")
    plots.legend(ax)
    dense = np.flatnonzero(np.isfinite(data["bytes"].sel(task="hessian").values))[-1]
    most = {name: float(data["bytes"].sel(task=name).values[dense]) for name in ("hessian", "gradient")}
    rows = [
        (
            f"{int(width)}",
            f"{int(parameters)}",
            *(
                text
                for task, formula in (("prediction", "formula_prediction"), ("gradient", "formula_training"))
                for text in (
                    f"{float(data[formula].sel(width=width)) / 2**20:.3f}",
                    f"{float(data['bytes'].sel(task=task, width=width)) / 2**20:.3f}",
                )
            ),
        )
        for width, parameters in zip(data["width"].values, size, strict=True)
    ]
    return Section(
        "How much memory",
        [
            "By counting what has to be kept, with n rows, d inputs, h hidden units and q outputs: prediction needs the parameters, P = (d + 1) h + (h + 1) q, and"
            " n (d + h + q) inputs, activations and outputs; training needs 2 P for parameters and gradients, n (d + 1) for inputs and labels, and 2 n (h + q)"
            " for activations, outputs and the gradients of both. Weight decay needs nothing more.",
            f"The compiled programs take {summary['memory_formula_ratio']:.2f} times the formula for the gradient (median over sizes) and"
            f" {summary['memory_formula_ratio_prediction']:.2f} times that for prediction: arguments, results and temporary memory, as XLA's own analysis has them.",
        ],
        tables=[
            Table(
                ("hidden units", "parameters", "formula", "compiled", "formula", "compiled"),
                rows,
                "MiB of float32.",
                groups=(("", 2), ("prediction", 2), ("training", 2)),
            )
        ],
        pictures=[
            Picture(
                "memory",
                figure,
                "Peak memory of the compiled programs, and what the formulas count.",
                f"Memory against the number of parameters: the gradient takes {summary['memory_formula_ratio']:.2f} times the formula, the full Hessian"
                f" {most['hessian'] / most['gradient']:.0f} times as much as the gradient where it was computed last.",
            )
        ],
    )


def _draw(ax: Axes, data: xr.Dataset, name: str, *, labelled: bool) -> None:
    """Equations as dots, one column for each depth, edges between; columns take turns at half a step, so that names have room."""
    depth, edges = data[f"{name}_depth"].values, data[f"{name}_edges"].values
    primitives = [str(primitive) for primitive in data[f"{name}_primitive"].values]
    height = np.zeros(len(depth))
    for level in np.unique(depth):
        inside = np.flatnonzero(depth == level)
        height[inside] = np.arange(len(inside)) - len(inside) // 2 + level % 2 / 2
    for before, after in edges:
        ax.plot(depth[[before, after]], height[[before, after]], color="0.75", linewidth=0.6, zorder=1)
    kind = [
        next((i for i, members in enumerate(GROUPS.values()) if primitive in members), len(GROUPS))
        for primitive in primitives
    ]
    for i, label in enumerate([*GROUPS, "elementwise"]):
        own = [j for j, k in enumerate(kind) if k == i]
        ax.scatter(
            depth[own],
            height[own],
            s=22 if labelled else 10,
            color=plots.COLOURS[i],
            label=label,
            zorder=2,
            linewidths=0,
        )
    if labelled:
        for x, y, primitive in zip(depth, height, primitives, strict=True):
            ax.annotate(plots.text(primitive), (x, y), fontsize=6, xytext=(0, 4), textcoords="offset points")
    ax.set(xlabel="depth", yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.12)


def _graph(data: xr.Dataset, summary: Mapping[str, Any]) -> Section:
    names = {"loss": "the loss", "gradient": "its gradient", "hvp": "Hessian times vector"}
    figure, axes = plots.panels(3, columns=1, width=12, height=3.6)
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        _draw(ax, data, name, labelled=name == "loss")
        ax.set_title(f"{title}: {summary[f'equations_{name}']} equations", fontsize=10)
    plots.legend(axes[0], loc="upper right", ncols=4)
    count = {name: summary[f"equations_{name}"] for name in ("loss", "gradient", "hvp", "third")}
    rows = [
        (label, f"{count[name]}", f"{int(data['depth'].sel(graph=name))}", f"{int(data['edges'].sel(graph=name))}")
        for name, label in (names | {"third": "third derivative along two vectors"}).items()
    ]
    return Section(
        "What happens to the graph",
        [
            f"The loss of one hidden layer is {count['loss']} equations. Its gradient is {count['gradient']}, {count['gradient'] / count['loss']:.1f} times as many: every equation"
            f" is transposed once and what it needs is kept. A product with the Hessian is {count['hvp']}, {count['hvp'] / count['gradient']:.1f} times the gradient's, and a third"
            f" derivative {count['third']}. Each differentiation multiplies by a constant, whatever the sizes of the layers."
        ],
        tables=[Table(("graph", "equations", "depth", "edges"), rows, "Of the jaxprs, sub-jaxprs inlined.")],
        pictures=[
            Picture(
                "graph",
                figure,
                "Every equation of the jaxpr by how long the longest chain before it is.",
                f"The computational graph of the loss ({count['loss']} equations), of its gradient ({count['gradient']}) and of a product with the Hessian"
                f" ({count['hvp']}), growing with each differentiation.",
            )
        ],
    )


def _by_hand(summary: Mapping[str, Any]) -> Section:
    error = summary["backpropagation_error"]
    return Section(
        "Backpropagation by hand",
        [
            "With z = x A + b, h = tanh(z), o = h B + c and weight decay on both kernels: do = (softmax(o) - y) / n; dB = h' do + decay B and dc = 1' do; dh = do B';"
            " dz = dh (1 - h^2); dA = x' dz + decay A and db = 1' dz.",
            f"Written as plain jnp (jaxsym.studies.second_order.backpropagation) this differs from jax.grad by at most {error:.1e} of the largest entry, in float64, over all sizes: "
            + ("rounding." if error < 1e-13 else "more than rounding."),
        ],
    )
