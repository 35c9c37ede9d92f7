"""Files that are whole or not there: written beside their place, flushed, then renamed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import xarray as xr


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it takes the name ``path`` when the block ends well, else it is removed.

    Raises
    ------
    ValueError
        If the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); choose another folder."
        raise ValueError(msg) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        msg = f"{path}: the disk is full ({error.strerror}); what was written before is whole. Free some space and run again."
        raise ValueError(msg) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last: the folder's own entry is written out."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def expect_folder(path: Path) -> None:
    """Make a folder, or see that one that is there can be written to, before any work is done.

    Raises
    ------
    ValueError
        If it is a file, or cannot be written to.
    """
    if path.exists() and not path.is_dir():
        msg = f"{path} is a file, expected a folder; choose another --out."
        raise ValueError(msg)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        msg = f"{path}: cannot be written to ({error.strerror or error}); choose another --out."
        raise ValueError(msg) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file says, None where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Write a file's checksum beside it, in the form of ``sha256sum``; until then the file does not count."""
    write_text(_seal(path), f"{digest(path)}  {path.name}\n")


def sealed(path: Path) -> bool:
    """Whether a file is there and is what was sealed."""
    try:
        return _seal(path).read_text("utf-8").split()[:1] == [digest(path)]
    except (OSError, UnicodeDecodeError):
        return False


def unseal(path: Path) -> None:
    """Remove a file and its checksum."""
    _seal(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


@contextlib.contextmanager
def locked(path: Path, held: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends.

    Parameters
    ----------
    path
        The lock file; it says who holds it.
    held
        Called with what the file says when somebody else holds the lock; if it returns, the lock is waited for.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        msg = f"{path.parent}: cannot be written to ({error.strerror or error}); choose another --out."
        raise ValueError(msg) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            if held is not None:
                held(file.read().strip() or "an unknown process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], marks: Mapping[str, str]) -> None:
    """Write named arrays as safetensors, with texts in the header."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, dict(marks))
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Named arrays and the texts of the header, from a safetensors file."""
    with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def write_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset as NetCDF 4, its arrays compressed without loss."""
    encoding = {name: {"zlib": True, "complevel": 4} for name, array in dataset.data_vars.items() if array.ndim}
    content = dataset.to_netcdf(engine="h5netcdf", encoding=encoding)  # in memory: HDF5 does not survive a full disk
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def read_dataset(path: Path) -> xr.Dataset:
    """Read a dataset into memory.

    Raises
    ------
    ValueError
        If there is no such file or it is not NetCDF 4.
    """
    if not path.is_file():
        msg = (
            f"{path}: no such file; expected the results of a run. `jaxsym run STUDY --out {path.parent}` writes them."
        )
        raise ValueError(msg)
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            return dataset.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        msg = f"{path}: cannot be read as NetCDF 4 ({error}); it is damaged or was not written by jaxsym. Run it again."
        raise ValueError(msg) from error


def provenance() -> dict[str, str]:
    """What a record needs to be understood later: versions, device and git revision, as dataset attributes."""
    packages = ("jaxsym", "jax", "jaxlib", "flax", "optax", "numpy", "xarray")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in packages}
    devices = jax.devices()
    return {
        "versions": json.dumps(versions),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {platform.machine()}",
        "git_revision": _git_revision(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str:
    """The commit that this package's sources are at, with a mark when they differ from it."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # the package may lie in somebody else's repository
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not from a git checkout"
