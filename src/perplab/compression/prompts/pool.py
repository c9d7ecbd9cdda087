"""Named soft prompts, made for models of one embedding width.

- A prompt is a float32 tensor: in half precision the steps that train it would be too small to move it.
- On disk it is `model.safetensors`, a tensor a prompt, whose header says which base model the prompts were made for: a
  digest of that file is then a digest of both.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from perplab.artifacts import atomic_file
from perplab.errors import PerplabError

FILE_NAME = "model.safetensors"


@dataclass(frozen=True, eq=False)
class SoftPromptPool:
    """Prompts in their order.

    Args:
        prompts: name to (tokens, embedding width) vectors, or to (layers, 2, heads, tokens, head_dim) keys and values.
            A prompt may have no tokens: the model as it is.

    Raises:
        PerplabError: there is no prompt, or their vectors differ in width.
    """

    prompts: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Refuse what cannot be read together."""
        if not self.prompts:
            raise PerplabError("a pool without a prompt", "give at least one")
        widths = {vectors.shape[1] for vectors in self.prompts.values() if vectors.ndim == 2}
        if len(widths) > 1:
            raise PerplabError(
                f"prompts of widths {', '.join(map(str, sorted(widths)))} in one pool",
                "keep the prompts of one model together",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(self.prompts)

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of each prompt."""
        return {name: vectors.shape[-2] for name, vectors in self.prompts.items()}

    @property
    def num_parameters(self) -> int:
        """Numbers in all prompts."""
        return sum(vectors.numel() for vectors in self.prompts.values())

    def only(self, names: Sequence[str]) -> "SoftPromptPool":
        """Some of the prompts, in the order of `names`.

        Raises:
            PerplabError: a name is unknown.
        """
        for name in names:
            if name not in self.prompts:
                raise PerplabError(f"no prompt is called {name!r}", f"choose from {', '.join(self.names)}")
        return SoftPromptPool({name: self.prompts[name] for name in names})

    def concatenated(self) -> "SoftPromptPool":
        """All prompts of vectors as one, in their order."""
        return SoftPromptPool({"+".join(self.names): torch.cat(list(self.prompts.values()))})

    def save(self, folder: str | os.PathLike[str], base_fingerprint: str) -> None:
        """Write the prompts into `folder`.

        Args:
            folder: existing or new.
            base_fingerprint: of the model they were made for.

        Raises:
            PerplabError: the folder cannot be written.
        """
        tensors = {name: vectors.detach().cpu().contiguous() for name, vectors in self.prompts.items()}
        with atomic_file(Path(folder) / FILE_NAME) as temporary:
            try:
                save_file(tensors, temporary, metadata={"base_fingerprint": base_fingerprint})
            except SafetensorError as error:
                raise OSError(str(error)) from error

    @classmethod
    def read(cls, folder: str | os.PathLike[str], names: Sequence[str]) -> "SoftPromptPool":
        """The prompts in `folder`, in the order of `names`.

        Raises:
            PerplabError: the file is missing or damaged, or a prompt is not in it.
        """
        path = Path(folder) / FILE_NAME
        try:
            with safe_open(path, framework="pt") as file:
                return cls({name: file.get_tensor(name) for name in names})
        except (SafetensorError, OSError) as error:
            raise PerplabError(f"{path} cannot be read ({error})", "copy the model again") from error
