"""Every architecture of the tests on one page: its group, how much of its kernel the group explains, and what a black box finds beyond."""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree

from jaxsym.catalogue import find
from jaxsym.studies.architectures import CATALOGUE, FAMILIES, Architecture
from jaxsym.studies.study import Progress, Study, expect
from jaxsym.studies.symmetry_zoo_page import page
from jaxsym.symmetry import Factor, Symmetry, discover, lie_algebra, verify
from jaxsym.symmetry.algebra import num_unknowns
from jaxsym.symmetry.certify import GAP, LARGEST, RANK, Function, certify
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide

ALL = "all"
QUICK = "relu,tanh,square,swiglu,tied autoencoder,weight norm"
OUTPUTS = (2, 1500)  # of which a Jacobian is made: per parameter; and at least, of small architectures
SETS = 16  # of inputs, at least: the outputs of an image are many and alike
SPREAD = 2.0  # of the inputs, relative to those of the catalogue
SMALL = 100  # parameters
POINTS = (48, 8)  # at which kernels are compared where some of it is hidden: of small architectures, and of others
STRENGTHS = (1.0, 2.0)  # of the perturbation at the first of them, and at the others: saturation has to be reached
WORKERS = 2  # architectures under way at a time: one compiles while another is traced
SYMBOLS = {
    "permutation": "S_{}",
    "sign": "Z_2^{}",
    "scaling": "R_+^{}",
    "general_linear": "GL({})",
    "orthogonal": "O({})",
    "phase": "Z^{}",
    "translation": "R^{}",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen; the architectures themselves stay as they are."""

    architectures: str = ALL
    """Names separated by commas, or all."""
    algebra: bool = True
    """Whether the black-box Lie algebra is compared."""
    unknowns: int = 1600
    """Unknowns of the Lie algebra, at most: its time grows with their cube."""
    seed: int = 0
    """Of parameters, inputs and elements."""

    def __post_init__(self) -> None:
        """Refuse names that are no architecture, and numbers out of range."""
        names = chosen(self.architectures)
        for name in names:
            find(CATALOGUE, name, "architecture")
            if names.count(name) > 1:
                msg = f"architectures: {name} is there {names.count(name)} times; name each once."
                raise ValueError(msg)
        if self.unknowns < 1:
            msg = f"unknowns: got {self.unknowns}, expected at least 1; --no-algebra leaves the comparison out."
            raise ValueError(msg)
        expect(self)


def chosen(names: str) -> list[str]:
    """The names of a config.

    >>> chosen("relu, fused attention")
    ['relu', 'fused attention']
    """
    return list(CATALOGUE) if names == ALL else [name.strip() for name in names.split(",")]


def written(factors: Iterable[Factor]) -> str:
    """Factors in short, like ones together: ``S_4 × S_5 × R_+^4``, or ``GL(3)^2`` for two heads.

    >>> sign, permutation = (Factor(kind, 4, 3, (), (3, 4), (0, 1)) for kind in ("sign", "permutation"))
    >>> written([sign, permutation, permutation])
    '(Z_2^4)^3 × S_4^6'
    """
    powers: collections.Counter[tuple[str, int]] = collections.Counter()
    for factor in factors:
        powers[factor.kind, factor.size] += factor.copies
    parts = []
    for (kind, size), power in powers.items():
        symbol = SYMBOLS[kind].format(size).removesuffix("^1")
        raised = f"({symbol})" if "^" in symbol else symbol
        parts.append(symbol if power == 1 else f"{raised}^{power}")
    return " × ".join(parts) or "1"


class Row(NamedTuple):
    """What is found about one architecture; NaN where there is no number, and a sentence that says why."""

    family: str
    unavailable: str = ""
    group: str = ""
    order: str = ""
    dim: float = math.nan
    parameters: float = math.nan
    residual_float64: float = math.nan
    residual_float32: float = math.nan
    tolerance_float64: float = math.nan
    tolerance_float32: float = math.nan
    kernel: float = math.nan
    orbit: float = math.nan
    hidden: float = math.nan
    on_data: float = math.nan
    gap: float = math.nan
    points: float = math.nan
    hidden_in: str = ""
    not_certified: str = ""
    unknowns: float = math.nan
    algebra_dim: float = math.nan
    algebra_orbit: float = math.nan
    missing: float = math.nan
    not_compared: str = ""
    seconds: float = math.nan


MEANING = {
    "family": "group of architectures on the page",
    "unavailable": "why there is nothing about it; empty where there is",
    "group": "product of the factors",
    "order": "number of elements of the finite factors, in digits",
    "dim": "Lie dimension of the continuous factors",
    "parameters": "numbers in the floating leaves",
    "residual_float64": "worst relative change of an output under random elements, in float64",
    "residual_float32": "the same in float32",
    "tolerance_float64": "what the residual may be in float64",
    "tolerance_float32": "the same in float32",
    "kernel": "dimension of the kernel of the Jacobian at generic parameters and inputs",
    "orbit": "dimension of the orbit there",
    "hidden": "kernel less orbit",
    "on_data": "further kernel that these inputs alone have, at these parameters",
    "gap": "smallest kept singular value over the largest dropped one",
    "points": "random parameters that were tried, of which those with the smallest kernel were taken",
    "hidden_in": "leaves that hidden directions lie in, with their share of the dimensions",
    "not_certified": "why there is no kernel; empty where there is",
    "unknowns": "of the linear system of the black-box Lie algebra",
    "algebra_dim": "dimension of the black-box Lie algebra",
    "algebra_orbit": "dimension of its orbit",
    "missing": "directions of its orbit that are not in the group's",
    "not_compared": "why there is no Lie algebra; empty where there is",
    "seconds": "for everything about this architecture, while another one is under way",
}


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Discover, verify, certify and compare every architecture; see the attributes of the variables for what they hold."""
    names = chosen(config.architectures)
    families = {name: family for family, members in FAMILIES.items() for name in members}
    found: list[Row] = []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        rows = [pool.submit(_row, name, families[name], config) for name in names]
        for name, row in zip(names, rows, strict=True):
            progress(name, len(found), len(names))
            found.append(row.result())
    finally:
        pool.shutdown(cancel_futures=True)
    progress(names[-1], len(names), len(names))
    variables = {
        field: (("architecture",), [getattr(row, field) for row in found], {"long_name": MEANING[field]})
        for field in Row._fields
    }
    return xr.Dataset(variables, coords={"architecture": names})


def _row(name: str, family: str, config: Config) -> Row:
    """Everything about one architecture."""
    began = time.perf_counter()
    try:
        architecture = CATALOGUE[name]()
    except ModuleNotFoundError as error:
        return Row(family, unavailable=f"the package {error.name} is not installed")
    apply, params, inputs = architecture
    verify_key, *keys = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), list(CATALOGUE).index(name)), 3
    )
    sym = discover(apply, params, *inputs)
    fine, coarse = (verify(apply, sym, params, *inputs, key=verify_key, precision=p) for p in ("float64", "float32"))
    row = Row(
        family,
        group=written(sym.factors),
        order=str(sym.order),
        dim=sym.dim,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)),
        residual_float64=fine.residual,
        residual_float32=coarse.residual,
        tolerance_float64=fine.tolerance,
        tolerance_float32=coarse.tolerance,
    )
    row = _certified(row, architecture, sym, keys[0])
    row = _compared(row, architecture, sym, config, keys[1])
    return row._replace(seconds=time.perf_counter() - began)


