"""`make pocket`: train the model that ships inside the package, and measure it on held-out text beside its baselines.

About an hour on two cores; killed or interrupted, the same command continues. The result replaces
src/perplab/models/pocket/ when it is complete and small enough.
"""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import perplab
from perplab.artifacts import atomic_folder, write_json
from perplab.models.lineage import Machine
from perplab.models.shipped import POCKET_FOLDER
from perplab.scoring.baselines import compressed_bits_per_byte, ngram_bits_per_byte
from perplab.text import token_store

CORPUS = "builtin:all"
RUN = Path("runs/pocket")
LARGEST_BYTES = 12_000_000
NGRAM_ORDER = 5

CONFIG = perplab.TrainConfig(
    tokens=18_000_000,
    depth=5,
    hidden_size=256,
    vocab_size=6144,
    batch_tokens=4096,
    micro_batch_tokens=4096,
    learning_rate=2e-3,
    weights={"python": 0.3, "reference": 0.08, "docstrings": 0.34, "cpp": 0.28},
    evaluate_every=200,
    checkpoint_every=100,
)


def main() -> None:
    """Train, measure, and put the model in its place."""
    model = perplab.train(CORPUS, RUN, CONFIG)
    table = heldout_table(model)
    with atomic_folder(POCKET_FOLDER) as folder:
        for file in sorted(RUN.iterdir()):
            if file.is_file():
                shutil.copy(file, folder / file.name)
        write_json(folder / "heldout.json", table)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > LARGEST_BYTES:
            raise perplab.PerplabError(f"the model takes {size:,} bytes of {LARGEST_BYTES:,}", "choose a smaller shape")
    print(json.dumps(table, indent=2))


def heldout_table(model: perplab.LanguageModel) -> dict[str, object]:
    """Bits per byte on the whole held-out side: the model, an n-gram model of the same tokens, and two compressors."""
    train, heldout = (perplab.open_corpus(CORPUS, split) for split in ("train", "heldout"))
    scores = perplab.score(model, heldout)
    texts: dict[str, list[str]] = {}
    for document in heldout:
        texts.setdefault(document.domain, []).append(document.text)
    texts["all"] = [text for part in list(texts.values()) for text in part]
    ngram = ngram_bits_per_byte(
        token_store(train, model.tokenizer), token_store(heldout, model.tokenizer), order=NGRAM_ORDER
    )
    measured = {domain: part.bits_per_byte for domain, part in scores.by_domain().items()}
    measured["all"] = scores.bits_per_byte
    machine = Machine.current()
    return {
        "bits_per_byte": {
            domain: {
                "bytes": sum(len(text.encode()) for text in texts[domain]),
                "pocket": measured[domain],
                f"{NGRAM_ORDER}-gram": ngram[domain],
                **compressed_bits_per_byte(texts[domain]),
            }
            for domain in texts
        },
        "command": "make pocket",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{machine.cores} cores of {machine.cpu}",
    }


if __name__ == "__main__":
    main()
