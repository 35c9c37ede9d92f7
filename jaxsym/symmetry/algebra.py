"""The Lie algebra of a small network from its derivatives alone: an oracle for discovery that has never seen a jaxpr.

Unknown are constant generators: a matrix on every axis of every leaf and on groups of its axes taken as one, a shift of every leaf, and a leaf moved by a
constant contraction of another. A combination ``xi`` of them is a symmetry when ``J(theta) xi(theta) = 0`` for all parameters and inputs; at enough random ones
that is a linear system with more equations than unknowns, and its null space is the algebra.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.symmetry.certify import Function
from jaxsym.symmetry.checks import checked, expect_values
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.group import Symmetry, columns, expect_group
from jaxsym.symmetry.host import svd
from jaxsym.symmetry.precision import wide

LARGEST = 3000
"""Unknowns, at most."""
GROUPS = {2: 8}
"""A matrix on several axes of a leaf of so many is tried up to this size, and otherwise up to ``GROUP``: heads times units of a head."""
GROUP = 12
CONTRACTION = 16
"""A contraction of another leaf is tried with up to so many constants."""
SURPLUS = 1.6
"""Equations an unknown, at least."""
NOUGHT = 1e-11
"""Singular values up to this, of equations and unknowns that are scaled to length 1, are 0: an absolute threshold, for without symmetry the smallest
are not small, and with nothing but symmetry all are rounding."""
EXACT = 1e-14
"""A generator is as exact as this over the least singular value that is not 0, and holds no better than that at other parameters."""
GAP = 10.0
"""No singular value lies within this factor of the threshold."""
STRENGTHS = (0.5, 1.0, 2.0)
"""Of the perturbation, relative to the size of a leaf, in turn: every nonlinearity is driven through its range."""
FRESH = 9
"""At so many parameters it is seen how large the gradient of each output usually is, and later whether a generator holds at others than it was found at."""
ROUNDING = 1e-9
"""Entries of a generator up to this are 0."""
APART = 1e-5
"""Singular values of tangents, and sines between two orbits, up to this are 0: a generator is as exact as rounding is small against the smallest singular value
that is kept, such as 1e-8 where only an epsilon breaks a symmetry."""


class _Term(NamedTuple):
    """One block of unknowns, ``[*rest of the leaf, *rest of the source]``: the leaf is moved by their contraction with the source.

    Without a source it is shifted by them.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    source: str | None = None
    shared: tuple[tuple[int, int], ...] = ()
    """Axes of the leaf and of the source that run together."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def field(self, leaves: dict[str, np.ndarray]) -> Float[np.ndarray, "unknowns leaf"]:
        """How each unknown moves the leaf."""
        leaf = leaves[self.path]
        if self.source is None:
            return np.eye(leaf.size)
        source = leaves[self.source]
        mine, its = ([pair[i] for pair in self.shared] for i in (0, 1))
        rest, contracted = _others(leaf.ndim, mine), _others(source.ndim, its)
        given = source.transpose((*contracted, *its)).reshape(math.prod(source.shape[i] for i in contracted), -1)
        number = math.prod(leaf.shape[i] for i in rest)
        field = np.einsum("ij,sc->isjc", np.eye(number), given)
        order = [*rest, *mine]
        field = field.reshape(self.size, *(leaf.shape[i] for i in order))
        return field.transpose([0, *(1 + order.index(i) for i in range(leaf.ndim))]).reshape(self.size, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Algebra:
    """The symmetries with constant generators.

    Attributes
    ----------
    dim
        Dimension of the generators as vector fields: two matrices that move all parameters alike count once, but a translation that may be
        multiplied by a parameter counts again.
    orbit_dim
        Dimension of the orbit at generic parameters: that of :func:`jaxsym.discover`'s group, where its generators are constant.
    generators
        A basis, each a dict: ``"path axis 1"``, ``"path axes 1,2"``: the matrix ``[n, n]`` that moves it; ``"path shift"``: how it is shifted;
        ``"path axes 0 by other axes 1"``: the matrix that takes these axes of the other to those of this leaf. Terms that are 0 are left out.
    """

    dim: int
    orbit_dim: int
    generators: tuple[dict[str, Float[np.ndarray, "..."]], ...] = dataclasses.field(repr=False)
    terms: tuple[_Term, ...] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        """The dimensions, and what moves in how many generators."""
        moved = collections.Counter(name for generator in self.generators for name in generator)
        rows = [(term.name, str(moved[term.name])) for term in self.terms if moved[term.name]]
        head = f"{self.dim} constant generators, orbits of dimension {self.orbit_dim}"
        return "\n".join([head, "", *columns([("moves", "in generators"), *rows])] if rows else [head])

    def tangents(self, params: PyTree) -> PyTree:
        """The generators at ``params``: a pytree like it, leaves ``[dim, *leaf]``; in float64 on the host."""
        leaves = {path: np.asarray(leaf) for path, leaf in tree.leaves(params).items()}
        moved = {path: np.zeros((self.dim, leaf.size)) for path, leaf in leaves.items()}
        for term in self.terms:
            known = [generator.get(term.name, np.zeros(term.shape)) for generator in self.generators]
            if any(part.any() for part in known):
                moved[term.path] += np.reshape(known, (self.dim, term.size)) @ term.field(leaves)
        found = [moved[path].reshape(self.dim, *leaf.shape) for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(params), found)

    def beyond(self, sym: Symmetry, params: PyTree, key: Array | None = None) -> int:
        """How many directions of this algebra's orbit are not in the orbit of ``sym``, at random parameters near ``params``.

        0 when discovery found all that this oracle sees: orbits are compared, not generators, for a translation with coefficients that depend on the
        parameters moves along the same orbit as one with constants.
        """
        expect_group(sym, "beyond")
        expect_values(params, (), "beyond")
        with jax.enable_x64(True):
            point = perturbed(jax.random.key(1) if key is None else key, wide(params), 1.0)
            known = _span(_rows(jax.jit(sym.tangents)(point), point, sym.dim))
        found = _span(_rows(self.tangents(point), point, self.dim))
        _, sines, _ = svd(found - found @ known.T @ known)
        return _nonzero(sines, "beyond: the sines between the orbits", "take other parameters", APART)


def lie_algebra(apply: Callable[..., Any], params: PyTree, *inputs: Any, key: Array | None = None) -> Algebra:
    """Find all symmetries of a small network whose generators are constant, from its Jacobian at random parameters and inputs.

    Runs in float64 on the host and knows no jaxpr. Sees scalings, changes of basis, rotations and translations by constants or by constant contractions of
    one leaf. Out of its reach are discrete symmetries and those whose coefficients are nonlinear in the parameters: rotations in the frame of a norm's gains,
    translations that a quotient or a product of leaves takes up, shifts of what reads a normalised stream. What
    no output depends on is moved freely.

    Parameters
    ----------
    apply, params, inputs
        As for :func:`jaxsym.discover`, with arrays as leaves. Parameters and floating inputs are drawn afresh around the given ones; integers and keys stay,
        so give all tokens that there are.
    key
        Of the random parameters and inputs; a fixed one when None.

    Raises
    ------
    TypeError, ValueError
        If :func:`jaxsym.discover` would refuse them, there are more than 3000 unknowns, or no clean gap in the singular values.

    Notes
    -----
    *Source*: the equation is that of Gruver et al. 2023, arXiv:2210.02984, for parameters in place of inputs.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 2), "relu"), jax.random.normal(jax.random.key(0), (9, 3))
    >>> params = net.init(jax.random.key(1), x)
    >>> found = lie_algebra(net.apply, params, x)
    >>> found.dim, found.beyond(js.discover(net.apply, params, x), params)  # one rescaling a unit
    (4, 0)
    """
    checked(apply, params, inputs, "lie_algebra")
    expect_values(params, inputs, "lie_algebra")
    key = jax.random.key(0) if key is None else key
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, inputs = wide(params), wide(tuple(inputs))
        function = Function(apply, params, "lie_algebra")
        terms = tuple(_terms(function.named(params)))
        unknowns = sum(term.size for term in terms)
        if unknowns > LARGEST:
            msg = f"lie_algebra: {unknowns} unknowns, expected at most {LARGEST}: take smaller widths."
            raise ValueError(msg)
        if not unknowns:
            return Algebra(0, 0, (), ())
        sights = _seen(function, terms, params, inputs, key)
        equations: list[np.ndarray] = []
        points: list[dict[str, np.ndarray]] = []
        fewest = max(_points(terms, path, leaf) for path, leaf in function.named(params).items())
        while len(points) < fewest or (sum(map(len, equations)) < SURPLUS * unknowns and any(map(len, equations))):
            point, told = next(sights)
            points.append(point)
            equations.append(told)
        scale, kept = _independent(terms, points)
        null, least = _null(np.concatenate(equations)[:, kept] / scale / math.sqrt(len(points)))
        cut = True
        while cut and len(null):  # equations may say the same twice: what is left must hold at fresh parameters too
            told = np.concatenate([rows for _, rows in itertools.islice(sights, FRESH)])
            rest, _ = _null(told[:, kept] / scale / math.sqrt(FRESH) @ null.T, max(NOUGHT, EXACT / least))
            cut, null = len(rest) < len(null), rest @ null
    found = np.zeros((len(null), unknowns))
    found[:, kept] = _echelon(null / scale)
    orbit = len(_span(found @ _fields(terms, points[0], function.size).T))
    return Algebra(len(found), orbit, tuple(_readable(terms, vector) for vector in found), terms)


def _seen(
    function: Function, terms: tuple[_Term, ...], params: PyTree, inputs: tuple[Any, ...], key: Array
) -> Iterator[tuple[dict[str, np.ndarray], Float[np.ndarray, "rows unknowns"]]]:
    """Random parameters without end, each with the equations that it gives."""

    def sights() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        for number in itertools.count():
            strength = STRENGTHS[number % len(STRENGTHS)]
            point, given = perturbed(jax.random.fold_in(key, number), (params, inputs), strength)
            yield function.named(point), function.jacobian(point, given)

    rest = sights()
    first = list(itertools.islice(rest, FRESH))
    lengths = [np.linalg.norm(jacobian, axis=1, keepdims=True) for _, jacobian in first]
    usual = [np.median(lengths[i :: len(STRENGTHS)], axis=0) for i in range(len(STRENGTHS))]
    for (point, jacobian), length in zip(itertools.chain(first, rest), itertools.cycle(usual), strict=False):
        yield point, _told(jacobian, length) @ _fields(terms, point, function.size)


def num_unknowns(params: PyTree) -> int:
    """How many unknowns :func:`lie_algebra` would solve for: its time grows with their cube.

    >>> num_unknowns({"a": np.ones((3, 4)), "step": np.arange(2)})  # a shift, and a matrix on each axis
    37
    """
    leaves = {path: leaf for path, leaf in tree.leaves(params).items() if np.issubdtype(leaf.dtype, np.floating)}
    return sum(term.size for term in _terms(leaves))


def _points(terms: tuple[_Term, ...], path: str, leaf: np.ndarray) -> int:
    """At how many parameters a leaf must be seen, for what moves it to be told apart."""
    return math.ceil(SURPLUS * sum(term.size for term in terms if term.path == path) / max(leaf.size, 1)) + 1


def _terms(leaves: dict[str, np.ndarray]) -> Iterator[_Term]:
    for path, leaf in leaves.items():
        if not leaf.size:
            continue
        yield _Term(f"{path} shift", path, leaf.shape)
        groups = _groups(leaf.shape)
        for axes in groups:
            size = math.prod(leaf.shape[i] for i in axes)
            shared = tuple((i, i) for i in _others(leaf.ndim, axes))
            yield _Term(f"{path} {_named(axes)}", path, (size, size), path, shared)
        for other, source in leaves.items():
            if other != path and source.size and leaf.ndim <= 2:
                yield from _contractions(path, leaf.shape, other, source.shape)


def _groups(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every axis, and the groups of axes of up to 12 entries; none that is part of another."""
    found: list[tuple[int, ...]] = []
    for number in range(len(shape), -1, -1):
        for axes in itertools.combinations(range(len(shape)), number):
            size = math.prod(shape[i] for i in axes)
            if (size <= GROUPS.get(len(shape), GROUP) or number == 1) and not any(
                set(axes) <= set(larger) for larger in found
            ):
                found.append(axes)
    return found


