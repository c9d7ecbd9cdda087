"""One training step, twice: the trainer's own, and the plain loop one would write with `transformers`.

Both start from the same random weights and draw the same batches of random tokens. The plain loop is what its
documentation teaches: forward with labels under autocast, backward, clip, `torch.optim.AdamW` as it comes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from perplab.models.decoder import DecoderForCausalLM
from perplab.models.stock import to_stock
from perplab.text import MixtureSampler, PackedBlocks, TokenStore
from perplab.training import new_decoder
from perplab.training.config import TrainConfig
from perplab.training.distribution import Processes
from perplab.training.presets import decoder_config
from perplab.training.run_folder import RunFolder
from perplab.training.trainer import Trainer

END = 0

Step = Callable[[], float]
"""Takes one step and returns its loss, in nats a token."""


class Shape(NamedTuple):
    """A decoder's size."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int


def train_config(shape: Shape, rows: int, length: int) -> TrainConfig:
    tokens = rows * length
    return TrainConfig(**shape._asdict(), block_size=length, batch_tokens=tokens, micro_batch_tokens=tokens)


def batches(vocab_size: int, length: int, document_tokens: int) -> MixtureSampler:
    """Endless batches of documents of random tokens, all of one length, bos included."""
    documents = 64 * length // document_tokens
    tokens = np.random.default_rng(0).integers(END + 1, vocab_size, (documents, document_tokens), dtype=np.uint32)
    tokens[:, 0] = END
    sizes = np.full(documents, document_tokens - 1)
    store = TokenStore(
        tokens=tokens.reshape(-1),
        offsets=np.arange(documents + 1) * document_tokens,
        document_bytes=sizes,
        document_domain=np.zeros(documents, dtype=np.int32),
        domains=("random",),
        token_bytes=np.append(0, np.ones(vocab_size - 1, dtype=np.int64)),
        bos=END,
        eos=END,
    )
    return MixtureSampler({"random": PackedBlocks(store, None, length)}, None, seed=0)


def perplab_step(shape: Shape, rows: int, length: int, document_tokens: int) -> Step:
    """The trainer's step: sampling, micro-batches, clipping, schedule and optimiser included."""
    config = train_config(shape, rows, length)
    sampler = batches(shape.vocab_size, length, document_tokens)
    one_process = Processes(rank=0, number=1, device=torch.device("cpu"))
    trainer = Trainer(
        config, numbered_tokenizer(shape.vocab_size), sampler, {}, RunFolder(Path(), one_process), one_process
    )

    def step() -> float:
        loss = trainer.take_step()["loss"]
        trainer.step += 1
        return loss

    return step


def plain_step(shape: Shape, rows: int, length: int, document_tokens: int) -> Step:
    """The plain loop over `LlamaForCausalLM`."""
    config = train_config(shape, rows, length)
    sampler = batches(shape.vocab_size, length, document_tokens)
    model = stock_model(new_decoder(decoder_config(config, shape.vocab_size, END), config.seed)).train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> float:
        input_ids, _, position_ids = (torch.from_numpy(part) for part in sampler.next_batch(rows)[:3])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids, labels=input_ids, **packing_arguments(position_ids)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def packing_arguments(position_ids: Tensor) -> dict[str, Any]:
    """What tells `transformers` where documents begin; it makes a mask of them only where there is no cache."""
    several = bool((position_ids[:, 1:] == 0).any())
    return {"position_ids": position_ids, "use_cache": False} if several else {}


def confirm_same_function(shape: Shape, length: int, document_tokens: int) -> None:
    """Compare both sides' logits in float32, with weights so large that a token seen or not seen would show."""
    config = train_config(shape, 1, length)
    ours = new_decoder(decoder_config(config, shape.vocab_size, END), config.seed)
    input_ids, _, position_ids = batches(shape.vocab_size, length, document_tokens).next_batch(1)[:3]
    input_ids, position_ids = torch.from_numpy(input_ids), torch.from_numpy(position_ids)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(3.0)
        theirs = stock_model(ours)(input_ids, **packing_arguments(position_ids)).logits
        torch.testing.assert_close(ours(input_ids, position_ids=position_ids).logits, theirs, rtol=1e-3, atol=1e-3)


def stock_model(decoder: DecoderForCausalLM) -> PreTrainedModel:
    model = to_stock(decoder)
    if model is None:
        raise AssertionError("a decoder of plain parts has a stock model")
    return model


def numbered_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the wanted size; the trainer asks for its length and its end of text."""
    words = {str(index): index for index in range(vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token=str(END)))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=str(END), eos_token=str(END))
