"""What a report is told."""

from dataclasses import dataclass

from perplab.errors import PerplabError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `perplab report`.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    title: str | None = None
    """Heading of the page, if not the names of the models."""
    shown_documents: int = 12
    """Documents shown token by token; fewer where the page would grow too large."""
    shown_bytes: int = 3_000
    """Beginning of each of them that is shown."""
    alternatives: int = 5
    """Likeliest tokens given beside each token."""
    seed: int = 0
    """Of the bootstrap that gives the intervals."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("shown_documents", "shown_bytes", "alternatives"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")
