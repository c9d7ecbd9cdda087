"""Papers made for tests, each in a module of its own, since seeds are measured in other processes."""

import importlib
import sys

import pytest

from perplab.claims.results import _package_digest

MODULE = """
import os
import time
from pathlib import Path

from perplab.claims import Claim, Paper
from perplab.errors import PerplabError

HERE = Path(__file__).parent


def measure(scale, seed, data):
    with (HERE / "calls").open("a") as calls:
        calls.write(f"{seed} {scale} {os.environ['OMP_NUM_THREADS']}\\n")
    BODY
    return {"model": 1.0 + seed / 10, "baseline": 2.0 + seed / 5}


PAPER = Paper(
    name="made_up",
    title="A title",
    reference="arXiv 0000.00000",
    measure=measure,
    seeded=SEEDED,
    claims=(
        Claim(name="lower", statement="The model costs less", metric="model", baseline="baseline", unit="nats"),
        Claim(name="absent", statement="Something else", metric="absent", baseline="baseline"),
    ),
)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made_up(tmp_path, cache, monkeypatch):
    """`made_up(body)` is a paper whose measuring executes `body`; `made_up.calls()` tells how often it was measured."""
    _package_digest.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    file = tmp_path / "modules" / "made_up_paper.py"

    def paper(body="pass", seeded=True):
        file.parent.mkdir(exist_ok=True)
        file.write_text(MODULE.replace("BODY", body).replace("SEEDED", str(seeded)))
        importlib.invalidate_caches()
        sys.modules.pop("made_up_paper", None)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # two bodies within a second, one cached
        try:
            return importlib.import_module("made_up_paper").PAPER
        finally:
            sys.dont_write_bytecode = before

    def calls():
        path = file.parent / "calls"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    paper.calls = calls
    paper.file = file
    yield paper
    sys.modules.pop("made_up_paper", None)
