"""What a masked diffusion model minimises, as an objective of the trainer.

Decisions:
- The clean text is what a causal model has to predict: the labels, a token or an end of a document at every position.
  A row is one sequence of the loss, and its documents do not see each other: an order of the row is an order of each.
- What is hidden follows from the seed, the step and the pass, and from nothing else.
- Evaluation takes the any-order bound whatever is trained with, from `EVALUATION_DRAWS` masks a row that are the same
  at every evaluation. Its bits per byte are an upper bound.
- The head is applied to hidden tokens alone and normalised in float32; there is no penalty on its normaliser.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from perplab.kernels import LinearCrossEntropy
from perplab.kernels.linear_cross_entropy import IGNORE_INDEX, SoftmaxGradient
from perplab.models.diffusion import AbsorbingDiffusion, DiffusionConfig
from perplab.models.diffusion.losses import LossName, noise, token_costs, uniforms
from perplab.training.config import TrainConfig
from perplab.training.objective import EVALUATION
from perplab.training.presets import HEAD_DIM

EVALUATION_DRAWS = 4
"""Masks of a row that an evaluation takes."""


class DiffusionObjective:
    """A loss of masked diffusion.

    Args:
        loss: which.
        seed: of what is hidden.
    """

    def __init__(self, loss: LossName = "ao", seed: int = 0) -> None:
        self.loss: LossName = loss
        self.seed = seed

    def costs(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        *,
        step: int,
        micro_batch: int,
        z_loss: float,
        chunk_step: SoftmaxGradient,
    ) -> LinearCrossEntropy:
        """See `perplab.training.objective.Objective`; `input_ids`, `z_loss` and `chunk_step` play no part."""
        scored = labels != IGNORE_INDEX
        ids = labels.masked_fill(~scored, 0)
        diffusion = AbsorbingDiffusion(model)
        draws = EVALUATION_DRAWS if step == EVALUATION else 1
        loss: LossName = "ao" if step == EVALUATION else self.loss
        total = torch.zeros(ids.shape, device=ids.device)
        generator = torch.Generator().manual_seed(_seed_of(self.seed, step, micro_batch))
        for uniform in torch.split(uniforms(len(ids) * draws, "stratified", generator), len(ids)):
            drawn = noise(loss, uniform, scored, diffusion.schedule, generator)
            total = total + token_costs(diffusion, ids, loss, drawn, position_ids=position_ids).float() / draws
        return LinearCrossEntropy(total.sum(), total.detach().flatten())


def diffusion_config(config: TrainConfig, vocab_size: int, end_of_text: int) -> DiffusionConfig:
    """The network's shape for a training run.

    Args:
        config: the run; fields left None follow the dial.
        vocab_size: of the tokenizer in use; the network has one input more, the mask.
        end_of_text: its token that begins and ends documents.
    """
    hidden_size = config.hidden_size or HEAD_DIM * config.depth
    return DiffusionConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=config.intermediate_size or 0,
        num_hidden_layers=config.num_hidden_layers or config.depth,
        num_attention_heads=max(1, hidden_size // HEAD_DIM),
        max_position_embeddings=config.block_size,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )


def _seed_of(seed: int, step: int, micro_batch: int) -> int:
    """One number for the three; the step of an evaluation is -1."""
    return int(np.random.SeedSequence((seed, step + 1, micro_batch)).generate_state(1)[0])
