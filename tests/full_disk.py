"""A disk that refuses, for tests of what is lost: nothing."""

import resource
from contextlib import contextmanager


@contextmanager
def files_no_larger_than(size):
    """Every write past `size` bytes fails in the kernel, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
