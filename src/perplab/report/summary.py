"""Headline figures: what a reader in a hurry takes away."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perplab.report.parts import Card, CardFigure, between, number, percentage
from perplab.report.subject import Subject
from perplab.scoring import TokenScores
from perplab.scoring.bootstrap import PairedDifference, resampled_ratios
from perplab.scoring.comparison import ScoreComparison
from perplab.scoring.perplexity import perplexity
from perplab.scoring.tables import Grouping, group_sums


@dataclass(frozen=True)
class Summary:
    """The first section of the page.

    Attributes:
        sentence: the verdict on two models in words; empty for one.
        cards: headline figures.
    """

    sentence: str
    cards: Sequence[Card]


def summary(subjects: Sequence[Subject], comparison: ScoreComparison | None = None, *, seed: int = 0) -> Summary:
    """The headline figures of one model, or of two with their difference.

    Args:
        subjects: one, or two on the same documents.
        comparison: of the two; None where one document tells no interval.
        seed: of the bootstrap.
    """
    found = [(subject.name if len(subjects) > 1 else "", subject.scores) for subject in subjects]
    costs = [(name, perplexity(scores, seed=seed)) for name, scores in found]
    per_byte = [
        CardFigure(name, number(cost.bits_per_byte, 3), between(cost.bits_per_byte_interval, 3)) for name, cost in costs
    ]
    per_token = [CardFigure(name, number(cost.value, 2), between(cost.interval, 2)) for name, cost in costs]
    if comparison:
        bits, ratio = comparison.bits_per_byte, comparison.perplexity_ratio
        per_byte.append(CardFigure("Difference", *_signed(bits)))
        per_token.append(CardFigure("Ratio, over the same text", number(ratio.value, 3), between(ratio.interval, 3)))
    guesses = [_first_guesses(name, scores, seed) for name, scores in found]
    sizes = [CardFigure(name, f"{cost.num_tokens:,}") for name, cost in costs]
    text = f"{costs[0][1].num_bytes:,} bytes in {costs[0][1].num_documents:,} documents."
    cards = [
        Card("Bits per byte", per_byte, "Cost of a byte of text, whatever the tokenizer. Less is better."),
        Card("Perplexity of a token", per_token, "Exponentiated mean cost of a token; it depends on the tokenizer."),
        Card("First guess right", guesses, "Tokens that were the likeliest of the whole vocabulary."),
        Card("Tokens", sizes, text),
    ]
    return Summary(_sentence([subject.name for subject in subjects], comparison), cards)


def _signed(difference: PairedDifference) -> tuple[str, str]:
    return number(difference.value, 4, signed=True), between(difference.interval, 4, signed=True)


def _first_guesses(name: str, scores: TokenScores, seed: int) -> CardFigure:
    """Share of tokens of rank 1."""
    everything = Grouping([name], np.zeros(len(scores.nll), dtype=np.int64))
    is_first = scores.tokens["rank"].to_numpy() == 1
    right, tokens = (group_sums(scores, everything, values) for values in (is_first, np.ones(len(is_first))))
    (ratio,) = resampled_ratios(100 * right, tokens, seed=seed)
    return CardFigure(name, percentage(float(is_first.mean())), between(ratio.interval() if ratio else None, 1))


def _sentence(names: Sequence[str], comparison: ScoreComparison | None) -> str:
    if len(names) == 1:
        return ""
    first, second = names
    if comparison is None:
        return f"One document tells no interval for the difference between {second} and {first}."
    bits = comparison.bits_per_byte
    value, interval = bits.value, bits.interval
    chance = "p < 0.001" if bits.p_value < 0.001 else f"p = {bits.p_value:.3f}"
    if interval.low <= 0 <= interval.high:
        return (
            f"This text does not tell {second} and {first} apart: they differ by {number(value, 4, signed=True)} bits "
            f"per byte, and the 95 % interval from {between(interval, 4, signed=True)} holds 0 ({chance}, paired by "
            "document)."
        )
    least, most = sorted((abs(interval.low), abs(interval.high)))
    return (
        f"{second} costs {number(abs(value), 4)} bits per byte {'more' if value > 0 else 'less'} than {first}: between "
        f"{number(least, 4)} and {number(most, 4)} with 95 % confidence ({chance}, paired by document)."
    )
