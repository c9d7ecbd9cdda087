"""Training a few numbers beside a frozen model.

- AdamW without decay; the learning rate falls from its largest value to nothing along half a cosine.
- Gradients are taken for the trained numbers alone: nothing of the model is written, not even a gradient.
- A checkpoint holds the numbers, their moments and the losses so far. As a step's text depends on its number alone,
  what is resumed ends in the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from perplab.artifacts import atomic_file
from perplab.compression.prompts.rows import Rows, Seed
from perplab.errors import PerplabError
from perplab.training.interruption import interruptible

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How something is trained.

    Args:
        name: of what is trained, for whoever watches.
        rows: the text.
        seed: decides the order of the rows.
        steps: of the optimiser.
        batch_rows: rows in a step.
        learning_rate: the largest.
        checkpoint: file to resume from and to write to; None for neither.
        checkpoint_every: steps between checkpoints.
        watch: called after each step with the name, the steps done and their number.
    """

    name: str
    rows: Rows
    seed: Seed
    steps: int
    batch_rows: int
    learning_rate: float
    checkpoint: Path | None = None
    checkpoint_every: int = 50
    watch: Watch | None = None

    def run(self, parameters: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Train `parameters` in place.

        Args:
            parameters: leaves that require gradients.
            loss: of (rows, length) token ids, in nats a token.

        Returns:
            (steps,) the loss before each step.

        Raises:
            PerplabError: the loss is not finite, or the checkpoint is damaged or cannot be written.
            KeyboardInterrupt: somebody pressed Ctrl-C; the same call continues where there is a checkpoint.
        """
        optimizer = torch.optim.AdamW(list(parameters), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        losses = torch.zeros(self.steps)
        begin = self._resume(parameters, optimizer, losses)
        with interruptible() as interruption:
            for step in range(begin, self.steps):
                share = 0.5 * (1 + math.cos(math.pi * step / self.steps))
                optimizer.param_groups[0]["lr"] = self.learning_rate * share
                losses[step] = self._step(parameters, optimizer, loss, step)
                done = step + 1
                stop = interruption.requested and done < self.steps
                if self.checkpoint and (stop or done == self.steps or done % self.checkpoint_every == 0):
                    self._save(self.checkpoint, parameters, optimizer, losses[:done])
                if self.watch:
                    self.watch(self.name, done, self.steps)
                if stop:
                    raise KeyboardInterrupt
        return losses

    def _step(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor], Tensor],
        step: int,
    ) -> float:
        ids = self.rows.batch(self.seed, step, self.batch_rows).to(parameters[0].device)
        with torch.enable_grad():
            cost = loss(ids)
            gradients = torch.autograd.grad(cost, parameters)
        if not torch.isfinite(cost):
            raise PerplabError(
                f"the loss of {self.name} is {cost.item()} at step {step}", "give a smaller learning rate"
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return cost.item()

    def _save(self, file: Path, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
        tensors = {"losses": losses.clone()}
        for index, parameter in enumerate(parameters):
            state = optimizer.state[parameter]
            tensors |= {
                f"{index}.value": parameter.detach().clone(),
                f"{index}.exp_avg": state["exp_avg"],
                f"{index}.exp_avg_sq": state["exp_avg_sq"],
            }
        with atomic_file(file) as temporary:
            try:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def _resume(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, losses: Tensor) -> int:
        """Steps already taken; parameters, moments and losses are put where they stood."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0
        try:
            saved = load_file(self.checkpoint)
            done = len(saved["losses"])
            losses[:done] = saved["losses"]
            for index, parameter in enumerate(parameters):
                with torch.no_grad():
                    parameter.copy_(saved[f"{index}.value"])
                moments = {name: saved[f"{index}.{name}"].to(parameter.device) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.tensor(float(done)), **moments}
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise PerplabError(f"{self.checkpoint} cannot be resumed from ({error})", "delete it") from error
        return done
