"""What the machine can do at most: additions and multiplications of a large float32 matrix product, bytes moved by a triad."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

TRIES = 5


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few runs, the first of which does not count."""
    run()
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def with_numpy(side: int, length: int) -> tuple[float, float]:
    a, b = np.ones((side, side), np.float32), np.ones((side, side), np.float32)
    x, y = np.ones(length, np.float32), np.ones(length, np.float32)
    return 2 * side**3 / fastest(lambda: a @ b), 2 * x.nbytes / fastest(lambda: np.copyto(y, x))


def with_jax(side: int, length: int) -> tuple[float, float]:
    """On all devices, each with its rows."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    a, b = (jax.device_put(np.ones((side, side), np.float32), place) for place in (rows, whole))
    x, y = (jax.device_put(np.ones(length, np.float32), rows) for _ in range(2))
    product, triad = jax.jit(jax.numpy.matmul), jax.jit(lambda x, y: x + 2 * y)
    return (
        2 * side**3 / fastest(lambda: product(a, b).block_until_ready()),
        3 * x.nbytes / fastest(lambda: triad(x, y).block_until_ready()),
    )


def with_torch(side: int, length: int) -> tuple[float, float]:
    import torch

    a, b = torch.ones(side, side), torch.ones(side, side)
    x, y, z = (torch.ones(length) for _ in range(3))
    triad = functools.partial(torch.add, x, y, alpha=2, out=z)
    return 2 * side**3 / fastest(lambda: a @ b), 3 * x.nbytes / fastest(triad)
