"""What prompts are measured against, trained by the `peft` library: LoRA, prefix tuning and P-tuning.

- P-tuning's network is left behind once it has written its prompt, and a prefix is keys and values: both are then read
  like any prompt.
- LoRA's changes are merged into a copy of the model, so it costs nothing to run. Where the weights were on a
  quantisation grid they are not any more: to keep the model's size it would have to be quantised again.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from perplab.compression.prompts.fitting import Fitting
from perplab.errors import PerplabError
from perplab.models.anatomy import anatomy

_ADAPTED = ("query", "key", "value", "qkv", "attention_output")


def train_lora(model: PreTrainedModel, fitting: Fitting, rank: int) -> tuple[PreTrainedModel, int, Tensor]:
    """A copy of the model with low-rank changes of its attention projections, their numbers, and the losses.

    Raises:
        PerplabError: `peft` is missing, the family is unknown, or its weights are packed.
    """
    peft = _peft()
    blocks = anatomy(model).blocks
    paths = {block.projections[role].path for block in blocks for role in _ADAPTED if role in block.projections}
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(paths), task_type="CAUSAL_LM")
    adapted, numbers, losses = _trained(peft, model, config, fitting)
    return adapted.merge_and_unload().eval(), numbers, losses


def train_ptuning(model: PreTrainedModel, fitting: Fitting, length: int) -> tuple[Tensor, int, Tensor]:
    """A prompt, (length, embedding width), the numbers that were trained for it, and the losses.

    Raises:
        PerplabError: `peft` is missing, or does not take the model.
    """
    peft = _peft()
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=length, encoder_hidden_size=model.config.hidden_size, task_type="CAUSAL_LM"
    )
    adapted, numbers, losses = _trained(peft, model, config, fitting)
    return encoded_prompt(adapted), numbers, losses


def train_prefix(model: PreTrainedModel, fitting: Fitting, length: int) -> tuple[Tensor, int, Tensor]:
    """Keys and values, (layers, 2, heads, length, head_dim), their numbers, and the losses.

    Raises:
        PerplabError: `peft` is missing, or does not take the model.
    """
    peft = _peft()
    config = peft.PrefixTuningConfig(num_virtual_tokens=length, task_type="CAUSAL_LM")
    adapted, numbers, losses = _trained(peft, model, config, fitting)
    return prefix_states(adapted), numbers, losses


@torch.no_grad()
def encoded_prompt(adapted: Any) -> Tensor:
    """What the network of a P-tuned `peft` model writes, (length, embedding width)."""
    vectors: Tensor = adapted.get_prompt_embedding_to_save("default")
    return vectors.float()


@torch.no_grad()
def prefix_states(adapted: Any) -> Tensor:
    """Keys and values of a prefix-tuned `peft` model, (layers, 2, heads, length, head_dim)."""
    cache = adapted.get_prompt(batch_size=1)
    return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]).float()


def _trained(peft: Any, model: PreTrainedModel, config: Any, fitting: Fitting) -> tuple[Any, int, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng(fitting.seed).integers(2**63)))
        try:
            adapted = peft.get_peft_model(deepcopy(model), config).eval()
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise PerplabError(
                f"peft does not adapt this {model.config.model_type} model ({str(error).splitlines()[0]})",
                "use prompts, or adapt the model before it is compressed",
            ) from error
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    losses = fitting.run(trained, _loss_of(adapted))
    return adapted, sum(parameter.numel() for parameter in trained), losses


def _loss_of(adapted: Any) -> Callable[[Tensor], Tensor]:
    def loss(ids: Tensor) -> Tensor:
        logits = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())

    return loss


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise PerplabError(
            "lora, prefix and ptuning need the peft library", "install it: pip install perplab[compression]"
        ) from error
    return peft
