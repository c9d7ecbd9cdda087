"""The one exception a user can cause.

A `PerplabError` says what was wrong, where, and the mend, in one line. The command line prints that line and exits
with status 2; library callers catch one type.
"""


class PerplabError(Exception):
    """What was wrong, where, and what mends it.

    Args:
        problem: what was wrong, naming the file or value, without a final full stop.
        mend: what the reader can do about it, as an imperative.
    """

    def __init__(self, problem: str, mend: str) -> None:
        self.problem = problem
        self.mend = mend
        super().__init__(f"{problem}: {mend}")
