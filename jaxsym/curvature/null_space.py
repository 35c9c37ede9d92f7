"""The null space of a Hessian beside the orbit of a symmetry: what is flat because the function does not change, and what else is.

Along an orbit the loss is constant, so that ``<grad L, xi> = 0`` for every generator ``xi``; differentiated, ``H xi = -(D xi)' grad L``. The tangent
of the orbit is therefore in the null space at critical points, and elsewhere it is not.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsym.curvature.checks import (
    checked,
    checked_finite,
    exact,
    expect_key,
    expect_positive,
    expect_precise,
    expect_room,
    expect_same,
    forwards,
    lasting,
    one_by_one,
    traced,
)
from jaxsym.curvature.products import Loss, size
from jaxsym.curvature.spectra import Point, computed, dense
from jaxsym.parallel.chunk import is_tracing
from jaxsym.symmetry.certify import GAP
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.group import Symmetry, expect_group
from jaxsym.symmetry.scales import balancing_element
from jaxsym.symmetry.units import numbers

SMALL = 1e-6
"""Eigenvalues below this part of the largest may count as zero: those below the widest gap there do."""
CRITICAL = 1e-8
"""A gradient below this part of ``|H| |params|`` counts as zero, at the balanced point, of the parameters whose curvature is not zero,"""
STEP = 1e-4
"""if a Newton step is shorter than this part of the parameters."""
CONTAINED = 1e-4
"""Sine of the angle between a generator and the null space, at most, where the orbit counts as contained."""
RANK = 1e-9
"""Singular values of a Jacobian, or of an orbit, below this part of the largest may count as zero."""
IDENTITY = 1e-5
"""Beyond this the identity fails by more than rounding, in any precision."""
SPREADS = (1.0, 2.0, 4.0, 8.0)
"""How far further inputs lie from the given ones, in units of their size: as many outputs as parameters at least at each."""


class Flat(NamedTuple):
    """Rank and null space of a Hessian, and how the orbit of a group lies in it.

    Attributes
    ----------
    rank, nullity
        Of the Hessian ``[P, P]``, by the widest gap among small eigenvalues at the balanced point of the orbit: along the orbit they are the same.
    orbit_dim
        Dimension of the orbit at these parameters.
    contained
        Whether all generators lie in the null space.
    gap
        The smallest kept eigenvalue over the largest dropped one, in size; over the next such ratio, where the small ones part twice. Below 100 rank
        and nullity are not to be trusted.
    negative
        How many eigenvalues are negative, of those that are kept.
    gradient_norm
        ``|grad L|``.
    critical
        Whether the gradient counts as zero at the balanced point, by its size and by the length of a Newton step: only then must the orbit be
        contained.
    outside
        ``[sym.dim]``: sine of the angle between each generator and the null space, at the balanced point.
    identity
        ``max |H xi + (D xi)' grad L| / (|H| |xi|)`` there: rounding, whatever the point, or the group is none of this loss.
    unexplained
        ``nullity`` less the dimension of the part of the null space that the orbit spans.
    hidden, on_data, beyond
        Which parts of ``unexplained`` these are; None without ``apply``. How many dimensions leave all outputs at any input as they are (dead and
        always-on units, redundant parameters); how many further ones leave the outputs at these inputs as they are (rank of the data,
        overparametrisation); and what is flat though outputs change (the loss itself, or residuals that cancel). Integers among the inputs stay as
        they are: give all tokens that there are. -1 inside ``jit`` where derivatives of the outputs are not finite.
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
        """Which case it is, and what explains the null space; of an ensemble, how many networks are which."""
        if jnp.ndim(self.gap):
            return self._many()
        clean = "full rank" if math.isinf(self.gap) else f"a gap of {self.gap:.1e} in the eigenvalues"
        lines = [
            f"rank {self.rank}, nullity {self.nullity} ({clean}), {self.negative} negative, orbit {self.orbit_dim}"
        ]
        if self.gap < GAP:
            lines.append("the gap is too small: these numbers are not to be trusted")
        where = "a critical point" if self.critical else "no critical point"
        lies = "the orbit lies in the null space" if self.contained else "the orbit does not lie in the null space"
        lies += "" if self.critical or self.contained else ", as it need not"
        lies = lies if len(self.outside) else "there is no continuous symmetry"
        norm = f"|grad L| = {self.gradient_norm:.1e}"
        lines.append(f"{where} ({norm}): {lies}; H xi = -(D xi)' grad L to {self.identity:.1e} of |H| |xi|")
        if self.identity > IDENTITY:
            lines.append("that identity fails: this loss does not have this group (weight decay in it?)")
        if self.unexplained:
            said = f"{self.unexplained} flat dimensions are not the group's ({self.nullity - self.unexplained} are)"
            if self.hidden is not None:
                said += f": {self.hidden} at any input, {self.on_data} on these inputs only, {self.beyond} of the loss"
            lines.append(said)
        return "\n".join(lines)

    def _many(self) -> str:
        rank, nullity, orbit, critical, contained, gap = (  # NumPy's: JAX may compute in less than float64 here
            np.asarray(leaf)
            for leaf in (self.rank, self.nullity, self.orbit_dim, self.critical, self.contained, self.gap)
        )
        ranges = [
            f"{name} {x.min()} to {x.max()}" for name, x in (("rank", rank), ("nullity", nullity), ("orbit", orbit))
        ]
        return (
            f"{gap.size} networks: {', '.join(ranges)}; {critical.sum()} at critical points, the orbit in the null space of {contained.sum()};"
            f" {(gap < GAP).sum()} without a clear gap, not to be trusted; take one by jax.tree.map(lambda leaf: leaf[0], found)"
        )


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
        The network, ``apply(params, *inputs)``, on the inputs of the loss, a tuple: to tell what explains the rest of the null space.
    key
        Of further random inputs for that; a fixed one when None.
    small
        Eigenvalues below this part of the largest may count as zero; between 0 and 1.

    Returns
    -------
    Flat
        ``print`` it.

    Raises
    ------
    TypeError
        If ``sym`` is no group, ``inputs`` no tuple, or a parameter is not floating.
    ValueError
        As for :func:`~jaxsym.curvature.hessian`; if derivatives of ``apply`` are not finite; or if loss or network compute in less than the precision
        of the parameters somewhere, for then no rank can be told.

    Notes
    -----
    Units that are rescaled by large factors spread the eigenvalues over many orders of magnitude, which rounding takes for rank. The loss is constant
    along the orbit, ``L(D theta) = L(theta)``, so that the Hessian at the balanced point ``D theta`` is ``D^-1 H D^-1``: of the same rank,
    and with the least spread that the group allows. There it is looked at.

    *Source*: the identity differentiates Kunin et al. 2021 (arXiv:2012.04728), equation 5; the balanced point is of Stock et al. 2019
    (arXiv:1902.10416).

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
    expect_positive("flat", "small", small, "a part of the largest eigenvalue", 1)
    if key is not None:
        expect_key("flat", key)
    if apply is not None:
        _expect_network(apply, params, inputs, "flat")

    def found(point: Point) -> Flat:
        given, factors = dense(point), _balancing(sym, point)
        matrix, at = given / factors / factors[:, None], factors * point.at

        def generators(at: Array) -> Float[Array, "dim P"]:
            if not sym.dim:
                return jnp.zeros((0, at.size), at.dtype)
            return jax.vmap(lambda leaf: ravel_pytree(leaf)[0])(sym.tangents(point.back(at)))

        xi, pull = jax.vjp(generators, at)
        slope = jax.grad(lambda at: loss(point.back(at)))(point.at)
        gradient = slope / factors
        values, vectors = jnp.linalg.eigh(matrix)
        largest = jnp.abs(values).max()
        rank, gap, limit = ranked(jnp.abs(values), small)
        kept = jnp.abs(values) > limit
        lengths = jnp.linalg.norm(xi, axis=1)
        unit = xi / jnp.where(lengths > 0, lengths, 1)[:, None]
        outside = jnp.linalg.norm(jnp.where(kept, unit @ vectors, 0), axis=1)
        orbit = spanned(unit)
        within = _common(orbit, jnp.where(kept, vectors, 0))
        each = jnp.eye(sym.dim, dtype=at.dtype)
        moved = jax.vmap(lambda one: pull(one[:, None] * gradient)[0])(each)  # (D xi_i)' grad L
        away = jnp.linalg.norm(unit @ matrix + moved / jnp.where(lengths > 0, lengths, 1)[:, None], axis=1)
        seen = (
            jnp.abs(matrix).max(axis=1) > at.size * jnp.finfo(at.dtype).eps * largest
        )  # a dead unit may be of any size
        norm, length = jnp.linalg.norm(gradient), jnp.linalg.norm(jnp.where(seen, at, 0))
        slopes = gradient @ vectors
        newton = jnp.linalg.norm(jnp.where(kept, slopes / jnp.where(kept, values, 1), 0))
        nullity = at.size - rank
        unexplained = nullity - _rows(within)
        hidden = on_data = beyond = None
        if apply is not None:
            null = jnp.where(kept, 0, vectors)
            hidden, on_data, beyond = _explained(point._replace(at=at), apply, inputs, key, null, within, unexplained)
        return Flat(
            rank,
            nullity,
            _rows(orbit),
            outside.max(initial=0) <= CONTAINED,
            gap,
            (kept & (values < 0)).sum(),
            jnp.linalg.norm(slope),
            (norm <= CRITICAL * largest * length) & (newton <= STEP * length),
            outside,
            away.max(initial=0) / jnp.where(largest > 0, largest, 1),
            unexplained,
            hidden,
            on_data,
            beyond,
            jnp.linalg.eigvalsh(given) if numbers(sym, "scaling") else values,
        )

    return computed(found, loss, params, None, "flat", held=6 * size(params), precise=True)


