"""The folder of a training run: `OUT/run/` beside the finished model in `OUT/`.

It belongs to one run at a time, and remembers what decides the run's result, so that the same call continues it and
another is refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perplab.artifacts import read_json, recover_folder, remove_temporaries, write_json
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.training.distribution import Processes


class RunFolder:
    """Where a run keeps its settings, tokenizer, diary and last checkpoint.

    Args:
        out: the folder the finished model will lie in.
        processes: the run's processes; the first of them writes.
    """

    def __init__(self, out: Path, processes: Processes) -> None:
        self.out = out
        self.path = out / "run"
        self.checkpoint = self.path / "checkpoint"
        self._processes = processes

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the folder to this run while the block runs, and mend what a killed writer left there.

        Raises:
            PerplabError: another run is at work there, it holds a model of another origin, or it cannot be written.
        """
        if not self._processes.first:
            yield
            return
        if (self.out / "config.json").exists() and not self.path.exists():
            raise PerplabError(f"{self.out} holds a model that no run made", "use another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise PerplabError(
                f"another process is training in {self.out}", "wait for it, or use another --out"
            ) from None
        except OSError as error:
            raise PerplabError(
                f"cannot write {self.path} ({error.strerror})", "name a folder you own with --out"
            ) from error
        with lock:
            remove_temporaries(self.path)
            recover_folder(self.checkpoint)
            yield

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Write down what decides the result, or check that the run to be continued was started with the same.

        Raises:
            PerplabError: the folder holds a run with other settings.
        """
        file = self.path / "settings.json"
        saved = read_json(file, f"delete {self.path} to start again") if file.exists() else None
        self._processes.wait()  # nobody writes before everybody has looked
        if saved is None:
            if self._processes.first:
                write_json(file, settings)
            return
        for key in sorted(settings.keys() | saved.keys()):
            if saved.get(key) != settings.get(key):
                raise PerplabError(
                    f"{self.out} holds a run with other settings ({key}: {saved.get(key)}, now {settings.get(key)})",
                    "use the first run's settings to continue it, or another --out",
                )

    def publish(self, language_model: LanguageModel) -> None:
        """Put a finished model into `out`, file by file, each whole or not at all, its lineage last."""
        staged = self.path / "model"
        language_model.save(staged)
        for file in sorted(staged.iterdir(), key=lambda file: file.name == "perplab.json"):
            file.replace(self.out / file.name)
        staged.rmdir()
