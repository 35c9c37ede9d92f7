"""Where a whole change of basis passes, not only its diagonal.

Index sets that only linear operations touch (GL), or linear
operations and sums of squares (O).
"""

from collections import defaultdict
from fractions import Fraction
from typing import Any

from jaxsym.symmetry.atoms import Atom, factors, leaves
from jaxsym.symmetry.rules import CATALOGUE, dot_axes
from jaxsym.symmetry.trace import Equation, Program, Value
from jaxsym.symmetry.weights import Shapes


def bases(
    program: Program, shapes: Shapes, scalings: dict[Atom | None, list[dict[Any, Fraction]]]
) -> tuple[dict[Atom, dict[Any, Fraction]], set[Atom]]:
    """Index sets with a general linear group (and its representation on every slot, 1 or -1), and with an orthogonal one."""
    search = _Search(program, shapes)
    for equation in program.equations:
        search.visit(equation)
    for value in (*program.inputs, *program.outputs):
        for axis in range(len(value.shape)):
            search.refuse(value, axis)
    candidates = search.seen - search.refused - search.squared
    linear = {}
    for atom in candidates:
        solutions = scalings.get(atom, [])
        if (
            len(solutions) == 1
            and search.slots[atom] <= solutions[0].keys()
            and all(abs(w) == 1 for w in solutions[0].values())
        ):
            linear[atom] = solutions[0]
    return linear, (search.seen - search.refused) - linear.keys()


