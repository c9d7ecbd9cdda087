import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from full_disk import files_no_larger_than
from perplab.errors import PerplabError
from perplab.models import language_model, shipped
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.language_model import LanguageModel, load
from perplab.models.lineage import Lineage, weights_fingerprint
from perplab.models.stock import to_stock

TEXT = "What did each token cost?\n"
TOKENS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """`saved(family)` is the folder of a tiny model."""

    def save(family, name="saved", lineage=None):
        LanguageModel(tiny_model(family), tiny_tokenizer, lineage).save(tmp_path / name)
        return tmp_path / name

    return save


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@torch.no_grad()
def logits_of(model):
    return model(TOKENS).logits


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refuses(name, match, **arguments):
    """Loading fails with one line that matches."""
    with pytest.raises(PerplabError, match=match) as caught:
        load(name, **arguments)
    assert "\n" not in str(caught.value)


def stock_form(model):
    """What is saved of a model."""
    return to_stock(model) if isinstance(model, DecoderForCausalLM) else model


def test_round_trip_keeps_logits_bit_for_bit(tiny_model, saved, family):
    loaded = load(saved(family)).model
    assert torch.equal(logits_of(loaded), logits_of(stock_form(tiny_model(family))))
    assert not loaded.training


def test_plain_transformers_loads_what_was_saved(tiny_model, saved, family):
    model = AutoModelForCausalLM.from_pretrained(saved(family))
    assert torch.equal(logits_of(model), logits_of(stock_form(tiny_model(family))))


def test_round_trip_keeps_the_tokenizer(tiny_tokenizer, saved, family):
    tokenizer = load(saved(family)).tokenizer
    assert tokenizer(TEXT).input_ids == tiny_tokenizer(TEXT).input_ids
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT


def test_plain_transformers_loads_the_tokenizer_that_was_saved(tiny_tokenizer, saved):
    assert AutoTokenizer.from_pretrained(saved("llama"))(TEXT).input_ids == tiny_tokenizer(TEXT).input_ids


def test_plain_decoder_is_saved_as_llama_and_computes_the_same(tiny_model, saved):
    loaded = load(saved("perplab_decoder")).model
    assert type(loaded) is LlamaForCausalLM
    torch.testing.assert_close(logits_of(loaded), logits_of(tiny_model("perplab_decoder")))


def test_saving_twice_and_saving_what_was_loaded_give_the_same_bytes(saved, tmp_path, family):
    lineage = Lineage.record("train", seed=1)
    first, second = saved(family, "first", lineage), saved(family, "second", lineage)
    load(first).save(tmp_path / "third")
    assert files_of(first) == files_of(second) == files_of(tmp_path / "third")


def test_sharded_checkpoint_loads_and_a_lost_shard_is_named(tiny_model, saved):
    folder = saved("llama")
    (folder / "model.safetensors").unlink()
    model = tiny_model("llama")
    model.save_pretrained(folder, max_shard_size="20KB")
    assert torch.equal(logits_of(load(folder).model), logits_of(model))
    shard = max(folder.glob("*.safetensors"))
    shard.unlink()
    refuses(folder, f"{shard.name} does not exist")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_is_that_of_the_weights_in_memory(saved, dtype):
    assert {parameter.dtype for parameter in load(saved("llama"), dtype=dtype).model.parameters()} == {torch.bfloat16}


def test_auto_dtype_is_that_of_the_checkpoint(tiny_model, tiny_tokenizer, tmp_path):
    LanguageModel(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer).save(tmp_path / "half")
    assert load(tmp_path / "half").model.dtype == torch.bfloat16


def test_attention_implementation_is_handed_on(saved):
    assert load(saved("llama"), attn_implementation="eager").model.config._attn_implementation == "eager"


def test_loading_and_saving_print_nothing(saved, capfd, tmp_path):
    load(saved("mixtral")).save(tmp_path / "again")
    assert capfd.readouterr() == ("", "")


def test_missing_weights_are_named_and_counted(saved):
    folder = saved("llama")
    change_weights(folder, lambda weights: [weights.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in (0, 1)])
    refuses(folder, r"lacks model\.layers\.0\.mlp\.up_proj\.weight, .*\(2 in all\)")


def test_unexpected_weights_are_named(saved):
    folder = saved("llama")
    change_weights(folder, lambda weights: weights.update(extra=torch.zeros(1)))
    refuses(folder, r"extra \(1 in all\)")


def test_weights_of_another_shape_are_named(saved):
    folder = saved("llama")
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}))
    refuses(folder, r"model\.norm\.weight \(3,\) for \(32,\)")


