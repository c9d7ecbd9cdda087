"""`perplab score`."""

import json
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from perplab.commands.colours import coloured_costs
from perplab.commands.reading import text_argument
from perplab.errors import PerplabError
from perplab.models import load
from perplab.scoring import TokenScores
from perplab.scoring import score as score_text
from perplab.text import open_corpus
from perplab.text.documents import Split


def score(
    text: str | None = None,
    /,
    *,
    model: str = "pocket",
    corpus: str | None = None,
    split: Split = "all",
    limit_bytes: Annotated[int | None, Parameter(name="--limit-size")] = None,
    device: str = "cpu",
    dtype: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say what every token of TEXT costs, or what a corpus costs by domain.

    Args:
        text: Text to score; - reads it from standard input.
        model: Folder or hub id of a causal language model, or pocket.
        corpus: Score these documents in place of TEXT: builtin:NAME, a file or folder, or hf:DATASET.
        split: Side of the corpus: all, train or heldout.
        limit_bytes: Read at most so many bytes of the corpus.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        as_json: Print one JSON object.
    """
    if (text is None) == (corpus is None):
        raise PerplabError("score takes either TEXT or --corpus", "give one of the two")
    language_model = load(model, device=device, dtype=dtype)
    if text is not None:
        scores = score_text(language_model, text_argument(text))
        summary = _figures(scores) | {"model": model}
        if as_json:
            print(json.dumps(summary | {"tokens": _token_rows(scores, language_model.tokenizer)}, ensure_ascii=False))
            return
        console = Console(highlight=False)
        console.print(coloured_costs(scores, language_model.tokenizer), soft_wrap=True)
        console.print(
            f"\n{summary['num_tokens']} tokens, {summary['bytes']} bytes: perplexity {summary['perplexity']:.2f}, "
            f"{summary['bits_per_byte']:.3f} bits per byte"
        )
        return
    documents = open_corpus(str(corpus), split)
    scores = score_text(language_model, documents.limited(limit_bytes) if limit_bytes else documents)
    parts = {domain: _figures(part) for domain, part in scores.by_domain().items()} | {"all": _figures(scores)}
    if as_json:
        print(json.dumps({"model": model, "corpus": corpus, "split": split, "domains": parts}))
        return
    Console().print(_table(parts))


def _figures(scores: TokenScores) -> dict[str, Any]:
    return {
        "num_tokens": len(scores.nll),
        "bytes": scores.num_bytes,
        "nats": scores.nats,
        "perplexity": scores.perplexity,
        "bits_per_byte": scores.bits_per_byte,
    }


def _token_rows(scores: TokenScores, tokenizer: Any) -> list[dict[str, Any]]:
    rows = scores.tokens.select(["token_id", "start", "end", "nll"]).to_pylist()
    return [row | {"text": tokenizer.decode([row["token_id"]])} for row in rows]


def _table(parts: dict[str, dict[str, Any]]) -> Table:
    table = Table("domain", *("bytes", "tokens", "perplexity", "bits per byte"))
    for column in table.columns[1:]:
        column.justify = "right"
    for domain, part in parts.items():
        table.add_row(
            domain,
            f"{part['bytes']:,}",
            f"{part['num_tokens']:,}",
            f"{part['perplexity']:.2f}",
            f"{part['bits_per_byte']:.4f}",
        )
    return table
