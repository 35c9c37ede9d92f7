"""Files are whole or not there."""

import numpy as np
import pytest
import xarray as xr

from jaxsym.sweep import store


def dataset():
    values = np.arange(6.0).reshape(2, 3)
    return xr.Dataset({"cost": (("network", "step"), values)}, coords={"step": [0, 5, 10]}, attrs={"study": "none"})


def test_round_trip(tmp_path):
    store.write_dataset(tmp_path / "new" / "results.nc", dataset())
    xr.testing.assert_identical(store.read_dataset(tmp_path / "new" / "results.nc"), dataset())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.nc"]


def _write_and_stop(path, interruption):
    path.write_text("half")
    raise interruption


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, interruption):
    path = tmp_path / "results.txt"
    store.write_text(path, "old")

    with pytest.raises(interruption), store.atomic(path) as temporary:
        _write_and_stop(temporary, interruption)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a dataset", "truncated"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "results.nc"
    store.write_dataset(path, dataset())
    path.write_bytes(path.read_bytes()[:-900] if content == "truncated" else content)
    with pytest.raises(ValueError, match=r"results.nc: cannot be read as NetCDF 4"):
        store.read_dataset(path)


def test_missing_and_unwritable(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        store.read_dataset(tmp_path / "results.nc")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        store.write_text(tmp_path / "file" / "results.txt", "text")


def test_provenance():
    facts = store.provenance()
    assert set(facts) == {"versions", "device", "git_revision"}
    assert "cpu" in facts["device"]
