"""A permutation group written by hand: the specification that users of weight matching have, and what is wrong with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsym import tree
from jaxsym.symmetry.checks import checked
from jaxsym.symmetry.draws import SHRINK, like, normal, nudged, perturbed
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.precision import coarsest_type, tolerance, traced

Axes = Mapping[str, Sequence[str | None]]
"""Path of a leaf -> for each axis the name of the permutation that acts on it, or None."""
ROUGH = 1e-3
"""Where outputs may change by more than this part of them, because rounding moves them so much, nothing is told."""
ROUNDED = 3
"""How many points one rounding away tell how much that is."""
AROUND = 8
"""At how many points, each twice as far away as the one before, a change must be seen to be none of rounding."""


def factors_of(spec: Any, params: PyTree) -> dict[str, Factor]:
    """The permutations of a specification by their names, checked against the shapes of the parameters.

    Raises
    ------
    TypeError, ValueError
        What :meth:`jaxsym.Symmetry.from_spec` says.
    """
    shapes = {path: np.shape(leaf) for path, leaf in tree.leaves(params).items()}
    axes = _axes(spec, shapes)
    places: dict[str, list[tuple[str, int]]] = {}
    for path, names in axes.items():
        if len(names) != len(shapes[path]):
            msg = f"from_spec: {path} has shape {shapes[path]}, and the specification names {len(names)} axes, expected {len(shapes[path])}."
            raise ValueError(msg)
        for axis, name in enumerate(names):
            if name is not None:
                places.setdefault(name, []).append((path, axis))
    found = {}
    for number, (name, where) in enumerate(places.items()):
        (first, axis), *others = where
        size = shapes[first][axis]
        for path, other in others:
            if shapes[path][other] != size:
                msg = (
                    f"from_spec: {name} acts on axis {axis} of {first}, of size {size}, and on axis {other} of {path}, of size"
                    f" {shapes[path][other]}; the axes of one permutation have one size: name the axis that holds these units."
                )
                raise ValueError(msg)
        slots = tuple(_slot(path, axis, size) for path, axis in where)
        found[name] = Factor("permutation", size, 1, slots, (size,), (number,))
    return found


def refute(
    apply: Callable[..., Any],
    params: PyTree,
    inputs: tuple[Any, ...],
    moves: Sequence[Callable[[PyTree], PyTree]],
    named: Sequence[str],
) -> None:
    """Refuse a move that changes the function: near the given parameters and inputs, and where a network would begin, at random."""
    checked(apply, params, inputs, "from_spec")
    closed, given, taken = traced(apply, params, inputs, "float64")
    coarsest = coarsest_type(taken, closed)
    eps = float(jnp.finfo(coarsest).eps)
    fresh, decided = jax.tree.map(_fresh, given), 0
    with jax.enable_x64(taken == "float64"), jax.default_matmul_precision("highest"):
        for trial, (start, strength) in enumerate([(given, 0.3), (given, 1.0), (fresh, 1.0)]):
            steps = [strength * shrink for shrink in SHRINK if shrink or start is given]
            found = _point(apply, jax.random.key(trial), start, steps, coarsest)
            if found is None and start is given:
                msg = "from_spec: apply returns NaN at the parameters and inputs that were given; give some at which it is defined."
                raise ValueError(msg)
            if found is None or found[-1] > ROUGH:
                continue
            decided += 1
            for move, name in zip(moves, named, strict=True):
                change = _change(apply, move, jax.random.key(trial), found, eps)
                if not change <= found[-1]:
                    msg = (
                        f"from_spec: {name} changes the function, by {change:.1g} times the size of its outputs: it is no symmetry of apply. Look for a leaf that"
                        " it leaves out, a wrong axis, or units that may not be mixed, such as those of different heads; jaxsym.discover finds the right ones."
                    )
                    raise ValueError(msg)
    if not decided:
        msg = f"from_spec: rounding alone changes the outputs of apply by more than {ROUGH:g} of them, so that nothing can be told; give other parameters and inputs, or leave out apply."
        raise ValueError(msg)


def _fresh(leaf: Any) -> Any:
    """What noise makes a beginning of: 1 where all is positive, as gains and variances are, else 0."""
    real = isinstance(leaf, np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.full_like(leaf, float((leaf > 0).all())) if real else leaf


def _point(
    apply: Callable[..., Any], key: Array, start: tuple[PyTree, Any], strengths: Sequence[float], coarsest: str
) -> tuple[PyTree, Any, PyTree, float] | None:
    """Parameters, inputs and outputs near some, and by how much outputs may change: as far away as rounding decides nothing; None where outputs are NaN."""
    allowed, eps = tolerance(coarsest), float(jnp.finfo(coarsest).eps)
    for strength in strengths:
        point, rows = perturbed(key, start, strength)
        near = [_rounded(trial, point, eps) for trial in jax.random.split(key, ROUNDED)]
        outputs = [apply(own, *rows) for own in (point, *near)]
        rough = 8 * max(apart(outputs[0], other) for other in outputs[1:])
        if rough <= allowed:
            break
    missing = any(np.isnan(np.asarray(leaf, float)).any() for leaf in jax.tree.leaves(outputs))
    return None if missing else (point, rows, outputs[0], max(allowed, rough))


def _change(
    apply: Callable[..., Any],
    move: Callable[[PyTree], PyTree],
    key: Array,
    at: tuple[PyTree, Any, PyTree, float],
    eps: float,
) -> float:
    """By how much a move changes the function: the least at some points, or the first within the limit.

    What is no symmetry is none at each of them; a step that rounding crosses, as sums are taken in another order, lies beside few.
    """
    point, rows, outputs, limit = at
    least, own = np.inf, point
    for number, trial in enumerate(jax.random.split(key, AROUND)):
        least = min(apart(outputs, apply(move(own), *rows)), least)
        if not least > limit:
            break
        own = _rounded(trial, point, eps * 2**number)
        outputs = apply(own, *rows)
    return least


def _rounded(key: Array, point: PyTree, eps: float) -> PyTree:
    """Parameters with every entry up or down by such a part of it."""
    signs = normal(key, sum(leaf.size for leaf in jax.tree.leaves(point)))
    return jax.tree.map(lambda leaf, own: nudged(leaf, own, eps), point, like(point, signs))


def apart(one: PyTree, other: PyTree) -> float:
    """How far the outputs of two networks are apart at most, beside what most entries are like."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max((_apart(x, y) for x, y in pairs), default=0.0)


