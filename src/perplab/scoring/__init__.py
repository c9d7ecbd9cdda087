"""What every token costs: scores of tokens, their sums, and the baselines that need no neural network."""

from perplab.scoring.text_scores import score
from perplab.scoring.token_scores import TokenScores

__all__ = ["TokenScores", "score"]
