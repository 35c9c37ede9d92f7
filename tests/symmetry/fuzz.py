"""Hunts unsound symmetries: ``scripts/fuzz --programs N --seed S``.

Every random program of :mod:`tests.symmetry.programs` is discovered, verified in float64 with other elements than discovery used, and held against the
group laws. What fails is made smaller, operation by operation, and printed.
"""

import argparse
import collections
import signal
import sys
import time
import warnings

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

import jaxsym as js
from jaxsym.symmetry.trace import trace
from jaxsym.symmetry.verify import perturbed, wide
from tests.symmetry.programs import drawn

PATIENCE = 60  # seconds, for one program
LAWS = 1e-6


class Unsound(AssertionError):
    """A factor that is none, or elements that do not compose."""


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
    """The group of a program; raises where it is unsound, drops a factor, or falls."""
    apply, params, inputs = program.built()
    sym = js.discover(apply, params, *inputs)
    found = js.verify(apply, sym, params, *inputs, key=jax.random.key(9))
    if not found.ok:
        wrong = [f.kind for f, r in zip(sym.factors, found.by_factor, strict=True) if r > found.tolerance]
        raise Unsound(f"not a symmetry: {', '.join(wrong) or 'all together'} ({found.residual:.1e})")
    with jax.enable_x64(True):
        start = perturbed(jax.random.key(3), wide(params))
        point = jax.tree.map(np.asarray, start)
        g, h = element(sym, 1), element(sym, 2)
        laws = {
            "compose": apart(sym.act(sym.compose(g, h), point), sym.act(g, sym.act(h, point))),
            "inverse": apart(sym.act(sym.inverse(g), sym.act(g, point)), point),
        }
    for law, difference in laws.items():
        if not difference < LAWS:
            raise Unsound(f"{law}: {difference:.1e} between {', '.join(f.kind for f in sym.factors)}")
    return sym


def failure(program):
    """What is wrong with a program's group, in a line; None where nothing is, or the program itself is not finite."""

    def out(*_):
        raise TimeoutError(f"more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, out)
    signal.alarm(PATIENCE)
    try:
        checked(program)
    except Exception as error:  # whatever it is, it is a failure
        said = " ".join(str(error).split())
        return None if "not finite" in said else f"{type(error).__name__}: {said[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def smaller(program):
    """The program without the operations that the failure does not need."""
    for i in range(len(program.steps)):
        fewer = program._replace(steps=program.steps[:i] + program.steps[i + 1 :])
        if fewer.steps and failure(fewer):
            return smaller(fewer)
    return program


def main(num, seed):
    """Run so many programs; print what failed, and which kinds and primitives there were."""
    start, console = time.perf_counter(), Console()
    failed, kinds, primitives, finite = 0, collections.Counter(), set(), 0
    for number in track(range(seed, seed + num), "programs", console=Console(stderr=True)):
        program = drawn(number)
        said = failure(program)
        if said:
            failed += 1
            least = smaller(program)
            console.print(f"[red]seed {number}[/] {said}\n  {least!r}\n  {failure(least)}", highlight=False)
            continue
        try:
            sym = checked(program)
        except ValueError:
            continue
        finite += 1
        kinds.update({factor.kind for factor in sym.factors} or {"none"})
        apply, params, inputs = program.built()
        primitives |= {equation.primitive for equation in trace(apply, params, *inputs).equations}
        if number % 50 == 49:
            jax.clear_caches()
    share = 1 - kinds["none"] / max(finite, 1)
    console.print(
        f"{num} programs in {time.perf_counter() - start:.0f} s: {failed} unsound or fallen, {finite} finite, {share:.0%} with a group,"
        f" {len(primitives)} primitives"
    )
    console.print(", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("error")
    sys.exit(main(options.programs, options.seed))
