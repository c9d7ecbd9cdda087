"""The shape of a masked diffusion network."""

from typing import Any

from transformers import PreTrainedConfig

from perplab.errors import PerplabError


class DiffusionConfig(PreTrainedConfig):
    """Shape of a bidirectional transformer over a vocabulary and one mask symbol.

    Raises:
        PerplabError: sizes that do not divide.
    """

    model_type = "perplab_radd"

    vocab_size: int = 4096  # real tokens: what is predicted
    hidden_size: int = 256
    intermediate_size: int = 0  # 0: four times hidden_size
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    layer_norm_eps: float = 1e-5
    dropout: float = 0.02
    tie_word_embeddings: bool = False  # the input table has a row more than the head
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what follows from other fields, and refuse what does not fit."""
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        super().__post_init__(**kwargs)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise PerplabError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads of even width",
                f"choose a multiple of {2 * self.num_attention_heads}",
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mask_token_id(self) -> int:
        """The mask symbol: the row of the input table after the real tokens."""
        return self.vocab_size
