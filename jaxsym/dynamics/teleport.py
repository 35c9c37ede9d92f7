"""Moving along the orbit to where learning is faster: the loss stays, the gradient does not.

A teleport is a group element. What an optimizer remembers moves along with it: a sum of gradients is a covector, so that it moves by the inverse transpose.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsym.catalogue import find
from jaxsym.symmetry.checks import expect_real
from jaxsym.symmetry.group import Element, Symmetry, expect_group
from jaxsym.symmetry.host import normal
from jaxsym.symmetry.scales import balancing_element

Loss = Callable[[PyTree], Float[Array, ""]]
ALIKE = 1e-2  # relative difference up to which two states are one
SAME = 10.0  # relative change of a loss that counts as one, in square roots of the rounding
SIGNS = 16  # vectors of signs, by which squares are carried


def gradient_norm(loss: Loss) -> Loss:
    """``|grad L|``."""
    return lambda params: optax.tree.norm(jax.grad(loss)(params))


def gradient_curvature(loss: Loss) -> Loss:
    """``g' H g / g' g``: the curvature along the gradient."""

    def measured(params: PyTree) -> Array:
        slope = jax.grad(loss)
        g = slope(params)
        _, bent = jax.jvp(slope, (params,), (g,))
        return optax.tree.vdot(g, bent) / optax.tree.vdot(g, g)

    return measured


OBJECTIVES: dict[str, Callable[[Loss], Loss]] = {
    "gradient_norm": gradient_norm,
    "gradient_curvature": gradient_curvature,
}
"""What a teleport can ascend, by name."""


class Teleport(NamedTuple):
    """Where a teleport leads.

    Attributes
    ----------
    element
        Of the group.
    params
        ``sym.act(element, given)``.
    gain
        How much larger the objective is there: after minus before.
    bounded
        Whether it ended on the boundary of the trust region: the objective grows on, perhaps without bound.
    coordinates
        ``[sym.dim]``: ``element = sym.exp(coordinates)``.
    change
        Of the loss, as a part of its size and of what a step of that length changes elsewhere: rounding, or the group is none of this loss.
    """

    element: Element
    params: PyTree
    gain: Float[Array, ""]
    bounded: Bool[Array, ""]
    coordinates: Float[Array, " dim"]
    change: Float[Array, ""]


def teleport(
    sym: Symmetry,
    loss: Loss,
    params: PyTree,
    *,
    objective: str | Loss = "gradient_norm",
    radius: float = 1.0,
    steps: int = 20,
    starts: int = 4,
    key: Array | None = None,
) -> Teleport:
    """The point of the orbit, within a trust region, at which the gradient is largest; the loss is the same.

    Ascends over Lie-algebra coordinates by steps along the gradient that grow while they help and shrink where they do not, projected onto the ball
    ``|coordinates| <= radius``. On an orbit that is not compact the gradient's norm mostly has no bound: the ball is what ends it, and ``bounded`` says so.

    Parameters
    ----------
    sym
        A group that leaves the loss as it is, or ``Symmetry.from_action``.
    loss
        ``loss(params) -> scalar``.
    params
        Where it begins.
    objective
        ``"gradient_norm"``, ``"gradient_curvature"``, or a function of the parameters to be made large.
    radius
        Of the trust region.
    steps
        Of the ascent.
    starts
        From how many points: the identity, and others drawn from the ball, of which the best end counts.
    key
        Of these; a fixed one when None.

    Returns
    -------
    Teleport

    Raises
    ------
    TypeError
        If ``sym`` is no group, or a parameter is an integer or complex.
    ValueError
        If, outside of ``jit``, the loss changes; if the objective has no such name or is no real number, a number is out of range, or the parameters are not those of the group.

    Notes
    -----
    *Source*: Zhao, Dehmamy, Walters, Yu 2022 (arXiv:2205.10637), algorithm 1.

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: jax.nn.relu(x * p["a"]) * p["b"]
    >>> params, x = {"a": jnp.array([2.0]), "b": jnp.array([2.0])}, jnp.ones(1)
    >>> loss = lambda p: ((apply(p, x) - 1) ** 2).sum()
    >>> found = teleport(js.discover(apply, params, x), loss, params)
    >>> bool(found.gain > 1), bool(found.bounded), bool(abs(loss(found.params) - loss(params)) < 1e-4)
    (True, True, True)
    """
    expect_group(sym, "teleport")
    expect_real(params, "teleport")
    sym.leaves(params)
    if not isinstance(radius, jax.core.Tracer) and not 0 < radius < math.inf:
        msg = f"teleport: radius: got {radius!r}, expected more than 0 and finite."
        raise ValueError(msg)
    for name, number in (("steps", steps), ("starts", starts)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            msg = f"teleport: {name}: got {number!r}, expected an int of at least 1."
            raise ValueError(msg)
    measure = objective if callable(objective) else find(OBJECTIVES, objective, "objective")(loss)
    value = jax.eval_shape(measure, params)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        msg = f"teleport: the objective returns {value}, expected one real number."
        raise ValueError(msg)
    dtype = jnp.result_type(float, *jax.tree.leaves(params))
    still = jnp.zeros(sym.dim, dtype)

    def there(coordinates: Array) -> Array:
        return measure(sym.act(sym.exp(coordinates), params))

    first = measure(params)
    if not sym.dim:
        return Teleport(
            sym.identity(), params, jnp.zeros_like(first), jnp.zeros((), bool), still, jnp.zeros_like(first)
        )

    def inside(coordinates: Array) -> Array:
        size = jnp.linalg.norm(coordinates)
        return coordinates * jnp.minimum(1, radius / jnp.where(size > 0, size, 1))

    def step(carry: tuple[Array, Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array, Array], None]:
        at, value, slope, length = carry
        size = jnp.linalg.norm(slope)
        moved = inside(at + length * slope / jnp.where(size > 0, size, 1))
        found, steep = jax.value_and_grad(there)(moved)
        better = jnp.isfinite(found) & jnp.isfinite(steep).all() & (found > value)
        chosen = jax.tree.map(lambda new, old: jnp.where(better, new, old), (moved, found, steep), (at, value, slope))
        return (*chosen, jnp.where(better, 2 * length, length / 4)), None

    def ascend(start: Array) -> tuple[Array, Array]:
        begin = (
            start,
            jnp.array(-jnp.inf, first.dtype),
            still,
            jnp.asarray(radius / 16, dtype),
        )  # the first step stays
        (at, value, _, _), _ = jax.lax.scan(step, begin, length=steps + 1)
        return at, value

    directions, sizes = jax.random.split(jax.random.key(0) if key is None else key)
    drawn = jax.random.normal(directions, (starts - 1, sym.dim), dtype)
    lengths = radius * jax.random.uniform(sizes, (starts - 1, 1), dtype) ** (1 / sym.dim)
    drawn = lengths * drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    ends, values = jax.vmap(ascend)(jnp.concatenate([still[None], drawn]))
    best = jnp.argmax(values)
    at, value = ends[best], values[best]
    at = jnp.where(value > first, at, still)
    element = sym.exp(at)
    gain = jnp.where(value > first, value - first, 0)
    moved = jax.tree.map(jnp.asarray, sym.act(element, params))
    change = _changed(loss, params, moved)
    rounding = max(float(jnp.finfo(leaf.dtype).eps) for leaf in (change, *jax.tree.leaves(moved)))
    if not isinstance(change, jax.core.Tracer) and change > SAME * rounding**0.5:
        msg = (
            f"teleport: the loss changes by {change:.1e} of its size along the orbit, expected a group that leaves it as it is: js.discover of this loss,"
            " or of its network (weight decay belongs into the optimizer)."
        )
        raise ValueError(msg)
    return Teleport(element, moved, gain, jnp.linalg.norm(at) >= radius * (1 - 1e-6), at, change)


def _changed(loss: Loss, params: PyTree, moved: PyTree) -> Float[Array, ""]:
    """By how much a loss differs, as a part of its size and of what a step of that length changes elsewhere."""
    before, (at, back), (end, _) = loss(params), ravel_pytree(params), ravel_pytree(moved)
    away = jnp.cos(1.0 + jnp.arange(at.size, dtype=at.dtype))
    beside = loss(back(at + jnp.linalg.norm(end - at) * away / jnp.linalg.norm(away)))
    usual = jnp.abs(before) + jnp.where(jnp.isfinite(beside), jnp.abs(beside - before), 0)
    return jnp.abs(loss(moved) - before) / jnp.where(usual > 0, usual, 1)


class Moving(NamedTuple):
    """The state of an optimizer that moves along orbits."""

    number: Int[Array, ""]
    """Of the next update."""
    inner: PyTree


def teleporting(
    optimizer: optax.GradientTransformation,
    sym: Symmetry,
    loss: Loss | None = None,
    *,
    every: int,
    first: int | None = None,
    last: int | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that teleports before each ``every``-th update; what it remembers moves along.

    Parameters
    ----------
    optimizer
        Any of optax whose state is made of counters, sums of gradients (``trace``, ``mu``) and of their squares (``nu``). Sums of gradients move by the
        inverse transpose of the element; sums of squares by its elementwise square, exactly for rescalings, and estimated from 16 vectors of signs for changes of basis.
        Whether that is what its state is made of is tried at ``init``, on random gradients and a random rescaling.
    sym, options
        As for :func:`teleport`.
    loss
        ``loss(params)``. None: the ``value_fn`` that the update is given, as :func:`jaxsym.make_train` does: the loss of the minibatch.
    every
        How many updates lie between two teleports.
    first, last
        The first update (``every`` when None) and the last that a teleport comes before.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update`` takes ``value_fn`` (unless ``loss`` is given) and, if you like, ``step``, the number of this update. Under ``vmap`` give ``step`` unmapped, or
        begin inside: where the counter is mapped, ``lax.cond`` becomes a selection and every lane would teleport in every step.

    Raises
    ------
    TypeError
        If ``sym`` is no group.
    ValueError
        If ``every`` is not positive; at ``init`` if the optimizer remembers something of unknown kind, or that does not move as gradients do: steps (momentum
        after a preconditioner), maxima, parameters (weight decay before momentum).

    Examples
    --------
    >>> import jaxsym as js
    >>> apply = lambda p, x: jax.nn.relu(x * p["a"]) * p["b"]
    >>> params, x = {"a": jnp.array([2.0]), "b": jnp.array([1.0])}, jnp.ones(1)
    >>> loss = lambda p: ((apply(p, x) - 1) ** 2).sum()
    >>> opt = teleporting(optax.sgd(0.01), js.discover(apply, params, x), loss, every=1, radius=0.1)
    >>> updates, state = opt.update(jax.grad(loss)(params), opt.init(params), params)
    """
    expect_group(sym, "teleporting")

    def chosen(params: PyTree, value_fn: Loss | None) -> Element:
        measured = loss or value_fn
        if measured is None:
            msg = "teleporting: no loss: give it to teleporting, or value_fn=... to update."
            raise ValueError(msg)
        return teleport(sym, measured, params, **options).element

    return _moving(optimizer, sym, chosen, every, every if first is None else first, last, "teleporting")


