"""How many laws does training keep? Counted by a black box that sees gradients alone, by the charges of the group, and by formula."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxsym.dynamics import charges, find_laws
from jaxsym.models import MLP
from jaxsym.studies.conservation_laws_page import page
from jaxsym.studies.study import Clock, Progress, Study, chosen
from jaxsym.symmetry.count import conservation_laws
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry

ROWS = 3
SHOWN = 4  # laws of each network that are kept as text
NO_FORMULA = -1


class Case(NamedTuple):
    """A network whose laws are counted.

    ``make(key)`` draws parameters; ``apply(params, x)``; ``shape`` is that of one data set's inputs, ``outputs`` of its targets. ``loss`` is of outputs and
    targets. ``formula`` is the number of independent laws that a paper says, where one does.
    """

    make: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array], Array]
    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    loss: Callable[[Array, Array], Array]
    formula: int = NO_FORMULA

    def sample(self, key: Array) -> tuple[PyTree, tuple[Array, Array]]:
        """Random parameters and data."""
        params, inputs, targets = jax.random.split(key, 3)
        return self.make(params), (jax.random.normal(inputs, self.shape), jax.random.normal(targets, self.outputs))

    def cost(self, params: PyTree, data: tuple[Array, Array]) -> Float[Array, ""]:
        """The loss on one data set."""
        return self.loss(self.apply(params, data[0]), data[1])

    def group(self) -> Symmetry:
        """Of the loss, which is never smaller than that of the network."""
        params, data = self.sample(jax.random.key(0))
        return discover(self.cost, params, data)


def _squares(outputs: Array, targets: Array) -> Array:
    return jnp.sum((outputs - targets) ** 2)


def _cross_entropy(outputs: Array, targets: Array) -> Array:
    return -jnp.sum(jax.nn.softmax(targets) * jax.nn.log_softmax(outputs))


def _normal(shapes: PyTree) -> Callable[[Array], PyTree]:
    """A sampler of normal parameters of these shapes."""
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def make(key: Array) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.normal(key, shape) for key, shape in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    return make


def _mlp(
    widths: Sequence[int],
    activation: str,
    *,
    use_bias: bool = False,
    loss: Callable[[Array, Array], Array] = _squares,
    formula: int | None = None,
) -> Case:
    net = MLP(tuple(widths[1:]), activation, use_bias)
    found = conservation_laws(widths, activation) if formula is None else formula

    def make(key: Array) -> PyTree:  # shapes are asked for here: an import must not start JAX
        shapes = jax.eval_shape(net.init, key, jax.ShapeDtypeStruct((ROWS, widths[0]), jnp.float32))
        return _normal(jax.tree.map(lambda leaf: leaf.shape, shapes))(key)

    return Case(make, net.apply, (ROWS, widths[0]), (ROWS, widths[-1]), loss, found)


def _attended(params: PyTree, x: Array) -> Array:
    weights = jax.nn.softmax((x @ params["q"]) @ (x @ params["k"]).T)
    return weights @ (x @ params["v"]) @ params["o"]


def _summed(params: PyTree, x: Array) -> Array:
    return jnp.sin(x @ (params["w"][:2] + params["w"][2:]))


def cases() -> dict[str, Case]:
    """By name: linear ones as n, m, r of ``U (n, r) V (m, r)'``, others by widths."""
    linear = {
        f"linear n={n} m={m} r={r}": _mlp((n, r, m), "identity")
        for n, m, r in ((2, 2, 2), (1, 1, 3), (2, 2, 4), (2, 2, 5), (2, 2, 6))
    }
    attention = _normal(dict.fromkeys("qkvo", (2, 2)))
    return linear | {
        "linear 2-2-3-2": _mlp((2, 2, 3, 2), "identity"),
        "relu 2-3-2": _mlp((2, 3, 2), "relu"),
        "relu 2-3-2 with biases": _mlp((2, 3, 2), "relu", use_bias=True),
        "square 2-3-2": _mlp((2, 3, 2), "square", formula=NO_FORMULA),
        "tanh 2-3-1": _mlp((2, 3, 1), "tanh"),
        "tanh 2-2-3 softmax": _mlp((2, 2, 3), "tanh", use_bias=True, loss=_cross_entropy, formula=NO_FORMULA),
        "attention d=2": Case(attention, _attended, (ROWS, 2), (ROWS, 2), _squares),
        "sine of a sum of slices": Case(_normal({"w": (4, 1)}), _summed, (ROWS, 2), (ROWS, 1), _squares),
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the networks stay as they are."""

    kinds: str = ",".join(cases())
    """Which networks, separated by commas."""
    seed: int = 0
    """Of the parameters and data that are drawn."""

    def __post_init__(self) -> None:
        """Refuse names that there are not."""
        self.chosen()

    def chosen(self) -> dict[str, Case]:
        """The networks by name, in the order of the table."""
        return chosen(self.kinds, cases(), "kind")


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Count; see the attributes of the variables for what they hold."""
    found = config.chosen()
    clock = Clock(progress, len(found))
    rows: dict[str, dict[str, Any]] = {}
    for name, case in found.items():
        progress(name, clock.networks, clock.total)
        rows[name] = _counted(case, jax.random.key(config.seed))
        clock.networks += 1
    progress("counted", clock.networks, clock.total)
    variables: dict[str, Any] = {
        key: (("network",), np.array([row[key] for row in rows.values()]), {"long_name": text})
        for key, text in TEXTS.items()
    }
    variables["readable"] = (
        ("network", "law"),
        np.array([row["readable"] for row in rows.values()]),
        {"long_name": "the first laws, as text"},
    )
    return xr.Dataset(variables, coords={"network": list(found)}).assign(clock.variables())


TEXTS = {
    "parameters": "numbers in the parameters",
    "polynomials": "linearly independent conserved polynomials up to degree 2",
    "independent": "of these, functionally independent",
    "linear": "of these, linear",
    "charges": "charges of the discovered group",
    "independent_charges": "of these, functionally independent",
    "formula": "independent laws in closed form; -1 where there is none",
    "residual": "of the laws, at gradients that were not used to find them",
    "gap": "in the singular values",
}


def _counted(case: Case, key: Array) -> dict[str, Any]:
    found = find_laws(case.cost, case.sample, key)
    with jax.enable_x64(True):
        params, _ = case.sample(jax.random.fold_in(key, 1))
        at, back = ravel_pytree(params)
        kept = charges(case.group())
        slopes = np.asarray(jax.jacobian(lambda at: kept(back(at)))(at))
    return {
        "parameters": at.size,
        "polynomials": found.polynomials,
        "independent": found.independent,
        "linear": found.linear,
        "charges": len(kept),
        "independent_charges": int(np.linalg.matrix_rank(slopes)) if len(kept) else 0,
        "formula": case.formula,
        "residual": found.residual,
        "gap": found.gap,
        "readable": ([*found.readable] + [""] * SHOWN)[:SHOWN],
    }


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""
    independent = {
        str(name): int(value) for name, value in zip(data["network"].values, data["independent"].values, strict=True)
    }
    keys = {
        "linear_nmr_2_2_5": "linear n=2 m=2 r=5",
        "relu_2_3_2": "relu 2-3-2",
        "tanh_2_3_1": "tanh 2-3-1",
    }
    known = data["formula"].values != NO_FORMULA
    return {
        **{key: independent[name] for key, name in keys.items() if name in independent},
        "independent": list(independent.values()),
        "formula_agreement": float(np.mean((data["independent"] == data["formula"]).values[known])),
        "beyond_symmetry": int((data["independent"] > data["independent_charges"]).sum()),
        "residual": float(data["residual"].max()),
        "networks": int(data["networks"]),
    }


STUDY = Study(
    title="numbers of conservation laws: by a black box, by the group, by formula",
    config=Config(),
    quick=Config(kinds="linear n=2 m=2 r=5,relu 2-3-2,tanh 2-3-1"),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
