"""The zoo, run small: kernels by another route and from the oracles' table, its summary from the file, its page from the figures."""

import math
import re
import sys

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxsym as js
from jaxsym import cli, studies
from jaxsym.studies import symmetry_zoo
from jaxsym.studies.architectures import CATALOGUE, FAMILIES
from jaxsym.studies.study import silent
from jaxsym.studies.symmetry_zoo import Config, many, written
from jaxsym.studies.symmetry_zoo_page import pretty
from jaxsym.symmetry.draws import perturbed
from jaxsym.symmetry.precision import wide
from tests.symmetry.networks import FACTORS

NAMES = ("tanh", "square", "swiglu", "equinox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for four architectures, one of which has no library here."""
    out = tmp_path_factory.mktemp("symmetry_zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "equinox", None)
        options = ["--quick", "--unknowns", "350", "--architectures", ",".join(NAMES)]
        cli.main(["run", "symmetry_zoo", "--out", str(out), *options])
    return out


def row(results, name):
    return {field: array.sel(architecture=name).item() for field, array in results.data_vars.items()}


def text(sections):
    tables = [" ".join(cells) for section in sections for table in section.tables for cells in table.rows]
    return " ".join([*(paragraph for section in sections for paragraph in section.paragraphs), *tables])


def test_every_architecture_is_there_once():
    assert sum(map(len, FAMILIES.values())) == len(CATALOGUE) == len(FACTORS)
    assert set(FACTORS) == set(CATALOGUE)


@pytest.mark.parametrize(
    ("name", "group", "order", "dim", "kernel", "hidden"),
    [
        ("tanh", "Z_2^4 × Z_2^5 × S_4 × S_5", 2**9 * 24 * 120, 0, 0, 0),
        (
            "square",
            "R_+^4 × R_+^5 × Z_2^4 × Z_2^5 × S_4 × S_5",
            2**9 * 24 * 120,
            9,
            11,
            2,
        ),  # two redundant output biases
        ("swiglu", "R_+^4 × Z_2^4 × S_4", 2**4 * 24, 4, 4, 0),
    ],
)
def test_groups_and_kernels_are_those_of_the_oracles(results, name, group, order, dim, kernel, hidden):
    found = row(results, name)
    assert (found["group"], int(found["order"]), found["dim"]) == (group, order, dim)
    assert (found["kernel"], found["orbit"], found["hidden"]) == (kernel, kernel - hidden, hidden)
    assert 0 < found["residual_float64"] < found["tolerance_float64"] == 1e-9
    assert 0 < found["residual_float32"] < found["tolerance_float32"] == 1e-4
    assert found["unavailable"] == found["not_certified"] == ""


def test_the_kernel_by_a_plain_rank():
    """Of one architecture whose outputs are one loss: its inputs are many batches."""
    architecture = CATALOGUE["cross entropy"]()
    apply, inputs = many(architecture, jax.random.key(5))
    labels = np.asarray(inputs[1])
    assert labels.shape[1:] == (5,)
    assert set(labels.ravel()) == {0, 1, 2}
    assert len(np.unique(np.asarray(inputs[0])[:, 0, 0])) == len(labels) >= 1500
    with jax.enable_x64(True):
        params, inputs = perturbed(jax.random.key(1), wide(architecture.params), 1.0), wide(inputs)
        flat, back = ravel_pytree(params)
        jacobian = jax.jit(jax.jacfwd(lambda p: apply(back(p), *inputs)))(flat)
        assert jacobian.shape == (len(labels), flat.size)
        assert flat.size - np.linalg.matrix_rank(jacobian, tol=1e-9) == 4 + 1  # the softmax shift


def test_the_black_box_agrees(results):
    assert (row(results, "tanh")["algebra_dim"], row(results, "tanh")["missing"]) == (0, 0)
    assert (row(results, "square")["algebra_orbit"], row(results, "square")["missing"]) == (9, 0)
    assert math.isnan(row(results, "swiglu")["missing"])
    assert re.match(r"too large: \d+ unknowns, at most 350", row(results, "swiglu")["not_compared"])


def test_what_is_not_installed_is_said(results, summary, folder):
    assert row(results, "equinox")["unavailable"] == "the package equinox is not installed"
    assert math.isnan(row(results, "equinox")["residual_float64"])
    assert summary["unavailable"] == ["equinox: the package equinox is not installed"]
    assert "Not available here: equinox: the package equinox is not installed." in (folder / "report.html").read_text()


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == studies.load("symmetry_zoo").summary(results)
    rows = [row(results, name) for name in NAMES if name != "equinox"]
    assert summary["architectures"] == len(rows) == 3
    assert summary["complete"] == sum(found["kernel"] == found["orbit"] for found in rows) == 2
    assert summary["incomplete"] == ["square: 2"]
    assert summary["worst_residual_float64"] == max(found["residual_float64"] for found in rows)
    assert summary["worst_residual_float32"] == max(found["residual_float32"] for found in rows)
    assert summary["residuals_above_tolerance"] == 0
    assert (summary["kernel"], summary["hidden"]) == (11 + 4, 2)
    assert summary["parameters"] == (3 * 4 + 4 + 4 * 5 + 5 + 5 * 2 + 2) * 2 + row(results, "swiglu")["parameters"]
    assert (summary["algebra_compared"], summary["algebra_missing"]) == (2, [])
    assert len(summary["algebra_not_compared"]) == 1


def test_sentences_follow_the_figures(results):
    page = studies.load("symmetry_zoo").page
    said = text(page(results))
    assert "For 2 of 3 the group explains the whole kernel" in said
    assert "hidden directions remain in square: 2." in said
    assert "nothing is missing anywhere" in said
    assert "Every residual is below its tolerance" in said
    changed = results.copy(deep=True)
    changed["hidden"][:] = [0, 0, 0, math.nan]
    changed["missing"][0] = 3
    changed["residual_float32"][1] = 1.0
    said = text(page(changed))
    assert "For all of them the group explains" in said
    assert "directions are missing in tanh: 3" in said
    assert "Residuals above their tolerance: 1." in said
    unclear = results.copy(deep=True)
    for field in ("kernel", "orbit", "hidden"):
        unclear[field][2] = math.nan
    unclear["not_certified"] = unclear["not_certified"].astype(object)
    unclear["not_certified"][2] = "no clean gap"
    assert "Without a kernel, and not counted as complete: swiglu: no clean gap." in text(page(unclear))
    assert studies.load("symmetry_zoo").summary(unclear)["complete"] == 1


def test_the_page(folder, results):
    page = (folder / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img ") == len(list((folder / "figures").glob("*.png"))) == 2
    assert page.count("<img ") == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    assert pretty(row(results, "square")["group"]) in page
    assert "--unknowns 350" in page
    assert all(array.attrs["long_name"] for array in results.data_vars.values())


def test_nothing_is_certified_or_compared_aloud(monkeypatch):
    """Too many parameters, no gap, no black box: a sentence each."""
    monkeypatch.setattr(symmetry_zoo, "LARGEST", 10)
    found = symmetry_zoo.run(Config(architectures="radial", algebra=False), silent)
    assert row(found, "radial")["not_certified"].endswith("at most 10")
    assert row(found, "radial")["not_compared"] == "left out"
    summary = symmetry_zoo.summary(found)
    assert (summary["architectures"], summary["complete"]) == (1, 0)
    assert "Not compared: radial: left out" in text(studies.load("symmetry_zoo").page(found))


def test_groups_in_short():
    apply, params, inputs = CATALOGUE["experts"]()
    group = js.discover(apply, params, *inputs)
    assert written(group.factors) == "R^3 × (R_+^4)^2 × S_4^2 × S_2"
    assert pretty(written(group.factors)) == "ℝ³ × (ℝ₊⁴)² × S₄² × S₂"
    assert written(()) == "1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architectures": "tanhh"}, "unknown architecture 'tanhh': did you mean tanh"),
        ({"architectures": "relu,"}, "unknown architecture ''"),
        ({"architectures": "relu,tanh,relu"}, "architectures: relu is there 2 times"),
        ({"unknowns": 0}, "unknowns: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_config(options, said):
    with pytest.raises(ValueError, match=said):
        Config(**options)


INCOMPLETE = {
    "square": 2,  # output biases, which the quadratic forms of the units make up for
    "radial": 2,  # the units span 4 dimensions, three inputs fill 3: what reads the fourth is free
    "maxout": 8,  # an affine function for all pieces of a unit, such that the units' add up to nothing
    "residual": 28,  # 12: what reads the part of the stream that is still empty; 16: what is written where nobody reads
    "stacked layers": 28,  # the same
    "tied embedding": 17,  # there are only seven inputs
    "cnn": 4,  # a running variance and its epsilon, against the gain
    "cnn in training": 20,  # stored statistics, which nothing depends on
    "group norm": 4,  # a shift of the biases of each of four groups
    "recurrent linear": 13,  # a linear map of six numbers
    "rms norm": 5,  # three inputs do not fill the stream
    "transformer": 6,  # the last reader, without a bias of its own, along what the norm removes
}
KERNELS = {"relu": 9, "tanh": 0, "gelu": 0, "swiglu": 4, "attention": 24}
"""Of the oracles, where the sizes are those of the catalogue."""


@pytest.mark.long
def test_the_whole_catalogue():
    """All of it: what is known to be hidden, and nothing else; the black box misses what it is known to miss."""
    found = symmetry_zoo.run(Config(), silent)
    summary = symmetry_zoo.summary(found)
    assert summary["incomplete"] == [f"{name}: {INCOMPLETE[name]}" for name in CATALOGUE if name in INCOMPLETE]
    assert summary["complete"] == len(CATALOGUE) - len(INCOMPLETE)
    assert (summary["not_certified"], summary["unavailable"], summary["algebra_missing"]) == ([], [], [])
    assert summary["worst_residual_float64"] < 1e-9
    assert summary["residuals_above_tolerance"] == 0
    for name, kernel in KERNELS.items():
        assert row(found, name)["kernel"] == kernel
    for name, factors in FACTORS.items():
        order = {"permutation": math.factorial, "sign": lambda size: 2**size}
        elements = [
            order.get(kind, lambda size: 1)(size) ** (copies * n) for (kind, size, copies), n in factors.items()
        ]
        assert int(row(found, name)["order"]) == math.prod(elements)
