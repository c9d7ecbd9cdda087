"""Absorbing ("mask") diffusion around any network that maps ids to logits.

Decisions:
- A network that knows the clean tokens' conditionals needs no time: the concrete score of masked diffusion is a factor
  of time alone times q(token | unmasked tokens). So a network is asked with ids and nothing else, and a masked LM of
  transformers is such a network as it stands.
- Whatever the network says of the mask symbol is dropped before its logits are normalised.
- What cannot work is found when the two are put together: a mask id that is a token, a mask without an embedding, a
  network whose attention is causal.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.diffusion.network import DiffusionModel
from perplab.models.diffusion.schedules import LogLinear, Schedule

Network = Callable[..., Any]
"""From ids (batch, length), and where needed `attention_mask` and `position_ids`, to logits or an output that has
`logits`, (batch, length, vocabulary)."""

_OTHER_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")
_PROBE_LENGTH = 4


class AbsorbingDiffusion:
    """A masked diffusion model.

    Args:
        model: the network.
        mask_token_id: the mask symbol; None for the one that the network's config names.
        schedule: how much is masked at what time.

    Raises:
        PerplabError: no mask symbol is known, it is a token or has no embedding, or the network's attention is causal.
    """

    def __init__(self, model: Network, mask_token_id: int | None = None, schedule: Schedule | None = None) -> None:
        known = getattr(getattr(model, "config", None), "mask_token_id", None)
        mask_token_id = known if mask_token_id is None else mask_token_id
        if mask_token_id is None:
            raise PerplabError("the network names no mask token", "give mask_token_id")
        self.model = model
        self.mask_token_id = mask_token_id
        self.schedule: Schedule = schedule or LogLinear()
        if isinstance(model, PreTrainedModel):
            _check_mask(model, self.mask_token_id)
            if not isinstance(model, DiffusionModel):
                _refuse_causal(model)

    def log_probabilities(
        self,
        ids: Tensor,
        predicted: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities of what is hidden at some positions, given what is not.

        Args:
            ids: (batch, length), `mask_token_id` where a token is hidden.
            predicted: (batch, length) booleans: where they are wanted.
            attention_mask: (batch, length), 0 for padding.
            position_ids: (batch, length), 0 where a document begins.

        Returns:
            (predicted positions, vocabulary), float32 or as wide as the logits; -inf for the mask symbol.
        """
        layout = {"attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in layout.items() if value is not None}
        logits: Tensor
        if isinstance(self.model, DiffusionModel):
            logits = self.model(ids, predicted=predicted, **given).logits
        else:
            output = self.model(ids, **given)
            logits = (output if isinstance(output, Tensor) else output.logits)[predicted]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.mask_token_id < logits.shape[-1]:
            logits = logits.index_fill(-1, torch.tensor([self.mask_token_id], device=logits.device), float("-inf"))
        return torch.log_softmax(logits, dim=-1)

    def refuse_mask_in(self, ids: Tensor) -> None:
        """See that clean text has no mask symbol.

        Raises:
            PerplabError: it has.
        """
        if bool((ids == self.mask_token_id).any()):
            raise PerplabError(
                f"the text holds token {self.mask_token_id}, which is the mask token",
                "give a mask_token_id that no text has, and an input table with a row for it",
            )


def _check_mask(model: PreTrainedModel, mask_token_id: int) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 <= mask_token_id < rows:
        raise PerplabError(
            f"mask token {mask_token_id} has no row in the input table of {rows}",
            "give the network a table with one row more than its vocabulary, or name its own mask token",
        )
    taken = [name for name in _OTHER_SPECIAL_TOKENS if getattr(model.config, name, None) == mask_token_id]
    own = model.config.mask_token_id if isinstance(model, DiffusionModel) else mask_token_id
    if taken or own != mask_token_id:
        what = f"is the {taken[0].removesuffix('_id').replace('_', ' ')}" if taken else "is a token of the vocabulary"
        raise PerplabError(f"mask token {mask_token_id} {what}", "name the network's own mask token")


@torch.no_grad()
def _refuse_causal(model: PreTrainedModel) -> None:
    """Change the last token: where that moves its own logits and none before it, attention looks back alone."""
    training = model.training
    ids = torch.arange(_PROBE_LENGTH, device=model.device)[None].repeat(2, 1)
    ids[1, -1] = 0
    first, second = model.eval()(ids).logits
    model.train(training)
    moved = (first != second).any(dim=-1)
    if bool(moved[-1]) and not bool(moved[:-1].any()):
        raise PerplabError(
            f"a {model.config.model_type} network sees no token after a masked one: its attention is causal",
            "use a bidirectional network (is_decoder and is_causal false), such as one that perplab train --model "
            "diffusion makes, or a masked language model",
        )
