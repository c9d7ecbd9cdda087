"""Pages of random subjects.

Heavy libraries are imported by the fixtures that need them.
"""

import functools

import pytest


@pytest.fixture(scope="session")
def subject_of():
    """`subject_of(name, seed, mean_token_bytes)`, the same one each time."""
    from random_subjects import random_subject

    return functools.cache(random_subject)


@pytest.fixture(scope="session")
def one(subject_of):
    """A page of one model."""
    from perplab.report import report
    from random_subjects import CLAIMS

    return report([subject_of("a model", 1, 4)], CLAIMS)


@pytest.fixture(scope="session")
def two(subject_of):
    """A page of two models that cut the text differently, the second with a hostile name."""
    from perplab.report import report
    from random_subjects import NASTY

    return report([subject_of("a model", 1, 4), subject_of(NASTY, 2, 3)])
