"""The networks of a cell, a few chunks at a time: computed, saved as segments, and gone on with where a run was ended."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from jaxsym import tree
from jaxsym.parallel import at_once, chunk_from_shapes, parallel
from jaxsym.sweep import checkpoint, store
from jaxsym.sweep.grid import Sweep
from jaxsym.sweep.targets import named, network_key
from jaxsym.training import Run, Train

Arrays = dict[str, np.ndarray]
SECONDS = "seconds.json"
CALL_SECONDS = 0.5
"""About how long one call of a compiled program trains; between calls progress is shown and an interrupt is heard."""


class Results(NamedTuple):
    """Arrays of all networks ``[N, ...]`` by name.

    ``curves`` have the records of a training run as their second axis, and ``step`` ``[R]`` says at which step each was taken. ``params``,
    by path, are empty where the target is no training run or they are not wanted.
    """

    variables: Arrays
    curves: Arrays
    params: Arrays
    step: np.ndarray | None


@dataclasses.dataclass
class Networks:
    """The networks of a cell, and what has become of them.

    A *segment* is a file with the results of some chunks of networks. A chunk is computed as one ``vmap`` on one core or device, always
    filled up, so that its bits do not depend on what else runs beside it, or how often it was interrupted.

    Parameters
    ----------
    train
        A function of ``(key, **traced)``, or what ``make_train`` returns.
    seeds, traced
        Of every network, ``[N]``.
    sweep
        The sweep; of it are used the chunk, the variables, the time between saves and the hash.
    place
        The folder for segments.
    code
        The version of the code; segments of another one are not used.
    log
        Told what is worth a line.
    """

    train: Callable[..., Any]
    seeds: UInt32[np.ndarray, " N"]
    traced: Arrays
    sweep: Sweep
    place: Path
    code: str
    log: Callable[[str], None]

    def __post_init__(self) -> None:
        """Choose the chunk from the file or from shapes, and find out what is done."""
        self.programs: dict[str, Any] = {}
        self.at_once = at_once()
        self.chunk = self.sweep.chunk or chunk_from_shapes(self._begin, self.seeds, self.traced)
        self.chunk = min(self.chunk, len(self.seeds))
        self.num_chunks = math.ceil(len(self.seeds) / self.chunk)
        self.mark = {"config_hash": self.sweep.digest(), "chunk": str(self.chunk), "code": self.code}
        self.finished: dict[int, Arrays] = {}
        self.unsaved: list[int] = []
        self.under_way: tuple[list[int], Run, int] | None = None
        self.saved_at = time.monotonic()
        self.before = 0
        self.busy = 0.0  # seconds of computing; compiling and writing apart
        self.began = time.monotonic()
        earlier = store.read_json(self.place / SECONDS)  # of runs that were ended
        self.earlier = float(earlier) if isinstance(earlier, int | float) else 0.0

    def run(self, show: Callable[..., None]) -> "Results":
        """All networks; what is saved is not computed again."""
        self._read_segments()
        steps = self.train.steps if isinstance(self.train, Train) else 0
        done_before = len(self.finished)
        self.before = min(done_before * self.chunk, len(self.seeds)) * max(steps, 1)

        def told(steps_done: int = 0, width: int = 0) -> None:
            """Show the progress, of which ``width`` chunks that are under way have done some steps."""
            networks = min(len(self.finished) * self.chunk, len(self.seeds))
            steps_all = networks * steps + width * self.chunk * steps_done
            show(len(self.seeds), networks, steps * len(self.seeds), steps_all, self.busy, self.before)

        try:
            for ids, run, first in self._groups():
                self._compute(ids, run, first, told)
                told()
        except KeyboardInterrupt:
            self._save()
            raise
        if len(self.finished) > done_before:
            self._save()
        return self._assembled()

    def _compute(self, ids: list[int], run: Run | None, first: int, told: Callable[..., None]) -> None:
        """Some chunks, at most as many as are computed at once, to their end."""
        if not isinstance(self.train, Train):
            whole, rows, clock = self._program("whole"), self._rows(ids), time.perf_counter()
            results = jax.device_get(whole(*rows))
            self.busy += time.perf_counter() - clock
            self._finish(ids, results)
            return
        if run is None:
            run, first = self._program("start")(*self._rows(ids)), 0
        advance, num = self._program("advance", run), 1
        while first < self.train.steps:
            num = min(num, self.train.steps - first)
            clock = time.perf_counter()
            self.under_way = None  # the call takes over its buffers
            run = jax.block_until_ready(advance(run, jnp.int32(first), jnp.int32(num)))
            first += num
            self.under_way = (ids, run, first)
            spent = time.perf_counter() - clock
            self.busy += spent
            num = max(1, min(4 * num, int(num * CALL_SECONDS / spent)))
            told(first, len(ids))
            self._save_if_due()
        self.under_way = None
        self._finish(ids, jax.device_get(self._program("finish", run)(run)))

    def _finish(self, ids: list[int], results: Arrays) -> None:
        for position, number in enumerate(ids):
            rows = slice(position * self.chunk, (position + 1) * self.chunk)
            self.finished[number] = {name: np.asarray(array[rows]) for name, array in results.items()}
        self.unsaved += ids
        self._save_if_due()

    def _groups(self) -> Iterator[tuple[list[int], Run | None, int]]:
        """What is to be computed together: first what a checkpoint holds, then the rest."""
        if isinstance(self.train, Train):
            yield from self._resumed()
        todo = [number for number in range(self.num_chunks) if number not in self.finished]
        for first in range(0, len(todo), self.at_once):
            yield todo[first : first + self.at_once], None, 0

    def _resumed(self) -> Iterator[tuple[list[int], Run, int]]:
        shapes = jax.eval_shape(self._begin_all, *self._rows([0], filled=False))
        found = checkpoint.read(self.place, self.mark, shapes, self.chunk, self.log)
        if found is None:
            return
        ids, run, first = found
        if not set(ids) <= set(range(self.num_chunks)) - set(self.finished):
            return
        self.log(f"goes on at step {first} with {len(ids) * self.chunk} networks")
        self.before += len(ids) * self.chunk * first
        for start in range(0, len(ids), self.at_once):  # it may have been more at once then
            some = ids[start : start + self.at_once]
            positions = [start + min(i, len(some) - 1) for i in range(self.at_once)]
            rows = np.concatenate([np.arange(p * self.chunk, (p + 1) * self.chunk) for p in positions])
            yield some, jax.tree.map(lambda leaf, rows=rows: leaf[rows], run), first

    def _rows(self, ids: Sequence[int], filled: bool = True) -> tuple[Array, dict[str, Array]]:
        """Seeds and traced values of some chunks; the last chunk is repeated where cores are left, the last network where rows are."""
        ids = [*ids, *[ids[-1]] * (self.at_once - len(ids) if filled else 0)]
        rows = np.concatenate([np.arange(number * self.chunk, (number + 1) * self.chunk) for number in ids])
        rows = np.minimum(rows, len(self.seeds) - 1)
        return jnp.asarray(self.seeds[rows]), {name: jnp.asarray(array[rows]) for name, array in self.traced.items()}

    def _begin(self, seed: Array, traced: dict[str, Array]) -> PyTree:
        if isinstance(self.train, Train):
            return self.train.start(network_key(seed), **traced)
        return self._by_kind(self.train(network_key(seed), **traced))

    def _begin_all(self, seeds: Array, traced: dict[str, Array]) -> PyTree:
        return jax.vmap(self._begin)(seeds, traced)

    def _end(self, run: Run) -> dict[str, Array]:
        assert isinstance(self.train, Train)
        results = self._by_kind(self.train.finish(run))
        if self.sweep.params:
            results |= {f"parameter {path}": leaf for path, leaf in tree.leaves(run.params).items()}
        return results

    def _by_kind(self, made: Any) -> dict[str, Array]:
        """Results in one dict, their kind before their name, as segments hold them."""
        variables, curves, step = named(made, self.sweep.variables, self.sweep.name)
        results = {f"variable {name}": leaf for name, leaf in variables.items()}
        results |= {f"curve {name}": leaf for name, leaf in curves.items()}
        return results if step is None else results | {"step": step}

    def _program(self, name: str, run: Run | None = None) -> Any:
        """One of the compiled programs; each is compiled once."""
        if name not in self.programs:
            train = self.train
            fn: Callable[..., Any]
            args: tuple[Any, ...]
            in_axes: Any = 0
            donated: tuple[int, ...] = ()
            if name == "advance" and isinstance(train, Train):
                fn, args, in_axes, donated = train.advance, (run, jnp.int32(0), jnp.int32(0)), (0, None, None), (0,)
            elif name == "finish":
                fn, args = self._end, (run,)
            else:
                fn, args = self._begin, self._rows([0])
            self.programs[name] = parallel(fn, in_axes, chunk=self.chunk, donate_argnums=donated)
            self.programs[name].chunk_for(*args)  # compiles
        return self.programs[name]

    def _save_if_due(self) -> None:
        if time.monotonic() - self.saved_at >= self.sweep.save_every:
            self._save()

    def _save(self) -> None:
        """Write what is finished and not saved as one segment, and what is under way as a checkpoint."""
        if self.unsaved:
            some = [self.finished[number] for number in self.unsaved]
            path = self.place / f"segment_{self.unsaved[0]:06d}.safetensors"
            joined = {name: np.stack([one[name] for one in some]) for name in some[0]}
            store.write_arrays(path, joined, self.mark | {"chunks": " ".join(map(str, self.unsaved))})
            store.seal(path)
            self.unsaved = []
        if self.under_way is not None:
            checkpoint.write(self.place, self.mark, *self.under_way)
        self.saved_at = time.monotonic()
        store.write_json(self.place / SECONDS, self.earlier + self.saved_at - self.began)

    def _read_segments(self) -> None:
        for path in sorted(self.place.glob("segment_*.safetensors")):
            if not store.sealed(path):
                self.log(f"{path.name} is damaged or half written; its networks are computed again")
                store.unseal(path)
                continue
            arrays, marks = store.read_arrays(path)
            numbers = [int(number) for number in marks.pop("chunks", "").split()]
            if marks != self.mark:
                self.log(
                    f"{path.name} belongs to another sweep, chunk or version of the code; its networks are computed again"
                )
                store.unseal(path)
                continue
            for position, number in enumerate(numbers):
                self.finished[number] = {name: array[position] for name, array in arrays.items()}

    def _assembled(self) -> Results:
        chunks = [self.finished[number] for number in range(self.num_chunks)]
        joined = {name: np.concatenate([one[name] for one in chunks])[: len(self.seeds)] for name in chunks[0]}
        step = joined.pop("step", None)
        kinds: dict[str, Arrays] = {"variable": {}, "curve": {}, "parameter": {}}
        for name, array in joined.items():
            kind, _, own = name.partition(" ")
            kinds[kind][own] = array if kind == "parameter" else _plain(array)
        return Results(kinds["variable"], kinds["curve"], kinds["parameter"], None if step is None else step[0])


def _plain(array: np.ndarray) -> np.ndarray:
    """In a type that NetCDF has: 16-bit floats become float32."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array
