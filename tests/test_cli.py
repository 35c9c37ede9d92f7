"""The command line: what it finds, what it refuses, and that an interrupt leaves nothing half done."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import xarray as xr

from jaxsym import cli, studies
from jaxsym.studies.study import Study
from jaxsym.sweep import store
from jaxsym.symmetry import inspecting


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_list(capsys):
    cli.main(["list"])
    assert "titanic" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "titanic", "--help"],
        ["sweep", "--help"],
        ["report", "--help"],
        ["inspect", "--help"],
    ],
)
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_options_of_a_study_are_explained(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "titanic", "--quick", "--help"])
    text = capsys.readouterr().out
    assert "Networks for each initializer" in text
    assert "default: 16" in text


def test_nearest_names(capsys, tmp_path):
    assert "did you mean run" in fails(capsys, "rum")
    assert "did you mean titanic" in fails(capsys, "run", "titanik", "--out", tmp_path)
    assert "--networks" in fails(capsys, "run", "titanic", "--out", tmp_path, "--netwroks", 3)
    assert "networks: got 0" in fails(capsys, "run", "titanic", "--out", tmp_path, "--networks", 0)
    assert "--out" in fails(capsys, "run", "titanic")


def test_folders_that_are_refused(capsys, tmp_path):
    other = xr.Dataset({"x": 1.0}, attrs={"study": "another"})
    store.write_dataset(tmp_path / "results.nc", other)
    message = fails(capsys, "run", "titanic", "--out", tmp_path)
    assert "holds the results of another" in message
    assert "--overwrite" in message
    xr.testing.assert_identical(store.read_dataset(tmp_path / "results.nc"), other)
    assert "unknown study 'another'" in fails(capsys, "report", tmp_path)
    assert "no such file" in fails(capsys, "report", tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capsys, "run", "titanic", "--out", tmp_path / "file")
    (tmp_path / "results.nc").write_bytes(b"garbage")
    assert "cannot be read" in fails(capsys, "run", "titanic", "--out", tmp_path)


def test_a_sweep_and_a_study_keep_apart(capsys, tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    assert "holds a sweep" in fails(capsys, "run", "titanic", "--out", tmp_path, "--overwrite")
    (tmp_path / "sweep.toml").write_text("[sweep]\nseeds = 0\n")
    assert "sweep.toml: sweep: got neither of target and study" in fails(
        capsys, "sweep", tmp_path / "sweep.toml", "--out", tmp_path
    )
    assert "did you mean" not in fails(capsys, "sweep", tmp_path / "none.toml", "--out", tmp_path)


def test_a_dataset_without_a_study(capsys, tmp_path):
    store.write_dataset(tmp_path / "results.nc", xr.Dataset({"x": 1.0}))
    assert "the attribute 'study' is missing" in fails(capsys, "report", tmp_path)


NETWORKS = """
import jax, jax.numpy as jnp

x = jnp.linspace(-1, 1, 15).reshape(5, 3)
params = {"a": jnp.linspace(-1, 2, 12).reshape(3, 4), "b": jnp.linspace(2, -1, 8).reshape(4, 2)}

