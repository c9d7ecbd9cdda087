"""Mixers whose memory is a matrix a head, "fast weights" that each token reads and writes: what they have in common.

Queries, keys and values are projected, pass a short causal convolution and SiLU, and are split into heads; queries and
keys are normalised; the state is read; what was read is normalised a head at a time, may be gated, and is projected
out. Positions are not encoded: the order of tokens is in the state. The frame is DeltaNet's (arXiv 2406.06484); linear
attention and its kin are the same layer with another rule.

Decisions:
- The state is float32 and of constant size. With it a cache keeps the inputs that the convolutions look back on.
- Rows with padding are sorted so that their tokens come first, in order, and sorted back at the end. Neither the
  convolutions nor the state meet padding then, wherever it stands.
- Queries keep the factor key_dim ** -0.5 also where they have unit length, as checkpoints of this family expect.
- Convolutions are drawn as torch draws them, uniformly within width ** -0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.errors import PerplabError
from perplab.kernels.short_convolution import last_inputs, short_convolution
from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.token_mixer import CacheLayer, TokenMixer
from perplab.models.parts import RMSNorm

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig

Activation = Literal["silu", "relu", "elu+1", "identity"]
Normalisation = Literal["l2", "sum"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "elu+1": lambda states: F.elu(states) + 1,
    "identity": lambda states: states,
}


@dataclass(frozen=True, kw_only=True)
class FastWeightOptions:
    """Settings of the layer around the state.

    Args:
        conv_size: tokens that the short convolutions see, the token itself among them; 0 for none.
        qk_activation: of queries and keys; values have SiLU.
        qk_norm: queries and keys are divided by their length (`l2`) or by their sum (`sum`), which takes an activation
            that is not negative.
        use_gate: multiply what was read, once normalised, by SiLU of another projection.

    Raises:
        PerplabError: an unknown name, or a norm that could divide by zero.
    """

    conv_size: int = 4
    qk_activation: Activation = "silu"
    qk_norm: Normalisation = "l2"
    use_gate: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        for name, known in (("qk_activation", get_args(Activation)), ("qk_norm", get_args(Normalisation))):
            if getattr(self, name) not in known:
                raise PerplabError(f"unknown {name} {getattr(self, name)!r}", f"choose from {', '.join(known)}")
        if self.qk_norm == "sum" and self.qk_activation not in ("relu", "elu+1"):
            raise PerplabError(
                f"qk_norm sum after {self.qk_activation}, whose sum may be zero", "choose relu or elu+1, or qk_norm l2"
            )
        if self.conv_size < 0 or self.conv_size == 1:
            raise PerplabError(f"conv_size {self.conv_size}", "give 2 or more, or 0 for no convolution")


class ShortConvolution(nn.Module):
    """Weights of a causal convolution of each channel; see `perplab.kernels.short_convolution`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the taps under torch's global generator."""
        bound = self.weight.shape[1] ** -0.5
        self.weight.uniform_(-bound, bound)


class FastWeightMixer(TokenMixer):
    """The layer around a rule for the state, which a subclass gives in `recur`."""

    cache_layer: ClassVar[CacheLayer] = "state"
    name: ClassVar[str]
    """Under which the config holds the options."""

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.options: Any = config.options_of(self.name)
        self.head_dim = config.head_dim
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        if self.options.conv_size:
            self.q_conv = ShortConvolution(width, self.options.conv_size)
            self.k_conv = ShortConvolution(width, self.options.conv_size)
            self.v_conv = ShortConvolution(width, self.options.conv_size)
        if self.options.use_gate:
            self.g_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def recur(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, **memory: Any
    ) -> tuple[Tensor, Tensor]:
        """Read from the state and write to it.

        Args:
            hidden_states: (batch, length, hidden_size), for what the rule projects itself.
            query: (batch, heads, length, head_dim).
            key: as `query`.
            value: as `query`.
            real: (batch, length) booleans, false where nothing may be written; None for all true.
            memory: `initial_state` and `position_ids`, as the kernels take them.

        Returns:
            What was read (batch, heads, length, head_dim), and the state.
        """
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """Mix positions: (batch, length, hidden_size) to the same shape."""
        if context.real is None:
            return self._mix(hidden_states, None, context)
        order = torch.argsort(~context.real, dim=1, stable=True)
        mixed = self._mix(_sorted(hidden_states, order), context.real.gather(1, order), context)
        return _sorted(mixed, order.argsort(dim=1))

    def _mix(self, hidden_states: Tensor, real: Tensor | None, context: SequenceContext) -> Tensor:
        """Mix rows whose padding, where `real` is false, comes last."""
        kept = context.state(self.layer_index)
        tensors = {} if kept is None else kept.tensors
        position_ids = context.position_ids if context.packed else None
        count = None if real is None else real.sum(dim=1)
        new: dict[str, Tensor] = {}
        heads = []
        for name in "qkv":
            states = getattr(self, f"{name}_proj")(hidden_states)
            if self.options.conv_size:
                weight, before = getattr(self, f"{name}_conv").weight, tensors.get(f"{name}_inputs")
                if kept is not None:
                    new[f"{name}_inputs"] = last_inputs(states, weight.shape[1], before=before, count=count)
                states = short_convolution(states, weight, before=before, position_ids=position_ids)
            states = F.silu(states) if name == "v" else self._feature(states)
            heads.append(states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2))
        query, key, value = heads
        query, key = self._normalised(query), self._normalised(key)
        read, new["state"] = self.recur(
            hidden_states, query, key, value, real, initial_state=tensors.get("state"), position_ids=position_ids
        )
        if kept is not None:
            kept.tensors = new
            kept.advance(hidden_states.shape[1])
        read = self.o_norm(read.transpose(1, 2)).flatten(2)
        return self.o_proj(read * F.silu(self.g_proj(hidden_states)) if self.options.use_gate else read)

    def _feature(self, states: Tensor) -> Tensor:
        return _ACTIVATIONS[self.options.qk_activation](states)

    def _normalised(self, states: Tensor) -> Tensor:
        """Divide each head's vector by its length or its sum, in float32 or wider."""
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        if self.options.qk_norm == "l2":
            wide = wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + 1e-6)
        else:
            wide = wide / wide.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        return wide.to(states.dtype)


def _sorted(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[2]))
