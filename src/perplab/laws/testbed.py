"""The published runs of "Language models scale reliably with over-training and on downstream tasks", from their files.

The layout is that of `exp_data/` in https://github.com/mlfoundations/scaling (MIT licence): `models/NAME.json` with the
hyper-parameters and eight validation losses of a run, and `evals/evaluation_NAME_heavy.json` with its task accuracies.
A flattened folder, where the two subfolders have become the prefixes `models__` and `evals__`, is read as well.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perplab.artifacts import read_json
from perplab.errors import PerplabError
from perplab.laws.runs import Run, Runs

_MEND = "copy exp_data/models and exp_data/evals of github.com/mlfoundations/scaling whole"
_CHINCHILLA = 20
"""The files state D / N in units of 20 tokens per parameter."""


class _TrainingSet(NamedTuple):
    name: str
    tokens: int


_TRAINING_SETS = {
    "c4_original": _TrainingSet("C4", 138_000_000_000),
    "rpj": _TrainingSet("RedPajama", 1_150_000_000_000),
    "rw_original": _TrainingSet("RefinedWeb", 600_000_000_000),
}

SUITE = (
    *("arc_easy", "bigbench_cs_algorithms", "bigbench_dyck_languages", "bigbench_novel_concepts"),
    *("bigbench_operators", "bigbench_qa_wikidata", "boolq", "commonsense_qa", "copa", "coqa", "hellaswag"),
    *("hellaswag_zeroshot", "lambada_openai", "piqa", "pubmed_qa_labeled", "squad", "winograd"),
)
"""The 17 tasks on which some model of 0.154 B parameters beats chance by ten points."""


def read_testbed(
    folder: str | os.PathLike[str], *, evaluation: str = "c4_val", tasks: Sequence[str] | None = SUITE
) -> Runs:
    """Read the published runs, in the order of their names.

    Args:
        folder: the folder that holds `models` and `evals`, or the flattened files.
        evaluation: which validation loss: a part of its file's path, such as `c4_val`, `openlm`, `paloma_c4_en`,
            `paloma_ptb`, `de-en`.
        tasks: which task accuracies the error is the mean over; None for all.

    Raises:
        PerplabError: there are no such files, or one lacks what it should hold.
    """
    models = {file.stem.removeprefix("models__"): file for file in _json_files(Path(folder), "models")}
    evals = {file.stem.removeprefix("evals__"): file for file in _json_files(Path(folder), "evals")}
    if not models:
        raise PerplabError(f"{folder} has no published runs", _MEND)
    runs = []
    for name, file in sorted(models.items()):
        evaluated = f"evaluation_{name}_heavy"
        if evaluated not in evals:
            raise PerplabError(f"{folder} lacks {evaluated}.json", _MEND)
        runs.append(_run(file, evals[evaluated], evaluation, tasks))
    return Runs(runs)


def _json_files(folder: Path, kind: str) -> list[Path]:
    return [*folder.glob(f"{kind}/*.json"), *folder.glob(f"{kind}__*.json")]


def _run(model_file: Path, evals_file: Path, evaluation: str, tasks: Sequence[str] | None) -> Run:
    model, evals = read_json(model_file, _MEND), read_json(evals_file, _MEND)
    try:
        settings = model["hyperparameters"]
        corpus = _TRAINING_SETS[model["dataset_name"]]
        losses = [result["loss"] for result in model["results"] if evaluation in result["val_data"][0]]
        accuracies = evals["eval_metrics"]["icl"]
        chosen = [accuracies[task] for task in tasks] if tasks is not None else list(accuracies.values())
        (loss,) = losses
        return Run(
            params=settings["params"],
            params_no_embed=settings["params_no_embed"],
            tokens=round(_CHINCHILLA * settings["chinchilla_multiplier"] * settings["params"]),
            corpus=corpus.name,
            corpus_tokens=corpus.tokens,
            loss=loss,
            error=1 - float(np.mean(chosen)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PerplabError(
            f"{model_file} with {evals_file.name} is not a published run evaluated on {evaluation!r} ({error!r})", _MEND
        ) from None
