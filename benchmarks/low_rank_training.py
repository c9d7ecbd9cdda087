"""Training with few trained numbers: time of a step and bytes of optimiser state, by method.

One model, batch and thread; each method takes steps of forward, backward, clipping and optimiser, in turn with the
others. AdamW keeps two float32 moments of each trained number: `optimiser MiB` is counted from its state for the linear
layers, and `formula MiB` is two times four bytes of what the method is said to train there. Beginning an iteration
(drawing, merging, a singular value decomposition) is timed apart, and spread over the 200 steps of an iteration in the
next column, as if every iteration began a round. A ratio above 1 says that the method is slower than full training.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from measuring import MIB, interleaved
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.training import TrainConfig, new_decoder
from perplab.training.low_rank import LowRankTraining
from perplab.training.low_rank.layer import ReparameterisedLinear
from perplab.training.optimizer import new_optimizer
from perplab.training.trainer import training_method

METHODS = ("full", "lora", "relora", "galore", "sst")
ITERATION = 200


def measure(quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    width, tokens, repetitions = (128, 512, 3) if quick else (512, 2048, 7)
    contenders = {method: Contender(method, width, tokens) for method in METHODS}
    sides: dict[str, Callable[[], object]] = {method: contender.step for method, contender in contenders.items()}
    seconds = {method: time.median for method, time in interleaved(sides, repetitions, warm_up=1).items()}
    return [
        {
            "method": method,
            "rank": width // 8 if method != "full" else "-",
            "step, s": seconds[method],
            "new iteration, s": (anew := contender.new_iteration()),
            "with it, s": (mean := seconds[method] + anew / ITERATION),
            "ratio to full": mean / seconds["full"],
            "optimiser MiB": contender.optimizer_bytes() / MIB,
            "formula MiB": contender.formula_bytes() / MIB,
            "weights MiB": contender.weight_bytes() / MIB,
        }
        for method, contender in contenders.items()
    ]


class Contender:
    """A decoder under a method, ready to take steps."""

    def __init__(self, method: str, width: int, tokens: int) -> None:
        config = TrainConfig(method=method, rank=width // 8, iteration_steps=ITERATION)  # type: ignore[arg-type]
        shape = DecoderConfig(
            hidden_size=width,
            intermediate_size=64 * round(width * 8 / 3 / 64),
            num_hidden_layers=2,
            num_attention_heads=width // 64,
            vocab_size=512,
            initializer_range=width**-0.5,
        )
        self.model: DecoderForCausalLM = new_decoder(shape, seed=0).train()
        self.dense = [
            projection.weight.shape
            for layer in self.model.model.layers
            for projection in layer.modules()
            if isinstance(projection, torch.nn.Linear)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.training: LowRankTraining = training_method(self.model, config)
        self.method, self.rank = method, config.rank
        self.optimizer = new_optimizer(self.model, config)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-3
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 512, (tokens // 256, 257), generator=generator)
        self.count = 0

    def step(self) -> None:
        """One step, which begins no iteration after the first."""
        positions = torch.arange(256).expand(len(self.ids), -1)
        costs = self.model.token_losses(self.ids[:, :-1], positions, self.ids[:, 1:])
        (costs.loss / positions.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.training.before_update(self.count)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.training.after_update(self.count, self.optimizer)
        self.count += 1

    def new_iteration(self) -> float:
        """Seconds that the first step of a round takes more than another."""
        if self.method in ("full", "lora"):
            return 0.0
        if self.method == "galore":  # decomposes each gradient; any matrices of those shapes take as long
            started = time.perf_counter()
            for shape in self.dense:
                torch.linalg.svd(torch.randn(shape), full_matrices=False)
            return time.perf_counter() - started
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(1)
        for layer in self.training.layers:
            layer.restart(generator, new_round=True)
        return time.perf_counter() - started

    def optimizer_bytes(self) -> int:
        """Bytes of the moments that the optimiser holds for the linear layers of the blocks."""
        return sum(
            value.numel() * value.element_size()
            for layer in self.model.model.layers.modules()
            if isinstance(layer, torch.nn.Linear | ReparameterisedLinear)
            for parameter in layer.parameters()
            for name, value in self.optimizer.state.get(parameter, {}).items()
            if name.startswith("exp_avg")
        )

    def formula_bytes(self) -> int:
        """Two moments of four bytes for what the method trains in the blocks, by its formula."""
        rank = self.rank
        numbers = {
            "full": lambda out, in_: out * in_,
            "lora": lambda out, in_: rank * (out + in_),
            "relora": lambda out, in_: rank * (out + in_),
            "galore": lambda out, in_: rank * max(out, in_),
            "sst": lambda out, in_: rank * (out + in_) + min(out, in_),
        }[self.method]
        return 8 * sum(numbers(*shape) for shape in self.dense)

    def weight_bytes(self) -> int:
        """Bytes of the model, with what the method stores beside what it trains."""
        tensors = {tensor.data_ptr(): tensor for tensor in self.model.state_dict().values()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
