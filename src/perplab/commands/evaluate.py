"""`perplab evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from perplab.commands.compression_flags import CompressionFlags
from perplab.commands.progress import stage_bar
from perplab.errors import PerplabError
from perplab.text.documents import Split

if TYPE_CHECKING:
    from perplab.evaluation import HarnessResult, TaskResult
    from perplab.scoring.bootstrap import Interval


def evaluate(
    model: str = "pocket",
    /,
    *,
    suite: Literal["tasks", "quantization"] = "tasks",
    tasks: str | None = None,
    corpus: str = "builtin:all",
    split: Split = "heldout",
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    compression: Annotated[CompressionFlags | None, Parameter(name="*")] = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say how often MODEL is right, task by task, with chance and interval; or what compressing it would cost.

    Args:
        model: Folder or hub id of a causal language model, or pocket.
        suite: tasks measures MODEL. quantization also rounds its weights by every method at every number of bits, and
            says what that cost and saved.
        tasks: Names with commas between them. last-word, continuation, brackets and identifiers are built in; others
            are tasks or YAML files of lm-evaluation-harness. Without names, all that are built in.
        corpus: Text that the built-in tasks ask about: builtin:NAME, a file or folder, or hf:DATASET.
        split: Side of the corpus: heldout, train or all.
        include_path: Folder with task files of lm-evaluation-harness.
        limit: Items a task, at most.
        num_fewshot: Solved examples before each question of a harness task; by default the task's own number.
        compression: What the quantization suite compresses, and where its results go.
        seed: Same seed, same items of the built-in tasks.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        as_json: Print one JSON object.
    """
    from perplab.evaluation import TASKS, EvaluateConfig, evaluate_with_harness
    from perplab.evaluation import evaluate as run
    from perplab.models import load
    from perplab.text import open_corpus

    if suite == "quantization":
        from perplab.commands.evaluate_quantization import evaluate_quantization

        evaluate_quantization(
            model,
            compression or CompressionFlags(),
            tasks=tasks,
            corpus=corpus,
            split=split,
            include_path=include_path,
            limit=limit,
            seed=seed,
            device=device,
            dtype=dtype,
            as_json=as_json,
        )
        return
    if compression is not None:
        raise PerplabError("a flag of the quantization suite without it", "add --suite quantization")
    names = None if tasks is None else tuple(dict.fromkeys(name for name in tasks.split(",") if name))
    built_in = None if names is None else tuple(name for name in names if name in TASKS)
    others = [name for name in names or () if name not in TASKS]
    limits = {} if limit is None else {"limit": limit}
    config = None if built_in == () and others else EvaluateConfig(tasks=built_in, seed=seed, **limits)
    language_model = load(model, device=device, dtype=dtype)
    harness_rows: list[dict[str, Any]] = []
    if others:  # first, because these can turn out not to be here
        found = evaluate_with_harness(
            language_model, others, include_path=include_path, limit=limit, num_fewshot=num_fewshot
        )
        harness_rows = list(map(_harness_row, found))
    rows: list[dict[str, Any]] = []
    if config:
        with stage_bar() as watch:
            rows = list(map(_task_row, run(language_model, open_corpus(corpus, split), config, watch=watch)))
    rows += harness_rows
    if as_json:
        print(
            json.dumps(
                {"model": model, "corpus": corpus, "split": split, "seed": seed, "results": rows}, ensure_ascii=False
            )
        )
    else:
        Console().print(_table(rows))


def _task_row(result: "TaskResult") -> dict[str, Any]:
    return {
        "task": result.name,
        "metric": "accuracy",
        "value": result.accuracy,
        "interval": _ends(result.interval),
        "chance": result.chance,
        "items": len(result.items),
        "documents": len(set(result.documents)),
    }


def _harness_row(result: "HarnessResult") -> dict[str, Any]:
    return {
        "task": result.task,
        "metric": result.metric if result.filter == "none" else f"{result.metric},{result.filter}",
        "value": result.value,
        "interval": _ends(result.interval),
        "chance": result.chance,
        "items": result.samples,
    }


def _ends(interval: "Interval | None") -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("task", "metric", "value", "95 % interval", "chance", "items")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        interval, chance = row["interval"], row["chance"]
        table.add_row(
            row["task"],
            row["metric"],
            f"{row['value']:.3f}",
            "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
            "" if chance is None else f"{chance:.3f}",
            f"{row['items']:,}",
        )
    return table
