"""From the settings of a run to a solver, a grid, the accounting of bits, and the module that takes a layer's place."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from perplab.compression.grid import GridOptions
from perplab.compression.layers import Layer
from perplab.compression.quantize_config import QuantizeConfig
from perplab.compression.solvers import (
    AWQ,
    GPTQ,
    LLMInt8,
    QuantEase,
    QuantEaseOutliers,
    RoundToNearest,
    Solution,
    Solver,
    SpQR,
)
from perplab.models.packed_linear import OUTLIER_THRESHOLD, LLMInt8Linear, PackedLinear, QuantizedLinear, packable

_SCALE_BITS = 16
_OUTLIER_BITS = 32
"""Of a value and its index."""
_SPQR_STATISTIC_BITS = 3
_SPQR_GROUP = 16
"""Default group size of SpQR, and of the groups of groups that share second-level scales."""


def group_size_of(config: QuantizeConfig) -> int | None:
    """Columns that share a scale; None for whole rows."""
    return config.group_size or (_SPQR_GROUP if config.method == "spqr" else None)


def grid_options(config: QuantizeConfig, dtype: torch.dtype) -> GridOptions:
    """The grid of a run, with scales in the dtype of the model's weights."""
    return GridOptions(
        bits=config.bits,
        group_size=group_size_of(config),
        symmetric=config.symmetric,
        range=config.range,
        scale_dtype=dtype,
    )


def bits_per_weight(solution: Solution, config: QuantizeConfig) -> float:
    """Stored bits a weight: codes, scales and zero points, outliers with their places.

    SpQR's scales and zero points are rounded themselves, and groups of groups share two scales and two zero points.
    """
    codes, group = solution.matrix.codes, solution.matrix.group_size
    if config.method == "spqr":
        statistics = 2 * _SPQR_STATISTIC_BITS / group + 4 * _SCALE_BITS / (group * _SPQR_GROUP)
    else:
        statistics = (_SCALE_BITS + (0 if config.symmetric else config.bits)) / group
    outliers = 0 if solution.outliers is None else solution.outliers.values().numel()
    return config.bits + statistics + _OUTLIER_BITS * outliers / codes.numel()


def solver_for(config: QuantizeConfig, *, scaled: bool) -> Solver:
    """The solver of a run.

    Args:
        config: the run's settings.
        scaled: whether the layer's inputs can be divided; without that AWQ is rounding to the nearest.
    """
    gptq = GPTQ(damping=config.damping, act_order=config.act_order)
    if config.method == "quantease":
        return _descent(config, gptq)
    if config.method == "spqr":
        plain = SpQR(damping=config.damping, act_order=config.act_order)
        return plain if config.threshold is None else replace(plain, threshold=config.threshold)
    if config.method == "gptq":
        return gptq
    if config.method == "llm-int8":
        return LLMInt8()
    return AWQ() if config.method == "awq" and scaled else RoundToNearest()


def _descent(config: QuantizeConfig, gptq: GPTQ) -> Solver:
    if config.outliers:
        return QuantEaseOutliers(
            share=config.outliers, columns=config.outlier_columns, sweeps=config.sweeps, act_order=config.act_order
        )
    starts: dict[str, Solver | None] = {"weights": None, "rtn": RoundToNearest(), "gptq": gptq}
    return QuantEase(start=starts[config.start], sweeps=config.sweeps, act_order=config.act_order)


def packed_module(
    model: PreTrainedModel, layer: Layer, solution: Solution, config: QuantizeConfig
) -> QuantizedLinear | None:
    """The module that holds the codes in place of the layer's.

    None where the layer stays an ordinary one with rounded values in it: a `Conv1D`, an expert of a stack, weights with
    outliers among the codes. No format that other tools read has a place for those.
    """
    if layer.expert is not None or solution.outliers is not None or not packable(model, layer.path):
        return None
    if config.method == "llm-int8":
        threshold = OUTLIER_THRESHOLD if config.threshold is None else config.threshold
        return LLMInt8Linear(solution.matrix, layer.projection.bias, threshold)
    return PackedLinear(solution.matrix, layer.projection.bias)
