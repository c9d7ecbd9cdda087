"""What the scoring benchmarks measure with: two models, texts for them, and the tools that score beside perplab.

The large model has random weights and a tokenizer of its own size trained on the installation's text, so that all sides
tokenise, cut and score the same texts.
"""

import itertools
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM

from perplab.models import LanguageModel, load
from perplab.scoring.conventions import CONVENTIONS, max_length_of, plan
from perplab.text import Document, open_corpus, text_encoder, train_tokenizer

logging.getLogger("lm_eval").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="transformers")

VOCABULARY = 32_000
_TOKENIZER_BYTES = 6_000_000


def pocket() -> LanguageModel:
    return load("pocket", dtype="bfloat16")


def llama_110m() -> LanguageModel:
    """A random Llama of 110 M parameters: 12 layers, width 768, 2,048 positions, a vocabulary of 32,000."""
    tokenizer = train_tokenizer(open_corpus("builtin:python+cpp").limited(_TOKENIZER_BYTES), VOCABULARY)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return LanguageModel(LlamaForCausalLM(config).to(torch.bfloat16).eval(), tokenizer, name="random Llama, 110 M")


MODELS = {"pocket, 5.6 M": pocket, "Llama, 110 M": llama_110m}


def texts_of_lengths(language_model: LanguageModel, lengths: Sequence[int]) -> list[str]:
    """Real text cut to so many tokens each, but for what joins differently at the cut."""
    encoder = text_encoder(language_model.tokenizer)
    stream: list[int] = []
    documents = iter(open_corpus("builtin:python"))
    while len(stream) < sum(lengths):
        stream += encoder.encode(next(documents).text, add_special_tokens=False).ids
    borders = np.cumsum([0, *lengths])
    return [language_model.tokenizer.decode(stream[a:b]) for a, b in itertools.pairwise(borders)]


def mixed_lengths(tokens: int, longest: int = 8000, shortest: int = 20, seed: int = 0) -> list[int]:
    """Document lengths, evenly spread on a logarithmic scale, that add up to about `tokens`."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(np.exp(rng.uniform(np.log(shortest), np.log(longest)))))
    return lengths


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Requests as lm-eval makes them."""
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def harness(language_model: LanguageModel, batch_size: int) -> HFLM:
    """lm-eval's own backend around the same weights."""
    return HFLM(
        pretrained=language_model.model, tokenizer=language_model.tokenizer, batch_size=batch_size, device="cpu"
    )


def best_harness(language_model: LanguageModel, batch_sizes: Sequence[int], run: Callable[[HFLM], object]) -> HFLM:
    """lm-eval with the batch size that is quickest at `run`."""
    seconds = {}
    for size in batch_sizes:
        side = harness(language_model, size)
        started = time.perf_counter()
        run(side)
        seconds[size] = time.perf_counter() - started
    return harness(language_model, min(seconds, key=seconds.__getitem__))


class Products(NamedTuple):
    """Floating-point operations of matrix products: with the model's weights, and in the causal half of attention."""

    projections: float
    attention: float


def rolling_products(language_model: LanguageModel, texts: Sequence[str]) -> Products:
    """What lm-eval's windows over the texts ask for."""
    model, config = language_model.model, language_model.model.config
    body = sum(weight.numel() for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2)
    head = config.vocab_size * config.hidden_size
    documents = [Document(text, "text", "text") for text in texts]
    projections = attention = 0.0
    for document in plan(CONVENTIONS["lm-eval"], language_model.tokenizer, documents, max_length_of(language_model)):
        for request in document.requests:
            read, scored = len(request.input_ids), len(request.continuation)
            projections += 2 * body * read + 2 * head * scored
            attention += 2 * config.num_hidden_layers * config.hidden_size * read**2
    return Products(projections, attention)


class LlamaCpp:
    """llama.cpp through llama-cpp-python on the same weights, one window at a time.

    Args:
        language_model: of Llama's layout.
        folder: for the GGUF file.
    """

    def __init__(self, language_model: LanguageModel, folder: Path) -> None:
        import llama_cpp

        from gguf_export import export_gguf

        path = folder / "model.gguf"
        export_gguf(language_model, path, bfloat16=True)
        self._language_model = language_model
        self._length = max_length_of(language_model)
        threads = torch.get_num_threads()
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=self._length,
            n_batch=self._length,
            n_ubatch=self._length,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each text, by lm-eval's windows."""
        documents = [Document(text, "text", "text") for text in texts]
        answers = []
        for document in plan(CONVENTIONS["lm-eval"], self._language_model.tokenizer, documents, self._length):
            total = 0.0
            for request in document.requests:
                self._llama.reset()
                self._llama.eval(request.input_ids.tolist())
                read, scored = len(request.input_ids), len(request.continuation)
                logits = torch.from_numpy(self._llama.scores[read - scored : read])
                labels = torch.from_numpy(request.continuation.astype(np.int64))
                total -= float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            answers.append(total)
        return answers
