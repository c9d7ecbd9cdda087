"""`perplab score`."""

import json
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from perplab.commands.colours import coloured_costs
from perplab.commands.progress import scoring_bar
from perplab.commands.reading import text_argument
from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.scoring import TokenScores
from perplab.scoring import score as score_text
from perplab.scoring.bootstrap import Interval
from perplab.scoring.conventions import Convention, convention_for
from perplab.scoring.perplexity import Perplexity, summary
from perplab.scoring.tables import LossRow, by_position, by_token_class, loss_table
from perplab.scoring.token_classes import token_classifier
from perplab.scoring.token_metrics import TokenMetric
from perplab.text import open_corpus
from perplab.text.documents import Split

View = Literal["domain", "position", "token-class"]


def score(
    text: str | None = None,
    /,
    *,
    model: str = "pocket",
    corpus: str | None = None,
    split: Split = "all",
    limit_bytes: Annotated[int | None, Parameter(name="--limit-size")] = None,
    convention: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    by: View = "domain",
    metrics: Annotated[tuple[TokenMetric, ...], Parameter(name="--metric", negative="")] = (),
    out: str | None = None,
    batch_tokens: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say what every token of TEXT costs, or what a corpus costs.

    Args:
        text: Text to score; - reads it from standard input.
        model: Folder or hub id of a causal or masked language model, or pocket.
        corpus: Score these documents in place of TEXT: builtin:NAME, a file or folder, or hf:DATASET.
        split: Side of the corpus: all, train or heldout.
        limit_bytes: Read at most so many bytes of the corpus.
        convention: Whose way of taking a perplexity: perplab, lm-eval, nanochat, hf-stride, gptq or llamacpp. A masked
            diffusion model has an upper bound in its place, any-order-bound.
        window: Tokens read in a window, in place of the convention's.
        stride: Tokens between the begins of windows, in place of the convention's.
        draws: Masks a window that the bound of a masked diffusion model is taken from, in place of 16.
        seed: Of those masks.
        by: What the table shows beside the whole: domain, position or token-class.
        metrics: A column beside the cost, such as rank or entropy; give the flag once for each.
        out: Keep the scores of every token in this folder. An interrupted run goes on from there.
        batch_tokens: Tokens that go through the model at once.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        as_json: Print one JSON object.
    """
    if (text is None) == (corpus is None):
        raise PerplabError("score takes either TEXT or --corpus", "give one of the two")
    language_model = load(model, device=device, dtype=dtype)
    chosen = replace(convention_for(language_model, convention), window=window, stride=stride, seed=seed)
    if draws is not None:
        chosen = _with_draws(chosen, draws)
    options: dict[str, Any] = {
        "convention": chosen,
        "metrics": metrics,
        "out": out,
        "batch_tokens": batch_tokens,
    }
    if text is not None:
        scores = score_text(language_model, text_argument(text), **options)
        _show_text(scores, language_model, chosen, as_json)
        return
    documents = open_corpus(str(corpus), split)
    documents = documents.limited(limit_bytes) if limit_bytes else documents
    with scoring_bar(documents) as watch:
        scores = score_text(language_model, documents, watch=watch, **options)
    _show_corpus(scores, language_model, chosen, by, as_json)


def _with_draws(convention: Convention, draws: int) -> Convention:
    if not convention.is_upper_bound:
        raise PerplabError(f"draws of masks for {convention.name}, which draws none", "leave --draws out")
    if draws < 2:
        raise PerplabError(f"draws is {draws}", "give 2 or more")
    return replace(convention, draws=draws)


def _show_text(scores: TokenScores, language_model: LanguageModel, convention: Convention, as_json: bool) -> None:
    whole = summary(scores, convention)
    if as_json:
        rows = scores.tokens.drop_columns(["document", "window"]).to_pylist()
        tokens = [row | {"text": language_model.tokenizer.decode([row["token_id"]])} for row in rows]
        print(json.dumps({"model": language_model.name, **whole.as_json(), "tokens": tokens}, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(coloured_costs(scores, language_model.tokenizer), soft_wrap=True)
    at_most = how = ""
    if whole.is_upper_bound:
        at_most, how = "at most ", f" (upper bound from {convention.draws} masks a window)"
    console.print(
        f"\n{whole.num_tokens} tokens, {whole.num_bytes} bytes: perplexity {at_most}{whole.token_perplexity:.2f}, "
        f"{at_most}{whole.bits_per_byte:.3f} bits per byte{how}",
        soft_wrap=True,
    )


def _show_corpus(
    scores: TokenScores, language_model: LanguageModel, convention: Convention, by: View, as_json: bool
) -> None:
    whole = summary(scores, convention)
    if by == "domain":
        parts = {domain: summary(part, convention) for domain, part in scores.by_domain().items()} | {"all": whole}
        if as_json:
            shown = {name: part.as_json() for name, part in parts.items()}
            print(json.dumps({**scores.origin, **whole.as_json(), "domains": shown}))
        else:
            Console().print(_domain_table(parts, whole))
        return
    grouping = (
        by_position(scores) if by == "position" else by_token_class(scores, token_classifier(language_model.tokenizer))
    )
    rows = loss_table(scores, grouping)
    if as_json:
        print(json.dumps({**scores.origin, **whole.as_json(), "rows": [asdict(row) for row in rows]}))
    else:
        Console().print(_loss_table(rows, by, "nats a token, at most" if whole.is_upper_bound else "nats a token"))


def _domain_table(parts: dict[str, Perplexity], whole: Perplexity) -> Table:
    in_bits = whole.unit == "bits per byte"
    bits = "upper bound on bits per byte" if whole.is_upper_bound else "bits per byte"
    units = (bits,) if in_bits else (whole.unit, bits)
    headings = (unit.replace("upper bound on ", "upper bound on\n") for unit in units)
    table = _table(f"by the convention {whole.convention}", "domain", "documents", "tokens", *headings)
    for name, part in parts.items():
        if name == "all":
            table.add_section()
        values = [] if in_bits else [_with_interval(part.value, part.interval)]
        bits = _with_interval(part.bits_per_byte, part.bits_per_byte_interval)
        table.add_row(name, f"{part.num_documents:,}", f"{part.num_tokens:,}", *values, bits)
    return table


def _loss_table(rows: list[LossRow], by: View, unit: str) -> Table:
    table = _table(None, by.replace("-", " "), "tokens", "of tokens", unit, "of the loss")
    for row in rows:
        nats = _with_interval(row.nats_per_token, row.interval)
        table.add_row(row.name, f"{row.tokens:,}", f"{row.token_share:.1%}", nats, f"{row.loss_share:.1%}")
    return table


def _table(title: str | None, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _with_interval(value: float, interval: Interval | None) -> str:
    shown = [f"{figure:.4g}" for figure in (value, *((interval.low, interval.high) if interval else ()))]
    return f"{shown[0]} [dim]{shown[1]} to {shown[2]}[/dim]" if interval else shown[0]
