"""`fuse`: a model of fewer blocks, as a plain checkpoint.

- The model that is given is not changed.
- Where a folder is given, a killed run continues at the round it was in, and a folder of another run is refused.
- Every block chosen, its scores and the losses of its neighbours are figures of the lineage.
"""

import copy
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from perplab.compression.calibration import calibration_windows
from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.methods import METHODS
from perplab.compression.fusion.reduction import Watch
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.position_limit import position_limit
from perplab.text import Corpus, Document
from perplab.training.distribution import Processes
from perplab.training.run_folder import RunFolder

_LENGTH = 512


def fuse(
    language_model: LanguageModel,
    calibration: Corpus | Iterable[Document],
    config: FuseConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> LanguageModel:
    """Make a model with fewer blocks (for slicegpt, a narrower one).

    Args:
        language_model: the model; it is not changed.
        calibration: text that ranks blocks and trains their neighbours; not the text to measure on.
        config: method, rate and settings.
        out: folder for the finished model and for what a killed run needs to continue; None keeps it in memory.
        watch: told what is being done, how much is done, and how much there is.

    Returns:
        The smaller model. Its lineage's figures tell blocks and parameters before and after, and for each round the
        block, all scores, the losses of the group and the seconds.

    Raises:
        PerplabError: a family or setting that the method cannot serve, too little text, or a folder of another run.
    """
    config = config or FuseConfig()
    watch = watch or (lambda what, done, total: None)
    if out is None:
        return _reduced(language_model, _windows(language_model, calibration, config), config, watch, None)
    folder = RunFolder(Path(out), Processes(rank=0, number=1, device=torch.device(language_model.model.device)))
    with folder.alone():
        windows = _windows(language_model, calibration, config)
        folder.remember(_identity(language_model, windows, config))
        smaller = _reduced(language_model, windows, config, watch, folder.checkpoint)
        folder.publish(smaller)
    smaller.path = Path(out)
    return smaller


def _reduced(
    language_model: LanguageModel, windows: torch.Tensor, config: FuseConfig, watch: Watch, checkpoint: Path | None
) -> LanguageModel:
    dense = language_model.model
    model, figures = METHODS[config.method](copy.deepcopy(dense).eval(), windows, config, watch, checkpoint)
    sizes = {
        "blocks before": dense.config.num_hidden_layers,
        "blocks": model.config.num_hidden_layers,
        "parameters before": dense.num_parameters(),
        "parameters": model.num_parameters(),
    }
    model.requires_grad_(True)
    return language_model.derive(model, "fuse", config=asdict(config), seed=config.seed, figures=sizes | figures)


def _windows(
    language_model: LanguageModel, calibration: Corpus | Iterable[Document], config: FuseConfig
) -> torch.Tensor:
    """(windows, length) of calibration tokens, where the model is."""
    model, length = language_model.model, _length(config, language_model.model)
    return calibration_windows(
        calibration, language_model.tokenizer, windows=config.windows, length=length, seed=config.seed
    ).to(model.device)


def _length(config: FuseConfig, model: PreTrainedModel) -> int:
    """Tokens a window; the model may have no limit of positions."""
    most = position_limit(model.config)
    if config.length is None:
        return min(_LENGTH, most or _LENGTH)
    if most is not None and config.length > most:
        raise PerplabError(f"length is {config.length} and the model has {most} positions", f"give {most} or less")
    return config.length


def _identity(language_model: LanguageModel, windows: torch.Tensor, config: FuseConfig) -> dict[str, Any]:
    """What decides the result of a run."""
    calibration = hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest()
    return {"model": language_model.fingerprint, "calibration": calibration, **asdict(config)}
