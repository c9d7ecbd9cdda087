"""Reading checkpoints of the `compressed-tensors` format into layers that stay packed.

- transformers does the reading: a quantiser of ours puts a placeholder for the packed tensors where each quantised
  layer will be and makes it the layer once they are there. Missing and superfluous tensors are found as in any other
  checkpoint, and the whole model is never spread out.
- Which layer has which scheme is resolved by compressed-tensors: folders of other writers use classes and patterns.
- The loaded model is an ordinary one: nothing on it or in its config remembers how it was read.
- Quantised activations and caches, and groups of scattered columns, are refused: they are other functions than ours.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from perplab.errors import PerplabError
from perplab.models.compressed_checkpoint import FORMAT, METHOD, THRESHOLDS, is_quantized, quantization_section
from perplab.models.compressed_form import matrix_of, require_compressed_tensors
from perplab.models.packed_linear import LLMInt8Linear, PackedLinear

_READER = "perplab-packed"
_MEND = "use a checkpoint of packed integer weights, or load it with transformers"


class PackedWeights(QuantizationConfigMixin):
    """What `from_pretrained` needs to read a compressed-tensors checkpoint into packed layers.

    Args:
        quantization: the checkpoint's `QuantizationConfig`, of compressed-tensors.
        thresholds: of the layers that are LLM.int8()'s.
    """

    def __init__(self, quantization: Any, thresholds: Mapping[str, float]) -> None:
        super().__init__(quant_method=_READER)
        self.quantization = quantization
        self.thresholds = thresholds


def packed_weights(config: PreTrainedConfig, folder: Path) -> PackedWeights | None:
    """How to read the checkpoint in `folder`, and its config with nothing more to say of it; None for other formats.

    Args:
        config: of the checkpoint; its `quantization_config` is taken away.
        folder: named in errors.

    Raises:
        PerplabError: compressed-tensors is not installed, or the scheme is not one that our layers compute.
    """
    if is_quantized(config) != METHOD:
        return None
    require_compressed_tensors()
    from compressed_tensors.quantization import QuantizationConfig

    section = quantization_section(config)
    fault = "groups columns by activation order (g_idx)" if _has_scattered_groups(section) else None
    try:
        quantization = None if fault else QuantizationConfig.model_validate(section)
    except (ValueError, NotImplementedError) as error:
        detail = " ".join(str(error).split())
        quantization, fault = None, f"has a quantization_config that compressed-tensors refuses ({detail})"
    fault = fault or _fault(quantization)
    if fault:
        raise PerplabError(f"the checkpoint in {folder} {fault}", _MEND)
    del config.quantization_config
    return PackedWeights(quantization, section.get("perplab", {}).get(THRESHOLDS, {}))


@register_quantizer(_READER)
class _PackedReader(HfQuantizer):
    """Puts placeholders into the model before its weights are read, and layers in their place after."""

    quantization_config: PackedWeights

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        from compressed_tensors.utils.match import match_named_modules, match_targets

        quantization = self.quantization_config.quantization
        schemes = {target: group for group in quantization.config_groups.values() for target in group.targets}
        for path, module in list(match_named_modules(model, schemes, quantization.ignore)):
            if not isinstance(module, nn.Linear):
                raise PerplabError(f"{path}, which is quantised, is not a linear layer", _MEND)
            weights = schemes[match_targets(path, module, schemes)[0]].weights
            model.set_submodule(path, _PackedTensors(module, weights))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        thresholds = self.quantization_config.thresholds
        for path, module in list(model.named_modules()):
            if isinstance(module, _PackedTensors):
                matrix = matrix_of({name: tensor.data for name, tensor in module.named_parameters()}, module.bits)
                layer = (
                    LLMInt8Linear(matrix, module.bias, thresholds[path])
                    if path in thresholds
                    else PackedLinear(matrix, module.bias)
                )
                model.set_submodule(path, layer)
        self.remove_quantization_config(model)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class _PackedTensors(nn.Module):
    """What a checkpoint holds of one linear layer, by the same names."""

    def __init__(self, linear: nn.Linear, weights: Any) -> None:
        super().__init__()
        self.bits = weights.num_bits
        out_features, in_features = linear.weight.shape
        groups = in_features // weights.group_size if weights.strategy == "group" else 1
        shapes = {
            "weight_packed": ((out_features, _words(in_features, self.bits)), torch.int32),
            "weight_scale": ((out_features, groups), linear.weight.dtype),
            "weight_shape": ((2,), torch.int64),
        }
        if not weights.symmetric:
            shapes["weight_zero_point"] = ((_words(out_features, self.bits), groups), torch.int32)
        for name, (shape, dtype) in shapes.items():
            empty = torch.empty(shape, dtype=dtype, device=linear.weight.device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        self.bias = linear.bias


def _words(codes: int, bits: int) -> int:
    """32-bit words that hold so many codes."""
    return -(-codes * bits // 32)


def _has_scattered_groups(section: Mapping[str, Any]) -> bool:
    groups = section.get("config_groups", {}).values()
    weights = [group.get("weights") or {} for group in groups if isinstance(group, dict)]
    return any(weight.get("actorder") in ("group", "dynamic") for weight in weights)


def _fault(quantization: Any) -> str | None:
    """What of a parsed config our layers do not compute."""
    if quantization.kv_cache_scheme is not None:
        return "quantises the cache of keys and values"
    for scheme in quantization.config_groups.values():
        weights = scheme.weights
        if scheme.input_activations is not None or scheme.output_activations is not None:
            return "quantises activations"
        if weights is None or weights.type != "int" or weights.strategy not in ("group", "channel"):
            return "has weights that are not integers in groups or rows"
        if (scheme.format or quantization.format) != FORMAT:
            return f"stores its weights as {scheme.format or quantization.format}"
    return None
