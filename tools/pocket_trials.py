"""Short runs that decided the pocket model's settings: one change at a time, equal tokens, held-out bits per byte.

    python tools/pocket_trials.py [NAME ...]

Each takes a few minutes on one core; finished trials are not run again. Prints a Markdown table for docs/pocket.md.
"""

import sys
from dataclasses import replace
from pathlib import Path

import perplab
from build_pocket import CONFIG, CORPUS

BASE = replace(CONFIG, tokens=400_000, evaluate_tokens=4096, evaluate_every=10_000, checkpoint_every=10_000)
TRIALS = {
    "as chosen": BASE,
    "learning rate 0.001": replace(BASE, learning_rate=1e-3),
    "learning rate 0.004": replace(BASE, learning_rate=4e-3),
    "batch of 8,192 tokens": replace(BASE, batch_tokens=8192),
    "3 layers of width 320": replace(BASE, depth=3, hidden_size=320),
    "9 layers of width 192": replace(BASE, depth=9, hidden_size=192, intermediate_size=512),
}


def main() -> None:
    """Run the trials named on the command line, or all."""
    print("| trial | parameters, M | held-out bits per byte | tokens a second |\n|---|---|---|---|")
    for name in sys.argv[1:] or TRIALS:
        out = Path("runs/trials") / name.replace(" ", "-")
        model = perplab.train(CORPUS, out, TRIALS[name], tokenizer="pocket", progress=False)
        figures = model.lineage.figures
        speed = figures["tokens"] / figures["training_seconds"]
        bits = figures["heldout_bits_per_byte/all"]
        print(f"| {name} | {figures['parameters'] / 1e6:.2f} | {bits:.3f} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
