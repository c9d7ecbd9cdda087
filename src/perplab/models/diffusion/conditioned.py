"""Baselines that take time as an input: a network modulated by time, and diffusion by its log-scores (SEDD).

Decisions:
- The network is the time-free one with adaptive norms: a small embedding of the noise level shifts, scales and gates
  what enters and leaves each layer, and starts at zero. Everything else is shared, so that what separates the two is
  the time input.
- SEDD predicts the logarithm of the concrete score. "Scale" takes the factor of time, alpha / (1 - alpha), and that of
  the vocabulary out of what the network has to predict; without it the network has to learn them.
- MDLM with the time input at zero is a time-free network under `lambda-dce` whose sampler reads the whole batch anew
  when any of it changes: `AbsorbingDiffusion(model.at_zero())` with `SamplingConfig(cache="batch")`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.models.diffusion.absorbing import AbsorbingDiffusion
from perplab.models.diffusion.config import DiffusionConfig
from perplab.models.diffusion.losses import FIRST_TIME, Noise, noise, score_entropy, uniforms
from perplab.models.diffusion.network import BidirectionalTransformer, DiffusionBlock, Rotary
from perplab.models.diffusion.sampling import SamplingConfig, draw_tokens
from perplab.models.diffusion.schedules import LogLinear, Schedule
from perplab.models.diffusion.unmasking import LAST_TIME

FREQUENCIES = 64
"""Sinusoids that describe a noise level."""


class ConditionedBlock(DiffusionBlock):
    """A block whose two branches are shifted, scaled and gated by a condition."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():  # gates begin at one: before it has learnt of time, the block is the plain one
            for gate in (2, 5):
                self.modulation.bias[gate * config.hidden_size : (gate + 1) * config.hidden_size] = 1.0

    def modulated(self, hidden_states: Tensor, rotary: Rotary, condition: Tensor) -> Tensor:
        """Map (batch, length, hidden_size) to the same shape, under a condition (batch, hidden_size)."""
        parts = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        entering = self.input_layernorm(hidden_states) * (1 + scale) + shift
        hidden_states = hidden_states + gate * self.dropout(self.self_attn(entering, rotary, None))
        entering = self.post_attention_layernorm(hidden_states) * (1 + mlp_scale) + mlp_shift
        return hidden_states + mlp_gate * self.dropout(self.mlp(entering))


