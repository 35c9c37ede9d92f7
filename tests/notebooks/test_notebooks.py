"""The notebooks run as they are, warnings being errors, and show their pictures."""

import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.py"))
RUN = """
import runpy, sys, warnings
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot as plt
shown = []
plt.show = lambda: shown.append(len(plt.get_fignums())) or plt.close("all")
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
runpy.run_path(sys.argv[1], run_name="__main__")
print("pictures:", *shown)
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(python, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    printed = python(RUN, path, devices=2)
    source = path.read_text()
    shown = re.search(r"pictures:((?: 1)+)$", printed.strip())
    assert shown is not None
    assert len(shown[1].split()) == source.count("plt.show()") >= 1
    if path.stem == "first_tour":
        assert "elements of the finite part: 1474560   dimension of the rest: 5" in printed
        assert "verified: True" in printed
        assert "verified: False" in printed
        assert "distinct networks: 3 of 12 sets of parameters" in printed
        assert "orbit 5: complete" in printed
    elif path.stem == "symmetry_and_training":
        assert "'constant': 1.0" in printed
        assert "the orbit lies in the null space" in printed
        assert 0.9 < float(re.search(r"to the power ([\d.]+)", printed)[1]) < 1.1
    else:
        assert "3 of 3 cells, 144 networks" in printed


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["ensemble_sweep", "first_tour", "symmetry_and_training"]
