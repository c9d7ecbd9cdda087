"""A small model inside a larger architecture, computing the same: what makes two sizes comparable.

Decisions:
- Features are repeated a whole number of times, which keeps mean and variance, so norms act as before. A matrix becomes
  its copies side by side and one above the other, divided by the number of times its inputs are repeated; what is
  added or looked up (biases, gains, embeddings) is repeated as it is.
- Heads are repeated and keep their size, since their scores are scaled by it. In a matrix that makes queries, keys and
  values, each of the three is repeated by itself.
- Layers that the small model lacks come last. Their output projections are zero, so the residual stream passes them
  unchanged; their other weights are drawn anew.
- Head and token embedding cannot be one: the embedding is repeated as it is, the head is divided.
- Whatever a family does beside (positions of ALiBi, a scaled embedding), the two models' logits are compared in the
  end, and a model that does not compute the same is refused.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from perplab.errors import PerplabError
from perplab.models.anatomy import Anatomy, anatomy

RowsOfParts = list[tuple[Tensor, Tensor]]
"""For each part of a fused projection its rows in the small matrix, and those in the large one."""

_WRITES_TO_STREAM = ("attention_output", "down")
_CHECKED_ROWS, _CHECKED_LENGTH = 2, 16


@torch.no_grad()
def widen(small: PreTrainedModel, large_config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model of `large_config` that computes what `small` computes.

    Args:
        small: a causal language model of a known family, left as it is.
        large_config: of the same family and vocabulary; its sizes are whole multiples of the small model's, its heads
            as large, its layers as many or more.
        seed: of the weights that have no part in the function: those of added layers, and of added positions.

    Returns:
        The larger model in the dtype and on the device of `small`, in evaluation mode.

    Raises:
        PerplabError: the families, vocabularies or head sizes differ, a size is no whole multiple, there are fewer
            layers or positions, the larger model ties head and embedding, or its settings make another function.
    """
    _check_configs(small.config, large_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        large = AutoModelForCausalLM.from_config(copy.deepcopy(large_config), dtype=small.dtype)
    large = large.to(small.device).eval()
    parts, large_parts = anatomy(small), anatomy(large)
    fused = _fused_rows(parts, large_parts)
    modules = dict(large.named_modules())
    for path, module in small.named_modules():
        if path not in modules:
            raise PerplabError(f"the larger config makes no {path}", "give a config that differs in sizes alone")
        for name, source in module.named_parameters(recurse=False):
            _fill(getattr(modules[path], name), source, module, fused.get(path), f"{path}.{name}")
    for block in large_parts.blocks[len(parts.blocks) :]:
        for role in _WRITES_TO_STREAM:
            block.projections[role].weight.zero_()
            bias = block.projections[role].bias
            if bias is not None:
                bias.zero_()
    _check_same_function(small, large)
    return large


def _check_configs(config: PreTrainedConfig, large: PreTrainedConfig) -> None:
    if config.model_type != large.model_type:
        raise PerplabError(
            f"a {config.model_type} model does not fit into a {large.model_type}", "give a config of the same family"
        )
    if config.vocab_size != large.vocab_size:
        raise PerplabError(
            f"vocabularies of {config.vocab_size} and {large.vocab_size} tokens", "give both the same tokenizer"
        )
    if large.num_hidden_layers < config.num_hidden_layers:
        raise PerplabError(
            f"{config.num_hidden_layers} layers do not fit into {large.num_hidden_layers}", "give as many or more"
        )
    if _head_size(config) != _head_size(large):
        raise PerplabError(
            f"heads of {_head_size(config)} and of {_head_size(large)} features scale their scores differently",
            f"give the larger model heads of {_head_size(config)}, and more of them",
        )
    if large.tie_word_embeddings and large.hidden_size != config.hidden_size:
        raise PerplabError(
            "a wider model needs a head that is smaller than its embedding, and this config ties the two",
            "set tie_word_embeddings to False in the larger config",
        )


def _head_size(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _fused_rows(parts: Anatomy, large_parts: Anatomy) -> dict[str, RowsOfParts]:
    """For each fused projection, by path."""
    return {
        projection.path: [(rows, block.projections[role].rows[part]) for part, rows in projection.rows.items()]
        for own, block in zip(parts.blocks, large_parts.blocks, strict=False)
        for role, projection in own.projections.items()
        if projection.rows
    }


def _fill(target: Tensor, source: Tensor, module: nn.Module, fused: RowsOfParts | None, name: str) -> None:
    """Write the small model's parameter into the large one's."""
    if isinstance(module, Conv1D) and source.ndim == 2:
        source, target = source.T, target.T
    if isinstance(module, nn.Embedding):
        if len(target) < len(source):
            raise PerplabError(f"{name} has {len(source)} rows and only {len(target)} larger ones", "give as many")
        target = target[: len(source)]
    is_matrix = isinstance(module, nn.Linear | Conv1D) and source.ndim == 2
    divisor = target.shape[1] // source.shape[1] if is_matrix else 1
    for rows, large_rows in fused or [(torch.arange(len(source)), torch.arange(len(target)))]:
        target[large_rows] = _repeated(source[rows], (len(large_rows), *target.shape[1:]), name) / divisor


def _repeated(source: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Copies of `source` side by side that fill `shape`."""
    if len(shape) != source.ndim or any(size % own for size, own in zip(shape, source.shape, strict=True)):
        raise PerplabError(
            f"{name} is {tuple(source.shape)} in the small model and {shape} in the large one",
            "give sizes that are whole multiples",
        )
    return source.repeat([size // own for size, own in zip(shape, source.shape, strict=True)])


def _check_same_function(small: PreTrainedModel, large: PreTrainedModel) -> None:
    shape = (_CHECKED_ROWS, _CHECKED_LENGTH)
    token_ids = torch.randint(small.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    training = small.training
    own, other = (
        model.eval()(input_ids=token_ids.to(small.device), use_cache=False).logits.double() for model in (small, large)
    )
    small.train(training)
    if not torch.allclose(own, other, atol=torch.finfo(small.dtype).eps ** 0.5):
        raise PerplabError(
            f"the wider {small.config.model_type} model does not compute the same: its logits differ by "
            f"{float((own - other).abs().max()):.2g}",
            "keep every setting but the sizes, and repeat heads and key-value heads equally often",
        )
