"""Which translations of parameters leave the outputs alone: shifts are followed forward, and must vanish at whatever is not linear.

Every leaf may be translated, freely or constant along some axes. The shifts that arrive at a nonlinearity, or at an output, must cancel: a leaf
that is added there takes up what else arrives (a value bias is taken up by the output bias), a mean or a maximum that is subtracted removes what is
constant along its axis, and whatever is left must be 0, which pins its variable. Linear algebra over exact symbols (:mod:`~jaxsym.symmetry.shifts`).
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxsym.symmetry.atoms import Atom, terms
from jaxsym.symmetry.facts import Known
from jaxsym.symmetry.layout import dot_axes
from jaxsym.symmetry.shifts import Algebra, Core, Einsum, Map, Shift, Variable, covers, patterns
from jaxsym.symmetry.trace import Equation, Program, Value
from jaxsym.symmetry.weights import Shapes

MASKED = (
    "add",
    "add_any",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "expand_dims",
    "is_finite",
    "linear",
    "reduce_max",
    "reshape",
    "select_n",
    "squeeze",
    "stop_gradient",
    "sub",
    "transpose",
)
"""What may be done to logits behind a mask before their exponential, which is 0 there, is taken: anything else would notice that a shift misses them."""


class Flip(NamedTuple):
    """A sign or phase of the units on one axis of a function's operand, and the shifts that it leaves."""

    variable: Variable
    axis: int
    before: float = 0.0
    """What a moved unit's operand must gain: half a period."""
    after: float = 0.0
    """What a moved unit's result gains, seen before it changes its sign."""
    skew: float = 0.0
    """``(f(x) - f(-x)) / x``: a moved unit's result, which keeps its sign, loses so much of its operand."""
    leaves: Mapping[Value, int] = {}
    """Where the operand's sign comes from: the leaves that change theirs, and the axis of the units."""


