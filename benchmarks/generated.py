"""A JSON-lines corpus of any size, made line by line from the text that every installation has."""

import json
import random
from pathlib import Path

from perplab.text import open_corpus, train_tokenizer

VOCABULARY = 8192
_SOURCE = "builtin:python"
_SOURCE_BYTES = 8_000_000
_LONGEST = 400
_SEED = 0


def write_jsonl(path: Path, text_bytes: int) -> None:
    """Write documents of up to 400 consecutive lines of real source text, until their text reaches `text_bytes`."""
    documents = [document.text.splitlines(keepends=True) for document in open_corpus(_SOURCE).limited(_SOURCE_BYTES)]
    random_number = random.Random(_SEED)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < text_bytes:
            lines = random_number.choice(documents)
            start = random_number.randrange(len(lines))
            text = "".join(lines[start : start + random_number.randint(1, _LONGEST)])
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode("utf-8"))


def write_tokenizer(folder: Path) -> None:
    """Train and save the tokenizer that every side uses."""
    train_tokenizer(open_corpus(_SOURCE).limited(_SOURCE_BYTES), VOCABULARY).save_pretrained(folder)
