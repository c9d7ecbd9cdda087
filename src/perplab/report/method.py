"""How the figures of a page came to be, for whoever wants to reproduce them."""

from collections.abc import Iterator, Sequence

from perplab.report.subject import Subject


def subtitle(subjects: Sequence[Subject]) -> str:
    """What was measured, in a line; empty where no model was."""
    if not subjects:
        return ""
    scores = subjects[0].scores
    corpus = scores.origin.get("corpus")
    return (
        f"What every token cost in {scores.documents.num_rows:,} documents, {scores.num_bytes:,} bytes"
        f"{f' of {corpus}' if corpus else ''}."
    )


def method(subjects: Sequence[Subject], seed: int) -> Iterator[tuple[str, str]]:
    """Names and values of what decides the figures."""
    origin = subjects[0].scores.origin
    if origin.get("corpus"):
        yield "Corpus", str(origin["corpus"])
    yield "Convention", f"{origin['convention']}, windows of {origin['window']} tokens at strides of {origin['stride']}"
    yield "Intervals", f"95 %, documents resampled 10,000 times, seed {seed}"
    yield "Unit", "1 nat is 1.443 bits; costs are natural logarithms"
    for subject in subjects:
        for key in ("model_fingerprint", "tokenizer_fingerprint"):
            if subject.scores.origin.get(key):
                yield f"{key.partition('_')[0].capitalize()} of {subject.name}", str(subject.scores.origin[key])
