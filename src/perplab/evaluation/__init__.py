"""Whether a model can do something: suites of tasks, and perplab as a model of lm-evaluation-harness.

`evaluate` runs the built-in tasks, whose items come from the documents of any corpus. `evaluate_with_harness` runs
tasks of lm-evaluation-harness from local files, and `perplab.evaluation.harness` is the model that it loads.
"""

from perplab.evaluation.harness_tasks import HarnessResult, evaluate_with_harness
from perplab.evaluation.items import Task, TaskItem
from perplab.evaluation.suite import EvaluateConfig, TaskResult, evaluate
from perplab.evaluation.tasks import TASKS

__all__ = [
    "TASKS",
    "EvaluateConfig",
    "HarnessResult",
    "Task",
    "TaskItem",
    "TaskResult",
    "evaluate",
    "evaluate_with_harness",
]
