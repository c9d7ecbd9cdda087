"""What has been compared so far: one line a comparison, for questions that take more than two models.

Decisions:
- JSON lines in the cache folder, so that anyone can read them, move them or throw them away.
- Outcomes can be set side by side only where base, text and tasks were the same; that is their key. Models are told by
  their weights, texts by their content.
- A comparison is added under a lock and the file is replaced whole, so a killed writer loses at most its own line.
- A variant compared again replaces what was known of it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from perplab.artifacts import atomic_file, cache_folder
from perplab.errors import PerplabError
from perplab.evaluation.proxy_verdict import VariantOutcome
from perplab.scoring.bootstrap import Interval, PairedDifference
from perplab.text import Document

_FILE = "comparisons.jsonl"


@dataclass(frozen=True)
class ComparisonKey:
    """What comparisons must have in common to be set side by side.

    Args:
        base: fingerprint of the first model's weights.
        text: fingerprint of the documents.
        tasks: settings of the tasks, as JSON values.
    """

    base: str
    text: str
    tasks: Mapping[str, Any]


class Ledger:
    """The comparisons in a file.

    Args:
        path: of the file, which need not exist; None for the one in the cache folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / _FILE

    def add(self, key: ComparisonKey, fingerprint: str, outcome: VariantOutcome) -> None:
        """Note how a variant fared.

        Args:
            key: what it was compared on.
            fingerprint: of the variant's weights.
            outcome: how it fared.

        Raises:
            PerplabError: the file cannot be read or written.
        """
        from filelock import FileLock

        line = json.dumps({"key": asdict(key), "fingerprint": fingerprint, "outcome": asdict(outcome)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.path.with_suffix(".lock")).acquire()
        except OSError as error:
            raise PerplabError(
                f"cannot write {self.path} ({error.strerror or error})", "name another --ledger"
            ) from error
        with held, atomic_file(self.path) as temporary:
            temporary.write_text(self._content() + line + "\n", encoding="utf-8")

    def outcomes(self, key: ComparisonKey) -> list[VariantOutcome]:
        """The last known outcome of each variant with this key, in the order in which they were first compared.

        Raises:
            PerplabError: the file is not a ledger.
        """
        wanted = json.loads(json.dumps(asdict(key)))
        return list({mark: outcome for known, mark, outcome in self._records() if known == wanted}.values())

    def check(self) -> None:
        """See that the ledger can be read.

        Raises:
            PerplabError: it cannot.
        """
        for _ in self._records():
            pass

    def _records(self) -> Iterator[tuple[dict[str, Any], str, VariantOutcome]]:
        """Key, fingerprint and outcome of each line."""
        for number, line in enumerate(self._content().splitlines(), start=1):
            try:
                record = json.loads(line)
                yield record["key"], record["fingerprint"], _outcome(record["outcome"])
            except (ValueError, TypeError, KeyError):
                raise PerplabError(
                    f"{self.path} line {number} is no comparison", "delete the line, or name another --ledger"
                ) from None

    def _content(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise PerplabError(f"cannot read {self.path} ({error})", "name another --ledger") from error


def text_fingerprint(documents: Iterable[Document]) -> str:
    """Hexadecimal digest of names and texts, in any order of the documents."""
    digests = sorted(blake2b(f"{document.name}\0{document.text}".encode()).digest() for document in documents)
    return blake2b(b"".join(digests), digest_size=16).hexdigest()


def _outcome(value: Mapping[str, Any]) -> VariantOutcome:
    return VariantOutcome(
        value["name"],
        _difference(value["bits_per_byte"]),
        {name: _difference(change) for name, change in value["scores"].items()},
    )


def _difference(value: Mapping[str, Any]) -> PairedDifference:
    return PairedDifference(value["value"], Interval(**value["interval"]), value["p_value"])
