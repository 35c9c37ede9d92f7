"""A sweep from its file to its dataset: values, dimensions, resuming, refusals."""

import concurrent.futures
import json

import numpy as np
import pytest

from jaxsym import report
from jaxsym.sweep import cell, engine, grid, records, store
from jaxsym.sweep.targets import network_key
from tests.sweep import nets
from tests.sweep.running import opened, same_bits, tables


def swept(tmp_path, *args, name="out", executor="inline", **kwargs):
    outcome = engine.run(tables(*args, **kwargs), tmp_path / name, executor)
    assert outcome.failures == ()
    return opened(tmp_path / name)


def test_values_are_those_of_the_function(tmp_path):
    """An independent route: the factory called directly, network by network."""
    data = swept(
        tmp_path, "plain", static={"power": [1, 2]}, traced={"rate": [0.5, 2.0], "offset": [0.0, 1.0]}, chunk=2
    )
    assert data["value"].dims == ("power", "rate", "offset", "seed")
    assert data["drawn"].dims == ("power", "rate", "offset", "seed", "drawn_0")
    assert data["whole"].dtype.kind == "i"
    assert data["yes"].dtype == bool
    assert data["finite"].all()
    for power in (1, 2):
        for rate in (0.5, 2.0):
            for seed in range(3):
                wanted = nets.plain(power)(network_key(np.uint32(seed)), rate, 1.0)
                got = data.sel(power=power, rate=rate, offset=1.0, seed=seed)
                for name in ("value", "drawn", "whole", "yes"):
                    np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5)


