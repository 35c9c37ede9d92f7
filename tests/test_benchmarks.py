"""The benchmarks of engine and curvature: everybody computes the same, differences are found, operations and goals are counted rightly."""

import importlib.util
import json

import jax
import numpy as np
import pytest

SHAPE = "3-5-2:7:6:2"


@pytest.fixture
def modules(root, monkeypatch):
    """The modules beside the script, which finds them in its own folder."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("contenders"), importlib.import_module("scores")


def value_and_gradient(params, x, labels):
    """The loss of the two layers and its gradient, written out, in float64."""
    weights, biases, readout, offsets = params
    hidden = np.tanh(x @ weights + biases)
    outputs = hidden @ readout + offsets
    chances = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    errors = (chances - np.eye(chances.shape[1])[labels]) / len(x)
    inner = (errors @ readout.T) * (1 - hidden**2)
    value = -np.log(chances[np.arange(len(x)), labels]).mean()
    return value, [x.T @ inner, inner.sum(0), hidden.T @ errors, errors.sum(0)]


def trained(kind, params, rate, steps, x, labels):
    """The loss after a few steps."""
    first = second = [np.zeros_like(leaf) for leaf in params]
    for step in range(1, steps + 1):
        _, gradient = value_and_gradient(params, x, labels)
        if kind == "adam":
            first = [0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True)]
            second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, gradient, strict=True)]
            means, squares = ([m / (1 - b**step) for m in s] for s, b in ((first, 0.9), (second, 0.999)))
            gradient = [m / (np.sqrt(v) + 1e-8) for m, v in zip(means, squares, strict=True)]
        params = [p - rate * g for p, g in zip(params, gradient, strict=True)]
    return value_and_gradient(params, x, labels)[0]


def size_of_product(params, direction, x, labels, h=1e-5):
    """The length of Hessian times direction, by central differences of the gradient."""
    moved = ([p + s * h * d for p, d in zip(params, direction, strict=True)] for s in (1, -1))
    up, down = (value_and_gradient(point, x, labels)[1] for point in moved)
    return np.sqrt(sum((((a - b) / (2 * h)) ** 2).sum() for a, b in zip(up, down, strict=True)))


@pytest.mark.long
def test_everybody_computes_what_is_written_out(root, python, modules, tmp_path):
    contenders, _ = modules
    figures, picture = tmp_path / "figures.json", tmp_path / "costs.png"
    script = root / "benchmarks" / "ensemble.py"
    said = python(None, script, "--quick", "--shapes", SHAPE, "--rounds", 1, "--json", figures, "--figure", picture)
    found = json.loads(figures.read_text())
    names = [contenders.OURS, contenders.PLAIN, contenders.BY_HAND, contenders.STEPS]
    names += [contenders.FUNC, contenders.MODULES] if importlib.util.find_spec("torch") else []
    assert ("torch: unavailable" in said) == (importlib.util.find_spec("torch") is None)
    assert [task["kind"] for task in found["tasks"]] == ["sgd", "adam", "hvp"]
    for task in found["tasks"]:
        expected = set(names) - ({contenders.BY_HAND} if task["kind"] == "hvp" else set())
        assert set(task["times"]) == set(task["values"]) == expected
        given = contenders.problem(contenders.Shape(**task["shape"]))
        x = given.x.astype(float)
        values = []
        for i in range(task["shape"]["networks"]):
            start, direction = ([leaf[i].astype(float) for leaf in leaves] for leaves in given[2:])
            if task["kind"] == "hvp":
                values.append(size_of_product(start, direction, x, given.labels))
            else:
                rate = contenders.RATES[task["kind"]]
                values.append(trained(task["kind"], start, rate, task["shape"]["steps"], x, given.labels))
        assert np.ptp(values) > 0.01  # the networks are not one and the same
        for name, results in task["values"].items():
            np.testing.assert_allclose(results, values, rtol=1e-4, err_msg=f"{task['kind']}, {name}")
    few, many = found["costs"]["memory"]["chunk 16"].values()
    assert many < 2 * few  # 64 times as many networks
    assert many < found["costs"]["memory"][contenders.PLAIN]["4096"] / 16
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "no goal is judged" in said


def test_a_difference_is_an_error_and_names_who_is_off(modules):
    contenders, _ = modules
    right = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert contenders.agree({"a": right, "b": right[:1]}) == 0
    assert contenders.agree({"a": right, "b": right * (1 + 5e-4), "c": right}) == pytest.approx(5e-4, rel=1e-2)
    for wrong in (right * (1 + 2e-3), right + np.array([0, 0.02])):
        with pytest.raises(RuntimeError, match="'b' is the furthest off"):
            contenders.agree({"a": right, "b": wrong, "c": right})
    with pytest.raises(RuntimeError, match="of 'b' are not all finite"):
        contenders.agree({"a": right, "b": np.full_like(right, np.nan), "c": right})


def products(jaxpr):
    """Additions and multiplications of all matrix products of a jaxpr without inner ones."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * terms * equation.outvars[0].aval.size
    return total


