"""(Dynamic) prompting might be all you need to repair compressed LLMs (Hoang et al., arXiv 2310.00867).

A small decoder is trained on three kinds of text for each seed, loses 55 % of its weights by magnitude and keeps the
rest in 3 bits, and is repaired by soft prompts and by LoRA, with equal steps on equal text; learning rates were tuned
for each kind of arm, on other seeds. Every figure is the cost of held-out text after the first 16 tokens of a window,
which are what a prompt is chosen by.

The paper repairs 7B models and counts right answers of nine tasks. Its pool holds prompts of one mixture; beside it
stands a pool with one prompt for each kind of text, where there is more to choose. Beside its selector stand those that
tell whether choosing is worth anything: the best choice, the prompt that is best for all, chance, and the likelihood of
the context. LoRA is merged into the weights, so it costs no time at all, but the weights leave the 3-bit grid.
"""

import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.subjects import trained_on
from perplab.compression.prompts import DynamicPrompting, PromptConfig, PromptedConfig, prompt
from perplab.compression.prompts.rows import Rows
from perplab.models import LanguageModel
from perplab.models.anatomy import anatomy
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request
from perplab.text import Corpus, Document, open_corpus, token_store
from perplab.training import TrainConfig

_CORPUS = "builtin:python+cpp+docstrings"
_CONTEXT, _WINDOW = 16, 64
Floats = npt.NDArray[np.float64]
Figures = dict[str, float]

_PROMPT_RATE = 3e-2
_SINGLE_ARMS: Mapping[str, Mapping[str, object]] = {
    "single prompt": {"method": "single", "learning_rate": _PROMPT_RATE},
    "long prompt": {"method": "single", "length": (24,), "learning_rate": _PROMPT_RATE},
    "prefix tuning": {"method": "prefix", "learning_rate": 1e-1},
    "P-tuning": {"method": "ptuning", "learning_rate": 3e-3},
    "LoRA, rank 1": {"method": "lora", "rank": 1, "learning_rate": 1e-2},
    "LoRA, rank 16": {"method": "lora", "rank": 16, "learning_rate": 1e-2},
}
"""Arms that treat every text alike."""


class _Size(NamedTuple):
    """How large everything is at a scale."""

    text_bytes: int
    tokens: int
    layers: int
    width: int
    steps: int
    windows: int  # of each kind of text
    rounds: int  # of taking the time


_SIZES: Mapping[Scale, _Size] = {
    "smoke": _Size(600_000, 30_000, 2, 64, 3, 4, 1),
    "pocket": _Size(12_000_000, 2_000_000, 4, 128, 150, 128, 5),
    "gpu": _Size(50_000_000, 200_000_000, 12, 768, 2_000, 500, 5),
}


class _Read(NamedTuple):
    """Documents in memory, as a source of a corpus: what is installed would be listed anew by every arm."""

    chosen: tuple[Document, ...]

    def identity(self) -> str:
        return blake2b("\0".join(document.text for document in self.chosen).encode()).hexdigest()

    def approximate_bytes(self) -> int:
        return sum(len(document.text) for document in self.chosen)

    def documents(self) -> Iterator[Document]:
        return iter(self.chosen)


class _Windows(NamedTuple):
    """Held-out text: (windows, tokens) ids, and which kind each is of."""

    ids: torch.Tensor
    domain: list[str]


def measure(scale: Scale, seed: int, data: Path | None) -> Figures:
    """Costs of each arm, what selectors lose, how choices fall, sizes, times, and likeness to the dense model."""
    size = _SIZES[scale]
    corpus = Corpus(_CORPUS, "all", _Read(tuple(open_corpus(_CORPUS).limited(size.text_bytes))))
    dense = _dense(corpus, size, seed)
    dense.model.float().to("cuda" if scale == "gpu" else "cpu")
    compressed = _compressed(dense)
    windows = _heldout(corpus, dense, size)
    repair = partial(_repaired, compressed, corpus, size, seed)
    arms = {"dense": dense, "compressed": compressed, **{name: repair(**one) for name, one in _SINGLE_ARMS.items()}}
    figures = {f"{name}: nats": float(_costs(arm, windows).mean()) for name, arm in arms.items()}
    for name, arm in list(arms.items())[2:]:
        figures[f"{name}: parameters"] = float(arm.lineage.figures["trained_parameters"]) if arm.lineage else 0.0
        figures[f"{name}: likeness"] = _likeness(dense, arm, windows)
    figures["compressed: likeness"] = _likeness(dense, compressed, windows)
    for kind, slices in (("specialists", "domain"), ("same mixture", "mixed")):
        repaired = repair(slices=slices, selector="attention_calibrated", learning_rate=_PROMPT_RATE)
        pool = _pool_arms(repaired)
        figures |= _pool_figures(kind, repaired, pool, windows)
        arms |= {f"{kind}, {name}": arm for name, arm in pool.items()}
    timed = ("compressed", "single prompt", "LoRA, rank 16", "specialists, attention", "specialists, likelihood")
    return figures | _seconds({name: arms[name] for name in timed}, windows, size.rounds)


