"""What a training run is told: the library's argument, the command line's flags and the lineage's record in one."""

import math
from dataclasses import dataclass
from typing import Literal

from perplab.errors import PerplabError
from perplab.training.low_rank.config import LowRankConfig
from perplab.training.schedules import CooldownShape, DecayShape, ScheduleName

TrainMethod = Literal["full", "lora", "relora", "galore", "sst"]
ModelKind = Literal["decoder", "diffusion"]
DiffusionLoss = Literal["ao", "lambda-dce", "t-dce", "dse"]
MixerName = Literal["softmax", "sliding", "deltanet", "linear", "retnet", "complex", "lstm", "hybrid", "hybrid-global"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `perplab train`.

    Raises:
        PerplabError: a value that cannot be meant, named with what to give instead.
    """

    tokens: int = 20_000_000
    """Training tokens in all."""
    horizon_tokens: int | None = None
    """Tokens that the schedule is laid out over, if not the run's own; a shorter run is cut off before its end, and
    may be prolonged by the same command with more tokens."""
    model: ModelKind = "decoder"
    """What is trained from random weights: a causal decoder, or an absorbing diffusion model that fills masked tokens
    in any order."""
    loss: DiffusionLoss = "ao"
    """Which of the equivalent estimators of the diffusion loss; `ao` varies least."""
    depth: int = 4
    """One dial for size: layers, and width 64 a layer. 1 is 0.3 M parameters, 4 is 5 M, 14 is 160 M."""
    hidden_size: int | None = None
    """Width, if not the dial's."""
    num_hidden_layers: int | None = None
    """Layers, if not the dial's."""
    num_key_value_heads: int | None = None
    """Key-value heads, if not one for each head of 64."""
    intermediate_size: int | None = None
    """Width of the feed-forward layers, if not 8/3 of the width, rounded up to a multiple of 64."""
    vocab_size: int | None = None
    """Size of the tokenizer that is trained where none is given, if not the dial's."""
    qk_norm: bool = False
    """Normalise queries and keys (the checkpoint is then Qwen3's layout in place of Llama's)."""
    tie_word_embeddings: bool = True
    """Use the embedding matrix as the head."""
    mixer: MixerName = "softmax"
    """What moves information between positions, in every layer; `hybrid` has sliding-window attention in every second
    layer of a DeltaNet, `hybrid-global` softmax attention in two."""
    mixer_options: dict[str, int | float | bool | str] | None = None
    """Settings of that mixer (of DeltaNet in a hybrid), by name."""
    sliding_window: int | None = None
    """Tokens that sliding-window attention sees, if not a quarter of a row."""
    position_encoding: Literal["rotary", "learned", "none"] = "rotary"
    """How attention knows of positions."""
    ngram_heads: tuple[int, ...] = ()
    """Orders of the n-gram heads after the first layer."""
    block_size: int = 512
    """Tokens in a row; nothing attends further back."""
    batch_tokens: int = 4_096
    """Tokens in a step, over all processes."""
    micro_batch_tokens: int = 4_096
    """Tokens in one forward pass of one process; gradients accumulate over the passes of a step."""
    learning_rate: float | None = None
    """Peak learning rate; by default that of the parent, or 0.002 at width 256 of a new model, falling with the square
    root of the width."""
    rewarm: float | None = None
    """Peak learning rate as a multiple of the one that the parent was trained with; 0 stays constant at the rate that
    the parent ended with."""
    schedule: ScheduleName = "wsd"
    """Course of the learning rate after warm-up."""
    warmup: float = 0.02
    """Share of the horizon for the linear warm-up."""
    cooldown: float = 0.1
    """Share of the horizon from peak to plateau (infinite schedule)."""
    cooldown_shape: CooldownShape = "cosine"
    """Course from peak to plateau."""
    plateau: float = 0.5
    """Constant learning rate as a share of the peak (infinite schedule)."""
    decay: float = 0.3
    """Share of the horizon for the final decay (wsd, infinite)."""
    decay_shape: DecayShape | None = None
    """Course of that decay, if not linear (wsd) or exponential (infinite)."""
    final: float = 0.01
    """Learning rate at the end as a share of the peak (all schedules but constant)."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; norms are left alone."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    z_loss: float = 1e-4
    """Weight of the squared log-normaliser (decoders)."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is measured and saved in their place; 0 for none."""
    method: TrainMethod = "full"
    """What trains in the blocks' linear layers: everything, or few numbers at a time."""
    rank: int = 16
    """Trained directions of a layer at a time (all methods but full)."""
    iteration_steps: int = 200
    """Steps until directions are chosen anew (relora, galore, sst)."""
    iteration_warmup: int = 20
    """Steps over which the learning rate rises again after that (relora, sst)."""
    iterations_per_round: int | None = None
    """Iterations until weights are decomposed anew, if not as many as visit each direction about once (sst)."""
    optimizer_state: Literal["reset", "restore"] = "reset"
    """AdamW's moments at the start: none, or those of the parent's run, with its float32 weights."""
    weights: dict[str, float] | None = None
    """Share of the batch for each domain; by default as the tokens fall."""
    replay: float = 0.0
    """Share of every batch that is old text, in place of new."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Dtype of the products; weights and optimiser are float32 either way."""
    compile: bool = True
    """Fuse the blocks' elementwise work with torch.compile, where there is a C++ compiler."""
    seed: int = 0
    """Decides initial weights and data order."""
    evaluate_every: int = 200
    """Steps between evaluations on held-out text."""
    evaluate_tokens: int = 16_384
    """Held-out tokens a domain in those evaluations; the last one takes eight times as many, but for runs that compare
    every evaluation with that before their first step."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `tensorboard`)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        object.__setattr__(self, "ngram_heads", tuple(self.ngram_heads))  # a list where settings come from JSON
        for name in ("tokens", "depth", "block_size", "batch_tokens", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")
        for name in ("batch_tokens", "micro_batch_tokens"):
            if getattr(self, name) % self.block_size:
                raise PerplabError(
                    f"{name} {getattr(self, name)} is not a multiple of block_size {self.block_size}",
                    f"give a multiple, for example {max(1, getattr(self, name) // self.block_size) * self.block_size}",
                )
        if self.mixer == "hybrid-global" and (self.num_hidden_layers or self.depth) < 2:
            raise PerplabError("a hybrid-global decoder of one layer has no place for its attention", "give 2 or more")
        for name in ("warmup", "cooldown", "plateau", "decay", "final", "replay"):
            if not 0 <= getattr(self, name) <= 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give a share between 0 and 1")
        if self.horizon_tokens is not None and self.horizon_tokens < 1:
            raise PerplabError(f"horizon_tokens is {self.horizon_tokens}", "give 1 or more")
        self._check_rates()
        if not 0 <= self.ema < 1:
            raise PerplabError(f"ema is {self.ema}", "give a share of at least 0 and below 1")
        if self.ema and self.method != "full":
            raise PerplabError(f"method {self.method} begins anew and cannot average weights", "leave ema at 0")
        if self.model == "diffusion":
            self._check_diffusion()
        _ = self.low_rank  # refuses what it cannot mean

    def _check_rates(self) -> None:
        for name in ("learning_rate", "rewarm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise PerplabError(f"{name} is {value}", "give a finite number, 0 or more")
        if self.learning_rate is not None and self.rewarm is not None:
            raise PerplabError("rewarm and learning_rate both set the peak", "give one of them")

    def _check_diffusion(self) -> None:
        """A diffusion model has one kind of mixer, which looks both ways."""
        for name in _OF_DECODERS:
            if getattr(self, name) != getattr(TrainConfig, name):
                raise PerplabError(f"a diffusion model has no {name}", f"leave {name} out, or train a decoder")
        if self.method != "full":
            raise PerplabError(f"method {self.method} is for decoders", "use method full for a diffusion model")

    @property
    def low_rank(self) -> LowRankConfig | None:
        """The settings of the low-rank method; None where all weights train."""
        if self.method == "full":
            return None
        return LowRankConfig(
            method=self.method,
            rank=self.rank,
            iteration_steps=self.iteration_steps,
            iteration_warmup=self.iteration_warmup,
            iterations_per_round=self.iterations_per_round,
            seed=self.seed,
        )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, self.tokens // self.batch_tokens)

    @property
    def horizon_steps(self) -> int:
        """Optimiser steps that the schedule is laid out over."""
        return max(1, (self.horizon_tokens or self.tokens) // self.batch_tokens)


RUN_TIME_ONLY = frozenset({"compile", "evaluate_every", "evaluate_tokens", "checkpoint_every", "tensorboard"})
"""Settings that may differ between the parts of an interrupted run."""

_OF_DECODERS = (
    "num_key_value_heads",
    "qk_norm",
    "tie_word_embeddings",
    "mixer",
    "mixer_options",
    "sliding_window",
    "position_encoding",
    "ngram_heads",
)

SHAPE_FIELDS = (
    "model",
    "depth",
    "hidden_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "qk_norm",
    "tie_word_embeddings",
    "mixer",
    "mixer_options",
    "sliding_window",
    "position_encoding",
    "ngram_heads",
)
"""Settings that say what a new model is."""