def test_the_operations_counted_are_those_of_the_programs(modules):
    contenders, _ = modules
    shape = contenders.Shape(3, 5, 2, 7, networks=1, steps=1)
    given = contenders.problem(shape)
    batch, start = (given.x, given.labels), tuple(leaf[0] for leaf in given.starts)
    step, end = (products(jax.make_jaxpr(f)(start, batch).jaxpr) for f in (jax.grad(contenders.loss), contenders.loss))
    assert contenders.flops(contenders.Task("sgd", shape)) == step + end
    assert contenders.flops(contenders.Task("adam", shape._replace(steps=4, networks=3))) == 3 * (4 * step + end)
    product = jax.make_jaxpr(lambda p: contenders.hessian_vector(p, p, batch))(start)
    gradient_itself = 2 * 7 * (3 * 5 + 5 * 2)  # its last products are written down, but nobody asks for them
    assert contenders.flops(contenders.Task("hvp", shape)) == products(product.jaxpr) - gradient_itself


def test_goals_are_judged_by_what_was_measured(modules):
    contenders, scores = modules

    def row(own, plain, by_hand, func):
        medians = {contenders.OURS: own, contenders.PLAIN: plain, contenders.BY_HAND: by_hand, contenders.FUNC: func}
        return {"kind": "sgd", "times": {name: {"median": median} for name, median in medians.items()}}

    rows = [row(1.0, 9.0, 8.0, 4.0), row(2.0, 1.8, 3.0, 8.0)]
    mean, func, worst = scores.verdicts(rows)
    assert (mean["measured"], mean["reached"]) == (pytest.approx((8 * 0.9) ** 0.5), True)
    assert (func["measured"], func["reached"]) == (pytest.approx(4.0), False)
    assert (worst["measured"], worst["reached"]) == (pytest.approx(0.9), False)


@pytest.mark.long
def test_curvature_is_the_same_by_everybody(root, python, tmp_path):
    figures = tmp_path / "figures.json"
    script = root / "benchmarks" / "curvature.py"
    said = python(None, script, "--quick", "--only", "gradient", "hvp", "ensemble", "--json", figures)
    (run,) = json.loads(figures.read_text())["runs"]
    assert (run["threads"], list(run["tasks"])) == (1, ["gradient", "hvp", "ensemble"])
    for task, result in run["tasks"].items():
        for name, row in result["rows"].items():
            assert row["median"] > 0, (task, name)
            assert row["error"] < 1e-4, (task, name)
        assert result["difference"] is None or result["difference"] < 1e-4
    if importlib.util.find_spec("torch") is None:
        assert "torch: unavailable" in said
        assert "torch by hand" in run["tasks"]["ensemble"]["missing"]


def test_goals_of_curvature_are_judged_by_what_was_measured(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    curvature = importlib.import_module("curvature")

    def rows(own, others, effort=20):
        return {"rows": {name: {"median": s, "error": e, "effort": effort} for name, s, e in [own, *others]}}

    ours, peer, late = curvature.OURS, curvature.CURVLINOPS, curvature.PYHESSIAN
    results = {
        "gradient": rows((curvature.JAX, 1.0, 0), []),
        "hvp": rows((ours, 2.0, 0), []),
        "top": rows((ours, 44.0, 0), [(peer, 22.0, 0), (late, 1.0, 0.5)]),
        "density": rows((ours, 2100.0, 0), [(peer, 2310.0, 0)]),
        "ensemble": rows((ours, 1.0, 0), [(peer, 9.0, 0), (curvature.JAX, 0.1, 0)]),
    }
    found = {(goal["task"], goal["against"]): goal for goal in curvature.verdicts(1, results)}
    judged = {key: (pytest.approx(goal["measured"]), goal["reached"]) for key, goal in found.items()}
    assert judged == {
        ("hvp, 1 thread", "over a gradient, at most"): (2.0, True),
        ("top, 1 thread", "over its products, at most"): (1.1, True),
        ("density, 1 thread", "over its products, at most"): (2.1, False),
        ("top, 1 thread", f"{peer}, times ours at least"): (0.5, False),
        ("top, 1 thread", f"{late}, times ours at least"): (float("inf"), True),
        ("density, 1 thread", f"{peer}, times ours at least"): (1.1, True),
        ("ensemble, 1 thread", f"{peer}, times ours at least"): (9.0, False),
    }
