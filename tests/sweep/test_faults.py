"""What a sweep survives: kills at any moment, full disks, a second run, Ctrl-C; what is lost is always nothing."""

import random
import shutil
import signal
import subprocess
import time

import pytest

from jaxsym.sweep import engine, records
from tests.sweep.running import KILLS, command, finished, net_to_be_killed, opened, same_bits, tables, written


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_kill_9_at_random_moments(tmp_path, executor, kills):
    """Each run is killed at a moment drawn from the time that an undisturbed one takes; then one is left to its end."""
    of = net_to_be_killed()
    file = written(tmp_path, of)
    began = time.monotonic()
    code, _, errors = finished(command(file, tmp_path / "whole", "--executor", executor))
    assert code == 0, errors
    lasted = time.monotonic() - began
    draw = random.Random(f"{executor} {kills}")
    killed = 0
    for _ in range(10 * kills):
        began = time.monotonic()
        process = command(file, tmp_path / "out", "--executor", executor)
        try:
            process.wait(draw.uniform(0.1, 0.9) * lasted)
            lasted = time.monotonic() - began  # it came to its end: what was measured has become too long
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate()
        if killed == kills:
            break
        if process.returncode == 0 or draw.random() < 0.3:  # what a run has may be lost as well
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert killed == kills
    code, _, errors = finished(command(file, tmp_path / "out", "--executor", executor))
    assert code == 0, errors
    same_bits(opened(tmp_path / "out"), opened(tmp_path / "whole"))
    assert not list((tmp_path / "out").glob("cells/*/segments"))


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    of = tables("dies", static={"width": [1, 2, 3], "marker": [str(tmp_path / "marker")]})
    outcome = engine.run(of, tmp_path / "out", "processes", workers=2)
    assert (tmp_path / "marker").read_text() == "killed"
    assert (outcome.done, outcome.failures) == (3, ())


@pytest.mark.long
def test_processes_and_devices_give_the_same_bits(tmp_path):
    """A chunk is the same program on one device, two or three, in this process or another."""
    of = tables("net", static={"steps": [60], "width": [2, 3]}, traced={"learning_rate": [0.1, 0.01]}, chunk=2, seeds=5)
    engine.run(of, tmp_path / "here")
    file = written(tmp_path, of)
    running = {
        "processes": command(file, tmp_path / "processes", "--executor", "processes", "--workers", "2"),
        "devices": command(file, tmp_path / "devices", devices=3),
    }
    for name, process in running.items():
        code, _, errors = finished(process)
        assert code == 0, errors
        same_bits(opened(tmp_path / name), opened(tmp_path / "here"))


def test_the_command_line_tells_of_cells_and_failures(tmp_path):
    of = tables("fails", static={"width": [1, 2]})
    code, out, errors = finished(command(written(tmp_path, of), tmp_path / "out"))
    assert code == 1
    assert "[1/2] cell 0: width 1: 3 networks in" in out
    assert "[2/2] cell 1: width 2: FAILED" in out
    assert "1 of 2 cells, 3 networks" in out
    assert "jaxsym: cell 1 (width 2) failed: " in errors
    assert "no network of width 2 today" in errors
    assert str(tmp_path / "out" / "cells" / "0001" / "log.txt") in errors
    assert (tmp_path / "out" / "report.html").is_file()


def test_ctrl_c_keeps_what_was_done_and_a_second_run_is_refused(tmp_path):
    of = tables("net", static={"steps": [10**9], "record_every": [10**7]}, seeds=2)  # it would take hours
    file = written(tmp_path, of)
    process = command(file, tmp_path / "out")
    log = tmp_path / "out" / "cells" / "0000" / "progress.json"
    while not log.exists():  # until it trains
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    code, _, errors = finished(command(file, tmp_path / "out"))
    assert code == 2
    assert f"is in use: process {process.pid} on" in errors
    process.send_signal(signal.SIGINT)
    code, _, errors = finished(process)
    assert code == 130
    assert "interrupted" in errors
    assert (tmp_path / "out" / "cells" / "0000" / "segments" / "checkpoint.json").is_file()
    with pytest.raises(ValueError, match="no cell is finished yet"):
        records.open_sweep(tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_said_and_earlier_cells_stand(tmp_path, small_disk):
    of = tables("shaped", static={"width": [2, 200_000, 3]})
    outcome = engine.run(of, small_disk / "out")
    (failure,) = outcome.failures
    assert failure.label == "width 200000"
    assert "the disk is full (No space left on device)" in failure.error
    assert outcome.done == 2
    assert records.open_sweep(small_disk / "out")["finite"].sel(width=[2, 3]).all()
    engine.run(of, tmp_path / "room")
    shutil.copytree(small_disk / "out", tmp_path / "moved")
    states = []
    engine.run(of, tmp_path / "moved", show=lambda shown: states.append((shown.number, shown.state)))
    assert {(0, "found"), (1, "done"), (2, "found")} <= set(states)
    same_bits(opened(tmp_path / "moved"), opened(tmp_path / "room"))


def test_a_folder_that_cannot_be_written_to(tmp_path):
    place = tmp_path / "locked"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=True
    )  # root may write to any folder but this
    try:
        with pytest.raises(ValueError, match=r"locked/out: cannot be written to \(Read-only file system\)"):
            engine.run(tables("shaped"), place / "out")
    finally:
        subprocess.run(["umount", "-l", place], check=True)
