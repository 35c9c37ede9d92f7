"""Where a whole change of basis passes, not only its diagonal.

Index sets that only linear operations touch have a general linear group, those that linear operations and sums of squares touch an orthogonal one. Where a
mean is taken off, the rotations that leave ``(1, ..., 1)`` alone remain. Gains of a norm stay where they are: what reads the normalised values
after them is moved in the frame that the gains make (``diag(gain)^-1 R diag(gain)``).
"""

from collections import defaultdict
from fractions import Fraction
from typing import Any, NamedTuple

from jaxsym.symmetry.atoms import Atom, factors, leaves
from jaxsym.symmetry.facts import Known
from jaxsym.symmetry.idioms import wide
from jaxsym.symmetry.layout import SPECIAL, along, dot_axes, filled, gathered_whole, padding
from jaxsym.symmetry.rules import CATALOGUE
from jaxsym.symmetry.trace import Equation, Program, Value
from jaxsym.symmetry.weights import Shapes


class Bases(NamedTuple):
    """What :func:`bases` found."""

    linear: dict[Atom, dict[Any, Fraction]]
    """Index set -> representation on every slot, 1 or -1."""
    orthogonal: set[Atom]
    upright: set[Atom]
    """Those of the orthogonal ones whose rotations leave (1, ..., 1) alone."""
    gains: set[Value]
    """Leaves of gains, which rotations do not move."""
    frames: dict[tuple[Value, int], tuple[Value, int]]
    """Leaves, and the axis, that are moved after multiplication by a leaf of gains to the power 1 or -1."""


def bases(
    program: Program, shapes: Shapes, known: Known, scalings: dict[Atom | None, list[dict[Any, Fraction]]]
) -> Bases:
    """Index sets with a whole change of basis."""
    search = _Search(program, shapes, known)
    for equation in program.equations:
        search.visit(equation)
    for value in (*program.inputs, *program.outputs):
        for axis in range(len(value.shape)):
            search.refuse(value, axis)
    search.finish()
    candidates = search.seen - search.refused - search.squared - search.upright
    linear = {}
    for atom in candidates:
        solutions = scalings.get(atom, [])
        if (
            len(solutions) == 1
            and search.slots[atom] <= solutions[0].keys()
            and all(abs(w) == 1 for w in solutions[0].values())
        ):
            linear[atom] = solutions[0]
    orthogonal = (search.seen - search.refused) - linear.keys()
    return Bases(linear, orthogonal, search.upright & orthogonal, search.gains, search.frames)


