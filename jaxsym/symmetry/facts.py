"""What is known of the values of a program: which depend on parameters alone, what lies under a broadcast, and which sums are fixed."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxsym.symmetry.idioms import Producers, beside, mean_of, producers, total_of, wide
from jaxsym.symmetry.trace import Equation, Program, Value

Base = tuple[Value, tuple[int | None, ...]]
"""A value before its broadcasts, and for every axis after them the axis of it that lies there."""


class Fact(NamedTuple):
    """What a sum along one axis of a value is known to be: 1, or 0 after division by gains and without offsets."""

    total: int
    along: Value | None = None
    """The vector whose inner product with the value is known; None for ones."""
    offset: Value | None = None
    """The inner product where it is not 0."""


@dataclasses.dataclass
class Known:
    """Found in one pass over the equations."""

    made: Producers
    parametric: set[Value]
    """Computed from parameters and constants alone, outside of loops."""
    bases: dict[Value, Base]
    facts: dict[Value, dict[int, Fact]]
    derived: dict[tuple[str, Value, Value | None], Equation]
    """Coefficients that the program itself does not compute."""

    scaled: dict[Value, Value] = dataclasses.field(default_factory=dict)
    """Leaf of offsets -> leaf of the gains that it is added after: translated in units of the gains."""

    def base(self, value: Value) -> Base:
        """The value itself where nothing was broadcast."""
        return self.bases.get(value, (value, tuple(range(len(value.shape)))))


def known(program: Program) -> Known:
    """Rows that sum to 1 (softmax), and values whose mean was removed, followed through gains and offsets."""
    found = Known(producers(program), _parametric(program), _bases(program), {}, {})
    _find(program, found)
    return found


def _parametric(program: Program) -> set[Value]:
    """Values that are computed from parameters and constants alone, outside of loops."""
    known = set(program.parameters.values())
    for equation in program.equations:
        ready = all(value in known or value.origin == "constant" for value in equation.inputs)
        if ready and equation.bind and equation.inputs and not equation.primitive.startswith("random"):
            known.update(equation.outputs)
    return known | {v for e in program.equations for v in e.inputs if v.origin == "constant"}


def _bases(program: Program) -> dict[Value, Base]:
    """Of a value that was only broadcast and converted: the value before, and which axis of it lies on which axis."""
    bases: dict[Value, Base] = {}
    for equation in program.equations:
        if not equation.bind or not equation.inputs or len(equation.outputs) != 1:
            continue
        value, output = equation.inputs[0], equation.outputs[0]
        base, place = bases.get(value, (value, tuple(range(len(value.shape)))))
        if equation.primitive == "broadcast_in_dim":
            axes: list[int | None] = [None] * len(output.shape)
            for axis, target in enumerate(equation.params["broadcast_dimensions"]):
                axes[target] = place[axis] if value.shape[axis] == output.shape[target] else None
            bases[output] = base, tuple(axes)
        elif equation.primitive in ("convert_element_type", "stop_gradient", "copy"):
            bases[output] = base, place
        elif equation.primitive in ("reshape", "squeeze") and wide(value.shape) == wide(output.shape):
            queue = iter(place[i] for i, size in enumerate(value.shape) if size != 1)
            bases[output] = base, tuple(next(queue) if size != 1 else None for size in output.shape)
    return bases


def _find(program: Program, found: Known) -> None:
    facts: dict[Value, dict[int, Fact]] = defaultdict(dict)
    made = found.made
    for equation in program.equations:
        if len(equation.outputs) != 1 or not equation.bind:
            continue
        output = equation.outputs[0]
        name, inputs = equation.primitive, equation.inputs
        if name == "div":
            total = total_of(made, inputs[1])
            if total is not None and total[0] is inputs[0] and len(total[1]) == 1 and beside(*total):
                facts[output][total[1][0]] = Fact(1)
        if name == "sub":
            mean = mean_of(made, inputs[1])
            if mean is not None and mean[0] is inputs[0] and len(mean[1]) == 1 and beside(*mean):
                facts[output][mean[1][0]] = Fact(0)
        if name in ("mul", "div", "add", "sub", "convert_element_type", "reduce_precision"):
            for number_, value in enumerate(inputs):
                others = inputs[:number_] + inputs[number_ + 1 :]
                if value.shape != output.shape or (name in ("div", "sub") and number_):
                    continue
                for axis, fact in facts.get(value, {}).items():
                    if axis not in facts[output] and fact.total == 0:
                        after = _follow(found, name, fact, axis, others)
                        if after is not None:
                            facts[output][axis] = after
    found.facts.update(facts)


def _follow(found: Known, name: str, fact: Fact, axis: int, others: Sequence[Value]) -> Fact | None:
    """A known sum after a multiplication by gains, or the addition of an offset."""
    if not others:
        return fact
    (other,) = others
    if name in ("add", "sub"):
        base, place = found.base(other)
        varies = [i for i, c in enumerate(place) if c is not None and other.shape[i] != 1]
        if (
            name == "sub"
            or fact.offset is not None
            or base not in found.parametric
            or varies != [axis]
            or len(base.shape) != 1
        ):
            return None
        if fact.along is not None and base.origin == "parameter":
            found.scaled[base] = next(e for e in found.derived.values() if fact.along in e.outputs).inputs[0]
        return Fact(0, fact.along, _derived(found, "offset", base, fact.along))
    gains = []
    for part in _product(found.made, other):
        base, place = found.base(part)
        if part.shape and len(place) > axis and place[axis] is not None and part.shape[axis] != 1:
            if base not in found.parametric or len(base.shape) != 1 or name == "div":
                return None
            gains.append(base)
    if not gains:
        return fact if fact.offset is None else None
    if fact.offset is not None or fact.along is not None or len(gains) > 1:
        return None
    return Fact(0, _derived(found, "reciprocal", gains[0], None))


def _product(made: Producers, value: Value) -> list[Value]:
    equation = made.get(value)
    if equation is None or equation.primitive != "mul" or equation.inputs[0] is equation.inputs[1]:
        return [value]
    return [part for side in equation.inputs for part in _product(made, side)]


def _derived(found: Known, kind: str, base: Value, along: Value | None) -> Value:
    """A parametric value that the program itself does not compute; the same one for the same gains."""
    if (kind, base, along) not in found.derived:
        inputs = [base] if along is None else [base, along]
        output = Value(base.shape if kind == "reciprocal" else (), base.dtype, "equation")
        bind = _reciprocal if kind == "reciprocal" else _inner
        found.derived[kind, base, along] = Equation(kind, inputs, [output], {}, bind)
        found.parametric.add(output)
    return found.derived[kind, base, along].outputs[0]


def _reciprocal(gain: Array) -> Array:
    return 1 / gain


def _inner(*parts: Array) -> Array:
    return jnp.sum(functools.reduce(jnp.multiply, parts))
