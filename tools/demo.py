"""`make demo`: the model inside the package, at work on text it has never seen, with no network.

It scores held-out text by domain beside general compressors, shows what the tokens of a passage cost, and continues a
prompt.
"""

from rich.console import Console
from rich.table import Table

import perplab
from perplab.commands.colours import coloured_costs, legend
from perplab.models import LanguageModel
from perplab.scoring.baselines import compressed_bits_per_byte
from perplab.text import Document

BYTES_PER_DOMAIN = 100_000
PASSAGE_LENGTH = 900
PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """Return the lines of a text file'


def main() -> None:
    """Run the demonstration."""
    console = Console(highlight=False)
    console.rule("perplab: what every token costs")
    pocket = perplab.load("pocket")
    parameters = sum(parameter.numel() for parameter in pocket.model.parameters())
    console.print(
        f"pocket: {parameters / 1e6:.1f} M parameters, trained by this package on this package's own shelf.\n"
    )
    heldout = _heldout_documents()
    console.print(_scored(pocket, heldout))
    _show_passage(console, pocket, heldout["python"])
    _continue_prompt(console, pocket)
    console.print(
        '\nNext: [bold].venv/bin/perplab score "your text"[/bold], or '
        "[bold].venv/bin/perplab train --out runs/m --corpus builtin:python --tokens 2M[/bold]"
    )


def _heldout_documents() -> dict[str, list[Document]]:
    return {
        name: list(perplab.open_corpus(f"builtin:{name}", "heldout").limited(BYTES_PER_DOMAIN))
        for name in ("python", "cpp", "reference", "docstrings")
    }


def _scored(pocket: LanguageModel, heldout: dict[str, list[Document]]) -> Table:
    table = Table("held-out text", "bytes", "gzip -9", "xz -9e", "pocket", title="bits per byte (less is better)")
    for column in table.columns[1:]:
        column.justify = "right"
    for domain, documents in heldout.items():
        compressed = compressed_bits_per_byte([document.text for document in documents])
        scores = perplab.score(pocket, documents)
        table.add_row(
            domain,
            f"{scores.num_bytes:,}",
            *(f"{bits:.3f}" for bits in compressed.values()),
            f"[bold]{scores.bits_per_byte:.3f}[/bold]",
        )
    return table


def _show_passage(console: Console, pocket: LanguageModel, documents: list[Document]) -> None:
    text = max(documents, key=lambda document: len(document.text)).text
    start = text.index("\n    def ", len(text) // 2) + 1
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
