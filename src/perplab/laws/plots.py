"""A fitted law beside the runs, as a picture.

A loss law is drawn as reducible loss against compute on logarithmic axes, one line for each multiplier: the lines are
straight and parallel where the law holds. An error law is drawn as error against loss. Runs that were not fitted are
hollow. The file's suffix decides the format. matplotlib is the extra `plot`; its figures are made directly, with no
window system and no global state.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perplab.artifacts import atomic_file
from perplab.errors import PerplabError
from perplab.laws.law import Law
from perplab.laws.runs import Run, Runs
from perplab.laws.scaling import LossLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = {".png", ".svg", ".pdf"}
_INCHES = 6.4, 4.4


def plot_law(law: Law, runs: Runs, path: str | os.PathLike[str], held_out: Sequence[Run] = ()) -> None:
    """Draw runs and law into a .png, .svg or .pdf file.

    Args:
        law: a law of the loss or of the error.
        runs: what to draw beside it.
        path: the file to write.
        held_out: further runs, drawn hollow.

    Raises:
        PerplabError: matplotlib is not installed, the suffix is another, or a run's loss is not above the law's
            irreducible loss.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise PerplabError(f"{path} has no suffix of a picture", f"name a file with {', '.join(sorted(_FORMATS))}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PerplabError("plots need matplotlib", "pip install 'perplab[plot]'") from None
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    (_draw_loss if isinstance(law, LossLaw) else _draw_error)(axes, law, runs, Runs(held_out))
    axes.grid(which="major", alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=suffix[1:], dpi=160)


def _draw_loss(axes: "Axes", law: Any, runs: Runs, held_out: Runs) -> None:
    drawn = Runs([*runs, *held_out])
    compute = np.geomspace(drawn.compute.min() / 2, drawn.compute.max() * 2, 100)
    for number, (multiplier, of_multiplier) in enumerate(drawn.by_multiplier().items()):
        colour = f"C{number}"
        axes.plot(
            compute,
            law.reducible(compute=compute, multiplier=multiplier),
            color=colour,
            alpha=0.6,
            label=f"M = {multiplier:.3g}",
        )
        for part, face in ((runs, colour), (held_out, "none")):
            alike = of_multiplier.where(part.__contains__)
            axes.plot(alike.compute, law.excess(alike.loss), "o", color=colour, markerfacecolor=face)
    axes.set(xscale="log", yscale="log", xlabel="training compute 6ND (FLOPs)")
    axes.set_ylabel(f"loss above {law.irreducible:.3f} (nats per token)")
    axes.set_title(f"{law.kind} law")
    axes.legend(title="tokens per parameter", fontsize="small")


def _draw_error(axes: "Axes", law: Any, runs: Runs, held_out: Runs) -> None:
    losses = np.concatenate([runs.loss, held_out.loss])
    loss = np.linspace(losses.min() * 0.95, losses.max() * 1.05, 200)
    axes.plot(runs.loss, runs.error, "o", color="C0", label="runs")
    if len(held_out):
        axes.plot(held_out.loss, held_out.error, "o", color="C0", markerfacecolor="none", label="held-out runs")
    axes.plot(loss, law.predict(loss), color="C0", alpha=0.6, label=f"{law.kind} law")
    axes.set(xlabel="loss (nats per token)", ylabel="mean error over tasks")
    axes.legend()
