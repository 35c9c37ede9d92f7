"""A symmetry group of a network: a product of factors acting on its parameters.

An element is a tuple of arrays, one per factor. It acts by the translations first, then by the other continuous and the sign factors, then by
the permutations, inner ones (units within a head) before outer ones (heads). Whatever acts later carries the elements of what acts before along with
its units: the group is the semidirect, and for nested permutations the wreath, product.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.symmetry import draws, specs
from jaxsym.symmetry.factors import CATALOGUE, Factor, Kind, Slot
from jaxsym.symmetry.host import index

Element = tuple[Array, ...]
AFFINE = ("translation", "phase")
"""The kinds that act first."""


class Pinned(NamedTuple):
    """A parameter axis that no factor moves, and why."""

    path: tuple[str, ...]
    axis: int
    reason: str


class Approximate(NamedTuple):
    """A factor that leaves the function alone but for an epsilon, and the relative change that its elements make."""

    factor: Factor
    residual: float | None
    """None where only shapes were given."""


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetry:
    """A group acting on a pytree of parameters.

    Made by :func:`jaxsym.discover`. The group laws hold exactly: ``act(compose(g, h), p) == act(g, act(h, p))``.

    Parameters
    ----------
    factors
        Permutations last, each after those whose units it carries.
    pinned
        Every parameter axis that no factor moves, with the reason.
    shapes
        Path -> shape of every leaf that the group was found on.
    verified
        False when it was found from shapes alone.
    approximate
        Factors that only a norm's epsilon breaks; not acted with.
    """

    factors: tuple[Factor, ...]
    pinned: tuple[Pinned, ...]
    shapes: dict[str, tuple[int, ...]]
    verified: bool = False
    approximate: tuple[Approximate, ...] = ()

    @classmethod
    def from_action(cls, act: Callable[[Array, PyTree], PyTree], dim: int) -> "Symmetry":
        """A user's own one-parameter groups, which must commute: ``act(coordinates [dim], params) -> params``.

        ``act(a + b, params)`` must be ``act(a, act(b, params))``; :func:`jaxsym.verify` tells whether a function is invariant.

        Raises
        ------
        TypeError, ValueError
            If ``act`` is not callable, or ``dim`` is not a positive integer.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> sym = Symmetry.from_action(lambda t, p: {"u": p["u"] * jnp.exp(t), "v": p["v"] * jnp.exp(-t)}, 1)
        >>> {name: leaf[0].item() for name, leaf in sym.tangents({"u": jnp.array(3.0), "v": jnp.array(2.0)}).items()}
        {'u': 3.0, 'v': -2.0}
        """
        if not callable(act):
            msg = f"from_action: act is of type {type(act).__name__}, expected a function act(coordinates, params)."
            raise TypeError(msg)
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            msg = f"from_action: dim is {dim!r}, expected a positive integer, the number of coordinates."
            raise ValueError(msg)
        return cls((Factor("action", dim, 1, (), (dim,), (), act),), (), {})

    @classmethod
    def from_spec(cls, spec: Any, params: PyTree, apply: Callable[..., Any] | None = None, *inputs: Any) -> "Symmetry":
        """The permutations of a specification written by hand, instead of a group that is discovered.

        Parameters
        ----------
        spec
            Path of a leaf -> a tuple with the name of the permutation that acts on each axis, or None; ``params/`` in front may be left out. Or
            an object with such a mapping as ``axes_to_perm`` (and, checked against it, ``perm_to_axes``), as Git Re-Basin has (Ainsworth, Hayase,
            Srinivasa 2022, arXiv:2209.04836).
        params
            The parameters, of which every leaf must be named.
        apply, inputs
            The function that the permutations shall leave alone, and its inputs: without them only shapes are checked. It is tried at other parameters and inputs,
            too; where it returns few different values, as an argmax does, little can be told: give what comes before.

        Raises
        ------
        TypeError, ValueError
            Named: a leaf that is missing, unknown or named twice, an axis too many or too few, axes of different sizes with one permutation, and a
            permutation that changes the function, such as one across heads; with ``apply`` what :func:`jaxsym.discover` refuses, too.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> params = {"first": jnp.ones((2, 5)), "bias": jnp.ones(5), "last": jnp.ones((5, 3))}
        >>> Symmetry.from_spec({"first": (None, "P"), "bias": ("P",), "last": ("P", None)}, params).order
        120
        """
        factors = specs.factors_of(spec, params)
        sym = cls(tuple(factors.values()), (), {path: np.shape(leaf) for path, leaf in tree.leaves(params).items()})
        if apply is None:
            return sym
        moves, named = [], []
        for i, (name, factor) in enumerate(factors.items()):
            rows = np.arange(factor.size)
            for order in (np.roll(rows, 1), np.concatenate([rows[:2][::-1], rows[2:]])):  # these two make all of them
                g: Any = tuple(order if i == j else still for j, still in enumerate(sym.still()))
                moves.append(functools.partial(sym.act, g))
                named.append(f"{name}, {_names(factor)},")
        specs.refute(apply, params, inputs, moves, named)
        return dataclasses.replace(sym, verified=True)

    @property
    def order(self) -> int:
        """Number of elements of the finite factors, exactly; 1 if there are none."""
        return math.prod(CATALOGUE[factor.kind].order(factor.size) ** factor.copies for factor in self.factors)

    @property
    def dim(self) -> int:
        """Lie dimension of the continuous factors."""
        return sum(CATALOGUE[factor.kind].dim(factor.size) * factor.copies for factor in self.factors)

    def identity(self) -> Element:
        """The element that changes nothing."""
        return jax.tree.map(jnp.asarray, self.still())

    def still(self) -> Element:
        """The identity as NumPy arrays: actions by these, and by nothing of JAX, run on the host."""
        return tuple(_kind(factor).identity(factor) for factor in self.factors)

    def exp(self, coordinates: Float[Array, " dim"] | Float[np.ndarray, " dim"]) -> Element:
        """The element of Lie-algebra coordinates ``[dim]``; finite factors stay at the identity."""
        if np.shape(coordinates) != (self.dim,):
            msg = f"exp: got coordinates of shape {np.shape(coordinates)}, expected ({self.dim},), the group's dim."
            raise ValueError(msg)
        return self._exp(coordinates if hasattr(coordinates, "reshape") else jnp.asarray(coordinates))

    def _exp(self, coordinates: Any, *, first: bool = False) -> Element:
        """To first order alone, if asked for."""
        element: list[Any] = []
        start = 0
        for factor in self.factors:
            kind = _kind(factor)
            if kind.exp is None:
                element.append(kind.identity(factor))
                continue
            each = kind.dim(factor.size)
            size = each * factor.copies
            part = coordinates[start : start + size].reshape(*factor.shape[:-1], each)
            element.append((kind.first if first and kind.first else kind.exp)(part, factor.size))
            start += size
        return tuple(element)

    def sample(self, key: Array, scale: float = 0.5) -> Element:
        """A random element: finite parts uniform, coordinates of continuous parts normal with deviation ``scale``."""
        continuous_key, finite_key = jax.random.split(key)
        size = sum(math.prod(factor.shape) for factor in self.factors)
        coordinates = scale * draws.normal(continuous_key, self.dim)
        return jax.tree.map(jnp.asarray, self.element(coordinates, draws.uniform(finite_key, size)))

    def element(
        self,
        coordinates: Float[Array, " dim"] | Float[np.ndarray, " dim"],
        noise: Float[Array, " units"] | Float[np.ndarray, " units"],
    ) -> Element:
        """The element of Lie-algebra coordinates, its finite parts drawn by uniform noise, one number for each unit of each factor."""
        moved = self.exp(coordinates)
        sizes = [math.prod(factor.shape) for factor in self.factors]
        element: list[Any] = []
        start = 0
        for part, factor, size in zip(moved, self.factors, sizes, strict=True):
            draw = _kind(factor).draw
            element.append(part if draw is None else draw(noise[start : start + size].reshape(factor.shape)))
            start += size
        return tuple(element)

    def compose(self, g: Element, h: Element) -> Element:
        """The element that does ``h`` first, then ``g``."""
        self._check(g, h)
        carried = [self._carry(i, part, h, backwards=True) for i, part in enumerate(g)]
        if any(factor.kind in AFFINE for factor in self.factors):
            undone = self._undone(h)
            carried = [self._carry_translation(i, part, undone) for i, part in enumerate(carried)]
        return tuple(_kind(factor).compose(a, b) for factor, a, b in zip(self.factors, carried, h, strict=True))

    def then(self, parts: Mapping[int, Any], h: Element) -> Element:
        """The element that does ``h`` first, then some factors, number -> part, none of them a translation."""
        moved = {i: self._carry(i, part, h, backwards=True) for i, part in parts.items()}
        return tuple(_kind(self.factors[i]).compose(moved[i], part) if i in moved else part for i, part in enumerate(h))

    def inverse(self, g: Element) -> Element:
        """The element that undoes ``g``."""
        self._check(g)
        return self._undone(g)

    def _undone(self, g: Element) -> Element:
        undone = [_kind(factor).inverse(part) for factor, part in zip(self.factors, g, strict=True)]
        return tuple(
            self._carry_translation(i, self._carry(i, part, g, backwards=False), g) for i, part in enumerate(undone)
        )

    def act(self, g: Element, params: PyTree) -> PyTree:
        """Move parameters by an element.

        Raises
        ------
        ValueError
            If a leaf is missing or has another shape than the group was found on, or the element is not one of this group.
        """
        self._check(g)
        moved, structure = self.leaves(params), jax.tree.structure(params)
        for factor, part in zip(self.factors, g, strict=True):
            if factor.kind == "action":
                pytree = factor.whole(part, jax.tree.unflatten(structure, list(moved.values())))
                moved = dict(zip(moved, jax.tree.leaves(pytree), strict=True))
            elif factor.whole is not None:
                shift = _kind(factor).shift
                assert shift is not None
                moved |= factor.whole.act(shift(part), moved)
            for slot in factor.units:
                name = "/".join(slot.path)
                gains = None if slot.frame is None else moved[slot.frame[0]] ** slot.frame[1]
                moved[name] = _move(moved[name], slot, functools.partial(_act, factor, part, slot), gains)
        return jax.tree.unflatten(structure, list(moved.values()))

    def leaves(
        self,
        params: PyTree,
        *,
        many: str = "map over the leading axes with jax.vmap",
        other: str = "discover it again for this network",
    ) -> dict[str, Any]:
        """The leaves of parameters by path; refuses those of another network, and says what to do with ``many`` networks, stacked, or with an ``other`` one."""
        found: dict[str, Any] = {
            tree.name(path): leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        for name, shape in self.shapes.items():
            got = found[name].shape if name in found else None
            if got != shape:
                leading = got is not None and got[len(got) - len(shape) :] == shape and len(got) > len(shape)
                said = "is missing" if got is None else f"has shape {got}"
                remedy = many if leading else other
                remedy = f"give the params of this {type(params).__name__}" if hasattr(params, "params") else remedy
                msg = f"{name} {said}, the group was found on {shape}: {remedy}."
                raise ValueError(msg)
        return found

    def tangents(self, params: PyTree) -> PyTree:
        """The generators at ``params``: a pytree like it, leaves ``[dim, *leaf]``."""
        moved = lambda coordinates: self.act(self._exp(coordinates, first=True), params)  # noqa: E731
        dtype = jnp.result_type(float)
        zero = jnp.zeros(self.dim, dtype)
        return jax.vmap(lambda direction: jax.jvp(moved, (zero,), (direction,))[1])(jnp.eye(self.dim, dtype=dtype))

    @functools.cached_property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the parts of an element."""
        return tuple(np.shape(part) for part in self.still())

    def _check(self, *elements: Any) -> None:
        """Refuse what is no element of this group, as far as shapes tell."""
        wanted = self._shapes
        for element in elements:
            if not isinstance(element, tuple | list) or len(element) != len(wanted):
                got = f"{len(element)} parts" if isinstance(element, tuple | list) else f"a {type(element).__name__}"
                msg = f"element: got {got}, expected a tuple of {len(wanted)} arrays, one for each factor of this group: sample one."
                raise ValueError(msg)
            for part, shape, factor in zip(element, wanted, self.factors, strict=True):
                if np.shape(part) != shape:
                    msg = (
                        f"element: the part of the {factor.kind} has shape {np.shape(part)}, expected {shape}: it belongs to"
                        " another group, or it has leading axes for jax.vmap."
                    )
                    raise ValueError(msg)

    def _carry(self, number: int, part: Array, by: Element, *, backwards: bool) -> Array:
        """Conjugate one factor's part by all permutations of ``by`` that come after it."""
        factor = self.factors[number]
        later = [
            (self.factors[i], by[i])
            for i in range(number + 1, len(self.factors))
            if self.factors[i].kind == "permutation"
        ]
        for other, permutation in reversed(later) if backwards else later:
            if other.classes[-1] in factor.classes:
                move = _kind(other).inverse(permutation) if backwards else permutation
                part = _transport(factor, part, other, move)
        return part

    def _carry_translation(self, position: int, part: Array, by: Element) -> Array:
        """Conjugate a translation by all factors of ``by`` that are none: its own leaf is moved, and so is the translation of it."""
        if self.factors[position].kind not in AFFINE:
            return part
        whole = self.factors[position].whole
        own, gain, unit = whole.own, whole.gain, whole.unit

        def move(tensor: Array, constant: frozenset[int]) -> Array:
            for i, (factor, other) in enumerate(zip(self.factors, by, strict=True)):
                number = factor.classes == (-1,)  # times whole leaves
                for slot in factor.units if i != position else ():
                    name, moved = "/".join(slot.path), other
                    if name == unit and factor.kind in ("scaling", "sign"):  # measured in what is multiplied, too
                        moved = _kind(factor).inverse(other)
                    elif not (name in (own, gain) if number else name == own and constant.isdisjoint(slot.axes)):
                        continue
                    act = functools.partial(_act, factor, moved, slot)
                    tensor = act(tensor.reshape(1, 1, -1)).reshape(tensor.shape) if number else _move(tensor, slot, act)
            return tensor

        return whole.carried(part, move)

    def __str__(self) -> str:
        """A table: what moves, then what is pinned and why."""
        units = f"finite factors: {readable(self.order)} elements" if self.order > 1 else "no finite factors"
        lines = [
            f"Symmetry: {units}, dim {self.dim}, {'verified' if self.verified else 'not verified'}",
            "",
        ]
        head = ("", "kind", "size", "copies", "moves")
        rows = [
            (str(number) if i == 0 else "", *row)
            for number, factor in enumerate(self.factors)
            for i, row in enumerate(_rows(factor, self.shapes))
        ]
        lines += columns([head, *rows]) if self.factors else ["nothing moves"]
        if self.approximate:
            wider: list[tuple[str, ...]] = [("but for an epsilon", "size", "copies", "moves", "changes the outputs by")]
            for factor, residual in self.approximate:
                first, *others = _rows(factor, self.shapes)
                said = "not measured" if residual is None else f"{residual:.1e}"
                wider += [(*first, said), *((*row, "") for row in others)]
            lines += ["", *columns(wider)]
        if self.pinned:
            lines += [
                "",
                *columns(
                    [("pinned", "axis", "because"), *(("/".join(p.path), str(p.axis), p.reason) for p in self.pinned)]
                ),
            ]
        return "\n".join(lines)


