"""Requests packed into rows of segments: no padding, and a beginning that neighbours share stands once.

Decisions:
- A row is filled with requests in their order until it holds its budget of tokens; one request that is longer than the
  budget has a row to itself. What a row holds follows from the requests alone, not from the model, so two models scored
  on the same requests meet the same rows.
- A request is compared with the one before it. What they share becomes a segment of its own, and the new request
  continues there: a few-shot context, the question after it and each of its choices are read once, whatever their
  depth. Requests that share a beginning should therefore stand next to each other.
- Only a shared beginning that is worth a branch is shared. Two documents that both begin with bos do not make a tree.
- The last token of a request is predicted and never read, so choices of one token cost nothing beyond their context.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perplab.kernels import Segment, SegmentTree
from perplab.scoring.requests import Request, TokenIds

LEAST_SHARED = 8
"""Shortest beginning that is shared."""


@dataclass(frozen=True, eq=False)
class Row:
    """What goes through a model at once.

    Attributes:
        input_ids: (tokens,) int64.
        tree: the segments of the row.
        predictors: (scored,) int64, the place in the row that predicts each scored token.
        labels: (scored,) int64, the scored tokens.
        request: (scored,) int64, which of all requests each belongs to.
        offset: (scored,) int64, its place in the request's continuation.
        requests: those of the row, in order.
    """

    input_ids: Tensor
    tree: SegmentTree
    predictors: Tensor
    labels: Tensor
    request: Tensor
    offset: Tensor
    requests: list[Request]


def rows_of(requests: Iterable[Request], budget: int) -> Iterator[Row]:
    """Pack requests into rows of about `budget` tokens."""
    builder = _RowBuilder(0)
    for request in requests:
        if builder.requests and builder.tokens + builder.new_tokens(request) > budget:
            yield builder.row()
            builder = _RowBuilder(builder.first_request + len(builder.requests))
        builder.add(request)
    if builder.requests:
        yield builder.row()


@dataclass
class _RowBuilder:
    """A row in the making.

    Attributes:
        first_request: number of its first request among all.
        segments: so far, as (start, end, parent).
        path: segments of the last request, from the root to its leaf.
        pieces: tokens of the row, run by run.
    """

    first_request: int
    requests: list[Request] = field(default_factory=list)
    segments: list[list[int]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    pieces: list[TokenIds] = field(default_factory=list)
    predictors: list[npt.NDArray[np.int64]] = field(default_factory=list)
    tokens: int = 0

    def new_tokens(self, request: Request) -> int:
        """How many tokens a request would add."""
        return len(request.input_ids) - self._shared(request)

    def add(self, request: Request) -> None:
        """Put a request at the end of the row."""
        input_ids, shared = request.input_ids, self._shared(request)
        self.path = self._branch_at(shared) if shared else []
        if len(input_ids) > shared:
            parent = self.path[-1] if self.path else -1
            self.path.append(len(self.segments))
            self.segments.append([self.tokens, self.tokens + len(input_ids) - shared, parent])
            self.pieces.append(input_ids[shared:])
            self.tokens += len(input_ids) - shared
        places = np.concatenate([np.arange(*self.segments[index][:2]) for index in self.path])
        self.predictors.append(places[len(request.context) - 1 :])
        self.requests.append(request)

    def row(self) -> Row:
        """The finished row."""
        counts = [len(request.continuation) for request in self.requests]
        numbers = np.arange(self.first_request, self.first_request + len(counts))
        labels = np.concatenate([request.continuation for request in self.requests])
        return Row(
            input_ids=_tensor(np.concatenate(self.pieces)),
            tree=SegmentTree([Segment(*segment) for segment in self.segments]),
            predictors=_tensor(np.concatenate(self.predictors)),
            labels=_tensor(labels),
            request=_tensor(np.repeat(numbers, counts)),
            offset=_tensor(np.concatenate([np.arange(count) for count in counts])),
            requests=self.requests,
        )

    def _shared(self, request: Request) -> int:
        """Tokens a request's input has in common with the last one's, 0 where they are too few to share."""
        if not self.requests:
            return 0
        last, new = self.requests[-1].input_ids, request.input_ids
        length = min(len(last), len(new))
        differs = last[:length] != new[:length]
        shared = int(differs.argmax()) if differs.any() else length
        return shared if shared >= LEAST_SHARED else 0

    def _branch_at(self, depth: int) -> list[int]:
        """The beginning of the last path that is `depth` tokens long, splitting a segment where it ends inside one."""
        path: list[int] = []
        for index in self.path:
            start, end, _ = self.segments[index]
            path.append(index)
            if depth < end - start:
                self._split(index, start + depth)
                return path
            depth -= end - start
            if depth == 0:
                return path
        return path

    def _split(self, index: int, border: int) -> None:
        """Make two segments of one, the second continuing the first and keeping its children."""
        for segment in self.segments[index + 1 :]:
            if segment[2] >= index:
                segment[2] += 1
        _, end, _ = self.segments[index]
        self.segments[index][1] = border
        self.segments.insert(index + 1, [border, end, index])


def _tensor(values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
