"""Training that goes on from a finished model: rates, replayed text, optimiser state, and what is measured."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from perplab.errors import PerplabError
from perplab.models import LanguageModel, Lineage, load, load_tokenizer
from perplab.text import is_heldout
from perplab.training import TrainConfig, TrainingInterrupted, self_replay, train
from perplab.training.learning_rate import past_rates
from perplab.training.trainer import Trainer

PEAK, FLOOR = 0.008, 0.0008


@pytest.fixture(scope="module")
def parent(tmp_path_factory, corpus_file, tiny):
    """The folder of a model that learnt the old text, its rate decayed to a tenth."""
    folder = tmp_path_factory.mktemp("parent") / "old"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERPLAB_CACHE", str(folder.parent / "cache"))
        train(corpus_file, folder, tiny(schedule="cosine", final=0.1), progress=False)
    return folder


@pytest.fixture(scope="module")
def new_file(tmp_path_factory):
    """Documents unlike the old ones."""
    draw = random.Random(1)
    words = ["red", "green", "blue", "stone", "river", "cloud"]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 40))) for _ in range(200)]
    path = tmp_path_factory.mktemp("new") / "colours.jsonl"
    path.write_text("".join(json.dumps({"text": text, "domain": "colours"}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def further(tiny):
    """`further(**settings)`: a run of twelve steps that says nothing of shape and rate."""
    from_parent = {"depth": TrainConfig.depth, "vocab_size": None, "learning_rate": None}
    return lambda **settings: tiny(**(from_parent | settings))


@pytest.fixture
def adapt(new_file, parent, corpus_file, tmp_path):
    """`adapt(config, name)` trains the old model on new text into a folder of that name and returns the folder."""

    def into(config, name="out", **arguments):
        train(new_file, tmp_path / name, config, progress=False, **({"parent": parent, "old": corpus_file} | arguments))
        return tmp_path / name

    return into


@pytest.fixture
def interrupted_at(monkeypatch):
    """`interrupted_at(step, call)` makes the call, whose run is asked to stop after that step."""

    def stop(step, call):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_anybody", lambda trainer, here: trainer.step == step)
            with pytest.raises(TrainingInterrupted):
                call()

    return stop


def records(out, key):
    lines = map(json.loads, (out / "run" / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if key in record]


def values(out, key):
    return [record[key] for record in records(out, key)]


def weights(out):
    return (out / "model.safetensors").read_bytes()


def moments(out):
    return load_file(out / "run" / "checkpoint" / "state.safetensors")


def test_peak_is_a_multiple_of_the_parents_and_warmup_starts_from_its_last_rate(adapt, further):
    out = adapt(further(rewarm=0.5, schedule="cosine", warmup=0.25, final=0.2))
    peak = 0.5 * PEAK
    warm = [FLOOR + (peak - FLOOR) * step / 3 for step in (1, 2, 3)]
    cooling = [0.2 * peak + 0.8 * peak * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(9)]
    assert values(out, "learning_rate") == pytest.approx(warm + cooling)


def test_peak_is_the_parents_where_nothing_is_said(adapt, further):
    assert max(values(adapt(further()), "learning_rate")) == pytest.approx(PEAK)


def test_rewarming_to_the_rate_of_the_end_is_the_constant_baseline_step_by_step(adapt, further):
    baseline = adapt(further(rewarm=0.0), "baseline")
    assert values(baseline, "learning_rate") == pytest.approx([FLOOR] * 12)
    rewarmed = adapt(further(rewarm=0.1, schedule="constant", warmup=0.5), "rewarmed")
    assert values(rewarmed, "loss") == pytest.approx(values(baseline, "loss"), abs=1e-6)
    assert values(rewarmed, "learning_rate") == pytest.approx([FLOOR] * 12)


def test_a_model_adapted_twice_is_rewarmed_from_what_it_had_last(adapt, further):
    once = adapt(further(rewarm=0.5, schedule="cosine", final=0.25), "once")
    assert past_rates(load(once)) == pytest.approx((0.5 * PEAK, 0.125 * PEAK))
    twice = adapt(further(rewarm=0.5), "twice", parent=once)
    assert max(values(twice, "learning_rate")) == pytest.approx(0.25 * PEAK)


def test_a_run_cut_before_its_decay_leaves_its_plateau_to_the_next(adapt, further):
    config = further(learning_rate=0.004, schedule="infinite", plateau=0.5, horizon_tokens=36 * 512, warmup=0.1)
    cut = adapt(config, "cut")
    assert past_rates(load(cut)) == pytest.approx((0.004, 0.002))
    assert values(adapt(further(rewarm=0.0), "next", parent=cut), "learning_rate") == pytest.approx([0.002] * 12)


def test_a_rate_of_zero_leaves_the_weights_and_every_evaluation_as_they_were(adapt, parent, further, corpus_file):
    out = adapt(further(learning_rate=0.0, replay=0.5), replay=corpus_file)
    before, after = (load_file(folder / "model.safetensors") for folder in (parent, out))
    assert all(torch.equal(after[name], before[name]) for name in before)
    windows = values(out, "windows")
    assert len(windows) > 3
    assert all(one == windows[0] for one in windows)


def test_old_and_new_text_are_measured_before_the_run_then_at_powers_of_two_then_evenly(adapt, further):
    out = adapt(further(tokens=80 * 512, evaluate_every=30))
    steps = [record["step"] for record in records(out, "windows")]
    assert steps == [0, 1, 2, 4, 30, 60, 80]
    first = values(out, "windows")[0]
    assert (first["new"].keys(), first["old"].keys()) == ({"colours"}, {"prose", "numbers"})
    figures = load(out).lineage.figures
    last = values(out, "old_bits_per_byte")[-1]
    assert last.keys() == {"prose", "numbers", "all"}
    assert figures["old_bits_per_byte/all"] == last["all"] > values(out, "old_bits_per_byte")[0]["all"]
    assert values(out, "heldout_bits_per_byte")[-1]["all"] < values(out, "heldout_bits_per_byte")[0]["all"]


def test_replay_keeps_old_text_cheap_and_costs_no_more_tokens(adapt, further, corpus_file):
    config = further(tokens=40 * 512)
    without, replayed = (
        adapt(further(tokens=config.tokens, replay=share), f"{share}", replay=corpus_file) for share in (0.0, 0.5)
    )
    ends = [values(out, "old_bits_per_byte")[-1]["all"] for out in (without, replayed)]
    assert ends[1] < ends[0] - 0.3
    assert load(replayed).lineage.figures["tokens"] == load(without).lineage.figures["tokens"]


@pytest.mark.parametrize("step", [1, 6])
def test_interrupted_run_continues_with_the_same_rates_batches_and_bytes(
    adapt, further, corpus_file, interrupted_at, step
):
    config = further(rewarm=0.7, replay=0.3, schedule="infinite", warmup=0.2, optimizer_state="restore")
    whole = adapt(config, "whole", replay=corpus_file)
    interrupted_at(step, lambda: adapt(config, replay=corpus_file))
    out = adapt(config, replay=corpus_file)
    assert weights(out) == weights(whole)
    for key in ("learning_rate", "loss", "windows", "old_bits_per_byte"):
        assert values(out, key) == values(whole, key)


def test_a_run_with_a_horizon_is_prolonged_to_the_bytes_of_a_longer_run(adapt, further):
    long, short = (further(tokens=steps * 512, horizon_tokens=30 * 512, schedule="cosine") for steps in (12, 7))
    adapt(short)
    assert weights(adapt(long)) == weights(adapt(long, "whole"))
    assert values(adapt(long), "learning_rate") == values(adapt(long, "whole"), "learning_rate")
    with pytest.raises(PerplabError, match="has taken 12 steps, and now is to have 7: give at least 6144 tokens"):
        adapt(short)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"horizon_tokens": 30 * 512}, {"horizon_tokens": 40 * 512}),
        ({"horizon_tokens": None}, {"tokens": 24 * 512}),
        ({"horizon_tokens": None}, {"tokens": 24 * 512, "horizon_tokens": 24 * 512}),
    ],
)
def test_another_horizon_of_a_run_that_is_resumed_is_refused(adapt, further, first, second):
    adapt(further(**first))
    with pytest.raises(PerplabError, match=r"other settings \((horizon_tokens|tokens)"):
        adapt(further(**(first | second)))


def test_optimizer_state_is_reset_or_goes_on(adapt, parent, further):
    reset, restored = (adapt(further(optimizer_state=how, rewarm=0.0), how) for how in ("reset", "restore"))
    step = next(name for name in moments(parent) if name.endswith(".step"))
    assert [moments(out)[step].item() for out in (parent, reset, restored)] == [12, 12, 24]
    assert values(restored, "loss")[0] == pytest.approx(values(reset, "loss")[0], abs=1e-5)  # the same weights
    assert weights(restored) != weights(reset)


@pytest.mark.parametrize("broken", ["without checkpoint", "without moments", "another batch"])
def test_optimizer_state_that_cannot_be_restored_is_refused(adapt, parent, further, tmp_path, broken):
    import shutil

    other = shutil.copytree(parent, tmp_path / "copy")
    settings = {"optimizer_state": "restore"}
    if broken == "without checkpoint":
        shutil.rmtree(other / "run")
    elif broken == "without moments":
        file = other / "run" / "checkpoint" / "state.safetensors"
        save_file({name: tensor for name, tensor in load_file(file).items() if name.startswith("model.")}, file)
    else:
        settings["batch_tokens"] = 256
    with pytest.raises(PerplabError, match=r"optimi[sz]er.*optimizer_state reset") as caught:
        adapt(further(**settings), parent=other)
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(adapt, further, tmp_path):
    with pytest.raises(PerplabError, match="not finite at step 2"):
        adapt(further(learning_rate=1e30, schedule="constant", checkpoint_every=1))
    folder = tmp_path / "out" / "run" / "checkpoint"
    assert json.loads((folder / "state.json").read_text())["step"] == 1
    assert not any(tensor.isnan().any() for tensor in load_file(folder / "state.safetensors").values())


@pytest.mark.parametrize(
    ("settings", "arguments", "complaint"),
    [
        ({"rewarm": 0.05}, {}, "falls below the rate 0.0008 .* rewarm of at least 0.1, or 0"),
        ({"rewarm": 1.0}, {"parent": None}, "no parent to re-warm"),
        ({"optimizer_state": "restore"}, {"parent": None}, "no parent whose optimiser state"),
        ({"replay": 0.1}, {"old": None}, "replay is 0.1, and there is no old text: name it with --replay-from"),
        ({"replay": 0.1}, {"replay": "self", "parent": None}, "no parent that could make up old text"),
        ({"depth": 2}, {}, "depth is given, but the shape is that of"),
        ({"horizon_tokens": 6000 * 512}, {}, "a warm-up of 120 steps is longer than the run of 12"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_one_line(adapt, further, settings, arguments, complaint):
    with pytest.raises(PerplabError, match=complaint) as caught:
        adapt(further(**settings), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"rewarm": -1.0}, "rewarm is -1.0"),
        ({"rewarm": math.inf}, "rewarm is inf"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"rewarm": 1.0, "learning_rate": 0.1}, "both set the peak"),
        ({"replay": 1.5}, "replay is 1.5"),
        ({"horizon_tokens": 0}, "horizon_tokens is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(further, wrong, complaint):
    with pytest.raises(PerplabError, match=complaint):
        further(**wrong)


def test_rates_are_those_of_the_last_training_run_in_a_lineage(parent):
    assert past_rates(load("pocket")) == pytest.approx((0.002, 0.00002))
    model = load(parent)
    quantized = model.derive(model.model, "quantize", config={"bits": 4})
    assert past_rates(quantized) == past_rates(model) == pytest.approx((PEAK, FLOOR))
    foreign = LanguageModel(model.model, model.tokenizer, Lineage.record("train", config={"epochs": 3}))
    assert past_rates(foreign) is None


def test_a_parent_of_unknown_rates_needs_a_learning_rate(adapt, parent, further):
    model = load(parent)
    model.lineage = None
    for settings in ({"rewarm": 0.5}, {}):
        with pytest.raises(PerplabError, match=r"does not tell the learning rate .* give learning_rate"):
            adapt(further(**settings), parent=model)
    assert max(values(adapt(further(learning_rate=0.003), parent=model), "learning_rate")) == pytest.approx(0.003)


def test_text_that_measures_and_is_trained_on_is_refused(adapt, further, tmp_path, new_file):
    copied = Path(new_file).read_text().splitlines()[7]
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"text": "of its own"}) + "\n" + copied + "\n")
    with pytest.raises(PerplabError, match=r"held-out .*heldout.jsonl.* is also trained on, as .*colours.jsonl"):
        adapt(further(), heldout=str(heldout))
    heldout.write_text(json.dumps({"text": "of its own"}) + "\n")
    assert weights(adapt(further(), heldout=str(heldout)))


def test_old_text_without_a_document_to_hold_out_is_refused(adapt, further, tmp_path):
    text = next(text for text in map(str, range(1000)) if not is_heldout(text))
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(PerplabError, match=r"one.jsonl' has no document in its split 'heldout'"):
        adapt(further(replay=0.5), replay=str(tmp_path / "one.jsonl"), old=None)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(adapt, parent, further):
    model = load(parent)
    model.tokenizer.add_tokens(["<more>"])
    with pytest.raises(PerplabError, match=r"the tokenizer of .* has \d+ tokens, and the model \d+"):
        adapt(further(), parent=model)


def test_a_model_replays_what_it_makes_up_itself(adapt, parent, further):
    out = adapt(further(replay=0.5), replay="self", old=None)
    (file,) = (out / "run").glob("self_replay-*.jsonl")
    made = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert len(made) > 20
    assert values(out, "windows")[0]["old"].keys() == {"self"}
    assert weights(adapt(further(replay=0.5), replay="self", old=None)) == weights(out)


def test_made_up_text_follows_from_the_seed(parent):
    texts, again, others = (list(self_replay(load(parent), 1000, seed, length=32)) for seed in (3, 3, 4))
    assert texts == again != others


def test_made_up_text_always_holds_some_that_measures_what_is_forgotten(parent):
    model = load(parent)
    for seed in range(15):  # of the texts of a single batch, a fifth of the seeds have none that is held out
        assert any(map(is_heldout, self_replay(model, 1, seed, length=8)))


def test_made_up_text_costs_the_model_its_own_entropy():
    model = load("pocket", dtype="float32")
    entropy, cost = own_entropy_and_cost(model, self_replay(model, 1800, 0, length=60))
    assert cost == pytest.approx(entropy, abs=0.2)


@torch.no_grad()
def own_entropy_and_cost(model, texts):
    """Nats a token, of the model's own distributions and of what was sampled from them."""
    sums = torch.zeros(3, dtype=torch.float64)
    for text in texts:
        ids = torch.tensor([[model.tokenizer.eos_token_id, *model.tokenizer(text).input_ids]])
        logs = model.model(ids).logits[0, :-1].double().log_softmax(-1)
        entropies = -(logs.exp() * logs).sum(-1)
        sums += torch.stack([entropies.sum(), -logs.gather(1, ids[0, 1:, None]).sum(), torch.tensor(len(logs) * 1.0)])
    return (sums[:2] / sums[2]).tolist()


def test_every_family_is_trained_further_and_saved_in_its_own_layout(family, tiny_model, parent, further, adapt):
    model, tokenizer = tiny_model(family), load_tokenizer(parent)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = further(tokens=3 * 512, block_size=32, learning_rate=0.002, evaluate_tokens=64)
    out = adapt(config, parent=LanguageModel(model, tokenizer, name=family))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    read = AutoModelForCausalLM.from_pretrained(out)
    saved_as = "llama" if family == "perplab_decoder" else family.partition("-")[0].replace("_", "")
    assert type(read).__name__.lower().startswith(saved_as)
    ids = torch.arange(2, 30)[None]
    assert not torch.equal(read(ids).logits, model(ids).logits)
    torch.testing.assert_close(read(ids).logits, load(out).model(ids).logits)
    costs = [one["all"] for one in values(out, "heldout_bits_per_byte")]
    assert all(later < earlier for earlier, later in pairwise(costs[:2]))
