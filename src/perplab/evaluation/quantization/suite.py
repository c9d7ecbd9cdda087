"""`perplab evaluate --suite quantization`: one command from a checkpoint to the whole grid.

Decisions:
- Any checkpoint is measured on text of the user's choice: what it costs, and the built-in tasks that it gives items
  for. A model that was trained on a generated world is asked about that world as well.
- Calibration text and measured text are two sides of a corpus, so no method has seen what it is judged on.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from perplab.compression import QuantizeConfig, quantize
from perplab.compression.quantize_config import Method
from perplab.errors import PerplabError
from perplab.evaluation.ledger import text_fingerprint
from perplab.evaluation.quantization.generated import GeneratedTasks
from perplab.evaluation.quantization.grid import Grid, Measure, cells_of, run_grid
from perplab.evaluation.quantization.real_text import BuiltInTasks, HarnessTasks, TextCost
from perplab.evaluation.suite import EvaluateConfig
from perplab.models import LanguageModel
from perplab.text import Corpus, Document
from perplab.text.synthetic import World, world_corpus

WORLD_DOCUMENTS = 40_000
"""Documents about a world, of which the held-out side is measured and the other calibrates."""
_MEASURED_DOCUMENTS = 450
_GENERATED_ITEMS = 60


@dataclass(frozen=True, kw_only=True)
class QuantizationSuiteConfig:
    """Which methods, at how many bits, measured how.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    methods: tuple[str, ...] = ("rtn", "gptq")
    """Quantisers."""
    bits: tuple[int, ...] = (8, 4, 3, 2)
    """Bits a weight."""
    group_size: int | None = None
    """Columns that share a scale; by default each method's own."""
    windows: int = 128
    """Windows of calibration text."""
    length: int | None = None
    """Tokens a window; by default as many as the model has positions, at most 2,048."""
    tasks: tuple[str, ...] | None = None
    """Built-in tasks; None for every one that the text gives items for, and none for an empty tuple."""
    limit: int = 400
    """Items a task, at most."""
    world: int | None = None
    """Seed of the generated world that the model was trained on, if it was."""
    timed: bool = True
    """Time generation as well."""
    seed: int = 0
    """Decides calibration windows and the items of tasks."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        unknown = [method for method in self.methods if method not in get_args(Method)]
        if unknown:
            raise PerplabError(f"unknown method {unknown[0]!r}", f"choose among {', '.join(get_args(Method))}")
        if self.limit < 1:
            raise PerplabError(f"a limit of {self.limit} items", "give 1 or more")
        for cell in cells_of(self.methods, self.bits):
            self.rounding(cell.method, cell.bits)

    def rounding(self, method: str, bits: int) -> QuantizeConfig:
        """The settings of one cell.

        Raises:
            PerplabError: the method cannot be run so.
        """
        group_size = None if method == "llm-int8" else self.group_size
        return QuantizeConfig(
            method=method,  # type: ignore[arg-type]
            bits=bits,
            group_size=group_size,
            windows=self.windows,
            length=self.length,
            seed=self.seed,
        )


def evaluate_quantization(
    language_model: LanguageModel,
    documents: Iterable[Document],
    calibration: Iterable[Document],
    config: QuantizationSuiteConfig | None = None,
    *,
    harness: HarnessTasks | None = None,
    folder: Path | None = None,
    watch: Callable[[str, int, int], None] | None = None,
) -> Grid:
    """Measure a model and what every method makes of it.

    Args:
        language_model: the model to compress; it is not changed.
        documents: text to measure on.
        calibration: text for the methods that need it.
        config: which methods, and how they are measured.
        harness: tasks of lm-evaluation-harness to measure as well.
        folder: where finished cells are kept and found; None keeps nothing.
        watch: called with the cell being worked on, the cells done, and their number.

    Raises:
        PerplabError: the text gives no items for a task that was named, the folder holds another grid, or whatever
            compressing and measuring refuse.
    """
    config = config or QuantizationSuiteConfig()
    documents = list(documents)
    settings = {
        "config": asdict(config),
        "text": text_fingerprint(documents),
        "calibration": calibration.fingerprint if isinstance(calibration, Corpus) else None,
        "harness": harness and [harness.tasks, harness.limit],
    }
    return run_grid(
        language_model,
        lambda method, bits: quantize(language_model, calibration, config.rounding(method, bits)),
        cells_of(config.methods, config.bits),
        [*_measures(documents, config), *([harness] if harness else [])],
        folder=folder,
        settings=settings,
        timed=config.timed,
        watch=watch,
    )


def _measures(documents: Sequence[Document], config: QuantizationSuiteConfig) -> list[Measure]:
    measures: list[Measure] = [TextCost(documents)]
    if config.tasks != ():
        measures.append(
            BuiltInTasks(documents, EvaluateConfig(tasks=config.tasks, limit=config.limit, seed=config.seed))
        )
    if config.world is not None:
        world = World(config.world)
        heldout = islice(world_corpus(world, WORLD_DOCUMENTS).in_split("heldout"), _MEASURED_DOCUMENTS)
        measures.append(TextCost(list(heldout), "log perplexity of the world"))
        measures.append(GeneratedTasks(world, _GENERATED_ITEMS))
    return measures
