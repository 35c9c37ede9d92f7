"""The study of parallelism, run small in a process of its own: the same network on several devices, bytes and memory by hand, and programs that send nothing."""

import json
import operator
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import xarray as xr

from jaxsym import cli
from jaxsym.data import Rows, digits, flattened
from jaxsym.models import MLP
from jaxsym.studies import load, parallelism
from jaxsym.studies.classifying import cross_entropy, take
from jaxsym.studies.parallelism import Config, computed, environment
from jaxsym.studies.parallelism_summary import MEMORY, claims, local_parameters, total_memory
from jaxsym.studies.parallelism_traffic import shape_bytes, traffic
from jaxsym.studies.parallelism_worker import apart, layouts, measure, trained
from jaxsym.studies.study import network_keys, silent

HIDDEN, BATCH, STEPS, NETWORKS = 32, 16, 3, 2
PARAMETERS = 64 * HIDDEN + HIDDEN + HIDDEN * 10 + 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a small run."""
    out = tmp_path_factory.mktemp("parallelism")
    sizes = {"devices": 2, "hidden": HIDDEN, "batch": BATCH, "steps": STEPS, "networks": NETWORKS}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    cli.main(["run", "parallelism", "--out", str(out), "--quick", *options])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("parallelism").summary(results)
    errors = results.error.values[:, list(results.precision.values).index("float64")]
    for way, key in (("data-parallel", "data_parallel"), ("model-parallel", "model_parallel"), ("both", "both")):
        rows = results.way.values == way
        if key != "both":
            assert summary[f"{key}_error"] == errors[rows].max()
        assert rows.any()
    row = int(np.flatnonzero((results.way.values == "model-parallel") & (results.devices.values == 2))[0])
    single = results.memory.values[:, list(results.precision.values).index("float32")].sum(axis=-1)
    assert summary["memory_ratio"] == single[row] / single[0]
    assert summary["claims_that_failed"] == [claim for claim, _, holds in claims(results) if holds is False]


def test_every_way_trains_the_network_of_one_device(results, summary):
    assert results.way.values.tolist() == [
        "one device",
        *["data-parallel", "model-parallel"] * 2,
        "both",
    ]
    assert results.devices.values.tolist() == [1, 2, 2, 4, 4, 4]
    exact = results.sel(precision="float64")
    assert float(exact.error.max()) < 1e-13 < 1e-3 < float(exact.moved.min())
    assert 0 < float(results.error.sel(precision="float32").max()) < 1e-5
    assert summary["by_hand_error"] < 1e-13 < 0.05 < summary["unsummed_error"]


def test_bytes_are_those_of_the_gradient_and_of_the_outputs(results, summary):
    assert int(results.num_parameters) == PARAMETERS
    half = (PARAMETERS - 10) // 2 + 10
    expected = {
        ("one device", 1): 0,
        ("data-parallel", 2): PARAMETERS,
        ("data-parallel", 4): PARAMETERS,
        ("model-parallel", 2): BATCH * 10,
        ("model-parallel", 4): BATCH * 10,
        ("both", 4): half + BATCH // 2 * 10,
    }
    for row, at in enumerate(zip(results.way.values, results.devices.values, strict=True)):
        for precision, size in (("float64", 8), ("float32", 4)):
            own = results.isel(layout=row).sel(precision=precision)
            assert int(own.bytes_per_step.sel(collective="all-reduce")) == NETWORKS * size * expected[at]
            assert int(own.bytes_per_step.sum()) == NETWORKS * size * expected[at]
    assert summary["data_parallel_bytes_per_step"] == summary["data_parallel_bytes_predicted"]


def test_only_the_cut_of_the_units_makes_parameters_fewer(results, summary):
    assert local_parameters(results).values.tolist() == [
        PARAMETERS if way in ("one device", "data-parallel") else (PARAMETERS - 10) // shared + 10
        for way, shared in zip(results.way.values, results.model_devices.values, strict=True)
    ]
    held = results.parameter_bytes.sel(precision="float32")
    np.testing.assert_array_equal(held, 4 * NETWORKS * local_parameters(results))
    assert summary["data_parallel_parameter_ratio"] == 1
    assert summary["model_parallel_parameter_ratio"] == ((PARAMETERS - 10) / 2 + 10) / PARAMETERS
    assert 0.4 < summary["memory_ratio"] < 0.6 < summary["data_parallel_memory_ratio"]


def test_the_training_is_that_of_a_loop_by_hand():
    rows = take(flattened(digits(0)).train, BATCH)
    net = MLP((8, 10), "relu")
    params = jax.vmap(lambda key: net.init(key, rows.inputs))(network_keys(0, NETWORKS))
    found = jax.jit(trained(net, STEPS))(params, rows)
    gradient = jax.jit(jax.grad(cross_entropy(net.apply)))
    for network in range(NETWORKS):
        own = jax.tree.map(operator.itemgetter(network), params)
        momentum = jax.tree.map(np.zeros_like, own)
        for _ in range(STEPS):
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient(own, rows))
            own = jax.tree.map(lambda p, m: p - 0.1 * m, own, momentum)
        np.testing.assert_allclose(
            optax.tree.norm(optax.tree.sub(jax.tree.map(operator.itemgetter(network), found), own)), 0, atol=1e-5
        )


def test_differences_are_relative_and_of_each_network():
    one = {"a": np.array([[1.0, 4.0], [1.0, 2.0]]), "b": np.array([[0.0], [8.0]])}
    other = {"a": np.array([[1.0, 3.0], [1.0, 2.0]]), "b": np.array([[0.0], [10.0]])}
    np.testing.assert_allclose(apart(other, one), [1 / 4, 2 / 8])


PROGRAM = """HloModule jit_f, entry_computation_layout={()->f32[]}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%inner (p: f32[3]) -> f32[3] {
  %p = f32[3]{0} parameter(0)
  ROOT %all-reduce.1 = f32[3]{0} all-reduce(%p), channel_id=1, to_apply=%sum
}

