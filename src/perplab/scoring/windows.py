"""What a model reads at a time: a sequence of tokens cut into windows.

- The length of a window counts the tokens the model reads. Some procedures throw away the prediction after the last of
  them; others keep it, and their windows reach one token further than they read.
- A window scores the tokens that no window before it reached. Its first token has no context in it and is never scored
  from it.
- A number that a procedure only usually takes gives way to a model with fewer positions; a number the user gives does
  not, and is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from perplab.errors import PerplabError


@dataclass(frozen=True, slots=True)
class Windows:
    """How a procedure cuts sequences.

    Args:
        length: tokens read in a window, less where the model has fewer positions; None reads as many as it has.
        stride: tokens from the begin of one window to the next, at most the length; `half` moves on by half a window;
            None means windows that by definition do not overlap.
        keeps_last_prediction: whether the token after those that are read is scored too.
        tail: what is done where less than a window is left: it is `kept` as a short window, `filled` to a whole one
            with tokens before it, or `dropped`.
        least: whole windows that a sequence must have.
    """

    length: int | None = None
    stride: int | Literal["half"] | None = None
    keeps_last_prediction: bool = True
    tail: Literal["kept", "filled", "dropped"] = "kept"
    least: int = 0


class FittedWindows(NamedTuple):
    """Windows with their numbers for one model.

    Attributes:
        windows: what they are made from.
        length: tokens read in a window.
        stride: tokens from the begin of one to the next.
    """

    windows: Windows
    length: int
    stride: int

    def __str__(self) -> str:
        """In words, for a table."""
        last = "kept" if self.windows.keeps_last_prediction else "unused"
        return f"{self.length} tokens, every {self.stride}, last prediction {last}, tail {self.windows.tail}"

    @property
    def span(self) -> int:
        """Tokens that a whole window reaches over."""
        return self.length + self.windows.keeps_last_prediction


class Window(NamedTuple):
    """A window over a sequence: it reads from `begin` on and may score the tokens from `first` to before `end`."""

    begin: int
    first: int
    end: int


def fit(windows: Windows, max_length: int, length: int | None, stride: int | None) -> FittedWindows:
    """Settle the numbers.

    Args:
        windows: how to cut.
        max_length: positions of the model.
        length: tokens read in a window, where the user says so.
        stride: tokens between the begins of windows, where the user says so.

    Raises:
        PerplabError: the length is below 1 or above the model's positions, the stride below 1 or above the length, or
            there is a stride for windows that do not overlap.
    """
    if length is None:
        length = min(windows.length or max_length, max_length)
    elif length > max_length:
        raise PerplabError(
            f"a window of {length} tokens is longer than the model's {max_length} positions",
            f"give a window of {max_length} or less",
        )
    elif length < 1:
        raise PerplabError(f"a window of {length} tokens holds no token", "give a window of 2 or more")
    return FittedWindows(windows, length, _stride(windows, length, stride))


def _stride(windows: Windows, length: int, stride: int | None) -> int:
    if stride is None:
        if windows.stride == "half":
            return length - length // 2
        return min(windows.stride or length, length)
    if windows.stride is None:
        raise PerplabError(f"a stride of {stride} for windows that do not overlap", "leave the stride out")
    if stride > length:
        raise PerplabError(
            f"a stride of {stride} is larger than the window of {length} tokens and would leave tokens out",
            f"give a stride of {length} or less",
        )
    if stride < 1:
        raise PerplabError(f"a stride of {stride} does not move the window", "give a stride of 1 or more")
    return stride


def cut(tokens: int, fitted: FittedWindows) -> Iterator[Window]:
    """Windows over a sequence of so many tokens, in order; each token is scored in one of them at most.

    Raises:
        PerplabError: the sequence has fewer whole windows than it must.
    """
    windows = fitted.windows
    if tokens < windows.least * fitted.length:
        raise PerplabError(
            f"the text is too short: {tokens} tokens, where {windows.least * fitted.length} are needed",
            "give a longer text or a smaller window",
        )
    begin = reached = 0
    while reached < tokens:
        end = min(begin + fitted.span, tokens)
        if end - begin < fitted.span:
            if windows.tail == "dropped":
                return
            if windows.tail == "filled":
                begin = max(0, end - fitted.span)
        first = max(begin + 1, reached)
        if first < end:
            yield Window(begin, first, end)
        reached = end
        begin += fitted.stride
