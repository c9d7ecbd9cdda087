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
    models = []
    for start in (0, 1, 0):
        path = tmp_path / "text.jsonl"  # one name, two contents: as a built-in corpus of two installations
        lines = [
            json.dumps({"text": " ".join(str(start + number + step) for step in range(40))}) for number in range(99)
        ]
        path.write_text("\n".join(lines) + "\n")
        models.append(trained_on(open_corpus(str(path)), CONFIG))
    assert models[0].path != models[1].path
    assert models[0].path == models[2].path
    assert models[0].fingerprint == models[2].fingerprint != models[1].fingerprint
