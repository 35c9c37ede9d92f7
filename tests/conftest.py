"""Every test: deterministic hypothesis, and the platform that everybody has."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers have the cores already; read when SciPy is loaded
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and the commands under test, inherit it
    COMPILED = tempfile.TemporaryDirectory(prefix="jaxsym-compiled-")  # not the user's, and nothing of another run
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

hypothesis.settings.register_profile("jaxsym", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("jaxsym")


@pytest.fixture
def python():
    """Run Python in a process of its own, because JAX fixes its devices when it starts; returns what it printed."""

    def run(code, *arguments, devices=1, check=True):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code, *map(str, arguments)] if code else [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if check:
            assert result.returncode == 0, result.stderr
            return result.stdout
        return result

    return run


@pytest.fixture(scope="session")
def root():
    """The folder of the repository."""
    return Path(__file__).resolve().parent.parent


STUDIES = (
    "conservation",
    "conservation_laws",
    "equivalent_minima",
    "equivariant_layers",
    "flat_minima",
    "hidden_symmetries",
    "hyperparameters",
    "identities",
    "implicit_bias",
    "invariant_optimizers",
    "propagation",
    "second_order",
    "teleportation",
)  # whose run is long, though small


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What looks at a long run is long; and the files that wait longest go first, so that no worker is left with one at the end."""
    for item in items:
        if item.path.stem.removeprefix("test_") in STUDIES and "folder" in item.fixturenames:
            item.add_marker(pytest.mark.long)
    first = ("sweep", "parallel", "studies")
    items.sort(key=lambda item: next((i for i, room in enumerate(first) if room in item.path.parts[-2:]), len(first)))
