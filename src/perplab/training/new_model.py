"""What a run starts from, random weights of a shape or the weights of another model, and what it minimises."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.any_order import is_any_order
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.diffusion import DiffusionModel
from perplab.models.packed_linear import quantized_layers
from perplab.models.position_limit import position_limit
from perplab.models.stock import has_decoder_form, to_decoder
from perplab.text import boundary_tokens
from perplab.training.config import SHAPE_FIELDS, TrainConfig
from perplab.training.diffusion_objective import DiffusionObjective, diffusion_config
from perplab.training.distribution import Processes
from perplab.training.objective import NextToken, Objective
from perplab.training.presets import decoder_config


def new_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of a run from random weights, which depend on the run's seed alone."""
    vocab_size, end_of_text = len(tokenizer), boundary_tokens(tokenizer)[1]
    if config.model == "diffusion":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return DiffusionModel(diffusion_config(config, vocab_size, end_of_text))
    return new_decoder(decoder_config(config, vocab_size, end_of_text), config.seed)


def objective_of(model: PreTrainedModel, config: TrainConfig) -> Objective:
    """What a run minimises: that follows from what its model can do."""
    return DiffusionObjective(config.loss, config.seed) if isinstance(model, DiffusionModel) else NextToken()


def new_decoder(shape: DecoderConfig, seed: int) -> DecoderForCausalLM:
    """A decoder with random weights that depend on the seed alone.

    The projections that write to the residual stream start smaller by the square root of their number, so that the
    stream's variance does not grow with depth.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = DecoderForCausalLM(shape)
        layer: Any  # of plain parts
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_((2 * shape.num_hidden_layers) ** -0.5)
    return model


def check_continuation(parent: LanguageModel, config: TrainConfig, tokenizer: str | None, processes: Processes) -> None:
    """Refuse what cannot be continued, before any work.

    Raises:
        PerplabError: the settings name a shape or a tokenizer of their own, the parent's weights are packed integers, a
            row is longer than its positions, or it is sharded and no decoder of ours.
    """
    for name in SHAPE_FIELDS:
        if getattr(config, name) != getattr(TrainConfig, name):
            raise PerplabError(f"{name} is given, but the shape is that of {parent.name}", f"leave {name} out")
    if tokenizer is not None:
        raise PerplabError(f"a tokenizer is given, but {parent.name} has its own", "leave --tokenizer out")
    if is_any_order(parent.model) and not isinstance(parent.model, DiffusionModel):
        raise PerplabError(
            f"{parent.name} is a masked {parent.model.config.model_type} model, which cannot be trained here",
            "name a causal language model, or a diffusion model that perplab train has made",
        )
    if quantized_layers(parent.model):
        raise PerplabError(
            f"{parent.name} is quantised: its packed weights cannot be trained", "name the model it was quantised from"
        )
    limit = position_limit(parent.model.config)
    if limit is not None and config.block_size > limit:
        raise PerplabError(
            f"rows of {config.block_size} tokens exceed the {limit} positions of {parent.name}",
            f"give block_size {limit} or less",
        )
    if processes.number > 1 and not _is_sharded_by_blocks(parent.model):
        raise PerplabError(
            f"a {parent.model.config.model_type} model trains in one process, and here are {processes.number}",
            "start it without torchrun",
        )


def continued_model(parent: LanguageModel) -> PreTrainedModel:
    """A copy of the parent in float32, to be trained further: as our decoder where it is one by another name."""
    model = copy.deepcopy(parent.model).float()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return to_decoder(model) if has_decoder_form(model) else model


def _is_sharded_by_blocks(model: PreTrainedModel) -> bool:
    return isinstance(model, (DecoderForCausalLM, DiffusionModel)) or has_decoder_form(model)
