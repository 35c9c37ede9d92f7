"""The floors of the house, read from the imports: a module imports from lower floors only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jaxsym"
FLOORS = [
    {"catalogue", "loading", "tree", "parallel", "models", "data"},
    {"symmetry"},
    {"equivariant", "training", "curvature", "dynamics", "alignment", "compression", "posterior", "plots"},
    {"sweep"},
    {"studies"},
    {"report", "sweep_page", "display", "cli", "__main__", "__init__"},
]
ALLOWED = {
    ("posterior", "alignment"),
    ("cli", "report"),
    ("cli", "display"),
    ("report", "sweep_page"),
    ("__main__", "cli"),
}
WITHIN_GROUND = {("models", "catalogue"), ("loading", "catalogue"), ("parallel", "tree"), ("data", "tree")}


def floor_of(room):
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


def modules():
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source):
    """Names of the modules of this package that a source text imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "jaxsym"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            module = node.module or ""
            if module == "jaxsym":
                names |= {f"jaxsym.{alias.name}" for alias in node.names}
            elif module.startswith("jaxsym."):
                names |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("jaxsym.") for name in names}


def violations(room, names):
    """The imports of a room that break the floors."""
    bad = []
    for name in names:
        other = name.split(".")[0]
        if other in ("use_all_cores", "__version__"):  # of the engine, by way of the package
            other = "parallel"
        lower = floor_of(other) < floor_of(room)
        if other != room and not lower and (room, other) not in ALLOWED | WITHIN_GROUND:
            bad.append(name)
    return bad


@pytest.mark.parametrize("name", [name for name in modules() if name != "__init__"])
def test_a_module_imports_from_lower_floors_only(name):
    room = name.split(".")[0]
    assert not violations(room, imported(modules()[name].read_text()))


def test_a_violation_is_found():
    source = "def f():\n    from jaxsym.studies import study\n    from jaxsym import cli\n"
    assert set(violations("training", imported(source))) == {"studies.study", "cli"}
    assert violations("studies", {"training.probes", "plots"}) == []


def test_packages_are_free_of_circles():
    names = modules()
    known = {name.removesuffix(".__init__") for name in names}

    def target(name):
        return name if name in known else name.rpartition(".")[0]

    graph = {
        name: {target(other) for other in imported(path.read_text())} & known
        for name, path in names.items()
        if not name.endswith("__init__")
    }
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"circle: {open_} {name}"
        if name in done or name not in graph:
            return
        open_.append(name)
        for other in graph[name]:
            visit(other)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)
    assert len(done) == len(graph) > 10


@pytest.mark.parametrize("path", modules().values(), ids=modules())
def test_no_hidden_randomness_pickle_private_jax_or_global_switch(path):
    source = path.read_text()
    for word in ("np.random", "numpy.random", "pickle", "jax._src", "jax_enable_x64"):
        assert word not in source


def test_import_does_no_work_and_is_lazy(python):
    code = "import sys, jaxsym; print(*[name for name in ('flax', 'xarray', 'matplotlib', 'optax') if name in sys.modules])"
    assert python(code).strip() == ""


def test_the_function_hides_the_module_of_the_same_name(python):
    assert "function" in python("import jaxsym.studies, jaxsym.parallel, jaxsym; print(jaxsym.parallel)")
