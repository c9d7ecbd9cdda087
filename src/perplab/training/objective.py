"""What a run minimises: the cost of a batch of packed rows, and the cost of each of its tokens.

Decisions:
- An objective has no state. What it draws follows from the seed, the step and the number of the pass, so that a run
  that goes on after a kill draws the same.
- Our decoder computes its loss without ever holding logits. Any other causal model of a known family gives its last
  hidden states, and the same chunked loss takes its head, unless the head does more than a matrix product. Of a model
  whose parts are not known the logits are taken.
- Documents of a row do not see each other, where a family takes positions: transformers reads borders off positions
  that restart. Families without positions (`bloom`, ALiBi `falcon`) read a row as one stream, as they were trained.
"""

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from perplab.kernels import LinearCrossEntropy, linear_cross_entropy
from perplab.kernels.linear_cross_entropy import SoftmaxGradient, cross_entropy_of_logits
from perplab.models.anatomy import Anatomy, anatomy
from perplab.models.decoder import DecoderForCausalLM
from perplab.scoring.hidden_states import has_known_parts

_OWN_MASK = ("opt", "falcon")
"""Families that make a mask of ones where they are given none, in which transformers sees no borders."""

EVALUATION = -1
"""The `step` of costs that are measured and not learnt from."""


class Objective(Protocol):
    """A training objective."""

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
        """The cost of some packed rows.

        Args:
            model: what is trained.
            input_ids: (batch, length).
            position_ids: (batch, length); 0 opens a document.
            labels: (batch, length), what follows each input; -100 is not scored.
            step: number of the optimiser step, from 0; `EVALUATION` outside training.
            micro_batch: number of the pass within the step, over all processes.
            z_loss: weight of the squared log-normaliser.
            chunk_step: see `perplab.kernels.linear_cross_entropy`.

        Returns:
            The summed loss, and what each label cost in nats, (batch * length,), 0 where it is not scored.
        """
        ...


class NextToken:
    """Cross-entropy of the next token."""

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
        """See `Objective`."""
        if isinstance(model, DecoderForCausalLM):
            return model.token_losses(input_ids, position_ids, labels, z_loss, chunk_step)
        if not has_known_parts(model):
            logits = model(input_ids=input_ids, use_cache=False).logits
            return cross_entropy_of_logits(logits.flatten(0, 1), labels.flatten(), z_loss)
        hidden_states = model.base_model(
            input_ids=input_ids, use_cache=False, **_borders(model, position_ids)
        ).last_hidden_state
        parts = anatomy(model)
        if _is_matrix_product(parts):
            return linear_cross_entropy(
                hidden_states.flatten(0, 1), parts.head.matrix, labels.flatten(), z_loss, chunk_step
            )
        return cross_entropy_of_logits(parts.logits(hidden_states).flatten(0, 1), labels.flatten(), z_loss)


def _borders(model: PreTrainedModel, position_ids: Tensor) -> dict[str, Tensor]:
    """What tells a model where the documents of its rows begin."""
    config = model.config
    if config.model_type == "bloom" or getattr(config, "alibi", False):
        return {}
    if config.model_type not in _OWN_MASK:
        return {"position_ids": position_ids}
    document = (position_ids == 0).cumsum(dim=1)
    same = document[:, :, None] == document[:, None, :]
    return {"position_ids": position_ids, "attention_mask": same.tril()[:, None]}


def _is_matrix_product(parts: Anatomy) -> bool:
    return parts.head.bias is None and parts.logit_scale == 1.0 and parts.logit_soft_cap is None
