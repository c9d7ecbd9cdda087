"""From a corpus to batches: the tokenizer of a run, its training mixture, and its held-out rows.

Training and held-out documents are the two sides of the corpus's own split, unless the held-out text is given apart;
each domain is a group of its own, so that the mixture can be weighted and the held-out cost told by domain.
"""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from perplab.artifacts import atomic_folder
from perplab.models import load_tokenizer
from perplab.text import Corpus, MixtureSampler, PackedBlocks, TokenStore, open_corpus, token_store, train_tokenizer
from perplab.training.config import TrainConfig
from perplab.training.distribution import Processes


class Splits(NamedTuple):
    """What is trained on, and what measures it."""

    train: Corpus
    heldout: Corpus

    @classmethod
    def of(cls, corpus: Corpus | str, heldout: Corpus | str | None) -> "Splits":
        """The corpus's own split, or all of it against another corpus."""
        corpus = open_corpus(corpus) if isinstance(corpus, str) else corpus
        if heldout is None:
            return cls(corpus.in_split("train"), corpus.in_split("heldout"))
        return cls(corpus, open_corpus(heldout) if isinstance(heldout, str) else heldout)


def tokenizer_of_run(
    folder: Path, given: str | None, train: Corpus, vocab_size: int, processes: Processes
) -> PreTrainedTokenizerBase:
    """The tokenizer named by the user, or one trained on the training side and kept in `folder`."""
    if given is not None:
        return load_tokenizer(given)
    kept = folder / "tokenizer"
    if processes.first and not kept.exists():
        tokenizer = train_tokenizer(train, vocab_size)
        with atomic_folder(kept) as temporary:
            tokenizer.save_pretrained(temporary)
    processes.wait()
    return load_tokenizer(kept)


def training_mixture(
    train: Corpus, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, *, progress: bool
) -> MixtureSampler:
    """Endless batches of the training documents, a group a domain."""
    store = token_store(train, tokenizer, progress=progress)
    return MixtureSampler(_blocks_by_domain(store, config.block_size), config.weights, config.seed)


def heldout_blocks(
    heldout: Corpus, tokenizer: PreTrainedTokenizerBase, block_size: int, *, progress: bool
) -> dict[str, PackedBlocks]:
    """Held-out blocks by domain.

    Raises:
        PerplabError: no document of the corpus is held out.
    """
    return _blocks_by_domain(token_store(heldout, tokenizer, progress=progress), block_size)


def _blocks_by_domain(store: TokenStore, block_size: int) -> dict[str, PackedBlocks]:
    return {domain: PackedBlocks(store, store.documents_of(domain), block_size) for domain in store.domains}
