"""Running and comparing sweeps in tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsym.sweep import records

NETS = Path(__file__).with_name("nets.py")
KILLS = [2, pytest.param(20, marks=pytest.mark.long)]


def net_to_be_killed():
    """A sweep that takes some seconds and saves all the time."""
    return tables(
        "net",
        static={"steps": [3000], "width": [2, 3]},
        traced={"learning_rate": [0.1, 0.01]},
        chunk=4,
        save_every=0.05,
    )


def tables(factory="net", *, static=None, traced=None, **head):
    """A sweep over a factory of ``nets.py``, as a dict."""
    return {
        "sweep": {"target": f"{NETS}:{factory}", "seeds": 3} | head,
        "static": static or {},
        "traced": traced or {},
    }


def toml(of):
    """The same as a file has it."""
    lines = []
    for name, table in of.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


def written(tmp_path, of):
    """The path of a file with this sweep."""
    path = tmp_path / "sweep.toml"
    path.write_text(toml(of))
    return path


def finished(process):
    """The exit code and what was printed, once a command has ended."""
    out, errors = process.communicate(timeout=570)
    return process.returncode, out, errors


def same_bits(one, other):
    """Whether two datasets have the same coordinates and the same bits in all variables."""
    one, other = one.load(), other.load()
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        a, b = one[name].values, other[name].values
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(
            a.view(np.uint8) if a.dtype.kind == "f" else a, b.view(np.uint8) if b.dtype.kind == "f" else b
        )


def opened(directory):
    """Everything in a sweep's folder, in memory."""
    with records.open_sweep(directory) as dataset:
        return dataset.load()


def command(file, out, *options, devices=2):
    """The command line in a process of its own."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-m", "jaxsym", "sweep", str(file), "--out", str(out), *options]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
