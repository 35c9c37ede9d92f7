"""What a study is, and how its ensembles are run and timed."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, PyTree
from matplotlib.figure import Figure
from scipy import stats

from jaxsym.catalogue import find
from jaxsym.parallel import parallel

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Told what is under way, the net-steps done so far, and all net-steps there will be."""

Claim = tuple[str, str, bool | None]
"""What is said, what was measured, and whether that bears it out; None where it cannot be told, as where nothing happened that the claim is about."""
VERDICTS = {True: "yes", False: "no", None: "not decided"}

COUNTS = ("networks", "net_steps", "compile_seconds", "run_seconds")
"""What the dataset of a study says of its run, beside its results."""


class Picture(NamedTuple):
    """A figure with its file's name, what the caption says, and what it shows for those who cannot see it."""

    name: str
    figure: Figure
    caption: str
    alt: str


class Cell(NamedTuple):
    """A cell of a table that is more than text: the number it sorts by (NaN: always last), or where it leads."""

    text: str
    value: float | None = None
    href: str = ""


class Table(NamedTuple):
    """Rows under a header; ``groups`` are headings above it, each with the number of columns that it spans."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str
    sortable: bool = False
    groups: Sequence[tuple[str, int]] = ()


class Section(NamedTuple):
    """A part of a page. Its sentences are computed from the figures."""

    title: str
    paragraphs: Sequence[str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """A pure function from a frozen config to a dataset, and what people look at, computed from that dataset alone.

    Parameters
    ----------
    title
        One line for ``jaxsym list``.
    config, quick
        The ordinary config and a quick one; instances of one frozen dataclass whose fields are the options of
        ``jaxsym run``.
    run
        ``run(config, progress) -> Dataset``.
    summary
        ``summary(dataset) -> dict`` of headline figures (numbers, strings, or lists of them).
    page
        ``page(dataset) -> [Section]``.
    """

    title: str
    config: Any
    quick: Any
    run: Callable[[Any, Progress], xr.Dataset]
    summary: Callable[[xr.Dataset], dict[str, Any]]
    page: Callable[[xr.Dataset], Sequence[Section]]


def claims_table(found: Sequence[Claim], caption: str) -> Table:
    """What is claimed, what was measured, and whether that bears it out."""
    rows = [(claim, measured, VERDICTS[holds]) for claim, measured, holds in found]
    return Table(("claim", "measured", "holds"), rows, caption)


def tally(found: Sequence[Claim]) -> str:
    """How many claims hold, in a sentence.

    >>> tally([("a", "", True), ("b", "", False), ("c", "", None)])
    '1 of 3 claims holds in this run; 1 cannot be decided by it.'
    """
    held, open_ = sum(bool(holds) for *_, holds in found), sum(holds is None for *_, holds in found)
    said = f"{held} of {len(found)} claims {'holds' if held == 1 else 'hold'} in this run"
    return f"{said}; {open_} cannot be decided by it." if open_ else f"{said}."


def agreed(verdicts: Iterable[bool | None]) -> bool | None:
    """Of several verdicts: no where one says no, yes where all do, None otherwise.

    >>> agreed([True, None]), agreed([None, False]), agreed([True, True])
    (None, False, True)
    """
    found = list(verdicts)
    return False if False in found else True if found and None not in found else None


def interval(values: Float[np.ndarray, " n"], level: float = 0.95) -> list[float]:
    """The mean, and the ends of its interval by Student's t.

    >>> interval(np.array([1.0, 2.0, 3.0]))[0]
    2.0
    """
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    reach = stats.t.ppf(0.5 + level / 2, len(values) - 1) * error
    return [float(mean), float(mean - reach), float(mean + reach)]


def below(interval: Sequence[float], bound: float = 0.0) -> bool | None:
    """Whether a figure with its interval, ``(figure, low, high)``, is below a bound; None where the interval contains the bound."""
    _, low, high = interval
    return True if high < bound else False if low > bound else None


def above(interval: Sequence[float], bound: float = 0.0) -> bool | None:
    """The opposite of :func:`below`."""
    verdict = below(interval, bound)
    return None if verdict is None else not verdict


def sign_test(better: int, worse: int) -> float:
    """The probability of a division at least as uneven if both were as likely; 1 where there is none."""
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def refuted(found: Sequence[Claim]) -> list[str]:
    """The claims that what was measured does not bear out."""
    return [claim for claim, _, holds in found if holds is not None and not holds]


def silent(label: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def expect(config: Any, **least: int) -> None:
    """Refuse options of a study below their least numbers, seeds out of range and test fractions that leave nothing.

    Raises
    ------
    ValueError
        Naming the option, what was got and what was expected.
    """
    for name, bound in least.items():
        if getattr(config, name) < bound:
            msg = f"{name}: got {getattr(config, name)}, expected at least {bound}."
            raise ValueError(msg)
    if not 0 <= config.seed < 2**31:
        msg = f"seed: got {config.seed}, expected an integer from 0 to {2**31 - 1}."
        raise ValueError(msg)
    if not 0 < getattr(config, "test_fraction", 0.5) < 1:
        msg = f"test_fraction: got {config.test_fraction}, expected a number between 0 and 1, both excluded."
        raise ValueError(msg)


def numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Numbers separated by commas.

    Raises
    ------
    ValueError
        Naming the option, if one of them is none.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        msg = f"{name}: got {text!r}, expected numbers separated by commas."
        raise ValueError(msg) from None


def chosen(names: str, catalogue: Mapping[str, T], what: str) -> dict[str, T]:
    """Entries of a catalogue by their names, separated by commas; in the order of the catalogue.

    Raises
    ------
    ValueError
        If there is no such entry; the message has the nearest.
    """
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        find(catalogue, name, what)
    return {name: entry for name, entry in catalogue.items() if name in wanted}


class Clock:
    """Runs ensembles in blocks of networks, reports progress after each, and keeps the times.

    Parameters
    ----------
    progress
        Where to report.
    total
        All net-steps that will be run.
    """

    block = 256

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.net_steps = 0
        self.networks = 0
        self.compile_seconds = 0.0
        self.run_seconds = 0.0

    def ensemble(self, label: str, fn: Callable[..., PyTree], *args: PyTree, steps: int) -> PyTree:
        """``vmap(fn)(*args)`` as NumPy arrays; one compiled program, called for one block of networks after another."""
        size = jax.tree.leaves(args)[0].shape[0]
        num_blocks = math.ceil(size / self.block)
        block = math.ceil(size / num_blocks)
        self.progress(f"{label}: compiling", self.net_steps, self.total)
        start = time.perf_counter()
        compiled = jax.jit(parallel(fn)).lower(*_rows(args, 0, block)).compile()
        self.compile_seconds += time.perf_counter() - start
        results = []
        for first in range(0, size, block):
            count = min(block, size - first)
            self.progress(f"{label}: networks {first + 1} to {first + count} of {size}", self.net_steps, self.total)
            start = time.perf_counter()
            results.append(jax.device_get(compiled(*_rows(args, first, block))))
            self.run_seconds += time.perf_counter() - start
            self.net_steps += count * steps
        self.networks += size
        self.progress(label, self.net_steps, self.total)
        return jax.tree.map(lambda *blocks: np.concatenate(blocks)[:size], *results)

    def variables(self) -> dict[str, Any]:
        """The times and counts as scalar variables of a dataset."""
        return {name: ((), getattr(self, name)) for name in COUNTS}


def run_counts(data: xr.Dataset) -> dict[str, Any]:
    """The times and counts of a run, for a summary."""
    return {name: data[name].item() for name in COUNTS}


def network_keys(seed: int, num: int) -> Array:
    """Keys ``[num]``, each from its network's global index: network 7 is the same however many others there are."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.arange(num))


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _rows(args: PyTree, first: int, count: int) -> PyTree:
    """``count`` rows from ``first`` on, the last one repeated where there are no more."""
    return jax.tree.map(lambda leaf: leaf[np.minimum(np.arange(first, first + count), leaf.shape[0] - 1)], args)
