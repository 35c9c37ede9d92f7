"""The command ``jaxsym``: list, run, report and inspect."""

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxsym.catalogue import find

USAGE = """usage: jaxsym COMMAND ...

  jaxsym list                       the studies, a line each
  jaxsym run STUDY --out DIR        run a study; writes results.nc, summary.json, figures/ and report.html into DIR
  jaxsym report DIR                 write summary, figures and page again, from the stored results
  jaxsym inspect MODULE:FACTORY     the symmetry group of your own network, verified

`jaxsym run STUDY --help` shows a study's own options; `--quick` makes a small run of it."""

INSPECT_HELP = """Print the symmetry group of your own network, then its verification in float64 and float32.

The exit code is 1 when the verification fails, and 2 when there is nothing to inspect. An example, mynets.py:

    import jax, jax.numpy as jnp, flax.linen as nn

    def mlp():
        net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
        x = jnp.ones((5, 3))
        return net.apply, net.init(jax.random.key(0), x), (x,)

    $ jaxsym inspect mynets:mlp
"""
FACTORY_HELP = (
    "a function without arguments that returns (apply, params, inputs), such as mynets:mlp or path/to/mynets.py:mlp;"
    " inputs is a tuple; modules of the current directory are found"
)

console = Console()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors are one sentence on stderr and exit code 2, an interrupt is exit code 130."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"jaxsym {metadata.version('jaxsym')}")
        return
    try:
        command = find(COMMANDS, arguments[0], "command")
        command(arguments[1:])
    except (ValueError, OSError) as error:
        print(f"jaxsym: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("jaxsym: interrupted; no half-written file was left.", file=sys.stderr)
        sys.exit(130)


def list_studies(arguments: list[str]) -> None:
    """Print the studies."""

    def command() -> None:
        """The studies, a line each."""
        from jaxsym import studies

        table = Table(box=None, show_header=False, pad_edge=False)
        for name, study in studies.catalogue().items():
            table.add_row(name, study.title)
        console.print(table)

    tyro.cli(command, args=arguments, prog="jaxsym list")


def run(arguments: list[str]) -> None:
    """Run a study into a folder."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: jaxsym run STUDY --out DIR [--quick] [--overwrite] [options of the study]\n")
        print("`jaxsym list` names the studies; `jaxsym run STUDY --help` shows the options of one.")
        sys.exit(0 if arguments else 2)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when SciPy is loaded: the devices have the cores already
    from jaxsym import studies

    name = arguments[0]
    study = studies.load(name)
    config_type = tyro.conf.OmitArgPrefixes[type(study.config)]  # type: ignore[misc]
    default = study.quick if "--quick" in arguments else study.config

    def command(
        out: Annotated[Path, tyro.conf.arg(help="the folder for the results")],
        config: config_type = default,
        quick: Annotated[bool, tyro.conf.arg(help="a small run: other defaults for the options below")] = False,
        overwrite: Annotated[bool, tyro.conf.arg(help="replace another study's results in the folder")] = False,
    ) -> None:
        del quick  # it has chosen the defaults above
        _run(name, study, config, out, overwrite)

    command.__doc__ = f"{name}: {study.title}."
    tyro.cli(command, args=arguments[1:], prog=f"jaxsym run {name}")


def _run(name: str, study: Any, config: Any, out: Path, overwrite: bool) -> None:
    from jaxsym import report, use_all_cores
    from jaxsym.sweep import store

    out = out.expanduser().absolute()
    _check_folder(name, out, overwrite)
    with contextlib.suppress(
        RuntimeError
    ):  # too late within a program that uses JAX already: the devices there are serve
        use_all_cores()
    with _Display() as progress:
        facts = store.provenance()
        dataset = study.run(config, progress)
    dataset = dataset.assign_attrs(
        study=name,
        title=study.title,
        config=json.dumps(dataclasses.asdict(config)),
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    )
    store.write_dataset(out / report.RESULTS, dataset)
    page = report.publish_run(out)
    _show_summary(study.summary(dataset))
    console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def publish(arguments: list[str]) -> None:
    """Write the page of a run or a sweep again."""

    def command(
        directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="the folder of a run or a sweep")],
    ) -> None:
        """Write summary, figures and page again, from the stored results."""
        from jaxsym import report

        page = report.publish(directory.expanduser().absolute())
        console.print(f"wrote {page}", soft_wrap=True, highlight=False)

    tyro.cli(command, args=arguments, prog="jaxsym report")


def inspect(arguments: list[str]) -> None:
    """Print the group of a user's own network, verified."""

    def command(
        factory: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FACTORY", help=FACTORY_HELP)],
        key: Annotated[int, tyro.conf.arg(help="the seed of the elements and parameters that verification tries")] = 0,
    ) -> None:
        import jax

        from jaxsym.symmetry import inspecting

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = inspecting.inspected(inspecting.load(factory), jax.random.key(key))
        for warning in caught:
            print(f"jaxsym: {warning.message}", file=sys.stderr)
        print(found.sym, found, sep="\n\n")
        if not found.ok:
            print("jaxsym: the verification failed; please report it.", file=sys.stderr)
            sys.exit(1)

    command.__doc__ = INSPECT_HELP
    tyro.cli(command, args=arguments, prog="jaxsym inspect")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "list": list_studies,
    "run": run,
    "report": publish,
    "inspect": inspect,
}


