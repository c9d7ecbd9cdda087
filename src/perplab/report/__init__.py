"""One self-contained page: figures with intervals, plots, and text with the cost of every token.

`study` looks at a corpus with a model, `report` makes the page of one such study, of two, or of claims, and `write`
puts it into a file.

Names are imported when first used, so that a command's help does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.report.config import ReportConfig
    from perplab.report.page import report, write
    from perplab.report.subject import Subject, study

_HOMES = {"ReportConfig": "config", "Subject": "subject", "report": "page", "study": "subject", "write": "page"}

__all__ = ["ReportConfig", "Subject", "report", "study", "write"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
