"""Text with its costs as colours: cheap tokens plain, dear ones from yellow to red.

Tokens of a byte-level vocabulary may end inside a character; such tokens are drawn together with their neighbours up to
the next whole character, in the colour of the dearest.
"""

from typing import Any

from rich.text import Text

from perplab.scoring import TokenScores

_STEPS = ((1.0, ""), (3.0, "black on #fff3bf"), (6.0, "black on #ffd43b"), (9.0, "black on #ff922b"))
_DEAREST = "white on #e03131"


def coloured_costs(scores: TokenScores, tokenizer: Any) -> Text:
    """The scored text, each token on the colour of its cost in nats."""
    drawn = Text()
    waiting: list[int] = []
    dearest = 0.0
    for token_id, nll in zip(scores.tokens["token_id"].to_pylist(), scores.nll.tolist(), strict=True):
        waiting.append(token_id)
        dearest = max(dearest, nll)
        piece = tokenizer.decode(waiting)
        if not piece.endswith("\ufffd"):
            drawn.append(piece, style=_style(dearest))
            waiting, dearest = [], 0.0
    return drawn


def legend() -> Text:
    """The colours and the nats they stand for."""
    drawn = Text("nats: ")
    for limit, style in _STEPS:
        drawn.append(f" < {limit:g} ", style=style)
    return drawn.append(" more ", style=_DEAREST)


def _style(nll: float) -> str:
    return next((style for limit, style in _STEPS if nll < limit), _DEAREST)