def _certified(row: Row, architecture: Architecture, sym: Symmetry, key: Array) -> Row:
    """The kernel at random parameters: at the first where none of it is hidden, or at the most generic of a few."""
    if row.parameters > LARGEST:
        return row._replace(not_certified=f"too large: {row.parameters} parameters, at most {LARGEST}")
    inputs_key, points_key = jax.random.split(key)
    apply, inputs = many(architecture, inputs_key)
    keys = jax.random.split(points_key, POINTS[row.parameters > SMALL])
    strengths = itertools.chain(STRENGTHS[:1], itertools.repeat(STRENGTHS[1]))
    points = (perturbed(own, architecture.params, strength) for own, strength in zip(keys, strengths, strict=False))
    try:
        point, tried = _most_generic(apply, points, inputs, int(row.parameters - row.dim))
        found = certify(apply, sym, point, *inputs)
    except ValueError as error:
        return row._replace(not_certified=str(error), points=tried)
    shares = sorted(found.shares.items(), key=lambda pair: -pair[1])
    hidden = found.hidden - found.on_data
    return row._replace(
        kernel=found.nullity - found.on_data,
        orbit=found.orbit_dim,
        hidden=hidden,
        on_data=found.on_data,
        gap=found.gap,
        points=tried,
        hidden_in=", ".join(f"{path} {share:.2f}" for path, share in shares if share > 5e-3) if hidden else "",
    )


def _most_generic(
    apply: Callable[..., Any], points: Iterable[PyTree], inputs: tuple[Any, ...], most: int
) -> tuple[PyTree, int]:
    """The point of the largest rank that is clear, and how many were tried until one had the ``most``: a ReLU that is dead elsewhere is not here."""
    best, tried = (-2, None), 0
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        inputs, function = wide(inputs), None
        for point in points:
            function = function or Function(apply, wide(point))
            rank = _clear_rank(function.jacobian(wide(point), inputs))
            best, tried = max(best, (rank, point), key=lambda pair: pair[0]), tried + 1
            if rank == most:
                break
    return best[1], tried