def _balancing(sym: Symmetry, point: Point) -> Float[Array, " P"]:
    """The factor of each parameter on the way to the balanced point of the orbit, at which units that have none are of size 1."""
    ones = jnp.ones_like(point.at)
    if not numbers(sym, "scaling"):
        return ones
    factors = ravel_pytree(sym.act(balancing_element(sym, point.back(point.at), pinned=True), point.back(ones)))[0]
    return jnp.where(jnp.isfinite(factors).all() & (factors > 0).all(), factors, ones)


def effective_dimension(apply: Callable[..., Any], params: PyTree, *inputs: Any) -> Int[Array, ""]:
    """How many dimensions of functions on these inputs the parameters move in: the rank of the Jacobian of all outputs.

    No reparametrisation changes it.

    Parameters
    ----------
    apply, params, inputs
        ``apply(params, *inputs) -> outputs``; floating parameters.

    Returns
    -------
    Array
        An int; -1 inside ``jit`` where a derivative is not finite.

    Raises
    ------
    TypeError
        If a parameter is not floating.
    ValueError
        If something is not finite, the Jacobian would not fit into the memory, or the network computes in less than the precision of its
        parameters somewhere.

    Notes
    -----
    *Source*: Grigsby, Lindsey, Meyerhoff, Wu 2022 (arXiv:2209.04036), the functional dimension.

    Examples
    --------
    >>> int(effective_dimension(lambda p, x: p["a"] * p["b"] * x, {"a": jnp.ones(1), "b": jnp.ones(1)}, jnp.ones(3)))
    1
    """
    _expect_network(apply, params, inputs, "effective_dimension")
    with exact() as widened:
        at, back = ravel_pytree(widened(params))
        given = widened(inputs)

        def found(at: Array) -> Int[Array, ""]:
            jacobian = _jacobian(apply, at, back, given)
            lengths = jnp.linalg.norm(
                jacobian, axis=0
            )  # parameters in other units have other columns, of the same rank
            rounding = max(jacobian.shape) * jnp.finfo(jacobian.dtype).eps * lengths.max()
            even = jacobian / jnp.where(lengths > rounding, lengths, 1)
            return jnp.where(jnp.isfinite(jacobian).all(), _rows(spanned(even)), -1)

        return lasting(jax.jit(one_by_one(found))(at))


