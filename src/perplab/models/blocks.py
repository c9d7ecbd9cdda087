"""Running a model's decoder blocks one at a time.

- What a block is handed beside the hidden states (masks, positions, their embeddings) depends on the family and on the
  batch's shape alone, because batches here have no padding. So the model itself prepares it, once a shape: a forward
  pass is watched, and what each block was called with is kept.
- Only hidden states are stored, for one place in the model: a pass over many batches needs memory for one block's
  activations, however deep the model is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.anatomy import Anatomy, anatomy


@dataclass(frozen=True)
class _Call:
    """What a block is called with after the hidden states."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class BlockRunner:
    """The blocks of a model as functions of hidden states.

    Blocks are those the model had when the runner was made; a changed weight is a changed function, a removed block
    stays callable.

    Args:
        model: in evaluation mode.

    Raises:
        PerplabError: the family is unknown, or its blocks read token ids.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if any(getattr(model.config, "ngram_heads", ())):
            raise PerplabError(
                "blocks with n-gram heads read token ids and cannot be run by themselves", "name a model without them"
            )
        self.model = model
        self.anatomy: Anatomy = anatomy(model)
        self.blocks: list[nn.Module] = [block.module for block in self.anatomy.blocks]
        self._calls: dict[torch.Size, list[_Call]] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    @torch.no_grad()
    def enter(self, input_ids: torch.Tensor) -> torch.Tensor:
        """What the first block reads.

        Args:
            input_ids: (batch, length), without padding.

        Returns:
            (batch, length, hidden size).
        """
        if input_ids.shape not in self._calls:
            self._calls[input_ids.shape] = self._watched(input_ids)
        entered: list[torch.Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            entered.append(arguments[0] if arguments else keywords["hidden_states"])
            raise _Stopped

        self._forward(input_ids, [(self.blocks[0], stop)])
        return entered[0]

    def run(self, index: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """What block `index` makes of its input; differentiable.

        Args:
            index: of the block.
            hidden_states: (batch, length, hidden size), of a shape that entered.

        Returns:
            Of the same shape.
        """
        call = self._calls[hidden_states.shape[:2]][index]
        output = self.blocks[index](hidden_states, *call.arguments, **call.keywords)
        return output[0] if isinstance(output, tuple) else output

    def run_all(self, hidden_states: torch.Tensor, indices: Sequence[int] | range) -> torch.Tensor:
        """What the blocks of `indices`, one after the other, make of an input."""
        for index in indices:
            hidden_states = self.run(index, hidden_states)
        return hidden_states

    def _watched(self, input_ids: torch.Tensor) -> list[_Call]:
        calls: list[_Call] = []

        def keep(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            rest = {name: value for name, value in keywords.items() if name != "hidden_states"}
            calls.append(_Call(arguments[1:], rest))
            if len(calls) == len(self.blocks):
                raise _Stopped

        self._forward(input_ids, [(block, keep) for block in self.blocks])
        return calls

    def _forward(self, input_ids: torch.Tensor, watched: list[tuple[nn.Module, Callable[..., None]]]) -> None:
        """Begin a forward pass; a watcher ends it."""
        handles = [block.register_forward_pre_hook(watcher, with_kwargs=True) for block, watcher in watched]
        try:
            self.model(input_ids=input_ids, use_cache=False)
        except _Stopped:
            pass
        finally:
            for handle in handles:
                handle.remove()


class _Stopped(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    """As far as was needed."""
