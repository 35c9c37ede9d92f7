"""Where cells run: here, in processes, on Slurm, or on any executor of ``concurrent.futures``. They share the folder and nothing else."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from jaxsym.parallel.cache import keep_compiled
from jaxsym.sweep import cell


class Job(Protocol):
    """A cell that was handed on."""

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        ...

    def exception(self) -> BaseException | None:
        """Once it has ended: what went wrong, as far as the executor knows; a ValueError where the cell itself says it."""
        ...

    def cancel(self) -> Any:
        """Stop it, or do not begin it."""
        ...


Submit = Callable[[str, Sequence[int]], Sequence[Job]]
"""Hands on some cells of a folder."""


class Now:
    """A cell that has been run on the spot."""

    def __init__(self, error: ValueError | None = None) -> None:
        self.error = error

    def done(self) -> bool:
        """Always."""
        return True

    def exception(self) -> ValueError | None:
        """What went wrong."""
        return self.error

    def cancel(self) -> bool:
        """Too late."""
        return False


@contextlib.contextmanager
def inline(show: Callable[[int, cell.Progress], None]) -> Iterator[Submit]:
    """One cell after the other, in this process, on all its devices."""

    def submit(directory: str, indices: Sequence[int]) -> Sequence[Job]:
        def one(index: int) -> Job:
            try:
                cell.run(directory, index, lambda progress: show(index, progress))
            except ValueError as error:
                return Now(error)
            return Now()

        return [one(index) for index in indices]

    yield submit


@contextlib.contextmanager
def processes(workers: int | None = None) -> Iterator[Submit]:
    """Some cells at a time, each in a process of its own on one CPU device; processes are spawned, never forked.

    Parameters
    ----------
    workers
        How many; one for each core when None.
    """
    workers = workers or len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    ours, held = context.Pipe(duplex=False)  # a worker waits for it to close, as it does too when this process ends
    pools: list[concurrent.futures.ProcessPoolExecutor] = []

    def renew() -> concurrent.futures.ProcessPoolExecutor:
        """A new pool: one whose process was killed takes no more work."""
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (ours,))
        pools[:] = [pool]
        return pool

    def submit(directory: str, indices: Sequence[int]) -> Sequence[Job]:
        pool = renew()
        return [pool.submit(cell.run, directory, index) for index in indices]

    with ours, held, _environment(JAX_NUM_CPU_DEVICES="1", OPENBLAS_NUM_THREADS="1"):
        try:
            yield submit
        except BaseException:
            held.close()
            raise
        finally:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: Connection) -> None:
    """In a new worker: end with the parent, however it ends, leave interrupts to it, and use what others have compiled."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    keep_compiled()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def given(executor: Any) -> Iterator[Submit]:
    """An executor of the user's own: whatever has ``submit(fn, *args)`` that gives a future, as Dask's and Ray's clients do."""
    yield lambda directory, indices: [executor.submit(cell.run, directory, index) for index in indices]


def folder_of(directory: str) -> Path:
    """Where executors keep what is theirs."""
    return Path(directory) / "executor"
