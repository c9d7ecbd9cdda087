import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.text import (
    END_OF_TEXT,
    Document,
    boundary_tokens,
    text_encoder,
    token_bytes,
    tokenizer_fingerprint,
    train_tokenizer,
)

CODE = "def area(width, height):\n        return width * height  # 12345\n\n\nprint(area('string', 42))\n"
TEXTS = [CODE * 3, "The quick brown fox jumps over the lazy dog; don't they?\n" * 5, "größer 東京 नमस्ते\t\t\n" * 4]
DOCUMENTS = [Document(text, "text", str(at)) for at, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 350)


texts = st.text() | st.text(alphabet=" \t\n\r_.,'x1é") | st.sampled_from([*TEXTS, END_OF_TEXT, f"a{END_OF_TEXT} b"])


@given(text=texts)
def test_decoding_gives_back_every_string(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = text_encoder(tokenizer).encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@given(text=texts)
def test_the_bytes_of_the_tokens_sum_to_the_bytes_of_the_text(tokenizer, text):
    ids = text_encoder(tokenizer).encode(text, add_special_tokens=False).ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    assert tokenizer_fingerprint(train_tokenizer(DOCUMENTS, 350)) == tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(train_tokenizer(DOCUMENTS, 340)) != tokenizer_fingerprint(tokenizer)


def test_a_saved_tokenizer_loads_without_perplab(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(CODE) == tokenizer.encode(CODE)
    assert loaded.decode(loaded.encode(CODE)) == CODE
    assert boundary_tokens(loaded) == boundary_tokens(tokenizer)
    assert loaded.pad_token_id == tokenizer.pad_token_id
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert "perplab" not in (tmp_path / "tokenizer_config.json").read_text()


def test_one_special_token_begins_ends_and_pads_and_is_never_added(tokenizer):
    special = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert tokenizer.all_special_ids == [special]
    assert boundary_tokens(tokenizer) == (special, special)
    assert special not in tokenizer(CODE).input_ids
    assert token_bytes(tokenizer)[special] == 0


def test_digits_stand_alone_and_indentation_stays_whole(tokenizer):
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(CODE)]
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == [*"1234542"]
    assert "Ġ" * 7 in pieces
    assert "ĊĊĊ" in pieces
    assert "string" in pieces


def test_padding_and_truncation_left_on_change_neither_fingerprint_nor_encoding(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer([CODE, "a"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before
    assert len(text_encoder(tokenizer).encode(CODE).ids) > 3


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(PerplabError, match="257"):
        train_tokenizer(DOCUMENTS, 256)


def test_a_missing_boundary_token_is_replaced_by_the_other(tokenizer):
    from transformers import PreTrainedTokenizerFast

    def bare(**tokens):
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokens)

    special = tokenizer.eos_token_id
    assert boundary_tokens(bare(eos_token=END_OF_TEXT)) == (special, special)
    assert boundary_tokens(bare(bos_token=END_OF_TEXT)) == (special, special)
    with pytest.raises(PerplabError, match="neither a bos nor an eos"):
        boundary_tokens(bare())


def test_sentencepiece_style_tokens_count_spaces_and_fallback_bytes():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary = fallback | {"▁": 256, "é": 257, "▁é": 258, "<s>": 259}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "é")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    text = "é é 東京\n"
    ids = text_encoder(tokenizer).encode(text, add_special_tokens=False).ids
    assert 258 in ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
    assert token_bytes(tokenizer)[259] == 0


def test_tokens_without_definite_bytes_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(PerplabError, match="how many bytes"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_added_text_tokens_count_their_own_bytes(tokenizer):
    from copy import deepcopy

    extended = deepcopy(tokenizer)
    extended.add_tokens(["▁東"])
    lengths = token_bytes(extended)
    assert lengths[-1] == len("▁東".encode())
    assert np.array_equal(lengths[:-1], token_bytes(tokenizer))