class Search:
    """One pass over the program with all variables at once; :meth:`moves` says what each surviving one does."""

    def __init__(
        self,
        program: Program,
        shapes: Shapes,
        known: Known,
        rules: Mapping[str, "ShiftRule"],
        flips: Mapping[Equation, Sequence[Flip]] | None = None,
    ) -> None:
        self.flips = flips or {}
        self.program, self.shapes, self.rules, self.known = program, shapes, rules, known
        self.algebra = Algebra(self.known.parametric, self.known.facts)
        self.dead: set[Variable] = set()
        self.masked: dict[Value, list[Shift]] = defaultdict(list)  # shifts that miss the places behind a mask
        self.solved: dict[Variable, list[tuple[float, Core, Map]]] = {}
        self.shifts: dict[Value, Shift] = {}
        self.products: list[tuple[Shift, Shift]] = []
        self.variables: dict[Value, list[Variable]] = {}
        self.readers = _readers(program, known)
        self.signed = {flip.variable: flip.leaves for found in self.flips.values() for flip in found}
        still = program.still()
        for leaf in program.parameters.values():
            if leaf not in still:
                self._enter(leaf)
        for equation in program.equations:
            self._visit(equation)
        for output in program.outputs:
            for shift in (self.shift(output), *self.masked[output]):
                self.vanish(shift)
        self._prune()

    # the variables

    def _enter(self, leaf: Value) -> None:
        own = self.variables[leaf] = list(self._translations(leaf))
        shift = {self.algebra.own(variable): 1.0 for variable in own}
        for variable, leaves in self.signed.items():
            if leaf in leaves:  # a sign is a shift by minus twice what is there
                labels = tuple(i if size != 1 else None for i, size in enumerate(leaf.shape))
                op = Einsum((leaves[leaf],), leaf, labels, tuple(range(len(leaf.shape))), leaf.shape)
                core, place = self.algebra.own(variable)
                _, core, place = self.algebra.apply(op, core, place)  # type: ignore[misc]
                shift[core, place] = -2.0
        self.shifts[leaf] = shift

    def _translations(self, leaf: Value) -> Iterator[Variable]:
        if (unit := self.known.scaled.get(leaf)) is not None:
            yield Variable(leaf, frozenset(), unit=unit)
            return
        blocks = [_spans(axis) for axis in self.shapes.axes(leaf)]
        for choice in itertools.product(*blocks):
            block = tuple((i, *span) for i, span in enumerate(choice) if span != (0, leaf.shape[i]))
            cut = {axis for axis, _, _ in block}
            sizes = tuple(stop - start for start, stop in choice)
            wide = {axis for axis in cut if sizes[axis] != 1}
            yield from (Variable(leaf, s, None, block) for s in patterns(sizes) if not wide & s)
            for axis, vector in self.readers.get(leaf, ()):
                if axis not in cut:
                    even = frozenset({axis}) | {i for i, n in enumerate(leaf.shape) if n == 1}
                    yield Variable(leaf, even, vector, block)
        yield from (Variable(leaf, s) for s in patterns(leaf.shape) if any(len(blocks[i]) > 1 for i in s))

    # shifts that must vanish

    def shift(self, value: Value) -> Shift:
        """The shift of a value in the variables that are still free."""
        known = self.shifts.get(value)
        if not known:
            return {}
        if any(core.variable in self.dead or core.variable in self.solved for core, _ in known):
            known = self._resolve(known)
            self.shifts[value] = known
        return known

    def _resolve(self, shift: Shift) -> Shift:
        result: Shift = {}
        for (core, place), coefficient in shift.items():
            for factor, inner, where in self._free(core, place):
                _add(result, inner, where, coefficient * factor)
        return _clean(result)

    def substituted(self, shift: Shift, variable: Variable, core: Core, inside: Map) -> Shift:
        """A shift with a variable replaced by another core, whose axis for each of its own ``inside`` tells."""
        solved, self.solved = self.solved, {variable: [(1.0, core, inside)]}
        result = self._resolve(shift)
        self.solved = solved
        return result

    def _free(self, core: Core, place: Map) -> list[tuple[float, Core, Map]]:
        """A term with solved variables replaced."""
        variable = core.variable
        if variable in self.dead:
            return []
        if variable not in self.solved:
            return [(1.0, core, place)]
        if core.bare:
            return [
                (factor * again, deeper, where)
                for factor, inner, inside in self.solved[variable]
                for again, deeper, where in self._free(inner, tuple(None if c is None else inside[c] for c in place))
            ]
        result = []
        assert core.child is not None
        for factor, inner, inside in self._free(core.child, core.child_map):
            term = self.algebra.apply(core.op, inner, inside)
            if term is not None:
                by_axis = {c: term[2][position] for position, c in enumerate(core.out_map) if c is not None}
                result.append((factor * term[0], term[1], tuple(None if c is None else by_axis[c] for c in place)))
        return result

    def vanish(self, shift: Shift) -> None:
        """Make a shift 0: solve for a variable that stands there alone, or pin what cannot cancel."""
        whole = shift = self._resolve(shift)
        shift = dict(shift)
        plain = {term: c for term, c in shift.items() if term[0].parametric}
        pivots = sorted((t for t in plain if t[0].bare), key=lambda t: -sum(c is not None for c in t[1]))
        for core, place in pivots:
            if (core, place) not in shift or core.variable.flip:
                continue
            rest = {t: c for t, c in plain.items() if t in shift and t != (core, place) and covers(place, t[1])}
            own = [t for t in rest if t[0].bare and t[0].variable.leaf is core.variable.leaf]
            for term in own:  # the same leaf's translation, only less free
                self.dead.add(term[0].variable)
                del rest[term], shift[term]
            if not rest or any(t[0].variable is core.variable for t in plain if t != (core, place)):
                continue
            coefficient = plain[core, place]
            axis = {c: i for i, c in enumerate(place) if c is not None}
            self.solved[core.variable] = [
                (-c / coefficient, other, tuple(where[axis[k]] for k in range(len(core.shape))))
                for (other, where), c in rest.items()
            ]
            for term in (*rest, (core, place)):
                del shift[term]
            break
        groups: dict[object, Shift] = defaultdict(dict)
        for (core, place), c in shift.items():
            if core.bare:
                self.dead.add(core.variable)
            else:
                where = tuple(None if k is None else core.out_map.index(k) for k in place)
                groups[core.op, where][core, place] = c
        for group in groups.values():
            before: Shift = {}
            for (core, _), c in group.items():
                assert core.child is not None
                _add(before, core.child, core.child_map, c)
            self.vanish(_clean(before))
        self.dead |= {core.variable for core, _ in self._resolve(whole)}

    def block(self, *values: Value) -> None:
        """No shift passes these values."""
        for value in values:
            self.vanish(self.shift(value))

    # equations

    def _visit(self, equation: Equation) -> None:
        if equation in self.flips:
            self._flip(equation)
            return
        missing = [shift for value in equation.inputs for shift in self.masked.get(value, ())]
        for output in equation.outputs if equation.primitive in MASKED else ():
            self.masked[output] += missing
        for shift in missing if equation.primitive not in (*MASKED, "exp") else ():
            self.vanish(shift)
        if not any(self.shift(value) for value in equation.inputs):
            return
        rule = self.rules.get(equation.primitive)
        complex_ = any(np.issubdtype(value.dtype, np.complexfloating) for value in equation.outputs)
        if rule is None or not equation.bind or complex_:
            self.block(*equation.inputs)
        else:
            rule(self, equation)

    def _flip(self, equation: Equation) -> None:
        (value,), (output,) = equation.inputs, equation.outputs
        before, after = dict(self.shift(value)), []
        for flip in self.flips[equation]:
            own = [term for term in before if flip.skew and term[0].variable is flip.variable]
            after += [(flip.skew / 2 * before.pop(term), *term) for term in own]
            core, _ = self.algebra.own(flip.variable)
            place = tuple(0 if i == flip.axis else None for i in range(len(output.shape)))
            if flip.before:
                _add(before, core, place, -flip.before)
            if flip.after:
                after.append((flip.after, core, place))
        self.vanish(before)
        self.put(output, after)

    def put(self, output: Value, parts: Iterable[tuple[float, Core, Map]]) -> None:
        """State the shift of a result."""
        total: Shift = {}
        for coefficient, core, place in parts:
            _add(total, core, place, coefficient)
        total = _clean(total)
        if total:
            self.shifts[output] = total

    def through(self, op: object, value: Value) -> list[tuple[float, Core, Map]]:
        """The shift of a value after a linear operation."""
        parts = []
        for (core, place), coefficient in self.shift(value).items():
            term = self.algebra.apply(op, core, place)
            if term is not None:
                parts.append((coefficient * term[0], term[1], term[2]))
        return parts

    def split(self, value: Value, axes: Sequence[int]) -> None:
        """Only shifts that are constant along some axes may stay."""
        varying = {t: c for t, c in self.shift(value).items() if any(t[1][axis] is not None for axis in axes)}
        self.vanish(varying)

    # the end

    def _prune(self) -> None:
        for own in self.variables.values():
            for variable in own:
                if variable.along is None and variable not in self.solved and self._contained(variable, own):
                    self.dead.add(variable)
        for variable, leaves in self.signed.items():
            if any(core.variable is variable for leaf in leaves for core, _ in self._moved(leaf)):
                self.dead.add(variable)  # a leaf cannot both change its sign and take up what that changes
        for one, other in self.products:
            left, right = ({core.variable for core, _ in self._resolve(side)} for side in (one, other))
            self.dead |= left & right

    def _contained(self, variable: Variable, own: Sequence[Variable]) -> bool:
        """Whether freer variables of the same leaf do all that this one does: on the same block, or on every block of the leaf."""
        freer = [v for v in own if v.along is None and v is not variable and v.constant <= variable.constant]
        freer = [v for v in freer if v not in self.dead and v not in self.solved]
        if any(v.block in ((), variable.block) and v.constant < variable.constant for v in freer):
            return True
        blocks = {v.block for v in own if v.block}
        return not variable.block and bool(blocks) and blocks <= {v.block for v in freer}

    def _moved(self, leaf: Value) -> Shift:
        return self._resolve({self.algebra.own(variable): 1.0 for variable in self.variables[leaf]})

    def moves(self) -> dict[Variable, dict[Value, Shift]]:
        """For every free variable the shift that it gives to every leaf, in the order of the leaves."""
        found: dict[Variable, dict[Value, Shift]] = {v: {} for own in self.variables.values() for v in own}
        found |= {flip.variable: {} for flips in self.flips.values() for flip in flips}
        for leaf in self.variables:
            for (core, place), coefficient in self._moved(leaf).items():
                found[core.variable].setdefault(leaf, {})[core, place] = coefficient
        free = {v: moved for v, moved in found.items() if moved and v not in self.dead}
        plain = {v: alone for v, moved in free.items() if (alone := _alone(moved)) is not None}
        return {v: moved for v, moved in free.items() if v not in plain or not _inside(plain, v)}


