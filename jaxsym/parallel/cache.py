"""What JAX compiles, kept on disk from one run of a program to the next."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax


def keep_compiled() -> Path | None:
    """Turn on JAX's persistent cache, in a folder of this user and this kind of CPU; for programs, not for libraries.

    ``JAX_COMPILATION_CACHE_DIR``, if set, names the folder, and an empty value turns the cache off. Otherwise it lies in
    ``XDG_CACHE_HOME``, or in ``~/.cache``. It may be deleted at any time.

    Returns
    -------
    Path or None
        The folder; None where there is none that can be written to.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given is not None:
        return Path(given) if given else None  # JAX reads it by itself
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "jaxsym" / f"compiled-{_machine()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home, or nothing to be written there: it works without
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _machine() -> str:
    """A name for what code for this CPU may rely on: code for another one could stop with an illegal instruction."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    except OSError:  # not Linux
        pass
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
