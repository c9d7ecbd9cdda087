"""Rolling log-likelihood: the engine against lm-evaluation-harness and llama.cpp.

The same weights in bfloat16, the same texts, lm-eval's own windows (disjoint, one token of context) on all sides, and
all of the work from text to log-probability. lm-eval's `hf` backend runs with the best of the batch sizes 1, 4 and 16,
llama.cpp through llama-cpp-python with the window as its batch, its weights in bfloat16 too. The sums of all sides are
compared before anything is timed. Documents of mixed lengths have 20 to 8,000 tokens, evenly spread on a logarithmic
scale; full windows are documents of exactly the model's positions.

Speeds are of the tokens scored, medians of 3 runs taken in turn. The share of the matrix rate is the arithmetic that
the windows ask for over what a product of two 2048 x 2048 bfloat16 matrices reaches in the same run. Goals: 3 times
lm-eval on mixed lengths and 1.3 times on full windows, 1.5 times llama.cpp, 70 % of the matrix rate.

Where the goals against lm-eval are missed, the limit is the matrix rate. lm-eval sorts windows by length and is
quickest in small batches, so it pads next to nothing and reaches the share of the last column: three times that is more
than the processor has. The next table says where the rest of perplab's time goes.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import in_new_process, interleaved
from perplab.evaluation.harness import PerplabLM
from perplab.models import LanguageModel
from scorers import MODELS, LlamaCpp, best_harness, instances, mixed_lengths, rolling_products, texts_of_lengths

BATCH_SIZES = (1, 4, 16)
TOKENS = {"pocket, 5.6 M": 40_000, "Llama, 110 M": 16_000}
MATRIX = 2048
REPETITIONS = 3


def measure(quick: bool) -> list[dict[str, Any]]:
    names = list(MODELS)[:1] if quick else list(MODELS)
    return [
        in_new_process(compare, name, shape, 3000 if quick else TOKENS[name], 1 if quick else REPETITIONS)
        for name in names
        for shape in ("mixed", "full windows")
    ]


def compare(name: str, shape: str, tokens: int, repetitions: int) -> dict[str, Any]:
    language_model = MODELS[name]()
    texts = texts_of_lengths(language_model, document_lengths(language_model, shape, tokens))
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    ours = PerplabLM(language_model)
    left, right = torch.rand(2, MATRIX, MATRIX).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        theirs = best_harness(
            language_model, BATCH_SIZES, lambda side: side.loglikelihood_rolling(requests, disable_tqdm=True)
        )
        llama = LlamaCpp(language_model, Path(folder))
        confirm_same_sums(ours, theirs, llama, texts)
        sides = {
            "perplab": lambda: ours.loglikelihood_rolling(requests, disable_tqdm=True),
            "lm-eval": lambda: theirs.loglikelihood_rolling(requests, disable_tqdm=True),
            "llama.cpp": lambda: llama.rolling(texts),
            "product": lambda: left @ right,
        }
        seconds = {side: taken.median for side, taken in interleaved(sides, repetitions, warm_up=1).items()}
    scored = sum(len(ids) for ids in ours._encode(texts, False))
    products_per_second = 2 * MATRIX**3 / seconds["product"]
    operations = sum(rolling_products(language_model, texts))
    return {
        "model": name,
        "documents": shape,
        **{f"{side} tokens/s": scored / seconds[side] for side in ("perplab", "lm-eval", "llama.cpp")},
        "lm-eval batch": theirs.batch_size,
        "x lm-eval": seconds["lm-eval"] / seconds["perplab"],
        "x llama.cpp": seconds["llama.cpp"] / seconds["perplab"],
        "bf16 product GFLOP/s": products_per_second / 1e9,
        **{
            f"{side} % of it": 100 * operations / seconds[side] / products_per_second for side in ("perplab", "lm-eval")
        },
    }


def document_lengths(language_model: LanguageModel, shape: str, tokens: int) -> list[int]:
    if shape == "mixed":
        return mixed_lengths(tokens)
    positions = language_model.model.config.max_position_embeddings
    return [positions] * max(2, tokens // positions)


def confirm_same_sums(ours: PerplabLM, theirs: Any, llama: LlamaCpp, texts: list[str]) -> None:
    """All sides score the same tokens from the same contexts, but for the rounding of bfloat16."""
    few = sorted(texts, key=len)[:6]
    requests = instances("loglikelihood_rolling", [(text,) for text in few])
    sums = [side.loglikelihood_rolling(requests, disable_tqdm=True) for side in (ours, theirs)]
    np.testing.assert_allclose(sums[0], sums[1], rtol=0.02)
    np.testing.assert_allclose(sums[0], llama.rolling(few), rtol=0.02)
