"""An inspection: somebody's network by name, its group, and what verification says of each factor."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from jaxsym.catalogue import find
from jaxsym.symmetry.checks import checked
from jaxsym.symmetry.discover import discover
from jaxsym.symmetry.group import Symmetry, columns
from jaxsym.symmetry.verify import Verification, verify

WANTED = "(apply, params, inputs): a function apply(params, *inputs), its parameters, and a tuple of its inputs"


class Network(NamedTuple):
    """A function, its parameters, and its inputs."""

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]


class Inspection(NamedTuple):
    """A group and its verification in float64 and in float32; none of a group that was found from shapes alone."""

    sym: Symmetry
    verifications: tuple[Verification, ...]

    @property
    def ok(self) -> bool:
        """No verification failed."""
        return all(verification.ok for verification in self.verifications)

    def __str__(self) -> str:
        """A table of residuals: each factor alone, then all together, then the tolerance."""
        if not self.verifications:
            return "not verified: there are shapes without values"
        rows: list[tuple[str, ...]] = [
            ("", "kind", "size", "copies", "first slot", "in float64", "in float32", "verdict")
        ]
        for i, factor in enumerate(self.sym.factors):
            slot = factor.slots[0]
            place = f"{'/'.join(slot.path)} axis {slot.axis}"
            residuals = [v.by_factor[i] for v in self.verifications]
            rows.append((str(i), factor.kind, str(factor.size), str(factor.copies), place, *self._judged(residuals)))
        rows.append(("", "all together", "", "", "", *self._judged([v.residual for v in self.verifications])))
        rows.append(("", "tolerance", "", "", "", *(f"{v.tolerance:.1e}" for v in self.verifications), ""))
        lines = columns(rows)
        precision = self.verifications[0].precision
        if precision != "float64":
            lines += [
                "",
                f"The function works in {precision} even where it is given float64; the tolerance is that of {precision}.",
            ]
        return "\n".join(lines)

    def _judged(self, residuals: list[float]) -> tuple[str, ...]:
        good = all(r <= v.tolerance for r, v in zip(residuals, self.verifications, strict=True))
        return (*(f"{residual:.1e}" for residual in residuals), "ok" if good else "FAILED")


def inspected(network: Network, key: Array) -> Inspection:
    """Discover the group of a network, and verify it in float64 and float32."""
    apply, params, inputs = network
    sym = discover(apply, params, *inputs)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((params, inputs))):
        return Inspection(sym, ())
    fine = verify(apply, sym, params, *inputs, key=key)
    return Inspection(sym, (fine, verify(apply, sym, params, *inputs, key=key, precision="float32")))


def load(target: str) -> Network:
    """The network that ``MODULE:FACTORY`` or ``path/to/file.py:FACTORY`` makes; modules of the current directory are found too.

    Raises
    ------
    ValueError
        If there is no such module or factory, one of them fails, or the factory returns something else or a network that
        :func:`jaxsym.symmetry.checks.checked` refuses; the message says which of these it is, and what is wanted.
    """
    name, _, attribute = target.rpartition(":")
    if not (name and attribute):
        msg = f"got {target!r}, expected MODULE:FACTORY, such as mynets:mlp or path/to/mynets.py:mlp."
        raise ValueError(msg)
    factory = _factory(_file(Path(name)) if name.endswith(".py") else _module(name), name, attribute)
    made = _guarded(f"{target} fails", factory)
    if not isinstance(made, tuple | list) or len(made) != 3:
        got = f"a {type(made).__name__} of {len(made)}" if isinstance(made, tuple | list) else _type(made)
        msg = f"{target} returned {got}, expected {WANTED}."
        raise ValueError(msg)
    apply, params, inputs = made
    if not callable(apply):
        hint = "; of a module pass its .apply" if hasattr(apply, "apply") else ""
        msg = f"{target} returned {_type(apply)} as apply, expected {WANTED}{hint}."
        raise ValueError(msg)
    if hasattr(inputs, "shape") and hasattr(inputs, "dtype"):
        inputs = (inputs,)
    if not isinstance(inputs, tuple):
        msg = f"{target} returned {_type(inputs)} as inputs, expected a tuple of them: (inputs,) for a single one."
        raise ValueError(msg)
    try:
        checked(apply, params, inputs, target)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error)) from error
    return Network(apply, params, inputs)


def _module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        msg = f"{name!r} is not the name of a module; for a file write path/to/file.py:FACTORY."
        raise ValueError(msg)
    here = str(Path.cwd())
    _search(here)

    def load_it() -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                return None
            raise

    module = _guarded(f"module {name} fails at import", load_it)
    if module is None:
        msg = f"module {name} not found, neither in {here} nor among the installed packages."
        raise ValueError(msg)
    return module


def _file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    if not path.is_file():
        msg = f"no such file: {path}."
        raise ValueError(msg)
    _search(str(path.parent))  # its neighbours, as for a script
    spec = importlib.util.spec_from_file_location(f"inspected_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    execute = spec.loader.exec_module
    _guarded(f"{path} fails at import", lambda: execute(module))
    return module


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _factory(module: ModuleType, name: str, attribute: str) -> Callable[[], Any]:
    if not hasattr(module, attribute):
        own = {n: thing for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
        usable = {n: thing for n, thing in own.items() if callable(thing) and not _needed(thing)}
        find(usable, attribute, f"factory of {name}")
    factory = getattr(module, attribute)
    if not callable(factory):
        msg = f"{name}:{attribute} is {_type(factory)}, expected a function without arguments that returns {WANTED}."
        raise ValueError(msg)
    needed = _needed(factory)
    if needed:
        msg = (
            f"{name}:{attribute} needs arguments ({', '.join(needed)}), expected none: give them defaults, or wrap it."
        )
        raise ValueError(msg)
    return factory


def _needed(factory: Callable[..., Any]) -> list[str]:
    """The parameters without a default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    """Call somebody else's code; what it raises is told in one line, with the place."""
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script may exit
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
        msg = f"{what}: {type(error).__name__}: {' '.join(str(error).split())}{where}"
        raise ValueError(msg) from error


def _type(thing: Any) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
