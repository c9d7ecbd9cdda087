"""Scaling laws: from small training runs, what a larger or longer one will cost and reach.

`OverTrainingLaw`, `ChinchillaLaw` and `PowerLaw` predict the loss of a run, `DownstreamErrorLaw` the error over tasks
from a loss, `chain` the one through the other; `plan` chooses the run; `leave_one_out` and `residual_bootstrap` say how
far to trust it. The ladder of runs to fit is made by `perplab.laws.ladder`, which needs torch and is imported apart.
"""

from perplab.laws.assessment import Assessment, assess
from perplab.laws.baselines import StraightLine, error_baselines, loss_baselines
from perplab.laws.chinchilla import ChinchillaLaw
from perplab.laws.downstream import DownstreamErrorLaw, chain
from perplab.laws.kinds import read_law
from perplab.laws.law import LawWarning
from perplab.laws.planner import plan
from perplab.laws.plots import plot_law
from perplab.laws.resampling import leave_one_out, predict_runs, relative_error, residual_bootstrap
from perplab.laws.run_files import read_runs
from perplab.laws.runs import Run, Runs
from perplab.laws.scaling import OverTrainingLaw, PowerLaw
from perplab.laws.testbed import read_testbed

__all__ = [
    "Assessment",
    "ChinchillaLaw",
    "DownstreamErrorLaw",
    "LawWarning",
    "OverTrainingLaw",
    "PowerLaw",
    "Run",
    "Runs",
    "StraightLine",
    "assess",
    "chain",
    "error_baselines",
    "leave_one_out",
    "loss_baselines",
    "plan",
    "plot_law",
    "predict_runs",
    "read_law",
    "read_runs",
    "read_testbed",
    "relative_error",
    "residual_bootstrap",
]
