"""Scoring what predicts: a causal LM, or any function from the tokens of an episode to distributions."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from perplab.evaluation.language_learning.metrics import Floats, Scores, score_probabilities
from perplab.text.synthetic.language_learning import Episodes

Predictor = Callable[[npt.NDArray[np.int64]], Floats]
"""From token ids (length,) to the distribution of what follows each of them, (length, vocabulary); it is causal."""


def score_predictor(predictor: Predictor, episodes: Episodes) -> Scores:
    """Score a function that predicts from the episode alone."""
    return score_probabilities(np.stack([predictor(ids) for ids in episodes.input_ids]), episodes)


def score_model(model: PreTrainedModel, episodes: Episodes, *, batch: int = 32) -> Scores:
    """Score a causal LM over the vocabulary of the episodes.

    Args:
        model: anything that gives logits.
        episodes: what to predict.
        batch: rows at a time.
    """
    return score_probabilities(model_probabilities(model, episodes.input_ids, batch=batch), episodes)


@torch.no_grad()
def model_probabilities(model: PreTrainedModel, input_ids: npt.NDArray[np.int64], *, batch: int = 32) -> Floats:
    """What a causal LM predicts after every token, (rows, length, vocabulary) for (rows, length)."""
    was_training = model.training
    model.eval()
    rows = [
        torch.softmax(model(input_ids=ids.to(model.device), use_cache=False).logits.float(), dim=-1).cpu().numpy()
        for ids in torch.split(torch.from_numpy(np.ascontiguousarray(input_ids)), batch)
    ]
    model.train(was_training)
    return np.concatenate(rows)
