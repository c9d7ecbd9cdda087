"""Training memory: one step at a vocabulary of 128k, against a plain loop over `transformers`.

A small body (width 256, 2 layers) under a large head, batch 4 x 512, each side in a process of its own (the steps of
`contestants.py`). After one step to allocate optimiser states and compile, freed memory goes back to the system, and
the next step is watched: its peak of resident memory, as a whole and over what was resident just before. Goal: at most
half of the plain loop's.
"""

from typing import Any

from contestants import Shape, perplab_step, plain_step
from measuring import forget_peak, in_new_process, peak_resident_mib, resident_mib

ROWS, LENGTH = 4, 512
SHAPE = Shape(hidden_size=256, num_hidden_layers=2, intermediate_size=704, vocab_size=131_072)
SMALL = Shape(hidden_size=64, num_hidden_layers=1, intermediate_size=128, vocab_size=16_384)
SIDES = {"perplab": perplab_step, "plain": plain_step}


def measure(quick: bool) -> list[dict[str, Any]]:
    shape = SMALL if quick else SHAPE
    peaks = {side: in_new_process(peak_of_step, side, shape) for side in SIDES}
    quantities = ("resident before the step, MiB", "peak of the step above that, MiB", "peak in all, MiB")
    return [
        {"quantity": quantity, "perplab": ours, "plain": plain, "perplab / plain": ours / plain}
        for quantity, ours, plain in zip(quantities, peaks["perplab"], peaks["plain"], strict=True)
    ]


def peak_of_step(side: str, shape: Shape) -> tuple[float, float, float]:
    """Resident memory before a step, its peak above that, and its peak in all."""
    step = SIDES[side](shape, ROWS, LENGTH, LENGTH)
    step()
    forget_peak()
    before = resident_mib()
    step()
    peak = peak_resident_mib()
    return before, peak - before, peak
