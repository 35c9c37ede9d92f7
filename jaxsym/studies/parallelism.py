"""One network on several devices: whether data-parallel and model-parallel training are that of one device, what is sent, and what a device holds.

The exercise is that of Zhang, Lipton, Li, Smola, *Dive into Deep Learning*, chapter "Multilayer perceptrons". The cut of a hidden
layer by columns and of the next by rows is that of Shoeybi et al. 2019 (arXiv:1909.08053); devices and shardings are those of
``jax.sharding``. The work runs in a process of its own, :mod:`jaxsym.studies.parallelism_worker`.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from jaxsym.studies.parallelism_page import page
from jaxsym.studies.parallelism_summary import MEMORY, summary
from jaxsym.studies.parallelism_traffic import KINDS
from jaxsym.studies.parallelism_worker import DTYPES
from jaxsym.studies.study import Clock, Progress, Study, expect

ROWS = 1438  # of the digits, for training
WORKER = "jaxsym.studies.parallelism_worker"


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    devices: int = 4
    """Of the headline figures; two, and twice as many, are measured too."""
    hidden: int = 2048
    """Hidden units."""
    batch: int = 256
    """Rows that every step sees."""
    steps: int = 20
    """Of SGD with momentum."""
    networks: int = 8
    """Trained together in each program."""
    seed: int = 0
    """Of networks and of the division of the data."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be shared out evenly."""
        expect(self, devices=2, hidden=1, batch=1, steps=2, networks=2)
        for name in ("hidden", "batch"):
            if getattr(self, name) % (2 * self.devices):
                msg = (
                    f"{name}: got {getattr(self, name)}, expected a multiple of {2 * self.devices}, twice the devices."
                )
                raise ValueError(msg)
        if self.batch > ROWS:
            msg = f"batch: got {self.batch}, expected at most {ROWS}, the training rows."
            raise ValueError(msg)

    @property
    def counts(self) -> list[int]:
        """The numbers of devices."""
        return sorted({2, self.devices, 2 * self.devices})


def run(config: Config, progress: Progress) -> xr.Dataset:
    """Train in another process, on one device and on several."""
    found = computed(config, progress)
    clock = Clock(progress, 0)
    clock.networks = config.networks * found["error"].shape[0] * len(DTYPES)
    clock.net_steps = clock.networks * config.steps
    clock.compile_seconds = float(found["compile_seconds"].sum())
    clock.run_seconds = float(found["seconds"].sum())
    return _dataset(config, found).assign(clock.variables())


def environment(most: int) -> dict[str, str]:
    """For the other process: real devices where there are enough, and otherwise so many of the CPU."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    own = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}
    if jax.default_backend() != "cpu" and jax.local_device_count() >= most:
        return own | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    flags = own.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if not flag.startswith("--xla_force_host_platform_device_count")]
    return own | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(most), "XLA_FLAGS": " ".join(kept)}


def computed(config: Config, progress: Progress) -> dict[str, np.ndarray]:
    """What the other process computes.

    Raises
    ------
    ChildProcessError
        If it fails, with the end of what it wrote to stderr.
    """
    progress("starting a process with its own devices", 0, 1)
    with tempfile.TemporaryDirectory() as name:
        source, target, errors = (Path(name) / file for file in ("config.json", "results.npz", "errors.txt"))
        source.write_text(json.dumps(dataclasses.asdict(config) | {"counts": config.counts}), "utf-8")
        command = [sys.executable, "-m", WORKER, str(source), str(target)]
        with (
            errors.open("wb") as told,
            subprocess.Popen(
                command, env=environment(max(config.counts)), stdout=subprocess.PIPE, stderr=told, text=True
            ) as process,
        ):
            try:
                for line in process.stdout or ():
                    if line.count("\t") == 2:
                        label, done, total = line.split("\t")
                        progress(label, int(done), int(total))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            end = errors.read_text("utf-8", "replace").strip()[-2000:]
            msg = f"the process with {max(config.counts)} devices failed (exit code {process.returncode}): {end}"
            raise ChildProcessError(msg)
        with np.load(target) as found:
            return dict(found)


def _dataset(config: Config, found: dict[str, np.ndarray]) -> xr.Dataset:
    at, kinds = ("layout", "precision"), ("layout", "precision", "collective")
    texts = {
        "error": ((*at, "network"), "largest difference of the parameters from one device's, of the largest parameter"),
        "moved": ((*at, "network"), "largest change of the parameters by training, of the largest parameter"),
        "bytes_per_step": (kinds, "bytes of the operands of collectives in the loop, on one device"),
        "bytes_once": (kinds, "bytes of the operands of collectives outside of the loop, on one device"),
        "collectives_per_step": (at, "collectives in the loop"),
        "memory": ((*at, "part"), "bytes of the program on one device"),
        "parameter_bytes": (at, "bytes of all networks' parameters on one device"),
        "seconds": (at, "seconds of all steps on this machine"),
        "batch_devices": (("layout",), "devices that share the rows of a batch"),
        "model_devices": (("layout",), "devices that share the hidden units"),
        "devices": (("layout",), "devices"),
        "num_parameters": ((), "parameters of a network"),
        "by_hand_error": ((), "outputs by an explicit all-reduce: largest difference from one device's, relative"),
        "unsummed_error": ((), "the same without the all-reduce"),
        "platform": ((), "what the devices are"),
        "device_kind": ((), "their kind"),
        "device_count": ((), "how many the process had"),
    }
    variables = {name: (dims, found[name], {"long_name": text}) for name, (dims, text) in texts.items()}
    facts = {
        "chosen_devices": config.devices,
        "hidden": config.hidden,
        "batch": config.batch,
        "steps": config.steps,
        "ensemble": config.networks,
        "outputs": 10,
        "cores": len(os.sched_getaffinity(0)),
    }
    coords = {
        "precision": list(DTYPES),
        "collective": list(KINDS),
        "part": list(MEMORY),
        "way": ("layout", found["way"]),
    }
    return xr.Dataset(
        variables | {name: ((), value, {"long_name": name.replace("_", " ")}) for name, value in facts.items()}, coords
    )


STUDY = Study(
    title="one network on several devices: rows or units shared out, what is sent, what each holds",
    config=Config(),
    quick=Config(hidden=512, batch=128, steps=10, networks=4),
    run=run,
    summary=summary,
    page=lambda data: page(data, summary(data)),
)
