"""Tables of numbers in a terminal."""

from rich.table import Table


def right_aligned(first: str, *others: str, title: str | None = None) -> Table:
    """A table whose columns, but for the first, are numbers."""
    table = Table(first, title=title, title_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table
