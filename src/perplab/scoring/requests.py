"""What the engine is asked: the cost of some tokens after others."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Tokens to score, and the tokens they are predicted from.

    Args:
        context: what comes before, (context tokens,), at least one: the token that begins a document where nothing else
            does.
        continuation: the tokens to score, (scored tokens,), at least one; each is predicted from the context and the
            continuation before it.
        name: what the tokens are from, for messages.

    Raises:
        PerplabError: there is no context or nothing to score.
    """

    context: TokenIds
    continuation: TokenIds
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        if len(self.context) == 0:
            raise PerplabError("a request has no context", "begin it with the tokenizer's bos token")
        if len(self.continuation) == 0:
            raise PerplabError("a request has no token to score", "give a continuation of at least one token")

    @property
    def input_ids(self) -> TokenIds:
        """What the model reads: everything but the last token, which is only predicted."""
        return np.concatenate((self.context, self.continuation[:-1]))