def test_training_runs_have_their_steps(tmp_path):
    data = swept(tmp_path, "net", static={"width": [2, 3]}, traced={"learning_rate": [0.1, 0.01]})
    assert data["loss"].dims == ("width", "learning_rate", "seed", "step")
    np.testing.assert_array_equal(data["step"], [0, 10, 20, 30])
    assert {"loss", "norm", "largest.a", "largest.b", "finite"} == set(data.data_vars)
    wanted = nets.net(3)(network_key(np.uint32(2)), learning_rate=0.01)
    got = data.sel(width=3, learning_rate=0.01, seed=2)
    np.testing.assert_allclose(got["loss"], wanted.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(got["largest.b"], wanted.history["largest"]["b"], rtol=1e-4)
    params, marks = store.read_arrays(tmp_path / "out" / "cells" / "0001" / "params.safetensors")
    assert marks["config_hash"] == data.attrs["hash"]
    assert params["a"].shape == (6, 2, 3)
    np.testing.assert_allclose(params["b"][5], wanted.params["b"], rtol=1e-3, atol=1e-5)
    tree = records.parameters(tmp_path / "out", width=3)
    assert {name: array.shape for name, array in tree.items()} == {"a": (2, 3, 2, 3), "b": (2, 3, 3, 1)}
    np.testing.assert_array_equal(tree["b"][1, 2], params["b"][5])
    with pytest.raises(ValueError, match="2 cells match no value, expected one; its static axes: width of"):
        records.parameters(tmp_path / "out")
    with pytest.raises(ValueError, match="0 cells match"):
        records.parameters(tmp_path / "out", width=4)
    (tmp_path / "out" / "cells" / "0001" / "cell.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="0001: it is not finished"):
        records.parameters(tmp_path / "out", width=3)


ITSELF = """
import sys, jaxsym as js
def factory():
    return lambda key: {"a": 1.0}
js.sweep.run({"sweep": {"target": f"{sys.argv[0]}:factory"}}, sys.argv[1])
"""


def test_a_script_that_runs_itself_when_it_is_imported(python, tmp_path):
    script = tmp_path / "itself.py"
    script.write_text(ITSELF)
    said = python(None, script, tmp_path / "out", check=False)
    assert said.returncode == 1
    assert 'put what the file does, beside defining functions, under `if __name__ == "__main__":`' in said.stderr
    assert not (tmp_path / "out").exists()


def test_the_segments_are_gone_and_attributes_tell_what_it_was(tmp_path):
    data = swept(tmp_path, "accurate", static={"width": [2]})
    assert data["last"].dims == ("width", "seed")
    assert data["b"].dims == ("width", "seed", "b_0")
    place = tmp_path / "out" / "cells" / "0000"
    assert sorted(path.name for path in place.iterdir() if not path.name.startswith(".")) == [
        "cell.json",
        "data.nc",
        "log.txt",
        "params.safetensors",
    ]
    attributes = store.read_dataset(place / "data.nc").attrs
    assert json.loads(attributes["static"]) == {"width": 2}
    assert attributes["config_hash"] == grid.parse(json.loads(attributes["config"])).digest()
    assert {"versions", "device", "git_revision", "chunk", "nonfinite"} <= set(attributes)


def test_a_result_beside_the_curves(tmp_path):
    data = swept(tmp_path, "beside")
    assert data["loss"].dims == ("seed", "step")
    assert data["last"].dims == ("seed",)
    np.testing.assert_array_equal(data["last"], data["loss"].isel(step=-1))
    with pytest.raises(ValueError, match=r"the history has 'last' with shape \(1,\), expected 4 records in front"):
        engine.run(tables("beside", static={"wrong": [True]}), tmp_path / "wrong")


def test_zipped_axes_share_a_dimension(tmp_path):
    data = swept(tmp_path, "plain", traced={"rate": [0.5, 2.0], "offset": [3.0, 4.0]}, combine="zip")
    assert data["value"].dims == ("point", "seed")
    np.testing.assert_array_equal(data["offset"], [3.0, 4.0])
    assert data["offset"].dims == ("point",)


@pytest.mark.parametrize("factory", ["net", "plain"])
def test_a_seed_is_the_same_network_in_any_company(tmp_path, factory):
    traced = {} if factory == "net" else {"rate": [1.0]}
    many = swept(tmp_path, factory, name="many", traced=traced, seeds=[0, 1, 2, 3, 4], chunk=2)
    few = swept(tmp_path, factory, name="few", traced=traced, seeds=[3, 1], chunk=2)
    same_bits(few, many.sel(seed=[3, 1]).drop_attrs())


def test_variables_and_params_can_be_left_out(tmp_path):
    outcome = engine.run(tables("net") | {"record": {"variables": ["loss"], "params": False}}, tmp_path / "out")
    assert outcome.networks == 3
    assert set(opened(tmp_path / "out").data_vars) == {"loss", "finite"}
    assert not list((tmp_path / "out").glob("cells/*/*.safetensors"))


def test_nonfinite_networks_are_kept_flagged_and_counted(tmp_path):
    shown = []
    outcome = engine.run(tables("blows_up", traced={"rate": [0.5, 2.0]}), tmp_path / "out", show=shown.append)
    assert (outcome.networks, outcome.nonfinite) == (6, 3)
    assert opened(tmp_path / "out").attrs["nonfinite"] == 3
    assert "3 of 6 networks are not finite" in shown[-1].note
    data = opened(tmp_path / "out")
    np.testing.assert_array_equal(data["finite"], [[True] * 3, [False] * 3])
    assert np.isnan(data["loss"].sel(rate=2.0)).all()


def test_a_cell_that_raises_fails_alone(tmp_path):
    outcome = engine.run(tables("fails", static={"width": [1, 2, 3]}), tmp_path / "out")
    assert (outcome.cells, outcome.done) == (3, 2)
    (failure,) = outcome.failures
    assert (failure.number, failure.label) == (1, "width 2")
    assert "fails: RuntimeError: no network of width 2 today" in failure.error
    assert "RuntimeError: no network of width 2 today" in failure.log.read_text()
    data = opened(tmp_path / "out")
    assert np.isnan(data["loss"].sel(width=2)).all()
    assert not data["finite"].sel(width=2).any()
    assert data["finite"].sel(width=3).all()
    states = [fact["state"] for fact in records.facts(tmp_path / "out")]
    assert states == ["done", "failed", "done"]


def test_results_may_differ_in_shape_from_cell_to_cell(tmp_path):
    data = swept(tmp_path, "shaped", static={"width": [2, 4]})
    assert data["weights"].shape == (2, 3, 4)
    assert np.isnan(data["weights"].sel(width=2)[:, 2:]).all()
    assert np.isfinite(data["weights"].sel(width=4)).all()


def test_what_is_complete_is_found_and_a_changed_file_refused(tmp_path):
    states = []
    of = tables("plain", static={"power": [1, 2]}, traced={"rate": [1.0]})
    engine.run(of, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/cells/*/data.nc")}
    outcome = engine.run(of, tmp_path / "out", show=lambda shown: states.append(shown.state))
    assert states == ["found", "found"]
    assert outcome.done == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ValueError, match=r"holds another sweep(.|\n)*static.power: \[1, 2\] -> \[1\]"):
        engine.run(of | {"static": {"power": [1]}}, tmp_path / "out")


def test_another_version_of_the_code_is_noticed(tmp_path):
    """A finished cell stands and is pointed out; segments of an unfinished one are not gone on with."""
    file = tmp_path / "mine.py"
    file.write_text(nets.__loader__.get_source(nets.__name__))
    of = {"sweep": {"target": f"{file}:net", "seeds": 5, "chunk": 2}, "static": {"steps": [400, 30]}}
    interrupted(tmp_path, of, networks=2)
    file.write_text(file.read_text().replace("adam)(learning_rate=0.1)", "adam)(learning_rate=0.2)"))
    engine.run(of, tmp_path / "fresh")
    engine.run(of, tmp_path / "out")
    same_bits(opened(tmp_path / "out"), opened(tmp_path / "fresh"))
    log = (tmp_path / "out" / "cells" / "0000" / "log.txt").read_text()
    assert "belongs to another sweep, chunk or version of the code" in log
    file.write_text(file.read_text() + "# a remark\n")
    notes = []
    engine.run(of, tmp_path / "out", show=lambda shown: notes.append((shown.state, shown.note)))
    place = tmp_path / "out" / "cells" / "0000"
    assert notes[0] == ("found", f"made with another version of {file}, so delete {place} to make it with this one")


def test_what_the_page_ranks_by_may_change(tmp_path):
    of = tables("plain", traced={"rate": [0.5, 2.0]})
    engine.run(of, tmp_path / "out")
    of = of | {"page": {"metric": "value", "direction": "maximize"}}
    states = []
    engine.run(of, tmp_path / "out", show=lambda shown: states.append(shown.state))
    assert states == ["found"]
    summary = json.loads(report.publish(tmp_path / "out").with_name("summary.json").read_text())
    assert (summary["metric"], summary["direction"]) == ("value", "maximize")
    with pytest.raises(ValueError, match=r"page.metric: unknown result 'valu': did you mean value"):
        engine.run(of | {"page": {"metric": "valu", "direction": "maximize"}}, tmp_path / "out")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "record"])
def test_a_damaged_cell_is_done_again(tmp_path, damage):
    of = tables("plain", traced={"rate": [1.0]})
    engine.run(of, tmp_path / "out")
    before = opened(tmp_path / "out")
    path = tmp_path / "out" / "cells" / "0000" / ("cell.json" if damage == "record" else "data.nc")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-100], "record": content[:-9]}.get(damage, content))
    with pytest.raises(ValueError, match="no cell is finished"):
        records.open_sweep(tmp_path / "out")
    states = []
    engine.run(of, tmp_path / "out", show=lambda shown: states.append(shown.state))
    assert states[-1] == "done"
    same_bits(opened(tmp_path / "out"), before)


def interrupted(tmp_path, of, calls=0, networks=0):
    """Run until the progress has been told some times, and some networks are done; then press Ctrl-C."""
    told = 0

    def show(shown):
        nonlocal told
        if shown.state == "running":
            told += 1
            if told >= calls and shown.progress.networks_done >= networks:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(of, tmp_path / "out", show=show)


@pytest.mark.parametrize(
    ("calls", "batch_size"),
    [(4, 2), *(pytest.param(c, b, marks=pytest.mark.long) for c in (1, 4, 9) for b in (None, 2) if (c, b) != (4, 2))],
)
def test_an_interrupted_cell_goes_on_where_it_was(tmp_path, calls, batch_size):
    of = tables(
        "net", static={"steps": [400], "batch_size": [batch_size]} if batch_size else {"steps": [400]}, seeds=5, chunk=2
    )
    engine.run(of, tmp_path / "whole")
    interrupted(tmp_path, of, calls)
    engine.run(of, tmp_path / "out")
    log = (tmp_path / "out" / "cells" / "0000" / "log.txt").read_text()
    assert "interrupted" in log
    same_bits(opened(tmp_path / "out"), opened(tmp_path / "whole"))
    one, other = (
        store.read_arrays(tmp_path / name / "cells" / "0000" / "params.safetensors")[0] for name in ("out", "whole")
    )
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])
    assert "goes on at step" in log or calls == 9


@pytest.mark.parametrize("what", ["checkpoint", "segment"])
def test_damaged_segments_and_checkpoints_are_seen(tmp_path, what):
    of = tables("net", static={"steps": [400]}, seeds=5, chunk=2)
    engine.run(of, tmp_path / "whole")
    interrupted(tmp_path, of, networks=2 if what == "segment" else 0)
    segments = tmp_path / "out" / "cells" / "0000" / "segments"
    if what == "segment":
        (path,) = segments.glob("segment_000000.safetensors")
    else:
        path = max(segments.glob("checkpoint_*/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    engine.run(of, tmp_path / "out")
    assert f"{what}" in (tmp_path / "out" / "cells" / "0000" / "log.txt").read_text()
    assert "damaged" in (tmp_path / "out" / "cells" / "0000" / "log.txt").read_text()
    same_bits(opened(tmp_path / "out"), opened(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("factory", "changes", "said"),
    [
        ("nett", {}, "sweep.target: unknown factory of .*nets.py 'nett': did you mean net"),
        ("NOT_A_FUNCTION", {}, "sweep.target: .* is a int, expected a function factory"),
        ("net", {"static": {"widht": [1]}}, "static.widht: unknown argument of .*'widht': did you mean width"),
        ("plain", {}, "traced: the function of .*plain needs rate"),
        (
            "plain",
            {"traced": {"rate": [1.0], "offest": [1.0]}},
            "traced.offest: unknown argument .* did you mean offset",
        ),
        ("net", {"traced": {"learning_rat": [1.0]}}, "did you mean learning_rate"),
        ("wrong", {"static": {"kind": ["list"]}}, "returned a list, expected a dict of arrays by name"),
        ("wrong", {"static": {"kind": ["empty"]}}, "returned an empty dict"),
        ("wrong", {"static": {"kind": ["key"]}}, "the result 'key_data' is"),
        ("wrong", {"static": {"kind": ["complex"]}}, "the result 'z' is complex"),
        ("wrong", {"static": {"kind": ["seed"]}}, "the result 'seed' has the name of an axis"),
        ("wrong", {"static": {"kind": ["path"]}}, "a result is called"),
        ("wrong", {"static": {"kind": ["none"]}}, "returned an|the result|no result|fails"),
        ("wrong", {"static": {"kind": ["text"]}}, "fails when it is traced"),
        (
            "named",
            {"traced": {"y_0": [10.0, 20.0]}},
            "the result 'y' has a dimension 'y_0', the name of an axis or a result",
        ),
        ("named", {"static": {"kind": ["both"]}}, "the result 'y' has a dimension 'y_0'"),
        (
            "named",
            {"static": {"kind": ["nested"]}},
            r"two results have one name once nested names are joined by dots \(a/b, a\.b\)",
        ),
        (
            "named",
            {"traced": {"y": [1.0, 2.0], "rate": [1.0, 2.0]}, "sweep": {"combine": "zip"}},
            "the result 'y' has the name of an axis",
        ),
        ("stepped", {"static": {"step": [1, 2]}}, "static.step: the name is taken by the steps of the run"),
        ("fails", {"static": {"width": [2]}}, r"fails\(width=2\) fails: RuntimeError"),
        (
            "bowl",
            {"traced": {"x": [0.0]}, "record": {"variables": ["lost"]}},
            "record.variables: unknown result 'lost'",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, factory, changes, said):
    of = tables(factory)
    of |= {name: of.get(name, {}) | table for name, table in changes.items()}
    with pytest.raises(ValueError, match=said):
        engine.run(of, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_refused(tmp_path):
    of = tables("plain", traced={"rate": [1.0]})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        engine.run(of, tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        engine.run(of, tmp_path / "other")
    with (
        store.locked(tmp_path / "out" / ".lock"),
        pytest.raises(ValueError, match=r"is in use: process \d+ on .* runs a sweep there"),
    ):
        engine.run(of, tmp_path / "out")
    engine.run(of, tmp_path / "out")
    config = tmp_path / "out" / "sweep.json"
    config.write_text(config.read_text().replace('"seeds": [', '"seeds": [ 9,'))
    with pytest.raises(ValueError, match="has been changed by hand"):
        engine.run(of, tmp_path / "out")
    with pytest.raises(ValueError, match="no sweep is stored here"):
        records.open_sweep(tmp_path / "other")


def test_small_files_that_are_damaged(tmp_path):
    of = tables("fails", static={"width": [1, 2]})
    engine.run(of, tmp_path / "out")
    (tmp_path / "out" / "cells" / "0001" / "failed.json").write_text("[1]")
    assert [fact["state"] for fact in records.facts(tmp_path / "out")] == ["done", "failed"]
    (tmp_path / "out" / "cells" / "0001" / "progress.json").write_text('{"a": 1}')
    assert len(engine.run(of, tmp_path / "out").failures) == 1
    (tmp_path / "out" / "sweep.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match=r"sweep.json: is damaged, or has another format"):
        engine.run(of, tmp_path / "out")


def test_what_is_missing_is_nan_for_every_kind(tmp_path):
    engine.run(tables("fails_later", static={"width": [1, 2]}), tmp_path / "out")
    data = opened(tmp_path / "out")
    for name in ("yes", "whole", "loss"):
        assert np.isnan(data[name].sel(width=2)).all(), name
    assert data["finite"].dtype == bool


def test_an_executor_of_the_users_own(tmp_path):
    inline = swept(tmp_path, "plain", name="inline", static={"power": [1, 2]}, traced={"rate": [1.0]})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        threads = swept(tmp_path, "plain", executor=pool, static={"power": [1, 2]}, traced={"rate": [1.0]})
    same_bits(threads, inline)
    with pytest.raises(ValueError, match="unknown executor 'proceses': did you mean processes"):
        engine.run(tables("plain"), tmp_path / "none", "proceses")


SEARCH = {"method": "tpe", "trials": 10, "batch": 4, "metric": "loss", "direction": "minimize"}
SPACE = {"x": {"low": -1.0, "high": 1.0}, "y": {"low": -1.0, "high": 1.0}}


def test_a_search_resumes_with_the_same_trials(tmp_path):
    of = tables("bowl") | {"search": SEARCH | {"space": SPACE}}
    engine.run(of, tmp_path / "whole")
    interrupted(tmp_path, of, 2)
    engine.run(of, tmp_path / "out")
    data = opened(tmp_path / "out")
    assert data["loss"].dims == ("trial", "seed")
    assert dict(data.sizes) == {"trial": 10, "seed": 3}
    np.testing.assert_allclose(data["objective"], data["loss"].mean("seed"), rtol=1e-6)
    wanted = (data["x"] - 0.3) ** 2 + data["y"] ** 2
    np.testing.assert_allclose(data["objective"], wanted, atol=2e-3)
    same_bits(data, opened(tmp_path / "whole"))
    assert (tmp_path / "out" / "search" / "study.db").stat().st_size > 0


def test_a_study_is_swept_over_its_options(tmp_path):
    of = {"sweep": {"study": "titanic", "seeds": [1, 2]}, "static": {"networks": [0]}}
    with pytest.raises(ValueError, match=r"static.networks: networks: got 0"):
        engine.run(of, tmp_path / "out")
    with pytest.raises(ValueError, match=r"static.networks: got 'many', expected values like the option's default"):
        engine.run(of | {"static": {"networks": ["many"]}}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"static.wdth: unknown option of the study"):
        engine.run(of | {"static": {"wdth": [1]}}, tmp_path / "out")


@pytest.mark.long
def test_a_study_runs_once_a_seed(tmp_path):
    small = {"few": [2], "converge_steps": [20], "splits": [1], "networks": [2, 3]}
    engine.run(
        {"sweep": {"study": "titanic", "seeds": [1, 2]}, "static": small, "record": {"variables": ["case1_cost"]}},
        tmp_path / "out",
    )
    data = opened(tmp_path / "out")
    assert data["finite"].dims == ("few", "converge_steps", "splits", "networks", "seed")
    assert data["finite"].all()
    assert {"seed", "networks", "few_of_study"} <= set(data["case1_cost"].dims)


def test_records_of_cells(tmp_path):
    swept(tmp_path, "plain", traced={"rate": [1.0]})
    (fact,) = records.facts(tmp_path / "out")
    assert fact["state"] == "done"
    assert cell.record(tmp_path / "out" / "cells" / "0000", fact["hash"])["networks"] == 3
    assert cell.record(tmp_path / "out" / "cells" / "0000", "another") is None
