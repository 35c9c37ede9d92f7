"""The parameters of a network as a representation of its own group: with it, layers act on *networks*, and say the same of every point of an orbit."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Float

from jaxsym.equivariant.generators import Move, Signed, as_sparse, identity
from jaxsym.equivariant.groups import GL, SO, S
from jaxsym.equivariant.representations import Group, Representation, direct_sum
from jaxsym.symmetry import host
from jaxsym.symmetry.factors import CATALOGUE, Factor
from jaxsym.symmetry.group import Symmetry, expect_group

LINEAR = ("permutation", "sign", "scaling", "general_linear", "orthogonal")
"""Kinds of factors that may move parameters linearly; translations and phases add to them."""
LARGEST = 5000
"""Parameters, at most, of groups that do more than permute them and multiply each by a number."""
ROUNDING = 1e-12


class ParameterSpace(NamedTuple):
    """What a network's group does to its parameters, in the order of ``jax.flatten_util.ravel_pytree``.

    Attributes
    ----------
    group
        The network's, by generators.
    rep
        On all parameters.
    leaves
        On single leaves, by path: those to which no other leaf is added. Where that is all of them, ``rep`` is their sum.
    """

    group: Group
    rep: Representation
    leaves: dict[str, Representation]


def parameter_space(sym: Symmetry, kinds: tuple[str, ...] | None = None) -> ParameterSpace:
    """The parameters of a network as a representation of the network's group. Host.

    ``basis(space.rep, space.rep)`` are the linear maps from networks to networks that commute with the group, ``basis(space.rep, group.scalar)`` the
    linear invariants, and ``EquivariantDense`` the layers. The leaf of a hidden bias is the representation on that layer's units.

    Parameters
    ----------
    sym
        The group, as :func:`jaxsym.discover` finds it.
    kinds
        Of the factors to keep; all by default.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, a kind is unknown, or a factor does not move parameters linearly: keep others by ``kinds``.

    Notes
    -----
    *Source*: Navon et al. 2023, arXiv:2301.12780; Zhou et al. 2023, arXiv:2302.14040, for the permutations of multilayer perceptrons, by hand.

    Examples
    --------
    >>> import jaxsym as js
    >>> net = js.models.MLP((3, 4, 1))
    >>> x = jnp.ones((1, 2))
    >>> sym = js.discover(net.apply, net.init(jax.random.key(0), x), x)
    >>> space = parameter_space(sym, ("permutation",))
    >>> from jaxsym.equivariant import basis
    >>> basis(space.rep, space.rep).dimension, basis(space.rep, space.group.scalar).dimension
    (75, 7)
    """
    expect_group(sym, "parameter_space")
    return _space(sym, _kept(kinds))


@functools.lru_cache(maxsize=16)
def _space(sym: Symmetry, kept: tuple[str, ...] | None) -> ParameterSpace:
    if not sym.shapes:
        msg = "parameter_space: the group was made from an action, expected one that jaxsym.discover found, whose leaves are known."
        raise ValueError(msg)
    sizes = {path: int(np.prod(shape)) for path, shape in sym.shapes.items()}
    total = sum(sizes.values())
    finite: list[Move] = []
    wanted: list[tuple[Factor, int]] = []
    for number, factor in enumerate(sym.factors):
        if kept is not None and factor.kind not in kept:
            continue
        if factor.kind not in LINEAR:
            raise ValueError(_affine(sym, factor))
        alike = any(
            (other.kind, other.classes, other.shape) == ("permutation", factor.classes, factor.shape)
            for other in sym.factors
            if kept is None or other.kind in kept
        )
        finite += [
            _finite(sym, factor, number, part, total) for part in _parts(factor, sym.still()[number], alike=alike)
        ]
        wanted += [(factor, place) for place in _directions(sym, number, alike=alike)]
    lie = list(_tangents(sym, wanted, total)) if wanted else []
    if not finite and not lie:
        finite = [identity(total)]
    group = Group(finite, lie, f"the group of a network of {total} parameters")
    leaves, start = {}, 0
    for path, size in sizes.items():
        own = slice(start, start + size)
        start += size
        if size and all(_apart(move, own) for move in [*finite, *lie]):
            blocks = [_block(move, own) for move in finite], [matrix[own, own] for matrix in lie]
            leaves[path] = group.representation(*blocks, path)
    apart = sum(leaf.size for leaf in leaves.values()) == total
    return ParameterSpace(group, direct_sum(*leaves.values()) if apart else group.vector, leaves)


def _kept(kinds: Any) -> tuple[str, ...] | None:
    """The kinds of factors to keep, all where None."""
    if kinds is None:
        return None
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not names:
        msg = f"parameter_space: kinds is empty, expected some of {', '.join(LINEAR)}, or None for all."
        raise ValueError(msg)
    for name in names:
        if name not in LINEAR:
            msg = f"parameter_space: kinds has {name!r}, expected some of {', '.join(LINEAR)}."
            raise ValueError(msg)
    return names


def _parts(factor: Factor, still: Any, *, alike: bool) -> Iterator[np.ndarray]:
    """Elements that generate a factor's finite part, or permute and flip as elements of a continuous one do; ``alike``: with permutations of its units."""
    changes: list[tuple[Any, Any]] = []
    if factor.kind == "sign":
        changes = [(unit, -1) for unit in np.ndindex(*factor.shape[:-1], 1 if alike else factor.size)]
    elif factor.kind in _GROUPS:
        vector = _GROUPS[factor.kind](factor.size).vector
        moves = [vector.finite(i) for i in range(vector.group.num_finite)]
        parts = [move.places if factor.kind == "permutation" else as_sparse(move).toarray() for move in moves]
        changes = [(copy, part) for copy in np.ndindex(factor.shape[:-1]) for part in parts]
    for place, change in changes:
        part = np.array(still)
        part[place] = change
        yield part


