"""Several processes, applied to a model from outside.

Decisions:
- `torchrun` starts the processes and its environment variables say so; without it there is one, and nothing here acts.
- Parameters, gradients and optimiser state are sharded with FSDP2, block by block; weights stay float32 in the shards.
- Every process draws the same global batch and takes its own rows of it, so the data does not depend on their number.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Processes:
    """The processes of a run and which of them this is.

    Args:
        rank: this process, from 0.
        number: how many there are.
        device: where this process computes.
    """

    rank: int
    number: int
    device: torch.device

    @classmethod
    def join(cls) -> "Processes":
        """Join the processes `torchrun` started, or stand alone."""
        number = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
        if number > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(int(os.environ.get("RANK", "0")), number, device)

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def shard(self, model: "PreTrainedModel") -> None:
        """Shard the model's parameters over the processes, in place."""
        if self.number == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.number,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if hasattr(model, "token_losses"):
            register_fsdp_forward_method(model, "token_losses")

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes, in place."""
        if self.number > 1:
            torch.distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.number > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """Leave the group that `join` entered."""
        if self.number > 1:
            torch.distributed.destroy_process_group()
