"""What laws are fitted on: finished training runs, and their columns as arrays.

- `params` counts everything, embeddings included. The count without input embeddings is kept beside it and is never
  fitted: on small models the two differ by half, and mixing them bends eta and E.
- A run is refused where it cannot belong to a law: a loss that is no number, a schedule that was cut short. Runs are
  refused together where they are no one experiment: two tokenizers, or one (N, D) with two losses and no seeds.
- Repeated data are outside every law, yet a reader may want to see how far: that is a warning.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from perplab.errors import PerplabError
from perplab.laws.law import Floats, warn
from perplab.laws.points import SAME_WITHIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished training run.

    Raises:
        PerplabError: a value that no run has.
    """

    params: int
    """All parameters, embeddings included."""
    tokens: int
    """Training tokens."""
    loss: float
    """Mean nats per token on the text of evaluation."""
    error: float | None = None
    """Mean top-1 error over a suite of tasks, from 0 to 1."""
    corpus: str = ""
    """What it was trained on."""
    tokenizer: str = ""
    """What `loss` is per token of."""
    seed: int | None = None
    """Decided its initial weights and data order."""
    params_no_embed: int | None = None
    """Parameters without the input embeddings."""
    corpus_tokens: int | None = None
    """Tokens of one epoch of the corpus."""
    scheduled_tokens: int | None = None
    """Tokens at which its learning-rate schedule ends."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("params", "tokens", "loss"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise PerplabError(f"{name} is {value}", "give a positive finite number")
        if self.error is not None and not 0 <= self.error <= 1:
            raise PerplabError(f"error is {self.error}", "give a share from 0 to 1, 1 - accuracy")
        if self.params_no_embed is not None and not 0 < self.params_no_embed <= self.params:
            raise PerplabError(
                f"params_no_embed is {self.params_no_embed} where params is {self.params}",
                "let params count everything, embeddings included",
            )
        if self.scheduled_tokens is not None and self.scheduled_tokens != self.tokens:
            raise PerplabError(
                f"tokens is {self.tokens} where the schedule ends at {self.scheduled_tokens}",
                "leave this run out: a law holds for runs that end with their schedule",
            )

    @property
    def multiplier(self) -> float:
        """Tokens per parameter."""
        return self.tokens / self.params

    @property
    def compute(self) -> float:
        """Floating-point operations of the training."""
        return 6.0 * self.params * self.tokens

    @classmethod
    def of_model(cls, model: "PreTrainedModel", **columns: Any) -> Self:
        """A run that made this model: its parameters are counted, the other columns are given."""
        counts = {
            "params": model.num_parameters(),
            "params_no_embed": model.num_parameters(exclude_embeddings=True),
        }
        return cls(**counts, **columns)


class Runs(Sequence[Run]):
    """Runs of one experiment, in the order given.

    Args:
        runs: the rows.

    Raises:
        PerplabError: there are two tokenizers, or two losses for one corpus, size and number of tokens without seeds.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = tuple(runs)
        _require_one_tokenizer(self._runs)
        _require_one_loss_a_point(self._runs)
        _warn_of_repeated_data(self._runs)

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._runs)

    @overload
    def __getitem__(self, row: int) -> Run: ...
    @overload
    def __getitem__(self, row: slice) -> "Runs": ...
    def __getitem__(self, row: int | slice) -> "Run | Runs":
        """One run, or consecutive ones."""
        return Runs(self._runs[row]) if isinstance(row, slice) else self._runs[row]

    def where(self, wanted: Callable[[Run], bool]) -> "Runs":
        """The runs for which `wanted` is true."""
        return Runs(run for run in self if wanted(run))

    def by_multiplier(self) -> "dict[float, Runs]":
        """The runs of each token multiplier, ascending; the key is their mean, rounded to one decimal.

        Token counts are rounded to whole steps, so multipliers within a twentieth of the smallest of them are one.
        """
        ascending = sorted(self, key=lambda run: run.multiplier)
        groups: list[list[Run]] = []
        for run in ascending:
            if not groups or run.multiplier > SAME_WITHIN * groups[-1][0].multiplier:
                groups.append([])
            groups[-1].append(run)
        return {
            round(float(np.mean([run.multiplier for run in alike])), 1): self.where(alike.__contains__)
            for alike in groups
        }

    @property
    def params(self) -> Floats:
        """All parameters, shape (runs,)."""
        return self._column("params")

    @property
    def tokens(self) -> Floats:
        """Training tokens, shape (runs,)."""
        return self._column("tokens")

    @property
    def multiplier(self) -> Floats:
        """Tokens per parameter, shape (runs,)."""
        return self._column("multiplier")

    @property
    def compute(self) -> Floats:
        """Floating-point operations of the training, shape (runs,)."""
        return self._column("compute")

    @property
    def loss(self) -> Floats:
        """Nats per token, shape (runs,)."""
        return self._column("loss")

    @property
    def error(self) -> Floats:
        """Error over the tasks, shape (runs,).

        Raises:
            PerplabError: a run has none.
        """
        if any(run.error is None for run in self):
            raise PerplabError("a run has no error", "give every run of an error law the column error")
        return self._column("error")

    def _column(self, name: str) -> Floats:
        return np.array([getattr(run, name) for run in self], dtype=np.float64)


def _require_one_tokenizer(runs: Sequence[Run]) -> None:
    names = sorted({run.tokenizer for run in runs})
    if len(names) > 1:
        raise PerplabError(
            f"losses are per token of the tokenizers {', '.join(map(repr, names))}",
            "fit each alone, or convert all losses to one unit such as bits per byte",
        )


def _require_one_loss_a_point(runs: Sequence[Run]) -> None:
    seen: dict[tuple[object, ...], Run] = {}
    for run in runs:
        earlier = seen.setdefault((run.corpus, run.params, run.tokens, run.seed), run)
        if earlier.loss != run.loss:
            raise PerplabError(
                f"losses {earlier.loss:g} and {run.loss:g} for {run.params} parameters and {run.tokens} tokens",
                "tell the runs apart by a column seed, or keep one",
            )


def _warn_of_repeated_data(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.corpus_tokens is not None and run.tokens > run.corpus_tokens:
            warn(f"{run.tokens} tokens are over one epoch of {run.corpus_tokens}: repeated data are outside the law")
