"""How alike the units of two networks compute, over batches of inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym.alignment.blocks import Block, Scores
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.sites import Sites, activations
from jaxsym.symmetry.units import Leaves, numbers

MEASURES = ("correlation", "distance")
ROUNDING = 1e-9
"""Likenesses that differ by less than this part of the largest are the same."""
Batches = Sequence[tuple[Any, ...]]


class Similarity:
    """Of all units of the permutations of a group, for networks of one architecture."""

    def __init__(
        self, apply: Callable[..., Any], sym: Symmetry, params: PyTree, batches: Batches, measure: str
    ) -> None:
        self.sym, self.batches, self.measure = sym, batches, measure
        self.see = activations(apply, sym, params, *batches[0])

    def between(self, a: PyTree, b: PyTree) -> Mapping[int, list[Float[np.ndarray, "*copies n n"]]]:
        """For every permutation, and every place where its units are seen: correlations, or minus mean squared distances, of those of ``a`` with those of ``b``."""
        with jax.enable_x64(True):
            sums: dict[int, Any] = {}
            for batch in self.batches:
                found = _sums(self.see(a, *batch), self.see(b, *batch))
                sums = found if not sums else jax.tree.map(np.add, sums, jax.device_get(found))
        for i, own in sums.items():
            if not all(np.isfinite(total).all() for one in jax.device_get(own) for total in one):
                name = "/".join(self.sym.factors[i].slots[0].path)
                msg = f"align: what the units of {name} compute is not finite, or too large to be squared; look for NaN and infinity among the inputs."
                raise ValueError(msg)
        return {i: [_measured(jax.device_get(one), self.measure) for one in own] for i, own in sums.items() if own}

    def scores(self, a: Leaves, b: Leaves, blocks: Iterable[Block]) -> dict[Block, Scores]:
        """Of some blocks, means over the places where their units are seen.

        ``straight`` and ``flipped`` add up to what ``b`` has as it is, and their difference is what it has with all signs turned around; ``flipped`` is 0 where a
        sign is not seen.
        """
        signs = set(numbers(self.sym, "sign"))
        around = tuple(-part if i in signs else part for i, part in enumerate(self.sym.still()))
        as_it_is = self.between(a, b)
        turned = self.between(a, self.sym.act(around, b)) if signs else as_it_is
        found = {}
        for block in blocks:
            if block.mover is not None and block.mover in as_it_is:
                one, other = (np.mean(of[block.mover], axis=0)[None] for of in (as_it_is, turned))
                odd = (one - other) / 2
                unseen = np.abs(odd).max(initial=0) <= ROUNDING * np.abs(one).max(initial=0)
                found[block] = Scores(one, np.zeros_like(odd)) if unseen else Scores((one + other) / 2, odd)
        return found


@jax.jit
def _sums(one: Sites, other: Sites) -> Any:
    """What batches add up to: the number of samples, sums, squares and products."""

    def each(x: Array, y: Array) -> tuple[Array, ...]:
        count = jax.numpy.asarray(float(x.shape[-1]))
        return count, x.sum(-1), y.sum(-1), (x**2).sum(-1), (y**2).sum(-1), x @ y.swapaxes(-1, -2)

    return {i: [each(x, y) for x, y in zip(one[i], other[i], strict=True)] for i in one}


def _measured(sums: Iterable[Any], measure: str) -> Float[np.ndarray, "*copies n n"]:
    count, x, y, xx, yy, xy = sums
    if measure == "distance":
        return (2 * xy - xx[..., :, None] - yy[..., None, :]) / count
    covariance = xy / count - x[..., :, None] * y[..., None, :] / count**2
    spread = [_spread(square / count, total / count) for total, square in ((x, xx), (y, yy))]
    scale = spread[0][..., :, None] * spread[1][..., None, :]
    return np.divide(
        covariance, scale, out=np.zeros_like(covariance), where=scale > 0
    )  # a constant unit goes with none


def _spread(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The standard deviation; 0 where it is rounding."""
    variance = square - mean**2
    return np.sqrt(np.where(variance > ROUNDING**1.5 * square, variance, 0))