def test_tied_head_is_not_a_missing_weight_and_an_untied_one_is(saved):
    tied = saved("gpt2", "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load(tied)
    untied = saved("llama", "untied")
    change_weights(untied, lambda weights: weights.pop("lm_head.weight"))
    refuses(untied, "lacks lm_head.weight")


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_truncated_weights_are_named(saved, size):
    path = saved("llama") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refuses(path.parent, r"model\.safetensors is damaged")


def test_weights_with_bytes_after_the_last_tensor_are_damaged(saved):
    path = saved("llama") / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    refuses(path.parent, r"model\.safetensors is damaged")


def test_header_that_is_not_json_is_damage(saved):
    path = saved("llama") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    refuses(path.parent, "header is not that of a safetensors file")


def test_pickled_weights_are_refused_unread(saved):
    folder = saved("llama")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    refuses(folder, r"only pickled ones \(pytorch_model\.bin\).*save_pretrained")


def test_folder_without_weights_is_named(saved):
    folder = saved("llama")
    (folder / "model.safetensors").unlink()
    refuses(folder, r"has no model\.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("lost", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_absent_tokenizer_is_named(saved, family, lost):
    folder = saved(family)
    for name in lost:
        (folder / name).unlink()
    refuses(folder, "has no tokenizer")


def test_damaged_tokenizer_is_named(saved):
    folder = saved("llama")
    (folder / "tokenizer.json").write_text("{}")
    refuses(folder, f"tokenizer in {folder} cannot be used")


@pytest.mark.parametrize(
    "values", [{"model_type": "nonsense"}, {"hidden_size": "wide"}, {"model_type": "t5"}, {"model_type": None}]
)
def test_config_that_is_no_causal_model_is_named(saved, values):
    folder = saved("llama")
    change_config(folder, **values)
    refuses(folder, r"config\.json")


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_config_that_is_no_object_is_named(saved, content):
    folder = saved("llama")
    (folder / "config.json").write_text(content)
    refuses(folder, r"config\.json")


def test_unknown_key_in_a_decoder_config_is_named(saved):
    folder = saved("llama")
    DecoderConfig(num_hidden_layers=2).save_pretrained(folder)
    change_config(folder, bogus=1)
    refuses(folder, "unknown key 'bogus'")


def test_folder_without_config_is_named(tmp_path):
    refuses(tmp_path, r"config\.json does not exist")


@pytest.mark.parametrize("name", ["./absent", "../absent", "~/absent", "/absent", "a/b/c", "tests/absent"])
def test_local_path_that_does_not_exist_never_asks_the_hub(monkeypatch, tmp_path, name):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language_model, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    refuses(name, "does not exist")


def test_path_object_never_asks_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    refuses(tmp_path.relative_to(tmp_path) / "absent", "does not exist")


def test_file_in_place_of_a_folder_is_named(saved):
    refuses(saved("llama") / "model.safetensors", "is a file")


def test_hub_id_that_is_neither_cached_nor_reachable_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refuses("nobody/nothing", "nobody/nothing is not a folder here")


def test_name_that_no_hub_id_can_have_is_named():
    refuses("two words", "neither a folder nor a hub id")


def test_pocket_is_the_models_own_folder(saved, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "POCKET_FOLDER", saved("llama"))
    assert load("pocket").name == "pocket"
    monkeypatch.setattr(shipped, "POCKET_FOLDER", tmp_path / "absent")
    refuses("pocket", "run make pocket")


@pytest.mark.parametrize(
    "arguments", [{"dtype": "int8"}, {"dtype": "float33"}, {"device": "abacus"}, {"device": "cuda:99"}]
)
def test_dtype_or_device_that_does_not_exist_is_named(saved, arguments):
    refuses(saved("llama"), str(*arguments.values()), **arguments)


def test_unknown_attention_implementation_is_named(saved):
    refuses(saved("llama"), "telepathy", attn_implementation="telepathy")


def test_killed_save_leaves_the_old_folder(tiny_model, tiny_tokenizer, saved):
    folder = saved("llama")
    before = files_of(folder)

    class Killed(LlamaForCausalLM):
        def save_pretrained(self, folder, **arguments):
            super().save_pretrained(folder, **arguments)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LanguageModel(Killed(tiny_model("llama").config), tiny_tokenizer).save(folder)
    assert files_of(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("size", [10, 1500, 20_000])  # what fails first: python's writes, tokenizers', safetensors'
def test_save_the_disk_refuses_is_named_and_leaves_the_old_folder(tiny_model, tiny_tokenizer, saved, size):
    folder = saved("llama")
    before = files_of(folder)
    with files_no_larger_than(size), pytest.raises(PerplabError, match=f"cannot write {folder} .*File too large"):
        LanguageModel(tiny_model("llama"), tiny_tokenizer).save(folder)
    assert files_of(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_folder_moved_aside_by_a_killed_save_is_found(saved):
    folder = saved("llama")
    folder.rename(folder.with_name(f".previous-{folder.name}"))
    load(folder)


def test_lineage_of_three_models_survives_losing_the_first_two(tiny_model, tiny_tokenizer, tmp_path):
    folders = [tmp_path / name for name in ("trained", "fused", "quantized")]
    trained = LanguageModel(tiny_model("llama"), tiny_tokenizer, Lineage.record("train", seed=3))
    trained.save(folders[0])
    prints = [weights_fingerprint(folders[0])]
    for verb, source, target in (("fuse", *folders[:2]), ("quantize", *folders[1:])):
        parent = load(source)
        with torch.no_grad():
            parent.model.lm_head.weight.mul_(0.5)
        parent.derive(parent.model, verb, config={"bits": 4}, seed=5, figures={"perplexity": 9.0}).save(target)
        prints.append(weights_fingerprint(target))
    for folder in folders[:2]:
        shutil.rmtree(folder)
    lineage = load(folders[2]).lineage
    assert [step.verb for step in lineage.history] == ["train", "fuse", "quantize"]
    assert [step.parent.fingerprint for step in lineage.history[1:]] == prints[:2]
    assert [step.parent.name for step in lineage.history[1:]] == [str(folder) for folder in folders[:2]]


def test_model_derived_in_memory_has_a_parent_without_fingerprint(tiny_model, tiny_tokenizer):
    first = LanguageModel(tiny_model("llama"), tiny_tokenizer, name="first")
    derived = first.derive(first.model, "edit")
    assert (derived.lineage.parent.name, derived.lineage.parent.fingerprint) == ("first", None)
    assert derived.path is None
