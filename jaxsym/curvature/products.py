"""Products of curvature matrices with vectors: pytrees like the parameters in and out, nothing of size ``[P, P]`` in between.

Each is linear in ``v``, goes through ``jit`` and ``vmap``, and takes the rows of ``data`` in batches when asked: full batch and accumulated
batches are the same up to rounding. :func:`block` restricts any of them to a leaf or a layer.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.curvature.checks import (
    checked,
    checked_direction,
    checked_finite,
    expect_int,
    expect_key,
    forwards,
    rows_of,
)

Loss = Callable[..., Float[Array, ""]]
"""``loss(params)``, or ``loss(params, batch)`` where ``data`` is given: then a mean over the batch's rows."""


def hvp(
    loss: Loss,
    params: PyTree,
    v: PyTree,
    *,
    data: PyTree = None,
    batch_size: int | None = None,
    linearize: bool = False,
) -> PyTree:
    """The Hessian of a loss times a vector, ``H v``, forward over reverse.

    Parameters
    ----------
    loss
        ``loss(params)``; with ``data``, ``loss(params, batch)``, a mean over the rows of the batch.
    params, v
        Pytrees of the same shapes, floating.
    data, batch_size
        Leaves ``[N, ...]``, taken so many rows at a time, all at once when None; the last batch may be smaller, and counts by its rows.
    linearize
        Whether the gradient is linearized once, which keeps its intermediate values: for many products at the same parameters, under
        ``vmap`` or in a loop.

    Returns
    -------
    PyTree
        Like ``params``.

    Raises
    ------
    TypeError
        If a parameter is not floating.
    ValueError
        If the loss is not a scalar, ``v`` is not like ``params``, the rows of ``data`` differ in number, or, outside of ``jit``, parameters, ``v`` or
        the product are not finite.

    Notes
    -----
    *Source*: Pearlmutter 1994, Fast exact multiplication by the Hessian.

    Examples
    --------
    >>> hvp(lambda x: (x**3).sum(), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
    Array([ 6., 12.], dtype=float32)
    """

    def product(batch: tuple[Any, ...], first: Any) -> PyTree:
        del first
        checked(loss, params, batch, "hvp")
        gradient = jax.grad(lambda params: loss(params, *batch))
        if linearize:
            return jax.linearize(gradient, params)[1](v)
        return jax.jvp(gradient, (params,), (v,))[1]

    return _accumulated(product, params, v, data, batch_size, "hvp")


def ggn_vp(
    apply: Callable[..., PyTree],
    loss_of_outputs: Callable[..., Float[Array, ""]],
    params: PyTree,
    v: PyTree,
    *,
    data: PyTree = None,
    batch_size: int | None = None,
) -> PyTree:
    """The generalised Gauss-Newton matrix times a vector, ``J' (d^2 loss / d outputs^2) J v``.

    Parameters
    ----------
    apply
        ``apply(params) -> outputs``, a pytree; with ``data``, ``apply(params, batch)``.
    loss_of_outputs
        ``loss_of_outputs(outputs) -> scalar``; with ``data``, ``loss_of_outputs(outputs, batch)``, a mean over rows.
    params, v, data, batch_size
        As for :func:`hvp`.

    Notes
    -----
    *Source*: Schraudolph 2002, Fast curvature matrix-vector products for second-order gradient descent, section 3.

    Examples
    --------
    >>> x = jnp.array([1.0, 2.0])
    >>> ggn_vp(lambda w: w**2, lambda y: (y**2).sum() / 2, x, jnp.ones(2))
    Array([ 4., 16.], dtype=float32)
    """

    def product(batch: tuple[Any, ...], first: Any) -> PyTree:
        del first
        checked(lambda params: loss_of_outputs(apply(params, *batch), *batch), params, (), "ggn_vp")
        _expect_floating(apply, params, batch, "ggn_vp")
        outputs, pushed, pull = _linear(apply, params, v, batch, "ggn_vp")
        gradient = jax.grad(lambda outputs: loss_of_outputs(outputs, *batch))
        return pull(jax.jvp(gradient, (outputs,), (pushed,))[1])[0]

    return _accumulated(product, params, v, data, batch_size, "ggn_vp")


