"""Decoding with packed 4-bit weights: perplab in bfloat16 and packed, and llama.cpp's Q4_0.

Random Llamas with a vocabulary of 32,000. The linear layers of their blocks are rounded to 4 bits in groups of 128,
head and embedding stay in bfloat16; llama.cpp quantises all of the same weights its own way. A prompt of 64 tokens is
read, then 32 given tokens one at a time, batch 1, with the logits after each; both sides of perplab run the same loop.
Scoring is `perplab.score` on built-in text.

Speeds are medians of runs taken in turn. Memory is that of a process which only loads a side from its folder and then
decodes; what is resident of a mapped file counts. Goals: 1.5 times bfloat16 at 1 B, as fast as llama.cpp, and scoring
not slower than bfloat16.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import perplab
from gguf_export import export_gguf
from measuring import forget_peak, in_new_process, peak_resident_mib
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models import LanguageModel, load
from perplab.models.anatomy import linear_layers
from perplab.models.packed_linear import replace_linear
from perplab.text import open_corpus, train_tokenizer

logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)

SIDES = ("bfloat16", "packed", "llama.cpp Q4_0")
PROMPT, GENERATED = 64, 32
BITS, GROUP = 4, 128
REPETITIONS = 3


class Shape(NamedTuple):
    """A Llama's size, and how much text trains its tokenizer and is scored with it."""

    vocabulary: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    tokenizer_bytes: int
    scored_bytes: int


SHAPES = {
    "Llama, 110 M": Shape(32_000, 768, 2048, 12, 12, 12, 6_000_000, 40_000),
    "Llama, 1.1 B": Shape(32_000, 2048, 5632, 22, 32, 4, 6_000_000, 4_000),
}
QUICK = {"Llama, tiny": Shape(1000, 256, 512, 2, 4, 4, 200_000, 4_000)}


def measure(quick: bool) -> list[dict[str, Any]]:
    shapes = QUICK if quick else SHAPES
    return [row for name in shapes for row in compared(name, shapes[name])]


def compared(name: str, shape: Shape) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        in_new_process(write_sides, shape, Path(folder))
        speeds = in_new_process(speeds_of_sides, shape, Path(folder))
        return [
            {
                "model": name,
                "side": side,
                "decoding tokens/s": figures["decoding"],
                "x bfloat16": figures["decoding"] / speeds["bfloat16"]["decoding"],
                "prompt tokens/s": figures["prompt"],
                "scoring tokens/s": figures.get("scoring", "-"),
                **in_new_process(memory_of_side, side, shape, Path(folder)),
            }
            for side, figures in speeds.items()
        ]


def write_sides(shape: Shape, folder: Path) -> None:
    """The same random model in three forms."""
    language_model = random_llama(shape)
    language_model.save(folder / "bfloat16")
    export_gguf(language_model, folder / "bfloat16.gguf", bfloat16=True)
    quantize_gguf(folder / "bfloat16.gguf", folder / "q4_0.gguf")
    for path, linear in linear_layers(language_model.model).items():
        replace_linear(language_model.model, path, rounded(linear.weight.detach()))
    language_model.save(folder / "packed")


def random_llama(shape: Shape) -> LanguageModel:
    tokenizer = train_tokenizer(open_corpus("builtin:python+cpp").limited(shape.tokenizer_bytes), shape.vocabulary)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval(), tokenizer)


def rounded(weight: torch.Tensor) -> QuantizedMatrix:
    """The nearest codes on a symmetric grid that spans each group."""
    grouped = weight.float().view(len(weight), -1, GROUP)
    middle = 2 ** (BITS - 1)
    scale = (grouped.abs().amax(dim=-1) / (middle - 1)).to(weight.dtype)
    codes = (grouped / scale.float().unsqueeze(-1)).round().clamp(-middle, middle - 1) + middle
    zero = torch.full_like(scale, middle, dtype=torch.uint8)
    return QuantizedMatrix(codes.view_as(weight).to(torch.uint8), scale, zero, BITS)


def quantize_gguf(source: Path, target: Path) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if failed:
        raise RuntimeError(f"llama.cpp did not quantise {source}")


class Side(NamedTuple):
    """One way to run the model: forget everything, read tokens."""

    reset: Callable[[], object]
    read: Callable[[torch.Tensor], object]


def transformers_side(language_model: LanguageModel) -> Side:
    cache = None

    def reset() -> None:
        nonlocal cache
        cache = None

    @torch.inference_mode()
    def read(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal cache
        output = language_model.model(tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        return output.logits

    return Side(reset, read)


def llama_side(path: Path) -> Side:
    import llama_cpp

    threads = torch.get_num_threads()
    llama = llama_cpp.Llama(
        str(path), n_ctx=PROMPT + GENERATED, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    return Side(llama.reset, lambda tokens: llama.eval(tokens.tolist()))


def open_side(side: str, folder: Path) -> Side:
    return llama_side(folder / "q4_0.gguf") if side == "llama.cpp Q4_0" else transformers_side(load(folder / side))


def random_tokens(shape: Shape) -> torch.Tensor:
    return torch.randint(1, shape.vocabulary, (PROMPT + GENERATED,), generator=torch.Generator().manual_seed(0))


def decode(side: Side, tokens: torch.Tensor) -> tuple[float, float]:
    """Seconds for the prompt and for the rest."""
    side.reset()
    began = time.perf_counter()
    side.read(tokens[:PROMPT])
    prompted = time.perf_counter()
    for token in tokens[PROMPT:].split(1):
        side.read(token)
    return prompted - began, time.perf_counter() - prompted


def speeds_of_sides(shape: Shape, folder: Path) -> dict[str, dict[str, float]]:
    """Tokens a second of each side, in one process, taken in turn."""
    tokens = random_tokens(shape)
    sides = {name: open_side(name, folder) for name in SIDES}
    for side in sides.values():
        decode(side, tokens)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(REPETITIONS):
        for name, side in sides.items():
            taken[name].append(decode(side, tokens))
    speeds = {}
    for name, seconds in taken.items():
        prompt, rest = (statistics.median(part) for part in zip(*seconds, strict=True))
        speeds[name] = {"decoding": GENERATED / rest, "prompt": PROMPT / prompt}
    for name, speed in scoring_speeds(shape, folder).items():
        speeds[name]["scoring"] = speed
    return speeds


def scoring_speeds(shape: Shape, folder: Path) -> dict[str, float]:
    corpus = open_corpus("builtin:python").limited(shape.scored_bytes)
    models = {name: load(folder / name) for name in SIDES[:2]}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPETITIONS):
        for name, model in models.items():
            began = time.perf_counter()
            scored = len(perplab.score(model, corpus).nll)
            taken[name].append(scored / (time.perf_counter() - began))
    return {name: statistics.median(speeds) for name, speeds in taken.items()}


def memory_of_side(side: str, shape: Shape, folder: Path) -> dict[str, float]:
    """Peaks of resident memory, MiB, of a process that loads one side and then decodes with it."""
    opened = open_side(side, folder)
    loading = peak_resident_mib()
    forget_peak()
    decode(opened, random_tokens(shape))
    return {"peak of loading, MiB": loading, "peak of decoding, MiB": peak_resident_mib()}
