"""The command line as a user meets it: in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perplab.cli import _plain_counts, main

SMALL = ["--depth=1", "--vocab-size=300", "--block-size=64", "--batch-tokens=512", "--micro-batch-tokens=512"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a small corpus, where the commands run."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"The {animal} number {n} has {n % 7} legs.\n" for n in range(300) for animal in ("cat", "dog", "emu")]
    texts = ["".join(lines[start : start + 9]) for start in range(0, len(lines), 9)]
    records = [json.dumps({"text": text, "domain": "facts"}) + "\n" for text in texts]
    (home / "facts.jsonl").write_text("".join(records), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def perplab(home):
    environment = os.environ | {"PERPLAB_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "perplab.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=home,
            env=environment,
        )

    def run(*arguments):
        process = start(*arguments)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    run.start = start
    return run


def training(out, tokens):
    return ["train", "--out", out, "--corpus", "facts.jsonl", "--tokens", tokens, "--no-compile", *SMALL]


@pytest.fixture(scope="module")
def model_once(perplab, home):
    done = perplab(*training("runs/once", "10k"))
    assert done.returncode == 0, done.stderr
    return home / "runs" / "once"


@pytest.fixture
def trained(model_once, home):
    """The folder of a finished run, free to be damaged."""
    folder = home / "runs" / "m"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model_once, folder)
    return folder


@pytest.fixture
def refuses(home, monkeypatch, capsys):
    """`refuses(arguments, words)`: the command ends with status 2 and one line that holds the words."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("PERPLAB_CACHE", str(home / "cache"))

    def check(arguments, *words):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 2
        errors = capsys.readouterr().err
        assert errors.startswith("perplab: ")
        assert errors.count("\n") == 1
        for word in words:
            assert word in errors

    return check


def test_help_costs_no_heavy_import():
    code = "import sys, perplab.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'pyarrow', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in ("train", "score", "generate", "lineage"):
        assert verb in done.stdout


def test_counts_are_spelled_out_after_flags_that_count_and_nowhere_else():
    given = ["train", "--tokens", "2M", "--batch-tokens=16k", "--out", "2M", "2M", "--vocab-size", "1.5k"]
    expected = ["train", "--tokens", "2000000", "--batch-tokens=16000", "--out", "2M", "2M", "--vocab-size", "1500"]
    assert list(_plain_counts(given)) == expected


def test_a_trained_model_is_told_scored_and_continued(perplab, model_once):
    told = perplab("lineage", model_once)
    assert told.stdout.startswith("1. train\n")
    assert 'corpus = "facts.jsonl"' in told.stdout
    record = json.loads(perplab("lineage", model_once, "--json").stdout)
    assert record["config"]["tokens"] == 10_000

    scored = json.loads(perplab("score", "The cat number 3", "--model", model_once, "--json").stdout)
    assert "".join(token["text"] for token in scored["tokens"]) == "The cat number 3"
    assert sum(token["nll"] for token in scored["tokens"]) == pytest.approx(scored["nats"], rel=1e-5)

    done = perplab("score", "--corpus", "facts.jsonl", "--split", "heldout", "--model", model_once, "--json")
    domains = json.loads(done.stdout)["domains"]
    assert domains["facts"] == domains["all"]

    options = ("--model", model_once, "--max-new-tokens", 8, "--json")
    first, second = (perplab("generate", "The dog", *options) for _ in range(2))
    assert first.stdout == second.stdout
    assert json.loads(first.stdout)["prompt"] == "The dog"


def test_interrupted_training_says_so_and_the_same_command_continues(perplab, home):
    process = perplab.start(*training("runs/long", "200k"))
    diary = home / "runs" / "long" / "run" / "metrics.jsonl"
    while not (diary.exists() and diary.read_text().count("\n") >= 3) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert not (home / "runs" / "long" / "config.json").exists()

    done = perplab(*training("runs/long", "200k"))
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in diary.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, 200_000 // 512 + 1))


def test_bad_input_costs_one_line_and_status_2(refuses, home):
    refuses(["score"], "either TEXT or --corpus")
    refuses(["score", "x", "--model", home / "nowhere"], "nowhere", "does not exist")
    refuses(["lineage", home], "perplab.json")
    refuses(["generate", "x", "--top-p", "2"], "top_p", "at most 1")
    train = ["train", "--out", "runs/x"]
    refuses([*train, "--corpus", "nowhere.txt"], "nowhere.txt")
    refuses([*train, "--corpus", "builtin:nonsense"], "nonsense", "python")
    refuses([*train, "--batch-tokens", "100"], "batch_tokens", "multiple")
    refuses([*train, "--frobnicate"], "--frobnicate", "--help")
    refuses(["train"], "--out", "--help")
    (home / "empty.txt").write_text("")
    refuses([*train, "--corpus", "empty.txt"], "empty.txt")
    (home / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 9)
    refuses([*train, "--corpus", "latin.txt"], "latin.txt", "UTF-8")


def test_the_status_reaches_the_shell(perplab):
    done = perplab("score")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_damaged_model_is_named(refuses, trained):
    weights = trained / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refuses(["score", "x", "--model", trained], "model.safetensors")
    weights.write_bytes(whole)
    (trained / "config.json").write_text((trained / "config.json").read_text().replace("llama", "no_such_family"))
    refuses(["score", "x", "--model", trained], "config.json")


def test_a_corrupt_diary_line_is_named_and_nothing_is_lost(refuses, trained):
    diary = trained / "run" / "metrics.jsonl"
    lines = diary.read_text().splitlines()
    diary.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    refuses(training("runs/m", "10k"), "metrics.jsonl", "line 2")
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_public_names_are_found_and_documented():
    import perplab

    for name in perplab.__all__:
        assert getattr(perplab, name).__doc__
    assert Path(perplab.__file__).with_name("py.typed").exists()


def test_the_demonstration_runs_to_its_end():
    demo = Path(__file__).parents[1] / "tools" / "demo.py"
    done = subprocess.run([sys.executable, demo], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for domain in ("python", "cpp", "reference", "docstrings"):
        assert domain in done.stdout
    assert "a prompt, continued" in done.stdout


def test_the_shipped_model_beats_the_compressors_on_text_it_has_not_seen():
    import perplab
    from perplab.scoring.baselines import compressed_bits_per_byte

    documents = list(perplab.open_corpus("builtin:python", "heldout").limited(60_000))
    compressed = compressed_bits_per_byte([document.text for document in documents])
    assert perplab.score(perplab.load("pocket"), documents).bits_per_byte < 0.8 * min(compressed.values())
