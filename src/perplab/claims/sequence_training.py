"""Training a model on generated sequences, for claims about tasks whose every batch is new.

AdamW with a linear warm-up and a cosine to a tenth of the peak, gradients clipped at norm 1, everything in float32.
"""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from perplab.models.decoder import DecoderForCausalLM
from perplab.text import IGNORED_LABEL
from perplab.training.config import TrainConfig
from perplab.training.optimizer import new_optimizer
from perplab.training.schedules import Schedule

Batches = Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def train_on(
    model: PreTrainedModel,
    batches: Batches,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
) -> list[float]:
    """Train a model in place, and leave it in evaluation mode.

    Args:
        model: a decoder of this package, or any causal LM.
        batches: at least `steps` pairs of input ids and labels, each (rows, length); a label is what follows its input,
            and -100 is not scored.
        steps: optimiser steps.
        learning_rate: the peak.
        weight_decay: of matrices.
        warmup: share of the steps.

    Returns:
        The loss of each step, in nats a scored token.
    """
    schedule = Schedule(name="cosine", total_steps=steps, warmup_steps=round(warmup * steps), final=0.1)
    optimizer = new_optimizer(model, TrainConfig(weight_decay=weight_decay))
    losses = []
    model.train()
    for step, (inputs, targets) in enumerate(islice(batches, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step)
        loss = _mean_loss(model, *(torch.from_numpy(part).to(model.device) for part in (inputs, targets)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def _mean_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    if isinstance(model, DecoderForCausalLM):
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
        return model.token_losses(input_ids, position_ids, labels).loss / (labels != IGNORED_LABEL).sum()
    logits = model(input_ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
