"""What a sweep's file may say, and what each mistake is told."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsym.sweep import grid

GOOD = {
    "sweep": {"target": "nets:net", "seeds": 3},
    "static": {"width": [4, 8], "activation": ["tanh", "relu"]},
    "traced": {"rate": [0.1, 1], "decay": [0.0, 0.5, 1.0]},
}


def changed(**tables):
    return {name: table for name, table in {**GOOD, **tables}.items() if table is not None}


def test_cells_are_the_combinations_in_the_order_of_the_file():
    sweep = grid.parse(GOOD)
    assert [cell.static for cell in sweep.cells()] == [
        {"width": w, "activation": a} for w, a in itertools.product([4, 8], ["tanh", "relu"])
    ]
    assert [cell.number for cell in sweep.cells()] == [0, 1, 2, 3]
    assert sweep.seeds == (0, 1, 2)


def test_traced_axes_are_crossed_or_zipped():
    points = grid.parse(GOOD).points()
    assert points.dims == {"rate": 2, "decay": 3}
    pairs = list(zip(points.values["rate"], points.values["decay"], strict=True))
    assert pairs == list(itertools.product([0.1, 1.0], [0.0, 0.5, 1.0]))
    head = GOOD["sweep"] | {"combine": "zip"}
    zipped = grid.parse(changed(sweep=head, traced={"rate": [1, 2], "decay": [3.0, 4.0]})).points()
    assert zipped.dims == {"point": 2}
    np.testing.assert_array_equal(zipped.values["rate"], [1, 2])
    assert grid.parse(changed(traced=None)).points().num == 1


RATES = st.floats(-9, 9, width=32, allow_subnormal=False)


@given(st.integers(1, 5), st.lists(RATES, min_size=1, max_size=4, unique=True), st.sampled_from([None, 3]))
def test_the_canonical_form_says_the_same(seeds, rates, chunk):
    head = {"target": "nets:net", "seeds": seeds} | ({} if chunk is None else {"chunk": chunk})
    sweep = grid.parse({"sweep": head, "traced": {"rate": rates}})
    again = grid.parse(sweep.as_dict())
    assert again == sweep
    assert again.digest() == sweep.digest()


def test_the_hash_is_of_what_matters():
    sweep = grid.parse(GOOD)
    assert grid.parse(changed(sweep=GOOD["sweep"] | {"save_every": 1.0})).digest() == sweep.digest()
    for other in (changed(sweep=GOOD["sweep"] | {"seeds": 4}), changed(static={"width": [4]}), changed(traced=None)):
        assert grid.parse(other).digest() != sweep.digest()
    lines = grid.differences(sweep.as_dict(), grid.parse(changed(static={"width": [4]})).as_dict())
    assert lines == ["static.width: [4, 8] -> [4]", 'static.activation: ["tanh", "relu"] -> nothing']


def test_lists_and_texts_are_static_values():
    sweep = grid.parse(changed(static={"widths": [[4, 4], [8]]}))
    assert sweep.cells()[0].static == {"widths": (4, 4)}
    assert grid.text_of(sweep.static["widths"]) == ["[4, 4]", "[8]"]
    assert grid.text_of((1, 2)) == [1, 2]


HEAD = GOOD["sweep"]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"swep": {}}, "unknown table 'swep': did you mean sweep"),
        ({"static": 3}, "static: got 3, expected a table"),
        ({"sweep": HEAD | {"sedes": 3}}, r"unknown key of \[sweep\] 'sedes': did you mean seeds"),
        ({"sweep": {"seeds": 3}}, "got neither of target and study"),
        ({"sweep": HEAD | {"study": "titanic"}}, "got both of target and study"),
        ({"sweep": HEAD | {"target": 3}}, "sweep.target: got 3, expected a name in quotes"),
        ({"sweep": HEAD | {"combine": "product"}}, "sweep.combine: got 'product'"),
        ({"sweep": HEAD | {"combine": "zip"}}, "traced.rate has 2 values, traced.decay has 3 values"),
        ({"sweep": HEAD | {"chunk": 0}}, "sweep.chunk: got 0"),
        ({"sweep": HEAD | {"chunk": True}}, "sweep.chunk: got True"),
        ({"sweep": HEAD | {"save_every": -1}}, "sweep.save_every: got -1"),
        ({"sweep": HEAD | {"seeds": 0}}, "sweep.seeds: got 0, expected 1 to 1000000"),
        ({"sweep": HEAD | {"seeds": 10**10}}, "sweep.seeds: got 10000000000, expected 1 to 1000000"),
        ({"sweep": HEAD | {"seeds": []}}, r"sweep.seeds: got \[\]"),
        ({"sweep": HEAD | {"seeds": [1, 1]}}, "expected every seed once"),
        ({"sweep": HEAD | {"seeds": [-1]}}, "sweep.seeds: got -1"),
        ({"sweep": HEAD | {"seeds": "many"}}, "sweep.seeds: got 'many'"),
        ({"static": {"width": []}}, r"static.width: got \[\], expected at least one value"),
        ({"static": {"width": 4}}, r"expected a list of values: width = \[4\]"),
        ({"static": {"width": [4, 4]}}, "static.width: the value 4 is given twice"),
        ({"traced": {"rate": [1, 1.0]}}, "traced.rate: the value 1.0 is given twice"),
        ({"static": {"width": [4, "wide"]}}, "static.width: got .* expected values of one kind"),
        ({"static": {"width": [float("nan")]}}, "static.width: got nan"),
        ({"traced": {"rate": ["fast"]}}, r"text belongs to \[static\]"),
        ({"traced": {"width": [1.0]}}, r"width: is an axis of both \[static\] and \[traced\]"),
        ({"static": {"../../etc": [1]}}, r"static.../../etc: got '../../etc', expected the name of an argument"),
        ({"static": {"a b": [1]}}, "expected the name of an argument"),
        ({"traced": {"seed": [1]}}, "traced.seed: the name is taken"),
        ({"record": {"variables": []}}, "record.variables: got"),
        ({"traced": {"n": [3_000_000_000, 5]}}, r"traced.n: got 3000000000, expected a whole number between"),
        ({"traced": {"n": [1.0, 1e300]}}, r"traced.n: got 1e\+300, expected a number between"),
        ({"traced": {"n": [1.0, 1e-300]}}, r"traced.n: got 1e-300, expected .* not so near to 0"),
        ({"traced": {"n": [10**400, 1.0]}}, "traced.n: got 1000"),
        ({"static": {"n": [2**70]}}, "static.n: got 1180591620717411303424, expected finite numbers"),
        ({"static": {"n": [float("inf")]}}, "static.n: got inf, expected finite numbers"),
        ({"record": {"params": "yes"}}, "record.params: got 'yes'"),
        ({"page": {"metric": "loss"}}, "page.direction: got None, expected 'minimize' or 'maximize'"),
        ({"page": {"metric": 3, "direction": "minimize"}}, "page.metric: got 3"),
        ({"page": {"metrics": "loss"}}, r"unknown key of \[page\] 'metrics'"),
        ({"record": {"vars": ["loss"]}}, r"unknown key of \[record\] 'vars'"),
        ({"sweep": {"study": "titanic"}}, "traced: a study has options and seeds only"),
    ],
)
def test_mistakes_are_named(tables, said):
    with pytest.raises(ValueError, match=said):
        grid.parse(changed(**tables))


SEARCH = {
    "method": "random",
    "trials": 4,
    "batch": 2,
    "metric": "loss",
    "direction": "minimize",
    "space": {"rate": {"low": 0.0, "high": 1.0}},
}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"search": SEARCH}, "traced.rate: a search draws the traced values itself"),
        ({"search": SEARCH, "traced": None}, "static.width: got 2 values, expected one"),
        ({"search": SEARCH, "traced": None, "static": {"rate": [1]}}, r"both \[static\] and \[search.space\]"),
    ],
)
def test_a_search_stands_alone(tables, said):
    with pytest.raises(ValueError, match=said):
        grid.parse(changed(**tables))


def test_a_search_has_a_cell_a_batch():
    sweep = grid.parse(changed(search=SEARCH | {"trials": 5}, traced=None, static={"width": [4]}))
    assert [cell.static for cell in sweep.cells()] == [{"width": 4}] * 3


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.toml: cannot be read \(No such file"):
        grid.load(tmp_path / "nothing.toml")
    path = tmp_path / "broken.toml"
    path.write_text("[sweep\n")
    with pytest.raises(ValueError, match=r"broken.toml: Expected"):
        grid.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken.toml: cannot be read"):
        grid.load(path)
