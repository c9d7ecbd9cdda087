"""Bits per byte on held-out text, by domain.

Each document's tokens are scored once, in packed rows with the context the row holds; nats are summed over the tokens
that stand for text (an end-of-text label has no bytes and does not count) and divided by their bytes.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from transformers import PreTrainedModel

from perplab.kernels.linear_cross_entropy import SoftmaxGradient
from perplab.text import PackedBlocks
from perplab.training.distribution import Processes
from perplab.training.objective import EVALUATION, NextToken, Objective

OVERALL = "all"
NEXT_TOKEN = NextToken()


@torch.no_grad()
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
        Bits per byte of each domain, and over all of their bytes under `all`.
    """
    training = model.training
    model.eval()
    sums = {
        name: _nats_and_bytes(model, blocks, tokens, rows, precision, chunk_step, processes, objective)
        for name, blocks in domains.items()
    }
    model.train(training)
    bits = {name: nats / bytes_ / np.log(2) for name, (nats, bytes_) in sums.items()}
    nats, bytes_ = np.sum(list(sums.values()), axis=0)
    return {name: float(value) for name, value in bits.items()} | {OVERALL: float(nats / bytes_ / np.log(2))}


def _nats_and_bytes(
    model: PreTrainedModel,
    blocks: PackedBlocks,
    tokens: int,
    rows: int,
    precision: AbstractContextManager[None],
    chunk_step: SoftmaxGradient,
    processes: Processes,
    objective: Objective,
) -> tuple[float, float]:
    count = min(len(blocks), max(1, tokens // blocks.block_size))
    chosen = np.unique(np.linspace(0, len(blocks) - 1, count).astype(int))
    token_bytes = torch.from_numpy(blocks.store.token_bytes)
    totals = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(chosen), rows * processes.number):
        mine = chosen[start + processes.rank : start + rows * processes.number : processes.number]
        # A process with no row left repeats one without counting it: sharded models need every process in every pass.
        batch = [blocks.block(int(index)) for index in (mine if len(mine) else chosen[:1])]
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
        if len(mine):
            lengths = token_bytes[labels.flatten().clamp(min=0)] * (labels.flatten() >= 0)
            totals += torch.stack([costs.nll.cpu().double() @ (lengths > 0).double(), lengths.sum().double()])
    nats, bytes_ = processes.sum(totals.to(processes.device)).tolist()
    return nats, bytes_
