"""The functional dimension of ReLU networks, for ensembles: a rank that goes through ``jit`` and ``vmap``, and what it falls short by.

:func:`jaxsym.certify` answers the same for any one network, on the host.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsym.symmetry.certify import RANK

CHUNK = 256  # inputs that are differentiated at once
SPARE = 20  # rows of the compressed Jacobian beyond its columns, for its condition

Layers = Sequence[tuple[Array, Array]]
"""Kernel ``[in, out]`` and bias ``[out]`` of every layer; ReLU between them."""


class Measured(NamedTuple):
    """What one network is, on these inputs; scalars.

    Attributes
    ----------
    dimension
        Rank of the Jacobian of all outputs over all inputs by all parameters.
    gap
        The smallest kept singular value over the largest dropped one, the smallest such ratio of the two ranks that are taken; below
        ``certify.GAP`` they are not to be trusted.
    dead, always_on
        Hidden units that are active on none of the inputs, and on all.
    silent
        Parameters that move no output at any input: those around dead units, and connections that never carry a signal.
    by_silent
        Directions of the kernel that the silent parameters add to the rescalings.
    by_always_on
        Directions that the always-on units of a layer add to those: they are linear, so that any change of basis among them and any shift
        of their biases can be undone by the next layer.
    """

    dimension: Int[Array, ""]
    gap: Float[Array, ""]
    dead: Int[Array, ""]
    always_on: Int[Array, ""]
    silent: Int[Array, ""]
    by_silent: Int[Array, ""]
    by_always_on: Int[Array, ""]


def measure(layers: Layers, inputs: Float[Array, "N n"], key: Array) -> Measured:
    """The functional dimension at these parameters, on these inputs, in float64.

    The Jacobian ``J`` ``[N m, P]``, its rows scaled to length 1, is compressed to ``S J`` with a random ``S`` ``[P + 20, N m]`` of uniform
    entries: its rank is that of ``J`` with probability 1 and never more. (A QR decomposition does the same, but thousands of calls of
    LAPACK from several devices wait for one another.) Columns are scaled to length 1 before the rank is taken.

    Parameters
    ----------
    layers
        Of one network, float64.
    inputs
        Where the outputs are looked at.
    key
        Of ``S``; the same for all networks, so that under ``vmap`` it is drawn once.

    Notes
    -----
    *Source*: Grigsby, Lindsey, Rolnick 2023, definition 3.1 and section 6, arXiv:2306.06179.

    Examples
    --------
    >>> import jax
    >>> with jax.enable_x64(True):
    ...     kernel, bias, out = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(1, 3), (3,), (3, 1)]))
    ...     x = jax.random.normal(jax.random.key(3), (1000, 1))
    ...     found = jax.jit(measure)([(kernel, bias), (out, jnp.ones(1))], 5 * x, jax.random.key(4))
    >>> int(found.dimension), int(found.dead)  # of 10 parameters: 3 rescalings
    (7, 0)
    """
    layers = [(kernel, bias) for kernel, bias in layers]
    size = sum(kernel.size + bias.size for kernel, bias in layers)
    num = -(-len(inputs) // CHUNK) * CHUNK if len(inputs) > CHUNK else len(inputs)
    repeated = inputs[jnp.arange(num) % len(inputs)]  # an input twice changes no rank
    chunks = repeated.reshape(-1, min(CHUNK, num), inputs.shape[-1])
    units = sum(bias.size for _, bias in layers[:-1])

    def add(seen: tuple[Array, ...], chunk: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        compressed, moves, on, off = seen
        index, x = chunk
        jacobian, before = jax.vmap(lambda x: _jacobian(layers, x))(x)
        rows = jacobian.reshape(-1, size)
        rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)  # never 0: the output bias moves the output
        random = jax.random.uniform(jax.random.fold_in(key, index), (size + SPARE, len(rows)), rows.dtype, -1, 1)
        return (
            compressed + random @ rows,
            moves | (rows != 0).any(axis=0),
            on | (before > 0).any(axis=0),
            off | (before <= 0).any(axis=0),
        ), None

    start = (
        jnp.zeros((size + SPARE, size), inputs.dtype),
        *(jnp.zeros(n, bool) for n in (size, units, units)),
    )
    (compressed, moves, on, off), _ = jax.lax.scan(add, start, (jnp.arange(len(chunks)), chunks))
    dimension, gap = _rank(compressed)
    silent = (~moves).sum()
    # a live unit's rescaling moves its bias, which no other rescaling does: those of live units are independent of the silent directions
    idle = sum((~bias).sum() for _, bias in _like(moves, layers)[:-1])
    known, known_gap = _rank(jnp.where(moves, _tangents(layers, ~off), 0))
    by_silent = silent - idle
    return Measured(
        dimension,
        jnp.minimum(gap, known_gap),
        (~on).sum(),
        (~off).sum(),
        silent,
        by_silent,
        silent + known - units - by_silent,
    )


def _jacobian(layers: Layers, x: Float[Array, " n"]) -> tuple[Float[Array, "m P"], Float[Array, " units"]]:
    """The Jacobian of the outputs at one input, and what the hidden units read there."""

    def outputs(layers: Layers) -> tuple[Array, Array]:
        hidden, before = x, []
        for kernel, bias in layers[:-1]:
            before.append(hidden @ kernel + bias)
            hidden = jax.nn.relu(before[-1])
        kernel, bias = layers[-1]
        return hidden @ kernel + bias, jnp.concatenate([x[:0], *before])

    found, before = jax.jacrev(outputs, has_aux=True)(layers)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(found)], axis=1), before


def _tangents(layers: Layers, always_on: Bool[Array, " units"]) -> Float[Array, "directions P"]:
    """Directions in which no output moves: rescalings; changes of basis among the always-on units of a layer; shifts of their biases."""
    directions, start = [], 0
    for layer, ((kernel, bias), (following, shifted)) in enumerate(itertools.pairwise(layers)):
        width = bias.size
        on = always_on[start : start + width]
        start += width
        basis = jnp.eye(width * width, dtype=bias.dtype).reshape(-1, width, width)
        basis = jnp.where(jnp.eye(width, dtype=bool) | (on[:, None] & on), basis, 0)
        shift = jnp.where(on, jnp.eye(width, dtype=bias.dtype), 0)
        moved = {
            layer: (kernel @ basis, bias @ basis),
            layer + 1: (-basis @ following, jnp.zeros((width * width, shifted.size), bias.dtype)),
        }
        directions.append(_rows(layers, moved, width * width))
        directions.append(_rows(layers, {layer: (None, shift), layer + 1: (None, -shift @ following)}, width))
    if not directions:
        return jnp.zeros((1, sum(kernel.size + bias.size for kernel, bias in layers)))
    found = jnp.concatenate(directions)
    length = jnp.linalg.norm(found, axis=1, keepdims=True)
    return found / jnp.where(length == 0, 1, length)


def _rows(layers: Layers, moved: Mapping[int, tuple[Array | None, Array]], num: int) -> Float[Array, "num P"]:
    """``num`` directions as rows, zero in the layers that are not named."""
    parts = []
    for layer, pair in enumerate(layers):
        for leaf, own in zip(pair, moved.get(layer, (None, None)), strict=True):
            parts.append(jnp.zeros((num, leaf.size), leaf.dtype) if own is None else own.reshape(num, -1))
    return jnp.concatenate(parts, axis=1)


def _like(vector: Array, layers: Layers) -> list[tuple[Array, Array]]:
    """A vector of one entry a parameter, cut into kernels and biases."""
    pieces, start = [], 0
    for kernel, bias in layers:
        middle, end = start + kernel.size, start + kernel.size + bias.size
        pieces.append((vector[start:middle].reshape(kernel.shape), vector[middle:end]))
        start = end
    return pieces


def _rank(matrix: Float[Array, "n P"]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Rank with columns scaled to length 1, and the gap in the singular values there; infinite where none is dropped."""
    length = jnp.linalg.norm(matrix, axis=0)
    values = jnp.linalg.svd(matrix / jnp.where(length > RANK * length.max(), length, 1), compute_uv=False)
    rank = (values > RANK * values[0]).sum()
    dropped = jnp.where(rank < len(values), values[jnp.minimum(rank, len(values) - 1)], 0)
    kept = values[jnp.maximum(rank - 1, 0)]
    return rank, jnp.where((dropped > 0) & (rank > 0), kept / jnp.where(dropped > 0, dropped, 1), jnp.inf)