def expect_group(sym: Any, who: str) -> None:
    """Refuse what is no group."""
    if not isinstance(sym, Symmetry):
        msg = f"{who}: sym is of type {type(sym).__name__}, expected a Symmetry, as jaxsym.discover returns it."
        raise TypeError(msg)


def _rows(factor: Factor, shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, ...]]:
    head = (factor.kind, str(factor.size), str(factor.copies))
    if not factor.slots:
        return [(*head, "by a function of its own")]
    return [
        (*(head if i == 0 else ("", "", "")), _describe(slot, factor, shapes)) for i, slot in enumerate(factor.slots)
    ]


def _names(factor: Factor) -> str:
    """Where a factor acts, for a message."""
    return "the permutation of " + ", ".join(f"axis {slot.axis} of {'/'.join(slot.path)}" for slot in factor.slots)


def readable(order: int) -> str:
    """A number of elements, in digits or as a power of ten."""
    return f"{order:,}" if order < 10**15 else f"about 10^{order.bit_length() * math.log10(2):.0f}"


def _act(factor: Factor, part: Array, slot: Slot, units: Array) -> Array:
    act = _kind(factor).act
    assert act is not None
    return act(part, units, slot.exponent)


def _kind(factor: Factor) -> Kind:
    return CATALOGUE[factor.kind]


