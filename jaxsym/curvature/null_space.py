"""The null space of a Hessian beside the orbit of a symmetry: what is flat because the function does not change, and what else is.

Along an orbit the loss is constant, so that ``<grad L, xi> = 0`` for every generator ``xi``; differentiated, ``H xi = -(D xi)' grad L``. The tangent
of the orbit is therefore in the null space at critical points, and elsewhere it is not.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsym.curvature.checks import checked, checked_finite, exact, lasting, one_by_one
from jaxsym.curvature.products import Loss
from jaxsym.curvature.spectra import Point, computed, dense
from jaxsym.symmetry.certify import GAP
from jaxsym.symmetry.checks import expect_group
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.verify import perturbed

SMALL = 1e-6
"""Eigenvalues below this part of the largest may count as zero: those below the widest gap there do."""
CRITICAL = 1e-8
"""A gradient below this part of ``|H| |params|`` counts as zero,"""
STEP = 1e-4
"""if a Newton step is shorter than this part of the parameters."""
CONTAINED = 1e-4
"""Sine of the angle between a generator and the null space, at most, where the orbit counts as contained."""
MORE = 4  # further sets of inputs, to tell what holds on the given ones only


class Flat(NamedTuple):
    """Rank and null space of a Hessian, and how the orbit of a group lies in it.

    Attributes
    ----------
    rank, nullity
        Of the Hessian ``[P, P]``, by the widest gap among small eigenvalues.
    orbit_dim
        Dimension of the orbit at these parameters.
    contained
        Whether all generators lie in the null space.
    gap
        The smallest kept eigenvalue over the largest dropped one, in size; below 100 rank and nullity are not to be trusted.
    negative
        How many eigenvalues are negative, of those that are kept.
    gradient_norm
        ``|grad L|``.
    critical
        Whether that counts as zero, by its size and by the length of a Newton step: only then must the orbit be contained.
    outside
        ``[sym.dim]``: sine of the angle between each generator and the null space.
    identity
        ``max |H xi + (D xi)' grad L| / (|H| |xi|)``: rounding, whatever the point, or the group is none of this loss.
    unexplained
        ``nullity`` less the dimension of the part of the null space that the orbit spans.
    hidden, on_data, beyond
        None without ``apply``. How many dimensions of the null space, beside the orbit, leave all outputs at any input as they are (dead and always-on units,
        redundant parameters); how many further ones leave the outputs at these inputs as they are (rank of the data,
        overparametrisation); and what is flat though outputs change (the loss itself, or residuals that cancel).
    eigenvalues
        ``[P]``: of the Hessian, ascending.
    """

    rank: Int[Array, ""]
    nullity: Int[Array, ""]
    orbit_dim: Int[Array, ""]
    contained: Bool[Array, ""]
    gap: Float[Array, ""]
    negative: Int[Array, ""]
    gradient_norm: Float[Array, ""]
    critical: Bool[Array, ""]
    outside: Float[Array, " dim"]
    identity: Float[Array, ""]
    unexplained: Int[Array, ""]
    hidden: Int[Array, ""] | None
    on_data: Int[Array, ""] | None
    beyond: Int[Array, ""] | None
    eigenvalues: Float[Array, " P"]

    def __str__(self) -> str:
        """Which case it is, and what explains the null space."""
        clean = "full rank" if math.isinf(self.gap) else f"a gap of {self.gap:.1e} in the eigenvalues"
        lines = [
            f"rank {self.rank}, nullity {self.nullity} ({clean}), {self.negative} negative, orbit {self.orbit_dim}"
        ]
        if self.gap < GAP:
            lines.append("the gap is too small: these numbers are not to be trusted")
        where = "a critical point" if self.critical else "no critical point"
        lies = "lies in the null space" if self.contained else "does not lie in the null space"
        norm = f"|grad L| = {self.gradient_norm:.1e}"
        lines.append(f"{where} ({norm}): the orbit {lies}; H xi = -(D xi)' grad L to {self.identity:.1e} of |H| |xi|")
        if self.unexplained:
            said = f"{self.unexplained} flat dimensions are not the group's"
            if self.hidden is not None:
                said += f": {self.hidden} at any input, {self.on_data} on these inputs only, {self.beyond} of the loss"
            lines.append(said)
        return "\n".join(lines)


def flat(
    loss: Loss,
    params: PyTree,
    sym: Symmetry,
    *,
    apply: Callable[..., Any] | None = None,
    inputs: tuple[Any, ...] = (),
    key: Array | None = None,
    small: float = SMALL,
) -> Flat:
    """The rank and null space of the Hessian of a loss, beside the orbit of a group; densely, in float64 outside of ``jit``.

    Parameters
    ----------
    loss, params
        As for :func:`~jaxsym.curvature.hessian`.
    sym
        A group that leaves the loss as it is: of the network, ``discover(net.apply, params, x)``, or of the loss itself.
    apply, inputs
        The network, ``apply(params, *inputs)``, on the inputs of the loss: to tell what explains the rest of the null space.
    key
        Of further random inputs for that; a fixed one when None.
    small
        Eigenvalues below this part of the largest may count as zero.

    Returns
    -------
    Flat
        ``print`` it.

    Raises
    ------
    TypeError
        If ``sym`` is no group, or a parameter is not floating.
    ValueError
        As for :func:`~jaxsym.curvature.hessian`.

    Notes
    -----
    *Source*: the identity differentiates Kunin et al. 2021 (arXiv:2012.04728), equation 5.

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> x = jax.random.normal(jax.random.key(0), (20, 2))
    >>> params = {"a": jnp.array([[1.0, 2.0], [3.0, -1.0]]), "b": jnp.array([[1.0], [2.0]])}
    >>> y = apply(params, x)
    >>> found = flat(lambda p: ((apply(p, x) - y) ** 2).mean(), params, js.discover(apply, params, x))
    >>> int(found.rank), int(found.nullity), int(found.orbit_dim), bool(found.contained)
    (4, 2, 2, True)
    """
    expect_group(sym, "flat")

    def found(point: Point) -> Flat:
        matrix, at = dense(point), point.at

        def generators(at: Array) -> Float[Array, "dim P"]:
            if not sym.dim:
                return jnp.zeros((0, at.size), at.dtype)
            return jax.vmap(lambda leaf: ravel_pytree(leaf)[0])(sym.tangents(point.back(at)))

        xi, pull = jax.vjp(generators, at)
        gradient = jax.grad(lambda at: loss(point.back(at)))(at)
        values, vectors = jnp.linalg.eigh(matrix)
        largest = jnp.abs(values).max()
        rank, gap, limit = ranked(jnp.abs(values), small)
        kept = jnp.abs(values) > limit
        lengths = jnp.linalg.norm(xi, axis=1)
        unit = xi / jnp.where(lengths > 0, lengths, 1)[:, None]
        outside = jnp.linalg.norm(jnp.where(kept, unit @ vectors, 0), axis=1)
        orbit = rank_of(unit)
        within = rank_of(jnp.where(kept, 0, unit @ vectors), CONTAINED)
        each = jnp.eye(sym.dim, dtype=at.dtype)
        moved = jax.vmap(lambda one: pull(one[:, None] * gradient)[0])(each)  # (D xi_i)' grad L
        away = jnp.linalg.norm(unit @ matrix + moved / jnp.where(lengths > 0, lengths, 1)[:, None], axis=1)
        norm, length = jnp.linalg.norm(gradient), jnp.linalg.norm(at)
        slopes = gradient @ vectors
        newton = jnp.linalg.norm(jnp.where(kept, slopes / jnp.where(kept, values, 1), 0))
        nullity = at.size - rank
        hidden = on_data = beyond = None
        if apply is not None:
            null = jnp.where(kept, 0, vectors)
            hidden, on_data, beyond = _explained(point, apply, inputs, key, null, nullity, within)
        return Flat(
            rank,
            nullity,
            orbit,
            outside.max(initial=0) <= CONTAINED,
            gap,
            (kept & (values < 0)).sum(),
            norm,
            (norm <= CRITICAL * largest * length) & (newton <= STEP * length),
            outside,
            away.max(initial=0) / jnp.where(largest > 0, largest, 1),
            nullity - within,
            hidden,
            on_data,
            beyond,
            values,
        )

    return computed(found, loss, params, None, "flat", is_dense=True)


def effective_dimension(apply: Callable[..., Any], params: PyTree, *inputs: Any) -> Int[Array, ""]:
    """How many dimensions of functions on these inputs the parameters move in: the rank of the Jacobian of all outputs.

    No reparametrisation changes it.

    Parameters
    ----------
    apply, params, inputs
        ``apply(params, *inputs) -> outputs``; floating parameters.

    Notes
    -----
    *Source*: Grigsby, Lindsey, Meyerhoff, Wu 2022 (arXiv:2209.04036), the functional dimension.

    Examples
    --------
    >>> int(effective_dimension(lambda p, x: p["a"] * p["b"] * x, {"a": jnp.ones(1), "b": jnp.ones(1)}, jnp.ones(3)))
    1
    """
    who = "effective_dimension"
    with exact() as widened:
        checked(lambda params: _outputs(apply, params, inputs).sum(), params, (), who)
        checked_finite("params", params, who)
        at, back = ravel_pytree(widened(params))
        given = widened(tuple(inputs))
        found = jax.jit(one_by_one(lambda at: rank_of(_jacobian(apply, at, back, given))))(at)
    return lasting(found)


def ranked(sizes: Float[Array, " n"], small: float) -> tuple[Int[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """How many are not zero, by the widest gap below ``small`` of the largest; the ratio there; and a bound between.

    A gap of less than a factor of 100 parts nothing: then only rounding counts as zero. What is below rounding counts as rounding, so that exact zeros
    make no wider gap than it does.
    """
    if len(sizes) == 1:
        return (sizes > 0).sum(), jnp.array(jnp.inf, sizes.dtype), jnp.zeros((), sizes.dtype)
    ordered = jnp.sort(sizes)[::-1]
    largest, following = ordered[0], ordered[1:]
    rounding = jnp.finfo(sizes.dtype).eps * largest
    floored = jnp.maximum(ordered, jnp.where(largest > 0, rounding, 1))
    ratios = floored[:-1] / floored[1:]
    parted = (following <= small * largest) & (ratios >= GAP)
    nothing = following <= len(sizes) * rounding
    at = jnp.where(parted.any(), jnp.argmax(jnp.where(parted, ratios, 0)), jnp.argmax(nothing))
    full = ~(parted.any() | nothing.any())
    gap = jnp.where(full | (largest == 0), jnp.inf, ratios[at])
    limit = jnp.where(full, 0, jnp.sqrt(floored[at]) * jnp.sqrt(floored[at + 1]))
    return (sizes > limit).sum(), gap, limit


def rank_of(matrix: Float[Array, "n m"], small: float = 1e-9) -> Int[Array, ""]:
    """The rank of a matrix, by the gap in its singular values."""
    if not matrix.size:
        return jnp.zeros((), int)
    return ranked(jnp.linalg.svd(matrix, compute_uv=False), small)[0]


def _outputs(apply: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> Float[Array, " outputs"]:
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(apply(params, *inputs))]
    return jnp.concatenate([leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)])


def _jacobian(
    apply: Callable[..., Any], at: Array, back: Callable[[Array], PyTree], inputs: tuple[Any, ...]
) -> Float[Array, "outputs P"]:
    """Of all outputs, its rows scaled to one length."""
    rows = jax.jacfwd(lambda at: _outputs(apply, back(at), inputs))(at)
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1)


def _explained(
    point: Point,
    apply: Callable[..., Any],
    inputs: tuple[Any, ...],
    key: Array | None,
    null: Float[Array, "P P"],
    nullity: Int[Array, ""],
    within: Int[Array, ""],
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Dimensions of the null space beyond the orbit: in the kernel of the Jacobian at any input, at these inputs, and in neither.

    The kernel within the null space (columns of ``null``, the others 0) is the null space less the rank of the Jacobian on it. At zero residual
    ``|J v|^2`` is of the size of ``v' H v``, which is known up to rounding: what is below the square root of that does not move.
    """
    keys = jax.random.split(jax.random.key(0) if key is None else key, MORE)
    here = _jacobian(apply, point.at, point.back, inputs)
    more = [_jacobian(apply, point.at, point.back, perturbed(other, inputs, 1.0)) for other in keys]
    # rows that are not finite lie beyond the domain of apply
    more = [jnp.where(jnp.isfinite(rows).all(axis=1, keepdims=True), rows, 0) for rows in more]

    def moving(rows: Array) -> Int[Array, ""]:
        least = 4 * jnp.finfo(rows.dtype).eps ** 0.5 * jnp.linalg.norm(rows)
        return (jnp.linalg.svd(rows @ null, compute_uv=False) > least).sum()

    on_these, anywhere = moving(here), moving(jnp.concatenate([here, *more]))
    return nullity - anywhere - within, anywhere - on_these, on_these
