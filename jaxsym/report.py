"""The page of a run: pictures, summary and one self-contained HTML file, all from the stored dataset."""

import base64
import io
import json
import math
import shlex
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr

from jaxsym import studies
from jaxsym.studies.study import Picture, Study
from jaxsym.sweep import store

RESULTS = "results.nc"


def publish(directory: Path, dataset: xr.Dataset) -> Path:
    """Write ``summary.json``, ``figures/*.png`` and ``.svg`` and ``report.html`` into a folder; the page's path.

    Raises
    ------
    ValueError
        If the dataset names no study that is known here, or lacks what its page needs.
    """
    name, study = study_of(dataset, directory)
    try:
        return _publish(directory, dataset, name, study)
    except KeyError as error:
        msg = f"{directory / RESULTS}: {error} is missing; it is not whole or of another version. Run the study again."
        raise ValueError(msg) from error


def _publish(directory: Path, dataset: xr.Dataset, name: str, study: Study) -> Path:
    summary = {key: _or_none(value) for key, value in study.summary(dataset).items()}
    store.write_text(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    sections = study.page(dataset)
    images = {
        picture.name: _save(picture, directory / "figures") for section in sections for picture in section.pictures
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(resources.files("jaxsym").joinpath("report.html.jinja").read_text("utf-8"))
    attributes = dataset.attrs
    page = template.render(
        name=name,
        title=study.title,
        sections=sections,
        images=images,
        summary={key: _readable(value) for key, value in summary.items()},
        facts={
            "written": attributes["written"],
            "device": attributes["device"],
            "jaxsym at": attributes["git_revision"],
            "config": ", ".join(f"{key} {value}" for key, value in json.loads(attributes["config"]).items()),
            "versions": ", ".join(f"{key} {value}" for key, value in json.loads(attributes["versions"]).items()),
        },
        command=_command(name, study, json.loads(attributes["config"])),
    )
    store.write_text(directory / "report.html", page)
    return directory / "report.html"


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


def _command(name: str, study: Study, config: Mapping[str, Any]) -> str:
    """The command that makes this run again: every option that differs from its default."""
    changed = {key: value for key, value in config.items() if getattr(study.config, key, None) != value}
    options = "".join(f" {_option(key.replace('_', '-'), value)}" for key, value in changed.items())
    return f"jaxsym run {name} --out runs/{name}{options}"


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
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", 'Creating legend with loc="best" can be slow'
            )  # on a busy machine; it is waited for
            picture.figure.savefig(buffer, format=kind, dpi=150, metadata=metadata[kind])
        content = buffer.getvalue()
        with store.atomic(folder / f"{picture.name}.{kind}") as temporary:
            temporary.write_bytes(content)
        if kind == "png":
            uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return uri


def _or_none(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return str(value)
