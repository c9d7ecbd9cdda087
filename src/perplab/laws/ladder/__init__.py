"""A ladder of small training runs that laws are fitted on: a grid of shapes and token multipliers.

`run_ladder` trains what `LadderConfig` describes and gives the runs to fit and the runs to predict. It is imported
apart from the rest of `perplab.laws`, which does not need torch.
"""

from perplab.laws.ladder.config import Cell, LadderConfig, Shape
from perplab.laws.ladder.measuring import TaskErrors
from perplab.laws.ladder.runner import Ladder, run_ladder

__all__ = ["Cell", "Ladder", "LadderConfig", "Shape", "TaskErrors", "run_ladder"]
