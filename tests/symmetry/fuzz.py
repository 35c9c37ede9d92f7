"""Hunts unsound and incomplete groups: ``scripts/fuzz --programs N --seed S``.

Every random program of :mod:`tests.symmetry.programs` is discovered, verified in float64 with other elements than discovery used, and held against the
group laws. What fails is made smaller, operation by operation, and printed. Completeness is measured by the kernel of the Jacobian (``--certify M`` of the
programs) and by the black-box algebra (``--algebra M`` of them). ``--out FILE.json`` keeps the figures while it runs; a run with the same file goes on
where it stopped, and ``--add FILES`` prints the sum of several.
"""

import argparse
import collections
import contextlib
import json
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import jaxsym as js
from jaxsym.symmetry.precision import wide
from jaxsym.symmetry.rules import CATALOGUE
from jaxsym.symmetry.trace import trace
from tests.symmetry.programs import drawn

PATIENCE = 60  # seconds, for one program or one of its measures
LAWS = 1e-6
SURPLUS = 2  # outputs a parameter, for the Jacobian
LARGEST = 2000  # rows of inputs, at most
SMALL = 110  # parameters, for the algebra
SAVE = 20  # programs
SHOWN = 20  # of the programs of which the algebra knows more, made smaller
CLEAR = 100  # programs, whose compiled functions are then forgotten


class Unsound(AssertionError):
    """A factor that is none, or elements that do not compose."""


class Outcome(NamedTuple):
    """What came of a program: a failure in a line, or its group; neither where the program itself is not finite."""

    failure: str | None = None
    sym: js.Symmetry | None = None
    primitives: frozenset = frozenset()


def element(sym, seed):
    """A random element on the host."""
    rng = np.random.default_rng(seed)
    return sym.element(
        0.4 * rng.normal(size=sym.dim), rng.uniform(size=sum(int(np.prod(f.shape)) for f in sym.factors))
    )


