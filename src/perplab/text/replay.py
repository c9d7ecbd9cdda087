"""Old text mixed into new: a fixed share of every batch, exactly.

- The share is kept by carrying the error from batch to batch, not by chance: after n rows, old ones number the share of
  n rounded to the nearest, so every batch of B rows has the floor or the ceiling of its share of B.
- Replayed rows take the place of new ones: a run with replay costs what a run without it costs.
- Either side keeps its own mixture of domains and its own epochs, so no block is lost or met early when one wraps.
"""

from fractions import Fraction
from typing import Any

import numpy as np

from perplab.errors import PerplabError
from perplab.text.mixture import Batch, MixtureSampler

REPLAYED = "replayed "
"""Before the names of the old text's groups."""


class ReplaySampler:
    """An endless sequence of batches, old rows behind the new ones in each.

    Args:
        new: draws the new text.
        old: draws the old text.
        share: of the rows that are old, from 0 to 1.

    Raises:
        PerplabError: the share is none.
    """

    def __init__(self, new: MixtureSampler, old: MixtureSampler, share: float) -> None:
        if not 0 <= share <= 1:
            raise PerplabError(f"a replayed share of {share}", "give one between 0 and 1")
        self._new, self._old = new, old
        self._share = Fraction(str(share))  # as it is written: a tenth, and not the nearest binary number to it
        self._drawn = 0

    def next_batch(self, batch_size: int) -> Batch:
        """Draw `batch_size` blocks."""
        replayed = self._replayed(self._drawn + batch_size) - self._replayed(self._drawn)
        self._drawn += batch_size
        parts = [self._new.next_batch(batch_size - replayed)] if replayed < batch_size else []
        if replayed:
            old = self._old.next_batch(replayed)
            parts.append(old._replace(groups=[REPLAYED + name for name in old.groups]))
        return Batch(
            input_ids=np.concatenate([part.input_ids for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            position_ids=np.concatenate([part.position_ids for part in parts]),
            groups=[name for part in parts for name in part.groups],
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the sequence depends on beside the blocks themselves; can be written as JSON."""
        return {"drawn": self._drawn, "new": self._new.state_dict(), "old": self._old.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the sampler that gave `state` stood.

        Raises:
            PerplabError: the state is of other data.
        """
        self._new.load_state_dict(state["new"])
        self._old.load_state_dict(state["old"])
        self._drawn = state["drawn"]

    def _replayed(self, rows: int) -> int:
        """How many of so many rows are old: the nearest whole number to their share."""
        return int(self._share * rows + Fraction(1, 2))
