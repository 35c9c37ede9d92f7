"""One network moved onto another by the loss between them: the straight-through estimator."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.alignment.ascent import Problem, Walks, first, stack
from jaxsym.alignment.connect import between, expect_loss
from jaxsym.alignment.given import checked, restored, shown, whole
from jaxsym.alignment.match import Alignment, align, balanced
from jaxsym.symmetry.group import Element, Symmetry, expect_group
from jaxsym.symmetry.units import Leaves, floating


def straight_through(
    sym: Symmetry,
    loss: Callable[[PyTree, Array], Float[Array, ""]],
    a: PyTree,
    b: PyTree,
    key: Array,
    *,
    steps: int = 300,
    optimizer: optax.GradientTransformation | None = None,
    start: Alignment | Element | None = None,
) -> Alignment:
    """Move ``b`` along its orbit to where the loss halfway between it and ``a`` is least.

    A free copy of the parameters is trained. At each step it is projected onto the orbit of ``b``, the gradient of the loss at the midpoint of ``a`` and the
    projection is taken, and passed straight through to the free copy. The best element on the way is returned: never worse at the midpoint than the start.

    The projection is the coordinate ascent of :func:`jaxsym.align` over permutations, signs and rotations, from where the last one ended, in the frame in which
    ``a`` is balanced; rescalings of ``b`` stay balanced there, its bases orthonormal. The free copy begins at ``a``, whose projection is what matching of weights
    finds.

    Parameters
    ----------
    sym
        The group.
    loss
        ``loss(params, key)``, a scalar; the key draws a minibatch, or is ignored.
    a, b
        Parameters of two networks.
    key
        Of the losses: one for each step, and one at which all elements are compared.
    steps
        How many.
    optimizer
        Of the free copy; ``optax.sgd(0.1, momentum=0.9)`` when None.
    start
        Where to begin: an alignment or an element; ``align(sym, a, b)`` when None.

    Returns
    -------
    Alignment
        Its ``history`` is the least loss at the midpoint so far, ``[steps + 1]``, of which the first is that of the start: it never rises. Its ``start`` is that of
        the alignment it began with, or ``"given"``; ``distance`` is mostly larger than there.

    Raises
    ------
    TypeError, ValueError
        As :func:`jaxsym.align`; if the loss is no scalar or not finite halfway at the start, ``steps`` is less than 1, or the free copy leaves the finite numbers.

    Notes
    -----
    *Source*: Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836, algorithm 2, which moves permutations only.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((4, 5, 1), "relu"), jax.random.normal(jax.random.key(0), (16, 3))
    >>> a, b = (net.init(jax.random.key(seed), x) for seed in (1, 2))
    >>> loss = lambda params, key: ((net.apply(params, x) - x[:, :1]) ** 2).mean()
    >>> found = straight_through(js.discover(net.apply, a, x), loss, a, b, jax.random.key(3), steps=20)
    >>> bool((found.history[1:] <= found.history[:-1]).all())
    True
    """
    expect_group(sym, "straight_through")
    _expect(loss, steps)
    tool = optax.sgd(0.1, momentum=0.9) if optimizer is None else optimizer
    if start is None:
        start = align(sym, a, b)
    best = jax.device_get(start.element if isinstance(start, Alignment) else start)
    with jax.enable_x64(True):
        one, two = (checked(sym, params, f"straight_through: {name}") for name, params in (("a", a), ("b", b)))
        frame = balanced(sym, one, "straight_through: a")
        back = jax.device_get(sym.inverse(frame))
        begun = sym.compose(frame, best)
        gauge = balanced(sym, sym.leaves(sym.act(begun, two)), "straight_through: b")
        walks = Walks.begun(sym, [two], [jax.device_get(sym.compose(gauge, begun))])
        problem = Problem(sym, Walks.begun(sym, [one], [frame]).leaves)
        moved = sym.leaves(sym.act(best, two))
    params, place = restored(b, moved), shown(back)
    held, *drawn = jax.random.split(key, steps + 1)
    like = restored(b, two)

    def middle(leaves: Leaves, key: Array) -> Float[Array, ""]:
        """The loss halfway to a projection, in the frame of ``a``."""
        return loss(between(a, tree.put(like, sym.leaves(sym.act(place, leaves))), 0.5), key)

    @jax.jit
    def step(free: Leaves, memory: Any, leaves: Leaves, key: Array) -> tuple[Leaves, Any]:
        slope = jax.grad(middle, allow_int=True)(leaves, key)
        updates, memory = tool.update({path: slope[path] for path in free}, memory, free)
        return optax.apply_updates(free, updates), memory

    @jax.jit
    def halfway(params: PyTree) -> Float[Array, ""]:
        return loss(between(a, params, 0.5), held)

    shape = jax.eval_shape(halfway, params)
    if getattr(shape, "shape", None) != ():
        msg = f"straight_through: loss returned {shape}, expected a scalar: take the mean over the rows."
        raise ValueError(msg)

    def leaves_of(leaves: Leaves) -> Leaves:
        return tree.leaves(restored(b, leaves))

    free = {path: leaf for path, leaf in leaves_of(first(problem.a)).items() if floating(leaf)}
    memory, seen = tool.init(free), None
    history = [_number(halfway(params))]
    if not np.isfinite(history[0]):
        msg = f"straight_through: loss halfway is {halfway(params)} at the start, expected a finite number: there is no way down from there."
        raise ValueError(msg)
    for number, each in enumerate(drawn):
        with jax.enable_x64(True):
            target = {path: np.asarray(leaf, np.float64) for path, leaf in free.items()}
            if not all(np.isfinite(leaf).all() for leaf in target.values()):
                msg = f"straight_through: the free copy is not finite after {number} steps: give an optimizer that takes smaller ones."
                raise ValueError(msg)
            problem.towards(walks.leaves | stack([target])).ascend(walks)
        history.append(history[-1])
        if walks.leaves is not seen:
            seen = walks.leaves
            with jax.enable_x64(True):
                element = jax.device_get(sym.compose(back, walks.elements[0]))
                moved = sym.leaves(sym.act(element, two))
            tried = restored(b, moved)
            value = _number(halfway(tried))
            if value < history[-1]:
                best, params, history[-1] = element, tried, value
        free, memory = step(free, memory, leaves_of(first(seen)), each)
    with jax.enable_x64(True):
        moved = sym.leaves(sym.act(best, two))
        distance = float(np.sqrt(sum(((one[path] - moved[path]) ** 2).sum() for path in one if floating(one[path]))))
    named = start.start if isinstance(start, Alignment) else "given"
    return Alignment(shown(best), params, distance, np.array(history), named)


def _expect(loss: Any, steps: Any) -> None:
    expect_loss("straight_through", loss, keyed=True)
    if not whole(steps, 1):
        msg = f"straight_through: steps is {steps!r}, expected a number from 1 on."
        raise ValueError(msg)


def _number(value: Float[Array, ""]) -> float:
    """What is not a number is worse than any."""
    return float(np.nan_to_num(value, nan=np.inf, posinf=np.inf))
