"""The command line: `perplab VERB ...`.

Decisions:
- A verb's module is imported when the verb is called, so `perplab --help` costs no more than the command-line library.
- Flags are made from the verb's own config dataclass; its field descriptions are the help texts.
- An error the user can mend is one line on standard error and status 2. Ctrl-C is status 130.
- Counts of tokens and sizes may carry a suffix: `--tokens 2M`, `--vocab-size 4k`.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError

from perplab import __version__
from perplab.errors import PerplabError

_COUNT_FLAG = re.compile(r"--[\w-]*(?:tokens|size)")
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmMbBgG])")
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}

app = App(
    name="perplab",
    help="A laboratory for language models whose one instrument is surprisal: what every token costs.",
    version=__version__,
    version_flags=["--version"],
)
app.command("perplab.commands.score:score", name="score", help="Say what every token of a text costs.")
app.command("perplab.commands.explain:explain", name="explain", help="Say why two conventions give two perplexities.")
app.command(
    "perplab.commands.compare:compare", name="compare", help="Say what one model does worse or better than another."
)
app.command("perplab.commands.evaluate:evaluate", name="evaluate", help="Measure a model on tasks.")
app.command("perplab.commands.report:report", name="report", help="Write one HTML page about a model, or two.")
app.command("perplab.commands.train:train", name="train", help="Train a model from text, or continue a run.")
app.command("perplab.commands.quantize:quantize", name="quantize", help="Round a model's weights to few bits.")
app.command("perplab.commands.fuse:fuse", name="fuse", help="Make a model of fewer blocks.")
app.command("perplab.commands.prompt:prompt", name="prompt", help="Train prompts that repair a compressed model.")
app.command("perplab.commands.generate:generate", name="generate", help="Continue a prompt.")
app.command("perplab.commands.lineage:lineage", name="lineage", help="Say how a model was made.")
app.command("perplab.commands.scaling:app", name="scaling", help="Predict a training run from smaller ones.")
app.command(
    "perplab.commands.flatness:flatness", name="flatness", help="Say how flat the minimum is in which a model sits."
)
app.command("perplab.commands.claims:app", name="claims", help="Measure what papers claim.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        given = list(_plain_counts(sys.argv[1:] if arguments is None else arguments))
        app(given, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _refuse(f"{str(error).rstrip('.')}: see perplab --help, or perplab VERB --help")
    except PerplabError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        print("perplab: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _refuse(message: str) -> NoReturn:
    print(f"perplab: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _plain_counts(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with `--tokens 2M` and `--tokens=2M` spelled out as whole numbers."""
    previous = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and _COUNT_FLAG.fullmatch(flag):
            yield f"{flag}={_spelled_out(value)}"
        else:
            yield _spelled_out(argument) if _COUNT_FLAG.fullmatch(previous) else argument
        previous = argument


def _spelled_out(count: str) -> str:
    match = _COUNT.fullmatch(count)
    return str(round(float(match[1]) * _UNITS[match[2].lower()])) if match else count


if __name__ == "__main__":
    main()
