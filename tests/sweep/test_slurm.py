"""The Slurm executor: on a real Slurm (marked), and against stand-ins of its commands for what a real one rarely does."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxsym.sweep import engine
from jaxsym.sweep import slurm as module
from jaxsym.sweep.slurm import Slurm
from tests.sweep import counting, running, slurmd
from tests.sweep.slurmd import until

WAIT = 180  # seconds that a test waits for what takes a few, on a machine with much else to do


@pytest.fixture
def slurm(cluster, tmp_path):
    """An executor on the real Slurm; what a test leaves there is cancelled."""
    executor = Slurm(tmp_path / "slurm", partition="main", minutes=30, poll=0.2, patience=1)
    yield executor
    executor.cancel_all()
    until(lambda: not slurmd.said("squeue", "--noheader"), "the last tasks to end")


def cells(folder, number):
    return [(str(folder), index) for index in range(number)]


def inline(tmp_path, number):
    """What the cells give without Slurm."""
    folder = tmp_path / "inline"
    folder.mkdir()
    (folder / "go").touch()
    return [counting.run(str(folder), index) for index in range(number)]


def held(folder, *indices):
    """Wait until the cells stand in the middle."""
    until(lambda: all(counting.segments(folder, index) == counting.HOLD for index in indices), "the cells to hold")


@pytest.mark.slurm
def test_cells_run_as_one_array(slurm, tmp_path):
    jobs = slurm.submit_all(counting.run, cells(tmp_path, 5))
    held(tmp_path, 0, 1)
    assert [job.state for job in jobs[:2]] == ["RUNNING", "RUNNING"]
    assert not any(job.done() for job in jobs)
    with pytest.raises(TimeoutError, match=r"Slurm task \d+_4: PENDING.* after 0\.1 s"):
        jobs[4].result(0.1)
    (tmp_path / "go").touch()
    assert [job.result(WAIT) for job in jobs] == inline(tmp_path, 5)
    assert {job.identity for job in jobs} == {f"{jobs[0].identity.split('_')[0]}_{index}" for index in range(5)}
    assert [job.state for job in jobs] == ["COMPLETED"] * 5
    assert all(len(counting.starts(tmp_path, index)) == 1 for index in range(5))


@pytest.mark.slurm
def test_a_preempted_task_is_requeued_and_resumes(slurm, tmp_path):
    jobs = slurm.submit_all(counting.run, cells(tmp_path, 2))
    held(tmp_path, 0, 1)
    subprocess.run(["sbatch", "--partition=hi", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true"], check=True)
    until(lambda: all(len(counting.starts(tmp_path, index)) == 2 for index in (0, 1)), "the tasks to start again")
    (tmp_path / "go").touch()
    assert [job.result(WAIT) for job in jobs] == inline(tmp_path, 2)
    for index, job in enumerate(jobs):
        assert [start[1] for start in counting.starts(tmp_path, index)] == ["0", str(counting.HOLD)]
        assert "this job is preempted" in job.log.read_text()
        assert not (counting.folder_of(tmp_path, index) / "failed.json").exists()
        assert "Restarts=1 " in slurmd.said("scontrol", "show", "job", job.identity)


@pytest.mark.slurm
def test_a_killed_task_fails_and_is_submitted_again(slurm, tmp_path):
    jobs = slurm.submit_all(counting.run, cells(tmp_path, 2))
    held(tmp_path, 0, 1)
    os.kill(int(counting.starts(tmp_path, 1)[0][0]), signal.SIGKILL)
    failure = str(jobs[1].exception(WAIT))
    assert jobs[1].state == "FAILED"
    assert f"Slurm task {jobs[1].identity}: FAILED (" in failure
    assert f"it wrote no result. Its log: {jobs[1].log}" in failure
    assert "Killed" in jobs[1].log.read_text()
    (again,) = slurm.submit_all(counting.run, [(str(tmp_path), 1)])
    (tmp_path / "go").touch()
    assert [jobs[0].result(WAIT), again.result(WAIT)] == inline(tmp_path, 2)
    assert [start[1] for start in counting.starts(tmp_path, 1)] == ["0", str(counting.HOLD)]


@pytest.mark.slurm
def test_cancelled_tasks_say_so(slurm, tmp_path):
    jobs = slurm.submit_all(counting.run, cells(tmp_path, 4))
    held(tmp_path, 0, 1)
    jobs[3].cancel()  # waits
    jobs[0].cancel()  # runs
    assert "CANCELLED" in str(jobs[3].exception(WAIT))
    assert "CANCELLED" in str(jobs[0].exception(WAIT))
    with pytest.raises(RuntimeError, match="CANCELLED"):
        jobs[0].result()
    slurm.cancel_all()
    assert [job.exception(WAIT) is None for job in jobs] == [False] * 4
    assert {job.state for job in jobs} == {"CANCELLED"}
    slurm.cancel_all()  # nothing is left


@pytest.mark.slurm
def test_a_cell_that_raises_and_the_devices_of_a_task(cluster, tmp_path):
    executor = Slurm(tmp_path / "a folder", cpus=2, memory_gb=0.5, minutes=30, poll=0.2, patience=1, extra={"nice": 10})
    (tmp_path / "go").touch()
    (failing,) = executor.submit_all(counting.fail, [(str(tmp_path), 0)])
    (counted,) = executor.submit_all(counting.run, [(str(tmp_path), 1)])
    assert f"Slurm task {failing.identity}: FAILED" in str(failing.exception(WAIT))
    assert "ValueError: cell 0 was made to fail" in str(failing.exception())
    assert counted.exception(WAIT) is None
    assert [start[2] for start in counting.starts(tmp_path, 1)] == ["2"]
    assert "Nice=10 " in slurmd.said("scontrol", "show", "job", counted.identity)


@pytest.mark.slurm
def test_a_task_whose_time_is_up_is_requeued_as_often_as_allowed(cluster, tmp_path):
    executor = Slurm(tmp_path / "slurm", minutes=5, requeues=1, poll=0.2, patience=1)
    (job,) = executor.submit_all(counting.run, [(str(tmp_path), 0)])
    for start in (1, 2):
        until(lambda start=start: len(counting.starts(tmp_path, 0)) == start, "a start")
        held(tmp_path, 0)
        subprocess.run(["scancel", "--signal=USR2", job.identity], check=True)  # as Slurm does shortly before the limit
    assert "FAILED" in str(job.exception(WAIT))
    assert "timed-out too many times" in str(job.exception())
    assert [start[1] for start in counting.starts(tmp_path, 0)] == ["0", str(counting.HOLD)]


@pytest.mark.slurm
def test_a_sweep_with_a_killed_task_equals_the_inline_one(cluster, tmp_path):
    marker = tmp_path / "killed"
    tables = running.tables("dies", static={"width": [1, 2], "marker": [str(marker)]})
    options = {"minutes": 30, "poll": 0.2, "patience": 1}
    outcome = engine.run(tables, tmp_path / "slurm", "slurm", slurm=options)
    assert marker.exists()
    assert (outcome.done, outcome.failures) == (2, ())
    engine.run(tables, tmp_path / "inline")
    running.same_bits(running.opened(tmp_path / "slurm"), running.opened(tmp_path / "inline"))


def holders(folder):
    """The processes that say they hold a cell, and live."""
    said = [path.read_text().split() for path in folder.glob("cells/*/.lock")]
    return [int(words[1]) for words in said if len(words) > 1 and os.path.exists(f"/proc/{words[1]}")]


@pytest.mark.slurm
@pytest.mark.parametrize("kills", running.KILLS)
def test_kills_and_preemptions_at_random_moments(cluster, tmp_path, kills):
    """The command, one of its tasks, or (by a preemption) all of them are stopped; then it is left to its end."""
    of = running.net_to_be_killed()
    engine.run(of, tmp_path / "whole")
    file = running.written(tmp_path, of)
    options = ("--executor", "slurm", "--slurm-partition", "main", "--slurm-minutes", "30")
    draw = random.Random(f"slurm {kills}")
    stopped = {"command": 0, "task": 0, "preemption": 0}
    while sum(stopped.values()) < kills:
        process = running.command(file, tmp_path / "out", *options)
        until(lambda process=process: holders(tmp_path / "out") or process.poll() is not None, "a cell to begin")
        time.sleep(draw.uniform(0, 6))
        what = draw.choice([*stopped])
        if process.poll() is not None:  # all of it is done: once more, from nothing
            process.communicate()
            shutil.rmtree(tmp_path / "out")
            continue
        if what == "task":
            for pid in holders(tmp_path / "out")[:1]:
                os.kill(pid, signal.SIGKILL)
                stopped[what] += 1
        elif what == "preemption":
            subprocess.run(
                ["sbatch", "--partition=hi", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true"], check=True
            )
            time.sleep(draw.uniform(0, 3))
            stopped[what] += 1
        else:
            stopped[what] += 1
        process.kill()
        process.communicate()
    code, _, errors = running.finished(running.command(file, tmp_path / "out", *options))
    assert code == 0, errors
    running.same_bits(running.opened(tmp_path / "out"), running.opened(tmp_path / "whole"))
    assert kills < 20 or all(stopped.values())


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands: ``pretend(squeue="script")``; `sbatch` copies what it is given and numbers jobs 12."""

    def write(**scripts):
        for name, script in scripts.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "bin" / name).chmod(0o755)

    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    copy = f"cp $1 {tmp_path}/submitted; echo Submitted batch job 12"
    write(sbatch=copy, srun="false", squeue="echo '12|PENDING|Priority'", scancel="true", sacct="false")
    return write


