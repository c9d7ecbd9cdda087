"""Random languages whose probabilities are known exactly: every conditional, every likelihood, and the entropy.

One object gives training data, the loss that no model can go below, and labels that nobody told the model.
"""

from perplab.text.synthetic.languages.corpus import language_characters, language_corpus
from perplab.text.synthetic.languages.dyck import Dyck
from perplab.text.synthetic.languages.hmm import HMM
from perplab.text.synthetic.languages.language import Context, Entropy, Language
from perplab.text.synthetic.languages.log_bilinear import LogBilinear
from perplab.text.synthetic.languages.pcfg import PCFG

__all__ = [
    "HMM",
    "PCFG",
    "Context",
    "Dyck",
    "Entropy",
    "Language",
    "LogBilinear",
    "language_characters",
    "language_corpus",
]
