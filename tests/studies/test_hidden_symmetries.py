"""The study of hidden symmetries, run small: its ranks by other routes, its summary from the file, its page from the figures."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsym as js
from jaxsym import cli
from jaxsym.parallel import parallel
from jaxsym.studies import load
from jaxsym.studies.functional_dimension import CHUNK, measure
from jaxsym.studies.hidden_symmetries import Config, draw, keys_of, num_parameters, widths

NAMES = ("2_4_1", "2_3_3_1", "3_3_3_1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command line writes for a very small run."""
    out = tmp_path_factory.mktemp("hidden_symmetries")
    options = f"--quick --architectures {','.join(NAMES)} --networks 12 --few 2 --trained 3 --steps 20"
    cli.main(["run", "hidden_symmetries", "--out", str(out), *options.split()])
    return out


def forward(layers, x):
    """A network in plain NumPy, with what its hidden units read."""
    before = []
    for kernel, bias in layers[:-1]:
        before.append(x @ kernel + bias)
        x = np.maximum(before[-1], 0)
    return x @ layers[-1][0] + layers[-1][1], np.concatenate(before, axis=1)


def network(seed, name, index):
    """Layers and inputs of one network of the study, as float64 arrays."""
    with jax.enable_x64(True):
        return jax.device_get(draw(keys_of(seed, widths(name), index + 1)[index], widths(name)))


def measured(layers, inputs):
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), (layers, inputs))
        return jax.device_get(jax.jit(measure)(*wide, jax.random.key(3)))


