"""The Lie algebra of a small network from its derivatives alone: an oracle for discovery that has never seen a jaxpr.

Unknown are constant generators: a matrix on every axis of every leaf and on every two neighbouring axes taken as one, a shift of every leaf, and a leaf
moved by a constant contraction of another. A combination ``xi`` of them is a symmetry when ``J(theta) xi(theta) = 0`` for all parameters; at enough random ones
that is a linear system with more equations than unknowns, and its null space is the algebra.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym.symmetry.certify import Function
from jaxsym.symmetry.checks import checked, expect_values
from jaxsym.symmetry.verify import perturbed, wide

LARGEST = 3000
"""Unknowns, at most."""
SURPLUS = 1.6
"""Equations an unknown, at least."""
NOUGHT = 1e-9
"""Singular values up to this, of equations and unknowns that are scaled to length 1, are 0: an absolute threshold, for without symmetry the smallest
are not small, and with nothing but symmetry all are rounding."""


@dataclasses.dataclass(frozen=True, eq=False)
class Algebra:
    """The algebra of symmetries with constant generators.

    Attributes
    ----------
    dim
        Its dimension: of the generators as vector fields, so that two matrices that move the parameters alike count once.
    orbit_dim
        Dimension of the orbit at generic parameters.
    generators
        A basis, each a dict: ``"path axis 1"``, ``"path axes 1-2"``: the matrix ``[n, n]`` that moves it; ``"path shift"``: how it is shifted;
        ``"path by other"``: the constants that other is contracted with. Terms that are 0 are left out.
    """

    dim: int
    orbit_dim: int
    generators: tuple[dict[str, Float[np.ndarray, "..."]], ...]


class _Term(NamedTuple):
    """One block of unknowns: its name, the shape of them, and what they do, ``field(leaves) -> [*shape, *leaf]``."""

    name: str
    path: str
    shape: tuple[int, ...]
    field: Callable[[dict[str, np.ndarray]], np.ndarray]


def lie_algebra(apply: Callable[..., Any], params: PyTree, *inputs: Any, key: Array | None = None) -> Algebra:
    """Find all symmetries of a small network whose generators are constant, from its Jacobian at random parameters.

    Runs in float64 on the host. Sees scalings, changes of basis, rotations and translations by constants and by contractions of one leaf; neither discrete
    symmetries nor those whose coefficients are nonlinear in the parameters (frames of gains).

    Parameters
    ----------
    apply, params, inputs
        As for :func:`jaxsym.discover`, with arrays as leaves; many inputs, at which all outputs are differentiable.
    key
        Of the random parameters; a fixed one when None.

    Raises
    ------
    TypeError, ValueError
        If :func:`jaxsym.discover` would refuse them, or there are more than 3000 unknowns.

    Notes
    -----
    *Source*: the equation is that of Gruver et al. 2023, arXiv:2210.02984, for parameters in place of inputs.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 2), "relu"), jax.random.normal(jax.random.key(0), (60, 3))
    >>> lie_algebra(net.apply, net.init(jax.random.key(1), x), x).dim  # one rescaling a unit
    4
    """
    checked(apply, params, inputs, "lie_algebra")
    expect_values(params, inputs, "lie_algebra")
    key = jax.random.key(0) if key is None else key
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, inputs = wide(params), wide(tuple(inputs))
        function = Function(apply, params, "lie_algebra")
        terms = list(_terms(function.named(params)))
        unknowns = sum(math.prod(term.shape) for term in terms)
        if unknowns > LARGEST:
            msg = f"lie_algebra: {unknowns} unknowns, expected at most {LARGEST}: take smaller widths."
            raise ValueError(msg)
        equations: list[np.ndarray] = []
        fields: list[np.ndarray] = []
        while sum(map(len, equations)) < SURPLUS * unknowns or len(fields) < 3:
            key, own = jax.random.split(key)
            point = perturbed(own, params, 1.0)
            fields.append(_fields(terms, function.named(point), function.size))
            equations.append(_compressed(function.jacobian(point, inputs)) @ fields[-1])
            if not equations[-1].any():
                break
    if not unknowns:
        return Algebra(0, 0, ())
    scale = np.maximum(np.linalg.norm(np.concatenate(fields), axis=0), np.finfo(float).tiny)
    null = _null(np.concatenate(equations) / scale) / scale
    moved = np.concatenate(fields) @ null.T  # [parameters of all points, null]
    kept = _independent(moved)
    orbit = np.linalg.matrix_rank(fields[0] @ null[kept].T, tol=1e-8) if len(kept) else 0
    return Algebra(len(kept), int(orbit), tuple(_readable(terms, null[i]) for i in kept))


def _terms(leaves: dict[str, np.ndarray]) -> Iterator[_Term]:
    for path, leaf in leaves.items():
        yield _Term(f"{path} shift", path, leaf.shape, functools.partial(_shifts, path=path))
        rank = leaf.ndim
        groups = [(i, i + 1) for i in range(rank)] + [(i, i + 2) for i in range(rank - 1) if rank > 2]
        for start, stop in groups:
            size = math.prod(leaf.shape[start:stop])
            name = f"{path} axis {start}" if stop == start + 1 else f"{path} axes {start}-{stop - 1}"
            yield _Term(name, path, (size, size), functools.partial(_matrices, path=path, start=start, stop=stop))
        for other, source in leaves.items():
            for axes in _inside(leaf.shape, source.shape) if other != path else ():
                rest = tuple(size for i, size in enumerate(source.shape) if i not in axes)
                yield _Term(f"{path} by {other}", path, rest, functools.partial(_contractions, path=other, axes=axes))


def _shifts(leaves: dict[str, np.ndarray], path: str) -> np.ndarray:
    leaf = leaves[path]
    return np.eye(leaf.size).reshape(*leaf.shape, *leaf.shape)


def _matrices(leaves: dict[str, np.ndarray], path: str, start: int, stop: int) -> np.ndarray:
    """``field[i, j]``: what stands at j on these axes goes to i."""
    leaf = leaves[path]
    size = math.prod(leaf.shape[start:stop])
    before = leaf.reshape(math.prod(leaf.shape[:start]), size, -1)
    field = np.zeros((size, size, *before.shape))
    for i in range(size):
        field[i, :, :, i] = before.swapaxes(0, 1)
    return field.reshape(size, size, *leaf.shape)


def _contractions(leaves: dict[str, np.ndarray], path: str, axes: tuple[int, ...]) -> np.ndarray:
    """``field[rest]``: the entry of the source at ``rest``, on the axes that stay."""
    source = leaves[path]
    rest = [i for i in range(source.ndim) if i not in axes]
    return source.transpose((*rest, *axes))


def _inside(shape: tuple[int, ...], source: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The axes of the source that make this shape, in order, with at least one left over."""
    if len(source) <= len(shape) or not shape:
        return
    found: list[tuple[int, ...]] = [()]
    for size in shape:
        found = [(*own, i) for own in found for i in range(own[-1] + 1 if own else 0, len(source)) if source[i] == size]
    yield from found


