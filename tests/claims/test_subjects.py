"""Models that claims are measured on are found again by what they were trained on."""

import json

from perplab.claims.subjects import trained_on
from perplab.text import open_corpus
from perplab.training import TrainConfig

CONFIG = TrainConfig(
    tokens=256,
    depth=1,
    vocab_size=300,
    block_size=64,
    batch_tokens=128,
    micro_batch_tokens=128,
    precision="float32",
    compile=False,
)


def test_another_text_makes_another_model_and_the_same_one_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "cache"))
    files = []
    for start in (0, 1):  # one name, two contents: as a built-in corpus of two installations
        texts = [" ".join(str(start + number + step) for step in range(40)) for number in range(99)]
        files.append(tmp_path / str(start) / "text.jsonl")
        files[-1].parent.mkdir()
        files[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    first, other, again = (trained_on(open_corpus(str(file)), CONFIG) for file in (*files, files[0]))
    assert first.path == again.path != other.path
    assert first.fingerprint == again.fingerprint != other.fingerprint
