import json
import math
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from full_disk import files_no_larger_than
from perplab.errors import PerplabError
from perplab.models import load
from perplab.text import is_heldout
from perplab.training import TrainConfig, TrainingInterrupted, train
from perplab.training.interruption import Interruption, interruptible


@pytest.fixture
def run(corpus_file, tmp_path):
    """`run(config, name)` trains into a folder of that name and returns the folder."""

    def into(config, name="out", **arguments):
        train(corpus_file, tmp_path / name, config, progress=False, **arguments)
        return tmp_path / name

    return into


@pytest.fixture
def interrupted_after(monkeypatch):
    """`interrupted_after(step)` presses Ctrl-C when that step is in the diary."""
    from perplab.training.metrics import MetricsLog

    write = MetricsLog.write

    def at(step):
        def write_and_interrupt(log, current, **values):
            write(log, current, **values)
            if current == step and "loss" in values:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(MetricsLog, "write", write_and_interrupt)

    return at


def records(out):
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [record["loss"] for record in records(out) if "loss" in record]


def weights(out):
    return (out / "model.safetensors").read_bytes()


def unigram_entropy(corpus_file, tokenizer):
    """Nats a token of the training text, if each token came independently of the others."""
    texts = [json.loads(line)["text"] for line in Path(corpus_file).read_text().splitlines()]
    counts = Counter(token for text in texts if not is_heldout(text) for token in tokenizer(text).input_ids)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def test_loss_falls_well_below_the_unigram_entropy_where_text_has_structure(run, tiny, corpus_file):
    out = run(tiny(tokens=60 * 512))
    assert losses(out)[0] == pytest.approx(math.log(load(out).model.config.vocab_size), abs=1)
    assert losses(out)[-1] < 0.6 * unigram_entropy(corpus_file, load(out).tokenizer)


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(run, tiny):
    assert weights(run(tiny(), "first")) == weights(run(tiny(), "second")) != weights(run(tiny(seed=1), "third"))


@pytest.mark.parametrize("step", [1, 5, 6, 11])  # 5: also an evaluation, 6: also a checkpoint
def test_interrupted_run_continues_to_the_same_bytes(run, tiny, interrupted_after, monkeypatch, step):
    whole = run(tiny(), "whole")
    with monkeypatch.context():
        interrupted_after(step)
        with pytest.raises(TrainingInterrupted, match=f"step {step};"):
            run(tiny())
    monkeypatch.undo()
    out = run(tiny(checkpoint_every=100))
    assert weights(out) == weights(whole)
    assert losses(out) == losses(whole)


def test_interruption_in_the_last_step_does_not_keep_the_run_from_finishing(run, tiny, interrupted_after):
    interrupted_after(12)
    assert weights(run(tiny()))


def test_second_interrupt_stops_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_interruptible_outside_the_main_thread_leaves_signals_alone():
    found = []

    def enter():
        with interruptible() as interruption:
            found.append(isinstance(interruption, Interruption))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [True]


def test_finished_run_called_again_changes_nothing(run, tiny):
    def files(out):
        found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        lineage = json.loads(found.pop("perplab.json"))
        return found, {key: value for key, value in lineage.items() if key != "created"}

    before = files(run(tiny()))
    assert files(run(tiny())) == before


@pytest.mark.parametrize("tied", [True, False])
def test_losses_do_not_depend_on_how_a_step_is_split_into_passes(run, tiny, tied):
    whole, parts = (
        run(tiny(micro_batch_tokens=tokens, tie_word_embeddings=tied), f"{tokens}") for tokens in (512, 128)
    )
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


def test_result_is_a_stock_model_in_the_precision_of_the_run(run, tiny):
    half, full = load(run(tiny(precision="bf16", qk_norm=True), "half")), load(run(tiny(), "full"))
    assert (type(half.model), half.model.dtype) == (Qwen3ForCausalLM, torch.bfloat16)
    assert (type(full.model), full.model.dtype) == (LlamaForCausalLM, torch.float32)


def test_lineage_tells_settings_corpus_and_figures(run, tiny, corpus_file):
    out = run(tiny(seed=7))
    model = load(out)
    assert (model.lineage.verb, model.lineage.seed) == ("train", 7)
    assert model.lineage.config["corpus"] == corpus_file
    assert TrainConfig(**{key: model.lineage.config[key] for key in vars(tiny())}) == tiny(seed=7)
    assert model.lineage.figures["parameters"] == model.model.num_parameters()
    assert model.lineage.figures["tokens"] == 12 * 512
    last = records(out)[-1]["heldout_bits_per_byte"]
    assert {f"heldout_bits_per_byte/{name}": value for name, value in last.items()}.items() <= (
        model.lineage.figures.items()
    )


@torch.no_grad()
def brute_force_bits_per_byte(out, documents, block_size):
    """Plain forward passes over one document at a time, anew at each border of the stream's blocks."""
    language_model = load(out)
    tokenizer, model = language_model.tokenizer, language_model.model
    position, nats, size = 0, 0.0, 0
    for text in documents:
        ids = [tokenizer.eos_token_id, *tokenizer(text).input_ids]
        labels = torch.tensor([*ids[1:], -100])
        border = block_size - position % block_size
        starts = [0, *range(border, len(ids), block_size)]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            logits = model(torch.tensor([ids[start:end]])).logits[0].double()
            nats += F.cross_entropy(logits, labels[start:end], reduction="sum").item()
        position += len(ids)
        size += len(text.encode())
    return nats / size / math.log(2)


