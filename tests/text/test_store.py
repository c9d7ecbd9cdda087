import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.text import Corpus, Document, open_corpus, token_store, train_tokenizer

DOCUMENTS = [
    Document("def f(x):\n    return x\n", "python", "f.py"),
    Document("größer", "prose", "a.txt"),
    Document("", "prose", "empty.txt"),
    Document("int main() { return 0; }", "cpp", "m.cpp"),
    Document("kleiner als größer", "prose", "b.txt"),
]


class ListSource:
    """Documents in a list, which counts how often they are read and can break off."""

    def __init__(self, documents, identity="list", fails=False):
        self.contents = documents
        self.name = identity
        self.fails = fails
        self.readings = 0

    def identity(self):
        return self.name

    def documents(self):
        self.readings += 1
        yield from self.contents
        if self.fails:
            raise ValueError("broken off")


def corpus_of(documents, **options):
    source = ListSource(documents, **options)
    return Corpus("list", "all", source), source


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 280)


def build(corpus, tokenizer, folder):
    return token_store(corpus, tokenizer, folder=folder, progress=False)


def test_a_store_holds_every_document_with_its_bytes_and_domain(tokenizer, tmp_path):
    store = build(corpus_of(DOCUMENTS)[0], tokenizer, tmp_path)
    kept = [document for document in DOCUMENTS if document.text]
    assert len(store) == len(kept)
    for at, document in enumerate(kept):
        first, *ids = store.tokens[store.offsets[at] : store.offsets[at + 1]].tolist()
        assert first == store.bos
        assert tokenizer.decode(ids) == document.text
        assert store.document_bytes[at] == store.token_bytes[ids].sum() == len(document.text.encode())
        assert store.domains[store.document_domain[at]] == document.domain
        assert at in store.documents_of(document.domain)
    assert sum(len(store.documents_of(domain)) for domain in store.domains) == len(store)
    with pytest.raises(PerplabError, match="python, prose, cpp"):
        store.documents_of("rust")


def test_small_vocabularies_take_two_bytes_a_token_and_large_ones_four(tokenizer, tmp_path):
    from copy import deepcopy

    large = deepcopy(tokenizer)
    large.add_tokens([f"<unused {number}>" for number in range(1 << 16)])
    corpus, _ = corpus_of(DOCUMENTS)
    small_store, large_store = build(corpus, tokenizer, tmp_path), build(corpus, large, tmp_path)
    assert small_store.tokens.dtype == np.uint16
    assert large_store.tokens.dtype == np.uint32
    assert np.array_equal(small_store.tokens, large_store.tokens)


def test_a_built_store_is_opened_without_reading_the_corpus(tokenizer, tmp_path):
    corpus, source = corpus_of(DOCUMENTS)
    first, second = build(corpus, tokenizer, tmp_path), build(corpus, tokenizer, tmp_path)
    assert source.readings == 1
    assert np.array_equal(first.tokens, second.tokens)
    assert first.domains == second.domains


def test_another_corpus_split_or_tokenizer_has_a_store_of_its_own(tokenizer, tmp_path):
    many = [Document(f"document {number}", "text", str(number)) for number in range(100)]
    corpus, _ = corpus_of(many)
    whole = build(corpus, tokenizer, tmp_path)
    heldout = build(corpus.in_split("heldout"), tokenizer, tmp_path)
    train = build(corpus.in_split("train"), tokenizer, tmp_path)
    assert len(heldout) + len(train) == len(whole) == 100
    other = build(corpus_of(DOCUMENTS, identity="other")[0], tokenizer, tmp_path)
    assert len(other) == 4
    assert len(build(corpus, train_tokenizer(many, 300), tmp_path).tokens) < len(whole.tokens)


@pytest.mark.parametrize(
    "name", ["tokens.bin", "offsets.bin", "document_bytes.bin", "document_domain.bin", "index.json"]
)
def test_a_truncated_store_is_built_again(tokenizer, tmp_path, name):
    corpus, source = corpus_of(DOCUMENTS)
    expected = np.array(build(corpus, tokenizer, tmp_path).tokens)
    (file,) = tmp_path.glob(f"*/store/{name}")
    os.truncate(file, file.stat().st_size - 2)
    assert np.array_equal(build(corpus, tokenizer, tmp_path).tokens, expected)
    assert source.readings == 2


def test_concurrent_builders_build_once(tokenizer, tmp_path):
    corpus, source = corpus_of(DOCUMENTS * 50)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: build(corpus, tokenizer, tmp_path), range(4)))
    assert source.readings == 1
    assert all(np.array_equal(store.tokens, stores[0].tokens) for store in stores)


def test_a_broken_build_leaves_no_store_and_the_next_removes_its_leftovers(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="broken off"):
        build(corpus_of(DOCUMENTS, fails=True)[0], tokenizer, tmp_path)
    assert list(tmp_path.glob("*/store")) == []
    (home,) = tmp_path.iterdir()
    leftover = home / ".partial-killed"
    leftover.mkdir()
    (leftover / "tokens.bin").write_bytes(b"\0" * 100)
    assert len(build(corpus_of(DOCUMENTS)[0], tokenizer, tmp_path)) == 4
    assert not leftover.exists()


def test_an_empty_corpus_is_refused(tokenizer, tmp_path):
    with pytest.raises(PerplabError, match="no document"):
        build(corpus_of([DOCUMENTS[2]])[0], tokenizer, tmp_path)


def test_text_that_spells_the_special_token_stays_text(tokenizer, tmp_path):
    text = f"a {tokenizer.eos_token} b"
    store = build(corpus_of([Document(text, "text", "t")])[0], tokenizer, tmp_path)
    ids = store.tokens[1:].tolist()
    assert store.eos not in ids
    assert tokenizer.decode(ids) == text


def test_many_batches_come_in_order(tokenizer, tmp_path):
    documents = [Document(f"{number}\n", "text", str(number)) for number in range(10_000)]
    store = build(corpus_of(documents)[0], tokenizer, tmp_path)
    texts = tokenizer.decode(store.tokens[store.tokens != store.bos].tolist())
    assert texts == "".join(document.text for document in documents)


def test_the_cache_folder_is_taken_from_the_environment(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("some text")
    token_store(open_corpus(str(tmp_path / "a.txt")), tokenizer, progress=False)
    assert len(list((tmp_path / "cache" / "tokens").glob("*/store/tokens.bin"))) == 1


def test_a_folder_that_cannot_be_made_is_named(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PerplabError, match="cannot write"):
        build(corpus_of(DOCUMENTS)[0], tokenizer, tmp_path / "file")
