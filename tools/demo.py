"""`make demo`: the model inside the package, at work on text it has never seen, with no network.

It rounds the model's weights to three bits in three ways, writes a page about the model and the best of them, and says
where the page is. Then it scores held-out text by domain beside general compressors, says what each rounding cost,
compares the best with the original, shows what the tokens of a passage cost, and continues a prompt.
"""

import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

import perplab
from perplab.commands.colours import coloured_costs, legend
from perplab.commands.comparison_page import comparison_page
from perplab.evaluation.comparing import CompareConfig
from perplab.models import LanguageModel
from perplab.report import report, study, write
from perplab.scoring import TokenScores
from perplab.scoring.baselines import compressed_bits_per_byte
from perplab.scoring.comparison import compare_scores
from perplab.text import Document

FOLDER = Path("build/demo")
BYTES_PER_DOMAIN = 25_000
LONGEST_DOCUMENT = 25_000
PASSAGE_LENGTH = 700
PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """Return the lines of a text file'
CALIBRATION_WINDOWS = 32
METHODS = {"nearest": "rtn", "GPTQ": "gptq", "QuantEase": "quantease"}


def main() -> None:
    """Run the demonstration."""
    console = Console(highlight=False)
    console.rule("perplab: what every token costs")
    pocket = perplab.load("pocket")
    documents = _heldout_documents()
    rounded = {name: _rounded(pocket, method) for name, method in METHODS.items()}
    best = rounded["QuantEase"]
    subjects = [study(model, documents) for model in (pocket, best)]
    page = FOLDER / "report.html"
    write(report(subjects), page)
    console.print(f"Open [bold]{page.resolve()}[/bold] in a browser: all of the below, and the text token by token.\n")
    console.print(_scored(documents, subjects[0].scores))
    console.rule("three bits a weight")
    console.print(_costs_of_rounding(pocket, rounded, documents))
    console.rule("QuantEase against the original")
    config = CompareConfig(limit=60, passages=2, rounds=1, ledger=FOLDER / "comparisons.jsonl")
    for part in comparison_page(perplab.compare(pocket, best, documents, config)):
        console.print(part)
    _show_passage(console, pocket, documents)
    _continue_prompt(console, pocket)
    console.print(
        '\nNext: [bold].venv/bin/perplab score "your text"[/bold], or '
        "[bold].venv/bin/perplab train --out runs/m --corpus builtin:python --tokens 2M[/bold]"
    )


def _rounded(pocket: LanguageModel, method: str) -> LanguageModel:
    """The same model at three bits a weight, as it is read back from the disk."""
    folder = FOLDER / f"pocket-3-bits-{method}"
    if folder.exists():
        shutil.rmtree(folder)
    config = perplab.QuantizeConfig(method=method, bits=3, windows=CALIBRATION_WINDOWS)
    perplab.quantize(pocket, perplab.open_corpus("builtin:python", "train"), config, out=folder)
    return perplab.load(folder)


def _costs_of_rounding(pocket: LanguageModel, rounded: dict[str, LanguageModel], documents: list[Document]) -> Table:
    table = Table("rounded by", "MB", "change of layers", "bits per byte", "95 % interval", title="what rounding costs")
    for column in table.columns[1:]:
        column.justify = "right"
    before = perplab.score(pocket, documents)
    for name, model in rounded.items():
        change = compare_scores(before, perplab.score(model, documents)).bits_per_byte
        size = sum(file.stat().st_size for file in model.path.glob("*.safetensors")) / 1e6
        error = model.lineage.figures["relative error"]
        interval = f"{change.interval.low:+.4f} to {change.interval.high:+.4f}"
        table.add_row(name, f"{size:.1f}", f"{error:.2%}", f"{change.value:+.4f}", interval)
    return table


def _heldout_documents() -> list[Document]:
    found: list[Document] = []
    for name in ("python", "cpp", "reference", "docstrings"):
        corpus = perplab.open_corpus(f"builtin:{name}", "heldout")
        size = 0
        for document in corpus:
            if len(document.text) <= LONGEST_DOCUMENT:
                found.append(document)
                size += len(document.text)
            if size >= BYTES_PER_DOMAIN:
                break
    return found


def _scored(documents: list[Document], scores: TokenScores) -> Table:
    table = Table("held-out text", "bytes", "gzip -9", "xz -9e", "pocket", title="bits per byte (less is better)")
    for column in table.columns[1:]:
        column.justify = "right"
    for domain, part in scores.by_domain().items():
        compressed = compressed_bits_per_byte(document.text for document in documents if document.domain == domain)
        figures = (f"{bits:.3f}" for bits in compressed.values())
        table.add_row(domain, f"{part.num_bytes:,}", *figures, f"[bold]{part.bits_per_byte:.3f}[/bold]")
    return table


def _show_passage(console: Console, pocket: LanguageModel, documents: list[Document]) -> None:
    sources = (document.text for document in documents if document.domain == "python")
    text = max(sources, key=len)
    start = text.index("\n", len(text) // 2) + 1
    text = text[start : text.index("\n", start + PASSAGE_LENGTH)]
    console.rule("the costliest tokens of a passage")
    console.print(coloured_costs(perplab.score(pocket, text), pocket.tokenizer), soft_wrap=True)
    console.print(legend())


def _continue_prompt(console: Console, pocket: LanguageModel) -> None:
    console.rule("a prompt, continued")
    console.print(PROMPT, end="", style="bold", markup=False)
    config = perplab.GenerateConfig(max_new_tokens=100, temperature=0.6, seed=1)
    perplab.generate(pocket, PROMPT, config, show=lambda piece: console.print(piece, end="", markup=False))
    console.print()


if __name__ == "__main__":
    main()
