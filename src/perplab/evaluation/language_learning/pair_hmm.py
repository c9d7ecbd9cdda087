"""Learning the language of an episode by Baum-Welch, with a hidden Markov model shaped like an automaton.

Decisions:
- A hidden state is an edge (i, j) of an automaton with `states` states: being in it means having gone from i to j by
  the symbol it emits. So (i, j) is followed by (j, k) alone, no edge goes from a state to itself, and strings begin
  with an edge from state 0.
- Probabilities stand as tensors of the free indices, transition[i, j, k] and emission[i, j, symbol]: what the shape
  forbids has no parameter, and a step costs states ** 3 rather than states ** 4.
- All in log space and float64. Strings of one episode, and episodes with models of their own, are batched.
- Predictions are causal the plain way: for every prefix of an episode a model is fitted from scratch. That is slow, so
  score a few dozen episodes at most.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.evaluation.language_learning.metrics import Floats
from perplab.text.synthetic.language_learning import LETTERS, SEPARATOR, VOCABULARY_SIZE

_NOTHING = -1
_PREFIXES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class PairParameters:
    """Log-probabilities of a batch of models.

    Attributes:
        initial: (models, states) of the first edge (0, j).
        transition: (models, states, states, states) of (j, k) after (i, j).
        emission: (models, states, states, symbols) of a symbol on (i, j).
    """

    initial: Tensor
    transition: Tensor
    emission: Tensor


class PairHMM:
    """A hidden Markov model over edges; called with ids (length,), returns (length, vocabulary).

    Args:
        states: of the automaton.
        iterations: of expectation and maximisation.
        floor: added to every allowed probability after each iteration, before they are normalised.
        seed: of the initial probabilities.

    Attributes:
        parameters_: the model; set by `fit`.
        log_likelihoods_: before each iteration and after the last, of all strings together; set by `fit`.

    Raises:
        PerplabError: there are fewer than two states.
    """

    def __init__(self, states: int = 12, *, iterations: int = 10, floor: float = 1e-5, seed: int = 0) -> None:
        if states < 2:
            raise PerplabError(f"{states} states", "give two or more: an edge leads to another state")
        self.states = states
        self.iterations = iterations
        self.floor = floor
        self.seed = seed

    def fit(self, strings: list[npt.NDArray[np.int64]]) -> "PairHMM":
        """Fit one model to strings of symbols.

        Raises:
            PerplabError: there is no symbol.
        """
        if not any(len(string) for string in strings):
            raise PerplabError("no symbol to learn from", "give a string that is not empty")
        history = self._fitted(_stacked([strings]))
        self.parameters_ = history[-1][0]
        self.log_likelihoods_ = [float(likelihood) for _, likelihood in history]
        return self

    def __call__(self, input_ids: npt.NDArray[np.int64]) -> Floats:
        """Distributions of what follows each token, (length, vocabulary); a fit for every prefix."""
        prefixes = [_strings(input_ids[: end + 1]) for end in range(len(input_ids))]
        rows = []
        for start in range(0, len(prefixes), _PREFIXES_AT_ONCE):
            some = prefixes[start : start + _PREFIXES_AT_ONCE]
            parameters, _ = self._fitted(_stacked(some))[-1]
            rows.append(_following(parameters, _stacked([[strings[-1]] for strings in some])))
        letters = torch.cat(rows).numpy()
        return np.pad(letters, ((0, 0), (0, VOCABULARY_SIZE - len(LETTERS))))

    def _fitted(self, strings: Tensor) -> list[tuple[PairParameters, Tensor]]:
        """Parameters and log-likelihood (models,) before each iteration and after the last.

        Args:
            strings: (models, strings, length), filled up with -1.
        """
        parameters = self._drawn(len(strings))
        history = []
        for _ in range(self.iterations):
            improved, likelihood = self._improved(parameters, strings)
            history.append((parameters, likelihood))
            parameters = improved
        _, likelihood = _forward(parameters, strings)
        return [*history, (parameters, likelihood.sum(dim=1))]

    def _drawn(self, models: int) -> PairParameters:
        """The same random probabilities for every model."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = ((self.states,), (self.states,) * 3, (self.states, self.states, len(LETTERS)))
        drawn = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        initial, transition, emission = (weights.expand(models, *weights.shape) for weights in drawn)
        return _normalised(initial, transition, emission, 0.0)

    def _improved(self, parameters: PairParameters, strings: Tensor) -> tuple[PairParameters, Tensor]:
        """One iteration, and the log-likelihood (models,) before it."""
        forward, likelihood = _forward(parameters, strings)
        backward = _backward(parameters, strings)
        is_symbol = strings != _NOTHING
        occupied = (forward + backward - likelihood[..., None, None, None]).exp()
        occupied = occupied.where(is_symbol[..., None, None], 0.0)  # (models, strings, length, i, j)
        emits = torch.nn.functional.one_hot(strings.clamp(min=0), len(LETTERS)).to(occupied.dtype)
        emission = torch.einsum("mstij,mstv->mijv", occupied, emits)
        transition = torch.zeros_like(parameters.transition)
        emitted = _emitted(parameters, strings)
        for time in range(strings.shape[2] - 1):
            arriving = (backward + emitted)[:, :, time + 1, None] - likelihood[..., None, None, None]
            moved = (forward[:, :, time, :, :, None] + parameters.transition[:, None] + arriving).exp()
            transition += moved.where(is_symbol[:, :, time + 1, None, None, None], 0.0).sum(dim=1)
        initial = occupied[:, :, 0, 0].sum(dim=1)
        improved = _normalised(
            _or_as_before(initial, parameters.initial),
            _or_as_before(transition, parameters.transition),
            _or_as_before(emission, parameters.emission),
            self.floor,
        )
        return improved, likelihood.sum(dim=1)


