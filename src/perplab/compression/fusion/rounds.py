"""What a run of rounds has done so far, in one folder that is there whole or not at all.

- Tensors are what rounds changed: what is trained in the blocks that are left, and the blocks that left, which may have
  absorbed others before. Everything else is the original model's.
- `rounds.json` tells the rounds, from which the shape of the fused model follows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from perplab.artifacts import atomic_folder, read_json, write_json
from perplab.compression.fusion.reduction import Figures
from perplab.errors import PerplabError
from perplab.models.families import family_of

_MEND = "delete the folder to start again"


@dataclass(frozen=True)
class Round:
    """One removal.

    Attributes:
        block: that left, by its number in the original model.
        scores: by which it was chosen, of blocks by their number as a string; the lowest that may go goes.
        seconds: it took.
        loss_before: of the group without the block, before training; None where nothing was trained.
        loss_after: the same after training.
    """

    block: int
    scores: dict[str, float]
    seconds: float
    loss_before: float | None = None
    loss_after: float | None = None

    def figures(self) -> Figures:
        """What a lineage says of the round."""
        told: dict[str, float | None] = {
            "block": self.block,
            "score": self.scores[str(self.block)],
            "loss before": self.loss_before,
            "loss after": self.loss_after,
            "seconds": self.seconds,
        }
        scores = {f"score of block {index}": score for index, score in self.scores.items()}
        return {name: value for name, value in (told | scores).items() if value is not None}


def write_rounds(folder: Path, model: PreTrainedModel, rounds: Sequence[Round]) -> None:
    """Write the rounds and what they changed in `model`, in the place of what the folder held.

    Raises:
        PerplabError: the folder cannot be written; what it held is untouched.
    """
    with atomic_folder(folder) as temporary:
        write_json(temporary / "rounds.json", [asdict(one) for one in rounds])
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in _changed(model, rounds)}, temporary / "state.safetensors"
            )
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_rounds(folder: Path) -> list[Round]:
    """The rounds in a folder; none where there is no folder.

    Raises:
        PerplabError: what the folder holds is no record of rounds.
    """
    if not folder.exists():
        return []
    path = folder / "rounds.json"
    told: Any = read_json(path, _MEND)
    try:
        return [Round(**one) for one in told]
    except TypeError as error:
        raise PerplabError(f"{path} is no record of rounds ({error})", _MEND) from error


def read_changes(folder: Path, model: PreTrainedModel, rounds: Sequence[Round]) -> None:
    """Put what rounds changed into a model in which they were repeated without training.

    Raises:
        PerplabError: the file is damaged, or of another model.
    """
    path = folder / "state.safetensors"
    try:
        saved = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PerplabError(f"{path} cannot be read ({error})", _MEND) from error
    changed = dict(_changed(model, rounds))
    if _shapes(changed) != _shapes(saved):
        raise PerplabError(f"{path} does not fit this model", _MEND)
    for name, tensor in changed.items():
        tensor.copy_(saved[name])


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _changed(model: PreTrainedModel, rounds: Sequence[Round]) -> Iterator[tuple[str, torch.Tensor]]:
    blocks = family_of(model.config).blocks
    gone = tuple(f"{blocks}.{done.block}." for done in rounds)
    for name, parameter in model.named_parameters():
        trained = ".parametrizations." in name and not name.endswith(".original")
        if trained or name.startswith(gone):
            yield name, parameter.detach()
