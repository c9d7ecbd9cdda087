"""`perplab generate`."""

import json
from typing import Annotated

from cyclopts import Parameter

from perplab.commands.reading import text_argument
from perplab.models.generation import GenerateConfig
from perplab.models.generation import generate as continue_text
from perplab.models.language_model import load


def generate(
    prompt: str,
    /,
    *,
    model: str = "pocket",
    config: Annotated[GenerateConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Continue PROMPT.

    Args:
        prompt: Text to continue; - reads it from standard input.
        model: Folder or hub id of a causal language model, or pocket.
        config: How to sample.
        device: Where to compute, for example cpu or cuda:0.
        as_json: Print one JSON object in place of the text.
    """
    language_model = load(model, device=device)
    text = text_argument(prompt)
    if as_json:
        continuation = continue_text(language_model, text, config)
        print(json.dumps({"model": model, "prompt": text, "continuation": continuation}, ensure_ascii=False))
        return
    print(text, end="", flush=True)
    continue_text(language_model, text, config, show=lambda piece: print(piece, end="", flush=True))
    print()
