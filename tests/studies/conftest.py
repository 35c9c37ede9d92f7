"""What a study wrote, for the module whose fixture ``folder`` ran it."""

import json

import pytest
import xarray as xr


@pytest.fixture(scope="module")
def results(folder):
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as dataset:
        return dataset.load()


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())