def backwards(layers, x):
    """The Jacobian of the only output, row by row, with the chain rule written out."""
    _, before = forward(layers, x)
    sizes = np.cumsum([bias.size for _, bias in layers[:-1]])[:-1]
    masks = [part > 0 for part in np.split(before, sizes, axis=1)]
    hidden = [x]
    for (kernel, bias), mask in zip(layers, masks, strict=False):
        hidden.append((hidden[-1] @ kernel + bias) * mask)
    slope, columns = np.ones((len(x), 1)), []
    for (kernel, _), read, mask in zip(layers[::-1], hidden[::-1], [None, *masks[::-1]], strict=True):
        if mask is not None:
            slope = slope * mask
        columns = [(read[:, :, None] * slope[:, None, :]).reshape(len(x), -1), slope, *columns]
        slope = slope @ kernel.T
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("name", ["2_3_3_1", "3_3_3_1"])
def test_rank_is_that_of_certify_and_of_the_chain_rule(results, name):
    """Nine networks by a dense decomposition, two of them by the library's own certificate as well."""
    net = js.models.MLP(widths(name)[1:], "relu")
    own = results.isel(network=(results.widths == name).values)
    sym = None
    for index in range(9):
        layers, inputs = network(0, name, index)
        jacobian = backwards(layers, inputs)
        jacobian /= np.linalg.norm(jacobian, axis=1, keepdims=True)
        assert own.dimension[index] == np.linalg.matrix_rank(jacobian, tol=1e-10 * np.linalg.norm(jacobian))
        assert own.silent[index] == (jacobian == 0).all(axis=0).sum()
        _, before = forward(layers, inputs)
        assert own.dead[index] == (before <= 0).all(axis=0).sum()
        assert own.always_on[index] == (before > 0).all(axis=0).sum()
        if index < 2:
            params = {"params": {f"Dense_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(layers)}}
            sym = sym or js.discover(net.apply, params, inputs[:5])
            assert js.certify(net.apply, sym, params, inputs).rank == own.dimension[index]


def test_what_each_flaw_costs():
    """Networks made by hand: a dead unit, an always-on one, two of them, and a connection that never carries."""
    keys = jax.random.split(jax.random.key(1), 3)
    inputs = jax.random.normal(keys[0], (800, 2))
    kernel, out = jax.random.normal(keys[1], (2, 4)), jax.random.normal(keys[2], (4, 1))
    bound = js.count.functional_dimension((2, 4, 1))
    bias = jnp.array([0.1, -0.2, 0.3, -0.1])

    def found(bias):
        return measured([(kernel, bias), (out, jnp.ones(1))], inputs)

    plain = found(bias)
    assert (plain.dimension, plain.silent, plain.by_silent, plain.by_always_on) == (bound, 0, 0, 0)
    dead = found(bias.at[1].set(-100))
    assert (dead.dimension, dead.dead) == (js.count.functional_dimension((2, 3, 1)), 1)
    assert (dead.silent, dead.by_silent, dead.by_always_on) == (4, 3, 0)
    one = found(bias.at[1].set(100))
    assert (one.dimension, one.always_on, one.by_silent, one.by_always_on) == (bound - 1, 1, 0, 1)
    two = found(
        bias.at[jnp.array([1, 2])].set(100)
    )  # two linear units: a map from 2 to 1 and a shift remain of their 8
    assert (two.dimension, two.always_on, two.by_silent) == (bound - 4, 2, 0)
    assert two.by_always_on == 4

    apart = [
        (jnp.array([[1.0, -1.0]]), jnp.array([-1.0, -1.0])),  # active to the right of 1, to the left of -1
        (jnp.array([[1.0], [-1.0]]), jnp.array([-0.5])),  # active right of 1.5 alone: the second connection is silent
        (jnp.ones((1, 1)), jnp.ones(1)),
    ]
    line = jnp.linspace(-4, 4, 300)[:, None]
    silent = measured(apart, line)
    # the left unit reaches nothing: three silent parameters and its rescaling; the right one is linear wherever it matters
    assert (silent.silent, silent.by_silent, silent.dead, silent.always_on) == (3, 2, 0, 0)
    assert silent.dimension == np.linalg.matrix_rank(backwards(jax.device_get(apart), np.asarray(line, float)))


def test_chunks_of_inputs_change_nothing():
    layers, inputs = network(4, "2_3_3_1", 0)
    whole = measured(layers, inputs)
    assert len(inputs) % CHUNK
    again = measured(layers, np.concatenate([inputs, inputs[: 2 * CHUNK - len(inputs) % CHUNK]]))
    for field in set(whole._fields) - {"gap"}:
        assert getattr(whole, field) == getattr(again, field)
    assert whole.gap > 1e4 < again.gap


def test_a_network_is_the_same_whatever_else_is_run(results):
    alone = keys_of(0, (2, 4, 1), 2)
    np.testing.assert_array_equal(jax.random.key_data(alone), jax.random.key_data(keys_of(0, (2, 4, 1), 9)[:2]))
    assert not (jax.random.key_data(alone) == jax.random.key_data(keys_of(0, (2, 5, 1), 2))).all()
    layers, inputs = network(0, "2_4_1", 3)
    assert inputs.shape == (100 * num_parameters((2, 4, 1)), 2)
    assert measured(layers, inputs).dimension == results.dimension[(results.widths == "2_4_1").values][3]


def test_the_bound_holds_and_the_shortfall_is_accounted_for(results, summary):
    bounds = {"2_4_1": 13, "2_3_3_1": 19, "3_3_3_1": 22}  # parameters less hidden units, by hand
    assert dict(zip(results.architecture.values, results.bound.values, strict=True)) == bounds
    bound = np.array([bounds[name] for name in results.widths.values])
    rest = bound - results.dimension - results.by_silent - results.by_always_on
    assert int(rest.min()) >= 0  # the known directions lie in the kernel
    flawed = (results.dead + results.always_on + results.silent > 0).values
    assert not (flawed & (results.dimension.values == bound)).any()
    assert summary["bound_violations"] == 0
    assert summary["networks_without_clear_rank"] == 0
    assert summary["smallest_gap"] > 1e4
    for where in ("data", "anywhere"):
        known = results[f"trained_by_silent_{where}"] + results[f"trained_by_always_on_{where}"]
        assert int((results[f"trained_dimension_{where}"] + known).max()) <= 91 == int(results.trained_bound)
    assert int(results.trained_dimension_data.max()) <= int(results.trained_bound_data) == 91 - 5 * 3  # one-hot columns


def test_summary_is_recomputed_from_the_file(results, summary):
    assert summary == load("hidden_symmetries").summary(results)
    for name, bound in (("2_4_1", 13), ("2_3_3_1", 19)):
        own = results.dimension.values[results.widths.values == name]
        assert len(own) == 12
        assert summary[f"fraction_{name}"] == np.mean(own == bound)
        assert summary[f"mean_shortfall_{name}"] == pytest.approx(np.mean(bound - own))
    assert summary["fraction_2_4_1"] == 1
    assert summary["networks"] == 3 * 12 + 2 * 3 + 2 * 2 * 3 * results.sizes["step"]
    assert summary["test_error_he"] == pytest.approx(results.test_error.values[0, :, -1].mean())
    assert summary["trained_dimension_data_small_first"] == results.trained_dimension_data.values[1, :, 0].mean()


def test_training_is_measured_at_its_records(results):
    """The start of each trained network, drawn again and measured in NumPy."""
    assert results.step.values.tolist() == list(range(0, 21, 2))
    rows = js.data.titanic(0).train
    inputs = np.asarray(rows.inputs, np.float64)
    assert (results.distinct_units.isel(step=0) == 10).all()
    costs = results.training_cost.mean("trained")
    assert (costs.isel(step=-1) < costs.isel(step=0)).all()
    assert costs.sel(start="small").isel(step=0) == pytest.approx(np.log(2), abs=0.02)
    affine = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    assert np.linalg.matrix_rank(affine) == 13 - 3


def test_unclear_ranks_are_counted_and_named_apart(results):
    study = load("hidden_symmetries")
    changed = results.copy(deep=True)
    changed["gap"][2] = 10.0
    changed["dimension"][2] = 3
    summary = study.summary(changed)
    assert summary["networks_without_clear_rank"] == 1
    assert summary["fraction_2_4_1"] == 1  # of the eleven others
    assert "networks 2 (2_4_1)" in text(study.page(changed))
    changed["gap"][:] = 10.0
    assert study.summary(changed)["fraction_2_4_1"] is None
    assert "unclear" in str(study.page(changed))


def text(sections):
    return " ".join(paragraph for section in sections for paragraph in section.paragraphs)


def test_sentences_follow_the_figures(results):
    study = load("hidden_symmetries")
    assert "The bound is exceeded 0 times" in text(study.page(results))
    assert "any of them suffices" in text(study.page(results))
    changed = results.copy(deep=True)
    one, two = (changed.widths == "2_3_3_1").values, (changed.widths == "3_3_3_1").values
    changed["dimension"][one] = 20
    changed["dimension"][two] = 1
    changed["dead"][one] = 1
    changed["trained_dimension_data"][:] = 30
    said = text(study.page(changed))
    assert "The bound is exceeded 12 times" in said
    assert study.summary(changed)["bound_violations"] == 12
    assert "start he, the training inputs: does not vary" in said
    changed["dimension"][one] = 19
    said = text(study.page(changed))
    assert "the other way round from 2-3-3-1 to 3-3-3-1" in said
    assert "12 networks reach the bound with a dead" in said


def test_the_page(folder, summary):
    page = (folder / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img ") == len(list((folder / "figures").glob("*.png"))) == 4
    assert page.count("<img ") == len(re.findall(r"alt=\"[^\"]{30,}\"", page))
    assert f"{summary['fraction_2_3_3_1']:.3f}" in page


def test_the_record(results):
    assert results.attrs["study"] == "hidden_symmetries"
    assert all(array.attrs["long_name"] for array in results.data_vars.values() if array.ndim)
    assert not any(str(dim).startswith("dim_") for dim in results.dims)


@pytest.mark.parametrize("name", ["networks", "few", "trained", "steps"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        Config(**{name: 0})


@pytest.mark.parametrize("bad", ["", "2_1", "2_0_1", "2-4-1", "2_4_1,", "2_4_1, 2_5_1", "2_4_1,2_4_1", "10_500_1"])
def test_bad_architectures(bad):
    with pytest.raises(ValueError, match="architectures: "):
        Config(architectures=bad)


def test_bad_seed_and_fraction():
    with pytest.raises(ValueError, match="seed: got -1"):
        Config(seed=-1)
    with pytest.raises(ValueError, match="test_fraction: got 1"):
        Config(test_fraction=1.0)


def test_the_default_has_what_the_summary_is_asked_for():
    config = Config()
    assert {"2_4_1", "2_5_5_5_1", "5_10_10_1", "10_10_10_1"} <= set(config.architectures.split(","))
    assert min(config.networks, config.few) >= 80
    assert dataclasses.replace(config, seed=3).seed == 3


@pytest.mark.long
@pytest.mark.parametrize(("name", "low", "high"), [("2_4_1", 0.98, 1.0), ("2_5_5_5_1", 0.02, 0.1)])
def test_how_often_the_bound_is_reached(name, low, high):
    """The oracle: (2, 4, 1) always, to within a thousandth or so; (2, 5, 5, 5, 1) about 1 in 20. With networks of another seed."""
    shape = widths(name)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        ranks = np.asarray(
            parallel(lambda key: measure(*draw(key, shape), key=jax.random.key(0)).dimension)(keys_of(9, shape, 400))
        )
    reached = int((ranks == js.count.functional_dimension(shape)).sum())
    interval = stats.binomtest(reached, len(ranks)).proportion_ci(0.99, method="wilson")
    assert ranks.max() <= js.count.functional_dimension(shape)
    assert interval.low < high
    assert interval.high > low
