"""Small models that claims are measured on, trained once and kept in the cache folder.

A model is found again by its settings and by the text itself: what a built-in corpus holds depends on the installation,
and one cache may serve several.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from perplab.artifacts import cache_folder
from perplab.models import LanguageModel, load, load_tokenizer
from perplab.text import IGNORED_LABEL, Corpus, boundary_tokens, open_corpus
from perplab.training import TrainConfig, schedule_of, train
from perplab.training.data import training_mixture


def trained(corpus: str, config: TrainConfig, *, tokenizer: str | None = None) -> LanguageModel:
    """A decoder in Llama's layout, trained by `perplab train`.

    Args:
        corpus: name of the training text; its held-out side is not trained on.
        config: size, tokens, seed.
        tokenizer: as in `train`; by default one is trained on the text.
    """
    return trained_on(open_corpus(corpus), config, tokenizer=tokenizer)


def trained_on(corpus: Corpus, config: TrainConfig, *, tokenizer: str | None = None) -> LanguageModel:
    """The same for a corpus that has no name of its own."""
    recipe = {"corpus": corpus.fingerprint, "tokenizer": tokenizer, **asdict(config)}
    return kept(recipe, lambda folder: train(corpus, folder, config, tokenizer=tokenizer, progress=False))


def kept(recipe: dict[str, object], make: Callable[[Path], object]) -> LanguageModel:
    """The model that `make` writes into a folder; read from the cache where this recipe was made before."""
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache_folder() / "claims" / "models" / key
    make(folder)
    return load(folder)


def trained_gpt2(corpus: str, config: TrainConfig, *, tokenizer: str = "pocket") -> LanguageModel:
    """A small GPT-2 (LayerNorm, learned positions, GELU, biases), trained by a plain loop.

    Of `config` it takes layers, width, tokens, batch, schedule, optimiser and seed.
    """
    text = open_corpus(corpus, "train")
    recipe = {"architecture": "gpt2", "corpus": text.fingerprint, "tokenizer": tokenizer, **asdict(config)}

    def make(folder: Path) -> None:
        if not folder.exists():
            words = load_tokenizer(tokenizer)
            model = _train(_new_gpt2(config, words), text, words, config)
            LanguageModel(model, words).save(folder)

    return kept(recipe, make)


def _new_gpt2(config: TrainConfig, words: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    width = config.hidden_size or 64 * config.depth
    begin, end = boundary_tokens(words)
    shape = {"n_embd": width, "n_layer": config.num_hidden_layers or config.depth, "n_head": width // 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(words),
                n_positions=config.block_size,
                bos_token_id=begin,
                eos_token_id=end,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                **shape,
            )
        )


def _train(
    model: PreTrainedModel, corpus: Corpus, words: PreTrainedTokenizerBase, config: TrainConfig
) -> PreTrainedModel:
    """Train on packed rows with AdamW, products in bf16; rows are read as one text each."""
    schedule = schedule_of(config)
    sampler = training_mixture(corpus, words, config, progress=False)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    rest = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    peak = config.learning_rate or 0.002
    model.train()
    for step in range(config.total_steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(step)
        batch = sampler.next_batch(config.batch_tokens // config.block_size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(torch.from_numpy(batch.input_ids)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), torch.from_numpy(batch.labels).flatten(), ignore_index=IGNORED_LABEL
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
