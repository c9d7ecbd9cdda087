"""Token mixers: training speed of one decoder with each of them.

Depth 4, width 256 and a vocabulary of 6,144, which is 5 M parameters with softmax attention. A step is what the trainer
does: packed rows (4 of 512 tokens, two documents each), products in bfloat16, blocks compiled where there is a C++
compiler, clipping and AdamW. Each mixer runs in a process of its own; tokens a second are those of its best step, so
that another program's turn does not count, and `of softmax` is the share of softmax attention's speed.
"""

import os
import time
from typing import Any, get_args

import torch

from measuring import in_new_process
from perplab.training import TrainConfig, new_decoder
from perplab.training.compilation import can_compile, compile_model
from perplab.training.config import MixerName
from perplab.training.optimizer import new_optimizer
from perplab.training.presets import decoder_config

ROWS, LENGTH, VOCABULARY = 4, 512, 6144
STEPS = 4


def measure(quick: bool) -> list[dict[str, Any]]:
    names = ("softmax", "deltanet") if quick else get_args(MixerName)
    figures = {name: in_new_process(best_step, name, quick) for name in names}
    base = figures["softmax"]["tokens/s"]
    return [{"mixer": name, **figure, "of softmax": figure["tokens/s"] / base} for name, figure in figures.items()]


def best_step(mixer: MixerName, quick: bool) -> dict[str, float]:
    """Parameters and speed of one mixer."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = TrainConfig(mixer=mixer, depth=2 if quick else 4, block_size=LENGTH)
    model = new_decoder(decoder_config(config, VOCABULARY, 0), 0)
    options = {"chunk_step": compile_model(model)} if can_compile() and not quick else {}
    optimizer = new_optimizer(model, config)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(LENGTH // 2).repeat(2).expand(ROWS, -1)
    labels = tokens.roll(-1, dims=1)
    seconds = []
    for _ in range(2 + STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.token_losses(tokens, positions, labels, **options).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"M parameters": parameters / 1e6, "tokens/s": tokens.numel() / min(seconds)}
