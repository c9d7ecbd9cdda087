"""Softmax attention whose heads learn how much the phase of queries and keys counts against their distance.

A pair of components of a query or key is a complex number of some phase, and rotary positions add the distance to the
difference of two phases. Here head and pair first scale that difference by delta and shift it by b:
score = sum r_q r_k cos(delta (phi_q - phi_k) + b + distance). delta = 1, b = 0 is rotary attention; delta = 0 leaves
magnitudes and distance.

Decisions:
- The score factorises: turn each query to phase delta phi + b and each key to delta phi, then attend as always. So
  caches, masks, packed rows and every attention kernel serve unchanged, and cost grows with the length, not its square.
- For that a key must be turned alike for all its queries: delta belongs to a key-value head, b to a query head.
- The method is that of a paper that its author has withdrawn (ComplexFormer, arXiv 2505.10222; after EulerFormer, arXiv
  2403.17729). What it is worth here is measured in `perplab.claims.complexformer`, with the controls that the options
  `learn_delta`, `learn_bias` and `learn_temperature` make.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from perplab.errors import PerplabError
from perplab.kernels.phase_rotation import phase_rotation
from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.softmax import SoftmaxAttention

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig

PhaseSharing = Literal["pair", "head", "shared"]
PhaseInit = Literal["rope", "author", "zero"]


@dataclass(frozen=True, kw_only=True)
class ComplexOptions:
    """Settings of the mixer `complex`.

    Args:
        per: one delta and b for each `pair` of each head, for each `head`, or one `shared` by all heads.
        init: delta at the start: 1 (`rope`), 0 (`zero`), or as the author draws it, normal around 0 with variance
            2 / head_dim (`author`). b starts at 0.
        learn_delta: train delta; otherwise it stays as it starts.
        learn_bias: have b.
        learn_temperature: also have a factor on the magnitudes of queries, started at 1; a control, which reaches
            magnitudes alone.
        attention_scale: factor on the scores; None for head_dim ** -0.5. The author's code has 1.

    Raises:
        PerplabError: an unknown name, or a scale that is not positive.
    """

    per: PhaseSharing = "pair"
    init: PhaseInit = "author"
    learn_delta: bool = True
    learn_bias: bool = True
    learn_temperature: bool = False
    attention_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        for name, known in (("per", get_args(PhaseSharing)), ("init", get_args(PhaseInit))):
            if getattr(self, name) not in known:
                raise PerplabError(f"unknown {name} {getattr(self, name)!r}", f"choose from {', '.join(known)}")
        if self.attention_scale is not None and not 0 < self.attention_scale < math.inf:
            raise PerplabError(f"attention_scale is {self.attention_scale}", "give a positive number")


class EulerPhase(nn.Module):
    """The map of queries and keys, before rotary positions.

    Args:
        num_heads: of the queries.
        head_dim: components of a head.
        num_key_value_heads: of the keys; None for as many as queries have.
        rotary_dim: the first components of a head that are pairs, (i, i + rotary_dim / 2); the rest pass. None for all.
        options: see `ComplexOptions`; `attention_scale` is not used here.

    Attributes:
        delta: (key-value heads, pairs), with 1 in the place of what is shared; a buffer where it is not learned.
        bias: (heads, pairs), likewise; None where there is none.
        temperature: logarithm of the factor on the queries, shaped as `bias`; None where there is none.

    Raises:
        PerplabError: an odd or too large `rotary_dim`, or heads that do not divide.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("delta", "bias", "temperature")

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        num_key_value_heads: int | None = None,
        rotary_dim: int | None = None,
        options: ComplexOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or ComplexOptions()
        groups = num_key_value_heads or num_heads
        self.rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= head_dim:
            raise PerplabError(
                f"{self.rotary_dim} rotary components in a head of {head_dim}",
                "choose an even number no larger than the head",
            )
        if num_heads % groups:
            raise PerplabError(f"{num_heads} heads over {groups} key-value heads", "choose a number that divides")
        self.num_heads = num_heads
        self.queries_per_key = num_heads // groups
        self.init: PhaseInit = options.init
        pairs = self.rotary_dim // 2 if options.per == "pair" else 1
        rows = (1, 1) if options.per == "shared" else (num_heads, groups)
        self.bias = nn.Parameter(torch.empty(rows[0], pairs)) if options.learn_bias else None
        self.temperature = nn.Parameter(torch.empty(rows[0], pairs)) if options.learn_temperature else None
        delta = torch.empty(rows[1], pairs)
        if options.learn_delta:
            self.delta = nn.Parameter(delta)
        else:
            self.register_buffer("delta", delta)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw delta under torch's global generator; b and the logarithm of the temperature begin at 0."""
        if self.init == "author":
            self.delta.normal_(std=(self.rotary_dim / 2) ** -0.5)
        else:
            self.delta.fill_(1.0 if self.init == "rope" else 0.0)
        for parameter in (self.bias, self.temperature):
            if parameter is not None:
                parameter.zero_()

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Map queries (batch, heads, length, head_dim) and keys (batch, key-value heads, length, head_dim)."""
        return self.turn_query(query), self.turn_key(key)

    def turn_query(self, query: Tensor) -> Tensor:
        """Map queries alone."""
        delta = self.delta if len(self.delta) == 1 else self.delta.repeat_interleave(self.queries_per_key, dim=0)
        gain = None if self.temperature is None else self.temperature.exp()
        return self._turn(query, delta, self.bias, gain)

    def turn_key(self, key: Tensor) -> Tensor:
        """Map keys alone."""
        return self._turn(key, self.delta, None, None)

    def _turn(self, states: Tensor, delta: Tensor, bias: Tensor | None, gain: Tensor | None) -> Tensor:
        """Turn the rotary components, with a row of angles and of factors for each head or for all."""
        turned = phase_rotation(states[..., : self.rotary_dim], delta[:, None], None if bias is None else bias[:, None])
        if gain is not None:
            turned = (turned * gain.expand(-1, self.rotary_dim // 2).repeat(1, 2)[:, None]).to(states.dtype)
        if self.rotary_dim == states.shape[-1]:
            return turned
        return torch.cat((turned, states[..., self.rotary_dim :]), dim=-1)


class ComplexAttention(SoftmaxAttention):
    """Grouped-query softmax attention with the phases of queries and keys adapted."""

    options_class: ClassVar[type] = ComplexOptions

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__(config, layer_index)
        options: ComplexOptions = config.options_of("complex")
        self.attention_scale = options.attention_scale
        self.phase = EulerPhase(
            config.num_attention_heads,
            config.head_dim,
            num_key_value_heads=config.num_key_value_heads,
            options=options,
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, context: SequenceContext, scale: float | None = None
    ) -> Tensor:
        """Attention as elsewhere, of adapted queries and keys."""
        query, key = self.phase(query, key)
        return super().attend(query, key, value, context, self.attention_scale if scale is None else scale)
