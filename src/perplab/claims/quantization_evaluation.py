"""A comprehensive evaluation of quantization strategies for large language models (Jin et al., arXiv 2402.16775).

Three sizes are trained on one generated world (`perplab.text.synthetic`), whose tasks stand in one for one for the
paper's benchmarks: facts for MMLU, the same in a second language for C-EVAL, translation for FLORES, lead sentences
for CNN/DailyMail and XSum, two-step arithmetic for GSM8K, entailment for SNLI, instructions checked by rule for
FollowBench, truth against popular belief for TruthfulQA, planted prejudice for BBQ. Each size is rounded by every
method at every number of bits, and each form is asked every task.

- Perplexity is that of held-out documents of the same world; its logarithm is correlated, because a collapsed model's
  perplexity would be the only point that counts.
- The correlations are over the paper's own cells, GPTQ and SpQR at 4 and 3 bits of three sizes, and over all cells. The
  paper's are over the first kind, so that is what its values are compared with.
- A task at chance in every size has no correlation; it is left out of the mean, not counted as zero.
- Within a size the size's means are taken away: what is left is what compression did.
- The paper's rounding to groups of 128 becomes whole rows, because a row has as many columns; SpQR keeps groups of 16.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.subjects import trained_on
from perplab.compression import QuantizeConfig, quantize
from perplab.evaluation.quantization import Grid, cells_of, grid_table, proxy_correlation, run_grid
from perplab.evaluation.quantization.generated import GeneratedTasks
from perplab.evaluation.quantization.grid import Measure
from perplab.evaluation.quantization.real_text import LOG_PERPLEXITY, TextCost
from perplab.evaluation.quantization.table import GridTable, Row
from perplab.models import LanguageModel
from perplab.text import Corpus
from perplab.text.synthetic import World, world_corpus
from perplab.training import TrainConfig

_METHODS = ("rtn", "gptq", "spqr", "llm-int8")
_BLOCK = 128
_SHARES = {
    "facts": 1.0,
    "second-language": 1.0,
    "translation": 0.5,
    "summary": 1.0,
    "arithmetic": 2.0,
    "entailment": 1.5,
    "instructions": 1.5,
    "truth": 1.0,
    "groups": 0.5,
}
"""Of the training tokens: what is learnt late gets more of them."""
_PUBLISHED = {
    "facts: accuracy": ("MMLU", -0.892),
    "second-language: accuracy": ("C-EVAL", -0.930),
    "translation: BLEU": ("FLORES-200, into Chinese", -0.884),
    "summary: ROUGE-1": ("CNN/DailyMail", -0.890),
    "summary: ROUGE-2": ("CNN/DailyMail", -0.849),
    "summary: ROUGE-L": ("CNN/DailyMail", -0.885),
    "arithmetic: accuracy": ("GSM8K", -0.911),
    "entailment: accuracy": ("SNLI", -0.583),
    "instructions: HSR": ("FollowBench", -0.864),
    "instructions: SSR": ("FollowBench", -0.899),
    "instructions: CSL": ("FollowBench", -0.877),
    "truth: MC1": ("TruthfulQA", -0.789),
    "groups: ambiguous bias": ("BBQ", -0.765),
    "groups: disambiguated bias": ("BBQ", 0.806),
}
"""The benchmark each figure stands for, and its published r with perplexity."""
_MEAN_R = 0.7895


@dataclass(frozen=True)
class _Setting:
    """One scale.

    Attributes:
        sizes: layers and width of each model.
        tokens: of training.
        documents: of the world.
        items: questions a task.
        heldout: documents whose perplexity is taken.
        bits: of the rounding.
    """

    sizes: tuple[tuple[int, int], ...]
    tokens: int
    documents: int
    items: int
    heldout: int
    bits: tuple[int, ...]


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(((1, 64), (2, 64)), 10_240, 1_000, 5, 20, (4, 2)),
    "pocket": _Setting(((2, 64), (2, 128), (4, 128)), 2_000_000, 40_000, 60, 300, (8, 4, 3, 2)),
    "gpu": _Setting(((4, 256), (8, 512), (12, 768)), 50_000_000, 400_000, 60, 1_000, (8, 4, 3, 2)),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Correlations over the compressed models of three sizes, and what each number of bits leaves."""
    setting = _SETTINGS[scale]
    world = World(seed)
    corpus = world_corpus(world, setting.documents)
    heldout = list(islice(corpus.in_split("heldout"), setting.heldout))
    tables = []
    for layers, width in setting.sizes:
        model = _trained(corpus, layers, width, seed, setting)
        measures: list[Measure] = [TextCost(heldout), GeneratedTasks(world, setting.items)]
        grid = _grid(model, corpus.in_split("train"), setting, measures)
        tables.append(grid_table(grid, resamples=500, seed=seed))
    return _correlations(tables) | _losses(tables)