class ConditionedNetwork(nn.Module):
    """A bidirectional transformer that reads ids and their noise level.

    Args:
        config: of the time-free network that it stands beside.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.body = BidirectionalTransformer(config)
        self.body.layers = nn.ModuleList(ConditionedBlock(config) for _ in range(config.num_hidden_layers))
        bound = config.hidden_size**-0.5
        nn.init.uniform_(self.body.embed_tokens.weight, -bound, bound)
        self.level = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, config.hidden_size), nn.SiLU(), nn.Linear(config.hidden_size, config.hidden_size)
        )
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, noise_level: Tensor) -> Tensor:
        """Logits (batch, length, vocab_size) of ids (batch, length) under the total noise of each row, (batch,)."""
        condition = self.level(_sinusoids(noise_level).to(self.head.weight.dtype))
        hidden_states = self.body.embed_tokens(ids)
        angles = self.body.rotary_emb(torch.arange(ids.shape[1], device=ids.device)[None])
        rotary = (angles[0].to(hidden_states.dtype), angles[1].to(hidden_states.dtype))
        layer: Any  # a ConditionedBlock
        for layer in self.body.layers:
            hidden_states = layer.modulated(hidden_states, rotary, condition)
        return self.head(self.body.norm(hidden_states))

    def at_zero(self) -> Callable[[Tensor], Tensor]:
        """The network with its noise input at zero."""
        return lambda ids: self(ids, torch.zeros(len(ids), device=ids.device))


class ScoreDiffusion:
    """Absorbing diffusion by a network of log-scores that knows the time (SEDD).

    Args:
        network: from ids and total noise to what is added to the scale, (batch, length, vocabulary).
        mask_token_id: the mask symbol.
        schedule: how much is masked at what time.
        scale: take the scale of the scores out of what the network predicts.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        mask_token_id: int,
        schedule: Schedule | None = None,
        *,
        scale: bool = True,
    ) -> None:
        self.network = network
        self.mask_token_id = mask_token_id
        self.schedule: Schedule = schedule or LogLinear()
        self.scale = scale

    def log_scores(self, ids: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
        """Logarithms of the concrete score.

        Args:
            ids: (batch, length), the mask token where a token is hidden.
            t: (batch,) the time.
            predicted: (batch, length) booleans: where they are wanted.

        Returns:
            (predicted positions, vocabulary) float64.
        """
        total = self.schedule.total(t)
        output = self.network(ids, total)[predicted].double()
        if self.scale:
            of_row = torch.log(torch.expm1(total)) + math.log(output.shape[-1])
            output = output - of_row[:, None].expand(ids.shape)[predicted][:, None]
        return output

    def loss(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of the denoising score entropy: (batch,) nats."""
        scored = torch.ones_like(ids, dtype=torch.bool)
        drawn = noise("dse", uniforms(len(ids), "vdm", generator), scored, self.schedule, generator)
        return self.costs(ids, drawn).sum(dim=-1)

    def costs(self, ids: Tensor, drawn: Noise) -> Tensor:
        """Score entropy of each token under this noise, (batch, length) nats, 0 where nothing is hidden."""
        hidden, t = drawn
        log_scores = self.log_scores(ids.masked_fill(hidden, self.mask_token_id), t, hidden)
        entropy = score_entropy(log_scores, ids[hidden], t[:, None].expand(ids.shape)[hidden], self.schedule)
        return torch.zeros(ids.shape, dtype=torch.float64, device=ids.device).masked_scatter(hidden, entropy)

    def conditionals(self) -> AbsorbingDiffusion:
        """The normalised scores at the time when as much is expected to be masked as is.

        They are conditionals like any other, so that their any-order bound can be taken on the same masks as another
        model's; it is at most the bound by score entropy.
        """

        def network(ids: Tensor) -> Tensor:
            hidden = ids == self.mask_token_id
            t = self.schedule.lambda_to_t(hidden.double().mean(dim=-1)).clamp(FIRST_TIME, 1.0)
            everywhere = torch.ones_like(hidden)
            return self.log_scores(ids, t, everywhere).reshape(*ids.shape, -1)

        return AbsorbingDiffusion(network, self.mask_token_id, self.schedule)

    @torch.no_grad()
    def sample(self, ids: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """Fill in what is hidden by Euler steps, each of which asks the network for the time it is at.

        Args:
            ids: (batch, length), the mask token where a token is to be generated.
            steps: of time from 1 to nearly 0.
            generator: of the CPU.
        """
        ids = ids.clone()
        times = torch.linspace(1.0, LAST_TIME, steps + 1, dtype=torch.float64)
        for step in range(steps):
            hidden = ids == self.mask_token_id
            t = times[step].expand(len(ids)).to(ids.device)
            scores = self.log_scores(ids, t, hidden).exp()
            chance = torch.rand(ids.shape, dtype=torch.float64, generator=generator).to(ids.device)
            reveal = scores.sum(dim=-1) * self.schedule.rate(times[step]) * (times[step] - times[step + 1])
            revealed = hidden.clone()
            if step + 1 < steps:
                revealed[hidden] = chance[hidden] < reveal
            which = torch.rand(ids.shape, dtype=torch.float64, generator=generator).to(ids.device)
            drawn = draw_tokens(scores.log()[revealed[hidden]], which[revealed], SamplingConfig())
            ids = ids.masked_scatter(revealed, drawn)
        return ids


def _sinusoids(level: Tensor) -> Tensor:
    """(batch, 2 * FREQUENCIES) sines and cosines of (batch,) levels."""
    exponents = torch.arange(FREQUENCIES, device=level.device, dtype=torch.float64) / FREQUENCIES
    angles = level.double()[:, None] * 10_000.0**-exponents
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
