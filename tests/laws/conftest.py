"""The published runs of "Language models scale reliably with over-training", as its card lists them."""

from importlib.resources import files
from typing import NamedTuple

import pytest

from perplab.laws import Runs, read_runs


class Published(NamedTuple):
    """Runs of one training set by the use the paper makes of them."""

    loss_law: Runs
    error_law: Runs
    targets: Runs


@pytest.fixture(scope="session")
def published():
    """`published(corpus)`: the 5 runs of the loss law, the 6 of the error law, and the 2 that both are tested on."""
    runs = read_runs(str(files("perplab.claims") / "data" / "scaling_over_training.csv"))

    def of(corpus):
        of_corpus = runs.where(lambda run: run.corpus == corpus)
        parts = Published(
            of_corpus.where(lambda run: run.compute < 1e20),
            of_corpus.where(lambda run: run.compute < 1e20 or (run.params < 2e9 and run.multiplier == 20)),
            of_corpus.where(lambda run: run.params > 2e9 or (run.params > 1e9 and run.multiplier > 20)),
        )
        assert [len(part) for part in parts] == [5, 6, 2]
        return parts

    return of