def apply(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"]

def mlp():
    return apply, params, (x,)

def single():
    return apply, params, x

def shapes():
    return apply, jax.eval_shape(lambda: params), x

def strange():
    return lambda p, x: jnp.linalg.cholesky(p["w"] @ p["w"].T + jnp.eye(3)) @ x, {"w": jnp.eye(3)}, jnp.ones((3, 2))

def wide(width, depth=2):
    return mlp()

def fails():
    return 1 / 0

def leaves():
    raise SystemExit(3)

def nothing():
    pass

def four():
    return apply, params, x, x

def swapped():
    return params, apply, (x,)

def listed():
    return apply, params, [x]

def unfit():
    return apply, {"a": params["a"], "b": jnp.ones((5, 2))}, x

def text():
    return apply, params | {"name": "net"}, x
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The current directory holds modules of networks; none of them stays known to Python."""
    (tmp_path / "some_nets.py").write_text(NETWORKS)
    (tmp_path / "broken_nets.py").write_text("import jax\n\nraise RuntimeError('no data here')\n")
    (tmp_path / "wants_nets.py").write_text("import package_that_is_missing\n")
    (tmp_path / "syntax_nets.py").write_text("def mlp(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_nets")]:
        del sys.modules[name]


@pytest.mark.parametrize("target", ["some_nets:mlp", "some_nets.py:single", "{}/some_nets.py:mlp"])
def test_inspect_prints_the_group_and_its_verification(capsys, networks, target):
    cli.main(["inspect", target.format(networks), "--key", "3"])
    group, verification = capsys.readouterr().out.split("first slot")
    assert "24 elements" in group
    assert "a axis 1" in group
    for word in ("in float64", "in float32", "scaling", "permutation", "all together", "1.0e-09", "1.0e-04"):
        assert word in verification
    assert verification.count(" ok") == 3
    assert "FAILED" not in verification


def test_inspect_from_shapes_alone(capsys, networks):
    cli.main(["inspect", "some_nets:shapes"])
    out = capsys.readouterr().out
    assert "24 elements" in out
    assert "not verified: there are shapes without values" in out


def test_inspect_of_a_network_without_symmetry_says_what_has_no_rule(capsys, networks):
    cli.main(["inspect", "some_nets:strange"])
    printed = capsys.readouterr()
    assert "all together" in printed.out
    assert "no rule for the primitive cholesky" in printed.err


def test_a_failed_verification_is_exit_code_1(capsys, networks, monkeypatch):
    def wrong(*arguments):
        sym = found(*arguments)
        return dataclasses.replace(
            sym, factors=(sym.factors[0]._replace(slots=sym.factors[0].slots[:1]), *sym.factors[1:])
        )

    found = inspecting.discover
    monkeypatch.setattr(inspecting, "discover", wrong)
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", "some_nets:mlp"])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert printed.out.count("FAILED") == 2  # that factor, and all together
    assert "the verification failed" in printed.err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("some_nets", "expected MODULE:FACTORY"),
        (":mlp", "expected MODULE:FACTORY"),
        ("some_nets:", "expected MODULE:FACTORY"),
        ("folder/nets:mlp", "for a file write path/to/file.py:FACTORY"),
        ("missing.py:mlp", "no such file: {}/missing.py"),
        ("missing_nets:mlp", "module missing_nets not found, neither in {} nor among the installed packages"),
        ("some_nets.inner:mlp", "module some_nets.inner not found"),
        ("broken_nets:mlp", "module broken_nets fails at import: RuntimeError: no data here"),
        ("broken_nets.py:mlp", "broken_nets.py, line 3"),
        ("wants_nets:mlp", "fails at import: ModuleNotFoundError: No module named 'package_that_is_missing'"),
        ("syntax_nets:mlp", "fails at import: SyntaxError"),
        ("some_nets:mpl", "unknown factory of some_nets 'mpl': did you mean mlp?"),
        ("some_nets:params", "some_nets:params is a dict, expected a function without arguments"),
        ("some_nets:wide", "some_nets:wide needs arguments (width)"),
        ("some_nets:fails", "some_nets:fails fails: ZeroDivisionError: division by zero"),
        ("some_nets:leaves", "some_nets:leaves fails: SystemExit: 3"),
        ("some_nets:nothing", "returned None, expected (apply, params, inputs)"),
        ("some_nets:four", "returned a tuple of 4, expected (apply, params, inputs)"),
        ("some_nets:swapped", "returned a dict as apply, expected (apply, params, inputs)"),
        ("some_nets:listed", "returned a list as inputs, expected a tuple"),
        ("some_nets:unfit", "TypeError: dot_general requires contracting dimensions to have the same shape"),
        ("some_nets:text", "some_nets:text: name is the text 'net', expected an array"),
    ],
)
def test_inspect_refuses_in_one_line(capsys, networks, target, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", target])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert said.format(networks) in printed.err
    assert printed.err.startswith("jaxsym: ")
    assert len(printed.err.splitlines()) == 1
    assert not printed.out


@dataclasses.dataclass(frozen=True)
class Small:
    """Of a study that computes nothing."""

    size: int = 3


def test_a_quick_run_with_options_stays_a_quick_run_and_an_old_page_goes(tmp_path, monkeypatch):
    pages = [[]]
    study = Study(
        title="small",
        config=Small(),
        quick=Small(2),
        run=lambda config, progress: xr.Dataset({"size": ((), config.size)}),
        summary=lambda data: {"ends": [float("nan"), data["size"].item()], "whole": float("inf")},
        page=lambda data: pages[0] if pages else 1 / 0,
    )
    monkeypatch.setattr(studies, "load", lambda name: study)
    cli.main(["run", "small", "--out", str(tmp_path), "--quick", "--size", "5"])
    assert json.loads((tmp_path / "summary.json").read_text()) == {"ends": [None, 5], "whole": None}
    page = (tmp_path / "report.html").read_text()
    assert "a quick run: too small for its figures to settle" in page
    assert "jaxsym run small --out runs/small --quick --size 5" in page
    pages.clear()
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "small", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["results.nc"]


def test_an_interrupt_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "jaxsym", "run", "titanic", "--quick", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    while "networks" not in process.stdout.readline():  # until it trains
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert list((tmp_path / "out").glob("**/*")) == []


@pytest.mark.parametrize(("option", "executor"), [("--workers", "processes"), ("--slurm-minutes", "slurm")])
def test_an_option_of_another_executor_is_refused(capsys, tmp_path, option, executor):
    said = fails(capsys, "sweep", "file.toml", "--out", tmp_path / "out", option, 3)
    assert f"{option}: is for --executor {executor}, got --executor inline" in said
