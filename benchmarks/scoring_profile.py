"""Where the engine's time goes, and so what is left to gain.

Rolling log-likelihood as in the benchmark above, under torch's profiler: the share of processor time by kind of
operator. Projections are the model's matrix products, the head's among them; attention is batched products, softmax and
masks; the head's softmax is that of the scored tokens; what remains is norms, rotations, activations and copies of the
model's own modules. `rate of projections` is their arithmetic over their time, as a share of what a product of two
2048 x 2048 bfloat16 matrices reaches: were everything else free, scoring would still take the projections' share of
its time.
"""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from measuring import in_new_process, interleaved
from perplab.evaluation.harness import PerplabLM
from scorers import MODELS, instances, mixed_lengths, rolling_products, texts_of_lengths

TOKENS = {"pocket, 5.6 M": 20_000, "Llama, 110 M": 6_000}
MATRIX = 2048
KINDS = {
    "projections": {"aten::mm", "aten::addmm"},
    "attention": {"aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::triu_"},
    "head's softmax": {"aten::_log_softmax", "aten::gather"},
}


def measure(quick: bool) -> list[dict[str, Any]]:
    names = list(MODELS)[:1] if quick else list(MODELS)
    return [in_new_process(shares, name, 2000 if quick else TOKENS[name]) for name in names]


def shares(name: str, tokens: int) -> dict[str, Any]:
    language_model = MODELS[name]()
    texts = texts_of_lengths(language_model, mixed_lengths(tokens))
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    ours = PerplabLM(language_model)
    ours.loglikelihood_rolling(requests, disable_tqdm=True)
    left, right = torch.rand(2, MATRIX, MATRIX).to(torch.bfloat16)
    product = interleaved({"product": lambda: left @ right}, 9)["product"].median
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        ours.loglikelihood_rolling(requests, disable_tqdm=True)
    events = {event.key: event for event in taken.key_averages()}
    whole = sum(event.self_cpu_time_total for event in events.values())
    seconds = {
        kind: sum(events[key].self_cpu_time_total for key in keys & events.keys()) for kind, keys in KINDS.items()
    }
    operations = rolling_products(language_model, texts).projections
    rate = operations / (seconds["projections"] * 1e-6) / (2 * MATRIX**3 / product)
    return {
        "model": name,
        **{f"{kind}, %": 100 * taken_time / whole for kind, taken_time in seconds.items()},
        "the rest, %": 100 * (1 - sum(seconds.values()) / whole),
        "rate of projections, %": 100 * rate,
    }
