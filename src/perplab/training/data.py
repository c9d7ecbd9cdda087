"""From a corpus to batches: the tokenizer of a run, its training mixture, and its held-out rows.

Training and held-out documents are the two sides of the corpus's own split, unless the held-out text is given apart;
each domain is a group of its own, so that the mixture can be weighted and the held-out cost told by domain. Of old text
one side is replayed, and the other measures what is forgotten.
"""

from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from perplab.artifacts import atomic_folder
from perplab.errors import PerplabError
from perplab.models import load_tokenizer
from perplab.text import (
    Batch,
    Corpus,
    Document,
    MixtureSampler,
    PackedBlocks,
    ReplaySampler,
    Split,
    TokenStore,
    open_corpus,
    token_store,
    train_tokenizer,
)
from perplab.training.config import TrainConfig
from perplab.training.distribution import Processes

_DISJOINT: set[tuple[str | None, ...]] = set()
"""Fingerprints of sides that were compared in this process: a grid of runs on the same text reads it once."""


class Splits(NamedTuple):
    """What is trained on, and what measures it."""

    train: Corpus
    heldout: Corpus
    replay: Corpus | None = None
    """Old text that is mixed in."""
    old: Corpus | None = None
    """Old text that measures what is forgotten."""

    @classmethod
    def of(
        cls,
        corpus: Corpus | str,
        heldout: Corpus | str | None,
        replay: Corpus | str | None = None,
        old: Corpus | str | None = None,
    ) -> "Splits":
        """The corpora's own splits; or all of the new text against another corpus.

        Raises:
            PerplabError: a document that measures is also trained on.
        """
        old = replay if old is None else old
        sides = cls(
            _side(corpus, "train" if heldout is None else None),
            _side(corpus, "heldout") if heldout is None else _side(heldout, None),
            None if replay is None else _side(replay, "train"),
            None if old is None else _side(old, "heldout"),
        )
        sides.refuse_overlap()
        return sides

    def refuse_overlap(self) -> None:
        """See that no text that measures is trained on, by the hash of each document.

        Raises:
            PerplabError: there is such a text.
        """
        trained, measuring = [
            [side for side in pair if side] for pair in ((self.train, self.replay), (self.heldout, self.old))
        ]
        if {side.split for side in trained} == {"train"} and {side.split for side in measuring} == {"heldout"}:
            return  # the split is a property of a text alone, so its sides share none, whatever corpora they are of
        compared = tuple(side.fingerprint if side else None for side in self)
        if compared in _DISJOINT:
            return
        names = {_digest(document): document.name for side in measuring for document in side}
        for document in chain(*trained):
            if (found := _digest(document)) in names:
                raise PerplabError(
                    f"the text of held-out {names[found]} is also trained on, as {document.name}",
                    "leave it out on one side, or let the corpus hold out its own documents",
                )
        _DISJOINT.add(compared)


def _side(corpus: Corpus | str, split: Split | None) -> Corpus:
    """A side of a corpus, or the corpus as it was given."""
    corpus = open_corpus(corpus) if isinstance(corpus, str) else corpus
    return corpus if split is None else corpus.in_split(split)


def _digest(document: Document) -> bytes:
    return blake2b(document.text.encode("utf-8"), digest_size=16).digest()


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


class Batches(Protocol):
    """An endless sequence of batches that can be resumed."""

    def next_batch(self, batch_size: int) -> Batch:
        """The next rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the sequence depends on; can be written as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where that state was taken."""
        ...


def training_batches(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, *, progress: bool
) -> Batches:
    """Endless batches of the training documents, with the run's share of old ones."""
    new = training_mixture(splits.train, tokenizer, config, progress=progress)
    if splits.replay is None or not config.replay:
        return new
    store = token_store(splits.replay, tokenizer, progress=progress)
    old = MixtureSampler(_blocks_by_domain(store, config.block_size), None, config.seed)
    return ReplaySampler(new, old, config.replay)


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
