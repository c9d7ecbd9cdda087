"""What one model's minimum is like: its loss, the trace of the curvature, the top eigenvalues and the profile, in one.

- The loss has an interval over documents; trace, eigenvalues and profile are of the same text, and their intervals are
  about what was drawn to estimate them.
- Curvature depends on the parameterisation. Two measurements compare if they are of parameters of the same names and
  shapes, and of the same tokens; `why_not_comparable` says what stands against it.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from perplab.errors import PerplabError
from perplab.laws.flatness.differentiation import Parameters, costs, differentiable
from perplab.laws.flatness.estimate import TraceEstimate
from perplab.laws.flatness.profile import RADII, ProfilePoint, sharpness_profile
from perplab.laws.flatness.reading import TextBatches, read_batches
from perplab.laws.flatness.spectrum import Spectrum, top_eigenvalues
from perplab.laws.flatness.trace import TraceMethod, hessian_trace
from perplab.models import LanguageModel
from perplab.models.any_order import refuse_any_order
from perplab.scoring.bootstrap import Interval, bootstrap_ratio
from perplab.text import Document, tokenizer_fingerprint

StageWatch = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class FlatnessConfig:
    """Settings of `perplab flatness`.

    Raises:
        PerplabError: a number is below what can be meant.
    """

    method: TraceMethod = "fisher"
    """How the trace is estimated: fisher and fisher-batch of the Gauss-Newton matrix, the others of the Hessian."""
    samples: int = 4
    """Label draws of each row or batch, or probes of each batch, for the trace; products in all for hutch++."""
    parameters: str = "*"
    """Pattern of the names of the parameters that are looked at, such as model.layers.3.*"""
    eigenvalues: int = 1
    """Largest eigenvalues of the Hessian to find; 0 for none."""
    radii: tuple[float, ...] = RADII
    """Distances of the sharpness profile, in lengths of the model's own filters."""
    directions: int = 4
    """Random directions of the sharpness profile; 0 for no profile."""
    window: int | None = None
    """Tokens of a row; by default 128, or as many as the model has positions."""
    tokens: int = 1024
    """Predict about so many, in rows spread evenly over the text; 0 for all."""
    rows: int = 8
    """Rows of a batch."""
    seed: int = 0
    """Of labels, probes, directions and the bootstrap."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        least = {"samples": 1, "eigenvalues": 0, "directions": 0, "tokens": 0, "rows": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise PerplabError(f"{name} is {getattr(self, name)}", f"give {smallest} or more")


@dataclass(frozen=True)
class Flatness:
    """How flat one model lies.

    Attributes:
        model: its name.
        parameters: how many were looked at.
        layout: digest of their names and shapes, and of the tokenizer.
        tokens: predicted.
        loss: nats per token.
        loss_interval: over documents, at 95 %; None for one document.
        method: how the trace was estimated.
        trace: of the curvature.
        spectrum: largest eigenvalues; None where none were asked for.
        profile: loss by distance; empty where none was asked for.
    """

    model: str
    parameters: int
    layout: str
    tokens: int
    loss: float
    loss_interval: Interval | None
    method: TraceMethod
    trace: TraceEstimate
    spectrum: Spectrum | None
    profile: tuple[ProfilePoint, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


def measure_flatness(
    language_model: LanguageModel,
    documents: Iterable[Document],
    config: FlatnessConfig | None = None,
    *,
    watch: StageWatch | None = None,
) -> Flatness:
    """Measure how flat `language_model` lies on a text.

    Args:
        language_model: a causal language model in float32 or wider; it is left as it was.
        documents: the text.
        config: what is measured, and how surely.
        watch: told of progress.

    Raises:
        PerplabError: the model is a diffusion model, or whatever the measures refuse.
    """
    settings, model = config or FlatnessConfig(), language_model.model
    refuse_any_order(model, language_model.name)
    shared: dict[str, Any] = {"parameters": partial(fnmatchcase, pat=settings.parameters), "seed": settings.seed}
    chosen = Parameters.of(model, shared["parameters"])
    text = read_batches(
        language_model, documents, window=settings.window, rows=settings.rows, tokens=settings.tokens or None
    )
    nats, tokens = _cost_by_document(model, chosen, text)
    trace = hessian_trace(
        model,
        text.batches,
        settings.method,
        samples=settings.samples,
        watch=watch and partial(watch, "trace"),
        **shared,
    )
    spectrum, profile = None, list[ProfilePoint]()
    if settings.eigenvalues:
        told = watch and partial(watch, "eigenvalues")
        spectrum = top_eigenvalues(model, text.batches, settings.eigenvalues, watch=told, **shared)
    if settings.directions:
        told = watch and partial(watch, "profile")
        directions = settings.directions
        profile = sharpness_profile(model, text.batches, settings.radii, directions=directions, watch=told, **shared)
    return Flatness(
        model=language_model.name,
        parameters=len(chosen),
        layout=_layout(chosen, language_model),
        tokens=int(tokens.sum()),
        loss=float(nats.sum() / tokens.sum()),
        loss_interval=bootstrap_ratio(nats, tokens, seed=settings.seed) if (tokens > 0).sum() > 1 else None,
        method=settings.method,
        trace=trace,
        spectrum=spectrum,
        profile=tuple(profile),
    )


def why_not_comparable(first: Flatness, other: Flatness) -> str | None:
    """What stands against comparing the curvature of two models, in a line; None where nothing does."""
    if first.layout == other.layout and first.tokens == other.tokens:
        return None
    return (
        f"{first.model} and {other.model} differ in their parameters or their tokens, and traces are comparable within "
        "one parameterisation only: bring the smaller model into the larger one with perplab.laws.flatness.widen"
    )


def _cost_by_document(model: torch.nn.Module, chosen: Parameters, text: TextBatches) -> tuple[Any, Any]:
    """Nats and tokens of each document."""
    number = 1 + max(int(documents.max()) for documents in text.documents)
    nats, tokens = np.zeros(number), np.zeros(number)
    with differentiable(model, chosen), torch.no_grad():
        for batch, documents in zip(text.batches, text.documents, strict=True):
            counts = batch.predicted.sum(dim=1).numpy()
            of_token = np.repeat(documents, counts)
            np.add.at(nats, of_token, costs(model, batch).double().cpu().numpy())
            np.add.at(tokens, documents, counts)
    return nats, tokens


def _layout(chosen: Parameters, language_model: LanguageModel) -> str:
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in zip(chosen.names, chosen.tensors, strict=True)]
    return sha256("\n".join([*shapes, tokenizer_fingerprint(language_model.tokenizer)]).encode()).hexdigest()
