"""What every method of making a model smaller is: one signature, so that methods can be exchanged and compared."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from perplab.compression.fusion.config import FuseConfig

Figures = dict[str, float]
"""What was chosen and measured, by name."""

Watch = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and how much there is."""

Reduction = Callable[[PreTrainedModel, torch.Tensor, FuseConfig, Watch, Path | None], tuple[PreTrainedModel, Figures]]
"""From a model, which may be changed, windows (windows, length) of calibration tokens, settings, a watcher and a folder
for checkpoints (None keeps none) to the smaller model and figures."""


def batches_of(windows: torch.Tensor, batch: int) -> list[torch.Tensor]:
    """Windows cut into as few batches of at most `batch` as possible, which differ by at most one in size."""
    return list(torch.tensor_split(windows, -(-len(windows) // batch)))
