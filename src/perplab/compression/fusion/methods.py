"""The methods by name, each a `Reduction`.

- ShortGPT ranks once and removes; SLEB ranks by the loss after each removal. Both are rounds without training.
- LoRA recovery is FuseGPT without donors: criterion, groups, losses and learning rate are the same.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from perplab.compression.fusion.config import FuseConfig, Method
from perplab.compression.fusion.grafting import remove_one_by_one
from perplab.compression.fusion.laco import laco
from perplab.compression.fusion.mka import mka
from perplab.compression.fusion.reduction import Figures, Reduction, Watch
from perplab.compression.fusion.slicing import slicegpt


def shortgpt(
    model: PreTrainedModel, windows: torch.Tensor, config: FuseConfig, watch: Watch, checkpoint: Path | None = None
) -> tuple[PreTrainedModel, Figures]:
    """Remove the blocks of the lowest block influence, all by one ranking (Men et al., arXiv 2403.03853)."""
    settings = replace(config, criterion="block_influence", rescore=False, epochs=0)
    return remove_one_by_one(model, windows, settings, watch, checkpoint, donors=False)


def sleb(
    model: PreTrainedModel, windows: torch.Tensor, config: FuseConfig, watch: Watch, checkpoint: Path | None = None
) -> tuple[PreTrainedModel, Figures]:
    """Remove the block without which text costs least, again and again (Song et al., arXiv 2402.09025)."""
    settings = replace(config, criterion="sleb_loss", rescore=True, epochs=0)
    return remove_one_by_one(model, windows, settings, watch, checkpoint, donors=False)


METHODS: dict[Method, Reduction] = {
    "fuse": partial(remove_one_by_one, donors=True),
    "lora": partial(remove_one_by_one, donors=False),
    "shortgpt": shortgpt,
    "sleb": sleb,
    "laco": laco,
    "mka": mka,
    "slicegpt": slicegpt,
}