def _apart(one: Array, other: Array) -> float:
    """How far two outputs are apart, beside what most entries are like: a mask of -1e9 hides nothing."""
    first, second = (np.asarray(side, float).ravel() for side in (one, other))
    same = first == second  # infinities, too
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        change = np.where(same, 0, np.abs(first - second))
    sizes = np.abs(first[np.isfinite(first) & (first != 0)])
    typical = np.median(sizes) if sizes.size else 1.0
    return float((change / np.maximum(np.minimum(np.abs(first), np.abs(second)), typical)).max())


def _axes(spec: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Sequence[str | None]]:
    """The specification by full paths, of all leaves and no others."""
    given = getattr(spec, "axes_to_perm", spec)
    if not isinstance(given, Mapping):
        msg = (
            f"from_spec: the specification is of type {type(spec).__name__}, expected a mapping from the path of a leaf to the names of"
            " the permutations of its axes, such as {'Dense_0/kernel': (None, 'P_0')}, or what has one as axes_to_perm."
        )
        raise TypeError(msg)
    short = {path.removeprefix("params/"): path for path in shapes} | {path: path for path in shapes}
    found: dict[str, Sequence[str | None]] = {}
    for key, names in given.items():
        path = short.get(key)
        if path is None:
            msg = f"from_spec: there is no leaf {key!r}; keys are the whole paths of leaves: {', '.join(shapes)}."
            raise ValueError(msg)
        if path in found:
            msg = f"from_spec: {path} is named twice in the specification; name it once."
            raise ValueError(msg)
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(map(_named, names)):
            msg = f"from_spec: {key}: got {names!r}, expected a tuple with the name of a permutation, or None, for each axis."
            raise TypeError(msg)
        found[path] = names
    missing = [path for path in shapes if path not in found and shapes[path]]
    if missing:
        msg = f"from_spec: {', '.join(missing)} missing from the specification; give None for each axis that nothing permutes."
        raise ValueError(msg)
    _same(spec, found, short)
    return found


def _named(name: Any) -> bool:
    return name is None or (isinstance(name, str) and bool(name))


def _same(spec: Any, found: Mapping[str, Sequence[str | None]], short: Mapping[str, str]) -> None:
    """Where a specification says it in both directions, both must say the same."""
    listed = getattr(spec, "perm_to_axes", None)
    if listed is None:
        return
    for name, places in listed.items():
        seen = [(short.get(key, key), axis) for key, axis in places]
        for place in seen:
            if seen.count(place) > 1:
                msg = f"from_spec: perm_to_axes names axis {place[1]} of {place[0]} twice for {name}; name it once."
                raise ValueError(msg)
        expected = {(path, i) for path, names in found.items() for i, own in enumerate(names) if own == name}
        for path, axis in sorted(set(seen) ^ expected):
            where = "perm_to_axes alone" if (path, axis) in seen else "axes_to_perm alone"
            msg = f"from_spec: {name} acts on axis {axis} of {path} in {where}; both must say the same."
            raise ValueError(msg)


def _slot(path: str, axis: int, size: int) -> Slot:
    return Slot(tuple(path.split("/")), axis, (0, size), 1.0, (axis,), np.arange(size)[:, None])
