import gzip
import lzma

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.scoring.baselines import compressed_bits_per_byte, ngram_bits_per_byte
from perplab.scoring.ngram import NGramModel
from perplab.text import TokenStore

EOS = 4


def make_store(documents, domains, token_bytes=(1, 2, 3, 1, 0), eos=EOS):
    """A store in memory; `documents` are lists of text tokens."""
    token_bytes = np.array(token_bytes)
    tokens = [np.array([EOS, *document], dtype=np.uint16) for document in documents]
    names = tuple(dict.fromkeys(domains))
    return TokenStore(
        tokens=np.concatenate(tokens),
        offsets=np.cumsum([0, *map(len, tokens)]),
        document_bytes=np.array([token_bytes[document].sum() for document in documents]),
        document_domain=np.array([names.index(domain) for domain in domains], dtype=np.int32),
        domains=names,
        token_bytes=token_bytes,
        bos=EOS,
        eos=eos,
    )


def test_compressed_sizes_are_those_of_the_whole_text_in_one_file():
    texts = ["the cat sat on the mat\n" * 50, "größer\n", "".join(map(chr, range(32, 1000)))]
    content = "".join(texts).encode()
    bits = compressed_bits_per_byte(iter(texts))
    assert bits["gzip -9"] == pytest.approx(8 * len(gzip.compress(content, 9)) / len(content))
    xz = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    assert bits["xz -9e"] == pytest.approx(8 * len(xz) / len(content))


def test_random_bytes_of_an_alphabet_cost_at_least_its_entropy():
    letters = np.random.default_rng(0).choice(list("abcdefgh"), size=100_000)
    for bits in compressed_bits_per_byte(["".join(letters)]).values():
        assert 3.0 < bits < 3.6


def test_nothing_to_compress_is_refused():
    with pytest.raises(PerplabError, match="no text"):
        compressed_bits_per_byte(["", ""])


def test_bits_per_byte_are_the_nats_of_tokens_with_bytes_over_those_bytes():
    train = make_store([[0, 1, 2, 0, 1], [3, 0, 1], [2, 2, 0]], ["code", "prose", "code"])
    texts, domains = [[0, 1, 3], [2, 0], [1, 1, 1, 2]], ["prose", "code", "prose"]
    heldout = make_store(texts, domains)
    model = NGramModel(5, EOS, 2).fit(np.array([*text, EOS]) for text in ([0, 1, 2, 0, 1], [3, 0, 1], [2, 2, 0]))
    nats = [model.nll(np.array([*text, EOS]))[:-1].sum() for text in texts]
    sizes = heldout.document_bytes
    bits = ngram_bits_per_byte(train, heldout, order=2)
    assert list(bits) == ["prose", "code", "all"]
    assert bits["prose"] == pytest.approx((nats[0] + nats[2]) / (sizes[0] + sizes[2]) / np.log(2))
    assert bits["code"] == pytest.approx(nats[1] / sizes[1] / np.log(2))
    assert bits["all"] == pytest.approx(sum(nats) / sizes.sum() / np.log(2))


def test_stores_of_different_tokenizers_are_refused():
    train = make_store([[0, 1]], ["code"])
    for other in (make_store([[0, 1]], ["code"], token_bytes=(1, 2, 3, 2, 0)), make_store([[0, 1]], ["code"], eos=3)):
        with pytest.raises(PerplabError, match="different tokenizers"):
            ngram_bits_per_byte(train, other, order=2)
