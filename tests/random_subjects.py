"""What a page reports on, made from random costs: no model is needed."""

import numpy as np
import pyarrow as pa

from perplab.report import ReportConfig, Subject
from perplab.report.subject import Excerpt, characters, shown_documents
from perplab.scoring import TokenScores
from perplab.scoring.alternatives import Alternatives
from perplab.scoring.token_classes import TokenClassifier

NASTY = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">&amp;\'"]]>'
DOCUMENTS = [
    ("code/first.py", "code", "def first(x):\n\tif x < 1 && x > 0:\n        return '</script>'\r\n" * 12),
    ("prose.txt", "prose", "Ein Häuschen, 日本語 and an emoji \U0001f9ea; then \u202eright to left\u202c.\n\n" * 14),
    (NASTY, NASTY, NASTY * 4 + "\x00\x1b[31m"),
    ("code/second.py", "code", "\n    \n    pass\n" * 9),
    ("short", "prose", "a"),
]


def random_subject(name, seed, mean_token_bytes, documents=DOCUMENTS, config=None):
    """A subject whose tokens are random cuts of the documents' bytes, with random costs."""
    settings = config or ReportConfig()
    generator = np.random.default_rng(seed)
    columns = {"document": [], "position": [], "token_id": [], "start": [], "end": [], "nll": [], "rank": []}
    for row, (_, _, text) in enumerate(documents):
        size = len(text.encode())
        cuts = np.flatnonzero(generator.random(size - 1) < 1 / mean_token_bytes) + 1
        borders = np.concatenate(([0], cuts, [size]))
        count = len(borders) - 1
        columns["document"].append(np.full(count, row))
        columns["position"].append(np.arange(count))
        columns["token_id"].append(generator.integers(0, 50, count))
        columns["start"].append(borders[:-1])
        columns["end"].append(borders[1:])
        columns["nll"].append(generator.gamma(0.7, 3.0, count))
        columns["rank"].append(generator.integers(1, 40, count))
    table = {key: np.concatenate(parts) for key, parts in columns.items()}
    table["window"] = table["document"]
    table["entropy"] = generator.gamma(2.0, 1.0, len(table["nll"]))
    kinds = {"nll": np.float32, "entropy": np.float32, "start": np.int64, "end": np.int64}
    tokens = pa.table({key: values.astype(kinds.get(key, np.int32)) for key, values in table.items()})
    sizes = pa.array([len(text.encode()) for _, _, text in documents], pa.int64())
    words = pa.array([len(text.split()) for _, _, text in documents], pa.int64())
    names, domains, _ = zip(*documents, strict=True)
    listed = pa.table({"name": names, "domain": domains, "bytes": sizes, "words": words})
    origin = {"model": name, "model_fingerprint": f"{seed:032x}", "tokenizer_fingerprint": f"{seed:x}" * 32}
    origin |= {"convention": "perplab", "window": 512, "stride": 256, "corpus": "a test", "metrics": ["nll"]}
    scores = TokenScores(tokens, listed, origin)
    excerpts = []
    for row in shown_documents(scores, settings.shown_documents):
        mine = tokens.filter(pa.array(table["document"] == row)).to_pydict()
        count = max(1, sum(end <= settings.shown_bytes for end in mine["end"]))
        log_probs = -np.sort(generator.gamma(2.0, 2.0, (count, settings.alternatives))).astype(np.float32)
        excerpts.append(
            Excerpt(
                document=row,
                num_tokens=len(mine["end"]),
                texts=characters(documents[row][2].encode(), mine["end"][:count]),
                sizes=np.diff([0, *mine["end"][:count]]),
                nll=np.array(mine["nll"][:count], np.float32),
                rank=np.array(mine["rank"][:count], np.int32),
                entropy=np.array(mine["entropy"][:count], np.float32),
                alternatives=Alternatives(
                    generator.integers(0, 50, (count, settings.alternatives)).astype(np.int32), log_probs
                ),
            )
        )
    spelling = {token: NASTY if token == 7 else f" word{token}\n" for token in range(50)}
    classifier = TokenClassifier(
        alone=generator.integers(0, 7, 50).astype(np.int8),
        begins_in_word=generator.random(50) < 0.5,
        ends_in_word=generator.random(50) < 0.5,
    )
    return Subject(name, scores, excerpts, classifier, spelling)


_MEASURED = {"paper": "scaling", "title": "Scaling", "reference": "arXiv 1", "name": "error", "unit": "%"}
_MEASURED |= {"statement": "Errors are below 1 %.", "effect": "value", "paper_value": 0.41, "metric": 0.43}
_MEASURED |= {"baseline": 1.1, "ours": 0.43, "interval": (-0.31, 0.52), "verdict": "holds", "deterministic": False}
_MEASURED |= {"scale": "pocket", "seeds": 3, "machine": "2 cores", "date": "2026-01-01", "current": True}
CLAIMS = [
    _MEASURED,
    _MEASURED | {"statement": "And in direction.", "verdict": "holds in direction", "interval": None},
    _MEASURED
    | dict.fromkeys(("paper", "title", "reference", "name", "statement", "unit", "machine"), NASTY)
    | {"verdict": "does not show at this scale", "current": False},
]
