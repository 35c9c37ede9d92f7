"""An inspection: somebody's network by name, its group, and what verification says of each factor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from jaxsym.loading import described, guarded, load_function, needed
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
    wanted = f"a function without arguments that returns {WANTED}"
    factory = load_function(target, wanted, suits=lambda thing: not needed(thing))
    if needed(factory):
        msg = f"{target} needs arguments ({', '.join(needed(factory))}), expected none: give them defaults, or wrap it."
        raise ValueError(msg)
    made = guarded(f"{target} fails", factory)
    if not isinstance(made, tuple | list) or len(made) != 3:
        got = f"a {type(made).__name__} of {len(made)}" if isinstance(made, tuple | list) else described(made)
        msg = f"{target} returned {got}, expected {WANTED}."
        raise ValueError(msg)
    apply, params, inputs = made
    if not callable(apply):
        hint = "; of a module pass its .apply" if hasattr(apply, "apply") else ""
        msg = f"{target} returned {described(apply)} as apply, expected {WANTED}{hint}."
        raise ValueError(msg)
    if hasattr(inputs, "shape") and hasattr(inputs, "dtype"):
        inputs = (inputs,)
    if not isinstance(inputs, tuple):
        msg = f"{target} returned {described(inputs)} as inputs, expected a tuple of them: (inputs,) for a single one."
        raise ValueError(msg)
    try:
        checked(apply, params, inputs, target)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error)) from error
    return Network(apply, params, inputs)