def ranked(sizes: Float[Array, " n"], small: float) -> tuple[Int[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """How many are not zero, by the widest gap below ``small`` of the largest; how clear that is; and a bound between.

    A gap of less than a factor of 100 parts nothing: then only rounding counts as zero. What is below rounding counts as rounding, so that exact zeros
    make no wider gap than it does. It is as clear as the gap is wide, or as it is wider than the next that parts something.
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
    others = jnp.where(parted, ratios, 1).at[at].set(1)
    gap = jnp.where(full | (largest == 0), jnp.inf, ratios[at] / others.max())
    limit = jnp.where(full, 0, jnp.sqrt(floored[at]) * jnp.sqrt(floored[at + 1]))
    return (sizes > limit).sum(), gap, limit


def spanned(rows: Float[Array, "n m"], least: Array | None = None) -> Float[Array, "k m"]:
    """An orthonormal basis of what the rows span, rows of 0 beyond the rank: singular values above ``least``, or above a gap."""
    if not rows.size:
        return rows
    _, values, directions = jnp.linalg.svd(rows, full_matrices=False)
    limit = ranked(values, RANK)[2] if least is None else least
    return jnp.where((values > limit)[:, None], directions, 0)


def _rows(basis: Float[Array, "k m"]) -> Int[Array, ""]:
    """How many rows are not 0."""
    return jnp.any(basis != 0, axis=1).sum()


def _common(basis: Float[Array, "k P"], beyond: Float[Array, "P P"]) -> Float[Array, "k P"]:
    """An orthonormal basis of what a space shares with a null space, rows of 0 beyond; the columns of ``beyond`` span the complement of the latter.

    By the principal angles between both: those are shared whose sine is at most ``CONTAINED``. A row of 0 is beyond.
    """
    if not basis.size:
        return basis
    absent = jnp.diag(1.0 * ~jnp.any(basis != 0, axis=1))
    mixed, sines, _ = jnp.linalg.svd(jnp.concatenate([basis @ beyond, absent], axis=1), full_matrices=False)
    return jnp.where((sines <= CONTAINED)[:, None], mixed.T @ basis, 0)


def _expect_network(apply: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...], who: str) -> None:
    """Refuse a network whose rank cannot be told."""
    if not isinstance(inputs, tuple):
        msg = f"{who}: inputs is of type {type(inputs).__name__}, expected a tuple: (x,)."
        raise TypeError(msg)
    is_wide = jnp.result_type(float) == jnp.float64
    with exact() as widened:
        checked(lambda params: _outputs(apply, params, inputs).sum(), params, (), who)
        checked_finite("params", params, who)
        wide, given = widened(params), widened(inputs)

        def outputs(params: PyTree) -> Array:
            return _outputs(apply, params, given)

        dtype = jnp.result_type(*jax.tree.leaves(wide))
        count, num = jax.eval_shape(outputs, wide).size, size(wide)
        expect_room((3 * (count + num), num), dtype, who, "take fewer inputs, or a layer by js.curvature.block")
        jaxpr = traced(outputs, wide, who)
        expect_precise(jaxpr, wide, who)
        if not count:
            msg = f"{who}: apply returns no real or complex numbers, expected some: integers have no derivatives."
            raise ValueError(msg)
        if not is_tracing():
            expect_same(jaxpr, outputs, params, who, is_wide=is_wide)
            ones = jax.tree.map(jnp.ones_like, wide)
            with forwards(who):
                moved = jax.jit(lambda at: jax.jvp(outputs, (at,), (ones,))[1])(wide)
            checked_finite("derivatives of the outputs", moved, who)


def _outputs(apply: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> Float[Array, " outputs"]:
    found = [jnp.ravel(leaf) for leaf in jax.tree.leaves(apply(params, *inputs))]
    leaves = [part for x in found for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    floating = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate(floating) if floating else jnp.zeros(0)


def _jacobian(
    apply: Callable[..., Any], at: Array, back: Callable[[Array], PyTree], inputs: tuple[Any, ...]
) -> Float[Array, "outputs P"]:
    """Of all outputs, its rows scaled to one length."""
    rows = jax.jacfwd(lambda at: _outputs(apply, back(at), inputs))(at)
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1)


def _further(key: Array, inputs: tuple[Any, ...], spread: Array) -> tuple[Any, ...]:
    """Inputs so far from the given ones; positive ones stay positive, integers and keys as they are."""

    def one(given: Any, moved: Array) -> Array:
        if not jnp.issubdtype(moved.dtype, jnp.floating):
            return moved
        return jnp.where(jnp.all(given > 0), moved, given + spread.astype(moved.dtype) * (moved - given))

    return jax.tree.map(one, inputs, perturbed(key, inputs, 1.0))


def _explained(
    point: Point,
    apply: Callable[..., Any],
    inputs: tuple[Any, ...],
    key: Array | None,
    null: Float[Array, "P P"],
    within: Float[Array, "k P"],
    unexplained: Int[Array, ""],
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Dimensions of the null space beyond the orbit: in the kernel of the Jacobian at any input, at these inputs, and in neither.

    Those in no kernel are the rank of the Jacobian on the null space (columns of ``null``, the others 0) beyond its rank on what the orbit has of
    it (rows of ``within``). At zero residual ``|J v|^2`` is of the size of ``v' H v``, which is known up to rounding: what is below the square root
    of that does not move.
    """
    here = _jacobian(apply, point.at, point.back, inputs)
    count, num = here.shape

    def drawn(key: Array, spread: Array) -> Float[Array, "outputs P"]:
        rows = _jacobian(apply, point.at, point.back, _further(key, inputs, spread))
        return jnp.where(jnp.isfinite(rows).all(axis=1, keepdims=True), rows, 0)  # or it is beyond the domain of apply

    def add(factor: Float[Array, "P P"], at: tuple[Array, Array]) -> tuple[Float[Array, "P P"], None]:
        rows = jax.vmap(drawn, in_axes=(0, None))(*at).reshape(-1, num)
        return jnp.linalg.qr(jnp.concatenate([factor, rows]), mode="r"), None

    keys = jax.random.split(jax.random.key(0) if key is None else key, (len(SPREADS), math.ceil(num / count)))
    padded = jnp.concatenate([here, jnp.zeros((num, num), here.dtype)])
    factor = jnp.linalg.qr(padded, mode="r")  # of the same singular values on any space
    whole, _ = jax.lax.scan(add, factor, (keys, jnp.array(SPREADS)))
    sizes, basis = jnp.linalg.eigh(null @ null.T - within.T @ within)
    rest = jnp.where(sizes > 0.5, basis, 0)

    def moving(rows: Float[Array, "P P"]) -> Int[Array, ""]:
        least = 4 * jnp.finfo(rows.dtype).eps ** 0.5 * jnp.linalg.norm(rows)
        along = spanned((rows @ within.T).T, least)
        apart = rows @ rest
        return (jnp.linalg.svd(apart - along.T @ (along @ apart), compute_uv=False) > least).sum()

    on_these = moving(factor)
    anywhere = jnp.maximum(moving(whole), on_these)
    parts = (unexplained - anywhere, anywhere - on_these, on_these)
    finite = jnp.isfinite(here).all()
    return tuple(jnp.where(finite, part, -1) for part in parts)  # type: ignore[return-value]
