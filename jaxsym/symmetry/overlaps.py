"""Where two translations do the same: of the shifts that several of them share, one gives up its own.

A row shift of an embedding and a column shift have the shift of all entries in common. What a translation does when it is constant along some of its
axes is compared, symbol by symbol, with what the others do; where it is a combination of theirs, its parts along that axis must add up to 0.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxsym.symmetry.shifts import Shift, Variable
from jaxsym.symmetry.trace import Value
from jaxsym.symmetry.translations import Search

Moves = Mapping[Value, Shift]


def contrasts(
    search: Search, moves: Mapping[Variable, Moves], even: Callable[[Variable, int], bool]
) -> dict[Variable, frozenset[int] | None]:
    """For each translation the axes of its core along which it must add up to 0; None where others do all that it does.

    ``even(variable, axis)`` tells whether all other factors treat the units of that axis alike, so that a sum of 0 stays one.
    """
    found: dict[Variable, frozenset[int] | None] = dict.fromkeys(moves, frozenset())
    kept: dict[tuple[int, ...], list[tuple[Variable, tuple[int, ...]]]] = defaultdict(list)
    for variable in moves:
        axes = range(len(variable.shape))
        for number in range(len(axes) + 1):
            for dropped in itertools.combinations(axes, number):
                kept[tuple(n for i, n in enumerate(variable.shape) if i not in dropped)].append((variable, dropped))
    for shape in sorted(kept, key=lambda shape: (-math.prod(shape), shape)):
        common = Variable(Value(shape, np.dtype("float64"), "units"), frozenset())
        span: dict[Any, dict[Any, float]] = {}
        rank = lambda item: (-len(item[1]), len(item[1]) == 1 and even(item[0], item[1][0]))  # noqa: E731
        for variable, dropped in sorted(kept[shape], key=rank):
            own = found[variable]
            if own is None or own & set(dropped):
                continue
            if not _new(span, _restricted(search, moves[variable], variable, dropped, common)):
                if not dropped:
                    found[variable] = None
                elif len(dropped) == 1 and even(variable, dropped[0]):
                    found[variable] = own | set(dropped)
    return found


def _restricted(
    search: Search, moved: Moves, variable: Variable, dropped: tuple[int, ...], common: Variable
) -> dict[Any, float]:
    """What a translation does to every leaf when it is constant along some axes of its core."""
    core, _ = search.algebra.own(common)
    left = [i for i in range(len(variable.shape)) if i not in dropped]
    inside = tuple(left.index(i) if i in left else None for i in range(len(variable.shape)))
    shifts = {leaf: search.substituted(shift, variable, core, inside) for leaf, shift in moved.items()}
    return {(leaf, *term): c for leaf, shift in shifts.items() for term, c in shift.items()}


def _new(span: dict[Any, dict[Any, float]], vector: dict[Any, float]) -> bool:
    """Whether a vector is outside of the span, which then grows by it."""
    current = dict(vector)
    for pivot, row in span.items():
        factor = current.get(pivot, 0.0) / row[pivot]
        if factor:
            current = {k: current.get(k, 0.0) - factor * row.get(k, 0.0) for k in dict.fromkeys((*current, *row))}
    largest = max(map(abs, vector.values()), default=0.0)
    current = {k: c for k, c in current.items() if abs(c) > 1e-9 * largest}
    if not current:
        return False
    pivot = max(current, key=lambda k: abs(current[k]))
    span[pivot] = current
    return True
