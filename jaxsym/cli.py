"""The command ``jaxsym``: list, run, sweep, report and inspect."""

import contextlib
import dataclasses
import datetime
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from jaxsym.catalogue import find
from jaxsym.display import StudyDisplay, SweepDisplay, console

USAGE = """usage: jaxsym COMMAND ...

  jaxsym list                       the studies, a line each
  jaxsym run STUDY --out DIR        run a study; writes results.nc, summary.json, figures/ and report.html into DIR
  jaxsym sweep FILE.toml --out DIR  run a sweep, or go on with it; many cells, seeds and hyperparameters, one folder
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
        kept = "what was computed is saved, and the same command goes on with it" if arguments[0] == "sweep" else ""
        print(f"jaxsym: interrupted; {kept or 'no half-written file was left'}.", file=sys.stderr)
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
        _run(name, study, config, out, quick=quick, overwrite=overwrite)

    command.__doc__ = f"{name}: {study.title}."
    tyro.cli(command, args=arguments[1:], prog=f"jaxsym run {name}")


def _take_all_cores() -> None:
    """One CPU device per core, unless the environment says how many."""
    from jaxsym import use_all_cores

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # too late within a program that uses JAX already
            use_all_cores()


def _run(name: str, study: Any, config: Any, out: Path, *, quick: bool, overwrite: bool) -> None:
    from jaxsym import report
    from jaxsym.parallel.cache import keep_compiled
    from jaxsym.sweep import store

    out = out.expanduser().absolute()
    _check_folder(name, out, overwrite)
    keep_compiled()
    _take_all_cores()
    with StudyDisplay() as progress:
        facts = store.provenance()
        dataset = study.run(config, progress)
    dataset = dataset.assign_attrs(
        study=name,
        title=study.title,
        config=json.dumps(dataclasses.asdict(config)),
        quick=int(quick),
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    )
    store.write_dataset(out / report.RESULTS, dataset)
    for stale in ("summary.json", "report.html"):  # of the results that were there before
        (out / stale).unlink(missing_ok=True)
    page = report.publish_run(out)
    _show_summary(study.summary(dataset))
    console.print(f"wrote {page}", soft_wrap=True, highlight=False)


def sweep(arguments: list[str]) -> None:
    """Run a sweep into a folder, or go on with it."""

    def command(
        file: Annotated[
            Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.toml", help="what to run; see docs/sweeps.md")
        ],
        out: Annotated[Path, tyro.conf.arg(help="the folder for the results; a sweep that was begun there goes on")],
        executor: Annotated[
            Literal["inline", "processes", "slurm"],
            tyro.conf.arg(help="one cell after another; some at a time, each in a process; an array of Slurm jobs"),
        ] = "inline",
        workers: Annotated[int | None, tyro.conf.arg(help="processes at a time (processes)")] = None,
        slurm_partition: Annotated[str | None, tyro.conf.arg(help="(slurm)")] = None,
        slurm_account: Annotated[str | None, tyro.conf.arg(help="(slurm)")] = None,
        slurm_minutes: Annotated[int, tyro.conf.arg(help="time limit of a cell (slurm)")] = 60,
        slurm_cpus: Annotated[int, tyro.conf.arg(help="cores of a cell (slurm)")] = 1,
        slurm_memory_gb: Annotated[int | None, tyro.conf.arg(help="memory of a cell (slurm)")] = None,
        slurm_parallelism: Annotated[int | None, tyro.conf.arg(help="cells at a time (slurm)")] = None,
    ) -> None:
        """Run a sweep. The exit code is 1 when a cell failed; the others stand, and the same command tries it again."""
        from jaxsym.parallel.cache import keep_compiled
        from jaxsym.sweep import engine, grid

        _check_options(executor, arguments)
        keep_compiled()
        if executor == "inline":
            _take_all_cores()
        slurm = {
            "partition": slurm_partition,
            "account": slurm_account,
            "minutes": slurm_minutes,
            "cpus": slurm_cpus,
            "memory_gb": slurm_memory_gb,
            "parallelism": slurm_parallelism,
        }
        with SweepDisplay(len(grid.load(file.expanduser()).cells())) as show:
            outcome = engine.run(file, out, executor, show=show, workers=workers, slurm=slurm)
        _conclude(outcome, out.expanduser().absolute())

    tyro.cli(command, args=arguments, prog="jaxsym sweep")


def _check_options(executor: str, arguments: Sequence[str]) -> None:
    """Refuse an option of another executor, which would do nothing."""
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        of = "processes" if option == "--workers" else "slurm" if option.startswith("--slurm-") else executor
        if of != executor:
            msg = f"{option}: is for --executor {of}, got --executor {executor}; add the one or leave out the other."
            raise ValueError(msg)


def _conclude(outcome: Any, out: Path) -> None:
    """Say what became of a sweep and make its page; exit code 1 where a cell failed."""
    from jaxsym import report

    notes = f", {outcome.nonfinite} of them not finite (kept and flagged)" if outcome.nonfinite else ""
    console.print(f"{outcome.done} of {outcome.cells} cells, {outcome.networks} networks{notes}", highlight=False)
    if outcome.done:
        page = report.publish(out)
        console.print(f"wrote {page}", soft_wrap=True, highlight=False)
    for failure in outcome.failures:
        print(
            f"jaxsym: cell {failure.number} ({failure.label}) failed: {failure.error}; see {failure.log}",
            file=sys.stderr,
        )
    if outcome.done < outcome.cells:
        sys.exit(1)


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
    "sweep": sweep,
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

    store.expect_folder(out)
    if (out / report.SWEEP).exists():
        msg = f"{out} holds a sweep; choose another --out."
        raise ValueError(msg)
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
