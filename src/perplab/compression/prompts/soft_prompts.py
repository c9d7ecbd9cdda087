"""Training soft prompts in front of a frozen model, and measuring what its attention makes of them.

A prompt begins as the embeddings of tokens drawn from its own text, copied and in float32. Its loss is the cost of the
real tokens: the prompt is read, never predicted, and neither is a row's first token.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from perplab.compression.prompts.attention_to_latents import attention_to_latents
from perplab.compression.prompts.fitting import Fitting
from perplab.compression.prompts.rows import Rows
from perplab.models.latent_tokens import LatentCache, read_after

CALIBRATION_ROWS = 128


def initial_prompt(model: PreTrainedModel, fitting: Fitting, length: int) -> Tensor:
    """(length, embedding width) float32 embeddings of tokens that the text has."""
    generator = np.random.default_rng((*fitting.seed, length))
    rows = fitting.rows.tokens(generator.integers(0, len(fitting.rows), length))
    tokens = rows[np.arange(length), generator.integers(0, fitting.rows.length, length)]
    with torch.no_grad():
        return model.get_input_embeddings()(tokens.to(model.device)).float().clone()


def prompt_loss(model: PreTrainedModel, vectors: Tensor, input_ids: Tensor) -> Tensor:
    """Mean cost in nats of the tokens after a row's first one.

    Args:
        model: the frozen model.
        vectors: (tokens, embedding width) the prompt.
        input_ids: (rows, length).
    """
    cache = LatentCache.of(model, [vectors]).rows(torch.zeros(len(input_ids), dtype=torch.long, device=model.device))
    logits = read_after(model, cache, input_ids, use_cache=True).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), input_ids[:, 1:].flatten())


def train_prompt(model: PreTrainedModel, fitting: Fitting, length: int) -> tuple[Tensor, Tensor]:
    """A prompt, (length, embedding width) float32, and the loss before each step."""
    vectors = initial_prompt(model, fitting, length).requires_grad_()
    losses = fitting.run([vectors], lambda ids: prompt_loss(model, vectors, ids))
    return vectors.detach(), losses


@torch.no_grad()
def attention_statistics(
    model: PreTrainedModel, cache: LatentCache, rows: Rows, *, context_tokens: int, layer: int, seed: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation over contexts of the attention on each prompt.

    Args:
        model: the base.
        cache: the prompts, one a row.
        rows: text to draw contexts from, their beginnings.
        context_tokens: length of a context.
        layer: whose attention.
        seed: which rows.
    """
    chosen = rows.batch((seed,), 0, min(CALIBRATION_ROWS, len(rows)))[:, :context_tokens].to(model.device)
    parts = [attention_to_latents(model, cache, part, torch.ones_like(part), layer) for part in torch.split(chosen, 16)]
    found = torch.cat(parts).double()
    return found.mean(0).tolist(), found.std(0, correction=0).clamp(min=1e-12).tolist()
