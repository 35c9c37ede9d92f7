"""A sweep from its file to its results: claims the folder, hands its cells to an executor, and tells what became of them."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxsym.catalogue import find
from jaxsym.sweep import cell, executors, grid, records, search, store, targets
from jaxsym.sweep.folder import Folder

EXECUTORS = ("inline", "processes", "slurm")
POLL_SECONDS = 0.2
FINAL = ("CANCELLED", "TIMEOUT", "OUT_OF_MEMORY")
"""States of Slurm after which a cell is not begun again by itself."""
TRIES = 3
"""How often a cell is begun whose process is killed."""


class Failure(NamedTuple):
    """A cell that failed: its number, its static values in words, one line on why, and its log."""

    number: int
    label: str
    error: str
    log: Path


class Outcome(NamedTuple):
    """What became of a sweep."""

    cells: int
    done: int
    networks: int
    nonfinite: int
    failures: tuple[Failure, ...]


class Shown(NamedTuple):
    """What is shown of a cell: its state is waiting, running, done, found (done before) or failed."""

    number: int
    label: str
    state: str
    progress: cell.Progress | None
    note: str = ""


Show = Callable[[Shown], None]


def silent(shown: Shown) -> None:
    """Shows nothing."""


def run(
    sweep: str | Path | Mapping[str, Any] | grid.Sweep,
    out: str | Path,
    executor: Any = "inline",
    *,
    show: Show = silent,
    workers: int | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run a sweep into a folder, or go on with one that was begun there.

    Parameters
    ----------
    sweep
        The path of its TOML file, a dict of the same tables, or a :class:`~jaxsym.sweep.grid.Sweep`.
    out
        The folder. Cells that are complete and unchanged there are not run again, others go on where they were.
    executor
        ``"inline"``, ``"processes"`` (spawned), ``"slurm"``, or any object whose ``submit(fn, *args)`` gives a future; the machines
        must all see the folder.
    show
        Told of every cell when something changes, and while it runs.
    workers
        Processes at a time, for ``"processes"``; one for each core when None.
    slurm
        Options of :class:`jaxsym.sweep.slurm.Slurm`.

    Returns
    -------
    Outcome
        Counts, and the cells that failed; the others stand.

    Raises
    ------
    ValueError
        Before anything runs: for what is wrong in the file, naming its key; for a target that cannot be imported or traced; for a
        folder that is in use, cannot be written to, or holds something else, with the differences.
    """
    if isinstance(executor, str):
        find(dict.fromkeys(EXECUTORS), executor, "executor")
    if workers is not None and workers < 1:
        msg = f"workers: got {workers}, expected at least 1."
        raise ValueError(msg)
    here = str(Path.cwd())
    folders = [here, here]
    if isinstance(sweep, str | Path):
        path = Path(sweep).expanduser().absolute()
        folders = [str(path.parent), here]
        sweep = grid.load(path)
    elif not isinstance(sweep, grid.Sweep):
        sweep = grid.parse(sweep)
    code = _check(sweep, folders)
    folder = Folder(Path(out).expanduser().absolute())
    store.expect_folder(folder.path)
    with store.locked(folder.path / ".lock", held=lambda who: _refuse_second(folder.path, who)):
        folder.claim(sweep, folders)
        work = _Work(sweep, folder, show, code)
        with _submitter(executor, folder, work, workers, slurm or {}) as submit:
            if sweep.search is None:
                work.run(submit, [one.number for one in sweep.cells()])
            else:
                _search(sweep, folder, work, submit)
    return work.outcome()