def fisher_vp(
    apply: Callable[..., Float[Array, " N *outputs"]],
    likelihood: Literal["categorical", "bernoulli", "normal"],
    params: PyTree,
    v: PyTree,
    *,
    key: Array | None = None,
    num: int = 1,
    data: PyTree = None,
    batch_size: int | None = None,
) -> PyTree:
    """The Fisher information of a network's distribution over targets, times a vector; a mean over the inputs.

    The outputs are the natural parameters of an exponential family, so that the information in them is the Hessian of the log-partition function;
    or, with a ``key``, what targets drawn from the network's own distribution give: mean of ``g g' v`` over rows and draws.

    Parameters
    ----------
    apply
        ``apply(params) -> [N, ...]``; with ``data``, ``apply(params, batch)``.
    likelihood
        ``"categorical"``: logits along the last axis; ``"bernoulli"``: a logit each; ``"normal"``: means, of variance 1.
    params, v, data, batch_size
        As for :func:`hvp`.
    key, num
        Of the drawn targets, and how many a row; the draws of a row are the same whatever the batches.

    Raises
    ------
    ValueError
        Also if there is no such likelihood.

    Notes
    -----
    *Source*: Amari 1998, Natural gradient works efficiently in learning; Martens 2020 (arXiv:1412.1193), sections 5 and 9.

    Examples
    --------
    >>> fisher_vp(lambda w: w[None], "bernoulli", jnp.zeros(2), jnp.ones(2))
    Array([0.25, 0.25], dtype=float32)
    """
    if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
        msg = f"fisher_vp: likelihood: got {likelihood!r}, expected one of {', '.join(LIKELIHOODS)}."
        raise ValueError(msg)
    family = LIKELIHOODS[likelihood]
    expect_int("fisher_vp", "num", num, 1)
    if key is not None:
        expect_key("fisher_vp", key)

    def product(batch: tuple[Any, ...], first: Any) -> PyTree:
        if (count := len(_expect_floating(apply, params, batch, "fisher_vp"))) != 1:
            msg = f"fisher_vp: apply returns {count} arrays, expected one, [N, ...]."
            raise TypeError(msg)
        checked(lambda params: jnp.mean(_only(apply(params, *batch))), params, (), "fisher_vp")
        outputs, pushed, pull = _linear(lambda *at: _only(apply(*at)), params, v, batch, "fisher_vp")
        if jnp.ndim(outputs) < family.axes:
            wanted = ("[N, ...]", "[N, classes]")[family.axes - 1]
            msg = f"fisher_vp: apply returns shape {jnp.shape(outputs)}, expected {wanted}: outputs[None] is one row."
            raise ValueError(msg)
        rows = len(outputs)
        mean = jax.grad(lambda outputs: family.log_partition(outputs).sum())
        if key is None:
            return pull(jax.jvp(mean, (outputs,), (pushed,))[1] / rows)[0]

        def drawn(index: Any, outputs: Array) -> Array:
            keys = jax.random.split(jax.random.fold_in(key, index), num)
            return jax.vmap(lambda key: family.draw(key, outputs))(keys)

        statistics = jax.vmap(drawn)(first + jnp.arange(rows), outputs)  # [N, num, ...]
        gradients = mean(outputs)[:, None] - statistics
        along = jnp.einsum("rn...,r...->rn", gradients, pushed)
        return pull(jnp.einsum("rn,rn...->r...", along, gradients) / (rows * num))[0]

    return _accumulated(product, params, v, data, batch_size, "fisher_vp")


def empirical_fisher_vp(
    losses: Callable[..., Float[Array, " N"]],
    params: PyTree,
    v: PyTree,
    *,
    data: PyTree = None,
    batch_size: int | None = None,
) -> PyTree:
    """The second moment of the rows' gradients times a vector, ``mean_n g_n (g_n . v)``. Not the Fisher information: Kunstner et al. 2019.

    Parameters
    ----------
    losses
        ``losses(params) -> [N]``, one a row; with ``data``, ``losses(params, batch)``.
    params, v, data, batch_size
        As for :func:`hvp`.

    Notes
    -----
    *Source*: Kunstner, Balles, Hennig 2019 (arXiv:1905.12558), equation 4.

    Examples
    --------
    >>> empirical_fisher_vp(lambda w: w * jnp.array([1.0, 3.0]), jnp.ones(1), jnp.ones(1))
    Array([5.], dtype=float32)
    """

    def product(batch: tuple[Any, ...], first: Any) -> PyTree:
        del first
        checked(lambda params: jnp.mean(losses(params, *batch)), params, (), "empirical_fisher_vp")
        found, pushed, pull = _linear(losses, params, v, batch, "empirical_fisher_vp")
        if found.ndim != 1:
            msg = f"empirical_fisher_vp: losses has shape {found.shape}, expected [N]: a loss a row, not their mean."
            raise ValueError(msg)
        return pull(pushed / len(found))[0]

    return _accumulated(product, params, v, data, batch_size, "empirical_fisher_vp")


