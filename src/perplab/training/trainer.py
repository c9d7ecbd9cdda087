"""The loop of a run: batches in, weights out.

Decisions:
- Weights and AdamW's moments are float32; products run in bfloat16 under autocast. Compilation and sharding are applied
  to the model from outside, and the loop does not know of them.
- One step is: draw the global batch, take this process's rows, accumulate over micro-batches, clip, step. The loss of a
  step is the mean over all its scored tokens, however they fall on processes and passes.
- A run that starts from another model, or has old text to keep, is measured from before its first step, and often at
  its beginning: the gap between the old text's cost there and later is what such a run is judged by. Its diary keeps
  what every held-out window cost, always the same windows, so that differences between evaluations are paired.
- What trains in the linear layers is a method's matter: it replaces them before the run, is told of every step, and
  gives plain layers back at the end. Full training is the method that does nothing.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perplab.errors import PerplabError
from perplab.kernels import softmax_gradient
from perplab.kernels.linear_cross_entropy import IGNORE_INDEX, SoftmaxGradient
from perplab.models import LanguageModel
from perplab.text import Batch, PackedBlocks
from perplab.training.averaging import WeightAverage
from perplab.training.checkpoints import RunState, averaged_weights, load_checkpoint, save_checkpoint
from perplab.training.compilation import compile_model
from perplab.training.config import TrainConfig
from perplab.training.data import Batches
from perplab.training.distribution import Processes
from perplab.training.heldout import WindowCosts, bits_per_byte, heldout_costs
from perplab.training.interruption import interruptible
from perplab.training.learning_rate import learning_rate_of
from perplab.training.low_rank.method import LowRankTraining, apply_low_rank
from perplab.training.low_rank.replacing import merge_low_rank
from perplab.training.metrics import MetricsLog
from perplab.training.new_model import continued_model, new_model, objective_of
from perplab.training.optimizer import new_optimizer, trained_parameters
from perplab.training.progress import TrainingProgress
from perplab.training.run_folder import RunFolder

_EARLY = 0.05
"""Share of a run that starts from another model in which evaluations lie at powers of two."""


class TrainingInterrupted(Exception):  # noqa: N818 (a request that was followed, not an error)
    """The run was asked to stop, and saved itself first."""


class Trainer:
    """The state of a run in memory: model, optimiser, schedule, data, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Batches,
        domains: dict[str, PackedBlocks],
        folder: RunFolder,
        processes: Processes,
        parent: LanguageModel | None = None,
        old_domains: dict[str, PackedBlocks] | None = None,
    ) -> None:
        self.config, self.tokenizer, self.sampler = config, tokenizer, sampler
        self.domains, self.old_domains = domains, old_domains or {}
        self.folder, self.processes = folder, processes
        self.compares = parent is not None or bool(self.old_domains)
        model = new_model(config, tokenizer) if parent is None else continued_model(parent)
        self.model = model.to(processes.device).train()
        self.objective = objective_of(self.model, config)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.method = training_method(self.model, config)
        processes.shard(self.model)
        self.chunk_step: SoftmaxGradient = compile_model(self.model) if config.compile else softmax_gradient
        self.rate = learning_rate_of(config, self.model.config.hidden_size, parent)
        self.optimizer = new_optimizer(self.model, config)
        self.average = WeightAverage(self.model, config.ema)
        if parent is not None and config.optimizer_state == "restore":
            self._restore(parent)
        self.step, self.seconds = 0, 0.0
        self.heldout: dict[str, float] = {}
        self.old: dict[str, float] = {}

    def run(self, show_progress: bool) -> dict[str, float]:
        """Take the steps that are left; return the figures of the end.

        Raises:
            PerplabError: the gradient is not finite, or the run has already gone further.
            TrainingInterrupted: somebody pressed Ctrl-C.
        """
        self._resume()
        config = self.config
        bar = TrainingProgress(
            config.total_steps, config.batch_tokens, self.step, show_progress and self.processes.first
        )
        with interruptible() as interruption, self._diary() as diary, bar:
            if self.compares and self.step == 0:
                self._evaluate(diary, bar)
            while self.step < config.total_steps:
                started = time.perf_counter()
                measured = self.take_step()
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                self.step += 1
                diary.write(self.step, **measured, tokens_per_second=config.batch_tokens / elapsed)
                bar.advance(measured["loss"], elapsed)
                stop, last = self._anybody(interruption.requested), self.step == config.total_steps
                # A checkpoint comes after all that its step has to say: what is resumed from it says nothing twice.
                if last or self._is_evaluated():
                    self._evaluate(diary, bar)
                if stop or last or self.step % config.checkpoint_every == 0:
                    self._checkpoint()
                if stop and not last:
                    raise TrainingInterrupted(f"stopped after step {self.step}; the same command continues")
        return {
            **{f"heldout_bits_per_byte/{name}": value for name, value in self.heldout.items()},
            **{f"old_bits_per_byte/{name}": value for name, value in self.old.items()},
            "parameters": self.parameters,
            "trained_parameters": trained_parameters(self.optimizer),
            "tokens": config.total_steps * config.batch_tokens,
            "training_seconds": round(self.seconds, 1),
        }

    def _resume(self) -> None:
        state = load_checkpoint(self.folder.checkpoint, self.model, self.optimizer, self.average)
        if state is None:
            return
        if state.step > self.config.total_steps:
            raise PerplabError(
                f"the run has taken {state.step} steps, and now is to have {self.config.total_steps}",
                f"give at least {state.step * self.config.batch_tokens} tokens",
            )
        self.sampler.load_state_dict(state.sampler)
        self.step, self.seconds, self.heldout, self.old = state.step, state.seconds, state.heldout, state.old

    def _restore(self, parent: LanguageModel) -> None:
        """Take over what the parent's run had in its last step."""
        mend = "give optimizer_state reset"
        batch = parent.lineage.config.get("batch_tokens") if parent.lineage else None
        if batch not in (None, self.config.batch_tokens):
            raise PerplabError(
                f"the optimiser state of {parent.name} is of batches of {batch} tokens, not {self.config.batch_tokens}",
                f"give batch_tokens {batch}, or optimizer_state reset",
            )
        folder = parent.path and parent.path / "run" / "checkpoint"
        if not folder or not load_checkpoint(folder, self.model, self.optimizer, self.average, mend):
            raise PerplabError(f"{parent.name} has no optimiser state: no run/checkpoint in its folder", mend)

    def finished(self) -> PreTrainedModel | None:
        """The model as it is to be saved, and the end of training; None in all processes but the first. All call."""
        merge_low_rank(self.model)
        weights = averaged_weights(self.model, self.average)
        if not self.processes.first:
            return None
        model = type(self.model)(self.model.config)
        model.load_state_dict(weights)
        if self.model.can_generate():
            model.generation_config = self.model.generation_config
        return model.to(torch.bfloat16 if self.config.precision == "bf16" else torch.float32)

    def take_step(self) -> dict[str, float]:
        """Draw a batch and learn from it; return the step's figures.

        Raises:
            PerplabError: the gradient is not finite.
        """
        config, processes = self.config, self.processes
        rate = self.rate(self.step) * self.method.rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.sampler.next_batch(config.batch_tokens // config.block_size)
        scored = int((batch.labels != IGNORE_INDEX).sum())
        nats = self._accumulate(batch, scored)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        norm = norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
        loss = float(processes.sum(nats.to(processes.device))) / scored
        if not torch.isfinite(norm):
            raise PerplabError(
                f"the gradient is not finite at step {self.step + 1} (loss {loss:.3f})",
                f"start again in another folder with a learning rate below {self.rate.peak:g}",
            )
        self.method.before_update(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_update(self.step, self.optimizer)
        self.average.update(self.step)
        return {"loss": loss, "learning_rate": rate, "gradient_norm": float(norm)}

    def _accumulate(self, batch: Batch, scored: int) -> Tensor:
        """Add up the gradient of the batch's mean loss; return the nats of this process's tokens."""
        nats = torch.zeros((), dtype=torch.float64)
        number, rank = self.processes.number, self.processes.rank
        with torch.random.fork_rng():  # of dropout, where a model has it
            torch.manual_seed(int(np.random.SeedSequence((self.config.seed, self.step, rank)).generate_state(1)[0]))
            for index, (input_ids, labels, position_ids) in enumerate(self._micro_batches(batch)):
                with self._precision():
                    costs = self.objective.costs(
                        self.model,
                        input_ids,
                        position_ids,
                        labels,
                        step=self.step,
                        micro_batch=index * number + rank,
                        z_loss=self.config.z_loss,
                        chunk_step=self.chunk_step,
                    )
                # Sharded gradients are averaged over the processes, so the mean is scaled back to the sum it is of.
                torch.autograd.backward(costs.loss * (number / scored))
                nats += costs.nll.sum().cpu()
        return nats

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rows = max(1, self.config.micro_batch_tokens // self.config.block_size)
        mine = [
            torch.from_numpy(part[self.processes.rank :: self.processes.number])
            for part in (batch.input_ids, batch.labels, batch.position_ids)
        ]
        for parts in zip(*(torch.split(part, rows) for part in mine), strict=True):
            input_ids, labels, position_ids = (part.to(self.processes.device) for part in parts)
            yield input_ids, labels, position_ids

    def _precision(self) -> AbstractContextManager[None]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _is_evaluated(self) -> bool:
        """Whether this step is measured, if it is not the last."""
        early = self.compares and self.step <= _EARLY * self.config.total_steps and self.step.bit_count() == 1
        return early or self.step % self.config.evaluate_every == 0

    def _evaluate(self, diary: MetricsLog, bar: TrainingProgress) -> None:
        more = 8 if self.step == self.config.total_steps and not self.compares else 1
        new = self._costs(self.domains, more * self.config.evaluate_tokens)
        self.heldout = bits_per_byte(new)
        record: dict[str, Any] = {"heldout_bits_per_byte": self.heldout}
        if self.compares:
            old = self._costs(self.old_domains, self.config.evaluate_tokens)
            self.old = bits_per_byte(old) if old else {}
            record |= {"old_bits_per_byte": self.old, "windows": {"new": _as_lists(new), "old": _as_lists(old)}}
        diary.write(self.step, **record)
        bar.evaluated(self.step, self.heldout, self.old)

    def _costs(self, domains: dict[str, PackedBlocks], tokens: int) -> dict[str, WindowCosts]:
        with self.average.in_place():
            return heldout_costs(
                self.model,
                domains,
                tokens=tokens,
                rows=max(1, self.config.micro_batch_tokens // self.config.block_size),
                precision=self._precision(),
                chunk_step=self.chunk_step,
                processes=self.processes,
                objective=self.objective,
            )

    def _checkpoint(self) -> None:
        state = RunState(self.step, self.sampler.state_dict(), self.seconds, self.heldout, self.old)
        save_checkpoint(self.folder.checkpoint, self.model, self.optimizer, self.average, state, self.processes)

    def _anybody(self, here: bool) -> bool:
        """Whether any process says so: all must stop at the same step."""
        return bool(self.processes.sum(torch.tensor(float(here), device=self.processes.device)) > 0)

    def _diary(self) -> MetricsLog:
        folder = self.folder.path if self.processes.first else None
        # What was said before the first step is said again by a run that comes to no checkpoint.
        return MetricsLog(folder, resume_step=self.step or -1, tensorboard=self.config.tensorboard)


def training_method(model: PreTrainedModel, config: TrainConfig) -> LowRankTraining:
    """Put the model under the run's method, in place."""
    if config.low_rank is None:
        return LowRankTraining()
    return apply_low_rank(model, config.low_rank, config.total_steps)


def _as_lists(costs: dict[str, WindowCosts]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {key: values.tolist() for key, values in windows._asdict().items()} for name, windows in costs.items()
    }
