"""Cells as tasks of one Slurm array, submitted by submitit (``pip install 'jaxsym[cluster]'``).

submitit writes the batch script, and in each task's folder the call as serialised Python, which only the task reads; it also stops
a task that Slurm preempts or whose time is up (signal USR2) and requeues it. The cell then resumes from its own segments. What a
task left is read from the cell's folder and from nothing else.
"""

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxsym.parallel.cache import keep_compiled
from jaxsym.sweep import cell, store
from jaxsym.sweep.folder import Folder

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

PROGRAMS = ("sbatch", "srun", "squeue", "scancel")
OURS = ("array", "output", "error")  # options of sbatch that the reading of tasks and logs relies on
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
FORGOTTEN = "FORGOTTEN"  # ended too, but neither the controller nor the accounting knows how
SETUP = (  # before Python starts, because JAX, XLA and OpenBLAS read them when they do
    "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # srun no longer takes it from sbatch
    "export JAX_NUM_CPU_DEVICES=$SLURM_CPUS_PER_TASK",
    "export NPROC=$((2 * SLURM_CPUS_PER_TASK)) OPENBLAS_NUM_THREADS=1",  # as use_all_cores does
)
# The signal kills a Python that has not yet come to submitit's handler, and Slurm would call that a failure.
DEAF = """sh -c 'trap "" "${SUBMITIT_PREEMPT_SIGNAL:-USR2}"; exec "$@"' sh """


@dataclasses.dataclass(frozen=True)
class _Task:
    """The call that submitit makes in a task: it returns nothing, and after a preemption it is the same call again."""

    fn: Callable[[str, int], Any]

    def __call__(self, directory: str, index: int) -> None:
        _leave_at_once()
        keep_compiled()
        self.fn(directory, index)

    def checkpoint(self, directory: str, index: int) -> "DelayedSubmission":
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, directory, index)


