"""What is read: corpora, tokenizers, the token store, and how documents become batches.

`open_corpus` names documents by one string, `train_tokenizer` learns a vocabulary from them, `token_store` tokenises
them once onto disk, `PackedBlocks` lays them into blocks, and `MixtureSampler` draws batches from several groups.
"""

from perplab.text.corpus import Corpus, open_corpus
from perplab.text.documents import Document, Split, is_heldout
from perplab.text.mixture import Batch, MixtureSampler
from perplab.text.packing import IGNORED_LABEL, Block, PackedBlocks
from perplab.text.replay import ReplaySampler
from perplab.text.store import TokenStore, token_store
from perplab.text.tokenizer import (
    END_OF_TEXT,
    boundary_tokens,
    text_encoder,
    token_bytes,
    tokenizer_fingerprint,
    train_tokenizer,
)

__all__ = [
    "END_OF_TEXT",
    "IGNORED_LABEL",
    "Batch",
    "Block",
    "Corpus",
    "Document",
    "MixtureSampler",
    "PackedBlocks",
    "ReplaySampler",
    "Split",
    "TokenStore",
    "boundary_tokens",
    "is_heldout",
    "open_corpus",
    "text_encoder",
    "token_bytes",
    "token_store",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
