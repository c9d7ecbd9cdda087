"""Rounding a model's weights, layer by layer.

- The model that is given stays as it is; the new one shares every tensor that does not change.
- What cannot be rounded is found before any work: weights that are not finite, groups that do not divide.
- With an output folder each finished layer is on the disk, and the same call continues after a kill.
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel

from perplab.artifacts import write_json
from perplab.compression.calibration import calibration_windows
from perplab.compression.layer_store import LayerRecord, LayerStore
from perplab.compression.layers import Layer, block_layers
from perplab.compression.methods import group_size_of
from perplab.compression.quantize_config import UNCALIBRATED, QuantizeConfig
from perplab.compression.rounding import round_blocks
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.anatomy import Anatomy, anatomy
from perplab.models.compressed_checkpoint import is_quantized
from perplab.models.packed_linear import quantized_layers
from perplab.scoring.conventions import max_length_of
from perplab.text import Document

RECORDS = "quantization.json"
"""The file in the model's folder that says what happened to each layer."""
_LONGEST_WINDOW = 2_048


def quantize(
    language_model: LanguageModel,
    calibration: Iterable[Document] | None = None,
    config: QuantizeConfig | None = None,
    *,
    out: str | Path | None = None,
    watch: Callable[[str, int, int], None] | None = None,
    log: Callable[[LayerRecord], None] | None = None,
) -> LanguageModel:
    """Round the weights of every matrix in the blocks; embeddings, norms and head stay.

    Args:
        language_model: the model; it is not changed.
        calibration: text that shows each layer its inputs; only `rtn` and `llm-int8` can do without.
        config: method, bits and the rest.
        out: folder for the finished model and for layers on the way; None keeps both in memory.
        watch: called with what is being done, the layers done, and their number.
        log: called with each layer's record.

    Returns:
        The rounded model. Its lineage has the figures `relative error` (mean over layers), `bits per weight` and
        `worst relative error`.

    Raises:
        PerplabError: the model is quantised already or of an unknown family, weights are not finite, the group size
            does not divide a layer's inputs, the calibration text is too short or of one token, or `out` exists.
    """
    config = config or QuantizeConfig()
    targets = _targets(language_model.model, config)
    tokens = _calibration_tokens(language_model, calibration, config)
    store = None if out is None else LayerStore(Path(out), _what_decides(language_model, tokens, config))
    model = _sharing_copy(language_model.model)
    records = []
    for record in round_blocks(model, targets, config, tokens, store, watch or (lambda *_: None)):
        records.append(record)
        if log:
            log(record)
    made = language_model.derive(model, "quantize", config=asdict(config), seed=config.seed, figures=_figures(records))
    if store is not None:
        made.save(store.out)
        write_json(store.out / RECORDS, {"layers": [asdict(record) for record in records]})
        store.remove()
    return made


def _figures(records: Sequence[LayerRecord]) -> dict[str, float]:
    weights = [record.shape[0] * record.shape[1] for record in records]
    bits = sum(size * record.bits_per_weight for size, record in zip(weights, records, strict=True)) / sum(weights)
    errors = [record.relative_error for record in records if record.relative_error is not None]
    figures = {"bits per weight": bits, "layers": float(len(records))}
    if errors:
        figures |= {"relative error": fmean(errors), "worst relative error": max(errors)}
    return figures


def _targets(model: PreTrainedModel, config: QuantizeConfig) -> frozenset[str]:
    """Paths of the layers to round.

    Raises:
        PerplabError: one of them cannot be rounded, or there is none.
    """
    if quantized_layers(model) or is_quantized(model.config):
        raise PerplabError("the model is quantised already", "name the model it was made from")
    parts = anatomy(model)
    _refuse_embeddings(parts, config)
    layers = [layer for block in parts.blocks for layer in block_layers(block) if re.search(config.layers, layer.path)]
    if not layers:
        raise PerplabError(f"no layer's path matches {config.layers!r}", "see the names of the model's parameters")
    for layer in layers:
        if not layer.matrix.isfinite().all():
            raise PerplabError(f"{layer.path} holds weights that are not finite", "repair the checkpoint")
    _check_groups(layers, group_size_of(config))
    return frozenset(layer.path for layer in layers)


def _check_groups(layers: Sequence[Layer], size: int | None) -> None:
    inputs = [layer.matrix.shape[1] for layer in layers]
    for layer, columns in zip(layers, inputs, strict=True):
        if size and columns % size:
            common = math.gcd(*inputs)
            fitting = max(divisor for divisor in range(1, size) if common % divisor == 0)
            raise PerplabError(
                f"group_size {size} does not divide the {columns} inputs of {layer.path}",
                f"give {fitting}, which divides those of all layers, or leave it out for whole rows",
            )


def _refuse_embeddings(parts: Anatomy, config: QuantizeConfig) -> None:
    if not config.layers:
        return
    for path in (parts.token_embedding.path, parts.head.path):
        if re.search(config.layers, path):
            tied = ", and the two are one tensor" if parts.tied else ""
            raise PerplabError(
                f"{config.layers!r} names {path}: embedding and head stay as they are{tied}", "name layers in blocks"
            )


def _calibration_tokens(
    language_model: LanguageModel, calibration: Iterable[Document] | None, config: QuantizeConfig
) -> torch.Tensor | None:
    if calibration is None:
        if config.method not in UNCALIBRATED:
            raise PerplabError(f"{config.method} without calibration text", "name a corpus for the calibration")
        return None
    most = max_length_of(language_model)
    length = config.length or min(most, _LONGEST_WINDOW)
    if length > most:
        raise PerplabError(f"windows of {length} tokens for a model of {most} positions", "give a shorter length")
    tokens = calibration_windows(
        calibration, language_model.tokenizer, windows=config.windows, length=length, seed=config.seed
    )
    vocabulary = language_model.model.get_input_embeddings().weight.shape[0]
    if int(tokens.max()) >= vocabulary:
        raise PerplabError(
            f"the tokenizer gives token {int(tokens.max())} and the model knows {vocabulary}",
            "use the model's own tokenizer",
        )
    return tokens


def _what_decides(
    language_model: LanguageModel, tokens: torch.Tensor | None, config: QuantizeConfig
) -> dict[str, object]:
    text = None if tokens is None else blake2b(tokens.numpy().tobytes(), digest_size=16).hexdigest()
    return {"config": asdict(config), "model": language_model.fingerprint, "calibration": text}


def _sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose modules are its own and whose tensors are the model's."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