def _readers(program: Program, known: Known) -> dict[Value, dict[tuple[int, Value], None]]:
    """The leaves that are contracted with a value whose inner product with some vector is known: the axis, and the vector."""
    found: dict[Value, dict[tuple[int, Value], None]] = defaultdict(dict)
    for equation in program.equations:
        if equation.primitive != "dot_general":
            continue
        contracted, _, _, _ = dot_axes(equation)
        for own, leaf in enumerate(equation.inputs):
            for pair in contracted:
                fact = known.facts.get(equation.inputs[1 - own], {}).get(pair[1 - own])
                if leaf.origin == "parameter" and fact is not None and fact.along is not None:
                    found[leaf][pair[own], fact.along] = None
    return found


def _alone(moved: dict[Value, Shift]) -> tuple[Value, Map] | None:
    """The leaf and the map of a translation that moves nothing else, as it is."""
    ((leaf, shift), *others) = moved.items()
    ((core, place), *more) = shift
    return (leaf, place) if core.bare and not others and not more else None


def _inside(plain: Mapping[Variable, tuple[Value, Map]], variable: Variable) -> bool:
    """Whether another translation of the same leaf varies along more axes, and does all that this one does."""
    leaf, place = plain[variable]
    return any(other_leaf is leaf and other != place and covers(other, place) for other_leaf, other in plain.values())


def _spans(axis: Atom) -> list[tuple[int, int]]:
    """The blocks of a leaf's axis that the program takes apart."""
    ends = [0, *(int(end) for end in np.cumsum([term.root().size for term in terms(axis)]))]
    return list(itertools.pairwise(ends))


def _add(shift: Shift, core: Core, place: Map, coefficient: float) -> None:
    before = shift.get((core, place), 0.0)
    after = before + coefficient
    shift[core, place] = 0.0 if abs(after) <= 1e-9 * abs(before) else after  # what is left of a cancellation


def _clean(shift: Shift) -> Shift:
    return {term: c for term, c in shift.items() if c}


ShiftRule = Callable[[Search, Equation], None]
"""States the shift of an equation's results, or blocks what may not pass."""