def submitted(tmp_path, number=1, **options):
    executor = Slurm(tmp_path / "slurm", poll=0, patience=0, **options)
    return executor, executor.submit_all(counting.run, cells(tmp_path, number))


def test_options_become_lines_of_the_script(pretend, tmp_path):
    extra = {"constraint": "skylake", "gpus-per-node": 1, "requeue": False, "job_name": "mine"}
    _, jobs = submitted(
        tmp_path, 3, partition="main", account="physics", minutes=90, cpus=4, memory_gb=1.5, parallelism=2, extra=extra,
        setup=["module load python"],
    )  # fmt: skip
    lines = (tmp_path / "submitted").read_text().splitlines()
    for option in (
        "partition=main", "account=physics", "time=90", "cpus-per-task=4", "mem=1536M", "array=0-2%2", "signal=USR2@90",
        "constraint=skylake", "gpus-per-node=1", "job-name=mine",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --requeue" not in lines
    assert lines.index(module.SETUP[-1]) + 1 == lines.index("module load python")
    assert [(job.identity, job.index) for job in jobs] == [("12_0", 0), ("12_1", 1), ("12_2", 2)]


def test_one_cell_is_no_array_and_none_is_nothing(pretend, tmp_path):
    executor, (job,) = submitted(tmp_path)
    assert (job.identity, job.state, str(job)) == ("12", "PENDING", "Slurm task 12: PENDING (Priority)")
    assert "#SBATCH --requeue" in (tmp_path / "submitted").read_text().splitlines()
    assert executor.submit_all(counting.run, []) == []


def test_a_controller_that_does_not_answer_ends_nothing(pretend, tmp_path):
    _, (job,) = submitted(tmp_path)
    pretend(squeue="echo '12|RUNNING|None'")
    assert str(job) == "Slurm task 12: RUNNING"
    pretend(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert job.state == "RUNNING"
    assert not job.done()


@pytest.mark.parametrize(
    ("accounting", "state"),
    [
        ("echo 'JobID|State'; echo '12|CANCELLED by 1000'; echo '12.batch|FAILED'", "CANCELLED"),
        ("echo 'Slurm accounting storage is disabled' >&2; exit 1", "FORGOTTEN"),
        ("echo 'JobID|State'", "FORGOTTEN"),
    ],
)
def test_what_the_controller_has_dropped_is_asked_of_the_accounting(pretend, tmp_path, accounting, state):
    _, (job,) = submitted(tmp_path)
    pretend(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", sacct=accounting)
    assert job.state == state
    assert job.done()
    assert state in str(job.exception())


def test_the_folder_judges_what_slurm_has_forgotten(pretend, tmp_path):
    (tmp_path / "go").touch()
    counting.run(str(tmp_path), 0)
    _, (job,) = submitted(tmp_path)
    pretend(squeue="true")
    assert job.state == "FORGOTTEN"
    assert job.result()["index"] == 0


def test_a_file_of_another_node_may_come_late(pretend, tmp_path, monkeypatch):
    (tmp_path / "go").touch()
    _, (job,) = submitted(tmp_path)
    job._slurm.patience = 60
    pretend(squeue="echo '12|COMPLETED|None'")
    assert not job.done()
    monkeypatch.setattr(time, "sleep", lambda seconds: counting.run(str(tmp_path), 0))
    assert job.result()["index"] == 0
    job._slurm.patience = 0
    counting.folder_of(tmp_path, 0).joinpath("cell.json").write_text("{")
    with pytest.raises(RuntimeError, match="COMPLETED: it wrote no result"):
        job.result()


def test_ended_tasks_are_not_cancelled_and_a_failing_scancel_is_told(pretend, tmp_path):
    executor, (job,) = submitted(tmp_path)
    pretend(
        scancel="echo 'scancel: error: Kill job error on job id 12: Job/step already completing or completed' >&2; exit 1"
    )
    executor.cancel_all()
    pretend(scancel="echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(OSError, match=r"scancel 12 failed, they may still run: .*Unable to contact"):
        job.cancel()
    pretend(squeue="echo '12|FAILED|None'")
    assert job.done()
    executor.cancel_all()


def test_a_refusal_is_passed_on(pretend, tmp_path):
    pretend(sbatch="echo 'sbatch: error: invalid partition specified: none' >&2; exit 1")
    with pytest.raises(ValueError, match=r"sbatch refused 2 tasks: .*invalid partition specified: none"):
        submitted(tmp_path, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "minutes is 0, expected a whole number, at least 1"),
        ({"cpus": 1.5}, "cpus is 1.5, expected a whole number"),
        ({"requeues": -1}, "requeues is -1, expected a whole number, at least 0"),
        ({"parallelism": True}, "parallelism is True"),
        ({"extra": {"array": "0-9"}}, "extra has 'array', which is set by the executor"),
    ],
)
def test_options_that_cannot_be_used(pretend, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Slurm(tmp_path, **options)


def test_folders_and_machines_that_cannot_be_used(pretend, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has a % in its path"):
        Slurm(tmp_path / "50%")
    (tmp_path / "bin" / "srun").unlink()
    (tmp_path / "bin" / "scancel").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    with pytest.raises(ValueError, match=r"srun, scancel not found; start the sweep on a login node"):
        Slurm(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"submitit is not installed; pip install 'jaxsym\[cluster\]'"):
        Slurm(tmp_path)


def test_a_preemption_before_python_has_started_does_no_harm():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('alive')"
    command = f"{module.DEAF}{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    assert slurmd.said("bash", "-c", command) == "alive"
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGUSR2