def _dense(corpus: Corpus, size: _Size, seed: int) -> LanguageModel:
    config = TrainConfig(
        num_hidden_layers=size.layers,
        hidden_size=size.width,
        vocab_size=1024,
        tokens=size.tokens,
        block_size=128,
        batch_tokens=4096,
        compile=False,
        evaluate_every=10**6,
        checkpoint_every=10**6,
        seed=seed,
    )
    return trained_on(corpus, config)


def _compressed(dense: LanguageModel) -> LanguageModel:
    """55 % of each matrix set to zero, the smallest first, and the rest rounded to 3 bits with a scale a row."""
    model = deepcopy(dense.model)
    matrices = [projection.matrix for block in anatomy(model).blocks for projection in block.projections.values()]
    with torch.no_grad():
        for weight in matrices:
            kept = weight.abs() > weight.abs().flatten().kthvalue(round(0.55 * weight.numel())).values
            scale = weight.abs().amax(dim=1, keepdim=True) / 3
            weight.copy_((weight / scale).round() * scale * kept)
    return dense.derive(model, "prune and round")


def _heldout(corpus: Corpus, language_model: LanguageModel, size: _Size) -> _Windows:
    """Equally many windows of each kind of text."""
    heldout = corpus.in_split("heldout")
    rows = Rows.of(token_store(heldout, language_model.tokenizer, progress=False), _WINDOW)
    ids, domain = [], []
    for name in sorted(rows.domains):
        ids.append(rows.of_domain(name).batch((0,), 0, size.windows))
        domain += [name] * size.windows
    return _Windows(torch.cat(ids).to(language_model.model.device), domain)


def _repaired(compressed: LanguageModel, corpus: Corpus, size: _Size, seed: int, **settings: object) -> LanguageModel:
    config = PromptConfig(
        steps=size.steps,
        row_tokens=_WINDOW,
        context_tokens=_CONTEXT,
        seed=seed,
        **settings,  # type: ignore[arg-type]
    )
    return prompt(compressed, corpus, config)


def _pool_arms(repaired: LanguageModel) -> dict[str, LanguageModel]:
    """One pool under every selector, and read all at once."""
    model = _prompted(repaired)
    choices: dict[str, dict[str, object]] = {
        "attention": {"selector": "attention"},
        "attention, last layer": {"selector": "attention", "layer": model.config.num_hidden_layers - 1},
        "attention, calibrated": {"selector": "attention_calibrated"},
        "likelihood": {"selector": "likelihood"},
    }
    arms = {name: model.choosing(**one) for name, one in choices.items()}
    joined = model.pool.concatenated()
    config = PromptedConfig.for_base(model.base, joined.lengths, selector="+".join(model.pool.names))
    arms["concatenated"] = DynamicPrompting(config, model.base_language_model, joined).eval()
    return {name: LanguageModel(arm, repaired.tokenizer) for name, arm in arms.items()}


def _pool_figures(kind: str, repaired: LanguageModel, arms: Mapping[str, LanguageModel], windows: _Windows) -> Figures:
    """Costs of one pool's arms; for each selector, what it loses and how its choices fall."""
    model = _prompted(repaired)
    names = model.config.prompt_names
    fixed = [LanguageModel(model.choosing(selector=name), repaired.tokenizer) for name in names]
    costs = np.stack([_costs(one, windows) for one in fixed], axis=1)
    best, chance = float(costs.min(1).mean()), float(costs.mean())
    figures = {
        f"{kind}, best choice: nats": best,
        f"{kind}, best for all: nats": float(costs.mean(0).min()),
        f"{kind}, chance: nats": chance,
        f"{kind}: parameters": float(model.pool.num_parameters),
    }
    for name, arm in arms.items():
        place, paid = f"{kind}, {name}", float(_costs(arm, windows).mean())
        figures[f"{place}: nats"] = paid
        if name != "concatenated":
            choice = _prompted(arm).choose(windows.ids[:, :_CONTEXT]).tolist()
            figures[f"{place}: regret"] = (paid - best) / (chance - best)
            figures[f"{place}: spread"] = _spread(choice, len(names))
            if set(names) == set(windows.domain):
                right = [names[number] == domain for number, domain in zip(choice, windows.domain, strict=True)]
                figures[f"{place}: own kind"] = float(np.mean(right))
    return figures


def _spread(choice: list[int], prompts: int) -> float:
    """Entropy of the choices, as a share of its largest value."""
    shares = np.bincount(choice, minlength=prompts) / len(choice)
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum() / np.log(prompts))


