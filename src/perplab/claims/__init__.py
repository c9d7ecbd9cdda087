"""What papers claim, how it is measured here, and what came out: one short file a paper.

A paper's file holds `PAPER`: its claims, and `measure`, which calls public verbs and returns named figures. The runner
repeats it over seeds and keeps the results; the verdict compares each claim's figure with its baseline or with the
paper's figure. A claim that fails is reported as failed.
"""

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.page import write_page
from perplab.claims.registry import find_paper, paper_names
from perplab.claims.rows import Row, rows_of, summary
from perplab.claims.runner import run_paper
from perplab.claims.verdict import Verdict, judge

__all__ = [
    "Claim",
    "Paper",
    "Row",
    "Scale",
    "Verdict",
    "find_paper",
    "judge",
    "paper_names",
    "rows_of",
    "run_paper",
    "summary",
    "write_page",
]