%body (t: (f32[3], f64[2,5])) -> (f32[3], f64[2,5]) {
  %t = (f32[3]{0}, f64[2,5]{1,0}) parameter(0)
  %a = f32[3]{0} get-tuple-element(%t), index=0
  %b = f64[2,5]{1,0} get-tuple-element(%t), index=1
  %both = (f32[3]{0}, f64[2,5]{1,0}) all-reduce(%a, %b), channel_id=2, to_apply=%sum
  %c = f32[3]{0} call(%a), to_apply=%inner
  ROOT %out = (f32[3]{0}, f64[2,5]{1,0}) tuple(%c, %b)
}

%condition (t: (f32[3], f64[2,5])) -> pred[] {
  %t.1 = (f32[3]{0}, f64[2,5]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (q: f32[4], t0: (f32[3], f64[2,5])) -> f32[16] {
  %q = f32[4]{0} parameter(0)
  %t0 = (f32[3]{0}, f64[2,5]{1,0}) parameter(1)
  %loop = (f32[3]{0}, f64[2,5]{1,0}) while(%t0), condition=%condition, body=%body
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%q), channel_id=3, dimensions={0}
  ROOT %done = f32[16]{0} all-gather-done(%start)
}
"""


def test_traffic_reads_tuples_loops_calls_and_halves():
    found = traffic(PROGRAM)
    assert found.per_step["all-reduce"] == 12 + 80 + 12
    assert found.count_per_step == 2
    assert found.once == {kind: 16 if kind == "all-gather" else 0 for kind in found.once}
    assert shape_bytes("(bf16[3,2]{1,0}, s8[5]{0}, f8e4m3fn[4]{0}, f32[])") == 12 + 5 + 4 + 4
    with pytest.raises(ValueError, match="no ENTRY"):
        traffic("HloModule nothing")


def test_memory_is_arguments_outputs_of_their_own_and_temporary_values(monkeypatch):
    """Of a program of which the compiler says other numbers: outputs that take the place of arguments are not counted twice."""
    said = types.SimpleNamespace(
        argument_size_in_bytes=1000, output_size_in_bytes=300, alias_size_in_bytes=280, temp_size_in_bytes=5000
    )

    class Compiled:
        lower = compile = lambda self, *_: self
        memory_analysis = lambda self: said  # noqa: E731
        as_text = lambda self: PROGRAM  # noqa: E731
        __call__ = lambda self, params, rows: params  # noqa: E731

    shapes = ((64, 4), (4,)), ((4, 10), (10,))
    layers = [[np.zeros((NETWORKS, *shape), np.float32) for shape in pair] for pair in shapes]
    params = {
        "params": {f"Dense_{i}": dict(zip(("kernel", "bias"), pair, strict=True)) for i, pair in enumerate(layers)}
    }
    rows = Rows(np.zeros((2, 64), np.float32), np.zeros(2, np.int32))
    monkeypatch.setattr(jax, "jit", lambda *_, **__: Compiled())
    found = measure(MLP((4, 10), "relu"), layouts([])[0], params, rows, 1)
    assert found.memory == {"argument": 1000, "output": 20, "temporary": 5000}
    assert list(found.memory) == list(MEMORY)
    assert found.parameter_bytes == 4 * NETWORKS * (64 * 4 + 4 + 4 * 10 + 10)


def test_all_parts_of_the_memory_are_added():
    data = xr.Dataset({"memory": (("layout", "part"), [[1, 20, 300], [4, 50, 600]])}, {"part": list(MEMORY)})
    assert total_memory(data).values.tolist() == [321, 654]


def test_layouts():
    assert [tuple(layout) for layout in layouts([2, 3, 4])] == [
        ("one device", 1, 1),
        ("data-parallel", 2, 1),
        ("model-parallel", 1, 2),
        ("data-parallel", 3, 1),
        ("model-parallel", 1, 3),
        ("data-parallel", 4, 1),
        ("model-parallel", 1, 4),
        ("both", 2, 2),
    ]


def test_the_page_says_the_figures(folder, summary):
    page = (folder / "report.html").read_text()
    assert f"one to {4} of them" in page
    assert f"{summary['memory_ratio']:.3f} and {summary['data_parallel_memory_ratio']:.3f} of one device" in page
    assert f"wrong by {summary['unsummed_error']:.2g} of the largest" in page
    assert page.count("<img ") == 3 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('there are 1 devices, expected 4.')")
    monkeypatch.setattr(parallelism, "WORKER", "broken")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        ChildProcessError, match=r"(?s)4 devices failed \(exit code 1\): .*there are 1 devices, expected 4"
    ):
        computed(Config(devices=2), silent)


def test_too_few_devices_are_an_error(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"counts": [2, 4]}')
    own = environment(4) | {"JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", parallelism.WORKER, str(config), str(tmp_path / "out.npz")]
    result = subprocess.run(command, env=own, capture_output=True, text=True)
    assert result.returncode == 1
    assert "there are 1 devices, expected 4" in result.stderr


def test_environment_asks_for_as_many_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_backend_optimization_level=0")
    own = environment(6)
    assert own["JAX_NUM_CPU_DEVICES"] == "6"
    assert own["XLA_FLAGS"] == "--xla_backend_optimization_level=0"
    assert (Path(own["PYTHONPATH"].split(os.pathsep)[0]) / "jaxsym" / "studies").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 1}, "devices: got 1, expected at least 2"),
        ({"hidden": 100}, "hidden: got 100, expected a multiple of 8"),
        ({"batch": 30}, "batch: got 30, expected a multiple of 8"),
        ({"batch": 1600}, "batch: got 1600, expected at most 1438"),
        ({"networks": 1}, "networks: got 1"),
        ({"steps": 1}, "steps: got 1, expected at least 2"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.long
def test_quick(tmp_path):
    cli.main(["run", "parallelism", "--out", str(tmp_path), "--quick"])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["claims_that_failed"] == []
    assert found["model_parallel_parameter_ratio"] == pytest.approx(1 / 4, rel=0.01)
