"""What training with few trained parameters is told."""

from dataclasses import dataclass
from typing import Literal

from perplab.errors import PerplabError

LowRankMethod = Literal["lora", "relora", "galore", "sst"]


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Settings of a low-rank method.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    method: LowRankMethod = "sst"
    """`lora`: a frozen weight plus a product of two thin matrices. `relora`: the same, merged and begun anew each
    iteration. `galore`: Adam on the gradient's projection. `sst`: a weight as its singular value decomposition."""
    rank: int = 16
    """Trained directions of a layer at a time."""
    iteration_steps: int = 200
    """Steps until directions are chosen anew (not lora)."""
    iteration_warmup: int = 20
    """Steps over which the learning rate rises again after such a choice (relora, sst)."""
    iterations_per_round: int | None = None
    """Iterations until weights are decomposed anew, by default as many as visit each direction about once (sst)."""
    singular_share: float = 0.5
    """Share of the drawing by singular values, the rest is uniform (sst)."""
    enhanced: bool = True
    """Leave the singular value out of its vectors' gradients (sst)."""
    projection_scale: float = 0.25
    """Factor on updates that come back from the projection (galore)."""
    seed: int = 0
    """Decides which directions are drawn, and the thin matrices' initial values."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("rank", "iteration_steps", "iterations_per_round"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PerplabError(f"{name} is {value}", "give 1 or more")
        if not 0 <= self.singular_share < 1:
            raise PerplabError(f"singular_share is {self.singular_share}", "give a share of at least 0 and below 1")
        if self.iteration_warmup < 0:
            raise PerplabError(f"iteration_warmup is {self.iteration_warmup}", "give 0 or more")
        if self.method in ("relora", "sst") and self.iteration_steps <= self.iteration_warmup:
            raise PerplabError(
                f"iteration_steps {self.iteration_steps} leave nothing after {self.iteration_warmup} steps of warm-up",
                "give iteration_warmup a smaller number, or iteration_steps a larger one",
            )
