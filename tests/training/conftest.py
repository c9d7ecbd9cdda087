"""A training run small enough to be repeated often: generated text, a model of depth 1, rows of 64 tokens."""

import json
import random

import pytest


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """Documents of two domains: sentences whose words follow from their first, so that there is something to learn."""
    draw = random.Random(0)
    subjects, verbs = ["the cat", "the old dog", "a bird", "one small fish"], ["sees", "eats", "follows"]
    documents = []
    for index in range(240):
        count = draw.randint(1, 9)
        if index % 3:
            sentences = [f"{draw.choice(subjects)} {draw.choice(verbs)} {draw.choice(subjects)}." for _ in range(count)]
            documents.append({"text": " ".join(sentences), "domain": "prose"})
        else:
            start = draw.randint(0, 40)
            documents.append({"text": " ".join(str(start + step) for step in range(3 * count)), "domain": "numbers"})
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny():
    """`tiny(**settings)`: the settings of a run of twelve steps."""
    from perplab.training import TrainConfig

    smallest = {
        "tokens": 12 * 512,
        "depth": 1,
        "vocab_size": 300,
        "block_size": 64,
        "batch_tokens": 512,
        "micro_batch_tokens": 512,
        "learning_rate": 0.008,
        "evaluate_every": 5,
        "evaluate_tokens": 256,
        "checkpoint_every": 3,
        "precision": "float32",
        "compile": False,
    }
    return lambda **settings: TrainConfig(**(smallest | settings))