class _Search:
    """One pass over the equations; what an operation mixes, multiplies or bends index by index is refused."""

    def __init__(self, program: Program, shapes: Shapes) -> None:
        self.shapes = shapes
        self.refused: set[Atom] = set()
        self.seen: set[Atom] = set()
        self.squared: set[Atom] = set()
        self.slots: dict[Atom, set[Any]] = defaultdict(set)
        self.even: dict[Value, set[int]] = defaultdict(set)  # axes along which a value is constant
        self.squares: set[tuple[Value, int]] = set()  # values that hold squares along an axis, waiting to be summed
        for value in program.parameters.values():
            self._see(value)

    def refuse(self, value: Value, axis: int) -> None:
        """No change of basis on this axis."""
        if axis not in self.even[value]:
            self.refused.update(leaves(self.shapes.axes(value)[axis]))

    def visit(self, equation: Equation) -> None:
        """Follow one equation."""
        name = equation.primitive
        for value in equation.inputs:
            if value.origin == "constant":
                self.even[value] = {
                    i
                    for i in range(len(value.shape))
                    if not leaves(self.shapes.axes(value)[i])[:1] or _free(self.shapes, value, i)
                }
                if value.constant is not None and not value.constant.any():
                    self.even[value] = set()
        for value, axis in [pair for pair in self.squares if pair[0] in equation.inputs]:
            if not (name == "reduce_sum" and axis in equation.params["axes"]):
                self.refuse(value, axis)
        if name in ("mul", "div"):
            self._multiply(equation)
        elif name in ("square", "integer_pow") and equation.params.get("y", 2) == 2:
            self._square(equation)
        elif name in ("add", "sub", "add_any", "concatenate", "tie", "select_n"):
            self._add(equation)
        elif name == "dot_general":
            self._dot(equation)
        elif name == "reduce_sum":
            self._sum(equation)
        elif name == "broadcast_in_dim":
            value, output = equation.inputs[0], equation.outputs[0]
            kept = {
                t: a for a, t in enumerate(equation.params["broadcast_dimensions"]) if value.shape[a] == output.shape[t]
            }
            self.even[output] = {i for i in range(len(output.shape)) if i not in kept or kept[i] in self.even[value]}
        elif name == "conv_general_dilated":
            self._convolution(equation)
        elif name == "transpose":
            order = equation.params["permutation"]
            self.even[equation.outputs[0]] = {i for i, a in enumerate(order) if a in self.even[equation.inputs[0]]}
        elif name == "reshape":
            for axis in self.even[equation.inputs[0]]:
                self.refused.update(leaves(self.shapes.axes(equation.inputs[0])[axis]))
            self._opaque(equation)
        elif name == "branch":
            pass
        elif name not in CATALOGUE or not CATALOGUE[name].linear:
            self._bend(equation)
        for output in equation.outputs:
            self._see(output)

    def _see(self, value: Value) -> None:
        for axis, atom in enumerate(self.shapes.axes(value)):
            if axis in self.even[value]:
                continue
            for number, leaf in enumerate(leaves(atom)):
                self.seen.add(leaf)
                self.slots[leaf].add((value, axis, number))

    def _bend(self, equation: Equation) -> None:
        """A nonlinear operation: only along axes where everything is constant does it do no harm."""
        for value in equation.inputs:
            for axis in range(len(value.shape)):
                self.refuse(value, axis)
        for output in equation.outputs:
            same = [v for v in equation.inputs if len(v.shape) == len(output.shape)]
            self.even[output] = {
                i
                for i in range(len(output.shape))
                if same and all(i in self.even[v] or v.shape[i] == 1 != output.shape[i] for v in same)
            }
            for axis in range(len(output.shape)):
                self.refuse(output, axis)

    def _opaque(self, equation: Equation) -> None:
        """A value whose leaves were refactored: a sum that is not the last factor of its axis is left alone."""
        for value in (*equation.inputs, *equation.outputs):
            for atom in self.shapes.axes(value):
                for factor in factors(atom):
                    if factor.form == "sum":
                        self.refused.update(leaves(factor))

    def _flat(self, output: Value, value: Value, axis: int) -> bool:
        """Whether an operand is constant along an axis of the result."""
        return (
            len(value.shape) != len(output.shape) or value.shape[axis] != output.shape[axis] or axis in self.even[value]
        )

    def _multiply(self, equation: Equation) -> None:
        (one, other), output = equation.inputs, equation.outputs[0]
        if one is other:
            self._square(equation)
            return
        for axis in range(len(output.shape)):
            flat = self._flat(output, one, axis), self._flat(output, other, axis)
            if all(flat):
                self.even[output].add(axis)
            elif not any(flat) or (equation.primitive == "div" and flat[0]):
                for value in (one, other):
                    if not self._flat(output, value, axis):
                        self.refuse(value, axis)

    def _square(self, equation: Equation) -> None:
        value, output = equation.inputs[0], equation.outputs[0]
        for axis in range(len(output.shape)):
            if axis in self.even[value]:
                self.even[output].add(axis)
            else:
                found = leaves(self.shapes.axes(value)[axis])
                self.squared.update(found)
                self.squares.add((output, axis))

    def _add(self, equation: Equation) -> None:
        """Sums of what varies are linear; what varies plus what is constant along an axis is a shift."""
        outputs = equation.outputs or equation.inputs[:1]
        values = [v for v in equation.inputs if not (v.constant is not None and not v.constant.any())]
        values = values[1:] if equation.primitive == "select_n" and equation.inputs[0] in values[:1] else values
        for output in outputs:
            for axis in range(len(output.shape)):
                flat = [self._flat(output, value, axis) for value in values]
                if equation.primitive == "concatenate" and axis == equation.params["dimension"]:
                    flat = [axis in self.even[value] for value in values]
                if all(flat):
                    self.even[output].add(axis)
                elif any(flat):
                    self.refuse(output, axis)
                    for value in values:
                        if len(value.shape) == len(output.shape):
                            self.refuse(value, axis)
        if equation.primitive == "select_n":
            which = equation.inputs[0]
            for axis in range(len(which.shape)):
                self.refuse(which, axis)
                self.refuse(outputs[0], axis)

    def _dot(self, equation: Equation) -> None:
        contracted, batch, free, other_free = dot_axes(equation)
        one, other = equation.inputs
        output = equation.outputs[0]
        for position, (i, j) in enumerate(batch):
            self.refuse(one, i)
            self.refuse(other, j)
            if i in self.even[one] and j in self.even[other]:
                self.even[output].add(position)
        for i, j in contracted:
            if i in self.even[one] or j in self.even[other]:
                self.refuse(one, i)
                self.refuse(other, j)
        for start, value, axes in ((len(batch), one, free), (len(batch) + len(free), other, other_free)):
            self.even[output] |= {start + k for k, axis in enumerate(axes) if axis in self.even[value]}

    def _sum(self, equation: Equation) -> None:
        value, output = equation.inputs[0], equation.outputs[0]
        removed = set(equation.params["axes"])
        for axis in removed:
            if (value, axis) not in self.squares:
                self.refuse(value, axis)
        kept = [i for i in range(len(value.shape)) if i not in removed]
        self.even[output] = {k for k, i in enumerate(kept) if i in self.even[value]}

    def _convolution(self, equation: Equation) -> None:
        value, kernel = equation.inputs
        numbers = equation.params["dimension_numbers"]
        if equation.params["feature_group_count"] > 1:
            self.refuse(value, numbers.lhs_spec[1])
            self.refuse(kernel, numbers.rhs_spec[0])


def _free(shapes: Shapes, value: Value, axis: int) -> bool:
    return all(leaf.reason is None for leaf in leaves(shapes.axes(value)[axis]))
