"""Settings of `perplab quantize`."""

from dataclasses import dataclass
from typing import Literal

from perplab.errors import PerplabError

Method = Literal["rtn", "gptq", "awq", "spqr", "quantease", "llm-int8"]
LOWEST_BITS, HIGHEST_BITS = 2, 8
UNCALIBRATED = ("rtn", "llm-int8")
"""Methods that can do without calibration text."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How to round weights.

    Raises:
        PerplabError: a value that cannot be meant, named with what to give instead.
    """

    method: Method = "quantease"
    """Solver: which rounding of each layer is looked for."""
    bits: int = 4
    """Bits a weight, 2 to 8."""
    group_size: int | None = None
    """Columns that share a scale; by default a whole row does. 16 for spqr."""
    symmetric: bool = False
    """Keep zero in the middle of the grid: no zero points are stored."""
    range: Literal["minmax", "percentile", "mse"] = "minmax"
    """How far the grid reaches: to the extremes, to a percentile, or where the rounding error is least."""
    act_order: bool = False
    """Visit columns by falling size of their inputs (gptq, quantease)."""
    start: Literal["weights", "rtn", "gptq"] = "gptq"
    """Where coordinate descent starts (quantease)."""
    sweeps: int = 30
    """Passes of coordinate descent (quantease)."""
    outliers: float = 0.0
    """Share of the weights that stay as they are (quantease)."""
    outlier_columns: bool = False
    """Let whole columns stay, not single weights (quantease)."""
    threshold: float | None = None
    """What counts as an outlier: a relative error (spqr, 0.2), a magnitude of the inputs (llm-int8, 6)."""
    damping: float = 0.01
    """Share of the second moment's mean diagonal that is added to it (gptq)."""
    sequential: bool = False
    """Inside a block, let each layer's calibration see the layers before it rounded: four passes in place of one."""
    windows: int = 128
    """Windows of calibration text."""
    length: int | None = None
    """Tokens a window; by default as many as the model has positions, at most 2,048."""
    layers: str = ""
    """Regular expression: round only layers whose path it matches. By default all layers inside the blocks."""
    seed: int = 0
    """Decides which windows are drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not LOWEST_BITS <= self.bits <= HIGHEST_BITS:
            raise PerplabError(f"bits is {self.bits}", f"give {LOWEST_BITS} to {HIGHEST_BITS}")
        if self.method == "llm-int8" and self.bits != HIGHEST_BITS:
            raise PerplabError(f"llm-int8 with {self.bits} bits", "give 8 bits, or another method")
        if self.group_size is not None and self.group_size < 1:
            raise PerplabError(f"group_size is {self.group_size}", "give 1 or more, or leave it out for whole rows")
        for name in ("sweeps", "windows"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")
        if self.length is not None and self.length < 2:
            raise PerplabError(f"length is {self.length}", "give 2 or more")
        if not 0 <= self.outliers <= 1:
            raise PerplabError(f"outliers is {self.outliers}", "give a share from 0 to 1")
        if self.outliers and self.method != "quantease":
            raise PerplabError(f"{self.method} takes no share of outliers", "use quantease, or spqr with a threshold")
        if self.damping < 0:
            raise PerplabError(f"damping is {self.damping}", "give 0 or more")
