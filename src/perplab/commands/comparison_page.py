"""A comparison as it is read in a terminal: the verdict in one line, then what it rests on.

Models are called A and B in the tables, in the order in which they were named.
"""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perplab.evaluation.comparing import Comparison
from perplab.evaluation.footprint import Footprint
from perplab.evaluation.proxy_verdict import FEWEST_VARIANTS, Correlation, ProxyVerdict
from perplab.evaluation.task_comparison import TaskComparison
from perplab.scoring.bootstrap import Interval, PairedDifference
from perplab.scoring.comparison import ChangeRow
from perplab.scoring.divergence import Divergence
from perplab.scoring.passages import Passage


def comparison_page(comparison: Comparison) -> Iterator[RenderableType]:
    """The sections of the page, from the top."""
    scores = comparison.scores
    yield Group(*_head(comparison))
    yield _change_table("domain", scores.by_domain)
    yield _change_table("place in document", scores.by_position)
    yield _change_table("kind of token", scores.by_token_class)
    if scores.worst_passages:
        yield Group(*_passage_lines(scores.worst_passages))
    yield _divergence_text(comparison.divergence, comparison.vocabulary_difference)
    if comparison.tasks:
        yield _task_table(comparison.tasks)
    yield _footprint_table(comparison.footprints, comparison.speed_ratio)
    if comparison.proxy:
        yield Group(*_proxy_lines(comparison.proxy))


def _head(comparison: Comparison) -> Iterator[Text]:
    scores = comparison.scores
    yield verdict_line(comparison)
    for letter, name, cost in (("A", comparison.first, scores.first), ("B", comparison.second, scores.second)):
        at_most = "at most " if cost.is_upper_bound else ""
        yield Text(
            f"{letter} {name}: {at_most}{cost.bits_per_byte:.4f} bits per byte, perplexity {cost.perplexity:.2f} over "
            f"{cost.tokens:,} tokens"
        )
        if cost.is_upper_bound:
            yield Text(f"{letter} is a masked diffusion model: its cost is an upper bound, by any-order-bound.")
    if not scores.same_tokens:
        yield Text("The tokens differ: B's costs are laid over A's tokens between byte boundaries that both have.")


def verdict_line(comparison: Comparison) -> Text:
    """What came out, in one line."""
    difference, ratio = comparison.scores.bits_per_byte, comparison.scores.perplexity_ratio
    low, high = difference.interval.low, difference.interval.high
    if low <= 0 <= high:
        verdict, found = "B and A cost the same within noise: ", f"{_signed(difference, 4)} bits per byte"
    else:
        size = Interval(min(abs(low), abs(high)), max(abs(low), abs(high)), difference.interval.level)
        direction = "more" if difference.value > 0 else "less"
        verdict, found = f"B costs {abs(difference.value):.4f} bits per byte {direction} ", f"{size:.4f}"
    unit = "perplexity" if comparison.scores.same_tokens else "perplexity over A's tokens"
    told = f"{found} ({_p(difference.p_value)}), {unit} x{ratio.value:.3f} {ratio.interval:.3f}"
    return Text.assemble((verdict, "bold"), told)


def _change_table(group: str, rows: Sequence[ChangeRow]) -> Table:
    table = _table(group, "tokens", "A nats", "B nats", "B - A a token", "of change")
    whole = sum(row.change for row in rows)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.token_share:.1%}",
            f"{row.first:.3f}",
            f"{row.second:.3f}",
            _signed(row.difference, 3) if row.difference else f"{row.second - row.first:+.3f}",
            f"{row.change / whole:.1%}" if whole else "-",
        )
    return table


def _passage_lines(passages: Sequence[Passage]) -> Iterator[Text]:
    yield Text("Where B loses most", style="bold")
    for passage in passages:
        where = f"{passage.document}, bytes {passage.start} to {passage.end}"
        yield Text.assemble((f"{passage.change:+.1f} nats", "bold"), f"  {where}")
        yield Text(f"  {' '.join(passage.text.split())}", style="dim")


