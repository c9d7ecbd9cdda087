"""Bits per byte on held-out text, by domain.

Each document's tokens are scored once, in packed rows with the context the row holds; nats are summed over the tokens
that stand for text (an end-of-text label has no bytes and does not count) and divided by their bytes.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from perplab.kernels.linear_cross_entropy import SoftmaxGradient
from perplab.text import PackedBlocks
from perplab.training.distribution import Processes
from perplab.training.objective import EVALUATION, NextToken, Objective

OVERALL = "all"
NEXT_TOKEN = NextToken()


class WindowCosts(NamedTuple):
    """What some held-out windows cost, each array of shape (windows,)."""

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    """Tokens that stand for text."""
    bytes: npt.NDArray[np.float64]
    """Bytes of those."""


def heldout_bits_per_byte(
    model: PreTrainedModel,
    domains: Mapping[str, PackedBlocks],
    *,
    tokens: int,
    rows: int,
    precision: AbstractContextManager[None],
    chunk_step: SoftmaxGradient,
    processes: Processes,
    objective: Objective = NEXT_TOKEN,
) -> dict[str, float]:
    """`bits_per_byte` of `heldout_costs`."""
    return bits_per_byte(
        heldout_costs(
            model,
            domains,
            tokens=tokens,
            rows=rows,
            precision=precision,
            chunk_step=chunk_step,
            processes=processes,
            objective=objective,
        )
    )


def bits_per_byte(costs: Mapping[str, WindowCosts]) -> dict[str, float]:
    """Bits per byte of each domain, and over all of their bytes under `all`."""
    sums = {name: (windows.nats.sum(), windows.bytes.sum()) for name, windows in costs.items()}
    sums[OVERALL] = tuple(np.sum(list(sums.values()), axis=0))
    return {name: float(nats / bytes_ / np.log(2)) for name, (nats, bytes_) in sums.items()}


@torch.no_grad()
def heldout_costs(
    model: PreTrainedModel,
    domains: Mapping[str, PackedBlocks],
    *,
    tokens: int,
    rows: int,
    precision: AbstractContextManager[None],
    chunk_step: SoftmaxGradient,
    processes: Processes,
    objective: Objective = NEXT_TOKEN,
) -> dict[str, WindowCosts]:
    """Measure the model.

    Args:
        model: the decoder, in any mode; its mode is left as it was.
        domains: held-out blocks by domain.
        tokens: at most so many a domain, from blocks spread evenly over it.
        rows: blocks in one forward pass.
        precision: context that the forward pass runs in.
        chunk_step: see `perplab.kernels.linear_cross_entropy`.
        processes: who shares the work; all must call.
        objective: what a token's cost is.

    Returns:
        The cost of each domain's windows: the same windows in the same order at every call.
    """
    training = model.training
    model.eval()
    costs = {
        name: _window_costs(model, blocks, tokens, rows, precision, chunk_step, processes, objective)
        for name, blocks in domains.items()
    }
    model.train(training)
    return costs


def _window_costs(
    model: PreTrainedModel,
    blocks: PackedBlocks,
    tokens: int,
    rows: int,
    precision: AbstractContextManager[None],
    chunk_step: SoftmaxGradient,
    processes: Processes,
    objective: Objective,
) -> WindowCosts:
    count = min(len(blocks), max(1, tokens // blocks.block_size))
    chosen = np.unique(np.linspace(0, len(blocks) - 1, count).astype(int))
    token_bytes = torch.from_numpy(blocks.store.token_bytes)
    sums = torch.zeros(3, len(chosen), dtype=torch.float64)
    for start in range(0, len(chosen), rows * processes.number):
        mine = range(start + processes.rank, min(start + rows * processes.number, len(chosen)), processes.number)
        # A process with no row left repeats one without counting it: sharded models need every process in every pass.
        batch = [blocks.block(int(chosen[window])) for window in mine or [0]]
        input_ids, labels, position_ids = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
        device = processes.device
        with precision:
            costs = objective.costs(
                model,
                input_ids.to(device),
                position_ids.to(device),
                labels.to(device),
                step=EVALUATION,
                micro_batch=start + processes.rank,
                z_loss=0.0,
                chunk_step=chunk_step,
            )
        if mine:
            lengths = token_bytes[labels.clamp(min=0)] * (labels >= 0)
            is_text = lengths > 0
            nats = costs.nll.cpu().double().view_as(labels) * is_text
            sums[:, list(mine)] = torch.stack([part.sum(dim=1) for part in (nats, is_text, lengths)]).double()
    return WindowCosts(*processes.sum(sums.to(processes.device)).cpu().numpy())
