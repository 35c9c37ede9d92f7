"""The study of conservation laws, some of its table: counts against the papers, its page from its figures."""

import re

import pytest

from jaxsym import cli
from jaxsym.studies import load
from jaxsym.studies.conservation_laws import Config, cases


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for all networks."""
    out = tmp_path_factory.mktemp("conservation_laws")
    cli.main(["run", "conservation_laws", "--out", str(out), "--kinds", ",".join(cases())])
    return out


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("conservation_laws").summary(results)
    assert (summary["linear_nmr_2_2_5"], summary["relu_2_3_2"], summary["tanh_2_3_1"]) == (14, 3, 0)
    assert summary["formula_agreement"] == 1
    assert summary["residual"] < 1e-9


def test_counts_of_the_papers(results):
    """Polynomials, independent, linear: written down here."""
    want = {
        "linear n=2 m=2 r=2": (3, 3, 0),
        "linear n=1 m=1 r=3": (9, 5, 0),
        "relu 2-3-2": (3, 3, 0),
        "tanh 2-3-1": (0, 0, 0),
        "attention d=2": (6, 6, 0),
    }
    for name, counts in want.items():
        own = results.sel(network=name)
        assert (int(own.polynomials), int(own.independent), int(own.linear)) == counts
    softmax = results.sel(network="tanh 2-2-3 softmax")
    assert int(softmax.linear) == 2 + 1  # row sums of the kernel, and the sum of the bias
    assert int(softmax.polynomials) == 3 + 6


def test_symmetry_explains_all_but_the_slices(results, summary):
    beyond = results.independent > results.independent_charges
    assert [str(name) for name in results.network.values[beyond]] == ["sine of a sum of slices"]
    assert summary["beyond_symmetry"] == 1


def test_the_page_says_the_figures(folder, results):
    page = (folder / "report.html").read_text()
    assert "The black box finds more than symmetry explains in sine of a sum of slices." in page
    assert "w[0,0]" in page
    assert page.count("<img ") == 1 == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    assert len(results.network) == len(cases())


def test_bad_config():
    with pytest.raises(ValueError, match="unknown kind 'relu 2-3-4': did you mean relu 2-3-2"):
        Config(kinds="relu 2-3-4")
