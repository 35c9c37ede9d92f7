"""The continuous part of a group by least squares: rescalings, changes of basis, rotations and translations that bring one network closest to another."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.optimize
from jaxtyping import Float, PyTree

from jaxsym import tree
from jaxsym.alignment.given import checked, double, shown
from jaxsym.symmetry.factors import CATALOGUE
from jaxsym.symmetry.group import Element, Symmetry, expect_group
from jaxsym.symmetry.units import floating

STEPS = 1000
"""Of the quasi-Newton method, at most."""
MEMORY = 20
"""How many of them it remembers."""
ROUNDING = 1e-12
"""A squared distance below this part of the squared norm is none."""


def nearest(sym: Symmetry, a: PyTree, b: PyTree, element: Element | None = None) -> Element:
    """The element next to a given one that brings ``b`` closest to ``a`` where ``a`` is: least squares over the continuous part of the group.

    Minimises ``|a - exp(xi) . element . b|^2`` over Lie-algebra coordinates ``xi``, from 0, where :func:`jaxsym.align` ends. Its frames are balanced: of one
    orbit that is exact, but of two networks of different orbits it is not the point of the orbit that lies closest to ``a``. In float64, on the host.

    Parameters
    ----------
    sym
        The group. A user's own action is moved, too.
    a, b
        Parameters of two networks.
    element
        Where to begin: its permutations and signs stay; the identity when None.

    Returns
    -------
    Element
        The distance is never larger than that of ``element``, which is returned where nothing is gained.

    Raises
    ------
    TypeError, ValueError
        If ``sym`` is no group, or the parameters or the element do not fit it.

    Notes
    -----
    A minimum of one valley: the distance is not convex in rescalings and changes of basis. A unit without weights on one side has no nearest rescaling, but
    goes on towards 0 on the other, as far as a gain can be told from rounding.

    *Source*: limited-memory BFGS, Byrd, Lu, Nocedal, Zhu 1995, as in :func:`scipy.optimize.minimize`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, jaxsym as js
    >>> pair = lambda u, v: {"u": jnp.array([[u]]), "v": jnp.array([[v]])}
    >>> linear = lambda p, x: x @ p["u"] @ p["v"]
    >>> sym = js.discover(linear, pair(1.0, 2.0), jnp.ones((3, 1)))
    >>> closest = sym.act(nearest(sym, pair(2.0, 2.0), pair(1.0, 4.0)), pair(1.0, 4.0))
    >>> closest["u"].round(3).item(), closest["v"].round(3).item()
    (2.0, 2.0)
    """
    expect_group(sym, "nearest")
    first = sym.identity() if element is None else element
    if sym.dim == 0:
        return first
    with jax.enable_x64(True):
        one, two = (tree.put(params, checked(sym, params, f"nearest: {name}")) for name, params in (("a", a), ("b", b)))
        given = tuple(double(list(first)).values())
        begun = jax.device_get(sym.act(given, two))
        least, size = _squared(one, begun), _squared(one, jax.tree.map(np.zeros_like, one))
        if least <= ROUNDING * size:
            return first
        measured = _measured(sym)

        def slope(coordinates: Float[np.ndarray, " dim"]) -> tuple[float, Float[np.ndarray, " dim"]]:
            value, gradient = measured(coordinates, one, begun)
            return float(value), np.asarray(gradient)

        found = scipy.optimize.minimize(
            slope,
            np.zeros(sym.dim),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS, "maxcor": MEMORY, "ftol": 1e-12, "gtol": 1e-9 * least},
        )
        moved = jax.device_get(sym.compose(_chart(sym, found.x), given))
        better = _squared(one, jax.device_get(sym.act(moved, two))) < least
    return shown(moved) if better else first


def _measured(sym: Symmetry) -> Callable[..., Any]:
    """Squared distance and its gradient in Lie-algebra coordinates: compiled once, and kept with the group."""
    kept = vars(sym)
    if "nearest" not in kept:
        kept["nearest"] = jax.jit(
            jax.value_and_grad(lambda coordinates, a, b: _squared(a, sym.act(_chart(sym, coordinates), b)))
        )
    return kept["nearest"]


def _chart(sym: Symmetry, coordinates: Any) -> Element:
    """The element of Lie-algebra coordinates; of changes of basis to first order, which is a chart of them too, and cheaper than their exponential."""
    parts: list[Any] = []
    start = 0
    for factor, part in zip(sym.factors, sym.exp(coordinates), strict=True):
        size = CATALOGUE[factor.kind].dim(factor.size) * factor.copies
        own = coordinates[start : start + size]
        parts.append(np.eye(factor.size) + own.reshape(part.shape) if factor.kind == "general_linear" else part)
        start += size
    return tuple(parts)


def _squared(a: PyTree, b: PyTree) -> Any:
    """The squared distance, over all leaves that hold real numbers."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(((x - y) ** 2).sum() for x, y in pairs if floating(x))
