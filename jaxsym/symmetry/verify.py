"""Does a group leave a function unchanged? Random elements of every factor, at random parameters and inputs.

Each trial compares ``f(g.theta)`` with ``f(theta)``: for an element of the whole group and for one of each factor alone. The parameters are
perturbed, ever more from trial to trial, so that no bias is zero and every nonlinearity is driven through its range. Where that
makes the function too ill-conditioned to tell a wrong group from rounding (one unit in the last place of the parameters moves the outputs by
an eighth of the tolerance), or not finite, the same trial is repeated with a smaller perturbation.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, Int, PyTree

from jaxsym.catalogue import find
from jaxsym.symmetry.checks import checked, expect_values, refuse_empty
from jaxsym.symmetry.draws import SHRINK, like, nudged, shifted
from jaxsym.symmetry.group import Symmetry, expect_group
from jaxsym.symmetry.host import normal, uniform
from jaxsym.symmetry.precision import Precision, coarsest_type, tolerance, traced

LEVELS = {
    "function": "the outputs, at other inputs too",
    "loss": "one scalar, at other inputs too",
    "data": "the outputs, at these inputs only",
    "distribution": "the mean of the outputs over a key, at other inputs too",
}
STRENGTHS = (0.3, 1.0, 3.0)
"""Of the perturbation in one trial after the other, relative to the size of a leaf."""
FALSE_ALARMS = 1e-4
"""How often a right group may fail at the distribution level."""
LEAP = 1e4
"""Outputs that differ by more, with none between, are judged apart."""
NOUGHT = 1e-9
"""Outputs below this, and at the mercy of rounding, are taken for 0."""
NUDGES = 8
"""How often parameters are rounded where a trial fails, to see what rounding does to the outputs."""
EXPLAINED = 2.0
"""Changes of an output up to this times those by rounding are rounding."""
_ELEMENT = 0.5  # standard deviation of the coordinates of a trial's element, in the Lie algebra
_CHUNK = 64  # keys that are averaged over at once


class Verification(NamedTuple):
    """The worst relative residual ``|f(g.theta) - f(theta)| / scale``, one per factor, and the verdict.

    The scale of an output is the largest among those of its magnitude: outputs are sorted by size and set apart where they leap
    ten-thousandfold, so that a mask of -1e30 does not hide the others.
    """

    residual: float
    by_factor: tuple[float, ...]
    ok: bool
    tolerance: float
    """1e-9, or what a coarser precision or the averaging over keys leaves decidable."""
    precision: str = "float64"
    """The coarsest type that the function casts to, such as ``"float32"`` logits in a float64 network."""


class _Trial(NamedTuple):
    """What one trial says about the whole group and then about each factor alone, at the output that is worst for it."""

    ratio: Float[np.ndarray, " rows"]
    """Its change over what is allowed."""
    noise: Float[np.ndarray, " rows"]
    """What the standard error allows there, relative to the outputs; 0 without keys."""
    defined: bool
    """The function is finite at these parameters and inputs."""
    decides: bool
    """... after the action too, and rounding stays far below the tolerance."""


class _Limits(NamedTuple):
    """What may change: the tolerance, the quantile of standard errors, and the unit in the last place."""

    tolerance: float
    quantile: float
    eps: float


def verify(
    apply: Callable[..., Any],
    sym: Symmetry,
    params: PyTree,
    *inputs: Any,
    key: Array | None = None,
    level: str = "function",
    num: int = 3,
    num_keys: int = 1024,
    precision: Precision = "float64",
) -> Verification:
    """Act with random elements of every factor, and of all together, and compare the outputs.

    Parameters
    ----------
    apply, params, inputs
        As for :func:`jaxsym.discover`, with arrays as leaves.
    sym
        The group.
    key
        Of the elements, the perturbations and the inputs; a fixed one when None.
    level
        ``"function"``: the outputs do not change, at other inputs too (floating ones; integers and keys stay).
        ``"loss"``: the same for one scalar; ``apply`` is then the loss.
        ``"data"``: at these inputs only, and parameters near the given ones.
        ``"distribution"``: the last input is a key (of ``jax.random.key`` or ``PRNGKey``), and the outputs' mean over keys does not
        change. Both sides see the same ``num_keys`` keys, and each mean difference is held against its standard error at the normal
        quantile that is corrected (Bonferroni) for the number of outputs, factors and trials: for a right group all tests together
        fail once in 10,000 times, in the limit of many keys. A wrong group passes where it changes no mean by more than
        ``tolerance``. Outputs whose difference has no variance are held to the ordinary tolerance.
    num
        How many parameters, elements and inputs are tried; they are moved by 0.3, 1 and 3 times their size in turn (0.3 only at the
        data level).
    num_keys
        How many keys the outputs are averaged over, rounded up to a multiple of 64.
    precision
        What the parameters and inputs are cast to. A function that refuses float64 (its carries have a fixed type, for instance) is
        verified in float32.

    Returns
    -------
    Verification
        ``ok`` when no change exceeds what is allowed: 1e-9 of the outputs, 1e-4 where the function computes in float32, 16 units in the
        last place (at most 1/4) of a type coarser than that, or the standard errors. With keys ``tolerance`` is the limit of the output
        that decided, and the residuals are on its scale: each output's share of its own limit, times ``tolerance``.

    Raises
    ------
    TypeError
        If ``apply`` or ``sym`` is something else, or a leaf is not an array.
    ValueError
        If ``apply`` fails, an option is unknown, a leaf has no values, the outputs are empty, not finite, or at the loss level not one scalar, or
        the last input is not a key at the distribution level.
    """
    find(LEVELS, level, "level")
    find({"float64": None, "float32": None}, precision, "precision")
    expect_group(sym, "verify")
    expect_values(params, inputs, "verify")
    _check(inputs, level, num, num_keys)
    key = jax.random.key(0) if key is None else key
    try:
        closed, start, taken = traced(apply, params, inputs, precision)
    except Exception:
        checked(apply, params, inputs, "verify")  # says better what is wrong
        raise
    _check_outputs(closed, level)
    coarsest = coarsest_type(taken, closed)
    count = sum(math.prod(aval.shape) for aval in closed.out_avals) * (len(sym.factors) + 1) * num
    quantile = -statistics.NormalDist().inv_cdf(FALSE_ALARMS / 2 / count)
    limits = _Limits(tolerance(coarsest), quantile, float(jnp.finfo(coarsest).eps))
    with jax.enable_x64(taken == "float64"), jax.default_matmul_precision("highest"):
        keys = _chunks(start[1][-1], num_keys) if level == "distribution" else [None]
        strengths = itertools.cycle(STRENGTHS[:1] if level == "data" else STRENGTHS)
        run, move = jax.jit(_outputs(apply)), _mover(sym)
        attempt = functools.partial(_trial, run, move, sym, start, keys, limits, level != "data")
        trials = [_settled(attempt, f"{_seed(key)} {trial}", next(strengths)) for trial in range(num)]
    ratios, noises = (np.array([getattr(trial, name) for trial in trials]) for name in ("ratio", "noise"))
    limit = max(limits.tolerance, float(noises.flat[ratios.argmax()]))
    worst = [float(ratio) * limit for ratio in ratios.max(axis=0)]
    return Verification(max(worst), tuple(worst[1:]), bool(ratios.max() <= 1), limit, coarsest)


def _settled(attempt: Callable[..., _Trial], key: str, strength: float) -> _Trial:
    """The first of ever smaller perturbations at which the trial decides; the unperturbed parameters otherwise."""
    for shrink in SHRINK:
        trial = attempt(1, key, strength, shrink)
        if trial.decides and trial.ratio.max() > 1:  # where numbers cancel, one nudge may change nothing by chance
            trial = attempt(NUDGES, key, strength, shrink)
        if trial.decides:
            break
    if not trial.defined:
        msg = "verify: the outputs are not finite; choose parameters and inputs at which the function is defined."
        raise ValueError(msg)
    return trial


def _trial(
    run: Callable[..., Array],
    move: Callable[[PyTree, PyTree], PyTree],
    sym: Symmetry,
    start: tuple[PyTree, Any],
    keys: Sequence[Array | None],
    limits: _Limits,
    move_inputs: bool,
    nudges: int,
    key: str,
    strength: float,
    shrink: float,
) -> _Trial:
    """Compare the outputs at one point: not moved; moved by all, by all after rounding, by rounding, and by one factor after the other."""
    noise = like(start, normal(f"{key} noise", sum(leaf.size for leaf in jax.tree.leaves(start))))
    near = jax.tree.map(lambda leaf, own: shifted(leaf, own, strength * shrink), start, noise)
    params, inputs = near[0], near[1] if move_inputs else start[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    signs = [noise[0], *(like(params, normal(f"{key} nudge {number}", size)) for number in range(1, nudges))]
    rounded = [jax.tree.map(lambda leaf, own: nudged(leaf, own, limits.eps), params, own) for own in signs]
    units = uniform(f"{key} finite", sum(math.prod(factor.shape) for factor in sym.factors))
    element = sym.element(_ELEMENT * max(shrink, SHRINK[-2]) * normal(f"{key} continuous", sym.dim), units)
    still = sym.still()
    alone = [(*still[:i], part, *still[i + 1 :]) for i, part in enumerate(element)]
    moved = [pair for own in rounded for pair in ((element, own), (still, own))]
    rows = [(element, params), *moved, *((one, params) for one in alone)]
    sums = [np.zeros(0)] * 3
    for some in keys:
        base = np.asarray(run(params, inputs, some), float)
        changes = (np.asarray(run(move(*row), inputs, some), float) - base for row in rows)
        with np.errstate(all="ignore"):
            pairs = np.array([(change.sum(0), (change**2).sum(0)) for change in changes])
            more = np.abs(base).sum(0), pairs[:, 0], pairs[:, 1]
        sums = [new if old.size == 0 else old + new for old, new in zip(sums, more, strict=True)]
    base, change, square = sums
    return _judged(base, change, square, sum(1 if some is None else len(some) for some in keys), limits, nudges)


def _judged(
    base: np.ndarray, change: np.ndarray, square: np.ndarray, count: int, limits: _Limits, nudges: int
) -> _Trial:
    """From sums over so many keys: sizes ``base [outputs]``, changes and their squares ``[all, *(rounded, rounded alone), *factors; outputs]``."""
    base, change, square = base / count, change / count, square / count
    with np.errstate(all="ignore"):
        group = _magnitudes(base)
        scale = _largest(base, group)
        variance = np.maximum(square - change**2, 0) / (count - 1) if count > 1 else np.zeros_like(square)
        noise = limits.quantile * np.sqrt(variance) / scale
        both, alone = change[1 : 1 + 2 * nudges : 2] - change[0], change[2 : 2 + 2 * nudges : 2]
        rounding = _largest(np.abs([*both, *alone]).max(axis=0), group) / scale
        nought = np.where(scale < NOUGHT, 8 * rounding, 0)
        ratio = np.abs(change) / scale / np.maximum(np.maximum(limits.tolerance, noise), nought)
        ratio = np.where(change == 0, 0, ratio)
    finite = np.isfinite(change) & np.isfinite(square)
    ratio = np.where(finite, ratio, np.inf)
    defined, settled = bool(np.isfinite(base).all()), rounding.max() <= limits.tolerance / 8
    if nudges > 1:  # what rounding may do is no failure, and nothing else decides here
        ratio = np.where(np.abs(change) <= EXPLAINED * rounding * scale, np.minimum(ratio, 1), ratio)
        settled = bool((ratio > 1).any())
    worst = ratio.argmax(axis=1, keepdims=True)
    rows = [0, *range(1 + 2 * nudges, len(ratio))]
    ratio, noise = (np.take_along_axis(values, worst, axis=1)[rows, 0] for values in (ratio, noise))
    return _Trial(ratio, noise, defined, defined and bool(finite.all()) and settled)


def _magnitudes(base: Float[np.ndarray, " outputs"]) -> Int[np.ndarray, " outputs"]:
    """A number for each output from its size: those of one magnitude share it."""
    order = np.argsort(base)
    small, large = base[order][:-1], base[order][1:]
    group = np.zeros(len(base), int)
    group[order[1:]] = np.cumsum((large > LEAP * small) & (small > 0))
    return group


def _largest(
    values: Float[np.ndarray, " outputs"], group: Int[np.ndarray, " outputs"]
) -> Float[np.ndarray, " outputs"]:
    """The largest of the values in each one's group."""
    worst = np.full(group.max() + 1, np.finfo(float).tiny)
    np.maximum.at(worst, group, np.nan_to_num(values, nan=np.inf))
    return worst[group]


