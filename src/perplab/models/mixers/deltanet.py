"""DeltaNet: fast weights that a token corrects at its key (Yang et al., arXiv 2406.06484).

Decisions:
- Defaults are the paper's: short convolutions of four taps, SiLU, keys and queries of unit length, one strength a head
  and token from a sigmoid, a norm of each head's output.
- `allow_neg_eigval` doubles the strengths, so a token can also turn the old value around (arXiv 2411.12537).
- `use_decay` makes it Gated DeltaNet (arXiv 2412.06464): the state shrinks by exp(-exp(A) softplus(a x + c)) a token.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.kernels import delta_rule
from perplab.models.mixers.fast_weights import FastWeightMixer, FastWeightOptions

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class DeltaNetOptions(FastWeightOptions):
    """Settings of the mixer `deltanet`.

    Args:
        conv_size: see `FastWeightOptions`.
        qk_activation: likewise.
        qk_norm: likewise.
        use_gate: likewise.
        use_beta: learn the strength of each correction; otherwise it is 1.
        allow_neg_eigval: strengths up to 2.
        use_decay: let the state shrink, by a factor for each token and head that is learned.
    """

    use_beta: bool = True
    allow_neg_eigval: bool = False
    use_decay: bool = False


class DeltaNet(FastWeightMixer):
    """A layer of the delta rule."""

    name: ClassVar[str] = "deltanet"
    options_class: ClassVar[type] = DeltaNetOptions
    undecayed: ClassVar[tuple[str, ...]] = ("decay_log_rate", "decay_bias")

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__(config, layer_index)
        heads = config.num_attention_heads
        if self.options.use_beta:
            self.b_proj = nn.Linear(config.hidden_size, heads, bias=False)
        if self.options.use_decay:
            self.a_proj = nn.Linear(config.hidden_size, heads, bias=False)
            self.decay_log_rate = nn.Parameter(torch.empty(heads))
            self.decay_bias = nn.Parameter(torch.empty(heads))
            self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw rates from 0 to 16 and steps from 0.001 to 0.1, as in Mamba 2, under torch's global generator."""
        if self.options.use_decay:
            self.decay_log_rate.uniform_(1e-4, 16).log_()
            step = torch.empty_like(self.decay_bias).uniform_(-6.9, -2.3).exp()
            self.decay_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step

    def recur(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, **memory: Any
    ) -> tuple[Tensor, Tensor]:
        """Correct the state, with no strength and no decay at padding."""
        beta, decay = torch.ones_like(query[..., 0]), None
        if self.options.use_beta:
            beta = torch.sigmoid(self.b_proj(hidden_states)).transpose(1, 2)
        if self.options.allow_neg_eigval:
            beta = 2 * beta
        if self.options.use_decay:
            wide = torch.promote_types(self.decay_bias.dtype, torch.float32)
            step = F.softplus(self.a_proj(hidden_states).to(wide) + self.decay_bias)
            decay = -(self.decay_log_rate.exp() * step).transpose(1, 2)
        if real is not None:
            beta = beta * real[:, None]
            decay = None if decay is None else decay * real[:, None]
        return delta_rule(query, key, value, beta, decay=decay, **memory)