def test_heldout_bits_per_byte_is_what_plain_forward_passes_give(run, tiny, tmp_path):
    texts = ["a cat sees one small fish.", "café 12 13 14 15 16 17", "the old dog eats a bird. " * 9, "x"]
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = run(tiny(evaluate_tokens=4096), heldout=str(heldout))
    measured = records(out)[-1]["heldout_bits_per_byte"]
    assert measured["all"] == measured["heldout"] == pytest.approx(brute_force_bits_per_byte(out, texts, 64), rel=1e-6)


def test_heldout_cost_over_all_lies_between_those_of_the_domains(run, tiny):
    measured = records(run(tiny()))[-1]["heldout_bits_per_byte"]
    assert measured.keys() == {"prose", "numbers", "all"}
    assert measured["prose"] < measured["all"] < measured["numbers"]


@pytest.mark.parametrize(
    ("change", "key"), [({"seed": 1}, "seed: 0, now 1"), ({"tokens": 4096}, "tokens: 6144, now 4096")]
)
def test_run_with_changed_settings_is_refused_and_the_setting_named(run, tiny, change, key):
    before = weights(run(tiny()))
    with pytest.raises(PerplabError, match=key):
        run(tiny(**change))
    assert weights(run(tiny())) == before


def test_run_on_other_text_is_refused(run, tiny, tmp_path, corpus_file):
    run(tiny())
    other = tmp_path / "other.jsonl"
    other.write_text(Path(corpus_file).read_text() + json.dumps({"text": "one more document"}) + "\n")
    with pytest.raises(PerplabError, match="other settings"):
        train(str(other), tmp_path / "out", tiny(), progress=False)


def test_two_runs_in_one_folder_at_once_are_refused(run, tiny, tmp_path):
    (tmp_path / "out" / "run").mkdir(parents=True)
    with FileLock(tmp_path / "out" / "run" / "lock"), pytest.raises(PerplabError, match="another process is training"):
        run(tiny())
    assert weights(run(tiny()))


def test_model_that_no_run_made_is_not_overwritten(run, tiny, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(PerplabError, match="other holds a model that no run made"):
        run(tiny(), "other")
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_published_files_can_be_read_by_everybody(run, tiny):
    files = [file for file in run(tiny()).iterdir() if file.is_file()]
    assert {"model.safetensors", "config.json", "tokenizer.json", "perplab.json"} <= {file.name for file in files}
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)


def test_corpus_with_nothing_held_out_is_refused(tiny, tmp_path):
    text = next(text for text in map(str, range(1000)) if not is_heldout(text))
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(PerplabError, match="no document in its split 'heldout'"):
        train(str(tmp_path / "one.jsonl"), tmp_path / "out", tiny(), progress=False)


@pytest.mark.parametrize(("size", "refused"), [(300_000, "checkpoint"), (1200, "metrics.jsonl")])
def test_full_disk_is_named_and_the_run_can_be_resumed(
    run, tiny, tmp_path, interrupted_after, monkeypatch, size, refused
):
    whole = run(tiny(), "whole")
    with monkeypatch.context():
        interrupted_after(6)
        with pytest.raises(TrainingInterrupted):
            run(tiny())
    monkeypatch.undo()
    checkpoint = tmp_path / "out" / "run" / "checkpoint"
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    with files_no_larger_than(size), pytest.raises(PerplabError, match=f"cannot write .*{refused} .*File too large"):
        run(tiny())
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    assert weights(run(tiny())) == weights(whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", lambda path: os.truncate(path, path.stat().st_size // 2)),
        ("state.safetensors", lambda path: path.write_bytes(b"")),
        ("state.safetensors", lambda path: path.unlink()),
        ("state.json", lambda path: path.write_text('{"step": 3')),
        ("state.json", lambda path: path.write_text('{"steps": 3}')),
        ("state.json", lambda path: path.write_text("[]")),
        ("state.json", lambda path: path.unlink()),
    ],
)
def test_damaged_checkpoint_is_named(run, tiny, damage, name):
    path = run(tiny()) / "run" / "checkpoint" / name
    damage(path)
    with pytest.raises(PerplabError, match=f"{path} .*: delete the folder to start again") as caught:
        run(tiny())
    assert "\n" not in str(caught.value)


def test_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(run, tiny, tmp_path):
    with pytest.raises(PerplabError, match=r"not finite at step 2 .*learning rate below 1e\+30"):
        run(tiny(learning_rate=1e30, schedule="constant"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_learning_rate_of_zero_leaves_the_initial_weights(run, tiny):
    short, long = (run(tiny(learning_rate=0.0, tokens=steps * 512), f"{steps}") for steps in (1, 4))
    assert weights(short) == weights(long)


def test_folder_that_cannot_be_made_is_refused(run, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerplabError, match="cannot write"):
        run(tiny(), "file")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"depth": 0},
        {"evaluate_every": 0},
        {"batch_tokens": 500},
        {"micro_batch_tokens": 100},
        {"warmup": 1.5},
        {"final": -0.1},
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(tiny, wrong):
    with pytest.raises(PerplabError, match=f"^{next(iter(wrong))} "):
        tiny(**wrong)