def _contractions(path: str, shape: tuple[int, ...], other: str, source: tuple[int, ...]) -> Iterator[_Term]:
    """With the fewest axes running together that leave few enough constants."""
    found: list[tuple[tuple[int, int], ...]] = []
    for number in range(min(len(shape), len(source)) + 1):
        for mine in itertools.combinations(range(len(shape)), number):
            for its in itertools.combinations(range(len(source)), number):
                shared = tuple(zip(mine, its, strict=True))
                rest, contracted = _others(len(shape), mine), _others(len(source), its)
                constants = (math.prod(shape[i] for i in rest), math.prod(source[i] for i in contracted))
                fits = all(shape[i] == source[j] for i, j in shared) and math.prod(constants) <= CONTRACTION
                if fits and not any(set(fewer) <= set(shared) for fewer in found):
                    found.append(shared)
                    name = f"{path} {_named(rest)} by {other} {_named(contracted)}"
                    yield _Term(name, path, constants, other, shared)


def _others(ndim: int, axes: Any) -> list[int]:
    return [i for i in range(ndim) if i not in axes]


def _named(axes: Any) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {','.join(map(str, axes)) or 'none'}"


def _fields(terms: tuple[_Term, ...], leaves: dict[str, np.ndarray], size: int) -> Float[np.ndarray, "size unknowns"]:
    """All generators as vectors at one point."""
    ends = dict(zip(leaves, np.cumsum([leaf.size for leaf in leaves.values()]), strict=True))
    found = np.zeros((size, sum(term.size for term in terms)))
    start = 0
    for term in terms:
        end = ends[term.path]
        found[end - leaves[term.path].size : end, start : start + term.size] = term.field(leaves).T
        start += term.size
    return found


