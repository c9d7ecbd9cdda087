"""Making a model: documents in, a checkpoint that every tool loads out.

Decisions:
- The run is a folder. `OUT/run/` holds its settings, tokenizer, diary and last checkpoint while it lasts and after;
  the finished model lies in `OUT/` itself, in the layout of `transformers`.
- The same call again continues a run that was interrupted or killed, to the same bytes. Other settings are refused, but
  for more tokens where the schedule has a horizon of its own: the run is then prolonged.
- What a lineage records as learning rate and schedule is what they came to, so that a later run can re-warm from it.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perplab.errors import PerplabError
from perplab.models import LanguageModel, Lineage, load
from perplab.text import Corpus, tokenizer_fingerprint
from perplab.training.config import RUN_TIME_ONLY, TrainConfig
from perplab.training.data import Splits, heldout_blocks, tokenizer_of_run, training_batches
from perplab.training.distribution import Processes
from perplab.training.learning_rate import LearningRate, learning_rate_of
from perplab.training.new_model import check_continuation
from perplab.training.presets import decoder_config, vocabulary_size
from perplab.training.run_folder import RunFolder
from perplab.training.self_replay import SELF, own_text
from perplab.training.trainer import Trainer


def train(
    corpus: Corpus | str,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    heldout: Corpus | str | None = None,
    replay: Corpus | str | None = None,
    old: Corpus | str | None = None,
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
        replay: old text, of which every batch has the config's share; `self` for text that `parent` makes up.
        old: old text whose held-out side tells what is forgotten; by default that of `replay`.
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
        shape = decoder_config(config, vocab_size=2, end_of_text=0)  # refuses what makes no decoder before any work
        if parent is not None:
            parent = parent if isinstance(parent, LanguageModel) else load(parent)
            check_continuation(parent, config, tokenizer, processes)
            _check_vocabulary(parent)
        _check_needs(config, parent, replay)
        learning_rate_of(
            config, parent.model.config.hidden_size if parent else shape.hidden_size, parent
        )  # refuses too
        with folder.alone():
            if parent is not None and replay == SELF:
                replay = own_text(folder.path, parent, config, processes)
            splits = Splits.of(corpus, heldout, replay, old)
            words = (
                parent.tokenizer
                if parent is not None
                else tokenizer_of_run(folder.path, tokenizer, splits.train, vocabulary_size(config), processes)
            )
            sampler = training_batches(splits, words, config, progress=progress and processes.first)
            domains = heldout_blocks(splits.heldout, words, config.block_size, progress=False)
            old_domains = heldout_blocks(splits.old, words, config.block_size, progress=False) if splits.old else None
            trainer = Trainer(config, words, sampler, domains, folder, processes, parent, old_domains)
            folder.remember(_what_decides(config, splits, words, parent))  # not before everything else was accepted
            figures = trainer.run(progress)
            finished = trainer.finished()
            if finished is not None:
                record = _record(config, splits, trainer.rate)
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


def _check_needs(config: TrainConfig, parent: LanguageModel | None, replay: Corpus | str | None) -> None:
    if parent is None and config.optimizer_state == "restore":
        raise PerplabError("there is no parent whose optimiser state to restore", "name one with --from")
    if parent is None and replay == SELF:
        raise PerplabError("there is no parent that could make up old text", "name one with --from")
    if config.replay and replay is None:
        raise PerplabError(f"replay is {config.replay}, and there is no old text", "name it with --replay-from")


def _check_vocabulary(parent: LanguageModel) -> None:
    tokens, known = len(parent.tokenizer), parent.model.get_input_embeddings().num_embeddings
    if tokens > known:
        raise PerplabError(
            f"the tokenizer of {parent.name} has {tokens} tokens, and the model {known}",
            "put the tokenizer beside the model that it was trained with",
        )


def _record(config: TrainConfig, splits: Splits, rate: LearningRate) -> dict[str, Any]:
    corpora = {"corpus": splits.train, "heldout": splits.heldout, "replayed": splits.replay, "old": splits.old}
    specs = {name: corpus.spec for name, corpus in corpora.items() if corpus}
    return asdict(config) | specs | {"learning_rate": rate.peak, "schedule": rate.schedule.name}


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
    free = RUN_TIME_ONLY if config.horizon_tokens is None else RUN_TIME_ONLY | {"tokens"}
    settings = {key: value for key, value in asdict(config).items() if key not in free} | {
        "train": splits.train.fingerprint,
        "heldout": splits.heldout.fingerprint,
        "replayed": splits.replay and splits.replay.fingerprint,
        "old": splits.old and splits.old.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "parent": parent and parent.fingerprint,
    }
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read
