"""Block by block: watch what layers read, solve, put the rounded weights in place, go on with what they compute.

- Each block is shown what the rounded blocks before it make of the calibration text, and only that is kept.
- A block's weights are its own from the moment its rounding begins, and packed when it ends, so that no more than one
  block is held twice.
- AWQ scales inputs that something before them can divide. Layers that read one tensor are then one problem: their rows
  stand above one another. It works from the block's end to its beginning, because dividing changes earlier rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import nn
from transformers import PreTrainedModel

from perplab.compression.absorb import scalable_inputs
from perplab.compression.layer_store import LayerRecord, LayerStore
from perplab.compression.layers import InputWatch, Layer, block_layers
from perplab.compression.methods import bits_per_weight, grid_options, packed_module, solver_for
from perplab.compression.quantize_config import QuantizeConfig
from perplab.compression.solvers import Solution
from perplab.compression.solvers.problem import relative_error
from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models.anatomy import BlockAnatomy
from perplab.models.blocks import BlockRunner
from perplab.models.packed_linear import QuantizedLinear, replace_linear

_TOKENS_AT_A_TIME = 4_096


@dataclass(frozen=True, eq=False)
class _Problem:
    """Layers that are solved as one, their rows above one another, and how to divide what they read."""

    layers: tuple[Layer, ...]
    divide: Callable[[torch.Tensor], None] | None = None


@torch.no_grad()
def round_blocks(
    model: PreTrainedModel,
    targets: frozenset[str],
    config: QuantizeConfig,
    tokens: torch.Tensor | None,
    store: LayerStore | None,
    watch: Callable[[str, int, int], None],
) -> Iterator[LayerRecord]:
    """Round the layers of `targets` in place.

    Args:
        model: may share tensors with another model, which stay as they are.
        targets: paths of layers.
        config: how.
        tokens: (windows, length) calibration text, or None.
        store: where finished layers are kept and found; None for nowhere.
        watch: called with the block's path, the layers done, and their number.

    Yields:
        A record for each layer as it is finished.
    """
    runner = BlockRunner(model)
    batch = 1 if tokens is None else max(1, _TOKENS_AT_A_TIME // tokens.shape[1])
    starts = range(0, 0 if tokens is None else len(tokens), batch)
    inputs = [] if tokens is None else [runner.enter(tokens[i : i + batch].to(model.device)) for i in starts]
    done = 0
    for index, block in enumerate(runner.anatomy.blocks):
        watch(block.path, done, len(targets))
        own_weights(block.module)
        packed: dict[str, QuantizedLinear] = {}
        for stage in _stages(block, runner, targets, config):
            watched = _watched(runner, index, stage, inputs, store)
            for layer, solution, record in (
                one for problem in stage for one in _solved(problem, config, watched, store)
            ):
                layer.matrix.copy_(replace(solution, input_scale=None).weight())
                module = packed_module(model, layer, solution, config)
                if module is not None:
                    packed[layer.path] = module
                done += 1
                watch(block.path, done, len(targets))
                yield record
        for number, hidden_states in enumerate(inputs):
            inputs[number] = runner.run(index, hidden_states)
        for path, module in packed.items():
            replace_linear(model, path, module)


def own_weights(module: nn.Module) -> None:
    """Give a module tensors of its own in place of those it shares."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))


def _stages(
    block: BlockAnatomy, runner: BlockRunner, targets: frozenset[str], config: QuantizeConfig
) -> list[list[_Problem]]:
    """What is solved on one look at the block's inputs, stage after stage."""
    layers = [layer for layer in block_layers(block) if layer.path in targets]
    if not config.sequential:
        return [_awq_problems(block, runner, layers)] if config.method == "awq" else [[_Problem((x,)) for x in layers]]
    stages: dict[int, list[_Problem]] = {}
    for layer in layers:
        stages.setdefault(_STAGE_OF_ROLE[layer.role], []).append(_Problem((layer,)))
    return [stages[number] for number in sorted(stages)]


