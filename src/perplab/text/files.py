"""Documents from files: plain text, source code, JSON lines and Parquet.

- Files are read as bytes and decoded strictly as UTF-8, line ends untouched: the text is exactly what is on disk.
- A .txt or .md file beyond 16 KiB has no document structure, so it is read as consecutive passages of about 16 KiB cut
  at line ends; concatenated they give the exact text. A source file of any size is one document.
- JSON lines and Parquet need a `text` column; a `domain` column is used where there is one.
- The domain of a single file is its stem. In a folder it is the first-level subfolder, because people sort text that
  way (`books/`, `web/`), and for files at the top the suffix without its dot (`py`, `md`).
- Names that begin with a dot are passed over in a folder: they are version control and caches, not text.
"""

import fnmatch
import json
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from perplab.errors import PerplabError
from perplab.text.documents import Document

PASSAGE_BYTES = 16 * 1024
_CHUNK_BYTES = 1 << 20

_PASSAGE_SUFFIXES = {".txt", ".md"}
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".parquet")
_RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_SOURCE_SUFFIXES = (
    *(".rst", ".tex", ".html", ".xml", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".csv", ".tsv", ".sql"),
    *(".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".cu", ".cuh", ".f"),
    *(".f90", ".java", ".kt", ".scala", ".cs", ".go", ".rs", ".swift", ".js", ".jsx", ".ts", ".tsx", ".css", ".rb"),
    *(".php", ".pl", ".lua", ".r", ".jl", ".m", ".hs", ".ml", ".lean", ".v", ".clj", ".ex", ".erl", ".sh", ".bat"),
    *(".ps1", ".cmake", ".proto"),
)
KNOWN_SUFFIXES = (*sorted(_PASSAGE_SUFFIXES), *_RECORD_SUFFIXES, *_SOURCE_SUFFIXES)


class FileSource:
    """Documents of a list of files.

    Args:
        files: (path, name shown, domain) of each file, in reading order.
    """

    def __init__(self, files: list[tuple[Path, str, str]]) -> None:
        self._files = files

    def identity(self) -> str:
        """Name, size and modification time of every file."""
        lines = ["files"]
        for path, name, domain in self._files:
            status = path.stat()
            lines.append(f"{name}\t{domain}\t{status.st_size}\t{status.st_mtime_ns}")
        return "\n".join(lines)

    def approximate_bytes(self) -> int | None:
        """Size of the files; None where some are compressed."""
        if any(path.name.endswith(_COMPRESSED_SUFFIXES) for path, _, _ in self._files):
            return None
        return sum(path.stat().st_size for path, _, _ in self._files)

    def documents(self) -> Iterator[Document]:
        """Every file's documents, file after file."""
        for path, name, domain in self._files:
            try:
                yield from read_file(path, name, domain)
            except OSError as error:
                raise PerplabError(
                    f"cannot read {path} ({error.strerror or error})", "check its permissions"
                ) from error


def open_path(spec: str) -> FileSource:
    """Open a file, a folder, or `FOLDER:PATTERN[,PATTERN...]`.

    Raises:
        PerplabError: nothing is there, or no file in the folder matches.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return FileSource(_files_in(path, tuple(f"*{suffix}" for suffix in KNOWN_SUFFIXES)))
    if path.is_file():
        return FileSource([(path, path.name, _stem(path))])
    folder, colon, patterns = spec.rpartition(":")
    if colon and Path(folder).expanduser().is_dir():
        return FileSource(_files_in(Path(folder).expanduser(), tuple(patterns.split(","))))
    raise PerplabError(
        f"{spec} does not exist", "give a file, a folder, FOLDER:*.py, builtin:NAME, or hf:DATASET for a data set"
    )


def read_file(path: Path, name: str, domain: str) -> Iterator[Document]:
    """Yield the documents of one file, whose format its suffix tells; unknown suffixes are read as one text.

    Raises:
        PerplabError: the file is not valid UTF-8, JSON or Parquet, is cut short, or lacks a `text` column.
    """
    suffixes = "".join(path.suffixes[-2:]).lower()
    if suffixes.endswith(".parquet"):
        records = _parquet_records(path)
    elif suffixes.endswith(".jsonl"):
        records = _json_records(path, _chunks(path))
    elif suffixes.endswith(".jsonl.gz"):
        records = _json_records(path, _gunzipped(path))
    elif suffixes.endswith(".jsonl.zst"):
        records = _json_records(path, _unzstd(path))
    elif path.suffix.lower() in _PASSAGE_SUFFIXES and path.stat().st_size > PASSAGE_BYTES:
        yield from _passages(path, name, domain)
        return
    else:
        yield Document(_decode(path.read_bytes(), path, 0), domain, name)
        return
    for number, record in records:
        yield document_of_record(record, domain, f"{name}#{number}", path)


def _stem(path: Path) -> str:
    """The file's name without its suffix, both parts of it for `.jsonl.gz` and its like."""
    suffix = next((suffix for suffix in _RECORD_SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)] or path.name


def _files_in(folder: Path, patterns: tuple[str, ...]) -> list[tuple[Path, str, str]]:
    files = []
    for root, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and any(fnmatch.fnmatchcase(name.lower(), p.lower()) for p in patterns):
                path = Path(root, name)
                relative = path.relative_to(folder)
                domain = relative.parts[0] if len(relative.parts) > 1 else path.suffix.removeprefix(".") or name
                files.append((path, relative.as_posix(), domain))
    if not files:
        raise PerplabError(
            f"{folder} has no file named like {', '.join(patterns[:8])}{' ...' if len(patterns) > 8 else ''}",
            f"name the files to read, as in {folder}:*.log",
        )
    return sorted(files, key=lambda file: file[1])


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PerplabError(
            f"{path} is not UTF-8 at byte {offset + error.start}", "convert it, for example with iconv -t utf-8"
        ) from None


def _passages(path: Path, name: str, domain: str) -> Iterator[Document]:
    with path.open("rb") as file:
        offset = 0
        for number in count(1):
            passage = file.read(PASSAGE_BYTES) + file.readline()
            if not passage:
                return
            yield Document(_decode(passage, path, offset), domain, f"{name}#{number}")
            offset += len(passage)


def document_of_record(record: dict[str, Any], domain: str, name: str, path: Path | str) -> Document:
    """Make a document of a row with a `text` and perhaps a `domain` column."""
    text = record.get("text")
    if not isinstance(text, str):
        raise PerplabError(
            f"{path} has no text in column 'text' at {name} (columns: {', '.join(record)})",
            "rename the column that holds the text to 'text', as a string",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PerplabError(
            f"{path} has half a surrogate pair at character {error.start} of {name}", "mend or remove the row"
        ) from None
    label = record.get("domain")
    return Document(text, domain if label is None else str(label), name)


def _parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            wanted = [column for column in ("text", "domain") if column in columns]
            if "text" not in wanted:
                raise PerplabError(
                    f"{path} has no column 'text' (columns: {', '.join(columns)})",
                    "rename the column that holds the text to 'text'",
                )
            numbers = count(1)
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                yield from zip(numbers, batch.to_pylist(), strict=False)
    except (pa.ArrowException, OSError) as error:
        raise PerplabError(f"{path} is not a whole Parquet file ({error})", "copy or write it again") from error


def _json_records(path: Path, chunks: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(chunks), start=1):
        if line.isspace() or not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise PerplabError(
                f"{path} line {number} is not a JSON object ({error})", "mend or remove the line"
            ) from None
        yield number, record


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut a stream of bytes at line ends. Each line is joined once, so its length costs linear time."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for line in rest:
            yield b"".join(parts)
            parts = [line]
    yield b"".join(parts)


def _decompressed(path: Path, new_decompressor: Callable[[], Any], damage: type[Exception]) -> Iterator[bytes]:
    """Decompress a file of one or more gzip members or zstd frames.

    By hand, because zstandard's file object takes an early end of the file for the end of the text.

    Args:
        path: the compressed file.
        new_decompressor: makes an object with `decompress`, `eof` and `unused_data`, good for one member or frame.
        damage: what `decompress` raises on bytes it cannot read.
    """
    decompressor = new_decompressor()
    try:
        for chunk in _chunks(path):
            while chunk:
                if decompressor.eof:
                    decompressor = new_decompressor()
                yield decompressor.decompress(chunk)
                chunk = decompressor.unused_data if decompressor.eof else b""
    except damage as error:
        raise PerplabError(f"{path} is damaged ({error})", "copy or download it again") from None
    if not decompressor.eof:
        raise PerplabError(f"{path} ends in the middle of its compressed data", "copy or download it again")


def _gunzipped(path: Path) -> Iterator[bytes]:
    return _decompressed(path, lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), zlib.error)


def _unzstd(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise PerplabError(f"{path} needs the zstandard package", "pip install zstandard") from None
    return _decompressed(path, zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError)
