"""The runner: each seed once, in parallel, through kills, failures and changes of the code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from perplab.claims import run_paper
from perplab.claims.results import Result, code_key, result_file
from perplab.errors import PerplabError

CORES = len(os.sched_getaffinity(0))
START = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored
sys.path.insert(0, sys.argv[1])
from made_up_paper import PAPER
from perplab.claims import run_paper
run_paper(PAPER, "smoke", """


def test_each_seed_is_measured_once_and_kept(made_up):
    paper = made_up()
    first = run_paper(paper, "smoke", 2)
    assert [result.seed for result in first] == [0, 1]
    assert [result.figures["model"] for result in first] == [1.0, 1.1]
    assert run_paper(paper, "smoke", 2) == first
    assert len(made_up.calls()) == 2
    assert run_paper(paper, "smoke", 1) == first[:1]
    run_paper(paper, "smoke", 3)
    assert [call.split()[0] for call in made_up.calls()] == ["0", "1", "2"]
    assert first[0].seconds > 0
    assert "cores of" in first[0].machine


def test_cores_are_shared_among_seeds(made_up):
    run_paper(made_up(), "smoke", 1)
    assert made_up.calls() == [f"0 smoke {CORES}"]
    run_paper(made_up(), "pocket", 2)
    share = max(1, CORES // 2)
    assert made_up.calls()[0] == f"0 pocket {share}"
    assert made_up.calls()[2] == f"1 pocket {share}"


def test_changed_code_is_measured_again(made_up):
    before = made_up()
    run_paper(before, "smoke", 1)
    key = code_key(before)
    after = made_up("x = 1")
    assert code_key(after) != key
    assert run_paper(after, "smoke", 1)[0].code == code_key(after)
    assert len(made_up.calls()) == 2


def test_data_belong_to_the_key(made_up, tmp_path):
    paper = made_up()
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("one")
    keys = {result_file(paper, "smoke", 0, folder) for folder in (None, data)}
    (data / "a.txt").write_text("three")
    keys.add(result_file(paper, "smoke", 0, data))
    assert len(keys) == 3


def test_what_depends_on_no_seed_is_measured_once(made_up):
    assert len(run_paper(made_up(seeded=False), "smoke", 5)) == 1
    assert len(made_up.calls()) == 1


def test_a_failed_seed_is_named_and_the_others_are_kept(made_up):
    paper = made_up("if seed == 0: raise PerplabError('the loss is nan at step 3', 'lower the rate')")
    with pytest.raises(PerplabError, match=r"seed-0 of made_up .*the loss is nan at step 3.*seed-0\.log"):
        run_paper(paper, "smoke", 2)
    assert result_file(paper, "smoke", 1, None).exists()
    assert not result_file(paper, "smoke", 0, None).exists()


def test_figures_that_are_not_finite_are_refused(made_up):
    with pytest.raises(PerplabError, match="the figure 'model' is nan"):
        run_paper(made_up("return {'model': float('nan')}"), "smoke", 1)


def test_a_killed_run_continues_with_what_it_lacks(made_up, cache):
    paper = made_up("time.sleep(0 if seed == 0 else 60)")
    code = START + "2)"
    runner = subprocess.Popen([sys.executable, "-c", code, str(made_up.file.parent)], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (kept := [*cache.rglob("seed-0.json")]) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    (finished,) = map(Result.read, kept)
    assert not [*cache.rglob("seed-1.json")]
    assert run_paper(paper, "smoke", 1) == [finished]


def test_ending_the_runner_ends_its_processes(made_up):
    paper = made_up("(HERE / 'pid').write_text(str(os.getpid())); time.sleep(60)")
    code = START + "1)"
    runner = subprocess.Popen([sys.executable, "-c", code, str(made_up.file.parent)], stderr=subprocess.DEVNULL)
    pid_file = made_up.file.parent / "pid"
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(20) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not result_file(paper, "smoke", 0, None).exists()


def test_nothing_to_repeat_and_missing_data_are_refused(made_up, tmp_path):
    with pytest.raises(PerplabError, match="seeds is 0"):
        run_paper(made_up(), "smoke", 0)
    with pytest.raises(PerplabError, match="nowhere is not a folder"):
        run_paper(made_up(), "smoke", 1, tmp_path / "nowhere")


def test_a_cache_that_cannot_be_written_is_named(made_up, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(PerplabError, match=r"cannot write .*set PERPLAB_CACHE"):
        run_paper(made_up(), "smoke", 1)


def test_a_damaged_result_is_named(made_up):
    paper = made_up()
    run_paper(paper, "smoke", 1)
    file = result_file(paper, "smoke", 0, None)
    file.write_text("{}")
    with pytest.raises(PerplabError, match=r"seed-0\.json is not a result"):
        run_paper(paper, "smoke", 1)
