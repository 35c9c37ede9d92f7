"""How alike the units of two networks compute, over batches of inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.sites import activations

MEASURES = ("correlation", "distance")
Batches = Sequence[tuple[Any, ...]]


class Similarity:
    """Of all units of the permutations of a group, for networks of one architecture."""

    def __init__(
        self, apply: Callable[..., Any], sym: Symmetry, params: PyTree, batches: Batches, measure: str
    ) -> None:
        self.batches, self.measure = batches, measure
        self.see = activations(apply, sym, params, *batches[0])

    def between(self, a: PyTree, b: PyTree) -> Mapping[int, Float[np.ndarray, "*copies n n"]]:
        """For every permutation that is seen: correlations, or minus mean squared distances, of the units of ``a`` with those of ``b``."""
        with jax.enable_x64(True):
            sums: dict[int, Any] = {}
            for batch in self.batches:
                found = _sums(self.see(a, *batch), self.see(b, *batch))
                sums = found if not sums else jax.tree.map(np.add, sums, jax.device_get(found))
        measured = {i: [_measured(jax.device_get(one), self.measure) for one in own] for i, own in sums.items() if own}
        return {i: np.mean(own, axis=0) for i, own in measured.items()}


@jax.jit
def _sums(one: dict[int, list[Array]], other: dict[int, list[Array]]) -> Any:
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
    spread = [np.sqrt(np.maximum(square / count - (total / count) ** 2, 0)) for total, square in ((x, xx), (y, yy))]
    scale = spread[0][..., :, None] * spread[1][..., None, :]
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)  # a dead unit goes with none