class _Search:
    """One pass over the equations; what an operation mixes, multiplies or bends index by index is refused."""

    def __init__(self, program: Program, shapes: Shapes, known: Known) -> None:
        self.shapes = shapes
        self.refused: set[Atom] = set()
        self.seen: set[Atom] = set()
        self.squared: set[Atom] = set()
        self.slots: dict[Atom, set[Any]] = defaultdict(set)
        self.even: dict[Value, set[int]] = defaultdict(set)  # axes along which a value is constant
        self.squares: set[tuple[Value, int]] = set()  # values that hold squares along an axis, waiting to be summed
        self.program, self.known = program, known
        self.upright: set[Atom] = set()
        self.gains: set[Value] = set()
        self.frames: dict[tuple[Value, int], tuple[Value, int]] = {}
        self.framed: dict[tuple[Value, int], Value] = {}  # values after gains, by axis
        self.uses: dict[Value, int] = defaultdict(int)  # of leaves of gains and of leaves in a frame
        self.gained: dict[tuple[Value, int], Value] = {}  # gains times what is constant along the axis
        for value in program.parameters.values():
            self._see(value)

    def refuse(self, value: Value, axis: int) -> None:
        """No change of basis on this axis."""
        if axis not in self.even[value]:
            self.refused.update(leaves(self.shapes.axes(value)[axis]))

    def finish(self) -> None:
        """Gains that are used in any other way, and leaves that are read with and without a frame, are refused."""
        counted: dict[Value, int] = defaultdict(int)
        passing = ("reshape", "broadcast_in_dim", "convert_element_type", "squeeze")
        for equation in self.program.equations:
            if equation.primitive not in passing:
                for value in equation.inputs:
                    counted[self.known.base(value)[0]] += 1
        for value in self.program.outputs:
            counted[self.known.base(value)[0]] += 1
        framed = {leaf for leaf, _ in self.frames}
        for leaf in {*self.gains, *framed}:
            if (leaf in self.gains and leaf in framed) or counted[leaf] != self.uses[leaf]:
                for axis in range(len(leaf.shape)):
                    self.refuse(leaf, axis)
        for (leaf, _), (gain, _) in self.frames.items():
            if counted[leaf] != self.uses[leaf]:
                self.refuse(gain, 0)

    def _vector(self, value: Value, axis: int) -> Value | None:
        """The leaf of one axis that lies along this axis of a value, with nothing else in it."""
        base, place = self.known.base(value)
        if base.origin == "parameter" and len(base.shape) == 1 and len(place) > axis and place[axis] == 0:
            return base
        return None

    def _gain(self, value: Value, axis: int) -> Value | None:
        return self.gained.get((value, axis)) or self._vector(value, axis)

    def _follow_frames(self, equation: Equation) -> None:
        """Values after gains may be scaled, shifted by a leaf, and read by a leaf; anything else refuses them."""
        name, inputs = equation.primitive, equation.inputs
        for position, value in enumerate(inputs):
            for axis in range(len(value.shape)):
                gain = self.framed.get((value, axis))
                if gain is None:
                    continue
                other = inputs[1 - position] if len(inputs) == 2 else None
                output = equation.outputs[0] if equation.outputs else value
                if name in ("convert_element_type", "neg", "copy"):
                    self.framed[output, axis] = gain
                elif name == "transpose":
                    self.framed[output, equation.params["permutation"].index(axis)] = gain
                elif (
                    name in ("mul", "div")
                    and other is not None
                    and self._flat(output, other, axis)
                    and not (name == "div" and position)
                ):
                    self.framed[output, axis] = gain
                elif name in ("add", "add_any") and other is not None and self._vector(other, axis) is not None:
                    self._frame(self._vector(other, axis), 0, gain, -1)
                    self.framed[output, axis] = gain
                elif name == "dot_general" and (read := self._read_by(equation, position, axis)) is not None:
                    self._frame(*read, gain, 1)
                else:
                    self.refuse(value, axis)

    def _read_by(self, equation: Equation, position: int, axis: int) -> tuple[Value, int] | None:
        """The leaf, and its axis, that an axis of an operand is contracted with."""
        other = equation.inputs[1 - position]
        leaf, place = self.known.base(other)
        contracted, _, _, _ = dot_axes(equation)
        whole = leaf.origin == "parameter" and place == tuple(range(len(other.shape)))
        return next(((leaf, pair[1 - position]) for pair in contracted if whole and pair[position] == axis), None)

    def _frame(self, leaf: Value | None, axis: int, gain: Value, power: int) -> None:
        assert leaf is not None
        if self.frames.setdefault((leaf, axis), (gain, power)) != (gain, power):
            self.refuse(gain, 0)
        self.uses[leaf] += 1

    def _stand(self, value: Value, axis: int) -> None:
        """Only rotations that leave (1, ..., 1) alone; the axis must be one index set."""
        found = leaves(self.shapes.axes(value)[axis])
        if axis in self.even[value]:
            return
        if len(found) == 1 and found[0].size == value.shape[axis] > 2 and (value, axis) not in self.framed:
            self.upright.update(found)
        else:
            self.refuse(value, axis)

    def visit(self, equation: Equation) -> None:
        """Follow one equation."""
        name = equation.primitive
        self._follow_frames(equation)
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
        elif name == "reshape" and wide(equation.inputs[0].shape) == wide(equation.outputs[0].shape):
            value, output = equation.inputs[0], equation.outputs[0]
            before, now = ([i for i, size in enumerate(v.shape) if size != 1] for v in (value, output))
            even = {j for i, j in zip(before, now, strict=True) if i in self.even[value]}
            self.even[output] = even | (set(range(len(output.shape))) - set(now))
        elif name == "reshape":
            for axis in self.even[equation.inputs[0]]:
                self.refused.update(leaves(self.shapes.axes(equation.inputs[0])[axis]))
            self._opaque(equation)
        elif name == "branch":
            pass
        elif name not in CATALOGUE or not CATALOGUE[name].linear or _filled(equation):
            self._bend(equation)
        else:
            self._pass(equation)
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

    def _pass(self, equation: Equation) -> None:
        """What is constant along an axis stays so where the axis is handed on; rows by an index are the same where the index is."""
        value, *others = equation.inputs
        passed = _untouched(equation)
        for output in equation.outputs:
            self.even[output] = {passed[axis] for axis in self.even[value] & passed.keys()}
        for axis in self.even[value] - passed.keys():
            self.refused.update(leaves(self.shapes.axes(value)[axis]))
        if equation.primitive == "gather":
            (output,), (indices,) = equation.outputs, others
            offset = equation.params["dimension_numbers"].offset_dims
            batch = [axis for axis in range(len(output.shape)) if axis not in offset]
            varied = {its for own, its in along(equation) if own not in self.even[value]}
            self.even[output] |= {batch[axis] for axis in self.even[indices] - varied if axis < len(batch)}
        for other in others:
            for axis in range(len(other.shape)):
                self.refuse(other, axis)

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
                self._bring_gains(equation, axis)
            elif (gain := self._gain(other if flat[0] else one, axis)) is not None:
                self.gained[output, axis] = gain

    def _bring_gains(self, equation: Equation, axis: int) -> None:
        """Both factors vary: one of them must be gains, and the product is in their frame from here on."""
        (one, other), output = equation.inputs, equation.outputs[0]
        gains = [self._gain(value, axis) for value in (one, other)]
        if (
            equation.primitive == "mul"
            and gains.count(None) == 1
            and not any((v, axis) in self.framed for v in (one, other))
        ):
            gain = gains[0] or gains[1]
            assert gain is not None
            self.gains.add(gain)
            self.uses[gain] += 1
            self.framed[output, axis] = gain
            return
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
                elif any(flat) and equation.primitive in ("add", "sub", "add_any"):
                    for value in (output, *(v for v in values if not self._flat(output, v, axis))):
                        self._stand(value, axis)
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
                self._stand(value, axis)
        kept = [i for i in range(len(value.shape)) if i not in removed]
        self.even[output] = {k for k, i in enumerate(kept) if i in self.even[value]}

    def _convolution(self, equation: Equation) -> None:
        value, kernel = equation.inputs
        (output,), numbers = equation.outputs, equation.params["dimension_numbers"]
        channels = (value, numbers.lhs_spec[1]), (kernel, numbers.rhs_spec[1])
        if any(axis in self.even[operand] for operand, axis in channels):
            for operand, axis in channels:
                self.refuse(operand, axis)
        for operand, axis, target in (
            (value, numbers.lhs_spec[0], numbers.out_spec[0]),
            (kernel, numbers.rhs_spec[0], numbers.out_spec[1]),
        ):
            self.even[output] |= {target} if axis in self.even[operand] else set()
        for operand, places in ((value, numbers.lhs_spec[2:]), (kernel, numbers.rhs_spec[2:])):
            for axis in self.even[operand] & set(places):
                self.refused.update(leaves(self.shapes.axes(operand)[axis]))
        if equation.params["feature_group_count"] > 1:
            self.refuse(value, numbers.lhs_spec[1])
            self.refuse(kernel, numbers.rhs_spec[0])


def _untouched(equation: Equation) -> dict[int, int]:
    """Axis of the first operand -> axis of each output, where a linear operation of one tensor only hands the axis on."""
    name, rank = equation.primitive, len(equation.inputs[0].shape)
    if name == "gather":
        return gathered_whole(equation)
    if name in ("scan_in", "squeeze"):
        dropped = [0] if name == "scan_in" else equation.params["dimensions"]
        return {axis: place for place, axis in enumerate(axis for axis in range(rank) if axis not in dropped)}
    if name == "scan_out":
        return {axis: axis + 1 for axis in range(rank)}
    special = {axis % rank for axis in SPECIAL[name](equation)} if name in SPECIAL else set()
    return {axis: axis for axis in range(rank) if axis not in special}


def _filled(equation: Equation) -> bool:
    """Whether an operation writes numbers of its own beside those that it moves."""
    if equation.primitive == "pad":
        return padding(equation)
    return equation.primitive == "gather" and bool(filled(equation))


def _free(shapes: Shapes, value: Value, axis: int) -> bool:
    return all(leaf.reason is None for leaf in leaves(shapes.axes(value)[axis]))
