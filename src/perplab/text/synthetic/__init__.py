"""Text whose truth is known: a small world drawn from a seed, documents about it, and questions with right answers.

`World(seed)` is what is true, `world_corpus` is text to train on, and `generated_tasks` asks about the same world what
no training document answers word for word. A model of a hundred thousand parameters learns it in a minute.
"""

from perplab.text.synthetic.corpus import generated_tasks, world_corpus
from perplab.text.synthetic.items import ChoiceItem, Constraint, GroupItem, InstructionItem, WritingItem
from perplab.text.synthetic.tasks import GeneratedTask
from perplab.text.synthetic.world import World

__all__ = [
    "ChoiceItem",
    "Constraint",
    "GeneratedTask",
    "GroupItem",
    "InstructionItem",
    "World",
    "WritingItem",
    "generated_tasks",
    "world_corpus",
]