class _Work:
    """The cells of a sweep while they run."""

    def __init__(self, sweep: grid.Sweep, folder: Folder, show: Show, code: str) -> None:
        self.sweep, self.folder, self.show, self.code = sweep, folder, show, code
        self.labels = {one.number: self._label(one) for one in sweep.cells()}
        self.records: dict[int, dict[str, Any]] = {}
        self.failures: dict[int, Failure] = {}

    def _label(self, one: grid.Cell) -> str:
        words = records.label(one.static)
        if self.sweep.search is None:
            return words or self.sweep.name
        first = one.number * self.sweep.search.batch
        last = min(first + self.sweep.search.batch, self.sweep.search.trials) - 1
        return ", ".join(filter(None, [words, f"trials {first} to {last}"]))

    def run(self, submit: executors.Submit, indices: list[int]) -> None:
        """Run some cells, those again whose process was killed."""
        todo = []
        for index in indices:
            found = cell.record(self.folder.cell(index), self.sweep.digest())
            if found is None:
                todo.append(index)
            else:
                self.records[index] = found
                self._tell(index, "found")
        tries = 0
        while todo and tries < TRIES:
            for index in todo:
                (self.folder.cell(index) / cell.FAILED).unlink(missing_ok=True)
            left = self._once(submit, todo)
            tries = tries + 1 if len(left) == len(todo) else 0  # one cell's end may take others with it
            todo = left
        for index in todo:
            self._fail(index, f"its process was killed {TRIES} times")

    def _once(self, submit: executors.Submit, indices: list[int]) -> list[int]:
        """Run some cells; those that ended without a word."""
        silent: list[int] = []
        for index in indices:
            self._tell(index, "waiting")
        jobs = dict(zip(indices, self._submitted(submit, indices), strict=True))
        try:
            while jobs:
                for index in [index for index, job in jobs.items() if job.done()]:
                    job = jobs.pop(index)
                    if self._settled(index):
                        continue
                    error = job.exception()
                    if isinstance(error, ValueError) or str(getattr(job, "state", "")) in FINAL:
                        self._fail(index, " ".join(str(error).split()))
                    else:
                        silent.append(index)
                for index in jobs:
                    seen = store.read_json(self.folder.cell(index) / "progress.json")
                    if isinstance(seen, dict) and {*cell.Progress._fields} <= {*seen}:
                        self.progress(index, cell.Progress(**{k: seen[k] for k in cell.Progress._fields}))
                if jobs:
                    time.sleep(POLL_SECONDS)
        except BaseException:
            for job in jobs.values():
                job.cancel()
            raise
        return silent

    def _submitted(self, submit: executors.Submit, indices: list[int]) -> Sequence[executors.Job]:
        return submit(str(self.folder.path), indices) if indices else []

    def _settled(self, index: int) -> bool:
        """Whether the folder of a cell whose job has ended says how."""
        place = self.folder.cell(index)
        found, failed = cell.record(place, self.sweep.digest()), cell.failure(place)
        if found is not None:
            self.records[index] = found
            self._tell(index, "done")
        elif failed is not None:
            self._fail(index, failed)
        else:
            return False
        return True

    def _fail(self, index: int, error: str) -> None:
        log = self.folder.cell(index) / "log.txt"
        self.failures[index] = Failure(index, self.labels[index], error, log)
        self._tell(index, "failed", error)

    def _tell(self, index: int, state: str, note: str = "") -> None:
        found = self.records.get(index)
        notes = [note] if note else []
        if found and found["nonfinite"]:
            notes.append(f"{found['nonfinite']} of {found['networks']} networks are not finite")
        if found and found.get("code", self.code) != self.code:
            name, place = (self.sweep.target or "").rpartition(":")[0], self.folder.cell(index)
            notes.append(f"made with another version of {name}, so delete {place} to make it with this one")
        networks = found["networks"] if found else 0
        progress = cell.Progress(networks, networks, 0, 0, found["seconds"]) if found else None
        self.show(Shown(index, self.labels[index], state, progress, "; ".join(notes)))

    def progress(self, index: int, progress: cell.Progress) -> None:
        """Tell how far a cell is."""
        self.show(Shown(index, self.labels[index], "running", progress))

    def outcome(self) -> Outcome:
        """What has become of all cells."""
        return Outcome(
            cells=len(self.labels),
            done=len(self.records),
            networks=sum(found["networks"] for found in self.records.values()),
            nonfinite=sum(found["nonfinite"] for found in self.records.values()),
            failures=tuple(self.failures[index] for index in sorted(self.failures)),
        )


def _search(sweep: grid.Sweep, folder: Folder, work: _Work, submit: executors.Submit) -> None:
    """Ask for a batch of trials, run it as one cell, tell its objectives, and so on; what is stored is told again, not run."""
    assert sweep.search is not None
    searcher = search.Searcher(sweep.search)
    for one in sweep.cells():
        points = search.points(sweep.search, searcher.ask())
        place = folder.cell(one.number)
        asked = {"hash": sweep.digest(), "values": {name: array.tolist() for name, array in points.items()}}
        if store.read_json(place / cell.POINTS) != asked:
            (place / cell.RECORD).unlink(missing_ok=True)  # a result of other trials
            store.write_json(place / cell.POINTS, asked)
        work.run(submit, [one.number])
        if one.number not in work.records:
            break  # the next batch would have to know of this one
        searcher.tell(store.read_dataset(place / cell.DATA)["objective"].values.tolist())
        search.write_database(folder.database, searcher)


@contextlib.contextmanager
def _submitter(
    executor: Any, folder: Folder, work: _Work, workers: int | None, slurm: Mapping[str, Any]
) -> Iterator[executors.Submit]:
    if executor == "inline":
        with executors.inline(work.progress) as submit:
            yield submit
    elif executor == "processes":
        with executors.processes(workers) as submit:
            yield submit
    elif executor == "slurm":
        from jaxsym.sweep.slurm import Slurm

        cluster = Slurm(executors.folder_of(str(folder.path)), **slurm)
        yield lambda directory, indices: cluster.submit_all(cell.run, [(directory, index) for index in indices])
    else:
        with executors.given(executor) as submit:
            yield submit


def _check(sweep: grid.Sweep, folders: list[str]) -> str:
    """Find the target and trace one network of its first cell, before anything is written; the version of the target's file."""
    if sweep.study is not None:
        targets.load_study(sweep)
        return ""
    factory = targets.load(sweep, folders)
    points = sweep.points()
    if sweep.search is not None:
        points = grid.Points(
            {"trial": sweep.search.batch}, search.points(sweep.search, search.Searcher(sweep.search).ask())
        )
    targets.check(targets.make(factory, sweep.target or "", sweep.cells()[0].static), sweep, points)
    return targets.version(factory)


def _refuse_second(path: Path, who: str) -> None:
    msg = f"{path} is in use: {who} runs a sweep there. Wait for it, stop it, or choose another --out."
    raise ValueError(msg)