def _clear_rank(jacobian: Float[np.ndarray, "outputs size"]) -> int:
    """The rank, or -1 without a gap in the singular values."""
    for axis in (1, 0):
        length = np.linalg.norm(jacobian, axis=axis, keepdims=True)
        jacobian = jacobian / np.where(length > 0, length, 1)
    values = np.linalg.svd(np.linalg.qr(jacobian, mode="r"), compute_uv=False)
    rank = int((values > RANK * values[0]).sum())
    clear = rank == len(values) or values[rank - 1] > GAP * values[rank]
    return rank if clear else -1


def many(architecture: Architecture, key: Array) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function on enough independent sets of inputs that its outputs outnumber its parameters, and these sets.

    Floating inputs are drawn around the given ones, integers from 0 to the largest that there is.
    """
    apply, params, inputs = architecture
    shapes = jax.eval_shape(apply, params, *inputs)
    outputs = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    number = max(SETS, math.ceil(max(OUTPUTS[0] * size, OUTPUTS[1] if size <= SMALL else 0) / outputs))

    def drawn(key: Array) -> tuple[Any, ...]:
        floating, integer = jax.random.split(key)
        leaves, structure = jax.tree.flatten(perturbed(floating, inputs, SPREAD))
        keys = jax.random.split(integer, len(leaves))
        whole = [jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves]
        fresh = [
            jax.random.randint(own, leaf.shape, 0, leaf.max() + 1, leaf.dtype) if is_whole else leaf
            for own, leaf, is_whole in zip(keys, leaves, whole, strict=True)
        ]
        return jax.tree.unflatten(structure, fresh)

    def together(params: PyTree, *inputs: Any) -> Any:
        return jax.vmap(lambda own: apply(params, *own))(inputs)

    return together, jax.jit(jax.vmap(drawn))(jax.random.split(key, number))


def _compared(row: Row, architecture: Architecture, sym: Symmetry, config: Config, key: Array) -> Row:
    """The Lie algebra that a black box finds, and what it has beyond the group."""
    row = row._replace(unknowns=num_unknowns(architecture.params))
    if not config.algebra:
        return row._replace(not_compared="left out")
    if row.unknowns > config.unknowns:
        return row._replace(not_compared=f"too large: {row.unknowns} unknowns, at most {config.unknowns}")
    apply, params, inputs = architecture
    try:
        found = lie_algebra(apply, params, *inputs, key=key)
        missing = found.beyond(sym, params)
    except ValueError as error:
        return row._replace(not_compared=str(error))
    return row._replace(algebra_dim=found.dim, algebra_orbit=found.orbit_dim, missing=missing)


def summary(data: xr.Dataset) -> dict[str, Any]:
    """The headline figures."""

    def named(which: xr.DataArray) -> list[str]:
        return [str(name) for name in data["architecture"].values[which.values]]

    def lines(which: xr.DataArray, values: str) -> list[str]:
        return [f"{name}: {data[values].sel(architecture=name).item()}" for name in named(which)]

    def counts(which: xr.DataArray, values: str) -> list[str]:
        return [f"{name}: {int(data[values].sel(architecture=name))}" for name in named(which)]

    def worst(values: str) -> float | None:
        return float(data[values].max()) if data[values].notnull().any() else None

    available = data["unavailable"] == ""
    return {
        "architectures": int(available.sum()),
        "complete": int((data["hidden"] == 0).sum()),
        "incomplete": counts(data["hidden"] > 0, "hidden"),
        "not_certified": lines(data["not_certified"] != "", "not_certified"),
        "unavailable": lines(~available, "unavailable"),
        "worst_residual_float64": worst("residual_float64"),
        "worst_residual_float32": worst("residual_float32"),
        "residuals_above_tolerance": int(
            sum((data[f"residual_{p}"] > data[f"tolerance_{p}"]).sum() for p in ("float64", "float32"))
        ),
        "parameters": int(data["parameters"].sum()),
        "kernel": int(data["kernel"].sum()),
        "hidden": int(data["hidden"].sum()),
        "algebra_compared": int(data["missing"].notnull().sum()),
        "algebra_missing": counts(data["missing"] > 0, "missing"),
        "algebra_not_compared": lines(data["not_compared"] != "", "not_compared"),
    }


STUDY = Study(
    title="the symmetry group of every architecture of the tests, and how complete it is",
    config=Config(),
    quick=Config(architectures=QUICK),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
