"""The kinds of symmetry: what an element is, how it acts on units, how elements compose.

A factor acts on ``copies`` independent sets of ``size`` units each. Its elements are arrays with leading axes for the copies
(one for each index set that the units depend on: heads, groups, layers of a scan), and its action sees a tensor as
``[*copies, size, rest]``.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int, Shaped

from jaxsym.symmetry.host import namespace


class Slot(NamedTuple):
    """Where a factor's units sit in one leaf of the parameters."""

    path: tuple[str, ...]
    axis: int
    span: tuple[int, int]
    """The positions of the axis between which they sit."""
    exponent: float
    """Of a scaling; -1 is the dual representation of a change of basis."""
    axes: tuple[int, ...]
    """The axes of the leaf that the units and their copies lie on."""
    where: Int[np.ndarray, "*copies size rest"]
    """Flat positions on those axes, row-major."""
    frame: tuple[str, int] | None = None
    """A leaf of gains, and the power (1 or -1) of it that the leaf is multiplied by while it is moved."""

    def fills(self, positions: int) -> bool:
        """Whether the units are all of so many positions, in order: nothing to pick."""
        return np.array_equal(self.where.ravel(), np.arange(positions))


class Factor(NamedTuple):
    """One factor of a symmetry group: a kind, acting on some units."""

    kind: str
    size: int
    copies: int
    slots: tuple[Slot, ...]
    shape: tuple[int, ...]
    """``(*copies, size)``: of the units."""
    classes: tuple[int, ...]
    """Which index set each axis of ``shape`` is; factors that share one act on each other's elements."""
    whole: Any = None
    """What acts on several leaves at once: a translation, the shift that a sign leaves, or a user's own action."""

    @property
    def units(self) -> tuple[Slot, ...]:
        """The slots that the kind acts on unit by unit; the others are moved by ``whole``."""
        return tuple(slot for slot in self.slots if slot.axes or slot.where.size)


class Kind(NamedTuple):
    """A kind of symmetry as functions on elements."""

    identity: Callable[[Factor], Any]
    draw: Callable[[Any], Array] | None
    """A uniform element of a finite kind from independent uniform noise; None for a continuous one."""
    compose: Callable[[Array, Array], Array]
    inverse: Callable[[Array], Array]
    act: Callable[[Array, Float[Array, "*copies size rest"], float], Array] | None
    """On the units of one slot; None for what acts on several leaves at once."""
    dim: Callable[[int], int]
    """Lie dimension for so many units."""
    order: Callable[[int], int]
    """Number of elements of a finite kind, 1 for a continuous one."""
    exp: Callable[[Any, int], Array] | None
    """The element of given coordinates; None for a finite kind."""
    first: Callable[[Any, int], Array] | None = None
    """``exp`` to first order, where that is less to compute."""
    shift: Callable[[Array], Array] | None = None
    """How far an element translates along ``Factor.whole``; None where it never does."""


def _permutation_identity(factor: Factor) -> Any:
    return np.broadcast_to(np.arange(factor.size), factor.shape)


def _matrix_identity(factor: Factor) -> Any:
    return np.broadcast_to(np.eye(factor.size), (*factor.shape, factor.size))


def _matrix_inverse(element: Array) -> Array:
    return namespace(element).linalg.inv(element)


def _matrix_act(element: Array, tensor: Array, exponent: float) -> Array:
    matrix = element if exponent > 0 else _matrix_inverse(element).swapaxes(-1, -2)
    return matrix.astype(tensor.dtype) @ tensor


def _rotate(element: Array, tensor: Array, _: float) -> Array:
    """An element one smaller than the units acts on the complement of (1, ..., 1)."""
    size = tensor.shape[-2]
    if element.shape[-1] != size:
        basis = scipy.linalg.helmert(size)
        element = np.swapaxes(basis, 0, 1) @ element @ basis + 1 / size
    return element.astype(tensor.dtype) @ tensor