def _or_as_before(counts: Tensor, log_probabilities: Tensor) -> Tensor:
    """Expected counts; the old probabilities where nothing was counted."""
    return torch.where(counts.sum(dim=-1, keepdim=True) > 0, counts, log_probabilities.exp())


def _normalised(initial: Tensor, transition: Tensor, emission: Tensor, floor: float) -> PairParameters:
    """Log-probabilities in proportion to weights, a floor beneath what the shape of an automaton allows."""
    states = initial.shape[-1]
    other = ~torch.eye(states, dtype=torch.bool)

    def log_share(weights: Tensor, allowed: Tensor) -> Tensor:
        shares = weights.where(allowed, 0.0)
        shares = (shares / shares.sum(dim=-1, keepdim=True) + floor).where(allowed, 0.0)
        return (shares / shares.sum(dim=-1, keepdim=True)).log()

    allowed_edge = other[..., None].expand(states, states, len(LETTERS))
    log_emission = log_share(emission, torch.ones_like(emission, dtype=torch.bool)).where(allowed_edge, -math.inf)
    return PairParameters(log_share(initial, other[0]), log_share(transition, other), log_emission)


def _emitted(parameters: PairParameters, strings: Tensor) -> Tensor:
    """(models, strings, length, states, states) log-probability of each symbol on each edge."""
    models = torch.arange(len(strings))[:, None, None]
    return parameters.emission.permute(0, 3, 1, 2)[models, strings.clamp(min=0)]


def _forward(parameters: PairParameters, strings: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each beginning of each string with its last edge, and of the whole string.

    Returns:
        (models, strings, length, states, states) and (models, strings); behind its end a string's last value stands.
    """
    emitted = _emitted(parameters, strings)
    current = torch.full_like(emitted[:, :, 0], -math.inf)
    current[:, :, 0] = parameters.initial[:, None]
    current = current + emitted[:, :, 0]
    found = [current]
    for time in range(1, strings.shape[2]):
        onward = _onward(parameters, current) + emitted[:, :, time]
        current = torch.where((strings[:, :, time] != _NOTHING)[..., None, None], onward, current)
        found.append(current)
    likelihood = current.flatten(2).logsumexp(dim=-1)
    return torch.stack(found, dim=2), likelihood.where(strings[:, :, 0] != _NOTHING, 0.0)


def _onward(parameters: PairParameters, edges: Tensor) -> Tensor:
    """Log-probability of the next edge (j, k), from that of the last edge (i, j); (models, strings, states, states)."""
    return (edges[..., None] + parameters.transition[:, None]).logsumexp(dim=2)


def _backward(parameters: PairParameters, strings: Tensor) -> Tensor:
    """Log-probability of the rest of each string after each edge; shaped as the forward ones."""
    emitted = _emitted(parameters, strings)
    current = torch.zeros_like(emitted[:, :, 0])
    found = [current]
    for time in range(strings.shape[2] - 1, 0, -1):
        arriving = (current + emitted[:, :, time])[:, :, None]
        before = (parameters.transition[:, None] + arriving).logsumexp(dim=-1)
        current = torch.where((strings[:, :, time] != _NOTHING)[..., None, None], before, current)
        found.append(current)
    return torch.stack(found[::-1], dim=2)


def _following(parameters: PairParameters, strings: Tensor) -> Tensor:
    """(models, symbols) distribution of what follows one string of each model, (models, 1, length)."""
    forward, _ = _forward(parameters, strings)
    edges = _onward(parameters, forward[:, :, -1])[:, 0]
    starts = torch.full_like(edges, -math.inf)
    starts[:, 0] = parameters.initial
    is_empty = strings[:, 0, 0] == _NOTHING
    edges = torch.where(is_empty[:, None, None], starts, edges)
    logits = (edges[..., None] + parameters.emission).flatten(1, 2).logsumexp(dim=1)
    return torch.softmax(logits, dim=-1)


def _strings(input_ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The strings of an episode; the last is the one that goes on, and may be empty."""
    pieces = np.split(input_ids, np.flatnonzero(input_ids == SEPARATOR))
    return [piece[piece < SEPARATOR] for piece in pieces]


def _stacked(models: list[list[npt.NDArray[np.int64]]]) -> Tensor:
    """(models, strings, length), filled up with -1."""
    most = max(len(strings) for strings in models)
    longest = max(1, *(len(string) for strings in models for string in strings))
    stacked = torch.full((len(models), most, longest), _NOTHING)
    for model, strings in enumerate(models):
        for place, string in enumerate(strings):
            stacked[model, place, : len(string)] = torch.from_numpy(np.ascontiguousarray(string))
    return stacked
