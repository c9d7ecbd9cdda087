"""How much of what nobody told a model a linear classifier reads off its hidden states.

Decisions:
- A probe is multinomial logistic regression with an L2 penalty on standardised features, fitted to its minimum on one
  part of the examples and scored on the rest. The penalty is in units of one example, so more examples weigh more.
- Features of a sentence are the last hidden states of all its tokens, side by side.
- What a probe finds has floors: the same network before training (`untrained`), and the sentence itself (`one_hot`).
  Exact conditionals of the language (`lookup_features`) are what the best possible outputs alone would tell.
- The interval (Wilson's) is about the sentences scored, for the fitted probe; other seeds of a model are other models.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.scoring.bootstrap import Interval
from perplab.text.synthetic.languages import Context, Language

Features = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

_LEVEL = 0.95
_SENTENCES_AT_ONCE = 256


@dataclass(frozen=True)
class Probe:
    """What a linear classifier found.

    Attributes:
        accuracy: share of right answers on examples it was not fitted on.
        interval: of the accuracy, at 95 %.
        commonest: share of the commonest label among these examples, what answering without looking would give.
        loss: mean cost of the right label there, in nats.
    """

    accuracy: float
    interval: Interval
    commonest: float
    loss: float


class LinearHead:
    """Multinomial logistic regression on standardised features.

    Args:
        classes: labels are 0 to `classes` - 1.
        penalty: half of it times the squared norm of the weights is added to the summed cost of the examples.

    Attributes:
        weight_: (features, classes); set by `fit`.
        bias_: (classes,); set by `fit`.
    """

    def __init__(self, classes: int, penalty: float = 1.0) -> None:
        self.classes = classes
        self.penalty = penalty

    def fit(self, features: Tensor, labels: Tensor, *, iterations: int = 200) -> "LinearHead":
        """Fit to examples (n, features) and (n,) by L-BFGS; a head that was fitted before goes on from there."""
        features = features.detach().float()
        self._mean = features.mean(dim=0)
        self._spread = features.std(dim=0, correction=0).clamp(min=1e-6)
        if not hasattr(self, "weight_"):
            self.weight_ = torch.zeros(features.shape[1], self.classes)
            self.bias_ = torch.zeros(self.classes)
        variables = [self.weight_.requires_grad_(), self.bias_.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            variables, max_iter=iterations, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            decay = self.penalty / 2 / len(labels) * self.weight_.square().sum()
            objective = F.cross_entropy(self(features), labels) + decay
            objective.backward()  # type: ignore[no-untyped-call]
            return objective

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        self.weight_, self.bias_ = (variable.detach() for variable in variables)
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of examples (n, features)."""
        return (features - self._mean) / self._spread @ self.weight_ + self.bias_


def linear_probe(
    features: Features, labels: Labels, *, seed: int = 0, heldout: float = 0.5, penalty: float = 1.0
) -> Probe:
    """Fit a linear classifier to a part of the examples and score it on the rest.

    Args:
        features: (n, features).
        labels: (n,) from 0.
        seed: of the split.
        heldout: share of the examples that it is scored on.
        penalty: see `LinearHead`.

    Raises:
        PerplabError: numbers of features and labels differ, a part is empty, there is one label only, or a feature is
            not finite.
    """
    fitted, scored = _split(features, labels, seed, heldout)
    inputs, targets = torch.from_numpy(np.asarray(features, dtype=np.float32)), torch.from_numpy(np.asarray(labels))
    head = LinearHead(int(labels.max()) + 1, penalty).fit(inputs[fitted], targets[fitted])
    logits = head(inputs[scored])
    right = float((logits.argmax(dim=1) == targets[scored]).float().mean())
    return Probe(
        accuracy=right,
        interval=_wilson(right, len(scored)),
        commonest=float(np.bincount(labels[scored]).max() / len(scored)),
        loss=float(F.cross_entropy(logits, targets[scored])),
    )


@torch.no_grad()
def hidden_features(model: PreTrainedModel, ids: npt.NDArray[np.int64]) -> Features:
    """Last hidden states of all tokens of each sentence (n, length), side by side: (n, length * width)."""
    training = model.training
    model.eval()
    batches = torch.split(torch.from_numpy(ids), _SENTENCES_AT_ONCE)
    states = [sentence_states(model, batch.to(model.device)).float().cpu() for batch in batches]
    model.train(training)
    found: Features = torch.cat(states).numpy()
    return found


def sentence_states(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The same of one batch, as a tensor with a gradient: (n, length * width) of (n, length) ids."""
    states: Tensor = model(input_ids=input_ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return states.flatten(1)


def lookup_features(language: Language, ids: npt.NDArray[np.int64], context: Context = "causal") -> Features:
    """The exact probabilities of every symbol at every position, side by side: (n, length * vocab_size).

    Raises:
        PerplabError: a sentence is impossible.
    """
    log_probabilities = language.next_token(ids) if context == "causal" else language.masked_token(ids)
    return np.exp(log_probabilities).reshape(len(ids), -1)


def one_hot(ids: npt.NDArray[np.int64], vocab_size: int) -> Features:
    """The sentences themselves: (n, length * vocab_size)."""
    return np.eye(vocab_size, dtype=np.float32)[ids].reshape(len(ids), -1)


def untrained(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same architecture with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: PreTrainedModel = type(model)(model.config)
    return fresh.to(model.device).eval()


def _split(features: Features, labels: Labels, seed: int, heldout: float) -> tuple[Labels, Labels]:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise PerplabError(
            f"features of shape {features.shape} for labels of shape {labels.shape}", "give (n, features) and (n,)"
        )
    if len(labels) and len(np.unique(labels)) < 2:
        raise PerplabError("a probe for a single label", "give examples of two labels or more")
    if not np.isfinite(features).all():
        raise PerplabError("features that are not finite", "check the model's weights")
    order = np.random.default_rng(seed).permutation(len(labels))
    scored = round(heldout * len(labels))
    if not 0 < scored < len(labels):
        raise PerplabError(f"{len(labels)} examples with a share of {heldout} held out", "leave some on both sides")
    return order[scored:], order[:scored]


def _wilson(share: float, n: int) -> Interval:
    z = float(norm.ppf((1 + _LEVEL) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach), _LEVEL)
