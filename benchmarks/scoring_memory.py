"""Scoring memory: windows of 2,048 tokens at a vocabulary of 128k, against computing full logits.

A small body (width 256, 2 layers) under a large head, in bfloat16, each side in a process of its own. perplab scores
the window through the engine; the other side is a plain forward pass with `LlamaForCausalLM` and the cross entropy of
its logits in float32. After one window to warm up, freed memory goes back to the system and the next window is watched:
its peak of resident memory over what was resident just before. Goal: less than a quarter.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from measuring import forget_peak, in_new_process, peak_resident_mib, resident_mib
from perplab.models import LanguageModel
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request

WINDOW, VOCABULARY = 2048, 131_072


def measure(quick: bool) -> list[dict[str, Any]]:
    window, vocabulary = (256, 16_384) if quick else (WINDOW, VOCABULARY)
    peaks = {side: in_new_process(peak_of_window, side, window, vocabulary) for side in SIDES}
    quantities = ("resident before the window, MiB", "peak of the window above that, MiB")
    return [
        {"quantity": quantity, "perplab": ours, "full logits": full, "perplab / full logits": ours / full}
        for quantity, ours, full in zip(quantities, peaks["perplab"], peaks["full logits"], strict=True)
    ]


def peak_of_window(side: str, window: int, vocabulary: int) -> tuple[float, float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=window,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    ids = np.random.default_rng(0).integers(0, vocabulary, window + 1).astype(np.int32)
    score = SIDES[side](model, ids)
    score()
    forget_peak()
    before = resident_mib()
    score()
    return before, peak_resident_mib() - before


def packed(model: Any, ids: Any) -> Callable[[], object]:
    language_model = LanguageModel(model, None)
    return lambda: list(score_requests(language_model, [Request(ids[:1], ids[1:])]))


def full_logits(model: Any, ids: Any) -> Callable[[], object]:
    tokens = torch.from_numpy(ids).long()

    def score() -> object:
        with torch.inference_mode():
            logits = model(tokens[None, :-1], use_cache=False).logits[0]
            return torch.nn.functional.cross_entropy(logits.float(), tokens[1:], reduction="none")

    return score


SIDES = {"perplab": packed, "full logits": full_logits}
