"""Files on disk: the IDX format of MNIST and Fashion-MNIST, and the bundled files with their checksums."""

import gzip
import hashlib
import math
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

# Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", section "The IDX file format".
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(path: str | Path) -> Shaped[np.ndarray, "..."]:
    """Read one IDX file, gzipped or not: images ``[N, rows, columns]``, labels ``[N]``, or any other array.

    Whether the file is gzipped is read from its first bytes, not from its name.

    Parameters
    ----------
    path
        For instance ``train-images-idx3-ubyte.gz``.

    Returns
    -------
    numpy.ndarray
        In the file's own type (uint8 for MNIST) and the machine's byte order.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no IDX file, is cut short, has bytes left over, or its name says ``idx3`` and its header does not.

    Examples
    --------
    >>> idx(resources.files("jaxsym.data") / "digits-images.idx3.gz").shape
    (1797, 8, 8)
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: no such file; expected an IDX file such as train-images-idx3-ubyte.gz."
        raise FileNotFoundError(msg)
    with path.open("rb") as file:
        return parse_idx(file, path)


def parse_idx(file: BinaryIO, path: Path) -> Shaped[np.ndarray, "..."]:
    """Read the array that an IDX stream describes; ``path`` is used in messages and to compare the name with the header.

    Never more is read, or unpacked, than the header asks for.
    """
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    try:
        return _parse(gzip.GzipFile(fileobj=file) if zipped else file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        msg = f"{path}: the gzip stream is damaged or cut short ({error}); get the file again."
        raise ValueError(msg) from error


def _parse(file: BinaryIO | gzip.GzipFile, path: Path) -> Shaped[np.ndarray, "..."]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 0 < magic[3] < 32:
        known = ", ".join(f"{code:#04x}" for code in _TYPES)
        msg = (
            f"{path}: the first bytes are {magic.hex(' ') or 'missing'}, which is not the magic number of an IDX file;"
            f" expected 00 00, a type ({known}) and the number of axes."
        )
        raise ValueError(msg)
    dtype, num_axes = np.dtype(_TYPES[magic[2]]), magic[3]
    claimed = [int(axes) for axes in re.findall(r"idx(\d+)", path.name)]
    if claimed and num_axes not in claimed:
        msg = (
            f"{path}: the name says idx{claimed[0]} ({claimed[0]} axes), the header says {num_axes};"
            " images and labels may have been swapped. Rename it or get the file again."
        )
        raise ValueError(msg)
    header = file.read(4 * num_axes)
    if len(header) < 4 * num_axes:
        msg = f"{path}: cut short inside the header, {4 + len(header)} of {4 + 4 * num_axes} bytes; get the file again."
        raise ValueError(msg)
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    expected = math.prod(shape) * dtype.itemsize
    if math.prod(max(n, 1) for n in shape) > 2**48:
        msg = f"{path}: the header says shape {shape}, which no memory holds; get the file again."
        raise ValueError(msg)
    content = file.read(expected + 1)
    if len(content) != expected:
        state = f"cut short, {len(content)} bytes" if len(content) < expected else "longer than its header says,"
        msg = f"{path}: {state} where shape {shape} needs {expected} after the header; get the file again."
        raise ValueError(msg)
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def bundled(name: str, sha256: str) -> bytes:
    """The bytes of a file that comes with the library, checked against its SHA-256.

    Raises
    ------
    ValueError
        If the file is not the one that was released.
    """
    content = resources.files("jaxsym.data").joinpath(name).read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        msg = f"jaxsym/data/{name}: its SHA-256 is {got}, expected {sha256}; install jaxsym again."
        raise ValueError(msg)
    return content