def _mover(sym: Symmetry) -> Callable[[PyTree, PyTree], PyTree]:
    """The action on the host, where nothing compiles; a user's own action compiles once."""
    if any(factor.kind == "action" for factor in sym.factors):
        return jax.jit(sym.act)
    return sym.act


def _seed(key: Array) -> int:
    """The bits of a key."""
    typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return int.from_bytes(np.asarray(jax.random.key_data(key) if typed else key).tobytes(), "little")


def _numbers(leaf: Any) -> Array:
    """A key by its bits."""
    key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if key else leaf


def _outputs(apply: Callable[..., Any]) -> Callable[..., Array]:
    """All outputs in one vector, for every key: ``[keys, outputs]``; one row without keys."""

    def outputs(params: PyTree, inputs: Any, keys: Array | None) -> Array:
        def flat(*inputs: Any) -> Array:
            leaves = [jnp.ravel(_numbers(leaf)) for leaf in jax.tree.leaves(apply(params, *inputs))]
            parts = [x for leaf in leaves for x in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))]
            return jnp.concatenate([part.astype(float) for part in parts])

        return flat(*inputs)[None] if keys is None else jax.vmap(lambda key: flat(*inputs[:-1], key))(keys)

    return outputs


def _chunks(key: Array, num: int) -> list[Array]:
    """At least ``num`` keys, so many at once as are mapped together."""
    keys = jax.random.split(key, math.ceil(num / _CHUNK) * _CHUNK)
    return [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]


