"""The folder of a sweep: where everything is, and which sweep it belongs to."""

import dataclasses
from pathlib import Path

from jaxsym.sweep import store
from jaxsym.sweep.grid import Sweep, differences, parse

CONFIG = "sweep.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Folder:
    """A sweep's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The file that says which sweep this is."""
        return self.path / CONFIG

    @property
    def database(self) -> Path:
        """Optuna's copy of a search."""
        return self.path / "search" / "study.db"

    def cell(self, index: int) -> Path:
        """The folder of a cell. Its name is a number, so that no value of an axis ever becomes a path."""
        return self.path / "cells" / f"{index:04d}"

    def sweep(self) -> tuple[Sweep, list[str]]:
        """The sweep that is stored here, and the folders in which its target is looked for.

        Raises
        ------
        ValueError
            If there is none, or its file is damaged.
        """
        stored = store.read_json(self.config)
        if stored is None:
            msg = f"{self.config}: no sweep is stored here, or the file is damaged; `jaxsym sweep FILE.toml --out {self.path}` writes it."
            raise ValueError(msg)
        if (
            not isinstance(stored, dict)
            or stored.get("format") != FORMAT
            or not {"config", "hash", "folders"} <= {*stored}
        ):
            msg = f"{self.config}: is damaged, or has another format than this version of jaxsym writes ({FORMAT}); choose another folder."
            raise ValueError(msg)
        sweep = parse(stored["config"])
        if sweep.digest() != stored.get("hash"):
            msg = f"{self.config}: has been changed by hand; restore it, or choose another folder."
            raise ValueError(msg)
        return sweep, stored["folders"]

    def claim(self, sweep: Sweep, folders: list[str]) -> None:
        """Write the sweep into an empty folder; in the folder of the same sweep, do nothing.

        Raises
        ------
        ValueError
            If the folder belongs to another sweep, with the differences, or to something else.
        """
        if self.config.exists():
            stored, _ = self.sweep()
            if stored.digest() != sweep.digest():
                lines = "".join(f"\n  {line}" for line in differences(stored.as_dict(), sweep.as_dict()))
                msg = f"{self.path} holds another sweep; choose another --out, or undo these changes:{lines}"
                raise ValueError(msg)
        elif self.path.exists() and any(entry.name != ".lock" for entry in self.path.iterdir()):
            msg = f"{self.path} is not empty and holds no sweep; choose another --out."
            raise ValueError(msg)
        config = {"format": FORMAT, "hash": sweep.digest(), "config": sweep.as_dict(), "folders": folders}
        store.write_json(self.config, config)
