"""`perplab generate`."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from perplab.commands.reading import text_argument
from perplab.models.any_order import is_any_order
from perplab.models.diffusion.infilling import DiffusionGenerateConfig, Filled
from perplab.models.generation import GenerateConfig, fill_blanks
from perplab.models.generation import generate as continue_text
from perplab.models.language_model import load


def generate(
    prompt: str,
    /,
    *,
    model: str = "pocket",
    config: Annotated[GenerateConfig | None, Parameter(name="*")] = None,
    diffusion: Annotated[DiffusionGenerateConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Continue PROMPT, or fill in its blanks.

    Args:
        prompt: Text to continue; - reads it from standard input.
        model: Folder or hub id of a causal or masked language model, or pocket.
        config: How to sample.
        diffusion: How a masked diffusion model does.
        device: Where to compute, for example cpu or cuda:0.
        as_json: Print one JSON object in place of the text.
    """
    language_model = load(model, device=device)
    text = text_argument(prompt)
    if diffusion is not None or is_any_order(language_model.model):
        _show_filled(model, text, fill_blanks(language_model, text, config, diffusion), as_json)
        return
    if as_json:
        continuation = continue_text(language_model, text, config)
        print(json.dumps({"model": model, "prompt": text, "continuation": continuation}, ensure_ascii=False))
        return
    print(text, end="", flush=True)
    continue_text(language_model, text, config, show=lambda piece: print(piece, end="", flush=True))
    print()


def _show_filled(model: str, prompt: str, filled: Filled, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"model": model, "prompt": prompt, **asdict(filled)}, ensure_ascii=False))
        return
    print(filled.text)
    print(
        f"{filled.tokens} tokens in {filled.evaluations} network evaluations "
        f"({filled.expected_evaluations:.1f} expected)",
        file=sys.stderr,
    )
