"""Ways to choose the codes of a layer's weight on a grid, by name.

`SOLVERS[name](**settings).solve(weight, moments, grid_options)` gives a `Solution`.
"""

from perplab.compression.solvers.awq import AWQ
from perplab.compression.solvers.gptq import GPTQ
from perplab.compression.solvers.llm_int8 import LLMInt8
from perplab.compression.solvers.problem import InputMoments, Solution, Solver, relative_error
from perplab.compression.solvers.quantease import QuantEase
from perplab.compression.solvers.quantease_outliers import QuantEaseOutliers
from perplab.compression.solvers.rtn import RoundToNearest
from perplab.compression.solvers.spqr import SpQR

SOLVERS: dict[str, type[Solver]] = {
    "rtn": RoundToNearest,
    "gptq": GPTQ,
    "awq": AWQ,
    "spqr": SpQR,
    "quantease": QuantEase,
    "quantease-outliers": QuantEaseOutliers,
    "llm-int8": LLMInt8,
}

__all__ = [
    "AWQ",
    "GPTQ",
    "SOLVERS",
    "InputMoments",
    "LLMInt8",
    "QuantEase",
    "QuantEaseOutliers",
    "RoundToNearest",
    "Solution",
    "Solver",
    "SpQR",
    "relative_error",
]
