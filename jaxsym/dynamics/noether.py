"""Conserved charges: every symmetry whose generator is a gradient conserves a quantity under gradient flow (Noether's theorem for training).

A generator ``xi`` of a symmetry of the loss always satisfies ``<grad L, xi> = 0``. Where ``D xi`` is symmetric there is a ``Q`` with ``xi = grad Q``, and
``dQ/dt = -<grad Q, grad L> = 0`` along ``d theta/dt = -grad L``. Rotations have none: what they conserve is an angular momentum, under a flow that has a velocity
(:func:`momenta`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxsym.dynamics.laws import reduced
from jaxsym.symmetry.checks import expect_real
from jaxsym.symmetry.factors import CATALOGUE, Factor
from jaxsym.symmetry.group import Symmetry, expect_group
from jaxsym.symmetry.host import normal, svd
from jaxsym.symmetry.units import Leaves, gathered, slots


class Missing(NamedTuple):
    """Generators without a charge."""

    name: str
    """Kind and place."""
    dim: int
    """How many."""
    reason: str


class _Part(NamedTuple):
    """The charges of one factor."""

    names: tuple[str, ...]
    coordinates: Float[np.ndarray, "num dim"]
    """Of the element of the factor's own Lie algebra that each belongs to."""
    degree: int
    value: Callable[[Leaves], Float[Array, " num"]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Charges:
    """``charges(params) -> [num]``: pure, to be jitted and vmapped; :func:`charges` makes it.

    Attributes
    ----------
    sym
        The group.
    names
        Of each charge: kind, leaf, and unit or pair of units (and head, where there are several).
    degrees
        ``[num]``: 2 for a charge that is quadratic in the parameters, 1 for a linear one.
    coordinates
        ``[num, sym.dim]``: ``grad Q_k = sum_i coordinates[k, i] xi_i`` with the generators ``xi`` of ``sym.tangents``.
    missing
        The generators that have no charge, and why.
    """

    sym: Symmetry
    names: tuple[str, ...]
    degrees: Int[np.ndarray, " num"]
    coordinates: Float[np.ndarray, "num dim"]
    missing: tuple[Missing, ...]
    _values: tuple[Callable[[Leaves], Array], ...] = dataclasses.field(repr=False, default=())

    def __call__(self, params: PyTree) -> Float[Array, " num"]:
        """The charges at some parameters."""
        leaves = self.sym.leaves(params)
        found = [value(leaves) for value in self._values]
        return jnp.concatenate(found) if found else jnp.zeros(0, jnp.result_type(float, *leaves.values()))

    def __len__(self) -> int:
        """How many."""
        return len(self.names)

    def __repr__(self) -> str:
        """A line for each charge, and what has none."""
        quadratic, linear = (int((self.degrees == degree).sum()) for degree in (2, 1))
        lines = [f"{len(self)} charges: {quadratic} quadratic, {linear} linear", *self.names]
        if self.missing:
            lines += ["none for", *(f"{one.name}, {one.dim} generators: {one.reason}" for one in self.missing)]
        return "\n".join(lines)


def charges(sym: Symmetry, *, frozen: Iterable[str] = ()) -> Charges:
    """The quantities that gradient flow conserves by symmetry: one for each generator, or sum of generators, that is a gradient.

    ``grad Q = xi``, so that the charge of a rescaled unit is half of ``|in|^2 - |out|^2``, or of the negative: the sign is that of the generator, positive
    where the exponents that ``print(sym)`` shows are. Rescalings and monomials have one for each unit, changes of basis the
    symmetric part of theirs (``n (n + 1) / 2``), translations by constants the sum that they shift. Rotations have none, and translations whose
    coefficients are parameters only in sums in which these cancel, as of two biases that are added (looked for up to 10^7 numbers in all generators).

    Parameters
    ----------
    sym
        A group that leaves the loss as it is.
    frozen
        Paths, or beginnings of paths, of leaves that follow no gradient, as running statistics: what moves them has no charge.

    Returns
    -------
    Charges
        A function of the parameters; without any charge where the group has no continuous part, or none that is a gradient.

    Raises
    ------
    TypeError
        If ``sym`` is no group, or ``frozen`` a string.
    ValueError
        If the group contains a user's own action, of which only the motion is known, or there is no leaf of a name in ``frozen``.

    Notes
    -----
    *Source*: Noether 1918; Kunin, Sagastuy-Brena, Ganguli, Yamins, Tanaka 2021 (arXiv:2012.04728), section 3; Zhao, Ganev, Walters, Yu, Dehmamy 2023
    (arXiv:2210.17216), section 4.

    Examples
    --------
    >>> import jaxsym as js
    >>> net, x = js.models.MLP((2, 1), "relu"), jnp.ones((5, 3))
    >>> params = net.init(jax.random.key(0), x)
    >>> found = charges(js.discover(net.apply, params, x))
    >>> found.names
    ('scaling params/Dense_0/bias unit 0', 'scaling params/Dense_0/bias unit 1')
    >>> found(params).shape
    (2,)
    """
    expect_group(sym, "charges")
    held = _paths(sym, frozen)
    parts: list[_Part] = []
    missing: list[Missing] = []
    rows: list[np.ndarray] = []
    for number, (factor, start) in enumerate(zip(sym.factors, _starts(sym), strict=True)):
        kind = CATALOGUE[factor.kind]
        each, copies = kind.dim(factor.size), factor.copies
        if not each:
            continue
        found = _part(sym, number, held)
        if isinstance(found, str):
            missing.append(Missing(_named(factor), each * copies, found))
        else:
            parts.append(found)
            if len(found.names) < each * copies:
                missing.append(Missing(_named(factor), each * copies - len(found.names), ROTATION))
            own = np.zeros((len(found.names), sym.dim))
            own[:, start : start + each * copies] = found.coordinates
            rows.append(own)
    crooked = [i for i, factor in enumerate(sym.factors) if _is_crooked(factor) and not _held(factor, held)]
    together = _together(sym, crooked)
    if together is not None:
        parts.append(together)
        rows.append(together.coordinates)
        names = [_named(sym.factors[i]) for i in crooked]
        left = sum(one.dim for one in missing if one.name in names) - len(together.names)
        missing = [one for one in missing if one.name not in names]
        missing += [Missing(", ".join(names), left, CROOKED)] if left else []
    return Charges(
        sym,
        _distinct(name for part in parts for name in part.names),
        np.repeat([part.degree for part in parts], [len(part.names) for part in parts]).astype(int),
        np.concatenate([np.zeros((0, sym.dim)), *rows]),
        tuple(missing),
        tuple(part.value for part in parts),
    )


ROTATION = "a rotation is no gradient: its Jacobian is antisymmetric"
ACTION = (
    "{}: the group contains a user's own action, of which only the motion is known; use a group that discover found."
)
CROOKED = "how far it shifts depends on parameters, and its Jacobian is not symmetric"
LARGEST = 10**7
"""Numbers in all generators together, up to which sums of translations are looked through for constant ones."""


def _starts(sym: Symmetry) -> list[int]:
    """The first coordinate of each factor."""
    sizes = [CATALOGUE[factor.kind].dim(factor.size) * factor.copies for factor in sym.factors]
    return [int(start) for start in np.cumsum([0, *sizes])[:-1]]


def _paths(sym: Symmetry, frozen: Iterable[str]) -> tuple[str, ...]:
    """What is frozen; refuses what is no leaf."""
    if isinstance(frozen, str):
        msg = f"charges: frozen: got the string {frozen!r}, expected several paths: ({frozen!r},)."
        raise TypeError(msg)
    paths = tuple(frozen)
    for path in paths:
        if not isinstance(path, str) or not any(_begins(leaf, path) for leaf in sym.shapes):
            msg = f"charges: frozen: there is no leaf at {path!r}, expected a path or the beginning of one: {', '.join(sym.shapes)}."
            raise ValueError(msg)
    return paths


def _begins(leaf: str, path: str) -> bool:
    return leaf == path or leaf.startswith(f"{path}/")


def _held(factor: Factor, frozen: tuple[str, ...]) -> list[str]:
    """The leaves that a factor moves though they are frozen."""
    paths = dict.fromkeys("/".join(slot.path) for slot in factor.slots)
    return [path for path in paths if any(_begins(path, one) for one in frozen)]


def _is_crooked(factor: Factor) -> bool:
    """Whether it is a translation whose coefficients are parameters."""
    return factor.kind == "translation" and bool(factor.whole.leaves or factor.whole.frame)


def _together(sym: Symmetry, numbers: list[int]) -> _Part | None:
    """Charges of sums of translations whose coefficients, which are parameters, cancel: all sums that are constant, at random points."""
    dims = [sym.factors[i].copies * sym.factors[i].size for i in numbers]
    total = sum(math.prod(shape) for shape in sym.shapes.values())
    if not numbers or sym.dim * total > LARGEST:
        return None
    starts = _starts(sym)
    own = np.concatenate([np.arange(starts[i], starts[i] + dim) for i, dim in zip(numbers, dims, strict=True)])
    names, tangents = list(sym.shapes), jax.jit(lambda point: sym.tangents(point))

    def generators(number: int) -> Float[np.ndarray, "own P"]:
        noise = {path: np.abs(normal(f"together {number} {path}", math.prod(sym.shapes[path]))) + 0.1 for path in names}
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            found = tangents({path: noise[path].reshape(sym.shapes[path]) for path in names})
        return np.concatenate([np.asarray(found[path])[own].reshape(len(own), -1) for path in names], axis=1)

    first, changes, rank = generators(0), np.zeros((len(own), 0)), -1
    for number in range(1, len(own) + 2):  # until one more point tells nothing new
        changes = np.concatenate([changes, generators(number) - first], axis=1)
        triangle = np.asarray(np.linalg.qr(changes.T, mode="r"))
        changes = triangle.T
        left, sizes, _ = svd(changes, full=True)
        before, rank = rank, int((sizes > 1e-9 * np.abs(first).max()).sum())
        if rank in (before, len(own)):
            break
    still = left.T[rank:]
    if not len(still):
        return None
    weights = reduced(still)
    vectors = weights @ first
    ends = np.cumsum([math.prod(sym.shapes[path]) for path in names])[:-1]
    each = {
        path: part.reshape(len(weights), *sym.shapes[path])
        for path, part in zip(names, np.split(np.where(np.abs(vectors) < 1e-9, 0, vectors), ends, axis=1), strict=True)
    }
    moved = {path: part for path, part in each.items() if part.any()}
    units = [
        f"{_named(factor)} {_unit(unit)}"
        for factor in (sym.factors[i] for i in numbers)
        for unit in np.ndindex(factor.shape)
    ]

    def value(leaves: Leaves) -> Array:
        return sum(
            jnp.tensordot(jnp.asarray(v, leaves[path].dtype), leaves[path], leaves[path].ndim)
            for path, v in moved.items()
        )  # type: ignore[return-value]

    coordinates = np.zeros((len(weights), sym.dim))
    coordinates[:, own] = weights
    return _Part(tuple(_sum(row, units) for row in weights), coordinates, 1, value)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names, numbered where several translations of one leaf have the same."""
    found = list(names)
    again = [found[:i].count(name) for i, name in enumerate(found)]
    return tuple(f"{name} ({n + 1})" if n else name for name, n in zip(found, again, strict=True))


def _sum(weights: np.ndarray, units: list[str]) -> str:
    """A sum of generators by its first terms."""
    terms = [(f"{'-' if weights[i] < 0 else '+'} ", weights[i], units[i]) for i in np.flatnonzero(weights)]
    said = [f"{sign}{'' if abs(abs(w) - 1) < 1e-9 else f'{abs(w):.4g} '}{unit}" for sign, w, unit in terms]
    return " ".join([*said[:3], *(["..."] if len(said) > 3 else [])]).removeprefix("+ ")


def _part(sym: Symmetry, number: int, frozen: tuple[str, ...]) -> _Part | str:
    """The charges of one continuous factor, or why it has none."""
    factor = sym.factors[number]
    if factor.kind == "action":
        raise ValueError(ACTION.format("charges"))
    if held := _held(factor, frozen):
        return f"it moves {', '.join(held)}, which follows no gradient"
    return SOURCES[factor.kind](sym, number)


def _scaling(sym: Symmetry, number: int) -> _Part:
    """Half the sum over slots of exponent times sum of squares, for each unit."""
    factor = sym.factors[number]

    def value(leaves: Leaves) -> Array:
        return sum(
            slot.exponent / 2 * (gathered(leaves[path], slot) ** 2).sum(-1).ravel()
            for _, path, slot in slots(sym, [number])
        )

    names = tuple(f"{_named(factor)} {_unit(unit)}" for unit in np.ndindex(factor.shape))
    return _Part(names, np.eye(len(names)), 2, value)


def _general_linear(sym: Symmetry, number: int) -> _Part:
    """Half the Gram matrix of what grows less that of what shrinks: entries ``i <= j``."""
    factor, size = sym.factors[number], sym.factors[number].size
    above = np.triu_indices(size)
    copies = factor.shape[:-1]

    def value(leaves: Leaves) -> Array:
        gram: Any = 0.0
        for _, path, slot in slots(sym, [number]):
            units = gathered(leaves[path], slot)
            gram = gram + slot.exponent / 2 * (units @ units.swapaxes(-1, -2))
        return gram[..., *above].ravel()

    one = np.zeros((len(above[0]), size, size))
    one[np.arange(len(above[0])), *above] += 0.5
    one[np.arange(len(above[0])), *above[::-1]] += 0.5
    pairs = list(zip(*above, strict=True))
    names = [f"{_named(factor)}{_copy(copy)} ({i}, {j})" for copy in np.ndindex(copies) for i, j in pairs]
    return _Part(tuple(names), np.kron(np.eye(math.prod(copies)), one.reshape(len(pairs), -1)), 2, value)


def _translation(sym: Symmetry, number: int) -> _Part | str:
    """What the translation shifts, weighted by how far."""
    factor = sym.factors[number]
    if _is_crooked(factor):
        return CROOKED
    size = math.prod(factor.shape)

    def value(leaves: Leaves) -> Array:
        still = {path: jnp.zeros_like(leaves[path]) for path in factor.whole.touched}
        dtype = jnp.result_type(*still.values())
        _, weigh = jax.vjp(lambda part: factor.whole.act(part, still), jnp.zeros(factor.shape, dtype))
        return weigh({path: leaves[path] for path in still})[0].ravel()

    names = tuple(f"{_named(factor)} {_unit(unit)}" for unit in np.ndindex(factor.shape))
    return _Part(names, np.eye(size), 1, value)


SOURCES: dict[str, Callable[[Symmetry, int], _Part | str]] = {
    "scaling": _scaling,
    "general_linear": _general_linear,
    "translation": _translation,
    "orthogonal": lambda sym, number: ROTATION,
}
"""Where the charges of a kind come from; the laws of the tests run over all of them."""


def _named(factor: Factor) -> str:
    return f"{factor.kind} {'/'.join(factor.slots[0].path)}"


def _copy(copy: tuple[int, ...]) -> str:
    return "".join(f" copy {i}" for i in copy)


def _unit(unit: tuple[int, ...]) -> str:
    return f"{_copy(unit[:-1])} unit {unit[-1]}".lstrip()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Momenta:
    """``momenta(params, velocity) -> [num]``: pure; :func:`momenta` makes it.

    Attributes
    ----------
    sym
        The group.
    names
        Of each: kind, leaf, and pair of units.
    coordinates
        ``[num, sym.dim]`` of the generators.
    """

    sym: Symmetry
    names: tuple[str, ...]
    coordinates: Float[np.ndarray, "num dim"]

    def __call__(self, params: PyTree, velocity: PyTree) -> Float[Array, " num"]:
        """``<velocity, xi>`` for each generator ``xi`` at some parameters."""
        expect_real(params, "momenta")
        if not len(self):
            return jnp.zeros(0, jnp.result_type(float, *jax.tree.leaves(params)))
        tangents = self.sym.tangents(params)
        along = jax.tree.map(
            lambda xi, v: xi.reshape(len(xi), v.size) @ jnp.ravel(v), tangents, jax.tree.map(jnp.asarray, velocity)
        )
        total = sum(jax.tree.leaves(along))
        return jnp.asarray(self.coordinates, jnp.result_type(total)) @ total

    def __len__(self) -> int:
        """How many."""
        return len(self.names)

    def __repr__(self) -> str:
        """A line for each."""
        return "\n".join([f"{len(self)} momenta", *self.names])


def momenta(sym: Symmetry) -> Momenta:
    """The angular and linear momenta of a group: what a flow with a velocity conserves where gradient flow conserves nothing.

    Under ``d2 theta/dt2 + friction d theta/dt = -grad L`` a generator with an antisymmetric Jacobian (rotations, and the antisymmetric part of changes of basis), or
    a constant one (translations), has ``J = <d theta/dt, xi>`` with ``dJ/dt = -friction J``. Heavy ball, ``v <- b v + g``, ``theta <- theta - lr v``, has
    ``J <- b J`` exactly, with weight decay too where the generator is antisymmetric.

    Parameters
    ----------
    sym
        A group that leaves the loss as it is.

    Raises
    ------
    TypeError
        If ``sym`` is no group.
    ValueError
        If it contains a user's own action, of which only the motion is known.

    Notes
    -----
    *Source*: Noether 1918; for training, Tanaka, Kunin 2021 (arXiv:2105.02716).

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: x @ p["a"] @ p["b"]
    >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}
    >>> momenta(js.discover(apply, params, jnp.ones((5, 3)))).names
    ('general_linear a (0, 1)',)
    """
    expect_group(sym, "momenta")
    names: list[str] = []
    rows: list[np.ndarray] = []
    for factor, start in zip(sym.factors, _starts(sym), strict=True):
        if factor.kind == "action":
            raise ValueError(ACTION.format("momenta"))
        size, copies = factor.size, math.prod(factor.shape[:-1])
        each = CATALOGUE[factor.kind].dim(size)
        found = _turning(factor)
        if found is not None:
            own = np.zeros((copies * len(found), sym.dim))
            own[:, start : start + copies * each] = np.kron(np.eye(copies), found)
            rows.append(own)
            pairs = [f"({i}, {j})" for i, j in zip(*np.triu_indices(size, 1), strict=True)]
            ends = [f"unit {i}" for i in range(size)] if factor.kind == "translation" else pairs
            names += [f"{_named(factor)}{_copy(c)} {end}" for c in np.ndindex(factor.shape[:-1]) for end in ends]
    together = _together(sym, [i for i, factor in enumerate(sym.factors) if _is_crooked(factor)])
    if together is not None:
        names += together.names
        rows.append(together.coordinates)
    return Momenta(sym, _distinct(names), np.concatenate([np.zeros((0, sym.dim)), *rows]))


def _turning(factor: Factor) -> np.ndarray | None:
    """Coordinates, of one copy, of the generators whose Jacobian is antisymmetric or 0."""
    above = np.triu_indices(factor.size, 1)
    if factor.kind == "orthogonal" and all(slot.frame is None for slot in factor.slots):
        return np.eye(len(above[0]))
    if factor.kind == "translation" and not (factor.whole.leaves or factor.whole.frame):
        return np.eye(factor.size)
    if factor.kind == "general_linear":
        one = np.zeros((len(above[0]), factor.size, factor.size))
        one[np.arange(len(above[0])), *above] += 0.5
        one[np.arange(len(above[0])), *above[::-1]] -= 0.5
        return one.reshape(len(above[0]), -1)
    return None
