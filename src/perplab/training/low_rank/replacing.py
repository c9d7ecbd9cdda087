"""Which layers of a model a low-rank method takes, and the way back to a plain model.

In a causal language model these are the linear layers inside the blocks: embeddings, head, norms and biases train as
they are. In any other module they are all of its linear layers.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from perplab.errors import PerplabError
from perplab.models.anatomy import linear_layers
from perplab.models.packed_linear import QuantizedLinear
from perplab.training.low_rank.adapted_linear import AdaptedLinear
from perplab.training.low_rank.config import LowRankConfig
from perplab.training.low_rank.layer import ReparameterisedLinear, matrix_of
from perplab.training.low_rank.projected_linear import ProjectedLinear
from perplab.training.low_rank.spectral_linear import SpectralLinear

LAYER_CLASSES: dict[str, type[ReparameterisedLinear]] = {
    "lora": AdaptedLinear,
    "relora": AdaptedLinear,
    "galore": ProjectedLinear,
    "sst": SpectralLinear,
}


def target_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The plain linear layers that a low-rank method would take, by path."""
    if isinstance(model, PreTrainedModel):
        return linear_layers(model)
    return {path: module for path, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def layers_in_place_of_linear(model: nn.Module) -> dict[str, ReparameterisedLinear]:
    """The layers that a low-rank method has put in place of linear ones, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ReparameterisedLinear)}


def replace_layers(
    model: nn.Module, config: LowRankConfig, generator: torch.Generator
) -> dict[str, ReparameterisedLinear]:
    """Put a low-rank method's layers in place of a model's linear ones, which leaves what it computes as it is.

    Where a matrix has fewer rows or columns than the rank, it gets the largest rank it can have, with a warning.

    Raises:
        PerplabError: the model has no such layers, is quantised, or is already under a low-rank method.
    """
    _refuse_wrapped(model.named_modules())
    targets = target_layers(model)
    if not targets:
        raise PerplabError("the model has no linear layers", "use a model with nn.Linear or Conv1D layers")
    layer_class, clipped = LAYER_CLASSES[config.method], {}
    for path, linear in targets.items():
        largest = min(matrix_of(linear).shape)
        if config.rank > largest:
            clipped[path] = largest
        layer = layer_class.from_linear(linear, min(config.rank, largest), config, generator)
        model.set_submodule(path, layer.train(linear.training))
    if clipped:
        some = ", ".join(f"{path} {rank}" for path, rank in list(clipped.items())[:3])
        warnings.warn(f"{len(clipped)} layers are smaller than rank {config.rank} and get less: {some}", stacklevel=3)
    return layers_in_place_of_linear(model)


def merge_low_rank(model: nn.Module) -> None:
    """Put plain layers with the weights of now in place of a low-rank method's; a plain model stays as it is."""
    for path, layer in layers_in_place_of_linear(model).items():
        model.set_submodule(path, layer.merge())


def _refuse_wrapped(modules: Iterable[tuple[str, nn.Module]]) -> None:
    for path, module in modules:
        if isinstance(module, ReparameterisedLinear):
            raise PerplabError(f"{path} is already under a low-rank method", "merge the model first (merge_low_rank)")
        if hasattr(module, "base_layer"):
            raise PerplabError(f"{path} is already wrapped by peft", "merge its adapters first (merge_and_unload)")
        weight = getattr(module, "weight", None) if isinstance(module, nn.Linear) else None
        if isinstance(module, QuantizedLinear) or (weight is not None and not weight.is_floating_point()):
            raise PerplabError(f"{path} is quantised", "use the checkpoint that it was quantised from")
