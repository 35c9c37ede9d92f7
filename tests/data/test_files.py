"""IDX files: every type and number of axes, gzipped or not; every kind of damage is named."""

import gzip
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsym.data import idx, idx_folder
from jaxsym.data.files import parse_idx

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def encode(array, code=0x08):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(TYPES[code]).tobytes()


@given(
    code=st.sampled_from(sorted(TYPES)),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    zipped=st.booleans(),
)
def test_round_trip(tmp_path_factory, code, shape, zipped):
    array = np.arange(np.prod(shape)).reshape(shape).astype(TYPES[code])
    path = tmp_path_factory.mktemp("idx") / "array"
    content = encode(array, code)
    path.write_bytes(gzip.compress(content) if zipped else content)
    got = idx(path)
    np.testing.assert_array_equal(got, array)
    assert got.dtype.isnative
    assert got.flags.writeable


GOOD = encode(np.arange(12).reshape(3, 2, 2))
ZIPPED = gzip.compress(GOOD, mtime=0)
DAMAGED = [
    ("images-idx3-ubyte", GOOD[:-1], "cut short, 11 bytes where shape (3, 2, 2) needs 12"),
    ("images-idx3-ubyte", GOOD[:9], "cut short inside the header"),
    ("images-idx3-ubyte", GOOD + b"x", "longer than its header says"),
    ("images-idx3-ubyte", b"", "first bytes are missing"),
    ("images-idx3-ubyte", b"\x89PNG....", "not the magic number"),
    ("images-idx3-ubyte", b"\0\0\x07\x03" + GOOD[4:], "not the magic number"),
    ("images-idx3-ubyte", GOOD[:3] + bytes([200]) + GOOD[4:], "not the magic number"),
    ("images", encode(np.zeros((0, 1)))[:4] + struct.pack(">2I", 2**32 - 1, 2**32 - 1), "which no memory holds"),
    ("labels-idx1-ubyte", GOOD, "the name says idx1 (1 axes), the header says 3"),
    ("images-idx3-ubyte.gz", ZIPPED[:-9], "damaged or cut short"),
    ("images-idx3-ubyte.gz", ZIPPED[:-8] + b"01234567", "damaged or cut short"),
    ("images-idx3-ubyte.gz", gzip.compress(GOOD[:-1], mtime=0), "cut short, 11 bytes"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_damage(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        idx(tmp_path / name)
    assert message in str(error.value)
    assert name in str(error.value)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        idx(tmp_path / "train-images-idx3-ubyte")


def test_an_unzipped_file_called_gz_is_read(tmp_path):
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(GOOD)
    np.testing.assert_array_equal(idx(tmp_path / "images-idx3-ubyte.gz"), parse_idx(io.BytesIO(GOOD), tmp_path / "x"))


@pytest.fixture
def mnist_like(tmp_path):
    """The four files of a tiny data set, half of them gzipped."""
    for part, num in (("train", 6), ("t10k", 3)):
        images = (np.arange(num * 20) % 256).astype(np.uint8).reshape(num, 4, 5)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(encode(images))
        labels = gzip.compress(encode((np.arange(num) % 3).astype(np.uint8)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)
    return tmp_path


def test_a_folder_of_idx_files(mnist_like):
    split = idx_folder(mnist_like)
    assert split.train.inputs.shape == (6, 4, 5)
    assert split.test.targets.tolist() == [0, 1, 2]
    assert split.classes == ("0", "1", "2")
    np.testing.assert_allclose(split.train.inputs.ravel(), np.arange(120) / 255, rtol=1e-6)


def test_bad_folders_of_idx_files(mnist_like):
    (mnist_like / "t10k-labels-idx1-ubyte.gz").write_bytes(encode(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-images has shape \(3, 4, 5\) .* t10k-labels \(4,\)"):
        idx_folder(mnist_like)
    (mnist_like / "t10k-images-idx3-ubyte").write_bytes(encode(np.zeros((4, 4, 4), np.uint8)))
    with pytest.raises(ValueError, match=r"training images have shape \(4, 5\), those of t10k \(4, 4\)"):
        idx_folder(mnist_like)
    (mnist_like / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        idx_folder(mnist_like)