def _leave_at_once() -> None:
    """End the process where submitit's handler would raise: a cell survives a kill at any moment, and takes an exception for a failure."""
    from submitit.core.job_environment import JobEnvironment
    from submitit.core.utils import UncompletedJobError

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    requeue: Any = signal.getsignal(number)

    def handle(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # Slurm sends it next, also to the `scontrol requeue` that is started now
        try:
            requeue(number, frame)
        except UncompletedJobError:  # its time was up too often: that is a failure
            raise
        except Exception:  # Slurm may requeue it by itself; otherwise the cell is missing, and is submitted again
            traceback.print_exc()
        except SystemExit:
            pass
        os._exit(1)

    signal.signal(number, handle)


class Job:
    """One cell's task. Attributes: ``identity`` (Slurm's ``ARRAY_TASK``), ``directory``, ``index``, ``log`` (its standard error)."""

    def __init__(self, slurm: "Slurm", identity: str, directory: str, index: int, log: Path) -> None:
        self.identity, self.directory, self.index, self.log = identity, directory, index, log
        self._slurm = slurm
        self._folder = Folder(Path(directory)).cell(index)
        self._seen: float | None = None  # when the end was first seen

    @property
    def state(self) -> str:
        """Slurm's word for it: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ...; FORGOTTEN if Slurm has none."""
        return self._slurm._look(self.identity)[0]

    def __str__(self) -> str:
        state, reason = self._slurm._look(self.identity)
        return f"Slurm task {self.identity}: {state}" + (f" ({reason})" if reason not in ("", "None") else "")

    def done(self) -> bool:
        """Whether the task has ended, well or not, and its files are seen here (or have had the time for it)."""
        state = self.state
        if not _ended(state):
            return False
        self._seen = self._seen or time.monotonic()
        expected = {"COMPLETED": (cell.RECORD,), "FAILED": (cell.RECORD, cell.FAILED)}.get(state, ())
        late = expected and not any((self._folder / name).exists() for name in expected)
        return not late or time.monotonic() - self._seen >= self._slurm.patience

    def cancel(self) -> None:
        """Cancel it, whether it waits or runs.

        Raises
        ------
        OSError
            If Slurm cannot be told.
        """
        self._slurm._cancel([self.identity])

    def exception(self, timeout: float | None = None) -> RuntimeError | None:
        """Wait for the end; None if the cell is complete, else what went wrong.

        Raises
        ------
        TimeoutError
            If the task has not ended after ``timeout`` seconds.
        """
        return self._outcome(timeout)[1]

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end; the cell's completion record (``cell.json``).

        Raises
        ------
        RuntimeError
            If there is none.
        TimeoutError
            If the task has not ended after ``timeout`` seconds.
        """
        record, error = self._outcome(timeout)
        if error is not None:
            raise error
        return record

    def _outcome(self, timeout: float | None) -> tuple[dict[str, Any], RuntimeError | None]:
        end = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            if end is not None and time.monotonic() >= end:
                msg = f"{self} after {timeout} s."
                raise TimeoutError(msg)
            time.sleep(self._slurm.poll)
        record = store.read_json(self._folder / cell.RECORD) if self.state in ("COMPLETED", FORGOTTEN) else None
        if record is not None:
            return record, None
        failed = store.read_json(self._folder / cell.FAILED) if self.state == "FAILED" else None
        why = failed["error"] if failed else "it wrote no result"
        return {}, RuntimeError(f"{self}: {why}. Its log: {self.log}")


class Slurm:
    """Run cells on a Slurm cluster.

    Parameters
    ----------
    folder
        Where submitit keeps its scripts and logs; every node must see it.
    partition, account
        Slurm's, or its defaults.
    minutes
        The time limit of a task. One that reaches it is requeued and resumes; with 10 or fewer, submitit takes a preemption for that too.
    cpus
        Cores of a task; JAX has as many CPU devices there.
    memory_gb
        Memory of a task, or Slurm's default.
    parallelism
        How many tasks may run at once; None for all.
    requeues
        How often a task may reach its time limit. Preemptions are not counted.
    extra
        Further options of ``sbatch`` by their long names, such as ``{"constraint": "skylake", "gpus_per_node": 1, "nice": 100}``; True for
        one without a value, False to leave one out.
    setup
        Lines of shell to run in a task first, such as ``"module load python"``.
    poll
        Seconds between two questions to Slurm. One ``squeue`` answers for all tasks.
    patience
        Seconds that a file written on another node may take to be seen here.

    Raises
    ------
    ValueError
        If submitit is not installed, this is no machine of a Slurm cluster, or an option cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        partition: str | None = None,
        minutes: int = 60,
        cpus: int = 1,
        memory_gb: float | None = None,
        parallelism: int | None = None,
        account: str | None = None,
        requeues: int = 10,
        extra: Mapping[str, Any] | None = None,
        setup: Sequence[str] = (),
        poll: float = 5.0,
        patience: float = 10.0,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            msg = "executor slurm: submitit is not installed; pip install 'jaxsym[cluster]'."
            raise ValueError(msg) from error
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            msg = f"executor slurm: {', '.join(missing)} not found; start the sweep on a login node of the cluster, or choose another executor."
            raise ValueError(msg)
        options = {name.replace("-", "_"): value for name, value in (extra or {}).items()}
        _check(folder, {"minutes": minutes, "cpus": cpus, "parallelism": parallelism, "requeues": requeues}, options)
        self.poll, self.patience = poll, patience
        self.parallelism = parallelism
        self._states: dict[str, tuple[str, str]] = {}  # task -> Slurm's word, the reason
        self._cancelled: set[str] = set()
        self._asked = float("-inf")
        python = DEAF + shlex.quote(sys.executable)
        self._executor = submitit.SlurmExecutor(folder.absolute() / "%j", max_num_timeout=requeues, python=python)
        given = {"partition": partition, "account": account, "mem": memory_gb and f"{round(1024 * memory_gb)}M"}
        options = {"job_name": "jaxsym", "requeue": True} | options
        self._executor.update_parameters(
            time=minutes,
            cpus_per_task=cpus,
            setup=[*SETUP, *setup],
            additional_parameters={name: value for name, value in options.items() if value is not False},
            **{name: value for name, value in given.items() if value is not None},
        )

    def submit_all(self, fn: Callable[[str, int], Any], cells: Sequence[tuple[str, int]]) -> list[Job]:
        """Submit one array with a task for each cell; what is missing after a failure can be submitted again.

        Parameters
        ----------
        fn
            ``fn(directory, index)`` brings a cell to its end, resumes what it finds, waits while another process holds the cell, and
            leaves ``cells/NNNN/cell.json`` in the directory, or ``failed.json`` and an exception.
        cells
            The directory of the sweep and the cell's index, for each.

        Returns
        -------
        list of Job
            In the order of ``cells``.

        Raises
        ------
        ValueError
            If Slurm refuses them, with its reason.
        """
        from submitit.core.utils import FailedJobError

        if not cells:
            return []
        self._executor.update_parameters(array_parallelism=self.parallelism or len(cells))
        try:
            submitted = self._executor.map_array(_Task(fn), *zip(*cells, strict=True))
        except FailedJobError as error:
            msg = f"executor slurm: sbatch refused {len(cells)} tasks: {' '.join(str(error).split())}"
            raise ValueError(msg) from error
        self._states |= {job.job_id: ("PENDING", "") for job in submitted}
        self._asked = float("-inf")
        pairs = zip(submitted, cells, strict=True)
        return [Job(self, job.job_id, directory, index, job.paths.stderr) for job, (directory, index) in pairs]

    def cancel_all(self) -> None:
        """Cancel every task that has not ended.

        Raises
        ------
        OSError
            If Slurm cannot be told.
        """
        self._cancel(self._live())

    def _live(self) -> list[str]:
        return [task for task, (state, _) in self._states.items() if not _ended(state)]

    def _look(self, task: str) -> tuple[str, str]:
        """The state of a task and Slurm's reason, asking Slurm about all of them if it has not been asked lately."""
        live = self._live()
        if task in live and time.monotonic() - self._asked >= self.poll:
            arrays = sorted({name.split("_")[0] for name in live})
            command = [
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                "--format=%i|%T|%r",
                f"--jobs={','.join(arrays)}",
            ]
            answer = _ask(command)
            self._asked = time.monotonic()
            # Any other error is a controller that does not answer now; the tasks go on without it.
            if answer.returncode == 0 or "Invalid job id" in answer.stderr:
                known = {name: (state, reason) for name, state, reason in _rows(answer.stdout, 3)}
                gone = _recall([name for name in live if name not in known], self._cancelled)
                self._states |= {name: known.get(name) or gone[name] for name in live}
        return self._states[task]

    def _cancel(self, tasks: Sequence[str]) -> None:
        if tasks:
            answer = _ask(["scancel", *tasks])
            self._cancelled |= set(tasks)
            self._asked = float("-inf")
            ended = ("Invalid job id", "already completing or completed")
            errors = [line for line in answer.stderr.splitlines() if not any(words in line for words in ended)]
            if answer.returncode and errors:
                msg = f"executor slurm: scancel {' '.join(tasks)} failed, they may still run: {' '.join(errors)}"
                raise OSError(msg)


def _check(folder: Path, counts: Mapping[str, int | None], options: Mapping[str, Any]) -> None:
    """Refuse options that only fail later."""
    if "%" in str(folder.absolute()):
        msg = f"executor slurm: {folder} has a % in its path, which Slurm replaces in the names of its logs; choose another folder."
        raise ValueError(msg)
    for name, value in counts.items():
        least = 0 if name == "requeues" else 1
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            msg = f"executor slurm: {name} is {value!r}, expected a whole number, at least {least}."
            raise ValueError(msg)
    for name in OURS:
        if name in options:
            msg = f"executor slurm: extra has {name!r}, which is set by the executor; leave it out."
            raise ValueError(msg)


def _ended(state: str) -> bool:
    return state in ENDED or state == FORGOTTEN


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def _rows(text: str, columns: int) -> list[list[str]]:
    return [row for line in text.splitlines() if len(row := line.split("|")) == columns]


def _recall(tasks: Sequence[str], cancelled: Collection[str]) -> dict[str, tuple[str, str]]:
    """The states of tasks that the controller has dropped, from the accounting, where there is one: all of them have ended."""
    unknown = (FORGOTTEN, "cancelled before it began, or ended long ago")
    states = {task: ("CANCELLED", "") if task in cancelled else unknown for task in tasks}
    if tasks and shutil.which("sacct"):
        answer = _ask(["sacct", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(tasks)}"])
        for name, state in _rows(answer.stdout, 2):
            word = state.split()[0] if state else ""  # "CANCELLED by 1000"
            if name in states and word in ENDED:
                states[name] = (word, "")
    return states
