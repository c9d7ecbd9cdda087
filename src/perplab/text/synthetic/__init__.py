"""Text whose truth is known: a small world drawn from a seed, documents about it, and questions with right answers.

`World(seed)` is what is true, `world_corpus` is text to train on, and `generated_tasks` asks about the same world what
no training document answers word for word. A model of a hundred thousand parameters learns it in a minute.
`language_learning_episodes` are strings of random regular languages, whose next symbol has a known distribution.
`HMM`, `PCFG`, `Dyck` and `LogBilinear` are languages with exact conditionals and entropies; `language_corpus` is their
text.
"""

from perplab.text.synthetic.automata import Automaton, sample_automaton
from perplab.text.synthetic.corpus import generated_tasks, world_corpus
from perplab.text.synthetic.items import ChoiceItem, Constraint, GroupItem, InstructionItem, WritingItem
from perplab.text.synthetic.language_learning import (
    Episodes,
    LanguageLearningConfig,
    data_card,
    language_learning_episodes,
)
from perplab.text.synthetic.languages import HMM, PCFG, Dyck, Language, LogBilinear, language_corpus
from perplab.text.synthetic.recall_tasks import (
    compression,
    fuzzy_recall,
    in_context_recall,
    induction,
    memorization,
    mqar,
    noisy_recall,
    selective_copy,
)
from perplab.text.synthetic.tasks import GeneratedTask
from perplab.text.synthetic.world import World

__all__ = [
    "HMM",
    "PCFG",
    "Automaton",
    "ChoiceItem",
    "Constraint",
    "Dyck",
    "Episodes",
    "GeneratedTask",
    "GroupItem",
    "InstructionItem",
    "Language",
    "LanguageLearningConfig",
    "LogBilinear",
    "World",
    "WritingItem",
    "compression",
    "data_card",
    "fuzzy_recall",
    "generated_tasks",
    "in_context_recall",
    "induction",
    "language_corpus",
    "language_learning_episodes",
    "memorization",
    "mqar",
    "noisy_recall",
    "sample_automaton",
    "selective_copy",
    "world_corpus",
]
