"""Making a model: documents in, a checkpoint that every tool loads out.

Decisions:
- The run is a folder. `OUT/run/` holds its settings, tokenizer, diary and last checkpoint while it lasts and after;
  the finished model lies in `OUT/` itself, in the layout of `transformers`.
- The same call again continues a run that was interrupted or killed, to the same bytes. Other settings are refused.
- Weights and AdamW's moments are float32; products run in bfloat16 under autocast. Compilation and sharding are applied
  to the model from outside, and the loop does not know of them.
- One step is: draw the global batch, take this process's rows, accumulate over micro-batches, clip, step. The loss of a
  step is the mean over all its scored tokens, however they fall on processes and passes.
- What trains in the linear layers is a method's matter: it replaces them before the run, is told of every step, and
  gives plain layers back at the end. Full training is the method that does nothing.
"""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perplab.errors import PerplabError
from perplab.kernels import softmax_gradient
from perplab.kernels.linear_cross_entropy import IGNORE_INDEX, SoftmaxGradient
from perplab.models import LanguageModel, Lineage, load
from perplab.text import Batch, Corpus, MixtureSampler, PackedBlocks, tokenizer_fingerprint
from perplab.training.averaging import WeightAverage
from perplab.training.checkpoints import RunState, averaged_weights, load_checkpoint, save_checkpoint
from perplab.training.compilation import compile_model
from perplab.training.config import RUN_TIME_ONLY, TrainConfig
from perplab.training.data import Splits, heldout_blocks, tokenizer_of_run, training_mixture
from perplab.training.distribution import Processes
from perplab.training.heldout import heldout_bits_per_byte
from perplab.training.interruption import interruptible
from perplab.training.low_rank.method import LowRankTraining, apply_low_rank
from perplab.training.low_rank.replacing import merge_low_rank
from perplab.training.metrics import MetricsLog
from perplab.training.new_model import check_continuation, continued_model, new_model
from perplab.training.objective import objective_of
from perplab.training.optimizer import new_optimizer, trained_parameters
from perplab.training.presets import decoder_config, peak_learning_rate, vocabulary_size
from perplab.training.progress import TrainingProgress
from perplab.training.run_folder import RunFolder
from perplab.training.schedules import schedule_of


class TrainingInterrupted(Exception):  # noqa: N818 (a request that was followed, not an error)
    """The run was asked to stop, and saved itself first."""


