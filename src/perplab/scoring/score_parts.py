"""Where token scores are kept while they are made and afterwards: parts in memory, or Parquet parts in a folder.

- A folder holds `scores.json` and parts `tokens-00000.parquet`, `documents-00000.parquet` that follow one another.
  `scores.json` says from the start what is being scored and how, and at the end how many parts there are.
- A part is whole once its documents are there, which are written last. What a killed writer left is written again.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perplab.artifacts import atomic_file, read_json, remove_temporaries, write_json
from perplab.errors import PerplabError

FORMAT = 1
"""Version of the folder's layout and columns."""

TOKEN_COLUMNS: Mapping[str, pa.DataType] = {
    "document": pa.int32(),
    "position": pa.int32(),
    "token_id": pa.int32(),
    "start": pa.int64(),
    "end": pa.int64(),
    "window": pa.int32(),
    "nll": pa.float32(),
}
DOCUMENT_COLUMNS: Mapping[str, pa.DataType] = {
    "name": pa.string(),
    "domain": pa.string(),
    "bytes": pa.int64(),
    "words": pa.int64(),
}

_MANIFEST = "scores.json"
_FORMAT_KEY = b"perplab.format"
_MEND = "name a folder that perplab score wrote with --out, or score again"


class ScoreParts:
    """The parts of one run of scoring.

    Args:
        folder: where to keep them, going on with what an earlier run of the same origin left; None for in memory.
        origin: what is scored and how.

    Attributes:
        is_complete: whether the folder already holds the whole run.
        num_documents: in the parts so far.
        num_windows: in the parts so far.

    Raises:
        PerplabError: the folder holds scores of another origin, or something else.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, origin: Mapping[str, Any]) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._origin = dict(origin)
        self._in_memory: list[tuple[pa.Table, pa.Table]] = []
        self._count = self.num_documents = self.num_windows = 0
        self.is_complete = False
        if self._folder is not None:
            self._resume(self._folder)

    def add(self, tokens: pa.Table, documents: pa.Table) -> None:
        """Keep one more part, whose documents and windows are numbered on from those before."""
        if self._folder is None:
            self._in_memory.append((tokens, documents))
        else:
            for name, table in (("tokens", tokens), ("documents", documents)):
                _write_table(_part_path(self._folder, name, self._count), table)
        self._count_in(tokens, documents)

    def finish(self) -> tuple[pa.Table, pa.Table]:
        """Say that no part follows, and give all tokens and all documents."""
        if self._folder is None:
            return _joined(self._in_memory)
        if not self.is_complete:
            _write_manifest(self._folder, self._origin, self._count)
        return _joined([_read_part(self._folder, number) for number in range(self._count)])

    def _resume(self, folder: Path) -> None:
        manifest = _read_manifest(folder)
        if manifest is None:
            if folder.exists() and any(folder.iterdir()):
                raise PerplabError(f"{folder} holds something other than scores", "name a new or empty folder")
            _write_manifest(folder, self._origin, None)
            return
        for key in sorted(self._origin.keys() | manifest["origin"].keys()):
            kept, asked = manifest["origin"].get(key), self._origin.get(key)
            if kept != asked:
                raise PerplabError(
                    f"{folder} holds scores with {key} {kept!r}, not {asked!r}", "name another folder with --out"
                )
        remove_temporaries(folder)
        self.is_complete = manifest["parts"] is not None
        while self._count != manifest["parts"] and _is_whole(folder, self._count):
            self._count_in(*_read_part(folder, self._count))
        if self.is_complete and self._count != manifest["parts"]:
            raise PerplabError(f"{folder} lacks part {self._count} of {manifest['parts']}", _MEND)

    def _count_in(self, tokens: pa.Table, documents: pa.Table) -> None:
        self._count += 1
        self.num_documents += documents.num_rows
        if tokens.num_rows:
            self.num_windows = int(tokens["window"][-1].as_py()) + 1


def read_scores(folder: str | os.PathLike[str]) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Tokens, documents and origin of a finished folder.

    Raises:
        PerplabError: there are no scores, they are unfinished, damaged, or of another version.
    """
    manifest = _read_manifest(Path(folder))
    if manifest is None:
        raise PerplabError(f"{folder} holds no scores", _MEND)
    if manifest["parts"] is None:
        raise PerplabError(
            f"the scores in {folder} are unfinished", "run the same command again; it goes on from there"
        )
    tables = _joined([_read_part(Path(folder), number) for number in range(manifest["parts"])])
    return *tables, manifest["origin"]


def _joined(parts: list[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    tokens, documents = zip(*parts, strict=True)
    return pa.concat_tables(tokens).combine_chunks(), pa.concat_tables(documents).combine_chunks()


def _part_path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:05d}.parquet"


def _is_whole(folder: Path, number: int) -> bool:
    return all(_part_path(folder, name, number).exists() for name in ("tokens", "documents"))


def _write_manifest(folder: Path, origin: Mapping[str, Any], parts: int | None) -> None:
    write_json(folder / _MANIFEST, {"format": FORMAT, "parts": parts, "origin": origin})


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / _MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path, _MEND)
    if not isinstance(manifest, dict) or not {"format", "parts", "origin"} <= manifest.keys():
        raise PerplabError(f"{path} does not describe scores", _MEND)
    if manifest["format"] != FORMAT:
        raise PerplabError(f"{path} has format {manifest['format']}, this version reads {FORMAT}", "score again")
    return manifest


def _write_table(path: Path, table: pa.Table) -> None:
    marked = table.replace_schema_metadata({_FORMAT_KEY: str(FORMAT).encode()})
    with atomic_file(path) as temporary:
        pq.write_table(marked, temporary, compression="zstd", compression_level=1)


def _read_part(folder: Path, number: int) -> tuple[pa.Table, pa.Table]:
    return (
        _read_table(_part_path(folder, "tokens", number), TOKEN_COLUMNS),
        _read_table(_part_path(folder, "documents", number), DOCUMENT_COLUMNS),
    )


def _read_table(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    if not path.exists():
        raise PerplabError(f"{path} does not exist", _MEND)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise PerplabError(f"{path} cannot be read ({str(error).splitlines()[0]})", _MEND) from error
    written = (table.schema.metadata or {}).get(_FORMAT_KEY, b"none").decode()
    if written != str(FORMAT):
        raise PerplabError(f"{path} has format {written}, this version reads {FORMAT}", "score again")
    for name, kind in columns.items():
        if name not in table.column_names or table.schema.field(name).type != kind:
            raise PerplabError(f"{path} has no column {name} of type {kind}", _MEND)
    return table.replace_schema_metadata(None)
