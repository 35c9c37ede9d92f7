"""What the units of a group compute: the values of a program in which they appear, for given parameters and inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
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

    Units are seen where a linear map reads them; where none does, at the last value that holds them. Inside loops, what is stacked over the iterations.

    Raises
    ------
    TypeError, ValueError
        As :func:`jaxsym.discover`.
    """
    checked(apply, params, inputs, "activations")
    program = trace(apply, params, *inputs)
    made = {
        output: equation
        for equation in (*program.equations, *program.whole)
        for output in equation.outputs
        if equation.bind
    }
    readers = {value for e in program.equations if e.primitive in READERS for value in e.inputs}
    shapes = tied(program)
    moving = _dependent(made, program.inputs)
    places = {i: _places(program, shapes, sym.factors[i], [*moving], readers) for i in numbers(sym, "permutation")}

    @jax.jit
    def compute(params: PyTree, *inputs: Any) -> Sites:
        given = [(program.parameters[path], leaf) for path, leaf in tree.leaves(params).items()]
        given += zip(program.inputs, jax.tree.leaves(inputs), strict=True)
        known = {value: leaf.astype(value.dtype) for value, leaf in given}
        return {i: [gathered(_computed(known, made, value), slot) for value, slot in own] for i, own in places.items()}

    def widely(params: PyTree, *inputs: Any) -> Sites:
        with jax.enable_x64(True):
            return compute(*jax.tree.map(jax.numpy.asarray, (params, *inputs)))

    return widely


def _computed(known: dict[Value, Any], made: dict[Value, Equation], target: Value) -> Any:
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


def _dependent(made: dict[Value, Equation], inputs: Sequence[Value]) -> dict[Value, None]:
    """The values outside of loops that depend on an input, in order."""
    found = dict.fromkeys(inputs)
    for value, equation in made.items():
        if not value.loops and any(one in found for one in equation.inputs):
            found[value] = None
    return {value: None for value in found if value.origin == "equation"}


def _places(
    program: Program, shapes: Shapes, factor: Factor, values: Sequence[Value], readers: set[Value]
) -> list[tuple[Value, Slot]]:
    """The values that hold the units of a factor, and where."""
    atoms = [_atoms(program, shapes, slot) for slot in factor.slots]
    common = [atom for atom in atoms[0] if atom.size == factor.size and all(atom in other for other in atoms)]
    found = []
    for value in values:
        if not shapes.knows(value):
            continue
        for axis, own in enumerate(shapes.axes(value)):
            for number, leaf in enumerate(leaves(own)):
                if leaf in common:
                    found.append((value, axis, number, leaf))
    read = [place for place in found if place[0] in readers] or found[-1:]
    return [(value, slot_of(shapes, value, axis, number, [], 1.0)) for value, axis, number, _ in read]


def _atoms(program: Program, shapes: Shapes, slot: Slot) -> list[Atom]:
    return leaves(shapes.axes(program.parameters["/".join(slot.path)])[slot.axis])
