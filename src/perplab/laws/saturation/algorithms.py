"""Ways to go on training at the floor of the loss: what they minimise, by which steps, with how much noise.

Decisions:
- No weight decay and no clipping: both would move the set of minimisers, or the noise, that the comparison is about.
- Every step sees fresh sentences. Noise comes from labels: `exact` labels, the language's own probabilities, have a
  gradient of 0 at the floor whatever the sentences; sampled ones have noise of the size of the curvature.
- The adversary minimises loss less a multiple of the downstream loss of a linear head, which is fitted anew to the
  features as they move, on sentences of its own. What it spoils is the features, never the head.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.laws.probes import LinearHead, sentence_states
from perplab.laws.saturation.excess import check_vocabulary, next_log_probabilities
from perplab.text.synthetic.languages import Language

_SENTENCES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A downstream task to be bad at.

    Args:
        weight: of the downstream loss against the language's.
        task: column of the language's hidden labels.
        sentences: that the head is fitted on, and as many others that its loss is taken on.
        refit_every: steps between two fits of the head.
        batch_size: sentences of a step that the downstream loss is taken on.
    """

    weight: float = 0.1
    task: int = 0
    sentences: int = 1024
    refit_every: int = 20
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A way to train.

    Args:
        optimizer: plain gradient steps, or AdamW without decay.
        learning_rate: of the first step.
        batch_size: sentences of a step.
        labels: `sampled` from the language, or `exact`: its probabilities.
        adversary: a task to be bad at; None for none.
        decay: whether the learning rate falls to 0 along a line, or stays.
        warmup: steps in which it rises to its value first.

    Raises:
        PerplabError: a size or a rate is not positive.
    """

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 3e-3
    batch_size: int = 64
    labels: Literal["sampled", "exact"] = "sampled"
    adversary: Adversary | None = None
    decay: bool = False
    warmup: int = 0

    def __post_init__(self) -> None:
        """Refuse steps that do nothing."""
        if self.learning_rate <= 0 or self.batch_size < 1 or self.warmup < 0:
            raise PerplabError(
                f"steps of {self.batch_size} sentences at a learning rate of {self.learning_rate:g} after a warm-up of "
                f"{self.warmup}",
                "give positive numbers",
            )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * rising * (1 - step / steps if self.decay else 1.0)


def descend(
    model: PreTrainedModel,
    language: Language,
    algorithm: Algorithm,
    steps: int,
    *,
    seed: int,
    title: str = "training",
    progress: bool = False,
) -> Generator[int, None, None]:
    """Train a model in place, and yield after each step the number of steps taken.

    Args:
        model: a causal model with a token for each symbol of the language.
        language: where sentences come from.
        algorithm: how.
        steps: how many.
        seed: of the sentences.
        title: of the progress bar.
        progress: whether to show it.

    Raises:
        PerplabError: the model has too few tokens, or its loss is no longer finite.
    """
    check_vocabulary(model, language)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if algorithm.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=algorithm.learning_rate)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=algorithm.learning_rate, weight_decay=0.0)
    batches = _batches(language, algorithm, seed)
    opponent = None if algorithm.adversary is None else _Opponent(model, language, algorithm.adversary, seed)
    console = Console(stderr=True)
    hidden = not progress or not console.is_terminal
    model.train()
    for step in track(range(steps), title, console=console, transient=True, disable=hidden):
        ids, exact = next(batches)
        loss = _loss(next_log_probabilities(model, ids), ids, exact)
        if opponent is not None:
            loss = loss - opponent.weighted_loss(step)
        if not torch.isfinite(loss):
            raise PerplabError(f"the loss is not finite after {step} steps", "give a lower learning rate")
        for group in optimizer.param_groups:
            group["lr"] = algorithm.rate(step, steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step + 1
    model.eval()


def _loss(log_probabilities: Tensor, ids: Tensor, exact: Tensor | None) -> Tensor:
    """Mean cost of a predicted symbol, against the symbols themselves or against their exact probabilities."""
    if exact is None:
        return F.nll_loss(log_probabilities.flatten(0, 1), ids[:, 1:].flatten().to(log_probabilities.device))
    predicted = log_probabilities[..., : exact.shape[-1]]
    return -(exact.to(predicted.device) * predicted).sum(dim=-1).mean()


def _batches(language: Language, algorithm: Algorithm, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Fresh sentences (batch_size, length), and the exact probabilities of their symbols where asked for."""
    random = np.random.default_rng([seed, 1])
    size = algorithm.batch_size
    while True:
        ids = language.draw(size * max(1, _SENTENCES_AT_ONCE // size), random)
        exact = np.exp(language.next_token(ids)[:, 1:]).astype(np.float32) if algorithm.labels == "exact" else None
        for start in range(0, len(ids), size):
            batch = slice(start, start + size)
            yield torch.from_numpy(ids[batch]), None if exact is None else torch.from_numpy(exact[batch])


class _Opponent:
    """A linear head that is fitted to the features as they move, and whose loss the features are to raise."""

    def __init__(self, model: PreTrainedModel, language: Language, settings: Adversary, seed: int) -> None:
        self._model, self._settings = model, settings
        self._random = np.random.default_rng([seed, 2])
        ids = language.draw(2 * settings.sentences, self._random)
        labels = language.hidden_labels(ids)
        if not 0 <= settings.task < labels.shape[1]:
            raise PerplabError(f"hidden label {settings.task} of {labels.shape[1]}", "give one that the language has")
        self._ids, self._labels = torch.from_numpy(ids), torch.from_numpy(labels[:, settings.task].copy())
        self._head = LinearHead(int(self._labels.max()) + 1)

    def weighted_loss(self, step: int) -> Tensor:
        """The weighted downstream loss on sentences that the head was not fitted on, differentiable in the features."""
        half = self._settings.sentences
        if step % self._settings.refit_every == 0:
            with torch.no_grad():
                states = sentence_states(self._model, self._ids[:half].to(self._model.device)).cpu()
            self._head.fit(states, self._labels[:half], iterations=20)
        rows = torch.from_numpy(half + self._random.integers(half, size=self._settings.batch_size))
        logits = self._head(sentence_states(self._model, self._ids[rows].to(self._model.device)).cpu())
        return self._settings.weight * F.cross_entropy(logits, self._labels[rows]).to(self._model.device)