def _check_folder(name: str, out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds another study's results, or something that is no folder, before any work is done.

    Raises
    ------
    ValueError
        With what is there and what to do.
    """
    from jaxsym import report
    from jaxsym.sweep import store

    if out.exists() and not out.is_dir():
        msg = f"{out} is a file, expected a folder; choose another --out."
        raise ValueError(msg)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        msg = f"{out}: cannot be written to ({error.strerror or error}); choose another --out."
        raise ValueError(msg) from error
    results = out / report.RESULTS
    if results.is_dir():
        msg = f"{results} is a folder, expected a file; choose another --out."
        raise ValueError(msg)
    if overwrite or not results.exists():
        return
    try:
        held = store.read_dataset(results).attrs.get("study", "an unknown study")
    except ValueError as error:
        msg = f"{error} Or pass --overwrite to replace it."
        raise ValueError(msg) from error
    if held != name:
        msg = f"{out} holds the results of {held}; choose another --out, or pass --overwrite to replace them by {name}."
        raise ValueError(msg)


def _show_summary(summary: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in summary.items():
        table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    console.print(table)


class _Rate(ProgressColumn):
    """Net-steps per second: updates of single networks, since the start."""

    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed and task.completed else 0
        return Text(f"{rate:,.0f} net-steps/s", style="progress.data.speed")


class _Display:
    """Progress on a terminal as a bar, elsewhere as a line whenever something new is under way.

    While it is shown, Ctrl-C and a termination request stop the work at its next report: JAX may swallow an exception that is raised
    inside it. A second Ctrl-C stops at once.
    """

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.stopped = False
        self.bar: Progress | None = None
        self.handlers = {}
        with contextlib.suppress(ValueError):  # only the main thread may
            self.handlers = {kind: signal.signal(kind, self.stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        if not console.is_terminal:
            return self.line
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True).__enter__()
        self.task = self.bar.add_task("starting", total=None)
        return self.draw

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*exception)
        for kind, handler in self.handlers.items():
            signal.signal(kind, handler)

    def stop(self, *_: Any) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        print("jaxsym: stopping after the networks under way; once more to stop at once", file=sys.stderr)

    def check(self) -> None:
        if self.stopped:
            raise KeyboardInterrupt

    def line(self, label: str, done: int, total: int) -> None:
        self.check()
        with contextlib.suppress(BrokenPipeError):  # who reads along may leave
            print(f"{done / total:4.0%} {label}", flush=True)

    def draw(self, label: str, done: int, total: int) -> None:
        self.check()
        assert self.bar is not None
        self.bar.update(self.task, description=label, completed=done, total=total)
