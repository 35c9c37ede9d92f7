"""A real Slurm for the tests that are marked so."""

import pytest

from tests.sweep import slurmd


@pytest.fixture(scope="module")
def cluster():
    """The folder of a running Slurm of one node with two cores; ``scripts/test --slurm`` installs what it needs."""
    with slurmd.cluster() as folder:
        yield folder
