"""A real Slurm of one node in a temporary folder: no systemd, no munge, no accounting. Needs root and Debian's packages."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=hi Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
SACCT = """#!/bin/sh
# There is no accounting store; what the controller still knows, in the form of `sacct --parsable2 -o JobID,State,NodeList`.
while [ $# -gt 0 ]; do if [ "$1" = -j ]; then jobs=$jobs,$2; shift; fi; shift; done
echo 'JobID|State|NodeList'
squeue --noheader --array --states=all --jobs="${jobs#,}" --format='%i|%T|%N'
"""


def until(condition, what: str, seconds: float = 180.0):
    """What ``condition()`` returns once it is true; fails by name when it takes too long."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
    return value


def said(*command: str) -> str:
    """What a command printed."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Start a Slurm that this process and its children see by their environment; all of it is gone afterwards.

    Partition ``main`` may be preempted by jobs in ``hi``. The ports are fixed, so a second one waits for the first.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"{' '.join(missing)}: not installed; `scripts/test --slurm` does it"
    assert os.geteuid() == 0, "slurmd starts as root only"
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((Path(tempfile.gettempdir()) / "jaxsym-slurm.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        for name in ("ctld", "spool", "log", "run", "bin"):
            (folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder))
        (folder / "bin" / "sacct").write_text(SACCT)
        (folder / "bin" / "sacct").chmod(0o755)
        before = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF")}
        os.environ |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_CONF": f"{folder}/slurm.conf"}
        stack.callback(_restore, before)
        for name in ("slurmctld", "slurmd"):
            stack.enter_context(_daemon(name, folder))
        stack.callback(_empty)
        until(lambda: said("sinfo", "--noheader", "--format=%T", "--partition=main") == "idle", "an idle node")
        yield folder


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _daemon(name: str, folder: Path) -> Iterator[None]:
    """One of Slurm's servers, in the foreground of a process that ends with this one."""
    with (folder / "log" / f"{name}.out").open("w") as output:
        process = subprocess.Popen(["setpriv", "--pdeathsig=TERM", name, "-D"], stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _empty() -> None:
    """End every job, so that no task outlives its server."""
    subprocess.run(["scancel", "--user=root"], check=True)
    until(lambda: not said("squeue", "--noheader"), "the last jobs to end")