_STAGE_OF_ROLE = {"qkv": 0, "query": 0, "key": 0, "value": 0, "attention_output": 1}
_STAGE_OF_ROLE |= {"gate_up": 2, "gate": 2, "up": 2, "down": 3}


def _awq_problems(block: BlockAnatomy, runner: BlockRunner, layers: Sequence[Layer]) -> list[_Problem]:
    """Layers that read one tensor together, last first; layers whose input nothing can divide alone."""
    targets = {layer.path for layer in layers}
    found = scalable_inputs(block, runner.anatomy, runner.model.config)
    problems = [
        _Problem(scalable.layers, scalable.divide)
        for scalable in reversed(found)
        if all(layer.path in targets for layer in scalable.layers)
    ]
    together = {layer.path for problem in problems for layer in problem.layers}
    return problems + [_Problem((layer,)) for layer in layers if layer.path not in together]


def _watched(
    runner: BlockRunner, index: int, stage: Sequence[_Problem], inputs: Sequence[torch.Tensor], store: LayerStore | None
) -> InputWatch:
    """The inputs of a stage's layers, unless all of them are finished."""
    layers = [layer for problem in stage for layer in problem.layers]
    watched = InputWatch(layers)
    if store is None or any(layer.path not in store for layer in layers):
        with watched.watching():
            for hidden_states in inputs:
                runner.run(index, hidden_states)
    return watched


def _solved(
    problem: _Problem, config: QuantizeConfig, watched: InputWatch, store: LayerStore | None
) -> Iterator[tuple[Layer, Solution, LayerRecord]]:
    """Each layer's solution, from the store or newly found; what they read is divided in the model."""
    if store is None or any(layer.path not in store for layer in problem.layers):
        found = _solve(problem, config, watched)
    else:
        found = [store.read(layer.path) for layer in problem.layers]
    scale = found[0][0].input_scale
    if problem.divide is not None and scale is not None:
        problem.divide(scale)
    for layer, (solution, record) in zip(problem.layers, found, strict=True):
        if store is not None:
            store.write(layer.path, solution, record)
        yield layer, solution, record


def _solve(problem: _Problem, config: QuantizeConfig, watched: InputWatch) -> list[tuple[Solution, LayerRecord]]:
    """Solutions of a problem's layers."""
    started = time.perf_counter()
    weights = [_wide(layer.matrix) for layer in problem.layers]
    moments = watched.take(*problem.layers)
    moments = replace(moments, second=moments.second.to(weights[0]))
    options = grid_options(config, problem.layers[0].matrix.dtype)
    try:
        whole = solver_for(config, scaled=problem.divide is not None).solve(torch.cat(weights), moments, options)
    except PerplabError as error:
        raise PerplabError(f"{problem.layers[0].path}: {error.problem}", error.mend) from None
    seconds = (time.perf_counter() - started) / len(weights)
    found = []
    for layer, weight, solution in zip(problem.layers, weights, _parted(whole, weights), strict=True):
        change = relative_error(weight, solution.weight().to(weight), moments.second)
        record = LayerRecord(
            path=layer.path,
            shape=(weight.shape[0], weight.shape[1]),
            tokens=moments.count,
            relative_error=change if moments.count else None,
            trace=whole.trace if len(weights) == 1 and moments.count else (),
            bits_per_weight=bits_per_weight(solution, config),
            outliers=0 if solution.outliers is None else solution.outliers.values().numel(),
            seconds=seconds,
        )
        found.append((solution, record))
    return found


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _parted(whole: Solution, weights: Sequence[torch.Tensor]) -> list[Solution]:
    """The solutions of matrices that stood above one another."""
    if len(weights) == 1:
        return [whole]
    ends = list(accumulate(len(weight) for weight in weights))
    return [replace(whole, matrix=_rows(whole.matrix, slice(i, j))) for i, j in pairwise([0, *ends])]


def _rows(matrix: QuantizedMatrix, rows: slice) -> QuantizedMatrix:
    return QuantizedMatrix(matrix.codes[rows], matrix.scale[rows], matrix.zero[rows], matrix.bits)
