"""Few-shot choices: five shots and four choices against lm-evaluation-harness.

The same weights in bfloat16 and the same requests on both sides: five examples, a question, four choices of about ten
tokens. lm-eval's `hf` backend reads the whole context again for each choice; perplab reads what requests share once.
The examples are the same for every question, as in tasks whose shots are fixed, or drawn anew for each. lm-eval runs
with the best of the batch sizes 1, 4 and 16. Answers of both sides are compared before anything is timed.

`of ideal` is perplab's gain over its own reading of every request by itself, as a share of k(C + a) / (C + ka) for a
context of C tokens and k choices of a tokens; with the same shots for all questions, sharing goes further than that.
Medians of 3 runs taken in turn. Goals: 8 times lm-eval, 0.7 of the ideal.
"""

from typing import Any

import numpy as np

from measuring import in_new_process, interleaved
from perplab.evaluation.harness import PerplabLM
from perplab.models import LanguageModel
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request
from scorers import MODELS, best_harness, instances, texts_of_lengths

BATCH_SIZES = (1, 4, 16)
SHOTS, CHOICES = 5, 4
SHOT_TOKENS = {"pocket, 5.6 M": 75, "Llama, 110 M": 100}
CHOICE_TOKENS = 10
QUESTIONS = {"pocket, 5.6 M": 30, "Llama, 110 M": 6}
REPETITIONS = 3


def measure(quick: bool) -> list[dict[str, Any]]:
    names = list(MODELS)[:1] if quick else list(MODELS)
    return [
        in_new_process(compare, name, shots, 4 if quick else QUESTIONS[name], 1 if quick else REPETITIONS)
        for name in names
        for shots in ("the same", "drawn anew")
    ]


def compare(name: str, shots: str, questions: int, repetitions: int) -> dict[str, Any]:
    language_model = MODELS[name]()
    pairs = question_pairs(language_model, shots, questions, SHOT_TOKENS[name])
    requests = instances("loglikelihood", pairs)
    ours = PerplabLM(language_model)
    theirs = best_harness(language_model, BATCH_SIZES, lambda side: side.loglikelihood(requests, disable_tqdm=True))
    answers = [side.loglikelihood(requests, disable_tqdm=True) for side in (ours, theirs)]
    np.testing.assert_allclose(*([nll for nll, _ in side] for side in answers), rtol=0.03)
    alone, context_tokens, choice_tokens = unshared(ours, pairs)
    sides = {
        "perplab": lambda: ours.loglikelihood(requests, disable_tqdm=True),
        "unshared": lambda: list(score_requests(language_model, alone, ("nll", "top_token"))),
        "lm-eval": lambda: theirs.loglikelihood(requests, disable_tqdm=True),
    }
    seconds = {side: taken.median for side, taken in interleaved(sides, repetitions, warm_up=1).items()}
    ideal = CHOICES * (context_tokens + choice_tokens) / (context_tokens + CHOICES * choice_tokens)
    gain = seconds["unshared"] / seconds["perplab"]
    return {
        "model": name,
        "shots": shots,
        "context tokens": context_tokens,
        "choice tokens": choice_tokens,
        **{f"{side} requests/s": len(pairs) / seconds[side] for side in ("perplab", "lm-eval")},
        "lm-eval batch": theirs.batch_size,
        "x lm-eval": seconds["lm-eval"] / seconds["perplab"],
        "x unshared": gain,
        "ideal": ideal,
        "of ideal": gain / ideal,
    }


def question_pairs(language_model: LanguageModel, shots: str, questions: int, tokens: int) -> list[tuple[str, str]]:
    """(context, choice) for every choice of every question, in lm-eval's order."""
    number = SHOTS if shots == "the same" else SHOTS * questions
    pieces = texts_of_lengths(language_model, [tokens] * (number + questions) + [CHOICE_TOKENS] * CHOICES * questions)
    pieces = [" ".join(piece.split()) for piece in pieces]
    pairs = []
    for question in range(questions):
        first = 0 if shots == "the same" else SHOTS * question
        context = "\n\n".join([*pieces[first : first + SHOTS], pieces[number + question]])
        begin = number + questions + CHOICES * question
        pairs += [(context, f" {choice}") for choice in pieces[begin : begin + CHOICES]]
    return pairs


def unshared(ours: PerplabLM, pairs: list[tuple[str, str]]) -> tuple[list[Request], float, float]:
    """The requests in an order in which no neighbours share a beginning, and mean lengths of context and choice."""
    encoded = [ours._encode_pair(context, choice) for context, choice in pairs]
    requests = [Request(np.array(c, dtype=np.int32), np.array(a, dtype=np.int32)) for c, a in encoded]
    limit = ours.max_length
    requests = [Request(r.context[-(limit + 1 - len(r.continuation)) :], r.continuation) for r in requests]
    shuffled = [Request(np.roll(r.context, number), r.continuation) for number, r in enumerate(requests)]
    lengths = np.array([(len(r.context), len(r.continuation)) for r in requests], dtype=float).mean(axis=0)
    return shuffled, float(lengths[0]), float(lengths[1])
