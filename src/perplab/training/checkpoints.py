"""A run at rest: everything the next step depends on, in one folder that is there whole or not at all.

Decisions:
- `state.safetensors` holds weights, their average if the run keeps one, and optimiser moments in float32, unsharded, so
  that a run may resume on another number of processes; `state.json` holds the step, the data sampler's state and the
  running figures.
- Gathering and scattering the shards is `torch.distributed.checkpoint`'s; its own file format is pickled, so the bytes
  on disk are safetensors instead.
- Nothing random happens between steps, so no generator has a state beyond the sampler's.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel

from perplab.artifacts import atomic_folder, read_json, write_json
from perplab.errors import PerplabError
from perplab.training.averaging import WeightAverage
from perplab.training.distribution import Processes

_GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)


class RunState(NamedTuple):
    """What a checkpoint says beside the tensors."""

    step: int
    """Steps taken."""
    sampler: dict[str, Any]
    """State of the data sampler."""
    seconds: float
    """Time spent training so far."""
    heldout: dict[str, float]
    """The last held-out bits per byte by domain; empty before the first."""
    old: dict[str, float] = {}  # noqa: RUF012 (the default of a named tuple, never changed)
    """The same of old text, where the run has any."""


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    state: RunState,
    processes: Processes,
) -> None:
    """Write a checkpoint in the place of the previous one. All processes call; the first writes.

    Raises:
        PerplabError: the disk is full; the previous checkpoint is untouched.
    """
    weights, moments = full_weights(model), get_optimizer_state_dict(model, optimizer, options=_GATHERED)
    averaged = averaged_weights(model, average) if average.decay else {}
    if processes.first:
        tensors = _flat(model, weights, moments, averaged)
        with atomic_folder(folder) as temporary:
            _save_tensors(tensors, temporary / "state.safetensors")
            write_json(temporary / "state.json", state._asdict())
    processes.wait()


def load_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    mend: str = "delete the folder to start again, or restore it from a copy",
) -> RunState | None:
    """Put model and optimiser into the state of a checkpoint; None where there is no checkpoint yet.

    Args:
        folder: the checkpoint.
        model: takes its weights.
        optimizer: takes its moments.
        average: takes its averaged weights, if the run keeps them.
        mend: what to do about a checkpoint that cannot be used.

    Raises:
        PerplabError: the checkpoint is damaged, or of a model of another shape.
    """
    if not folder.exists():
        return None
    state = _read_state(folder / "state.json", mend)
    saved = _load_tensors(folder / "state.safetensors", mend)
    options = StateDictOptions(full_state_dict=True)
    moments: dict[str, Any] = get_optimizer_state_dict(model, optimizer)
    expected = _flat(model, model.state_dict(), moments, model.state_dict() if average.decay else {})
    if differing := sorted(expected.keys() ^ saved.keys()):
        raise PerplabError(f"{folder} does not fit this model ({differing[0]} is missing or not expected)", mend)
    if average.decay:
        set_model_state_dict(model, _weights_under("average.", saved, model), options=options)
        average.restart()
    set_model_state_dict(model, _weights_under("model.", saved, model), options=options)
    moments["state"] = {
        name: {key: saved[f"optimizer.{name}.{key}"] for key in state_of} for name, state_of in moments["state"].items()
    }
    set_optimizer_state_dict(model, optimizer, moments, options=options)
    return state


def _weights_under(prefix: str, saved: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Any]:
    """The state dict that was written under a prefix."""
    weights = {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
    return weights | {name: weights[source] for name, source in _tied(model).items()}


def full_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's state dict, unsharded, on the CPU. All processes call; only the first gets it, the others nothing."""
    weights: dict[str, Any] = get_model_state_dict(model, options=_GATHERED)
    return weights


def averaged_weights(model: PreTrainedModel, average: WeightAverage) -> dict[str, Tensor]:
    """The same for the average of the weights: copies, because the model has its own weights back afterwards."""
    with average.in_place():
        return {name: tensor.clone() for name, tensor in full_weights(model).items()}


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names of tensors that are another one's: they are written once."""
    return getattr(model, "all_tied_weights_keys", {})


def _flat(
    model: PreTrainedModel, weights: dict[str, Tensor], moments: dict[str, Any], averaged: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Weights, their average and optimiser state by the names they have on disk."""
    tied = _tied(model)
    tensors = {f"model.{name}": tensor for name, tensor in weights.items() if name not in tied}
    tensors |= {f"average.{name}": tensor for name, tensor in averaged.items() if name not in tied}
    for name, state_of in moments["state"].items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state_of.items()}
    return tensors


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _read_state(path: Path, mend: str) -> RunState:
    try:
        return RunState(**read_json(path, mend))
    except TypeError as error:
        raise PerplabError(f"{path} is not the state of a run ({error})", mend) from error


def _load_tensors(path: Path, mend: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise PerplabError(f"{path} cannot be read ({error})", mend) from error
