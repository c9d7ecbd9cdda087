"""Memory while quantising: a random Llama of 1.1 billion parameters to four bits.

The model (22 blocks of width 2,048, a vocabulary of 32,000, bfloat16) is written to a folder, loaded in a process of
its own and quantised with GPTQ on two windows of 2,048 tokens, layers on the disk as they are finished; each further
window adds its 8 MiB of hidden states. What is resident, interpreter and libraries included, is watched from the loaded
model to the written checkpoint. Goal: no more than 2 GiB above the weights.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from measuring import MIB, forget_peak, in_new_process, peak_resident_mib, resident_mib

SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
SHAPE |= {"num_key_value_heads": 4, "vocab_size": 32_000, "max_position_embeddings": 2048}
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 8_192, "max_position_embeddings": 256}
WINDOWS = 2
MOST_ABOVE = 2048.0


def measure(quick: bool) -> list[dict[str, Any]]:
    shape = SMALL if quick else SHAPE
    with tempfile.TemporaryDirectory() as folder:
        weights = in_new_process(write_model, shape, folder)
        before, peak, written = in_new_process(peak_of_run, folder)
    return [
        {
            "model": f"Llama, {weights / 2 / 1e6:,.0f} M",
            "weights, MiB": weights / MIB,
            "resident with the model loaded, MiB": before,
            "peak, MiB": peak,
            "peak above weights, MiB": peak - weights / MIB,
            "goal, MiB": MOST_ABOVE,
            "checkpoint, MiB": written,
        }
    ]


def write_model(shape: dict[str, int], folder: str) -> int:
    from perplab.models import LanguageModel, load_tokenizer

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    LanguageModel(model, load_tokenizer("pocket")).save(Path(folder) / "model")
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def peak_of_run(folder: str) -> tuple[float, float, float]:
    import perplab

    subject = perplab.load(Path(folder) / "model")
    text = perplab.open_corpus("builtin:python", "train").limited(1_000_000)
    config = perplab.QuantizeConfig(method="gptq", bits=4, windows=WINDOWS)
    forget_peak()
    before = resident_mib()
    perplab.quantize(subject, text, config, out=Path(folder) / "out")
    written = sum(file.stat().st_size for file in (Path(folder) / "out").glob("*.safetensors"))
    return before, peak_resident_mib(), written / MIB