def block(
    fn: Callable[..., Any], params: PyTree, where: str | Callable[[str], bool]
) -> tuple[Callable[..., Any], dict[str, Array]]:
    """A function of some of the parameters, the others held: for the curvature of a leaf or a layer.

    Parameters
    ----------
    fn
        ``fn(params, *rest)``: a loss, or a network.
    params
        All parameters.
    where
        A path or the beginning of one, ``"params/Dense_0"``; or which paths to take.

    Returns
    -------
    tuple
        ``fn`` of a dict path -> leaf, and that dict at ``params``.

    Raises
    ------
    ValueError
        If there is no such leaf; the paths are listed.

    Examples
    --------
    >>> loss, part = block(lambda p: (p["a"] ** 2 * p["b"]).sum(), {"a": jnp.ones(1), "b": jnp.full(1, 3.0)}, "a")
    >>> hvp(loss, part, {"a": jnp.ones(1)})
    {'a': Array([6.], dtype=float32)}
    """
    part = tree.get(params, where)

    def restricted(part: dict[str, Array], *rest: Any) -> Any:
        return fn(tree.put(params, part), *rest)

    return restricted, part


class Likelihood(NamedTuple):
    """An exponential family by its natural parameters ``z``: ``log p(t) = z . s(t) - log_partition(z) + ...``.

    ``log_partition(z)`` is to be summed; ``draw(key, z) -> s(t)`` is the sufficient statistic of a drawn target, shaped like ``z``. ``axes`` are those
    that outputs have at least: rows, and what one target is drawn from.
    """

    log_partition: Callable[[Array], Array]
    draw: Callable[[Array, Array], Array]
    axes: int = 1


LIKELIHOODS = {
    "categorical": Likelihood(
        lambda z: jax.nn.logsumexp(z, axis=-1),
        lambda key, z: jax.nn.one_hot(jax.random.categorical(key, z), z.shape[-1], dtype=z.dtype),
        axes=2,
    ),
    "bernoulli": Likelihood(
        jax.nn.softplus, lambda key, z: jax.random.bernoulli(key, jax.nn.sigmoid(z)).astype(z.dtype)
    ),
    "normal": Likelihood(lambda z: z**2 / 2, lambda key, z: z + jax.random.normal(key, z.shape, z.dtype)),
}


def _linear(
    fn: Callable[..., Any], params: PyTree, v: PyTree, batch: tuple[Any, ...], who: str
) -> tuple[Any, Any, Any]:
    """Outputs, what ``v`` changes of them, and the transpose of that."""
    outputs, pull = jax.vjp(lambda params: fn(params, *batch), params)
    with forwards(who):
        return outputs, jax.jvp(lambda params: fn(params, *batch), (params,), (v,))[1], pull


def _only(outputs: PyTree) -> Array:
    """The one array of a pytree."""
    return jax.tree.leaves(outputs)[0]


def _expect_floating(fn: Callable[..., Any], params: PyTree, batch: tuple[Any, ...], who: str) -> dict[str, Any]:
    """The shapes of all outputs; refuse those that have no derivatives."""
    leaves = tree.leaves(jax.eval_shape(fn, params, *batch))
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            msg = f"{who}: {path or 'the output'} of apply has dtype {leaf.dtype}, expected a floating one: return what the loss is differentiated by."
            raise TypeError(msg)
    return leaves


def _accumulated(
    product: Callable[[tuple[Any, ...], Any], PyTree],
    params: PyTree,
    v: PyTree,
    data: PyTree,
    batch_size: int | None,
    who: str,
) -> PyTree:
    """``product(batch, index of its first row)`` over all batches, weighted by their rows; finite, outside of ``jit``."""
    checked_direction(params, v, who)
    checked_finite("params", params, who)
    checked_finite("v", v, who)
    found = _summed(product, params, data, batch_size, who)
    checked_finite("the product", found, who)
    return found


def _summed(
    product: Callable[[tuple[Any, ...], Any], PyTree], params: PyTree, data: PyTree, batch_size: int | None, who: str
) -> PyTree:
    with jax.default_matmul_precision("highest"):
        if data is None:
            if batch_size is not None:
                msg = f"{who}: batch_size: got {batch_size!r} without data, expected None: give the rows as data=."
                raise ValueError(msg)
            return product((), 0)
        rows = rows_of(data, batch_size, who)
        size = rows if batch_size is None else min(batch_size, rows)
        whole = rows // size * size
        batches = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), data)

        def add(total: PyTree, batch: PyTree, first: Any) -> PyTree:
            count = len(jax.tree.leaves(batch)[0])
            return jax.tree.map(lambda one, more: one + more * (count / rows), total, product((batch,), first))

        def step(total: PyTree, at: tuple[Any, PyTree]) -> tuple[PyTree, None]:
            return add(total, at[1], at[0]), None

        def zero(leaf: Array) -> Array:  # a sum over many batches stands still in half precision
            return jnp.zeros(jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32))

        total, _ = jax.lax.scan(step, jax.tree.map(zero, params), (jnp.arange(0, whole, size), batches))
        if whole < rows:
            total = add(total, jax.tree.map(lambda leaf: leaf[whole:], data), whole)
        return jax.tree.map(lambda leaf, own: leaf.astype(jnp.result_type(own)), total, params)


def size(params: PyTree) -> int:
    """How many parameters there are."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))
