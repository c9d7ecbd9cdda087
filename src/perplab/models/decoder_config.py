"""The shape of a decoder: sizes, and the parts of each layer by name."""

from dataclasses import field, fields
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

from perplab.errors import PerplabError
from perplab.models.mixers.registry import TOKEN_MIXERS
from perplab.models.parts import CHANNEL_MIXERS

PositionEncoding = Literal["rotary", "learned", "none"]


class DecoderConfig(PreTrainedConfig):
    """Shape of a decoder.

    Raises:
        PerplabError: an unknown key, an unknown mixer, or sizes that do not divide.
    """

    model_type = "perplab_decoder"

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 0  # 0: as many as attention heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 1024
    position_encoding: PositionEncoding = "rotary"  # of attention; "learned" is added to the embeddings
    rope_theta: float = 10_000.0
    sliding_window: int = 128  # tokens that "sliding" attention sees, the token itself among them
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    qk_norm: bool = False  # RMS norm on the queries and keys of each head
    token_mixers: list[str] = field(default_factory=list)  # one name a layer; empty: "softmax" everywhere
    channel_mixers: list[str] = field(default_factory=list)  # one name a layer; empty: "swiglu" everywhere
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the mixer's name
    ngram_heads: list[list[int]] = field(default_factory=list)  # orders of the heads after each layer; empty: none
    ngram_separator: int | None = None  # token that n-grams do not reach across
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what follows from other fields, and refuse what does not fit."""
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        divided = not self.head_dim
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.token_mixers = self.token_mixers or ["softmax"] * self.num_hidden_layers
        self.channel_mixers = self.channel_mixers or ["swiglu"] * self.num_hidden_layers
        self.ngram_heads = self.ngram_heads or [[] for _ in range(self.num_hidden_layers)]
        known = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("_") or key in _SHARED_KEYS}
        if kwargs:
            raise PerplabError(
                f"unknown key {min(kwargs)!r} in a {self.model_type} config",
                "remove it, or correct it to a field of DecoderConfig",
            )
        super().__post_init__(**known)
        self._validate_mixers()
        self._validate_heads(divided=divided)
        self._validate_positions()
        for name in self.mixer_options:
            self.options_of(name)

    @property
    def cache_layers(self) -> list[str]:
        """What each layer keeps of the tokens it has seen: "attention", "sliding" or "state"."""
        return [TOKEN_MIXERS[name].cache_layer for name in self.token_mixers]

    @property
    def attends(self) -> bool:
        """Whether any layer is an attention, which needs masks and may need positions."""
        return any(kind != "state" for kind in self.cache_layers)

    @property
    def position_limit(self) -> int | None:
        """Longest sequence the decoder can read; None where no part of it knows of positions."""
        reads_positions = self.position_encoding == "learned" or "attention" in self.cache_layers
        return self.max_position_embeddings if reads_positions else None

    def options_of(self, mixer: str) -> Any:
        """The settings of a mixer, as its `options_class`.

        Raises:
            PerplabError: the mixer is unknown or has no settings, or one of them is unknown or wrong.
        """
        given = self.mixer_options.get(mixer, {})
        options_class = TOKEN_MIXERS[mixer].options_class if mixer in TOKEN_MIXERS else None
        if options_class is None:
            raise PerplabError(f"mixer_options of {mixer!r}, which takes none", f"choose from {_with_options()}")
        known = [option.name for option in fields(options_class)]
        if unknown := sorted(given.keys() - set(known)):
            raise PerplabError(f"unknown option {unknown[0]!r} of mixer {mixer}", f"choose from {', '.join(known)}")
        return options_class(**given)

    def _validate_heads(self, *, divided: bool) -> None:
        if divided and self.hidden_size % self.num_attention_heads:
            raise PerplabError(
                f"hidden_size {self.hidden_size} does not divide over {self.num_attention_heads} attention heads",
                "choose a multiple, or give head_dim",
            )
        if self.head_dim % 2:
            raise PerplabError(f"head_dim {self.head_dim} is odd", "choose an even one, as rotary positions turn pairs")
        if self.num_attention_heads % self.num_key_value_heads:
            raise PerplabError(
                f"{self.num_attention_heads} attention heads over {self.num_key_value_heads} key-value heads",
                "choose a number of key-value heads that divides the number of attention heads",
            )

    def _validate_mixers(self) -> None:
        if len(self.ngram_heads) != self.num_hidden_layers:
            raise PerplabError(
                f"ngram_heads names {len(self.ngram_heads)} layers of {self.num_hidden_layers}",
                "give one list of orders a layer",
            )
        if any(order < 1 for orders in self.ngram_heads for order in orders):
            raise PerplabError("an n-gram head of an order below 1", "give orders of 1 or more")
        registries: dict[str, dict[str, Any]] = {"token_mixers": TOKEN_MIXERS, "channel_mixers": CHANNEL_MIXERS}
        for chosen, registry in registries.items():
            names = getattr(self, chosen)
            if len(names) != self.num_hidden_layers:
                raise PerplabError(
                    f"{chosen} names {len(names)} layers of {self.num_hidden_layers}", "give one name a layer"
                )
            for name in names:
                if name not in registry:
                    raise PerplabError(f"unknown name {name!r} in {chosen}", f"choose from {', '.join(registry)}")

    def _validate_positions(self) -> None:
        if self.position_encoding not in get_args(PositionEncoding):
            raise PerplabError(
                f"unknown position_encoding {self.position_encoding!r}",
                f"choose from {', '.join(get_args(PositionEncoding))}",
            )
        if self.sliding_window < 1:
            raise PerplabError(f"sliding_window is {self.sliding_window}", "give 1 or more")


def _with_options() -> str:
    return ", ".join(name for name, mixer in TOKEN_MIXERS.items() if mixer.options_class)


_SHARED_KEYS = {
    "attn_implementation",
    "model_type",
    "name_or_path",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}
