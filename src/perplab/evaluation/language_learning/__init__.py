"""How well a language is learned from its strings alone: measures, and learners that need no training or little.

`score_model` takes any causal LM over the letters of `perplab.text.synthetic.language_learning`, `score_predictor` any
function from an episode to distributions: in-context n-gram models, a learned mixture of their counts, Baum-Welch.
"""

from perplab.evaluation.language_learning.metrics import (
    Scores,
    divergence,
    entropy,
    is_legal,
    score_probabilities,
    total_variation,
)
from perplab.evaluation.language_learning.ngram import InContextNGram
from perplab.evaluation.language_learning.ngram_mixer import LearnedNGramMixer
from perplab.evaluation.language_learning.pair_hmm import PairHMM
from perplab.evaluation.language_learning.scoring import Predictor, model_probabilities, score_model, score_predictor

__all__ = [
    "InContextNGram",
    "LearnedNGramMixer",
    "PairHMM",
    "Predictor",
    "Scores",
    "divergence",
    "entropy",
    "is_legal",
    "model_probabilities",
    "score_model",
    "score_predictor",
    "score_probabilities",
    "total_variation",
]