def _trained(corpus: Corpus, layers: int, width: int, seed: int, setting: _Setting) -> LanguageModel:
    config = TrainConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        tokens=setting.tokens,
        vocab_size=512,
        block_size=_BLOCK,
        batch_tokens=16 * _BLOCK,
        micro_batch_tokens=16 * _BLOCK,
        learning_rate=8e-3 * (64 / width) ** 0.5,
        weights=dict(_SHARES),
        seed=seed,
        precision="float32",
        compile=False,
        evaluate_every=10**6,
        checkpoint_every=10**6,
    )
    return trained_on(corpus, config)


def _grid(model: LanguageModel, calibration: Corpus, setting: _Setting, measures: Sequence[Measure]) -> Grid:
    def compress(method: str, bits: int) -> LanguageModel:
        config = QuantizeConfig(method=method, bits=bits, windows=32, length=_BLOCK)  # type: ignore[arg-type]
        return quantize(model, calibration, config)

    return run_grid(model, compress, cells_of(_METHODS, setting.bits), measures, timed=False)


def _correlations(tables: Sequence[GridTable]) -> dict[str, float]:
    """R of log perplexity with each figure: over the paper's cells and over all, pooled and within a size."""
    figures: dict[str, float] = {}
    for cells, wanted in (("", _is_papers), (", all cells", lambda row: True)):
        pooled = []
        for name in _PUBLISHED:
            rows = [(str(size), row) for size, table in enumerate(tables) for row in table.rows[1:] if wanted(row)]
            rows = [(size, row) for size, row in rows if row.entries[name].reading == "measured"]
            found = proxy_correlation(*_columns(rows, name), [size for size, _ in rows]) if len(rows) > 3 else None
            if found is None:
                continue
            pooled.append(abs(found.pearson))
            figures[f"r: {name}{cells}"] = found.pearson
            figures[f"rank r: {name}{cells}"] = found.spearman
            if found.within is not None:
                figures[f"r within size: {name}{cells}"] = found.within
        if pooled:
            figures[f"mean |r|{cells}"] = float(np.mean(pooled))
        figures[f"figures with a signal{cells}"] = float(len(pooled))
    return figures


def _is_papers(row: Row) -> bool:
    return row.cell.name in ("gptq-4", "gptq-3", "spqr-4", "spqr-3")


def _columns(rows: Sequence[tuple[str, Row]], name: str) -> tuple[list[float], list[float]]:
    costs = [row.entries[LOG_PERPLEXITY].value for _, row in rows]
    return costs, [row.entries[name].value for _, row in rows]


def _losses(tables: Sequence[GridTable]) -> dict[str, float]:
    """Means over sizes of each cell's log perplexity, accuracy and bits."""
    figures: dict[str, float] = {}
    for name in (row.cell.name for row in tables[0].rows):
        rows = [next(row for row in table.rows if row.cell.name == name) for table in tables]
        costs = [row.entries[LOG_PERPLEXITY].value for row in rows]
        above = [cost - table.rows[0].entries[LOG_PERPLEXITY].value for cost, table in zip(costs, tables, strict=True)]
        figures[f"{name}: log perplexity"] = float(np.mean(costs))
        figures[f"{name}: log perplexity above the reference"] = float(np.mean(above))
        figures[f"{name}: accuracy"] = float(np.mean([value for row in rows for value in _accuracies(row)]))
        figures[f"{name}: bits"] = float(np.mean([row.cell.bits.nominal for row in rows]))
    return figures


