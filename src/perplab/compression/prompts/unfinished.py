"""Where training that is not finished lies: beside the folder that the model is meant for.

The same call finds it and goes on; once the model is in its folder it is removed. A folder that something else made is
refused before any work.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from perplab.artifacts import read_json, remove_temporaries, write_json
from perplab.errors import PerplabError
from perplab.models import Lineage

_SETTINGS = "settings.json"


class Unfinished:
    """The folder of a run that is under way.

    Args:
        out: where the finished model will lie.
        settings: everything its result depends on, as JSON values.

    Attributes:
        finished: whether the model is in `out` already, made with the same settings.

    Raises:
        PerplabError: `out` holds something else, or an unfinished run with other settings lies beside it.
    """

    def __init__(self, out: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.out = Path(out)
        self.path = self.out.with_name(f".{self.out.name}.unfinished")
        self._settings = settings
        self.finished = self.out.exists()
        if self.finished and not self._made_by(Lineage.read(self.out) if self.out.is_dir() else None):
            raise PerplabError(f"{self.out} exists and was not made by this run", "name another output folder")
        file = self.path / _SETTINGS
        if not self.finished and file.exists() and read_json(file, f"delete {self.path}") != settings:
            raise PerplabError(
                f"{self.path} holds an unfinished run with other settings",
                "use its settings to continue it, delete it, or name another output folder",
            )

    @classmethod
    def of(cls, out: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> Self | None:
        """The folder; None where nothing is to be written."""
        return None if out is None else cls(out, settings)

    def checkpoint(self, name: str) -> Path:
        """The file for one part of the run; the folder begins to exist."""
        remove_temporaries(self.path)
        write_json(self.path / _SETTINGS, self._settings)
        return self.path / f"{name}.safetensors"

    def remove(self) -> None:
        """Delete it, after the model is saved."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _made_by(self, lineage: Lineage | None) -> bool:
        return lineage is not None and all(lineage.config.get(key) == value for key, value in self._settings.items())
