"""Decoders of every mixer go through every verb: trained, resumed, scored, continued, quantised, loaded."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralForCausalLM

import perplab
from perplab.compression import QuantizeConfig, quantize
from perplab.errors import PerplabError
from perplab.models.generation import GenerateConfig
from perplab.models.stock import to_decoder
from perplab.scoring import hidden_states
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request
from perplab.text import Document
from perplab.training import TrainConfig, TrainingInterrupted, train
from perplab.training.config import MixerName
from perplab.training.presets import decoder_config, token_mixers
from perplab.training.trainer import Trainer

MIXERS = [name for name in get_args(MixerName) if name != "softmax"]
TEXT = [
    Document("the cat sees a bird. one small fish follows the old dog. 3 4 5 6 7 " * 4, "", str(n)) for n in range(6)
]


@pytest.mark.parametrize("mixer", MIXERS)
def test_decoder_of_any_mixer_goes_through_every_verb(mixer, corpus_file, tiny, tmp_path, monkeypatch):
    config = tiny(mixer=mixer, num_hidden_layers=2, ngram_heads=(1, 2) if mixer == "linear" else ())
    whole = train(corpus_file, tmp_path / "whole", config, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_anybody", lambda trainer, here: trainer.step == 7)  # somebody pressed Ctrl-C
        with pytest.raises(TrainingInterrupted):
            train(corpus_file, tmp_path / "parts", config, progress=False)
    train(corpus_file, tmp_path / "parts", config, progress=False)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = perplab.load(tmp_path / "whole")
    ids = torch.arange(2, 60)[None]
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(read(ids).logits, model.model(ids).logits, rtol=0, atol=1e-5)
    scores = perplab.score(model, TEXT[0].text)
    assert 0 < scores.nll.mean() < 1.2 * math.log(model.model.config.vocab_size)
    assert perplab.generate(model, "the cat", GenerateConfig(max_new_tokens=5, temperature=0)) is not None
    assert whole.lineage.config["mixer"] == mixer
    if any(getattr(model.model.config, "ngram_heads", ())):
        return
    packed = quantize(model, TEXT, QuantizeConfig(method="rtn", bits=8, windows=2, length=32), out=tmp_path / "packed")
    torch.testing.assert_close(packed.model(ids).logits, model.model(ids).logits, rtol=0, atol=0.2)
    again = perplab.load(tmp_path / "packed").model(ids).logits
    torch.testing.assert_close(again, packed.model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mixer", ["deltanet", "complex"])
def test_calibrated_rounding_costs_a_trained_mixer_little(mixer, corpus_file, tiny, tmp_path):
    model = train(corpus_file, tmp_path / "model", tiny(mixer=mixer, tokens=80 * 512), progress=False)
    lines = Path(corpus_file).read_text().splitlines()
    text = [Document(json.loads(line)["text"], "", str(number)) for number, line in enumerate(lines)]
    ids = torch.arange(2, 60)[None]
    exact = perplab.score(model, text[:40]).nll.mean()
    assert exact < 1.5
    for method in ("awq", "quantease"):
        config = QuantizeConfig(method=method, bits=3, windows=8, length=64)
        made = quantize(model, text, config, out=tmp_path / method)
        assert abs(perplab.score(perplab.load(tmp_path / method), text[:40]).nll.mean() - exact) < 0.1
        read = AutoModelForCausalLM.from_pretrained(tmp_path / method, dtype=torch.float32)
        torch.testing.assert_close(read(ids).logits, made.model.float()(ids).logits, rtol=0, atol=1e-3)


def test_state_decoder_scores_text_longer_than_any_it_was_trained_on(corpus_file, tiny, tmp_path, monkeypatch):
    model = train(corpus_file, tmp_path / "model", tiny(mixer="deltanet", num_hidden_layers=2), progress=False)
    text = " ".join(document.text for document in TEXT)
    ids = torch.tensor(model.tokenizer(text).input_ids).numpy().astype("int32")
    assert len(ids) > 3 * model.model.config.max_position_embeddings
    whole = next(score_requests(model, [Request(ids[:1], ids[1:])]))["nll"]
    monkeypatch.setattr(hidden_states, "PIECE", 50)
    pieces = next(score_requests(model, [Request(ids[:1], ids[1:])]))["nll"]
    torch.testing.assert_close(torch.from_numpy(pieces), torch.from_numpy(whole), rtol=0, atol=1e-4)


def test_window_attention_everywhere_is_saved_as_mistral(corpus_file, tiny, tmp_path):
    model = train(corpus_file, tmp_path / "model", tiny(mixer="sliding", sliding_window=9), progress=False).model
    assert type(model) is MistralForCausalLM
    ids = torch.arange(2, 50)[None]
    ours = to_decoder(model)
    assert ours.config.token_mixers == ["sliding"]
    torch.testing.assert_close(ours(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_hybrids_have_attention_where_the_paper_has_it():
    assert token_mixers("hybrid", 4) == ["deltanet", "sliding", "deltanet", "sliding"]
    assert token_mixers("hybrid-global", 8) == ["softmax" if layer in (1, 4) else "deltanet" for layer in range(8)]
    assert token_mixers("hybrid-global", 2) == ["deltanet", "softmax"]
    with pytest.raises(PerplabError, match="one layer has no place"):
        TrainConfig(mixer="hybrid-global", depth=1)


def test_options_reach_the_mixer_of_a_hybrid_and_unknown_ones_are_refused():
    shape = decoder_config(TrainConfig(mixer="hybrid", mixer_options={"use_beta": False}), 300, 0)
    assert shape.options_of("deltanet").use_beta is False
    with pytest.raises(PerplabError, match="sliding_window is 0"):
        decoder_config(TrainConfig(mixer="sliding", sliding_window=0), 300, 0)
    for mixer, options in (("deltanet", {"magic": 1}), ("softmax", {"magic": 1})):
        with pytest.raises(PerplabError, match=r"unknown option 'magic'|takes none"):
            decoder_config(TrainConfig(mixer=mixer, mixer_options=options), 300, 0)