def _told(
    jacobian: Float[np.ndarray, "outputs size"], usual: Float[np.ndarray, "outputs 1"]
) -> Float[np.ndarray, "rows size"]:
    """The equations that this point gives, in as few rows.

    In units of what each output's gradient usually is: one that is small here, behind saturated units, is not more than rounding, and is not magnified.
    """
    length = np.maximum(np.linalg.norm(jacobian, axis=1, keepdims=True), usual)
    _, values, vectors = svd(jacobian / np.where(length > 0, length, 1))
    kept = values > 1e-14
    return values[kept, None] * vectors[kept]


def _independent(terms: tuple[_Term, ...], points: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The unknowns that move the parameters differently, and how long their fields usually are."""
    scales, kept, start = [], [], 0
    for path, grouped in itertools.groupby(terms, key=lambda term: term.path):
        block = list(grouped)
        some = points[: _points(terms, path, points[0][path])]
        moved = np.concatenate([np.concatenate([term.field(point) for term in block]).T for point in some])
        scale = np.linalg.norm(moved, axis=0)
        triangle, order = scipy.linalg.qr(moved / scale, mode="r", pivoting=True)
        number = _nonzero(np.abs(np.diag(triangle)), "lie_algebra: the unknowns", "take other widths")
        own = np.sort(order[:number])
        scales.append(scale[own] / math.sqrt(len(some)))
        kept.append(start + own)
        start += moved.shape[1]
    return np.concatenate(scales), np.concatenate(kept)


def _null(
    equations: Float[np.ndarray, "rows unknowns"], nought: float = NOUGHT
) -> tuple[Float[np.ndarray, "null unknowns"], float]:
    """An orthonormal basis of the null space, and the least singular value that is not 0."""
    if len(equations) > equations.shape[1]:
        equations = scipy.linalg.qr(equations, mode="r")[0][: equations.shape[1]]
    _, values, vectors = svd(equations, full=True)
    remedy = "take other parameters or a function that computes in float64"
    rank = _nonzero(values, "lie_algebra: the equations", remedy, nought)
    return vectors[rank:], float(values[rank - 1]) if rank else 1.0


def _nonzero(values: Float[np.ndarray, " n"], of: str, remedy: str, nought: float = NOUGHT) -> int:
    """How many singular values are not 0; an error where one is neither."""
    unclear = values[(values > nought / GAP) & (values < nought * GAP)]
    if len(unclear):
        msg = f"{of} have no clean gap: singular values such as {unclear.max():.1e} are neither 0 nor not: {remedy}."
        raise ValueError(msg)
    return int((values > nought).sum())


def _rows(moved: PyTree, params: PyTree, dim: int) -> Float[np.ndarray, "dim size"]:
    """Tangents as vectors: the leaves that can move."""
    pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(params), strict=True)
    rows = [np.reshape(own, (dim, leaf.size)) for own, leaf in pairs if np.issubdtype(leaf.dtype, np.floating)]
    return np.concatenate([np.zeros((dim, 0)), *rows], axis=1)


def _span(vectors: Float[np.ndarray, "dim size"]) -> Float[np.ndarray, "rank size"]:
    """An orthonormal basis."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    _, values, rows = svd(vectors / np.maximum(length, np.finfo(float).tiny))
    return rows[: _nonzero(values, "lie_algebra: the tangents", "take other parameters", APART)]


def _echelon(vectors: Float[np.ndarray, "dim unknowns"]) -> Float[np.ndarray, "dim unknowns"]:
    """The basis of the same space with most zeros that elimination gives: a rescaling of one unit is one generator."""
    rows = vectors.copy()
    for i in range(len(rows)):
        pivot, column = np.unravel_index(np.abs(rows[i:]).argmax(), rows[i:].shape)
        rows[[i, i + pivot]] = rows[[i + pivot, i]]
        rows[i] /= rows[i, column]
        others = np.arange(len(rows)) != i
        rows[others] -= np.outer(rows[others, column], rows[i])
    return np.where(np.abs(rows) < ROUNDING, 0, rows)


def _readable(terms: tuple[_Term, ...], vector: Float[np.ndarray, " unknowns"]) -> dict[str, Float[np.ndarray, "..."]]:
    found, start = {}, 0
    for term in terms:
        part = vector[start : start + term.size]
        if part.any():
            found[term.name] = part.reshape(term.shape)
        start += term.size
    return found