_GROUPS = {"permutation": S, "general_linear": GL, "orthogonal": SO}
"""By whose generators a factor moves the units of each copy."""


def _directions(sym: Symmetry, number: int, *, alike: bool) -> Iterator[int]:
    """Coordinates of Lie-algebra elements that, with :func:`_parts`, generate a factor's continuous part."""
    start = sum(_dim(factor) for factor in sym.factors[:number])
    factor = sym.factors[number]
    each = _dim(factor) // max(factor.copies, 1)
    kept = {"scaling": range(1 if alike else each), "general_linear": (0, 1)[:each], "orthogonal": (0,)[:each]}.get(
        factor.kind, ()
    )
    for copy in range(factor.copies):
        for place in kept:
            yield start + copy * each + place


def _dim(factor: Factor) -> int:
    return CATALOGUE[factor.kind].dim(factor.size) * factor.copies


def _finite(sym: Symmetry, factor: Factor, number: int, part: np.ndarray, total: int) -> Move:
    """What one element does to all parameters, seen from what it does to some."""
    element: Any = tuple(part if i == number else still for i, still in enumerate(sym.still()))
    move = lambda vector: _joined(sym, sym.act(element, _split(sym, vector)))  # noqa: E731
    with np.errstate(all="ignore"):  # what is no number is no linear map, and is found below
        return _checked(sym, factor, _seen(sym, factor, move, total), move, total)


def _seen(sym: Symmetry, factor: Factor, move: Any, total: int) -> Move:
    """What is done to a vector with another number everywhere shows a signed permutation; else it is seen column by column."""
    coded = move(1.0 + np.arange(total))
    if not np.isfinite(coded).all():
        raise ValueError(_affine(sym, factor))
    places = np.rint(np.abs(coded)).astype(int) - 1
    if np.array_equal(np.sort(places), np.arange(total)):
        return Signed(places, np.sign(coded).astype(int))
    _expect_small(factor, total)
    return scipy.sparse.csr_array(np.stack([move(row) for row in np.eye(total)], axis=1))


def _tangents(sym: Symmetry, wanted: list[tuple[Factor, int]], total: int) -> Iterator[scipy.sparse.csr_array]:
    """What generators of the Lie algebra do to all parameters."""
    with jax.enable_x64(True):
        compiled = jax.jit(lambda vector: _joined(sym, sym.tangents(_split(sym, vector)), 1))
        move = lambda vector: np.asarray(compiled(jnp.asarray(vector)))  # noqa: E731
        places = [place for factor, place in wanted if factor.kind != "scaling"]
        whole = {}
        if places:
            _expect_small(next(factor for factor, _ in wanted if factor.kind != "scaling"), total)
            columns = np.stack([move(row)[places] for row in np.eye(total)], axis=2)
            whole = dict(zip(places, columns, strict=True))
        ones = move(np.ones(total)) if len(places) < len(wanted) else None
        for factor, place in wanted:
            found = scipy.sparse.diags_array(ones[place]) if place not in whole and ones is not None else whole[place]
            yield _checked(
                sym, factor, scipy.sparse.csr_array(found), lambda vector, place=place: move(vector)[place], total
            )


def _checked(sym: Symmetry, factor: Factor, found: Move, move: Any, total: int) -> Move:
    """Refuse what is no linear map: at random parameters it does something else than the matrix."""
    vector = host.normal("parameter_space", total)
    apart = np.abs(as_sparse(found) @ vector - move(vector)).max(initial=0)
    if not apart <= ROUNDING * np.abs(vector).max(initial=1):  # NaN is not
        raise ValueError(_affine(sym, factor))
    return found


def _affine(sym: Symmetry, factor: Factor) -> str:
    where = "/".join(factor.slots[0].path) if factor.slots else "parameters"
    others = tuple(dict.fromkeys(f.kind for f in sym.factors if f.kind in LINEAR and f.kind != factor.kind))
    remedy = f"keep the factors that do, such as kinds={others!r}" if others else "this group has no factor that does"
    return f"parameter_space: a {factor.kind} of {factor.size} units, {where} among them, does not move parameters linearly; {remedy}."


def _expect_small(factor: Factor, total: int) -> None:
    if total > LARGEST:
        msg = f"parameter_space: a {factor.kind} on {total} parameters wants a matrix of {8 * total**2 / 2**30:.3g} GiB, expected at most {LARGEST}; keep other kinds, or take a smaller network."
        raise ValueError(msg)


def _apart(move: Move, own: slice) -> bool:
    """Whether what becomes of these parameters depends on them alone."""
    places = move.places[own] if isinstance(move, Signed) else move[own].indices
    return bool(((places >= own.start) & (places < own.stop)).all())


def _block(move: Move, own: slice) -> Move:
    if isinstance(move, Signed):
        return Signed(move.places[own] - own.start, move.signs[own])
    return move[own, own]


def _split(sym: Symmetry, vector: Float[Any, " parameters"]) -> dict[str, Any]:
    leaves, start = {}, 0
    for path, shape in sym.shapes.items():
        size = int(np.prod(shape))
        leaves[path] = vector[start : start + size].reshape(shape)
        start += size
    return leaves


def _joined(sym: Symmetry, leaves: dict[str, Any], leading: int = 0) -> Any:
    """Leaves in the group's order, after leading axes that all of them have."""
    flat = [leaves[path].reshape(*leaves[path].shape[:leading], -1) for path in sym.shapes]
    return host.namespace(*flat).concatenate(flat, axis=-1)
