"""Paths between networks: the straight line and its barrier, curves inside an orbit, trained curves between two minima, and planes through three."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.alignment.given import expect_alike, expect_numbers, whole
from jaxsym.symmetry.checks import expect_concrete, expect_finite
from jaxsym.symmetry.factors import CATALOGUE, Factor
from jaxsym.symmetry.group import Element, Symmetry, expect_group

Loss = Callable[[PyTree], Float[Array, ""]]


class Barrier(NamedTuple):
    """A loss along the straight line between two networks."""

    ts: Float[Array, " num"]
    """From 0, at the first network, to 1."""
    losses: Float[Array, " num"]
    height: Float[Array, ""]
    """The largest excess over the chord between the two ends; 0 where there is none."""


class Curve(NamedTuple):
    """A quadratic Bezier curve between two networks."""

    middle: PyTree
    """The control point."""
    history: Float[Array, " steps"]
    """The loss at a random point of the curve, before each step."""


class Plane(NamedTuple):
    """A loss on the plane through three networks."""

    xs: Float[Array, " num"]
    """Along the way from the first to the second, in units of the parameters."""
    ys: Float[Array, " num"]
    """Perpendicular to it, towards the third."""
    losses: Float[Array, "num num"]
    """``[y, x]``."""
    points: Float[Array, "3 2"]
    """Where the three networks lie."""


def barrier(loss: Loss, a: PyTree, b: PyTree, num: int = 25) -> Barrier:
    """The loss on the straight line from ``a`` to ``b``, and how far it rises above the chord between its ends.

    Parameters
    ----------
    loss
        ``loss(params)``, a scalar: also an error rate, of which the height is the loss of accuracy.
    a, b
        Two networks; leaves that hold no real numbers are those of ``a``.
    num
        How many points, the two ends included.

    Returns
    -------
    Barrier
        The ``losses`` at the points ``ts`` of the line, and the ``height``.

    Raises
    ------
    TypeError, ValueError
        If the networks differ in a leaf or its shape, the loss is no function of parameters or no scalar, or ``num`` is less than 3.

    Notes
    -----
    *Source*: Frankle, Dziugaite, Roy, Carbin 2020, arXiv:1912.05671; with the chord, Entezari, Sedghi, Saukh, Neyshabur 2021, arXiv:2110.06296.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> found = barrier(lambda w: (w**2 - 1) ** 2, jnp.array(-1.0), jnp.array(1.0))
    >>> float(found.height)
    1.0
    """
    expect_loss("barrier", loss)
    expect_alike("barrier", tree.leaves(a), tree.leaves(b))
    if not whole(num, 3):
        msg = f"barrier: num is {num!r}, expected at least 3 points: the two ends and one between."
        raise ValueError(msg)
    shape = jax.eval_shape(loss, a)
    if getattr(shape, "shape", None) != ():
        msg = f"barrier: loss returned {shape}, expected a scalar: take the mean over the rows."
        raise ValueError(msg)
    ts = jnp.linspace(0, 1, num)
    losses = jax.lax.map(lambda t: loss(between(a, b, t)), ts)
    chord = losses[0] + ts * (losses[-1] - losses[0])
    return Barrier(ts, losses, jnp.max(losses - chord))


def between(a: PyTree, b: PyTree, t: Any) -> PyTree:
    """The point at ``t`` on the straight line from ``a`` to ``b``; exactly these at 0 and 1."""

    def mixed(x: Any, y: Any) -> Any:
        x = jnp.asarray(x)
        return ((1 - t) * x + t * y).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(mixed, a, b)


def orbit_path(sym: Symmetry, params: PyTree, g: Element, num: int = 25) -> PyTree:
    """Points of a curve inside the orbit, from ``params`` to ``sym.act(g, params)``: all of them the same function.

    Parameters
    ----------
    sym
        The group.
    params
        A network.
    g
        An element in the identity's component: no unit is permuted and no sign is flipped, and every matrix has a positive determinant. On the host.
    num
        How many points, the two ends included.

    Returns
    -------
    PyTree
        Like ``params``, leaves ``[num, *leaf]``.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, ``g`` is none of its elements or not finite or traced, or no curve inside the orbit leads there.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 1), "relu"), jax.numpy.ones((5, 3))
    >>> params = net.init(jax.random.key(0), x)
    >>> sym = js.discover(net.apply, params, x)
    >>> path = orbit_path(sym, params, sym.exp(jax.numpy.ones(4)))
    >>> jax.vmap(net.apply, (0, None))(path, x).std(0).max() < 1e-6
    Array(True, dtype=bool)
    """
    expect_group(sym, "orbit_path")
    if not whole(num, 2):
        msg = f"orbit_path: num is {num!r}, expected at least 2 points, the two ends."
        raise ValueError(msg)
    expect_numbers(params, "orbit_path: params")
    sym.act(g, params)  # refuses what does not fit
    for factor, part in zip(sym.factors, g, strict=True):
        expect_concrete("orbit_path: g", part)
        expect_finite(f"orbit_path: the {factor.kind} of g", part, "take an element of the group, such as one of exp")
    ways = [_way(factor, np.asarray(part)) for factor, part in zip(sym.factors, g, strict=True)]
    points = [sym.act(tuple(jnp.asarray(way(t)) for way in ways), params) for t in np.linspace(0, 1, num)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)


def _way(factor: Factor, part: np.ndarray) -> Callable[[float], np.ndarray]:
    """A curve inside one factor, from its identity at 0 to ``part`` at 1."""
    name = "/".join(factor.slots[0].path) if factor.slots else "a function of its own"
    kind = CATALOGUE[factor.kind]
    if kind.exp is None:
        still = np.asarray(kind.identity(factor))
        if not np.array_equal(still, part):
            msg = f"orbit_path: g has a {factor.kind} of {name} that moves units, which no curve inside the orbit does; take the identity there."
            raise ValueError(msg)
        return lambda t: still
    if factor.kind not in ("general_linear", "orthogonal"):
        return lambda t: t * part
    flat = part.reshape(-1, *part.shape[-2:]).astype(np.float64)
    if not (np.linalg.slogdet(flat).sign > 0).all():
        msg = f"orbit_path: g has a matrix of {name} whose determinant is not positive: no curve inside the orbit leads there."
        raise ValueError(msg)
    curves = [_turning(matrix) for matrix in flat]
    return lambda t: np.stack([curve(t) for curve in curves]).reshape(part.shape)


def _turning(matrix: Float[np.ndarray, "n n"]) -> Callable[[float], np.ndarray]:
    """From the identity to a matrix with positive determinant: a rotation times a positive part, each along its own curve."""
    rotation, positive = scipy.linalg.polar(matrix)
    values, vectors = np.linalg.eigh(positive)
    blocks, basis = scipy.linalg.schur(rotation, output="real")
    planes: list[tuple[int, int, float]] = []
    reversed_axes: list[int] = []
    i = 0
    while i < len(blocks):
        if i + 1 < len(blocks) and abs(blocks[i + 1, i]) > 1e-12:
            planes.append((i, i + 1, float(np.arctan2(blocks[i + 1, i], blocks[i, i]))))
            i += 2
        else:
            if blocks[i, i] < 0:
                reversed_axes.append(i)
            i += 1
    planes += [(j, k, np.pi) for j, k in zip(reversed_axes[::2], reversed_axes[1::2], strict=True)]

    def at(t: float) -> np.ndarray:
        turned = np.eye(len(blocks))
        for j, k, angle in planes:
            turned[[j, j, k, k], [j, k, j, k]] = (
                np.cos(t * angle),
                -np.sin(t * angle),
                np.sin(t * angle),
                np.cos(t * angle),
            )
        return basis @ turned @ basis.T @ (vectors * values**t) @ vectors.T

    return at


def curve(
    loss: Callable[[PyTree, Array], Float[Array, ""]],
    a: PyTree,
    b: PyTree,
    key: Array,
    steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
) -> Curve:
    """Train a quadratic Bezier curve between two minima, so that the loss is low all along it; its ends stay.

    Parameters
    ----------
    loss
        ``loss(params, key)``; the key draws a minibatch, or is ignored.
    a, b
        Two networks.
    key
        Of the points on the curve, one a step.
    steps
        How many.
    optimizer
        Of the control point; ``optax.adam(1e-2)`` when None.

    Returns
    -------
    Curve
        The control point ``middle``, for :func:`along`, and the ``history`` of the loss.

    Raises
    ------
    TypeError, ValueError
        If the networks differ in a leaf or its shape, the loss is no function of parameters and a key, or ``steps`` is less than 1.

    Notes
    -----
    *Source*: Garipov, Izmailov, Podoprikhin, Vetrov, Wilson 2018, arXiv:1802.10026, equations 2 and 4.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> ring = lambda w, key: ((w**2).sum() - 1) ** 2
    >>> a, b = jnp.array([1.0, 0.0]), jnp.array([-1.0, 0.1])
    >>> found = curve(ring, a, b, jax.random.key(0))
    >>> straight = barrier(lambda w: ring(w, None), a, b, 9).losses.max()
    >>> bent = max(ring(point, None) for point in along(a, found.middle, b, 9))
    >>> bool(bent < 0.3 * straight)
    True
    """
    expect_alike("curve", tree.leaves(a), tree.leaves(b))
    expect_loss("curve", loss, keyed=True)
    if not whole(steps, 1):
        msg = f"curve: steps is {steps!r}, expected a number from 1 on."
        raise ValueError(msg)
    tool = optax.adam(1e-2) if optimizer is None else optimizer

    def at(middle: PyTree, key: Array) -> Float[Array, ""]:
        place, inner = jax.random.split(key)
        return loss(_bezier(a, tree.put(start, middle), b, jax.random.uniform(place)), inner)

    def step(state: tuple[PyTree, Any], key: Array) -> tuple[tuple[PyTree, Any], Array]:
        middle, memory = state
        value, slope = jax.value_and_grad(at)(middle, key)
        updates, memory = tool.update(slope, memory, middle)
        return (optax.apply_updates(middle, updates), memory), value

    start = between(a, b, 0.5)
    free = {path: leaf for path, leaf in tree.leaves(start).items() if _real(leaf)}
    (middle, _), history = jax.jit(functools.partial(jax.lax.scan, step))(
        (free, tool.init(free)), jax.random.split(key, steps)
    )
    return Curve(tree.put(start, middle), history)


def along(a: PyTree, middle: PyTree, b: PyTree, num: int = 25) -> PyTree:
    """Points of the Bezier curve from ``a`` to ``b`` with a control point: leaves ``[num, *leaf]``."""
    return jax.vmap(lambda t: _bezier(a, middle, b, t))(jnp.linspace(0, 1, num))


def _bezier(a: PyTree, middle: PyTree, b: PyTree, t: Any) -> PyTree:
    return between(between(a, middle, t), between(middle, b, t), t)


def plane(loss: Loss, a: PyTree, b: PyTree, c: PyTree, num: int = 25, margin: float = 0.3) -> Plane:
    """The loss on the plane through three networks.

    Parameters
    ----------
    loss
        ``loss(params)``, a scalar.
    a, b, c
        Three networks that do not lie on a line.
    num
        Points along each axis.
    margin
        How far the plane goes beyond the networks, as a part of their extent.

    Returns
    -------
    Plane
        ``losses[y, x]`` at the distances ``ys`` and ``xs`` from the first network, and the ``points`` ``[3, 2]`` where the networks lie, as ``plt.contourf(xs, ys, losses)`` and
        ``plt.plot(*points.T, "o")`` draw them.

    Raises
    ------
    TypeError, ValueError
        If the networks differ in a leaf or its shape, are not finite, or lie on a line, the loss is no function of parameters, or ``num`` is less than 2.

    Notes
    -----
    *Source*: Garipov et al. 2018, arXiv:1802.10026, appendix A.3.
    """
    expect_loss("plane", loss)
    expect_alike("plane", tree.leaves(a), tree.leaves(b))
    expect_alike("plane", tree.leaves(a), tree.leaves(c))
    if not whole(num, 2):
        msg = f"plane: num is {num!r}, expected at least 2 points along each axis."
        raise ValueError(msg)
    first, second = (jax.tree.map(_difference, other, a) for other in (b, c))
    length = jnp.sqrt(_inner(first, first))
    across = _inner(first, second) / length
    rest = jax.tree.map(lambda u, v: v - u * across / length, first, second)
    height = jnp.sqrt(_inner(rest, rest))
    if not (length > 0 and height > 1e-6 * length):
        finite = bool(jnp.isfinite(length + across + height))
        msg = f"plane: the three networks {'lie on a line; take three that do not' if finite else 'are not finite'}."
        raise ValueError(msg)
    points = jnp.array([[0, 0], [length, 0], [across, height]])
    low, high = points.min(0), points.max(0)
    extent = margin * (high - low)
    xs, ys = (jnp.linspace(low[i] - extent[i], high[i] + extent[i], num) for i in range(2))

    def at(place: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = place
        return loss(
            jax.tree.map(
                lambda p, u, v: (p + u * x / length + v * y / height).astype(p.dtype) if _real(p) else p,
                jax.tree.map(jnp.asarray, a),
                first,
                rest,
            )
        )

    grid = jnp.stack(jnp.meshgrid(xs, ys), axis=-1)
    return Plane(xs, ys, jax.lax.map(at, grid.reshape(-1, 2)).reshape(num, num), points)


def _real(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _difference(one: Any, other: Any) -> Any:
    """At least in float32; 0 where there are no real numbers."""
    if not _real(one):
        return jnp.zeros(())
    wide = jnp.promote_types(jnp.result_type(one, other), jnp.float32)
    return jnp.asarray(one, wide) - jnp.asarray(other, wide)


def _inner(one: PyTree, other: PyTree) -> Float[Array, ""]:
    return sum(
        (jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)), jnp.zeros(())
    )


def expect_loss(who: str, loss: Any, *, keyed: bool = False) -> None:
    """Refuse what is no function of parameters, or of parameters and a key."""
    takes = ("params", "key") if keyed else ("params",)
    if not callable(loss):
        msg = f"{who}: loss is of type {type(loss).__name__}, expected a function loss({', '.join(takes)})."
        raise TypeError(msg)
    try:
        inspect.signature(loss).bind(*takes)
    except ValueError:  # it has none to show
        return
    except TypeError as error:
        advice = (
            "a loss without a key is lambda params, key: loss(params)"
            if keyed
            else "fix the key or the rows, as in lambda params: loss(params, key)"
        )
        msg = f"{who}: loss{inspect.signature(loss)} does not take ({', '.join(takes)}): {error}; {advice}."
        raise TypeError(msg) from error
