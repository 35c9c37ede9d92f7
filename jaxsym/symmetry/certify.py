"""Is the group all there is? The kernel of the Jacobian of a function against the tangent of the orbit, in float64 on the host.

A direction in which no output changes, at any input, is a symmetry to first order. What the group does not explain of these directions is
*hidden*: dead units, redundant parameters, or a symmetry that discovery does not find.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.symmetry.checks import checked, expect_values
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.group import Symmetry, columns, expect_group
from jaxsym.symmetry.host import svd
from jaxsym.symmetry.precision import wide

LARGEST = 5000
"""Parameters, at most."""
RANK = 1e-12
"""Singular values below this part of the largest are dropped, if the gap there is clean."""
GAP = 100.0
"""How many times the largest dropped singular value the smallest kept one must be."""
CONTAINED = 1e-8
"""How far a tangent of the orbit may be from the kernel, relative to its length."""
CHUNK = 256  # directions that are differentiated at once
MORE = 8  # further sets of inputs that tell what holds on these inputs only


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """How much of the kernel of ``d outputs / d params`` the group explains, at these parameters and inputs.

    Attributes
    ----------
    num_params, rank, nullity
        Numbers in the floating leaves; rank of the Jacobian of all outputs over all inputs; their difference.
    orbit_dim
        Dimension of the orbit there; smaller than ``sym.dim`` where the group has a stabiliser.
    hidden
        ``nullity - orbit_dim``: 0 when the group is complete here.
    gap
        The smallest kept singular value over the largest dropped one; infinite at full rank.
    on_data
        How much of ``hidden`` holds on these inputs only: the nullity less that over further random inputs. Integers among the inputs stay as they are: give
        all tokens that there are.
    local
        How much of ``hidden`` holds at these parameters only: the nullity less the smallest at ``num`` random ones (0 with ``num=1``).
    directions
        A basis of the hidden directions: a pytree like the parameters, leaves ``[hidden, *leaf]``, orthonormal and orthogonal to the orbit.
    shares
        Path -> how many of the hidden dimensions lie in that leaf; they add up to ``hidden``.
    """

    num_params: int
    rank: int
    nullity: int
    orbit_dim: int
    hidden: int
    gap: float
    on_data: int
    local: int
    directions: PyTree
    shares: dict[str, float]

    def __str__(self) -> str:
        """What was found, and where the hidden directions lie."""
        clean = (
            "nothing else in the singular values"
            if math.isinf(self.gap)
            else f"a gap of {self.gap:.1e} in the singular values"
        )
        lines = [
            f"{self.num_params} parameters, rank {self.rank} ({clean}), nullity {self.nullity}, orbit {self.orbit_dim}: "
            + (f"{self.hidden} hidden" if self.hidden else "complete")
        ]
        if self.hidden:
            lines.append(
                f"of the hidden, {self.on_data} hold on these inputs only and {self.local} at these parameters only"
                + (": give more inputs, with more outputs in all than parameters" if self.on_data else "")
            )
            rows = sorted(self.shares.items(), key=lambda pair: -pair[1])
            lines += [
                "",
                *columns(
                    [("hidden in", "dimensions"), *((path, f"{share:.2f}") for path, share in rows if share > 5e-3)]
                ),
            ]
        return "\n".join(lines)


def certify(
    apply: Callable[..., Any], sym: Symmetry, params: PyTree, *inputs: Any, num: int = 1, key: Array | None = None
) -> Certificate:
    """Compare the kernel of the Jacobian of all outputs over all inputs with the tangent of the orbit, at ``params``.

    Rows and columns of the Jacobian are scaled to one length first, which changes no rank. Runs on the host, densely: small networks, many inputs
    (at least as many outputs in all as there are parameters, or ``on_data`` will not be 0).

    Parameters
    ----------
    apply, params, inputs
        As for :func:`jaxsym.discover`, with arrays as leaves; biases that are not zero, lest the point be special.
    sym
        The group.
    num
        At how many parameters the nullity is computed: at ``params``, and at perturbations of them. ReLU networks want a dozen.
    key
        Of the perturbations and of further inputs; a fixed one when None.

    Raises
    ------
    TypeError
        If ``apply`` is not callable, ``sym`` no group, or a leaf is not an array.
    ValueError
        If there are more than 5000 parameters, no clean gap in the singular values, or the orbit's tangent leaves the kernel: then the group is
        wrong, or the function is not computed in float64.

    Notes
    -----
    *Source*: the functional dimension of Grigsby, Lindsey, Meyerhoff, Wu 2022, arXiv:2209.04036.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 2), "square"), jax.random.normal(jax.random.key(0), (30, 3))
    >>> params = perturbed(jax.random.key(1), net.init(jax.random.key(2), x))
    >>> found = certify(net.apply, js.discover(net.apply, params, x), params, x)
    >>> found.nullity, found.orbit_dim, found.hidden  # two output biases are redundant
    (6, 4, 2)
    """
    expect_group(sym, "certify")
    checked(apply, params, inputs, "certify")
    expect_values(params, inputs, "certify")
    key = jax.random.key(0) if key is None else key
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, inputs = wide(params), wide(tuple(inputs))
        function = Function(apply, params)
        here = function.jacobian(params, inputs)
        rank, gap, null = kernel(here)
        tangents = _tangents(sym, params, function)
        orbit = _orbit(tangents, here)
        hidden = len(null) - len(orbit)
        on_data = local = 0
        if hidden:
            keys = jax.random.split(key, MORE + max(num - 1, 0))
            more = [function.jacobian(params, perturbed(other, inputs, 1.0)) for other in keys[:MORE]]
            on_data = len(null) - (function.size - kernel(np.concatenate([here, *more]))[0])
            ranks = [kernel(function.jacobian(perturbed(other, params, 1.0), inputs))[0] for other in keys[MORE:]]
            local = max([rank, *ranks]) - rank
        rest = _apart(null, orbit, hidden)
        directions = function.stacked(rest) if hidden else None
    shares = dict.fromkeys(tree.leaves(params), 0.0)
    if directions is not None:
        shares |= {path: float((np.asarray(leaf, float) ** 2).sum()) for path, leaf in tree.leaves(directions).items()}
    return Certificate(function.size, rank, len(null), len(orbit), hidden, gap, on_data, local, directions, shares)


class Function:
    """The outputs as one real vector of one real vector: the floating leaves of the parameters."""

    def __init__(self, apply: Callable[..., Any], params: PyTree, who: str = "certify") -> None:
        leaves, self.structure = jax.tree.flatten(params)
        self.shapes = [leaf.shape for leaf in leaves]
        self.moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        self.size = sum(leaves[i].size for i in self.moving)
        self.apply, self.who = apply, who
        if self.size > LARGEST:
            msg = (
                f"{who}: {self.size} parameters, expected at most {LARGEST}, for the Jacobian is decomposed densely: take the same"
                " architecture with smaller widths, or one layer at a time (close over the others)."
            )
            raise ValueError(msg)
        self._columns = jax.jit(self._differentiate)

    def named(self, params: PyTree) -> dict[str, np.ndarray]:
        """The floating leaves by path, in the order of the vector."""
        leaves = list(tree.leaves(params).items())
        return {leaves[i][0]: np.asarray(leaves[i][1]) for i in self.moving}

    def vector(self, params: PyTree) -> Float[Array, " size"]:
        """The floating leaves of parameters, or of anything like them."""
        leaves = jax.tree.leaves(params)
        return jnp.concatenate([jnp.zeros(0), *(jnp.ravel(leaves[i]) for i in self.moving)])

    def back(self, vector: Float[Array, " size"], others: PyTree = None) -> PyTree:
        """A pytree like the parameters; leaves that do not move are those of ``others``, or 0."""
        leaves = [jnp.zeros(shape) for shape in self.shapes] if others is None else list(jax.tree.leaves(others))
        start = 0
        for i in self.moving:
            size = math.prod(self.shapes[i])
            leaves[i] = vector[start : start + size].reshape(self.shapes[i])
            start += size
        return jax.tree.unflatten(self.structure, leaves)

    def stacked(self, rows: Float[np.ndarray, "count size"]) -> PyTree:
        """A pytree like the parameters, leaves ``[count, *leaf]``: rows taken apart on the host."""
        leaves = [np.zeros((len(rows), *shape)) for shape in self.shapes]
        ends = np.cumsum([math.prod(self.shapes[i]) for i in self.moving])
        for i, part in zip(self.moving, np.split(rows, ends[:-1], axis=1), strict=True):
            leaves[i] = part.reshape(-1, *self.shapes[i])
        return jax.tree.map(jnp.asarray, jax.tree.unflatten(self.structure, leaves))

    def rows(self, stacked: PyTree) -> Float[np.ndarray, "count size"]:
        """What :meth:`stacked` makes, as rows."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(stacked)]
        count = len(leaves[0]) if leaves else 0
        return np.concatenate([np.zeros((count, 0)), *(leaves[i].reshape(count, -1) for i in self.moving)], axis=1)

    def _differentiate(self, params: PyTree, inputs: Any, directions: Array) -> Array:
        def outputs(vector: Array) -> Array:
            found = [jnp.ravel(leaf) for leaf in jax.tree.leaves(self.apply(self.back(vector, params), *inputs))]
            parts = [part for x in found for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
            return jnp.concatenate([jnp.zeros(0), *(p for p in parts if jnp.issubdtype(p.dtype, jnp.floating))])

        _, derivative = jax.linearize(outputs, self.vector(params))
        return jax.vmap(derivative)(directions)

    def jacobian(self, params: PyTree, inputs: Any) -> Float[np.ndarray, "outputs size"]:
        """Of all outputs by all parameters."""
        width = min(CHUNK, max(self.size, 1))
        padded = np.eye(math.ceil(self.size / width) * width, self.size)  # whole chunks: one compilation
        chunks = [
            np.asarray(self._columns(params, inputs, padded[i : i + width])) for i in range(0, len(padded), width)
        ]
        found = np.concatenate(chunks)[: self.size].T if chunks else np.zeros((0, 0))
        if not np.isfinite(found).all():
            msg = f"{self.who}: the Jacobian is not finite; choose parameters and inputs at which the function is differentiable."
            raise ValueError(msg)
        return found


def _unit(matrix: Float[np.ndarray, "n m"], axis: int) -> Float[np.ndarray, "..."]:
    """Lengths along an axis, to divide by; 1 where there is nothing but rounding."""
    length = np.linalg.norm(matrix, axis=axis, keepdims=True)
    return np.where(length > RANK * length.max(initial=0), length, 1)


def _ranked(values: Float[np.ndarray, " n"], size: int, who: str = "certify") -> tuple[int, float]:
    """The rank by singular values, and the gap below it, of a matrix of so many columns."""
    rank = int((values > RANK * values.max(initial=0)).sum())
    dropped = values[rank] if rank < len(values) else 0.0
    gap = float(values[rank - 1] / dropped) if rank and dropped > 0 and rank < size else math.inf
    if gap < GAP:
        msg = (
            f"{who}: no clean gap in the singular values: rank {rank} of {size} would part {values[rank - 1]:.1e} from {dropped:.1e}"
            " (of the largest 1): take other parameters, more inputs, or a function that computes in float64 throughout."
        )
        raise ValueError(msg)
    return rank, gap


def kernel(
    jacobian: Float[np.ndarray, "outputs size"], who: str = "certify"
) -> tuple[int, float, Float[np.ndarray, "nullity size"]]:
    """Rank, gap, and an orthonormal basis of the kernel."""
    size = jacobian.shape[1]
    scaled = jacobian / _unit(jacobian, 1)
    widths = _unit(scaled, 0)
    scaled = np.asarray(np.linalg.qr(scaled / widths, mode="r")) if len(scaled) > size else scaled / widths
    _, values, vectors = svd(scaled, full=True)
    values = values / max(values.max(initial=0), np.finfo(float).tiny)
    rank, gap = _ranked(values, size, who)
    basis = vectors[rank:] / widths
    return rank, gap, np.linalg.qr(basis.T)[0].T if len(basis) else basis


def _tangents(sym: Symmetry, params: PyTree, function: Function) -> Float[np.ndarray, "dim size"]:
    if not sym.dim:
        return np.zeros((0, function.size))
    return function.rows(jax.jit(sym.tangents)(params))


def _orbit(
    tangents: Float[np.ndarray, "dim size"], jacobian: Float[np.ndarray, "outputs size"]
) -> Float[np.ndarray, "orbit size"]:
    """An orthonormal basis of the orbit's tangent, which must lie in the kernel."""
    tangents = tangents / _unit(tangents, 1)
    if not len(tangents):
        return tangents
    changes = np.abs(jacobian / _unit(jacobian, 1) @ tangents.T)
    if changes.max(initial=0) > CONTAINED:
        msg = (
            f"certify: the orbit leaves the kernel: an output changes by {changes.max():.1e} of its largest change along generator"
            f" {int(changes.max(axis=0).argmax())}; verify the group for this function."
        )
        raise ValueError(msg)
    _, values, vectors = svd(tangents)
    return vectors[: _ranked(values / max(values.max(), np.finfo(float).tiny), tangents.shape[1])[0]]


def _apart(
    kernel: Float[np.ndarray, "nullity size"], orbit: Float[np.ndarray, "orbit size"], hidden: int
) -> Float[np.ndarray, "hidden size"]:
    """An orthonormal basis of what the orbit leaves of the kernel."""
    rest = kernel - kernel @ orbit.T @ orbit
    return svd(rest)[2][:hidden]
