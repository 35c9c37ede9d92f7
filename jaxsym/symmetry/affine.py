"""The factors that translate parameters: translations, phases of sines, and signs that leave a shift behind."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsym.symmetry.atoms import leaves
from jaxsym.symmetry.elementwise import PERIODIC, SHIFTED
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.moves import Recipes, Translation, commuting, framed
from jaxsym.symmetry.overlaps import contrasts
from jaxsym.symmetry.rules import weigh
from jaxsym.symmetry.shift_rules import CATALOGUE
from jaxsym.symmetry.shifts import Variable
from jaxsym.symmetry.solve import Solver
from jaxsym.symmetry.trace import Equation, Program, Value
from jaxsym.symmetry.translations import Flip, Search
from jaxsym.symmetry.units import extra
from jaxsym.symmetry.weights import Shapes

MIXING = ("sign", "scaling", "general_linear", "orthogonal")
"""The kinds whose elements treat the units differently."""


def affine(program: Program, shapes: Shapes, solver: Solver, linear: Sequence[Factor]) -> tuple[Factor, ...]:
    """The factors that translate: translations, phases, and signs that leave a shift; ``linear`` are all others."""
    bent = [entry for name in BENDS for entry in _bent(program, shapes, solver, name)]
    flips: dict[Equation, list[Flip]] = defaultdict(list)
    for _, found in bent:
        for equation, flip in found:
            flips[equation].append(flip)
    search = Search(program, shapes, solver.known, CATALOGUE, flips)
    recipes, moves = Recipes(program, search.known.derived.values()), search.moves()
    wholes = {variable: recipes.translation(variable, moved) for variable, moved in moves.items()}
    translations = {
        v: moved for v, moved in moves.items() if not (v.flip or _uneven(v, v.even, linear) or _turned(v, linear))
    }
    sums = contrasts(search, translations, lambda v, axis: not _uneven(v, frozenset({v.kept[axis]}), linear))
    plain = [dataclasses.replace(wholes[v], contrast=axes) for v, axes in sums.items() if axes is not None]
    factors = []
    plain = commuting(sorted(plain, key=lambda one: len(one.variable.constant)))
    for whole in plain:
        shape = whole.shape
        slots = _translated(program, whole)
        factors.append(Factor("translation", shape[-1], math.prod(shape[:-1]), slots, shape, (), whole))
    for factor, found in bent:
        variable = found[0][1].variable
        if variable in search.dead:
            continue
        if factor.kind == "phase" and [value.shape for value in moves.get(variable, ())] != [(factor.size,)]:
            continue  # the half period must be taken up by one bias
        taken = framed(wholes[variable], plain) if variable in wholes else None
        slots = factor.slots if taken is None else (*factor.slots, *_translated(program, taken))
        classes = () if factor.kind == "phase" else factor.classes
        factors.append(factor._replace(slots=slots, classes=classes, whole=taken))
    return tuple(sorted(factors, key=lambda factor: factor.kind == "sign"))


def _uneven(variable: Variable, axes: frozenset[int], linear: Sequence[Factor]) -> bool:
    """Whether another factor would make a translation that is even along some axes uneven: the two generate more than is known."""
    path = tuple(variable.leaf.path.split("/"))
    return variable.along is None and any(
        not axes.isdisjoint(slot.axes)
        for factor in linear
        if factor.kind in MIXING
        and factor.classes != (-1,)
        and not (factor.kind == "orthogonal" and extra(factor, factor.slots[0]))
        for slot in factor.slots
        if slot.path == path
    )


def _turned(variable: Variable, linear: Sequence[Factor]) -> bool:
    """Whether rotations would turn a translation in the frame of gains, which no element knows: it would depend on the parameters."""
    path = tuple(variable.leaf.path.split("/"))
    return variable.unit is None and any(
        slot.frame is not None and slot.path == path and slot.axis in variable.kept
        for factor in linear
        for slot in factor.slots
    )


class Bend(NamedTuple):
    """How a sign of units leaves a shift behind."""

    kind: str
    """Of the factor."""
    curved: Callable[[Equation], bool]
    """Which equations do so."""
    signed: Callable[[Equation], Value]
    """What changes its sign there: the operand, or the result alone."""
    left: Callable[[Equation, Mapping[Value, int]], Mapping[str, Any]]
    """What is left to be taken up, as fields of a flip, where these leaves change their signs on these axes."""


BENDS = {
    "phase": Bend("phase", lambda e: e.primitive in PERIODIC, lambda e: e.outputs[0], lambda e, _: {"before": math.pi}),
    "shifted": Bend(
        "sign", lambda e: e.primitive in SHIFTED, lambda e: e.inputs[0], lambda e, _: {"after": -SHIFTED[e.primitive]}
    ),
    "skewed": Bend(
        "sign",
        lambda e: bool(e.params.get("skew")),
        lambda e: e.inputs[0],
        lambda e, signs: {"skew": e.params["skew"], "leaves": signs},
    ),
}
"""Of sines by half a period, of sigmoids, and of functions with ``f(x) - f(-x)`` linear; named as ``weigh`` names them."""


def _bent(
    program: Program, shapes: Shapes, solver: Solver, name: str
) -> Iterator[tuple[Factor, list[tuple[Equation, Flip]]]]:
    """Signs of units that leave a shift, and the flips by which each does."""
    bend = BENDS[name]
    curved = [equation for equation in program.equations if bend.curved(equation)]
    if not curved:
        return
    for target, solution, factor in solver.further(weigh(program, shapes, sign=True, bend=name), bend.kind):
        variable = Variable(Value((factor.size,), np.dtype("float32"), "units"), frozenset(), flip=True)
        signed = [
            slot for slot, weight in solution.items() if weight and slot[0].origin == "parameter" and slot[1] >= 0
        ]
        signs = {value: axis for value, axis, _ in signed}
        once = len(signs) == len(signed) and all(v.shape[i] == factor.size for v, i in signs.items())
        if name == "skewed" and not once:  # a part of a leaf
            continue
        found = []
        for equation in curved:
            value = bend.signed(equation)
            on = [
                axis
                for axis in range(len(value.shape))
                if any(solution.get((value, axis, n)) for n in range(len(leaves(shapes.axes(value)[axis]))))
            ]
            if on:
                found.append((equation, Flip(variable, on[0], **bend.left(equation, signs))))
                whole = (
                    len(on) == 1 and leaves(shapes.axes(value)[on[0]]) == [target] and value.shape[on[0]] == factor.size
                )
                if not whole:
                    break
        else:
            if found and factor.copies == 1:
                yield factor, found


def _translated(program: Program, whole: Translation) -> tuple[Slot, ...]:
    """Where a translation sits in each leaf, and its coefficient."""
    slots = []
    for path, shift in whole.touched.items():
        shape, ((_, place), coefficient) = program.parameters[path].shape, next(iter(shift.items()))
        axis = max((i for i, c in enumerate(place) if c is not None), default=0)
        own = path == whole.variable.leaf.path
        blocks = {a: (start, stop) for a, start, stop in whole.variable.block} if own else {}
        span = blocks.get(axis, (0, shape[axis] if shape else 1))
        slots.append(Slot(tuple(path.split("/")), axis, span, coefficient, (), np.zeros(0, int)))
    return tuple(slots)
