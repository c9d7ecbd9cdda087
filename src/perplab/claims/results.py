"""Results of measuring, kept in the cache folder: one JSON file a paper, scale, code and seed.

- The code's key is a hash over the paper's own files and over every file of the rooms below, weights that are shipped
  included: what could change a figure changes the key, and a result is never taken for one of other code.
- Files of third-party data enter by name, size and time of modification.
- A result is whole or absent, so an interrupted run continues with the seeds that it lacks.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from hashlib import blake2b
from pathlib import Path

import perplab
from perplab.artifacts import cache_folder, read_json, write_json
from perplab.claims.claim import Paper, Scale
from perplab.errors import PerplabError

_NOT_BELOW = {"claims", "report", "serve", "commands", "cli.py", "__init__.py"}
_SCALES: tuple[Scale, ...] = ("gpu", "pocket", "smoke")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one seed gave.

    Attributes:
        seed: the seed.
        figures: by name.
        seconds: it took.
        machine: it ran on.
        created: UTC time in ISO 8601.
        code: key of the code it ran.
    """

    seed: int
    figures: Mapping[str, float]
    seconds: float
    machine: str
    created: str
    code: str

    def write(self, path: Path) -> None:
        """Keep the result, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Result":
        """A kept result.

        Raises:
            PerplabError: the file is damaged.
        """
        record = read_json(path, f"delete {path}")
        if not isinstance(record, dict) or record.keys() != {field.name for field in fields(cls)}:
            raise PerplabError(f"{path} is not a result", f"delete {path}")
        return cls(**record)


def result_file(paper: Paper, scale: Scale, seed: int, data: Path | None) -> Path:
    """Where the result of this code, scale, data and seed is kept."""
    key = code_key(paper) + (f"-{_data_key(data)}" if data else "")
    return _home(paper, scale) / key / f"seed-{seed}.json"


def latest_results(paper: Paper) -> tuple[Scale, list[Result]] | None:
    """The newest results of the largest scale that was measured, by seed; None where there are none."""
    for scale in _SCALES:
        folders = {file.parent for file in _home(paper, scale).glob("*/seed-*.json")}
        if folders:
            every = [sorted(map(Result.read, folder.glob("seed-*.json")), key=lambda r: r.seed) for folder in folders]
            return scale, max(every, key=lambda results: max(result.created for result in results))
    return None


def code_key(paper: Paper) -> str:
    """Hash over the paper's files and the package below the claims."""
    module = Path(str(sys.modules[paper.measure.__module__].__file__))
    own = [module, *sorted((module.parent / "data").glob(f"{module.stem}*"))]
    digest = blake2b(_package_digest(), digest_size=8)
    for file in own:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _home(paper: Paper, scale: Scale) -> Path:
    return cache_folder() / "claims" / paper.name / scale


@cache
def _package_digest() -> bytes:
    root = Path(perplab.__file__).parent
    digest = blake2b()
    for file in _files(root):
        relative = file.relative_to(root)
        if relative.parts[0] not in _NOT_BELOW:
            digest.update(str(relative).encode() + file.read_bytes())
    return digest.digest()


def _data_key(folder: Path) -> str:
    digest = blake2b(digest_size=8)
    for file in _files(folder):
        status = file.stat()
        digest.update(repr((str(file.relative_to(folder)), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
