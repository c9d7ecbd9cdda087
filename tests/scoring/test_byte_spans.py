"""Byte spans of tokens, for every kind of tokenizer."""

import functools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from perplab.models import load_tokenizer
from perplab.scoring.byte_spans import byte_spans, definite_token_bytes
from perplab.text import text_encoder

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@functools.cache
def sentencepiece_like():
    """Metaspace pieces, single bytes for everything else, and a space of its own before the text."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "▁t", "th", "▁th"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@functools.cache
def words_between_spaces():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2, "three": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<unk>")


@functools.cache
def byte_level_that_composes():
    """The pocket tokenizer behind a normaliser that joins letters with their accents."""
    tokenizer = load_tokenizer("pocket")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@functools.cache
def byte_level():
    return load_tokenizer("pocket")


@functools.cache
def prepared(tokenizer):
    return text_encoder(tokenizer), definite_token_bytes(tokenizer)


def spans_of(tokenizer, text, *, special=False):
    encoder, lengths = prepared(tokenizer)
    encoder.encode_special_tokens = not special
    encoding = encoder.encode(text, add_special_tokens=special)
    starts, ends = byte_spans(text, encoding, lengths)
    return encoding.tokens, starts.tolist(), ends.tolist()


def pieces_of(tokenizer, text, **kwargs):
    tokens, starts, ends = spans_of(tokenizer, text, **kwargs)
    raw = text.encode()
    return list(zip(tokens, (raw[start:end] for start, end in zip(starts, ends, strict=True)), strict=True))


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\te\u0301é€😀the"), max_size=40)
kinds = st.sampled_from([sentencepiece_like, words_between_spaces, byte_level_that_composes])


@given(texts, kinds)
def test_spans_follow_one_another_and_cover_the_text(text, kind):
    _, starts, ends = spans_of(kind(), text)
    if ends:
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == len(text.encode())
        assert np.all(np.diff(ends) >= 0)


@given(texts)
def test_spans_of_a_byte_level_tokenizer_are_the_bytes_it_spells(text):
    alphabet = {character: byte for byte, character in bytes_spelled_by_gpt2().items()}
    for token, piece in pieces_of(byte_level(), text):
        assert bytes(alphabet[character] for character in token) == piece


def bytes_spelled_by_gpt2():
    """Printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelled = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(byte for byte in range(256) if byte not in spelled):
        spelled[byte] = chr(256 + number)
    return spelled


@given(texts.filter(lambda text: "▁" not in text))
def test_spans_of_a_sentencepiece_tokenizer_are_the_bytes_it_spells_without_its_own_space(text):
    pieces = pieces_of(sentencepiece_like(), text)
    for index, (token, piece) in enumerate(pieces):
        spelled = bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
        assert piece == (spelled.removeprefix(b" ") if index == 0 else spelled)


def test_a_character_split_over_tokens_is_split_into_its_bytes():
    assert [piece for _, piece in pieces_of(byte_level(), "😀")] == [b"\xf0", b"\x9f", b"\x98", b"\x80"]


def test_tokens_added_around_the_text_stand_for_no_bytes():
    assert pieces_of(sentencepiece_like(), "the", special=True) == [("<s>", b""), ("▁th", b"th"), ("e", b"e")]


def test_a_special_token_spelled_in_the_text_stands_for_its_spelling():
    pieces = pieces_of(byte_level(), "é<|endoftext|>é", special=True)
    assert ("<|endoftext|>", b"<|endoftext|>") in pieces
    assert b"".join(piece for _, piece in pieces) == "é<|endoftext|>é".encode()
    assert pieces[0][1] + pieces[1][1] == pieces[-2][1] + pieces[-1][1] == "é".encode()


def test_blanks_that_no_token_claims_belong_to_the_token_after_them():
    pieces = [piece for _, piece in pieces_of(words_between_spaces(), " one  two\n")]
    assert pieces == [b" one", b"  two\n"]


def test_a_normaliser_that_changes_the_text_keeps_spans_at_its_characters():
    pieces = pieces_of(byte_level_that_composes(), "ae\u0301b")
    assert b"".join(piece for _, piece in pieces) == "ae\u0301b".encode()
    assert pieces[0][1] == b"a"
    assert pieces[-1][1].endswith(b"b")


def test_one_token_a_character_is_one_byte_a_token(tiny_tokenizer):
    assert [piece for _, piece in pieces_of(tiny_tokenizer, "a b\n")] == [b"a", b" ", b"b", b"\n"]
