"""The cache of compiled programs: found again by the next process, never in the way."""

import os
import stat
import subprocess
import sys

import pytest

from jaxsym.parallel import cache

PROGRAM = """
import jax, jax.numpy as jnp
from jaxsym.parallel.cache import keep_compiled
print(keep_compiled())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(7)).block_until_ready()
print(events.count("/jax/compilation_cache/cache_hits") > 0)
"""


def run(**changes):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    result = subprocess.run(command, env=environment | changes, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_next_process_finds_what_was_compiled(tmp_path):
    folder, hit = run(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "jaxsym"))
    assert hit == "False"
    assert len(os.listdir(folder)) > 0
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [folder, "True"]


def test_the_environment_names_another_folder(tmp_path):
    given = tmp_path / "given"
    assert run(JAX_COMPILATION_CACHE_DIR=str(given), XDG_CACHE_HOME=str(tmp_path / "xdg")) == [str(given), "False"]
    assert len(os.listdir(given)) > 0
    assert not (tmp_path / "xdg").exists()


def test_no_cache_is_no_failure(tmp_path):
    (tmp_path / "file").touch()
    assert run(XDG_CACHE_HOME=str(tmp_path / "file")) == ["None", "False"]
    assert run(JAX_COMPILATION_CACHE_DIR="", XDG_CACHE_HOME=str(tmp_path / "xdg")) == ["None", "False"]
    assert not (tmp_path / "xdg").exists()


def test_another_processor_has_another_folder(monkeypatch):
    here = cache._machine()
    assert here == cache._machine()
    monkeypatch.setattr(cache.platform, "machine", lambda: "another")
    assert cache._machine() != here


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_the_commands_turn_it_on(command, monkeypatch, tmp_path):
    """Before any work is done: the call is all that is needed here."""
    from jaxsym import cli

    class Called(Exception):
        pass

    def called():
        raise Called

    monkeypatch.setattr(cache, "keep_compiled", called)
    what = {"run": "titanic", "sweep": str(tmp_path / "file.toml")}[command]
    with pytest.raises(Called):
        cli.main([command, what, "--out", str(tmp_path / "out")])