def _check(inputs: tuple[Any, ...], level: str, num: int, num_keys: int) -> None:
    if num < 1:
        msg = f"num: got {num}, expected at least one trial."
        raise ValueError(msg)
    if level != "distribution":
        return
    if not inputs or not _is_key(inputs[-1]):
        got = f"the last of {len(inputs)} inputs is not one" if inputs else "there is no input"
        msg = (
            f"level: got 'distribution', expected a key as the last input: {got}; pass jax.random.key(0), for instance."
        )
        raise ValueError(msg)
    if num_keys < 100:
        msg = f"num_keys: got {num_keys}, expected at least 100: the test takes their mean as normally distributed."
        raise ValueError(msg)


def _is_key(leaf: Any) -> bool:
    """One key, typed or raw."""
    dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
    if dtype is None or shape is None:
        return False
    typed = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    return shape == () if typed else dtype == np.uint32 and shape in ((2,), (4,))


def _check_outputs(closed: ClosedJaxpr, level: str) -> None:
    shapes = [aval.shape for aval in closed.out_avals]
    refuse_empty(shapes)
    if level == "loss" and shapes != [()]:
        msg = (
            f"level: got 'loss' with outputs of shape {', '.join(map(str, shapes))}, expected one scalar: pass the loss in place"
            " of apply, such as lambda params, x, y: jnp.mean((net.apply(params, x) - y) ** 2)."
        )
        raise ValueError(msg)
