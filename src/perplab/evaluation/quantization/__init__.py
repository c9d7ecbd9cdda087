"""What compression costs a model: every method at every number of bits, in knowledge, alignment and efficiency.

`run_grid` measures a model and its compressed forms, `grid_table` sets them beside one another, and `proxy_correlation`
says whether perplexity could have stood in for the rest.

The protocol is that of Jin et al., "A Comprehensive Evaluation of Quantization Strategies for Large Language Models".
"""

from perplab.evaluation.quantization.effective_bits import EffectiveBits, effective_bits
from perplab.evaluation.quantization.generation_speed import GenerationSpeed, measure_generation
from perplab.evaluation.quantization.grid import Cell, CellResult, Grid, cells_of, run_grid
from perplab.evaluation.quantization.measurements import Measurement
from perplab.evaluation.quantization.proxy import ProxyCorrelation, proxy_correlation
from perplab.evaluation.quantization.table import GridTable, grid_table

__all__ = [
    "Cell",
    "CellResult",
    "EffectiveBits",
    "GenerationSpeed",
    "Grid",
    "GridTable",
    "Measurement",
    "ProxyCorrelation",
    "cells_of",
    "effective_bits",
    "grid_table",
    "measure_generation",
    "proxy_correlation",
    "run_grid",
]
