"""The built-in tasks, one file each. They need no download: their items come from the documents of any corpus."""

from perplab.evaluation.items import Task
from perplab.evaluation.tasks.brackets import Brackets
from perplab.evaluation.tasks.continuation import Continuation
from perplab.evaluation.tasks.identifiers import Identifiers
from perplab.evaluation.tasks.last_word import LastWord

TASKS: dict[str, Task] = {task.name: task for task in (LastWord(), Continuation(), Brackets(), Identifiers())}

__all__ = ["TASKS"]
