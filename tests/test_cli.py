"""The command line: what it finds, what it refuses, and that an interrupt leaves nothing half done."""

import os
import signal
import subprocess
import sys
import time

import pytest
import xarray as xr

from jaxsym import cli
from jaxsym.sweep import store


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_list(capsys):
    cli.main(["list"])
    assert "titanic" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["run", "titanic", "--help"], ["report", "--help"]]
)
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_options_of_a_study_are_explained(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "titanic", "--quick", "--help"])
    text = capsys.readouterr().out
    assert "Networks for each initializer" in text
    assert "default: 16" in text


def test_nearest_names(capsys, tmp_path):
    assert "did you mean run" in fails(capsys, "rum")
    assert "did you mean titanic" in fails(capsys, "run", "titanik", "--out", tmp_path)
    assert "--networks" in fails(capsys, "run", "titanic", "--out", tmp_path, "--netwroks", 3)
    assert "networks: got 0" in fails(capsys, "run", "titanic", "--out", tmp_path, "--networks", 0)
    assert "--out" in fails(capsys, "run", "titanic")


def test_folders_that_are_refused(capsys, tmp_path):
    other = xr.Dataset({"x": 1.0}, attrs={"study": "another"})
    store.write_dataset(tmp_path / "results.nc", other)
    message = fails(capsys, "run", "titanic", "--out", tmp_path)
    assert "holds the results of another" in message
    assert "--overwrite" in message
    xr.testing.assert_identical(store.read_dataset(tmp_path / "results.nc"), other)
    assert "unknown study 'another'" in fails(capsys, "report", tmp_path)
    assert "no such file" in fails(capsys, "report", tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capsys, "run", "titanic", "--out", tmp_path / "file")
    (tmp_path / "results.nc").write_bytes(b"garbage")
    assert "cannot be read" in fails(capsys, "run", "titanic", "--out", tmp_path)


def test_a_dataset_without_a_study(capsys, tmp_path):
    store.write_dataset(tmp_path / "results.nc", xr.Dataset({"x": 1.0}))
    assert "the attribute 'study' is missing" in fails(capsys, "report", tmp_path)


def test_an_interrupt_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "jaxsym", "run", "titanic", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    while "networks" not in process.stdout.readline():  # until it trains
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert list((tmp_path / "out").glob("**/*")) == []
