"""What the command line shows while work is under way, and how it is stopped."""

import contextlib
import signal
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from jaxsym.sweep.engine import Shown

console = Console()

LINE_SECONDS = 10
"""How often a line is written for each cell that runs, where there is no terminal."""


class Stoppable:
    """While it is entered, Ctrl-C and a termination request stop the work at its next report, and a second one at once.

    JAX may swallow an exception that is raised inside it.
    """

    what = "networks"

    def __enter__(self) -> Any:
        """Take over the signals."""
        self.stopped = False
        self.handlers = {}
        with contextlib.suppress(ValueError):  # only the main thread may
            self.handlers = {kind: signal.signal(kind, self.stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: Any) -> None:
        """Give the signals back."""
        for kind, handler in self.handlers.items():
            signal.signal(kind, handler)

    def stop(self, *_: Any) -> None:
        """On the first signal, remember it; on the second, stop."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        print(f"jaxsym: stopping after the {self.what} under way; once more to stop at once", file=sys.stderr)

    def check(self) -> None:
        """Stop now if it was asked for.

        Raises
        ------
        KeyboardInterrupt
            If a signal has come.
        """
        if self.stopped:
            raise KeyboardInterrupt


class StudyDisplay(Stoppable):
    """The progress of a study: on a terminal a bar, elsewhere a line whenever something new is under way."""

    def __enter__(self) -> Any:
        """Return what is to be told of the progress."""
        super().__enter__()
        self.bar: Progress | None = None
        if not console.is_terminal:
            return self.line
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True).__enter__()
        self.task = self.bar.add_task("starting", total=None)
        return self.draw

    def __exit__(self, *exception: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.__exit__(*exception)
        super().__exit__(*exception)

    def line(self, label: str, done: int, total: int) -> None:
        """Write a line."""
        self.check()
        say(f"{done / total:4.0%} {label}")

    def draw(self, label: str, done: int, total: int) -> None:
        """Move the bar."""
        self.check()
        assert self.bar is not None
        self.bar.update(self.task, description=label, completed=done, total=total)


class SweepDisplay(Stoppable):
    """The progress of a sweep, a line a cell: on a terminal those that run as bars, elsewhere one every ten seconds."""

    what = "steps"

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self.settled = 0
        self.tasks: dict[int, Any] = {}
        self.told: dict[int, float] = {}

    def __enter__(self) -> Any:
        """Return what is to be told of the cells."""
        super().__enter__()
        self.bars: Progress | None = None
        if console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[pace]}"),
            )
            self.bars = Progress(*columns, console=console, transient=True).__enter__()
        return self.show

    def __exit__(self, *exception: Any) -> None:
        """Take the bars away."""
        if self.bars is not None:
            self.bars.__exit__(*exception)
        super().__exit__(*exception)

    def show(self, shown: Shown) -> None:
        """Show one cell."""
        self.check()
        if shown.state in ("done", "found", "failed"):
            self.settled += 1
            if self.bars is not None and shown.number in self.tasks:
                self.bars.remove_task(self.tasks.pop(shown.number))
            self._line(f"[{self.settled}/{self.num_cells}] {self._settled(shown)}")
        elif shown.state == "running" and shown.progress is not None:
            if self.bars is not None:
                self._draw(shown)
            elif time.monotonic() - self.told.get(shown.number, 0.0) >= LINE_SECONDS:
                self.told[shown.number] = time.monotonic()
                self._line(f"cell {shown.number}: {shown.label}: {pace(shown.progress)}")

    def _settled(self, shown: Shown) -> str:
        text = f"cell {shown.number}: {shown.label}: "
        if shown.state == "failed":
            return f"{text}FAILED: {shown.note}"
        assert shown.progress is not None
        text += f"{shown.progress.networks} networks"
        text += ", complete already" if shown.state == "found" else f" in {shown.progress.seconds:.1f} s"
        return text + (f"; {shown.note}" if shown.note else "")

    def _line(self, text: str) -> None:
        if self.bars is not None:
            self.bars.console.print(text, soft_wrap=True, highlight=False, markup=False)
        else:
            say(text)

    def _draw(self, shown: Shown) -> None:
        assert self.bars is not None
        assert shown.progress is not None
        if shown.number not in self.tasks:
            self.tasks[shown.number] = self.bars.add_task("", total=1.0, pace="")
        done = shown.progress
        part = done.steps_done / done.steps if done.steps else done.networks_done / max(done.networks, 1)
        description = f"cell {shown.number}: {shown.label}"
        self.bars.update(self.tasks[shown.number], description=description, completed=part, pace=pace(done))


def pace(progress: Any) -> str:
    """Networks, steps, steps per second and the time left, in words.

    >>> from jaxsym.sweep.cell import Progress
    >>> pace(Progress(networks=64, networks_done=16, steps=6400, steps_done=3200, seconds=2.0))
    '16 of 64 networks, 3,200 of 6,400 net-steps, 1,600/s, 2 s left'
    """
    words = [f"{progress.networks_done:,} of {progress.networks:,} networks"]
    if progress.steps:
        words.append(f"{progress.steps_done:,} of {progress.steps:,} net-steps")
    if progress.rate:
        words.append(f"{progress.rate:,.0f}/s" if progress.rate >= 10 else f"{progress.rate:.2g}/s")
    if progress.left is not None:
        words.append(f"{_duration(progress.left)} left")
    return ", ".join(words)


def say(text: str) -> None:
    """Print a line; who reads along may leave."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Rate(ProgressColumn):
    """Net-steps per second: updates of single networks, since the start."""

    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed and task.completed else 0
        return Text(f"{rate:,.0f} net-steps/s", style="progress.data.speed")
