"""How files reach the disk: whole, or not at all.

Every artefact is first written under a temporary name in the folder where it will live, flushed to the device, and then
renamed over its final name. A reader sees the old file or the new one, a killed writer leaves only a temporary name
behind, and a full disk costs the new file and never the old one.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perplab.errors import PerplabError

TEMPORARY_PREFIX = ".partial-"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    Raises:
        PerplabError: the disk is full or the folder cannot be written.
    """
    target = Path(path)
    with _disk_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in the place of `path` when the block ends without an exception.

    A folder cannot be renamed over another, so an existing `path` is moved aside just before and removed just after;
    `recover_folder` puts it back when the process died between the two renames.

    Raises:
        PerplabError: the disk is full or the parent folder cannot be written.
    """
    target = Path(path)
    with _disk_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=target.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)  # some writers make files for their owner alone
                _flush(file)
            temporary.chmod(0o755)
            _flush(temporary)
            previous = _previous(target)
            if target.exists():
                shutil.rmtree(previous, ignore_errors=True)
                target.replace(previous)
            temporary.replace(target)
            _flush(target.parent)
            shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Put back the folder that `atomic_folder` had moved aside when its process died before the replacement landed."""
    target = Path(path)
    previous = _previous(target)
    if previous.exists() and not target.exists():
        previous.replace(target)


def remove_temporaries(folder: str | os.PathLike[str]) -> None:
    """Delete what killed writers left in `folder`. Only for a folder that has one writer at a time."""
    for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` atomically as indented JSON with a final newline."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], mend: str) -> Any:
    """Read a JSON file.

    Raises:
        PerplabError: the file is missing or is not JSON; `mend` says what to do about it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PerplabError(f"{path} does not exist", mend) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PerplabError(f"{path} is not valid JSON ({error})", mend) from None


def cache_folder() -> Path:
    """Where what can be made again is kept: `$PERPLAB_CACHE`, or `~/.cache/perplab`."""
    configured = os.environ.get("PERPLAB_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "perplab"


def _previous(target: Path) -> Path:
    return target.with_name(f".previous-{target.name}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors_named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise PerplabError(
            f"cannot write {target} ({error.strerror or error})",
            "free space or choose another folder; what was there before is untouched",
        ) from error
