"""What devices send each other, read from the text of a compiled program (XLA's HLO)."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_HEAD = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*(\(.*?\)|\S+)\s+([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Traffic(NamedTuple):
    """Bytes of the operands of collectives on one device, by kind.

    ``per_step`` is what stands inside loops, counted once; ``once`` what stands outside of them.
    """

    per_step: dict[str, int]
    once: dict[str, int]
    count_per_step: int


class _Instruction(NamedTuple):
    shape: str
    operation: str
    rest: str


def shape_bytes(text: str) -> int:
    """The bytes of a shape, or of all shapes in a tuple.

    >>> shape_bytes("f32[4,10]{1,0}"), shape_bytes("(f64[3]{0}, s32[])"), shape_bytes("pred[]")
    (160, 28, 1)
    """
    total = 0
    for kind, sizes in _SHAPE.findall(text):
        digits = re.search(r"\d+", kind)
        bits = _BITS.get(kind, int(digits[0]) if digits else 0)
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total


def traffic(text: str) -> Traffic:
    """Read a program.

    Parameters
    ----------
    text
        Of ``compiled.as_text()``: one device's part of an SPMD program.

    Raises
    ------
    ValueError
        If it has no entry.
    """
    computations, entry = _parsed(text)
    looped = _reachable(computations, _bodies(computations))
    outside = _reachable(computations, [entry]) - looped
    per_step, once, count = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), 0
    for name in sorted(looped | outside):
        for kind, size in _collectives(computations[name]):
            (per_step if name in looped else once)[kind] += size
            count += name in looped
    return Traffic(per_step, once, count)


def _parsed(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            computations[current] = {}
            entry = current if line.startswith("ENTRY") else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current][found[1]] = _Instruction(found[2], found[3], found[4])
    if not entry:
        msg = f"no ENTRY in the text of the program, which begins with {text[:60]!r}."
        raise ValueError(msg)
    return computations, entry


def _bodies(computations: dict[str, dict[str, _Instruction]]) -> list[str]:
    return [
        body
        for instructions in computations.values()
        for one in instructions.values()
        if one.operation == "while"
        for body in re.findall(r"body=%?([\w.\-]+)", one.rest)
    ]


def _reachable(computations: dict[str, dict[str, _Instruction]], names: list[str]) -> set[str]:
    """Those named, and all that they call."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in computations:
            continue
        seen.add(name)
        for one in computations[name].values():
            waiting += _CALLED.findall(one.rest)
            for branches in _BRANCHES.findall(one.rest):
                waiting += [branch.strip().lstrip("%") for branch in branches.split(",")]
    return seen


def _collectives(instructions: dict[str, _Instruction]) -> list[tuple[str, int]]:
    """Kind and bytes of each; of those in two halves the first one counts."""
    found = []
    for one in instructions.values():
        kind = one.operation.removesuffix("-start")
        if kind in KINDS:
            operands = re.findall(r"%([\w.\-]+)", one.rest.split(")", 1)[0])
            sizes = [shape_bytes(instructions[name].shape) for name in operands if name in instructions]
            found.append((kind, sum(sizes)))
    return found