def _fields(terms: list[_Term], leaves: dict[str, np.ndarray], size: int) -> Float[np.ndarray, "size unknowns"]:
    """All generators as vectors at one point."""
    offsets = dict(zip(leaves, np.cumsum([0, *(leaf.size for leaf in leaves.values())]), strict=False))
    columns = []
    for term in terms:
        field = term.field(leaves).reshape(math.prod(term.shape), -1)
        column = np.zeros((size, len(field)))
        column[offsets[term.path] : offsets[term.path] + field.shape[1]] = field.T
        columns.append(column)
    return np.concatenate(columns, axis=1)


def _compressed(jacobian: Float[np.ndarray, "outputs size"]) -> Float[np.ndarray, "rows size"]:
    """As many equations as say the same, of length 1."""
    rows = np.linalg.qr(jacobian, mode="r") if len(jacobian) > jacobian.shape[1] else jacobian
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(length, np.finfo(float).tiny))[length[:, 0] > 1e-12 * length.max(initial=0)]


def _null(equations: Float[np.ndarray, "rows unknowns"]) -> Float[np.ndarray, "null unknowns"]:
    if len(equations) > equations.shape[1]:
        equations = np.asarray(np.linalg.qr(equations, mode="r"))
    _, values, vectors = np.linalg.svd(equations, full_matrices=True)
    return vectors[int((values > NOUGHT).sum()) :]


def _independent(moved: Float[np.ndarray, "rows null"]) -> list[int]:
    """Columns that are independent as vector fields."""
    kept: list[int] = []
    basis = np.zeros((len(moved), 0))
    for i, column in enumerate(moved.T):
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        if np.linalg.norm(rest) > 1e-8 * max(1.0, float(np.linalg.norm(moved, axis=0).max())):
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
            kept.append(i)
    return kept


def _readable(terms: list[_Term], vector: Float[np.ndarray, " unknowns"]) -> dict[str, Float[np.ndarray, "..."]]:
    found, start = {}, 0
    for term in terms:
        size = math.prod(term.shape)
        part = vector[start : start + size]
        if np.abs(part).max(initial=0) > 1e-9 * np.abs(vector).max():
            found[term.name] = part.reshape(term.shape)
        start += size
    return found