def _divergence_text(divergence: Divergence | None, difference: str | None) -> Text:
    if divergence is None:
        return Text(f"No divergence of distributions: {difference}.")
    return Text(
        f"KL(A || B): mean {divergence.mean:.4g}{_in(divergence.mean_interval, '.4g')} nats a token, median "
        f"{divergence.median:.4g}, 90% below {divergence.p90:.4g}, 99% below {divergence.p99:.4g}, largest "
        f"{divergence.maximum:.4g}. Same likeliest token: {divergence.same_top_rate:.1%}"
        f"{_in(divergence.same_top_interval, '.1%')}. Probability of the token that came moved by "
        f"{divergence.probability_change_rms:.2%} (root mean square)."
    )


def _task_table(tasks: Sequence[TaskComparison]) -> Table:
    table = _table("task", "items", "chance", "A", "B", "B - A", "p")
    for task in tasks:
        table.add_row(
            task.name,
            f"{task.items:,}",
            f"{task.chance:.1%}",
            f"{task.first:.1%}",
            f"{task.second:.1%}",
            _signed(task.difference, 3) if task.difference else f"{task.second - task.first:+.3f}",
            _p(task.difference.p_value).removeprefix("p ").removeprefix("= ") if task.difference else "-",
        )
    return table


def _footprint_table(footprints: tuple[Footprint, Footprint], speed_ratio: float) -> Table:
    table = _table("", "A", "B", "B / A")
    first, second = footprints
    for name, sizes in (
        ("on disk", (first.disk_bytes, second.disk_bytes)),
        ("weights in memory", (first.weight_bytes, second.weight_bytes)),
        ("memory of scoring beside them", (first.scoring_bytes, second.scoring_bytes)),
    ):
        own, other = sizes
        table.add_row(name, *map(_size, sizes), f"{other / own:.2f}" if own and other is not None else "-")
    table.add_row(
        "parameters", f"{first.parameters:,}", f"{second.parameters:,}", f"{second.parameters / first.parameters:.2f}"
    )
    table.add_row(
        "tokens a second",
        f"{first.tokens_per_second:,.0f}",
        f"{second.tokens_per_second:,.0f}",
        f"{speed_ratio:.2f} (text)",
    )
    return table


def _proxy_lines(proxy: ProxyVerdict) -> Iterator[RenderableType]:
    plural = "s" * (proxy.variants != 1)
    compared = f"{proxy.variants} variant{plural} of A compared so far on this text and these tasks"
    if proxy.agreements:
        yield Text(f"Does cost rank scores? {compared}; 1 says: the cheaper the text, the better the score.")
        table = _table("score", "Spearman", "Kendall")
        for agreement in proxy.agreements:
            table.add_row(agreement.score, _correlation(agreement.spearman), _correlation(agreement.kendall))
        yield table
    else:
        yield Text(f"{compared}; from {FEWEST_VARIANTS} on, cost is judged as a stand-in for scores.")
    for broken in proxy.broken:
        yield Text(
            f"Breaks the rule: {broken.variant} costs {_signed(broken.bits_per_byte, 4)} bits per byte and does "
            f"{_signed(broken.score_change, 3)} at {broken.score}."
        )


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold underline")
    for number, column in enumerate(table.columns):
        column.justify = "right" if number else "left"
        column.no_wrap = True
    return table


def _signed(difference: PairedDifference, digits: int) -> str:
    return f"{difference.value:+.{digits}f} {difference.interval:+.{digits}f}"


def _correlation(correlation: Correlation | None) -> str:
    return f"{correlation.value:+.2f} {correlation.interval:+.2f}" if correlation else "all tied"


def _in(interval: Interval | None, spec: str) -> str:
    return f" {interval:{spec}}" if interval else ""


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 2**20:,.1f} MiB"
