"""The theory's own case: a log-bilinear model of bigrams at its minimum, under gradient descent with and without noise.

Logits of a context are U a_c. At a minimiser the covariance of the gradient noise equals the Hessian, and stochastic
gradient descent of step eta and batch B drifts, per eta^2 / (4 B) of time, down the trace of the Hessian along the
minimisers. With one factor these are (s a, u / s), the trace is alpha / s^2 + beta s^2, and the drift is an ordinary
differential equation in s.

Everything is float64 and starts from a pair (context vectors, word vectors); several runs go side by side in a leading
axis, which shares nothing but the start.
"""

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp

from perplab.errors import PerplabError
from perplab.text.synthetic.languages import LogBilinear

Floats = npt.NDArray[np.float64]
Vectors = tuple[Floats, Floats]
"""Context vectors (..., contexts, factors) and word vectors (..., words, factors)."""


def bilinear_trace(language: LogBilinear, vectors: Vectors) -> Floats:
    """Trace of the Hessian of the loss at a minimiser, (...): sum_c p_c (tr U^T S_c U + |a_c|^2 tr S_c)."""
    of_words, of_contexts = _trace_parts(language, vectors)
    return of_words + of_contexts


def bilinear_excess(language: LogBilinear, vectors: Vectors) -> Floats:
    """Nats above the entropy of the words, (...)."""
    exact = language.log_conditional
    divergence = (np.exp(exact) * (exact - _log_probabilities(vectors))).sum(axis=-1)
    return np.asarray(divergence @ language.probabilities)


def exact_descent(language: LogBilinear, start: Vectors, *, learning_rate: float, steps: int) -> Vectors:
    """Gradient descent on the exact loss, without any noise."""
    contexts, words = (part.copy() for part in start)
    exact = np.exp(language.log_conditional)
    for _ in range(steps):
        residual = language.probabilities[:, None] * (np.exp(_log_probabilities((contexts, words))) - exact)
        contexts, words = (
            contexts - learning_rate * residual @ words,
            words - learning_rate * residual.T @ contexts,
        )
    return contexts, words


def label_noise_descent(
    language: LogBilinear,
    start: Vectors,
    *,
    learning_rate: float,
    batch_size: int,
    steps: int,
    seed: int,
    runs: int = 1,
) -> Vectors:
    """Stochastic gradient descent on fresh bigrams.

    Args:
        language: where bigrams come from.
        start: context vectors (contexts, factors) and word vectors (words, factors).
        learning_rate: of every step.
        batch_size: bigrams of a step.
        steps: how many.
        seed: of the bigrams.
        runs: independent ones.

    Returns:
        Context vectors (runs, contexts, factors) and word vectors (runs, words, factors).
    """
    contexts, words = (np.tile(part, (runs, 1, 1)) for part in start)
    random = np.random.default_rng(seed)
    own = np.arange(runs)[:, None]
    for _ in range(steps):
        drawn = language.draw(runs * batch_size, random).reshape(runs, batch_size, 2)
        context, word = drawn[..., 0], drawn[..., 1] - len(language.probabilities)
        vectors = contexts[own, context]
        logits = vectors @ words.swapaxes(1, 2)
        residual = np.exp(logits - logits.max(axis=-1, keepdims=True))
        residual /= residual.sum(axis=-1, keepdims=True)
        residual[own, np.arange(batch_size), word] -= 1
        residual *= learning_rate / batch_size
        np.subtract.at(contexts, (own, context), residual @ words)
        words -= residual.swapaxes(1, 2) @ vectors
    return contexts, words


def rank_one_flow(language: LogBilinear, scale: float, *, time: float, batch_size: int = 1) -> float:
    """Where the drift takes the minimiser (s a, u / s), from s = `scale`.

    Args:
        language: of one factor.
        scale: s at the start.
        time: steps times the squared learning rate.
        batch_size: bigrams of a step.

    Raises:
        PerplabError: the language has more than one factor, or the scale is 0.
    """
    if language.context_vectors.shape[1] != 1:
        raise PerplabError(
            f"a closed form for {language.context_vectors.shape[1]} factors", "give a language of one factor"
        )
    if scale == 0:
        raise PerplabError("a minimiser at scale 0", "start from another scale")
    contexts, words = language.minimiser()
    alpha, beta = _trace_parts(language, (contexts, words))
    context_norm, word_norm = float((contexts**2).sum()), float((words**2).sum())

    def drift(_: float, s: Floats) -> Floats:
        slope = 2 * beta * s - 2 * alpha / s**3
        return -slope / (4 * batch_size * (context_norm + word_norm / s**4))

    return float(solve_ivp(drift, (0.0, time), [scale], rtol=1e-9, atol=1e-12).y[0, -1])


def _trace_parts(language: LogBilinear, vectors: Vectors) -> tuple[Floats, Floats]:
    """The part of the trace that falls as context vectors grow and word vectors shrink, and the part that rises."""
    contexts, words = vectors
    probabilities = np.exp(_log_probabilities(vectors))
    variance = probabilities @ words**2 - (probabilities @ words) ** 2
    spread = 1 - (probabilities**2).sum(axis=-1)
    squares = (contexts**2).sum(axis=-1)
    return variance.sum(axis=-1) @ language.probabilities, (squares * spread) @ language.probabilities


def _log_probabilities(vectors: Vectors) -> Floats:
    """Log p(w | c) of a model, (..., contexts, words)."""
    contexts, words = vectors
    logits = contexts @ words.swapaxes(-1, -2)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
