"""Functions of users by their name: ``MODULE:FUNCTION`` or ``path/to/file.py:FUNCTION``, with errors in one line."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxsym.catalogue import find


def load_function(
    target: str, wanted: str, suits: Callable[[Any], bool] = callable, base: Path | None = None
) -> Callable[..., Any]:
    """The function that ``MODULE:FUNCTION`` or ``path/to/file.py:FUNCTION`` names; modules of the current directory are found too.

    Parameters
    ----------
    target
        The name.
    wanted
        What it is expected to be, for the messages.
    suits
        Which functions of the module a message about a wrong name may propose.
    base
        The folder that a relative path is seen from, and whose modules are found first; the current directory when None.

    Raises
    ------
    ValueError
        If there is no such module or function, or the module fails at import; the message says which of these it is.
    """
    name, _, attribute = target.rpartition(":")
    if not (name and attribute):
        msg = f"got {target!r}, expected MODULE:FACTORY, such as mynets:mlp or path/to/mynets.py:mlp."
        raise ValueError(msg)
    base = base or Path.cwd()
    module = _file(base / Path(name).expanduser()) if name.endswith(".py") else _module(name, base)
    if not hasattr(module, attribute):
        own = {n: thing for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
        find(
            {n: thing for n, thing in own.items() if callable(thing) and suits(thing)}, attribute, f"factory of {name}"
        )
    function = getattr(module, attribute)
    if not callable(function):
        msg = f"{target} is {described(function)}, expected {wanted}."
        raise ValueError(msg)
    return function


def needed(function: Callable[..., Any]) -> list[str]:
    """The parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def guarded(what: str, call: Callable[[], Any]) -> Any:
    """Call somebody else's code; what it raises is told in one line, with the place.

    Raises
    ------
    ValueError
        In place of whatever the call raises, an exit too, but for a keyboard interrupt.
    """
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script may exit
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
        msg = f"{what}: {type(error).__name__}: {' '.join(str(error).split())}{where}"
        raise ValueError(msg) from error


def described(thing: Any) -> str:
    """What kind of thing it is, for a message.

    >>> described([1]), described(None)
    ('a list', 'None')
    """
    return "None" if thing is None else f"a {type(thing).__name__}"


def _module(name: str, base: Path) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        msg = f"{name!r} is not the name of a module; for a file write path/to/file.py:FACTORY."
        raise ValueError(msg)
    _search(str(base))

    def load_it() -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                return None
            raise

    module = guarded(f"module {name} fails at import", load_it)
    if module is None:
        msg = f"module {name} not found, neither in {base} nor among the installed packages."
        raise ValueError(msg)
    return module


def _file(path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        msg = f"no such file: {path}."
        raise ValueError(msg)
    _search(str(path.parent))  # its neighbours, as for a script
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    execute = spec.loader.exec_module
    guarded(f"{path} fails at import", lambda: execute(module))
    return module


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)