def train(
    corpus: Corpus | str,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    heldout: Corpus | str | None = None,
    tokenizer: str | None = None,
    parent: LanguageModel | str | Path | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Train a model from random weights or from another model's, or continue the run in `out`.

    Args:
        corpus: the text; its held-out side measures the run.
        out: folder of the run and of the finished model.
        config: the settings.
        heldout: other held-out text; all of `corpus` is then trained on.
        tokenizer: folder or hub id of a tokenizer; by default one is trained on the text.
        parent: a causal language model whose weights, shape and tokenizer the run starts from.
        progress: whether to show a progress bar on standard error.

    Returns:
        The finished model, as it lies in `out`.

    Raises:
        PerplabError: bad settings or text, `out` belongs to another run or is in use, or the disk is full.
        TrainingInterrupted: somebody pressed Ctrl-C; the same call continues.
    """
    config = config or TrainConfig()
    processes = Processes.join()
    folder = RunFolder(Path(out), processes)
    try:
        _check_processes(config, processes)
        decoder_config(config, vocab_size=2, end_of_text=0)  # refuses what makes no decoder before any work
        if parent is not None:
            parent = parent if isinstance(parent, LanguageModel) else load(parent)
            check_continuation(parent, config, tokenizer, processes)
        with folder.alone():
            splits = Splits.of(corpus, heldout)
            words = (
                parent.tokenizer
                if parent is not None
                else tokenizer_of_run(folder.path, tokenizer, splits.train, vocabulary_size(config), processes)
            )
            folder.remember(_what_decides(config, splits, words, parent))
            sampler = training_mixture(splits.train, words, config, progress=progress and processes.first)
            domains = heldout_blocks(splits.heldout, words, config.block_size, progress=False)
            trainer = Trainer(config, words, sampler, domains, folder, processes, parent)
            figures = trainer.run(progress)
            finished = trainer.finished()
            if finished is not None:
                record = asdict(config) | {"corpus": splits.train.spec, "heldout": splits.heldout.spec}
                folder.publish(_with_lineage(finished, words, parent, record, config.seed, figures))
            processes.wait()
            return load(folder.out)
    finally:
        processes.leave()


def _check_processes(config: TrainConfig, processes: Processes) -> None:
    """Sharded models need every process in every pass, so each must have as many rows as the others."""
    if config.batch_tokens % (config.block_size * processes.number):
        raise PerplabError(
            f"batch_tokens {config.batch_tokens} does not divide into equal rows for {processes.number} processes",
            f"give a multiple of {config.block_size * processes.number}",
        )
    if config.low_rank is not None and processes.number > 1:
        raise PerplabError(
            f"method {config.method} trains in one process, and here are {processes.number}",
            "start it without torchrun, or use method full",
        )


def _with_lineage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parent: LanguageModel | None,
    record: dict[str, Any],
    seed: int,
    figures: dict[str, float],
) -> LanguageModel:
    if parent is not None:
        return parent.derive(model, "train", config=record, seed=seed, figures=figures)
    return LanguageModel(model, tokenizer, Lineage.record("train", config=record, seed=seed, figures=figures))


def _what_decides(
    config: TrainConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase, parent: LanguageModel | None
) -> dict[str, Any]:
    """Everything that a run's result depends on, as it is read back from a file: JSON has no tuples."""
    settings = {key: value for key, value in asdict(config).items() if key not in RUN_TIME_ONLY} | {
        "train": splits.train.fingerprint,
        "heldout": splits.heldout.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "parent": parent and parent.fingerprint,
    }
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


class Trainer:
    """The state of a run in memory: model, optimiser, schedule, data, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: PreTrainedTokenizerBase,
        sampler: MixtureSampler,
        domains: dict[str, PackedBlocks],
        folder: RunFolder,
        processes: Processes,
        parent: LanguageModel | None = None,
    ) -> None:
        self.config, self.tokenizer, self.sampler, self.domains = config, tokenizer, sampler, domains
        self.folder, self.processes = folder, processes
        model = new_model(config, tokenizer) if parent is None else continued_model(parent)
        self.model = model.to(processes.device).train()
        self.objective = objective_of(self.model, config)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.method = training_method(self.model, config)
        processes.shard(self.model)
        self.chunk_step: SoftmaxGradient = compile_model(self.model) if config.compile else softmax_gradient
        self.schedule = schedule_of(config)
        self.peak = peak_learning_rate(config, self.model.config.hidden_size)
        self.optimizer = new_optimizer(self.model, config)
        self.average = WeightAverage(self.model, config.ema)
        self.step, self.seconds = 0, 0.0
        self.heldout: dict[str, float] = {}

    def run(self, show_progress: bool) -> dict[str, float]:
        """Take the steps that are left; return the figures of the end."""
        state = load_checkpoint(self.folder.checkpoint, self.model, self.optimizer, self.average)
        if state is not None:
            self.sampler.load_state_dict(state.sampler)
            self.step, self.seconds, self.heldout = state.step, state.seconds, state.heldout
        config = self.config
        bar = TrainingProgress(
            config.total_steps, config.batch_tokens, self.step, show_progress and self.processes.first
        )
        with interruptible() as interruption, self._diary() as diary, bar:
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
                if last or self.step % config.evaluate_every == 0:
                    self.heldout = self._heldout(config.evaluate_tokens * (8 if last else 1))
                    diary.write(self.step, heldout_bits_per_byte=self.heldout)
                    bar.evaluated(self.step, self.heldout)
                if stop or last or self.step % config.checkpoint_every == 0:
                    self._checkpoint()
                if stop and not last:
                    raise TrainingInterrupted(f"stopped after step {self.step}; the same command continues")
        return {f"heldout_bits_per_byte/{name}": value for name, value in self.heldout.items()} | {
            "parameters": self.parameters,
            "trained_parameters": trained_parameters(self.optimizer),
            "tokens": config.total_steps * config.batch_tokens,
            "training_seconds": round(self.seconds, 1),
        }

    def finished(self) -> PreTrainedModel | None:
        """The model as it is to be saved, and the end of training; None in all processes but the first. All call."""
        merge_low_rank(self.model)
        weights = averaged_weights(self.model, self.average)
        if not self.processes.first:
            return None
        model = type(self.model)(self.model.config)
        model.load_state_dict(weights)
        model.generation_config = self.model.generation_config
        return model.to(torch.bfloat16 if self.config.precision == "bf16" else torch.float32)

    def take_step(self) -> dict[str, float]:
        """Draw a batch and learn from it; return the step's figures.

        Raises:
            PerplabError: the gradient is not finite.
        """
        config, processes = self.config, self.processes
        share = self.schedule(self.step) * self.method.rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * share
        batch = self.sampler.next_batch(config.batch_tokens // config.block_size)
        scored = int((batch.labels != IGNORE_INDEX).sum())
        nats = self._accumulate(batch, scored)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        norm = norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
        loss = float(processes.sum(nats.to(processes.device))) / scored
        if not torch.isfinite(norm):
            raise PerplabError(
                f"the gradient is not finite at step {self.step + 1} (loss {loss:.3f})",
                f"start again in another folder with a learning rate below {self.peak:g}",
            )
        self.method.before_update(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_update(self.step, self.optimizer)
        self.average.update(self.step)
        return {"loss": loss, "learning_rate": self.peak * share, "gradient_norm": float(norm)}

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

    def _heldout(self, tokens: int) -> dict[str, float]:
        with self.average.in_place():
            return heldout_bits_per_byte(
                self.model,
                self.domains,
                tokens=tokens,
                rows=max(1, self.config.micro_batch_tokens // self.config.block_size),
                precision=self._precision(),
                chunk_step=self.chunk_step,
                processes=self.processes,
                objective=self.objective,
            )

    def _checkpoint(self) -> None:
        state = RunState(self.step, self.sampler.state_dict(), self.seconds, self.heldout)
        save_checkpoint(self.folder.checkpoint, self.model, self.optimizer, self.average, state, self.processes)

    def _anybody(self, here: bool) -> bool:
        """Whether any process says so: all must stop at the same step."""
        return bool(self.processes.sum(torch.tensor(float(here), device=self.processes.device)) > 0)

    def _diary(self) -> MetricsLog:
        folder = self.folder.path if self.processes.first else None
        return MetricsLog(folder, resume_step=self.step, tensorboard=self.config.tensorboard)


def training_method(model: PreTrainedModel, config: TrainConfig) -> LowRankTraining:
    """Put the model under the run's method, in place."""
    if config.low_rank is None:
        return LowRankTraining()
    return apply_low_rank(model, config.low_rank, config.total_steps)
