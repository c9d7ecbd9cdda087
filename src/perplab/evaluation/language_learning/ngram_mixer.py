"""A small network that learns how to weigh in-context n-gram counts.

It sees nothing of an episode but how often each symbol has followed the current context of each length: what of a
model's skill it reaches is what these counts explain. Whether a symbol has followed at all suits languages whose edges
are equally likely, hence `binary` features by default.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.errors import PerplabError
from perplab.evaluation.language_learning.metrics import Floats
from perplab.evaluation.language_learning.ngram import follower_counts
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.language_learning import VOCABULARY_SIZE, Episodes

Features = Literal["raw", "normalised", "binary"]
_RAW_SCALE = 0.01
_BATCH_ROWS = 32


class LearnedNGramMixer:
    """Counts of n-grams through a two-layer network; called with ids (length,), returns (length, vocabulary).

    Args:
        order: symbols of the longest n-gram, the predicted one among them.
        features: counts a hundredth of their size, or divided by their sum, or 1 where a count is not 0.
        hidden_size: of the network.
        epochs: passes over the training episodes.
        learning_rate: of Adam.
        seed: of initial weights and order.

    Attributes:
        network_: from features to logits; set by `fit`.

    Raises:
        PerplabError: there are no such features.
    """

    def __init__(
        self,
        order: int = 3,
        features: Features = "binary",
        *,
        hidden_size: int = 1024,
        epochs: int = 50,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if features not in get_args(Features):
            raise PerplabError(f"unknown features {features!r}", f"choose from {', '.join(get_args(Features))}")
        self.order = order
        self.features = features
        self.hidden_size = hidden_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.seed = seed

    def fit(self, episodes: Episodes) -> "LearnedNGramMixer":
        """Learn from episodes by cross-entropy."""
        inputs = torch.stack([self._rows(ids) for ids in episodes.input_ids])
        labels = torch.from_numpy(np.ascontiguousarray(episodes.labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = nn.Sequential(
                nn.Linear(inputs.shape[-1], self.hidden_size), nn.GELU(), nn.Linear(self.hidden_size, VOCABULARY_SIZE)
            )
            optimizer = torch.optim.Adam(self.network_.parameters(), lr=self.learning_rate)
            for _ in range(self.epochs):
                for rows in torch.split(torch.randperm(len(inputs)), _BATCH_ROWS):
                    logits = self.network_(inputs[rows]).flatten(0, 1)
                    loss = F.cross_entropy(logits, labels[rows].flatten(), ignore_index=IGNORED_LABEL)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        return self

    @torch.no_grad()
    def __call__(self, input_ids: npt.NDArray[np.int64]) -> Floats:
        """Distributions of what follows each token, (length, vocabulary)."""
        probabilities: Floats = torch.softmax(self.network_(self._rows(input_ids)), dim=-1).numpy()
        return probabilities

    def _rows(self, input_ids: npt.NDArray[np.int64]) -> Tensor:
        """(length, order * letters) features."""
        counts = np.stack([each.counts for each in follower_counts(input_ids, self.order)], axis=1)
        if self.features == "raw":
            counts = counts * _RAW_SCALE
        elif self.features == "normalised":
            counts = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
        else:
            counts = np.minimum(counts, 1)
        return torch.from_numpy(counts.astype(np.float32)).flatten(1)
