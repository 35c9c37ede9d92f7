"""Runs of the study ``rescue`` in pieces: the compiled programs, and the checkpoints on disk that runs go back to."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from jaxsym.parallel import parallel
from jaxsym.studies.study import Clock
from jaxsym.sweep import checkpoint, store
from jaxsym.training import Run, Train


class Programs:
    """The pieces of a training run of all networks, each compiled once; between them a run is NumPy arrays.

    Parameters
    ----------
    clock
        Keeps the times.
    train
        One run.
    keys
        Of the networks.
    """

    def __init__(self, clock: Clock, train: Train, keys: Array) -> None:
        self.clock, self.train, self.keys = clock, train, keys
        self._compiled: dict[str, Any] = {}

    def start(self, hyper: dict[str, float]) -> Run:
        """All networks before the first step."""
        values = {name: jnp.full(self.keys.shape, value, jnp.float32) for name, value in hyper.items()}
        return self._call(
            "start", parallel(lambda key, hyper: _plain(self.train.start(key, **hyper))), self.keys, values
        )

    def advance(self, run: Run, first: int, steps: int, count: int | None = None) -> Run:
        """Further steps of all of them, each of which is after ``first``; ``count`` of them are not there to fill up."""

        def further(run: Run, first: Array, steps: Array) -> Run:
            return _plain(self.train.advance(_keyed(run), first, steps))

        whole = parallel(further, in_axes=(0, None, None))
        run = self._call("advance", whole, run, np.int32(first), np.int32(steps))
        self.clock.net_steps += (len(self.keys) if count is None else count) * steps
        return run

    def finish(self, run: Run) -> dict[str, np.ndarray]:
        """What is kept of them."""
        return self._call("finish", parallel(lambda run: self.train.finish(_keyed(run))), run)

    def whole(self, hyper: dict[str, float], label: str) -> dict[str, np.ndarray]:
        """From the start to the end."""
        self.say(label)
        end = self.finish(self.advance(self.start(hyper), 0, self.train.steps))
        self.clock.networks += len(self.keys)
        return end

    def say(self, label: str) -> None:
        """Report what is under way."""
        self.clock.progress(label, min(self.clock.net_steps, self.clock.total), self.clock.total)

    def _call(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        if name not in self._compiled:
            start = time.perf_counter()
            self._compiled[name] = jax.jit(fn).lower(*args).compile()
            self.clock.compile_seconds += time.perf_counter() - start
        start = time.perf_counter()
        result = jax.device_get(self._compiled[name](*args))
        self.clock.run_seconds += time.perf_counter() - start
        return result


def _plain(run: Run) -> Run:
    """Keys as the numbers that they are."""
    return run._replace(order_key=jax.random.key_data(run.order_key), loss_key=jax.random.key_data(run.loss_key))


def _keyed(run: Run) -> Run:
    return run._replace(
        order_key=jax.random.wrap_key_data(run.order_key), loss_key=jax.random.wrap_key_data(run.loss_key)
    )


class Checkpoints:
    """Checkpoints of all networks, on disk; those that no network will go back to are removed.

    Parameters
    ----------
    folder
        Where they are written, each in a folder of its own.
    networks
        In each.
    state
        ``state(params) -> (loss, finite)`` of one network.
    since
        The step from which on runs diverge; those that were lost before it are not counted.
    """

    def __init__(
        self, folder: Path, networks: int, state: Callable[[PyTree], tuple[Array, Array]], since: int = 0
    ) -> None:
        self.folder, self.mark, self.since = folder, {"chunk": str(networks)}, since
        self.state = jax.jit(parallel(state))
        self.steps: list[int] = []
        self.losses: list[np.ndarray] = []
        self.finite: list[np.ndarray] = []
        self.bytes = 0
        self.restored: dict[int, bool] = {}
        self._memory: dict[int, Run] = {}

    def save(self, step: int, run: Run) -> None:
        """Write all networks to disk, after ``step`` steps."""
        index = len(self.steps)
        checkpoint.write(self.folder / str(index), self.mark, [0], run, step)
        loss, finite = jax.device_get(self.state(run.params))
        self.steps.append(step)
        self.losses.append(loss)
        self.finite.append(finite)
        self._memory[index] = run
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(run))
        for other in set(self._memory) - set(self.points().ravel().tolist()) - {index}:
            store.remove(self.folder / str(other))
            del self._memory[other]

    def restore(self, index: int) -> Run:
        """The runs of a checkpoint, read from disk; whether they are what was saved to the bit is noted.

        Raises
        ------
        ValueError
            If the checkpoint is damaged.
        """
        said: list[str] = []
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._memory[index])
        found = checkpoint.read(self.folder / str(index), self.mark, shapes, int(self.mark["chunk"]), said.append)
        if found is None:
            msg = f"{self.folder / str(index)}: {' '.join(said) or 'there is no checkpoint'}."
            raise ValueError(msg)
        run = jax.tree.map(np.asarray, found[1])
        pairs = zip(jax.tree.leaves(run), jax.tree.leaves(self._memory[index]), strict=True)
        self.restored[index] = all(a.dtype == b.dtype and a.tobytes() == np.asarray(b).tobytes() for a, b in pairs)
        return run

    def diverged(self) -> Bool[np.ndarray, " networks"]:
        """Whether the newest checkpoint of each network is not finite, though that at ``since`` is."""
        return ~self.finite[-1] & self.finite[self.steps.index(self.since)]

    def points(self) -> Int[np.ndarray, "points networks"]:
        """The numbers of the checkpoints that each network can go back to.

        The last that is no worse than the start, the last that is finite, and the one after that, which is not.
        """
        finite, losses = np.stack(self.finite), np.stack(self.losses)
        last = len(finite) - 1
        healthy = finite & (losses <= losses[0])
        newest = [last - np.argmax(ok[::-1], axis=0) for ok in (healthy, finite)]
        return np.stack([*newest, np.minimum(newest[1] + 1, last)])

    def variables(self) -> dict[str, Any]:
        """What is known of them, for a dataset."""
        points = self.points()
        steps = np.array(self.steps)
        read = sorted(self.restored)
        return {
            "checkpoint_step": (("checkpoint",), steps, {"long_name": "step of a checkpoint"}),
            "checkpoint_loss": (
                ("checkpoint", "network"),
                np.stack(self.losses),
                {"long_name": "loss on all training rows at a checkpoint"},
            ),
            "checkpoint_finite": (
                ("checkpoint", "network"),
                np.stack(self.finite),
                {"long_name": "whether this loss and all parameters are finite"},
            ),
            "point_step": (
                ("point", "network"),
                steps[points],
                {"long_name": "step of the checkpoint that is gone back to"},
            ),
            "point_loss": (
                ("point", "network"),
                np.take_along_axis(np.stack(self.losses), points, axis=0),
                {"long_name": "loss on all training rows there"},
            ),
            "diverged": (("network",), self.diverged(), {"long_name": "whether the run with checkpoints diverged"}),
            "restored_step": (("restored",), steps[read], {"long_name": "step of a checkpoint that was read again"}),
            "restored_equal": (
                ("restored",),
                np.array([self.restored[index] for index in read], bool),
                {"long_name": "whether all of its arrays are those that were saved, to the bit"},
            ),
            "checkpoint_bytes": ((), self.bytes, {"long_name": "bytes of a checkpoint of all networks"}),
        }