def _describe(slot: Slot, factor: Factor, shapes: dict[str, tuple[int, ...]]) -> str:
    name = "/".join(slot.path)
    if not shapes[name]:
        return name
    whole = slot.span == (0, shapes[name][slot.axis])
    part = "" if whole else f" {slot.span[0]}:{slot.span[1]}"
    power = "" if factor.kind in ("permutation", "sign", "orthogonal") or slot.exponent == 1 else f" ^{slot.exponent:g}"
    if factor.kind == "translation":
        power = power.replace("^", "x ")  # a coefficient
    return f"{name} axis {slot.axis}{part}{power}"


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a table."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _move(leaf: Array, slot: Slot, act: Any, gains: Array | None = None) -> Array:
    """Apply an action to the units of one slot, and put them back; with gains, in the frame that they make."""
    if gains is not None:
        frame = gains.reshape([-1 if axis == slot.axis else 1 for axis in range(leaf.ndim)])
        return _move(leaf * frame, slot, act) / frame
    rest = [axis for axis in range(leaf.ndim) if axis not in slot.axes]
    order = (*slot.axes, *rest)
    first = leaf.transpose(order)
    flat = first.reshape(math.prod(first.shape[: len(slot.axes)]), -1)
    every = slot.fills(len(flat))
    units = flat if every else flat[index(slot.where, flat)]  # [*copies, size, rest on these axes, all other axes]
    moved = act(units.reshape(*slot.where.shape[:-1], -1)).reshape(units.shape)
    if every:
        result = moved.astype(leaf.dtype)
    elif isinstance(moved, np.ndarray):
        result = flat.copy()
        result[slot.where] = moved
    else:
        result = jnp.asarray(flat).at[index(slot.where, moved)].set(moved.astype(leaf.dtype))
    return result.reshape(first.shape).transpose([order.index(axis) for axis in range(leaf.ndim)])


def _transport(factor: Factor, part: Array, other: Factor, permutation: Array) -> Array:
    """Move a factor's element along with the units that a permutation moves: ``part[.., permutation[.., i], ..]``."""
    axis = factor.classes.index(other.classes[-1])
    copies = [factor.classes.index(c) for c in other.classes[:-1]]
    shape = factor.shape
    if factor.kind == "permutation" and axis == len(shape) - 1:
        return part
    grid: list[Any] = list(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    grid[axis] = permutation[(*(grid[i] for i in copies), grid[axis])]
    known = isinstance(permutation, np.ndarray)  # else the place is JAX's, also where the part is NumPy's
    return (part if known else jnp.asarray(part))[tuple(grid)]
