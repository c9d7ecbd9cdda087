"""Documents of a Hugging Face data set, streamed by the `datasets` library.

- `hf:NAME`, `hf:ORG/NAME`, `hf:ORG/NAME/CONFIG`, each with an optional `:SPLIT` ("train" where none is given).
  Two parts are always an organisation and a name, since nearly every data set on the hub has both.
- A local folder takes the place of the name: `hf:FOLDER[:SPLIT]`, or `hf:FOLDER/CONFIG[:SPLIT]` for a path that begins
  with `/`, `.` or `~`, so that a folder that happens to bear an organisation's name hides nothing.
- Rows stream, so nothing is copied into a cache; a `text` column is required and a `domain` column used where there is
  one, else the domain is the data set's name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perplab.errors import PerplabError
from perplab.text.documents import Document
from perplab.text.files import document_of_record


class HubSource:
    """Documents of one split of a data set.

    Args:
        spec: `DATASET[/CONFIG][:SPLIT]`, as after `hf:`.
    """

    def __init__(self, spec: str) -> None:
        dataset, _, split = spec.partition(":")
        self._dataset, self._config = _dataset_and_config(dataset)
        self._split = split or "train"
        self._spec = spec

    def identity(self) -> str:
        """The builder's hash: the hub's revision, or the names and times of local files."""
        builder = self._builder()
        return "\t".join(("hf", self._spec, str(builder.config_id), str(builder.hash)))

    def approximate_bytes(self) -> int | None:
        """Not known before the text is read."""
        return None

    def documents(self) -> Iterator[Document]:
        """Every row with text."""
        domain = Path(self._dataset).name
        builder = self._builder()
        try:
            for number, record in enumerate(builder.as_streaming_dataset(split=self._split), start=1):
                yield document_of_record(record, domain, f"{domain}#{number}", f"hf:{self._spec}")
        except PerplabError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error

    def _builder(self) -> Any:
        from datasets import load_dataset_builder

        try:
            return load_dataset_builder(self._dataset, self._config)
        except Exception as error:  # the hub, the network and every file format raise their own
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> PerplabError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return PerplabError(
            f"cannot read hf:{self._spec} (data set {self._dataset!r}, config {self._config!r}, "
            f"split {self._split!r}: {reason})",
            "check the name, the split and the network; the form is hf:DATASET[/CONFIG][:SPLIT]",
        )


def _dataset_and_config(dataset: str) -> tuple[str, str | None]:
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return str(folder), None
    if dataset.startswith(("/", ".", "~")) and folder.parent.is_dir():
        return str(folder.parent), folder.name
    parts = dataset.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise PerplabError(
            f"hf:{dataset} is neither a local folder nor a data set's name",
            "write hf:NAME, hf:ORG/NAME, hf:ORG/NAME/CONFIG or hf:FOLDER",
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
