"""The project's own files: scripts that parse, a lock without addresses, a README whose commands exist."""

import re
import subprocess
import tomllib

import pytest

import jaxsym


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/demo", "scripts/test", ".ci/run"])
def test_scripts_parse_and_can_be_run(root, name):
    path = root / name
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True)


def test_the_lock_is_hashed_has_no_addresses_and_holds_every_dependency(root):
    lock = (root / "requirements.txt").read_text()
    assert "://" not in lock
    pins = re.findall(r"^([a-z0-9-]+)==[^\n]*((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)", lock, re.MULTILINE)
    locked = {name for name, _ in pins}
    assert len(pins) == len(re.findall(r"^[a-z0-9].*==", lock, re.MULTILINE))
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert re.split(r"[<>=\[]", requirement)[0] in locked


def test_the_version_is_one(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["version"] == jaxsym.__version__
    assert f"## {jaxsym.__version__}" in (root / "CHANGELOG.md").read_text()


def test_every_script_of_the_readme_exists(root):
    readme = (root / "README.md").read_text()
    named = set(re.findall(r"bash (scripts/\w+)", readme))
    assert {"scripts/demo", "scripts/test"} <= named
    assert all((root / name).is_file() for name in named)


def test_every_public_name_loads():
    for name in jaxsym.__all__:
        assert getattr(jaxsym, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxsym.nothing
    assert set(jaxsym.__all__) <= set(dir(jaxsym))


def test_the_program_of_the_readme_runs(root, python, tmp_path):
    program, *symmetry = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(program)
    (tmp_path / "symmetry.py").write_text("".join(symmetry))
    said = python(None, tmp_path / "symmetry.py")
    assert "\n2880 9\n" in said
    assert "nullity 9, orbit 9: complete\n" in said
    assert "rank 44, nullity 9" in said
    assert "a critical point" in said
    assert "the orbit lies in the null space" in said
    shape, distinct = python(None, script).splitlines()
    assert shape == "(200, 4)"
    assert float(distinct) > 3.9