def _prompted(language_model: LanguageModel) -> DynamicPrompting:
    model = language_model.model
    if not isinstance(model, DynamicPrompting):
        raise TypeError(f"{type(model).__name__} reads no prompts")
    return model


def _costs(language_model: LanguageModel, windows: _Windows) -> Floats:
    """(windows,) mean nats a token of what follows each window's context."""
    rows = windows.ids.cpu().numpy().astype(np.int32)
    requests = [Request(row[:_CONTEXT], row[_CONTEXT:]) for row in rows]
    return np.array([scores["nll"].mean(dtype=np.float64) for scores in score_requests(language_model, requests)])


@torch.no_grad()
def _likeness(dense: LanguageModel, other: LanguageModel, windows: _Windows) -> float:
    """Mean cosine of both models' hidden states after the context, over layers and tokens."""
    found = []
    for ids in torch.split(windows.ids, 64):
        ours, theirs = (
            torch.stack(one.model(ids, output_hidden_states=True).hidden_states[1:]) for one in (dense, other)
        )
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
        found.append(cosine[..., _CONTEXT:].mean().item())
    return float(np.mean(found))


def _seconds(arms: Mapping[str, LanguageModel], windows: _Windows, rounds: int) -> Figures:
    """Seconds to continue one context by as many tokens as a window has left; of some rounds in turn, the median."""
    context = windows.ids[:1, :_CONTEXT]
    options = {"max_new_tokens": _WINDOW - _CONTEXT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm.model.generate(context, attention_mask=torch.ones_like(context), **options)
            taken[name].append(time.perf_counter() - started)
    return {f"{name}: seconds": float(np.median(seconds)) for name, seconds in taken.items()}


def _cheaper(metric: str, baseline: str, statement: str) -> Claim:
    return Claim(
        name=f"{metric}, against {baseline}",
        statement=statement,
        metric=f"{metric}: nats",
        baseline=f"{baseline}: nats",
        unit="nats a token",
    )


def _claims() -> Iterator[Claim]:
    yield _cheaper("single prompt", "compressed", "A soft prompt repairs part of what compression broke.")
    for kind in ("same mixture", "specialists"):
        chosen, where = f"{kind}, attention", f"in a pool of {kind}"
        yield _cheaper(chosen, "single prompt", f"Choosing by attention {where} beats one prompt.")
        yield _cheaper(chosen, f"{kind}, concatenated", f"Choosing {where} beats reading the whole pool.")
        yield _cheaper(chosen, f"{kind}, chance", f"Attention chooses better than chance {where}.")
        yield _cheaper(chosen, f"{kind}, best for all", f"(Control.) It beats the best one of them for all {where}.")
        yield _cheaper(f"{kind}, likelihood", chosen, f"(Control.) The context's likelihood chooses better {where}.")
    for baseline, statement in (
        ("LoRA, rank 16", "It repairs at least as well as LoRA with 21 times its parameters."),
        ("LoRA, rank 1", "(Control.) It repairs at least as well as LoRA of about its size."),
        ("prefix tuning", "It repairs better than prefix tuning."),
        ("P-tuning", "It repairs better than P-tuning."),
    ):
        yield _cheaper("specialists, attention", baseline, statement)
    yield _cheaper("single prompt", "long prompt", "(Control.) At equal steps 8 vectors repair as well as 24.")
    yield Claim(
        name="time against LoRA",
        statement="Continuing a text takes 60 % less time than with LoRA.",
        metric="specialists, attention: seconds",
        baseline="LoRA, rank 16: seconds",
        effect="ratio",
        unit="seconds",
        paper_value=0.4,
    )
    yield Claim(
        name="parameters against LoRA",
        statement="It has 21 times fewer parameters than LoRA.",
        metric="specialists: parameters",
        baseline="LoRA, rank 16: parameters",
        effect="ratio",
        paper_value=1 / 21,
    )
    yield Claim(
        name="likeness to the dense model",
        statement="A prompt takes the model further from the dense model's activations than LoRA does.",
        metric="single prompt: likeness",
        baseline="LoRA, rank 16: likeness",
        unit="cosine",
    )


PAPER = Paper(
    name="inference_time_dynamic_prompting",
    title="(Dynamic) prompting might be all you need to repair compressed LLMs",
    reference="arXiv 2310.00867",
    measure=measure,
    note=(
        "A decoder of 1 M parameters, pruned by 55 % and rounded to 3 bits, in place of 7B models in 3 bits; held-out "
        "cost in place of right answers. Prompts of 8 vectors, pools of three, 150 steps for every prompt and adapter. "
        "Prompts are scored at the positions they were trained at, without seeing one another. LoRA is merged, so its "
        "time is the model's own. A regret of 0 is the best choice for every window, 1 is chance."
    ),
    claims=tuple(_claims()),
)