def balancing(
    optimizer: optax.GradientTransformation, sym: Symmetry, *, every: int = 1, norm: float = 2
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that balances the rescalings before each ``every``-th update, from the first on; what it remembers moves along.

    Parameters
    ----------
    optimizer
        As for :func:`teleporting`.
    sym, norm
        As for :func:`jaxsym.symmetry.balance`.
    every
        How many updates lie between two times.

    Returns
    -------
    optax.GradientTransformationExtraArgs

    Raises
    ------
    TypeError, ValueError
        As :func:`teleporting` and :func:`jaxsym.symmetry.balance`.

    Notes
    -----
    *Source*: Stock, Graham, Gribonval, Jegou 2019 (arXiv:1902.10416).
    """
    expect_group(sym, "balancing")
    return _moving(optimizer, sym, lambda params, _: balancing_element(sym, params, norm), every, 0, None, "balancing")


def _moving(
    optimizer: optax.GradientTransformation,
    sym: Symmetry,
    choose: Callable[[PyTree, Loss | None], Element],
    every: int,
    first: int,
    last: int | None,
    who: str,
) -> optax.GradientTransformationExtraArgs:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        msg = f"{who}: every: got {every!r}, expected an int of at least 1."
        raise ValueError(msg)
    if not isinstance(optimizer, optax.GradientTransformation):
        msg = f"{who}: optimizer is of type {type(optimizer).__name__}, expected one of optax: optax.adam(1e-3)."
        raise TypeError(msg)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> Moving:
        expect_real(params, who)
        sym.leaves(params)
        state = inner.init(params)
        _remembered(lambda v: v, params, state, who)  # refuses what it does not know
        _expect_gradients(inner, params, who)
        return Moving(jnp.zeros([], int), state)

    def update(
        updates: PyTree,
        state: Moving,
        params: PyTree | None = None,
        *,
        step: Array | None = None,
        value_fn: Loss | None = None,
        **extra: Any,
    ) -> tuple[PyTree, Moving]:
        if params is None:
            msg = f"{who}: update needs the parameters: update(grads, state, params)."
            raise ValueError(msg)
        number = state.number if step is None else step
        due = (number >= first) & ((number - first) % every == 0)
        if last is not None:
            due = due & (number <= last)

        def move(_: None) -> tuple[PyTree, PyTree, PyTree]:
            element = choose(params, value_fn)
            there, back = sym.act(element, params), sym.inverse(element)
            _, transposed = jax.vjp(lambda params: sym.act(back, params), there)

            def pull(covector: PyTree) -> PyTree:  # in the precision of the parameters, and back
                moved = transposed(jax.tree.map(lambda v, p: v.astype(p.dtype), covector, there))[0]
                return jax.tree.map(lambda m, v: m.astype(v.dtype), moved, covector)

            return there, pull(updates), _remembered(pull, params, state.inner, who)

        def stay(_: None) -> tuple[PyTree, PyTree, PyTree]:
            return params, updates, state.inner

        there, gradient, remembered = jax.lax.cond(due, move, stay, None)
        given = (
            extra
            | ({} if value_fn is None else {"value_fn": value_fn})
            | ({"grad": gradient} if "grad" in extra else {})
        )
        changed, remembered = inner.update(gradient, remembered, there, step=number, **given)
        whole = jax.tree.map(lambda new, change, old: new + change - old, there, changed, params)
        return whole, Moving(state.number + 1, remembered)

    return optax.GradientTransformationExtraArgs(init, update)


COVECTORS = ("trace", "mu")
SQUARES = ("nu", "nu_max", "sum_of_squares")
"""Names of what optax's optimizers remember: sums of gradients, and sums of their squares."""


def _remembered(pull: Callable[[PyTree], PyTree], params: PyTree, state: PyTree, who: str) -> PyTree:
    """An optimizer's state after a teleport; ``pull`` moves a covector."""
    shape: Any = jax.tree.map(jnp.shape, params)
    structure: Any = jax.tree.structure(params)

    def squared(sums: PyTree) -> PyTree:
        roots, back = ravel_pytree(jax.tree.map(jnp.sqrt, sums))
        signs = jax.random.rademacher(jax.random.key(0), (SIGNS, len(roots)), roots.dtype)
        moved = jax.vmap(lambda sign: jax.tree.map(jnp.square, pull(back(sign * roots))))(signs)
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), moved)

    def walk(node: Any, name: str, path: str) -> Any:
        alike = jax.tree.structure(node) == structure and jax.tree.map(jnp.shape, node) == shape
        if alike and name in COVECTORS:
            return pull(node)
        if alike and name in SQUARES:
            return squared(node)
        floating = [leaf for leaf in jax.tree.leaves(node) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        if not (alike and floating):
            if isinstance(node, tuple) and hasattr(node, "_fields"):
                fields = zip(node._fields, node, strict=True)
                return type(node)(*(walk(part, field, f"{path}.{field}") for field, part in fields))
            if isinstance(node, tuple | list):
                return type(node)(walk(part, name, f"{path}[{i}]") for i, part in enumerate(node))
            if isinstance(node, dict):
                return {key: walk(part, str(key), f"{path}[{key!r}]") for key, part in node.items()}
            if node is None or jnp.ndim(node) == 0:
                return node
        msg = (
            f"{who}: the optimizer remembers {path}, expected counters, sums of gradients ({', '.join(COVECTORS)}) and of their"
            f" squares ({', '.join(SQUARES)}) of all parameters: how it moves along an orbit is not known; take sgd, adam or adagrad, without masks."
        )
        raise ValueError(msg)

    return walk(state, "state", "state")


def _expect_gradients(inner: optax.GradientTransformationExtraArgs, params: PyTree, who: str) -> None:
    """Try whether a state is what it is taken for: after updates elsewhere, by a rescaling, it is the state that moved there.

    Of gradients so large that what a state begins with does not count, or so small that nothing is clipped; parameters so large that they would be
    seen.
    """
    leaves, structure = jax.tree.flatten(params)

    def drawn(name: str) -> PyTree:
        found = []
        for i, leaf in enumerate(leaves):
            shape = tuple(min(size, 3) for size in jnp.shape(leaf))
            noise = normal(f"{name} {i}", math.prod(shape)).reshape(shape)
            found.append(jnp.asarray(noise, jnp.promote_types(jnp.result_type(leaf), jnp.float32)))
        return jax.tree.unflatten(structure, found)

    with jax.ensure_compile_time_eval():
        factors = jax.tree.map(jnp.exp, drawn("factor"))
        at = jax.tree.map(lambda x: 1e6 * x, drawn("at"))

        def after(size: float, there: PyTree) -> PyTree:
            place = jax.tree.map(jnp.multiply, at, there)
            state = inner.init(place)
            for step in range(3):
                gradient = jax.tree.map(lambda g, d: size * g / d, drawn(f"gradient {step}"), there)
                _, state = inner.update(gradient, state, place, step=step)
            return state

        def differs(size: float) -> bool | None:
            here = after(size, jax.tree.map(jnp.ones_like, factors))
            moved = _remembered(lambda v: jax.tree.map(lambda v, d: (v / d).astype(v.dtype), v, factors), at, here, who)
            pairs = zip(jax.tree.leaves(after(size, factors)), jax.tree.leaves(moved), strict=True)
            found = [(one, other) for one, other in pairs if jnp.issubdtype(jnp.result_type(one), jnp.floating)]
            if any(isinstance(leaf, jax.core.Tracer) for pair in found for leaf in pair):
                return None  # a rate that is traced
            return not all(
                float(jnp.abs(a - b).max(initial=0)) <= ALIKE * float(jnp.abs(b).max(initial=0)) for a, b in found
            )

        if all(differs(size) for size in (1e2, 1e-4)):
            msg = (
                f"{who}: what the optimizer remembers does not move as gradients and their squares do (steps, maxima, or parameters that decay are"
                " among it), so that it cannot be carried along an orbit; take sgd, momentum, adam, adamw or rmsprop without momentum."
            )
            raise ValueError(msg)
