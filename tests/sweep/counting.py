"""A stand-in for a cell: a chain of numbers in a folder, one file a segment, that holds where a test wants it to."""

import fcntl
import hashlib
import os
import time
from pathlib import Path

from jaxsym.sweep import store

SEGMENTS = 6
HOLD = 3  # segments that it does before it waits for the file `go` in the folder of the sweep


def folder_of(directory, index):
    return Path(directory) / "cells" / f"{index:04d}"


def run(directory, index):
    """Bring one cell to its end, from where it stands. Its starts are written down as `pid segments devices`; an exception is a failure."""
    folder = folder_of(directory, index)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _run(Path(directory), folder, index)
        except BaseException as error:
            store.write_json(folder / "failed.json", {"error": str(error)})
            raise ValueError(str(error)) from error


def _run(directory, folder, index):
    chain = folder / "chain.json"
    links = store.read_json(chain) or [str(index)]
    with (folder / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()} {len(links) - 1} {os.environ.get('JAX_NUM_CPU_DEVICES')}\n")
    while len(links) <= SEGMENTS:
        while len(links) > HOLD and not (directory / "go").exists():
            time.sleep(0.02)
        links.append(hashlib.sha256(links[-1].encode()).hexdigest())
        store.write_json(chain, links)
    record = {"index": index, "last": links[-1]}
    store.write_json(folder / "cell.json", record)
    return record


def fail(directory, index):
    """A cell that raises, as a cell does: it says so in its folder first."""
    folder = folder_of(directory, index)
    folder.mkdir(parents=True, exist_ok=True)
    store.write_json(folder / "failed.json", {"error": f"ValueError: cell {index} was made to fail"})
    raise ValueError


def starts(directory, index):
    """The starts of a cell so far: (pid, segments found, devices)."""
    path = folder_of(directory, index) / "starts.txt"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def segments(directory, index):
    """How many segments of a cell are done."""
    return len(store.read_json(folder_of(directory, index) / "chain.json") or "0") - 1
