"""The page of a run or a sweep: pictures, summary and one self-contained HTML file, all from what is stored."""

import base64
import io
import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import xarray as xr

from jaxsym import studies, sweep_page
from jaxsym.studies.study import Picture, Section, Study, Table
from jaxsym.sweep import store

RESULTS = "results.nc"
SWEEP = "sweep.json"


class File(NamedTuple):
    """A file to copy from the page."""

    name: str
    content: str


def publish(directory: Path) -> Path:
    """Write the page of a folder again, whichever it is: of a sweep (it has ``sweep.json``) or of a run.

    Raises
    ------
    ValueError
        If the stored results are missing or damaged.
    """
    return publish_sweep(directory) if (directory / SWEEP).is_file() else publish_run(directory)


def publish_run(directory: Path) -> Path:
    """Write ``summary.json``, ``figures/*.png`` and ``.svg`` and ``report.html`` from ``results.nc``; the page's path.

    Raises
    ------
    ValueError
        If there are no results, they name no study that is known here, or lack what its page needs.
    """
    dataset = store.read_dataset(directory / RESULTS)
    name, study = study_of(dataset, directory)
    try:
        config, quick = json.loads(dataset.attrs["config"]), bool(dataset.attrs.get("quick", 0))
        return _write(
            directory,
            study.title,
            study.page(dataset),
            study.summary(dataset),
            kicker=f"study {name}{', a quick run: too small for its figures to settle' if quick else ''}",
            command=_command(name, study, config, quick=quick),
            file=None,
            facts={
                "written": dataset.attrs["written"],
                **_facts(dataset),
                "config": ", ".join(f"{key} {value}" for key, value in config.items()),
            },
        )
    except KeyError as error:
        msg = f"{directory / RESULTS}: {error} is missing; it is not whole or of another version. Run the study again."
        raise ValueError(msg) from error


def publish_sweep(directory: Path) -> Path:
    """Write the same files from what a sweep has stored so far; the page's path.

    Raises
    ------
    ValueError
        If what is stored is damaged or lacks what the page needs.
    """
    dataset, cells = sweep_page.read(directory)
    try:
        page = sweep_page.build(dataset, cells)
        file = File("sweep.toml", page.toml)
        return _write(
            directory,
            page.title,
            page.sections,
            page.summary,
            kicker="sweep",
            command=f"jaxsym sweep {file.name} --out {shlex.quote(directory.name)}",
            file=file,
            facts={**_facts(dataset), "hash of the config": dataset.attrs["hash"]},
        )
    except KeyError as error:
        msg = f"{directory}: {error} is missing; the sweep is not whole or of another version. Run it again."
        raise ValueError(msg) from error


def _facts(dataset: xr.Dataset) -> dict[str, str]:
    """Where results come from."""
    versions = json.loads(dataset.attrs["versions"])
    return {
        "device": dataset.attrs["device"],
        "jaxsym at": dataset.attrs["git_revision"],
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }


def _write(directory: Path, title: str, sections: Sequence[Section], summary: Mapping[str, Any], **rest: Any) -> Path:
    summary = {key: _or_none(value) for key, value in summary.items()}
    store.write_text(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    images = {
        picture.name: _save(picture, directory / "figures") for section in sections for picture in section.pictures
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = _columns_of_words
    template = environment.from_string(resources.files("jaxsym").joinpath("report.html.jinja").read_text("utf-8"))
    figures = {key: _readable(value) for key, value in summary.items()}
    sortable = any(table.sortable for section in sections for table in section.tables)
    page = template.render(title=title, sections=sections, images=images, summary=figures, sortable=sortable, **rest)
    store.write_text(directory / "report.html", page)
    return directory / "report.html"


def _columns_of_words(table: Table) -> list[bool]:
    """Which columns of a table are read from the left: those whose cells mostly begin with something else than a number."""

    def words(column: int) -> bool:
        cells = [row[column] for row in table.rows if column < len(row)]
        texts = [(cell if isinstance(cell, str) else cell.text).strip() for cell in cells]
        told = [not re.match(r"[-+−±<>≤≥~]?\s*[\d.∞–—]", text) for text in texts if text]
        return bool(told) and 2 * sum(told) >= len(told)

    return [words(column) for column in range(len(table.header))]


def study_of(dataset: xr.Dataset, directory: Path) -> tuple[str, Study]:
    """The study that a dataset's attributes name.

    Raises
    ------
    ValueError
        If they name none, or one that is unknown here.
    """
    if "study" not in dataset.attrs:
        msg = f"{directory / RESULTS}: the attribute 'study' is missing; expected the results of `jaxsym run`."
        raise ValueError(msg)
    name = str(dataset.attrs["study"])
    return name, studies.load(name)


def _command(name: str, study: Study, config: Mapping[str, Any], *, quick: bool) -> str:
    """The command that makes this run again: every option that differs from its default."""
    default = study.quick if quick else study.config
    changed = {key: value for key, value in config.items() if getattr(default, key, None) != value}
    options = "".join(f" {_option(key.replace('_', '-'), value)}" for key, value in changed.items())
    return f"jaxsym run {name} --out runs/{name}{' --quick' if quick else ''}{options}"


def _option(key: str, value: Any) -> str:
    """One option as a shell wants it."""
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no-{key}"
    return f"--{key} {shlex.quote(str(value))}"


def _save(picture: Picture, folder: Path) -> str:
    """Write both files of a picture; its data URI for the page."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None}}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # on a busy machine; a letter that the font lacks is a box
            warnings.filterwarnings("ignore", 'Creating legend with loc="best" can be slow')
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            picture.figure.savefig(buffer, format=kind, dpi=150, metadata=metadata[kind])
        content = buffer.getvalue()
        with store.atomic(folder / f"{picture.name}.{kind}") as temporary:
            temporary.write_bytes(content)
        if kind == "png":
            uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return uri


def _or_none(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, list | tuple):
        return [_or_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return str(value)
