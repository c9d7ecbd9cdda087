"""Rounding columns in turn, where each column answers for what the columns before it have changed.

GPTQ and coordinate descent are both this recurrence over columns j:

    value_j = start_j - sum over k < j of coupling[j, k] * change_k,   change_j = rounded(value_j) - reference_j

Decisions:
- Everything is turned on its side, (in, out), so that a column of the weight is one contiguous row.
- A column's changes reach the later ones in matrix products, not one by one: after column number n, the last r columns
  pass theirs on to the next r, r being the largest power of two that divides n. So every pair meets once, in time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 256
"""Columns that a solver hands over at a time: many to a matrix product, few to stay in cache."""

RoundInto = Callable[[Tensor, Tensor, int], None]
"""Writes into the first, (out,), the rounded values of the second, (out,), of the column at a place in the order."""


def round_in_turn(
    values: Tensor,
    rounded: Tensor,
    changes: Tensor,
    reference: Tensor,
    coupling: Tensor,
    round_into: RoundInto,
    first: int,
) -> None:
    """Run the recurrence over a block of columns.

    Args:
        values: (columns, out), `start` on entry; on return the value that each column had before it was rounded.
        rounded: (columns, out), overwritten with the rounded values.
        changes: (columns, out), overwritten with `rounded - reference`.
        reference: (columns, out).
        coupling: (columns, columns); only what is below the diagonal is read.
        round_into: rounds one column.
        first: place of the block's first column in the order of visiting.
    """
    rows = zip(values.unbind(), rounded.unbind(), changes.unbind(), reference.unbind(), strict=True)
    for done, (value, nearest, change, before) in enumerate(rows, start=1):
        round_into(nearest, value, first + done - 1)
        torch.sub(nearest, before, out=change)
        run = done & -done
        early, late = slice(done - run, done), slice(done, done + run)
        if done < len(values):
            values[late].addmm_(coupling[late, early], changes[early], alpha=-1)


def visiting_order(second: Tensor, act_order: bool) -> Tensor:
    """A permutation of the columns: by falling diagonal of the second moment, (in, in), or as they stand."""
    if act_order:
        return second.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(second), device=second.device)
