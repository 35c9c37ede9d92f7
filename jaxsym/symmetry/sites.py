"""What the units of a group compute: the values of a program in which they appear, for given parameters and inputs."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsym import tree
from jaxsym.symmetry.atoms import Atom, leaves
from jaxsym.symmetry.checks import checked
from jaxsym.symmetry.discover import tied
from jaxsym.symmetry.factors import Factor, Slot
from jaxsym.symmetry.group import Symmetry
from jaxsym.symmetry.host import run
from jaxsym.symmetry.solve import slot_of
from jaxsym.symmetry.trace import Equation, Program, Value, trace
from jaxsym.symmetry.units import gathered, numbers
from jaxsym.symmetry.weights import Shapes

READERS = ("dot_general", "conv_general_dilated")
"""What reads units: their operands are what the units compute."""
Sites = dict[int, list[Float[Array, "*copies size samples"]]]
"""The number of a permutation -> what its units compute, at every place where they are read."""


def activations(apply: Callable[..., Any], sym: Symmetry, params: PyTree, *inputs: Any) -> Callable[..., Sites]:
    """A function ``(params, *inputs)`` to what the units of every permutation compute, for inputs of these shapes, in float64.

    Units are seen where a linear map reads them; where none does, at the last value that holds them. Inside loops nothing is seen but what leaves them: a
    permutation whose units stay inside has no places.

    Raises
    ------
    TypeError, ValueError
        As :func:`jaxsym.discover`.
    """
    checked(apply, params, inputs, "activations")
    program = trace(apply, params, *inputs)
    made = makers(program)
    readers = {value for e in program.equations if e.primitive in READERS for value in e.inputs}
    shapes = tied(program)
    moving = [value for value in dependent(made, program.inputs) if value in made and not value.loops]
    places = {i: _places(program, shapes, sym.factors[i], moving, readers) for i in numbers(sym, "permutation")}

    def compute(known: dict[Value, Any]) -> Sites:
        return {i: [gathered(computed(known, made, value), slot) for value, slot in own] for i, own in places.items()}

    return seen(program, compute)


def seen(program: Program, compute: Callable[[dict[Value, Any]], Any]) -> Callable[..., Any]:
    """``(params, *inputs)`` to what ``compute`` makes of the values at the program's beginning, compiled, in float64."""

    @jax.jit
    def compiled(params: PyTree, *inputs: Any) -> Any:
        given = [(program.parameters[path], leaf) for path, leaf in tree.leaves(params).items()]
        given += zip(program.inputs, jax.tree.leaves(inputs), strict=True)
        return compute({value: leaf.astype(value.dtype) for value, leaf in given})

    def widely(params: PyTree, *inputs: Any) -> Any:
        with jax.enable_x64(True):
            return compiled(*jax.tree.map(jax.numpy.asarray, (params, *inputs)))

    return widely


def makers(program: Program) -> dict[Value, Equation]:
    """Value -> the equation that computes it; of what leaves a loop or a branch, the whole."""
    equations = (*program.equations, *program.whole)
    return {output: equation for equation in equations for output in equation.outputs if equation.bind}


def computed(known: dict[Value, Any], made: dict[Value, Equation], target: Value) -> Any:
    """A value, and all that it is made of."""
    todo = [target]
    while todo:
        value = todo[-1]
        if value in known:
            todo.pop()
        elif value.constant is not None:
            known[value] = jax.numpy.asarray(value.constant)
        else:
            equation = made[value]
            missing = [one for one in equation.inputs if one not in known]
            if missing:
                todo += missing
            elif len(equation.outputs) == 1 and equation.primitive not in ("scan", "cond", "while"):
                known[value] = run(equation, [known[one] for one in equation.inputs])
            else:
                assert equation.bind is not None
                given = [known[one].astype(one.dtype) for one in equation.inputs]
                results = equation.bind(*given)
                known.update(zip(equation.outputs, results, strict=True))
    return known[target]


def dependent(made: dict[Value, Equation], sources: Iterable[Value]) -> dict[Value, None]:
    """Some values and those that depend on them."""
    found = dict.fromkeys(sources)
    size = -1
    while size < len(found):  # loops come last in ``made``, what reads them before
        size = len(found)
        for value, equation in made.items():
            if any(one in found for one in equation.inputs):
                found[value] = None
    return found


def _places(
    program: Program, shapes: Shapes, factor: Factor, values: Sequence[Value], readers: set[Value]
) -> list[tuple[Value, Slot]]:
    """The values that hold the units of a factor, and where."""
    common = _common(program, shapes, factor)
    if common is None:
        return []
    *copies, units = common
    found = []
    for value in values:
        if not shapes.knows(value) or not all(copy in _atoms(shapes, value) for copy in copies):
            continue
        for axis, own in enumerate(shapes.axes(value)):
            for number, leaf in enumerate(leaves(own)):
                if leaf is units:
                    found.append((value, slot_of(shapes, value, axis, number, copies, 1.0)))
    return [place for place in found if place[0] in readers] or found[-1:]


def _common(program: Program, shapes: Shapes, factor: Factor) -> tuple[Atom, ...] | None:
    """The atoms of a factor, copies before units: those by which its slots are what they are. None where there are no such ones in this program."""
    slots = [(program.parameters["/".join(slot.path)], slot) for slot in factor.slots]
    (value, _), *_ = slots
    atoms = list(dict.fromkeys(_atoms(shapes, value)))
    for some in itertools.permutations(atoms, len(factor.shape)):
        if tuple(atom.size for atom in some) == factor.shape and all(_fits(shapes, *place, some) for place in slots):
            return some
    return None


def _fits(shapes: Shapes, value: Value, slot: Slot, atoms: tuple[Atom, ...]) -> bool:
    """Whether a slot holds these copies and units."""
    *copies, units = atoms
    if not all(copy in _atoms(shapes, value) for copy in copies):
        return False
    own = leaves(shapes.axes(value)[slot.axis])
    tried = (slot_of(shapes, value, slot.axis, i, copies, 1.0) for i, leaf in enumerate(own) if leaf is units)
    return any(np.array_equal(one.where, slot.where) and one.axes == slot.axes for one in tried)


def _atoms(shapes: Shapes, value: Value) -> list[Atom]:
    return [leaf for axis in shapes.axes(value) for leaf in leaves(axis)]