def _matrix(coordinates: Array, size: int) -> Any:
    return coordinates.reshape(*coordinates.shape[:-1], size, size)


def _skew(coordinates: Array, size: int) -> Any:
    above = np.zeros((size, size), int)
    above[np.triu_indices(size, 1)] = 1 + np.arange(size * (size - 1) // 2)  # 0: none
    padded = namespace(coordinates).concatenate([coordinates[..., :1] * 0, coordinates], axis=-1)
    matrix = padded[..., above]
    return matrix - matrix.swapaxes(-1, -2)


def _expm(matrix: Array) -> Array:
    if isinstance(matrix, np.ndarray):
        return scipy.linalg.expm(matrix)
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    return jax.vmap(jax.scipy.linalg.expm)(flat).reshape(matrix.shape)


def permuted(tensor: Shaped[Array, "*copies size rest"], element: Int[Array, "*copies size"]) -> Array:
    """``tensor[..., element[..., i], :]``."""
    return namespace(tensor, element).take_along_axis(tensor, element[..., None], axis=element.ndim - 1)


ADDITIVE = Kind(
    identity=lambda factor: np.zeros(factor.shape),
    draw=None,
    compose=operator.add,
    inverse=operator.neg,
    act=None,
    dim=lambda size: size,
    order=lambda size: 1,
    exp=lambda coordinates, size: coordinates,
)
"""Elements that add up, one number a unit."""

CATALOGUE: dict[str, Kind] = {
    "permutation": Kind(
        identity=_permutation_identity,
        draw=lambda noise: namespace(noise).argsort(noise, axis=-1),
        compose=lambda g, h: namespace(g, h).take_along_axis(h, g, axis=-1),
        inverse=lambda g: namespace(g).argsort(g, axis=-1),
        act=lambda g, tensor, exponent: permuted(tensor, g),
        dim=lambda size: 0,
        order=math.factorial,
        exp=None,
    ),
    "sign": Kind(
        identity=lambda factor: np.ones(factor.shape),
        draw=lambda noise: namespace(noise).where(noise < 0.5, -1.0, 1.0),
        compose=operator.mul,
        inverse=lambda g: g,
        act=lambda g, tensor, exponent: g[..., None].astype(tensor.dtype) * tensor,
        dim=lambda size: 0,
        order=lambda size: 2**size,
        exp=None,
        shift=lambda g: (1 - g) / 2,
    ),
    "scaling": ADDITIVE._replace(
        act=lambda g, tensor, exponent: namespace(g).exp(exponent * g)[..., None].astype(tensor.dtype) * tensor
    ),
    "translation": ADDITIVE._replace(shift=lambda g: g),
    "phase": ADDITIVE._replace(  # half periods of a sine: the numbers of them, one per unit
        draw=lambda noise: namespace(noise).floor(5 * noise) - 2,
        act=lambda g, tensor, exponent: namespace(g).where(g % 2 == 0, 1, -1)[..., None].astype(tensor.dtype) * tensor,
        dim=lambda size: 0,
        exp=None,
        shift=lambda g: g,
    ),
    "action": ADDITIVE,  # a user's own one-parameter groups
    "general_linear": Kind(
        identity=_matrix_identity,
        draw=None,
        compose=operator.matmul,
        inverse=_matrix_inverse,
        act=_matrix_act,
        dim=lambda size: size * size,
        order=lambda size: 1,
        exp=lambda coordinates, size: _expm(_matrix(coordinates, size)),
        first=lambda coordinates, size: np.eye(size) + _matrix(coordinates, size),
    ),
    "orthogonal": Kind(
        identity=_matrix_identity,
        draw=None,
        compose=operator.matmul,
        inverse=lambda g: g.swapaxes(-1, -2),
        act=_rotate,
        dim=lambda size: size * (size - 1) // 2,
        order=lambda size: 1,
        exp=lambda coordinates, size: _expm(_skew(coordinates, size)),
        first=lambda coordinates, size: np.eye(size) + _skew(coordinates, size),
    ),
}
