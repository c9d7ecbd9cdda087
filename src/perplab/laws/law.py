"""What every law has in common: a frozen record of fitted numbers, kept as JSON, that predicts one column of a run log.

- A law names the columns it reads (`inputs`) and the one it predicts (`target`). Resampling, the command line and the
  plots work on any law through these two.
- The file holds the law's kind and its numbers; what is read back equals what was written.
- What a fit's runs do not support (a bound that is reached, an exponent at the edge of the search) is a `LawWarning`
  and not an error: the numbers are still the best fit.
"""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from perplab.artifacts import read_json, write_json
from perplab.errors import PerplabError

Floats = npt.NDArray[np.float64]
READ_MEND = "give a file that perplab scaling fit wrote"


class LawWarning(UserWarning):
    """A fit or a prediction that its runs do not support."""


def warn(message: str) -> None:
    """Issue a `LawWarning` in the name of the caller's caller."""
    warnings.warn(message, LawWarning, stacklevel=3)


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law.

    Attributes:
        kind: its name on the command line and in files.
        inputs: columns of `Runs` it predicts from.
        target: column of `Runs` it predicts.
    """

    kind: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    target: ClassVar[str]
    fit: ClassVar[Callable[..., Any]]
    predict: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        """Refuse a number that is not finite."""
        for name, value in self.numbers.items():
            if not all(map(math.isfinite, np.atleast_1d(value))):
                raise PerplabError(f"{name} of the {self.kind} law is {value}", "give finite numbers")

    @property
    def numbers(self) -> dict[str, Any]:
        """The law's fields that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def fit_each(cls, targets: Floats, **columns: Any) -> list[Self]:
        """The law fitted to the same runs with each of several targets.

        Args:
            targets: (laws, runs), what the law predicts.
            columns: the inputs of the law, and options of its `fit`.
        """
        return [cls.fit(**columns, **{cls.target: target}) for target in targets]

    @classmethod
    def parameters(cls) -> list[str]:
        """Names of the numbers that a fit determines."""
        return [field.name for field in fields(cls) if field.type is float]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the law as JSON, atomically."""
        write_json(path, {"law": self.kind} | self.numbers)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a law of this kind.

        Raises:
            PerplabError: the file is missing, is not a law, or is a law of another kind.
        """
        record = read_json(path, READ_MEND)
        if not isinstance(record, dict) or record.get("law") != cls.kind:
            raise PerplabError(f"{path} is not a law of the kind {cls.kind}", READ_MEND)
        return cls.of_record(record, path)

    @classmethod
    def of_record(cls, record: dict[str, Any], path: str | os.PathLike[str]) -> Self:
        """The law that a file's JSON object describes; `path` is for the errors.

        Raises:
            PerplabError: a number is missing, unknown or not finite.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        numbers = {name: value for name, value in record.items() if name != "law"}
        for name, value in numbers.items():
            if name not in kinds or not (_is_number(value) if kinds[name] is float else _is_pair(value)):
                raise PerplabError(f"{path} has {name} = {value!r}, which no {cls.kind} law has", READ_MEND)
        try:
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in numbers.items()})
        except (TypeError, PerplabError) as error:
            raise PerplabError(f"{path} is not a whole {cls.kind} law ({error})", READ_MEND) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