def apart(one, other):
    """The largest difference, relative to what is compared."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(
        (np.abs(np.subtract(a, b)).max(initial=0) / max(1, np.abs(b).max(initial=0)) for a, b in pairs), default=0
    )


def checked(program):
    """The group of a program, and its primitives; raises where it is unsound, drops a factor, or falls."""
    apply, params, inputs = program.built()
    primitives = frozenset(equation.primitive for equation in trace(apply, params, *inputs).equations)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="discover: no rule for the primitive")  # it pins: sound, and counted
        sym = js.discover(apply, params, *inputs)
    found = js.verify(apply, sym, params, *inputs, key=jax.random.key(9))
    if not found.ok:
        wrong = [f.kind for f, r in zip(sym.factors, found.by_factor, strict=True) if r > found.tolerance]
        raise Unsound(f"not a symmetry: {', '.join(wrong) or 'all together'} ({found.residual:.1e})")
    with jax.enable_x64(True):
        point = jax.tree.map(np.asarray, wide(params))  # NumPy throughout, so that nothing compiles
        g, h = element(sym, 1), element(sym, 2)
        laws = {
            "compose": apart(sym.act(sym.compose(g, h), point), sym.act(g, sym.act(h, point))),
            "inverse": apart(sym.act(sym.inverse(g), sym.act(g, point)), point),
        }
    for law, difference in laws.items():
        if not difference < LAWS:
            raise Unsound(f"{law}: {difference:.1e} between {', '.join(f.kind for f in sym.factors)}")
    return sym, primitives


@contextlib.contextmanager
def patience():
    """A hang becomes an error."""

    def out(*_):
        raise TimeoutError(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, out)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(program):
    """Discover a program once, and say what is wrong."""
    try:
        with patience():
            sym, primitives = checked(program)
    except Exception as error:  # whatever it is, it is a failure
        said = " ".join(str(error).split())
        return Outcome() if "not finite" in said else Outcome(f"{type(error).__name__}: {said[:200]}")
    return Outcome(None, sym, primitives)


def smaller(program, fails=lambda program: outcome(program).failure):
    """The program without the operations, the read-out and the embedding that the failure does not need."""
    fewer = [program._replace(steps=program.steps[:i] + program.steps[i + 1 :]) for i in range(len(program.steps))]
    plainer = [program._replace(head="dense"), program._replace(embedded=False)]
    for other in (*fewer, *plainer):
        if other.steps and other != program and fails(other):
            return smaller(other, fails)
    return program


def certified(program, sym):
    """How complete the group is by the kernel of the Jacobian: ``"complete"``, ``"hidden"``, or why that was not decided."""
    apply, params, (x,) = program.built()
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    outputs = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(apply, params, x)))
    rows = int(SURPLUS * size * len(x) / outputs) + 1
    if rows > LARGEST:
        return "too large"
    apply, params, inputs = program.built(max(rows, len(x)))
    try:
        with patience():
            found = js.certify(apply, sym, params, *inputs, num=4)
    except TimeoutError:
        return "too long"
    except ValueError as error:
        reasons = {"gap": "no gap", "not finite": "not finite", "leaves the kernel": "unsound"}
        return next(reason for words, reason in reasons.items() if words in str(error))
    if found.hidden:
        return "hidden" if found.hidden > found.on_data + found.local else "local"
    return "complete"


def compared(program, sym):
    """How many directions the black-box algebra finds that the group has not, or why that was not decided."""
    apply, params, inputs = program.built(14)
    if sum(leaf.size for leaf in jax.tree.leaves(params)) > SMALL:
        return "too large"
    try:
        with patience():
            return js.symmetry.lie_algebra(apply, params, *inputs).beyond(sym, params)
    except TimeoutError:
        return "too long"
    except ValueError as error:
        reasons = {"unknowns, expected": "too large", "gap": "no gap", "not finite": "not finite"}
        return next(reason for words, reason in reasons.items() if words in str(error))


def more(program):
    """Whether the algebra finds more than discovery."""
    sym = outcome(program).sym
    found = compared(program, sym) if sym else 0
    return found if isinstance(found, int) else 0


def blank(seed):
    """Figures of a run that has not begun."""
    return {
        "seeds": [seed, seed],
        "seconds": 0.0,
        "finite": 0,
        "failed": [],
        "kinds": {},
        "primitives": {},
        "certified": {},
        "compared": {},
        "beyond": [],
    }


def count(figures, name, keys):
    for key in keys:
        figures[name][key] = figures[name].get(key, 0) + 1


def one(figures, number, certify, algebra, console):
    """Put one program into the figures."""
    program = drawn(number)
    found = outcome(program)
    if found.failure:
        least = smaller(program)
        figures["failed"].append({"seed": number, "said": found.failure, "program": repr(least)})
        console.print(f"[red]seed {number}[/] {found.failure}\n  {least!r}", highlight=False)
        return
    if found.sym is None:
        return
    figures["finite"] += 1
    count(figures, "kinds", sorted({factor.kind for factor in found.sym.factors}) or ["none"])
    count(figures, "primitives", sorted(found.primitives))
    if sum(figures["certified"].values()) < certify:
        count(figures, "certified", [certified(program, found.sym)])
    if figures["compared"].get("decided", 0) < algebra:
        beyond = compared(program, found.sym)
        count(figures, "compared", ["decided" if isinstance(beyond, int) else beyond])
        if isinstance(beyond, int) and beyond:
            least = smaller(program, more) if len(figures["beyond"]) < SHOWN else program
            figures["beyond"].append({"seed": number, "directions": beyond, "program": repr(least)})
            console.print(f"[yellow]seed {number}[/] {beyond} directions more\n  {least!r}", highlight=False)


def run(num, seed, certify=0, algebra=0, out=None, console=None):
    """So many programs; the figures."""
    console, figures = console or Console(), blank(seed)
    if out is not None and out.exists():
        figures = json.loads(out.read_text())
        if figures["seeds"][0] != seed:
            msg = f"{out} begins with seed {figures['seeds'][0]}, not {seed}: take another file."
            raise ValueError(msg)
    numbers = range(figures["seeds"][1], seed + num)
    for number in track(numbers, "programs", console=Console(stderr=True), disable=not console.is_terminal):
        start = time.perf_counter()
        one(figures, number, certify, algebra, console)
        figures["seconds"] += time.perf_counter() - start
        figures["seeds"][1] = number + 1
        if number % SAVE == SAVE - 1 or number == numbers[-1]:
            save(figures, out)
        if number % CLEAR == CLEAR - 1:
            jax.clear_caches()
    return figures


def save(figures, out):
    if out is not None:
        part = out.with_suffix(".part")
        part.write_text(json.dumps(figures, indent=1))
        part.replace(out)


def added(reports):
    """The figures of several runs as those of one."""
    total = {"programs": 0} | blank(0)
    for figures in reports:
        total["programs"] += figures["seeds"][1] - figures["seeds"][0]
        for name in ("seconds", "finite", "failed", "beyond"):
            total[name] = total[name] + figures[name]
        for name in ("kinds", "primitives", "certified", "compared"):
            total[name] = dict(collections.Counter(total[name]) + collections.Counter(figures[name]))
    del total["seeds"]
    return total


def said(total):
    """The sum in a few lines."""
    finite = max(total["finite"], 1)
    kinds = sorted(total["kinds"].items(), key=lambda pair: -pair[1])
    unknown = {name: times for name, times in total["primitives"].items() if name not in CATALOGUE}
    lines = [
        f"{total['programs']} programs in {total['seconds']:.0f} s: {len(total['failed'])} unsound or fallen, {total['finite']} finite,"
        f" {1 - total['kinds'].get('none', 0) / finite:.0%} with a group, {len(total['primitives']) - len(unknown)} primitives with a rule; without one: {unknown or 'none'}",
        ", ".join(f"{kind} {times}" for kind, times in kinds),
    ]
    if total["certified"]:
        decided = sum(total["certified"].get(name, 0) for name in ("complete", "hidden", "local")) or 1
        lines.append(
            f"certified {decided}, {total['certified'].get('complete', 0) / decided:.0%} complete: {total['certified']}"
        )
    if total["compared"]:
        lines.append(f"algebra finds more in {len(total['beyond'])} of {total['compared']}")
    return "\n".join(lines)


def main(arguments):
    """Run so many programs, or add up what was run; print what failed, and which kinds and primitives there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others count up")
    parser.add_argument("--certify", type=int, default=0, help="how many are certified")
    parser.add_argument("--algebra", type=int, default=0, help="how many are compared with lie_algebra")
    parser.add_argument("--out", type=Path, help="the figures; a run goes on from them")
    parser.add_argument("--add", type=Path, nargs="+", help="print the sum of these and run nothing")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    if options.add:
        reports = [json.loads(path.read_text()) for path in options.add]
    else:
        reports = [run(options.programs, options.seed, options.certify, options.algebra, options.out, console)]
    total = added(reports)
    console.print(said(total), highlight=False)
    return int(bool(total["failed"]))


if __name__ == "__main__":
    warnings.simplefilter("error")
    jax.config.update("jax_disable_most_optimizations", True)  # every program runs a few times only: compiling is all
    sys.exit(main(sys.argv[1:]))
