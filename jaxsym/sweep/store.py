"""Files that are whole or not there: written beside their place, flushed, then renamed."""

import contextlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
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
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
