"""What is mended after networks were averaged: running statistics, and how far the units of hidden layers spread."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.alignment.given import Batches, batches, double, expect_kept, expect_numbers, restored, shares, unstacked
from jaxsym.symmetry.checks import checked, expect_values
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.layers import Leaf, Network, Units
from jaxsym.symmetry.trace import trace
from jaxsym.symmetry.units import Leaves, close

Inputs = tuple[Any, ...] | list[tuple[Any, ...]]
Moments = list[tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"]]]


def reestimated(apply: Callable[..., Any], params: PyTree, inputs: Inputs) -> PyTree:
    """Parameters with running statistics that are those of these inputs.

    Statistics are found in the jaxpr, whatever they are called: two leaves in ``(x - mean) / sqrt(variance + epsilon)``, with gains in any place, each broadcast
    along the same axes of ``x``, and used nowhere else. A pair of trained leaves in this formula looks the same.

    Layer by layer, in the program's order: what reaches a norm depends on the statistics of the norms before it, so that all at once would be measured on
    inputs which the new network never sees.

    Parameters
    ----------
    apply, params
        The function ``apply(params, *inputs)`` in evaluation, and where.
    inputs
        A tuple of what ``apply`` takes after the parameters, or a list of such tuples, batches of one shape: the result is that of all rows together. The variance
        is the biased one, as BatchNorm keeps it.

    Raises
    ------
    TypeError, ValueError
        If there are no running statistics, inputs are no tuples, of several shapes or not finite, or the function does not take them.

    Notes
    -----
    Statistics of a layer that is used twice, or inside a loop, are left alone. Measured in float64; one pass over the inputs for each norm.

    *Source*: Izmailov et al. 2018, arXiv:1803.05407; after averaging aligned networks Jordan et al. 2022, arXiv:2211.08403.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.CNN((4,), 2, norm="batch"), jax.random.normal(jax.random.key(0), (8, 6, 6, 1))
    >>> params = net.init(jax.random.key(1), x)
    >>> fresh = reestimated(net.apply, params, (x,))
    >>> seen = jax.lax.conv_general_dilated(
    ...     x, params["params"]["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ... )
    >>> bool(abs(fresh["batch_stats"]["BatchNorm_0"]["var"] - seen.var((0, 1, 2))).max() < 1e-6)
    True
    """
    rows = _expected(apply, params, inputs, "reestimated")
    found = _reestimated(apply, params, rows)
    if found is None:
        raise ValueError(_nothing("reestimated"))
    return found


def repaired(
    apply: Callable[..., Any],
    params: PyTree,
    networks: PyTree,
    inputs: Inputs,
    weights: Float[Array, " networks"] | None = None,
) -> PyTree:
    """An average of networks, whose hidden units are brought to the mean and the standard deviation that they have in these networks.

    Units of an average vary less than those of what was averaged, the more so the deeper they lie. For every unit with pre-activation ``z``, mean ``m`` and
    standard deviation ``s``, and with ``m'`` and ``s'`` the averages of those of the networks, ``z`` becomes ``(z - m) s' / s + m'``, folded into kernel and bias. Layer by
    layer, in the program's order, because what reaches a layer depends on those before it.

    Layers are found in the jaxpr: a matrix product or convolution of something computed with a leaf, and a bias leaf that is added. **Left alone** are the
    last layers, which no other layer reads; leaves that are used more than once, or inside a loop; the scale of a unit that is constant in the average or in all networks. Where there
    is no bias, only the scale is repaired.

    Parameters
    ----------
    apply, params
        The function ``apply(params, *inputs)``, and the average.
    networks
        What was averaged, already aligned: leaves ``[networks, *leaf]``.
    inputs
        As for :func:`reestimated`.
    weights
        Of the average, positive; equal when None.

    Raises
    ------
    TypeError, ValueError
        If there is no hidden layer to repair, networks are not stacked or not of these shapes, inputs are no tuples, of several shapes or not finite, the weights are none, or
        the function does not take what is given.

    Notes
    -----
    Where norms follow, re-estimate their statistics afterwards (:func:`reestimated`). Measured in float64; one pass over the inputs for each layer.

    *Source*: Jordan, Sedghi, Saukh, Entezari, Neyshabur 2022, arXiv:2211.08403.

    Examples
    --------
    >>> import jax, jaxsym as js
    >>> net, x = js.models.MLP((8, 8, 1), "relu"), jax.random.normal(jax.random.key(0), (50, 3))
    >>> ends = jax.vmap(lambda key: net.init(key, x))(jax.random.split(jax.random.key(1), 2))
    >>> average = jax.tree.map(lambda leaf: leaf.mean(0), ends)
    >>> better = repaired(net.apply, average, ends, (x,))
    >>> bool(net.apply(better, x).std() > net.apply(average, x).std())
    True
    """
    rows = _expected(apply, params, inputs, "repaired")
    shapes = {path: np.shape(leaf) for path, leaf in tree.leaves(params).items()}
    ends = [double(each) for each in unstacked(shapes, networks, "repaired")]
    share = shares(weights, len(ends), "repaired")
    missing = shapes.keys() - ends[0].keys()
    if missing:
        msg = f"repaired: networks have no {', '.join(sorted(missing))}, expected the leaves of params, stacked."
        raise ValueError(msg)
    net = Network(trace(apply, params, *rows[0]))
    layers = net.layers()
    if not layers:
        msg = (
            "repaired: no hidden layer in apply(params, *inputs): looked for a product or a convolution of something computed with a leaf that is used once and"
            " outside of loops, whose result another layer reads."
        )
        raise ValueError(msg)
    see = net.moments([(layer.value, layer.units) for layer in layers])
    ends_moments = [_pooled(see, end, rows) for end in ends]
    leaves = double(params)
    for number, layer in enumerate(layers):
        each = [_spread(moments[number]) for moments in ends_moments]
        mean, spread = (
            sum(part * one for part, one in zip(share, own, strict=True)) for own in zip(*each, strict=True)
        )
        own_mean, own_spread = _spread(_pooled(see, leaves, rows)[number])
        moves = _varies(mean, spread) & _varies(own_mean, own_spread)
        scale = np.divide(spread, own_spread, out=np.ones_like(spread), where=moves)
        kernel = leaves[layer.kernel.path]
        leaves[layer.kernel.path] = kernel * scale[layer.columns].reshape(kernel.shape)
        if layer.bias is not None:
            bias = _taken(leaves, layer.bias, layer.units)
            shift = (mean - scale * own_mean) / layer.bias.factor
            leaves |= _placed(leaves, layer.bias, layer.units, scale * bias + shift)
    return restored(params, leaves)


def mended(
    apply: Callable[..., Any],
    params: PyTree,
    networks: PyTree,
    inputs: Inputs,
    weights: Any,
    *,
    sym: Symmetry,
    repair: bool,
) -> PyTree:
    """An average of networks with running statistics of its own, if it keeps any; repaired before, when asked for.

    Refuses a group that is none when statistics are computed anew.
    """
    rows = _expected(apply, params, inputs, "merge")
    if repair:
        params = repaired(apply, params, networks, inputs, weights)
    found = _reestimated(apply, params, rows)
    if found is None:
        if not repair:
            raise ValueError(
                _nothing("merge") + " Of a network without such norms leave out apply and inputs, or pass repair=True."
            )
        return params
    advice = (
        "this group is that of fixed statistics. Discover the group in training, where each batch has its own, as"
        " discover(lambda params, x: net.apply(params, x, train=True, mutable=['batch_stats'])[0], params, x), or leave out apply and inputs."
    )
    anew = lambda params, *inputs: apply(_reestimated(apply, params, rows), *inputs)  # noqa: E731
    one = jax.tree.map(lambda leaf: leaf[0], networks)
    expect_kept(anew, sym, one, rows[0], "merge: with running statistics computed anew, apply", advice)
    return found


def _nothing(who: str) -> str:
    return (
        f"{who}: no running statistics in apply(params, *inputs): looked for two leaves, each used once and outside of loops, in"
        " (x - mean) / sqrt(variance + epsilon), where x depends on the inputs and has more entries than the leaves."
        " Pass the function in evaluation (use_running_average=True), and more than one row."
    )


def _expected(apply: Callable[..., Any], params: PyTree, inputs: Inputs, who: str) -> Batches:
    """The batches; refuses what the function does not take."""
    expect_numbers(params, who)
    rows = batches(inputs, who)
    checked(apply, params, rows[0], who)
    for each in rows:
        expect_values(params, each, who)
    return rows


def _reestimated(apply: Callable[..., Any], params: PyTree, rows: Batches) -> PyTree | None:
    net = Network(trace(apply, params, *rows[0]))
    found = net.statistics()
    see = net.moments([(norm.value, norm.units) for norm in found])
    leaves = double(params)
    for number, norm in enumerate(found):
        for leaf, values in zip((norm.mean, norm.variance), _pooled(see, leaves, rows)[number], strict=True):
            leaves |= _placed(leaves, leaf, norm.units, values / leaf.factor)
    return restored(params, leaves) if found else None


def _pooled(see: Callable[..., Moments], leaves: Leaves, rows: Batches) -> Moments:
    """Mean and variance of every unit over all batches, which are of one size."""
    each = [jax.device_get(see(leaves, *batch)) for batch in rows]
    if not all(np.isfinite(values).all() for batch in each for moments in batch for values in moments):
        msg = "inputs: what the layers compute of them is not finite, or too large to be squared; look for NaN and infinity among inputs and parameters."
        raise ValueError(msg)
    pooled = []
    for place in zip(*each, strict=True):
        means, variances = (np.stack(own) for own in zip(*place, strict=True))
        pooled.append((means.mean(0), variances.mean(0) + means.var(0)))
    return pooled


def _spread(moments: tuple[Any, Any]) -> tuple[Any, Any]:
    """Mean and standard deviation."""
    return moments[0], np.sqrt(moments[1])


def _varies(mean: Any, spread: Any) -> Any:
    return spread > close(spread) * np.hypot(mean, spread)


def _taken(leaves: Leaves, leaf: Leaf, units: Units) -> Float[np.ndarray, " units"]:
    """The entries of a leaf in the order of the units."""
    return leaves[leaf.path].ravel()[leaf.entries.ravel()[np.argsort(units.ravel())]]


def _placed(leaves: Leaves, leaf: Leaf, units: Units, values: Float[np.ndarray, " units"]) -> Leaves:
    """The leaf with these values in the order of the units."""
    flat = np.empty(leaf.entries.size)
    flat[leaf.entries.ravel()] = values[units.ravel()]
    return {leaf.path: flat.reshape(leaves[leaf.path].shape)}