def _accuracies(row: Row) -> Iterator[float]:
    """In percent, of the tasks whose average the paper reports."""
    for name in ("facts", "second-language", "arithmetic", "entailment"):
        yield 100 * row.entries[f"{name}: accuracy"].value
    yield 100 * row.entries["truth: MC1"].value


def _correlates(name: str, benchmark: str, published: float) -> Claim:
    return Claim(
        name=f"r of {name}",
        statement=f"Perplexity goes with {benchmark}; here {name}",
        metric=f"r: {name}",
        effect="value",
        better="lower" if published < 0 else "higher",
        paper_value=published,
        threshold=-0.5 if published < 0 else 0.5,
    )


def _accuracy(name: str, statement: str, metric: str, baseline: str, published: float | None) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        metric=f"{metric}: accuracy",
        baseline=f"{baseline}: accuracy",
        better="higher",
        unit="%",
        paper_value=published,
        threshold=10.0,
    )


def _within(name: str, benchmark: str, published: float) -> Claim:
    return Claim(
        name=f"r of {name} within a size",
        statement=f"Control: perplexity goes with {benchmark} when size is taken away",
        metric=f"r within size: {name}",
        effect="value",
        better="lower",
        paper_value=published,
        threshold=-0.5,
    )


PAPER = Paper(
    name="quantization_evaluation",
    title="A Comprehensive Evaluation of Quantization Strategies for Large Language Models",
    reference="arXiv 2402.16775",
    measure=measure,
    note=(
        "Generated tasks in place of the benchmarks, one for one, on models of 0.1 to 1 M parameters trained on one "
        "generated world. The paper's correlations are over GPTQ and SpQR at 4 and 3 bits of three sizes, and so are "
        "these; a task that no size learns has no correlation and is not measured. Thresholds of r are 0.5 in the "
        "paper's direction. Accuracies are means over the five tasks that have one, and the paper's figures for them "
        "are those of its 7B model. SpQR's 2 bits are over 6 with its outliers."
    ),
    claims=(
        Claim(
            name="mean |r|",
            statement="Perplexity is a proxy: mean |r| over the figures that have a signal",
            metric="mean |r|",
            effect="value",
            better="higher",
            paper_value=_MEAN_R,
            threshold=0.5,
        ),
        Claim(
            name="mean |r| over all cells",
            statement="The same over every method at every number of bits",
            metric="mean |r|, all cells",
            effect="value",
            better="higher",
            threshold=0.5,
        ),
        *(_correlates(name, benchmark, published) for name, (benchmark, published) in _PUBLISHED.items()),
        Claim(
            name="4 bits keep perplexity",
            statement="At 4 bits a model is as good as before: GPTQ raises perplexity by less than 10 %",
            metric="gptq-4: log perplexity above the reference",
            effect="value",
            better="lower",
            unit="nats per token",
            paper_value=float(np.log(12.31 / 11.76)),
            threshold=float(np.log(1.1)),
        ),
        _accuracy("2 bits break GPTQ", "GPTQ collapses at 2 bits", "gptq-4", "gptq-2", 54.86 - 16.52),
        _accuracy("2 bits break RTN", "Rounding to the nearest collapses at 2 bits too", "rtn-4", "rtn-2", None),
        _accuracy("outliers rescue 2 bits", "SpQR survives 2 bits", "spqr-2", "gptq-2", 53.18 - 16.52),
        Claim(
            name="2-bit SpQR is not 2 bits",
            statement="Control: with its outliers SpQR at 2 bits takes more bits a weight than GPTQ at 4",
            metric="spqr-2: bits",
            baseline="gptq-4: bits",
            better="higher",
            unit="bits",
        ),
        _within("facts: accuracy", "MMLU", -0.9),
        _within("entailment: accuracy", "SNLI", 0.09),
        _within("truth: MC1", "TruthfulQA", -0.2),
    ),
)
