"""Checkpoints with quantised layers, in the `pack-quantized` format of `compressed-tensors`: what their config says.

- The layers themselves give the tensors that are saved (`perplab.models.packed_linear`).
- Every layer is named in full as a target, one group for each distinct scheme: layers may differ in bits, and no
  pattern can match more than was meant.
- transformers reads packed zero points only while it spreads weights out, which it does by one scheme for all layers:
  where one is enough, it is asked to. Layers of several schemes reach it only if they are symmetric.
- What the format cannot say is under the key `perplab` of its config, which other readers skip.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from perplab.artifacts import read_json
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models.compressed_form import require_compressed_tensors, weight_scheme
from perplab.models.packed_linear import LLMInt8Linear, QuantizedLinear, quantized_layers

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
THRESHOLDS = "llm_int8_thresholds"
"""Under `perplab`: the layers that are LLM.int8()'s, with their thresholds."""


def is_quantized(config: PreTrainedConfig) -> str | None:
    """The method that a checkpoint's config says its weights are quantised with; None where they are not."""
    return quantization_section(config).get("quant_method")


def quantization_section(config: PreTrainedConfig) -> dict[str, Any]:
    """What a checkpoint's config says of its quantised weights; empty where they are not."""
    section = getattr(config, "quantization_config", None) or {}
    return section if isinstance(section, dict) else section.to_dict()


def describe_layers(model: nn.Module, folder: Path) -> None:
    """Say in `folder`'s config.json how the quantised layers of a saved model are stored; nothing where it has none.

    Raises:
        PerplabError: compressed-tensors is not installed.
    """
    layers = quantized_layers(model)
    if layers:
        path = folder / "config.json"
        config = read_json(path, "save the model again") | {"quantization_config": _description(model, layers)}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _description(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> dict[str, Any]:
    require_compressed_tensors()
    import compressed_tensors

    groups = [
        {"format": FORMAT, "targets": paths, "weights": json.loads(scheme)}
        for scheme, paths in _targets(layers).items()
    ]
    section = {
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "format": FORMAT,
        "ignore": [path for path, module in model.named_modules() if isinstance(module, nn.Linear)],
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "version": compressed_tensors.__version__,
    }
    if len(groups) == 1:
        section["dequantize"] = True
    thresholds = {path: layer.threshold for path, layer in layers.items() if isinstance(layer, LLMInt8Linear)}
    return section | ({"perplab": {THRESHOLDS: thresholds}} if thresholds else {})


def _targets(layers: Mapping[str, QuantizedLinear]) -> dict[str, list[str]]:
    """The paths of layers by the JSON of their scheme, in as few schemes as tell all there is to tell."""
    ways = {path: _schemes(layer.quantized) for path, layer in layers.items()}
    needed = {schemes[0] for schemes in ways.values() if len(schemes) == 1}
    targets: dict[str, list[str]] = {}
    for path, schemes in ways.items():
        targets.setdefault(schemes[0] if schemes[0] in needed else schemes[-1], []).append(path)
    return targets


def _schemes(matrix: QuantizedMatrix) -> list[str]:
    """Every way to say how the matrix is stored: with its group size, and without where a row is one group."""
    ways = (True, False) if matrix.scale.shape[1] == 1 else (True,)
    return [json.dumps(weight_scheme(matrix, grouped=grouped)) for grouped in ways]
