"""How fast a model generates: reading a prompt and writing token by token are two speeds, and are told apart.

Decisions:
- The protocol is 256 tokens read and 512 written, one sequence at a time. A model with fewer positions, or so large
  that this takes long on a processor, gets a shorter one in the same proportion, and the result says which.
- The loop calls the model itself, so the figure is of the model and not of what a library does around it.
- A speed belongs to a kernel, a dtype and a device, not to a number of bits; they are part of the result.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from perplab.errors import PerplabError
from perplab.evaluation.footprint import with_peak_memory
from perplab.models import LanguageModel
from perplab.models.anatomy import anatomy
from perplab.models.packed_linear import QuantizedLinear
from perplab.scoring.conventions import max_length_of

PROMPT_TOKENS, NEW_TOKENS = 256, 512
_MOST_WORK = 5e10
"""Parameters times tokens on a processor: some seconds."""
_FEWEST_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What is timed.

    Raises:
        PerplabError: a number is below 1.
    """

    prompt_tokens: int
    """Tokens read."""
    new_tokens: int
    """Tokens written, one at a time."""
    batch_size: int = 1
    """Sequences at once."""
    rounds: int = 3
    """Repetitions, after one to warm up; the median counts."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("prompt_tokens", "new_tokens", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")


@dataclass(frozen=True)
class GenerationSpeed:
    """How fast a model generates.

    Attributes:
        prompt_tokens: read, in each sequence.
        new_tokens: written, in each sequence.
        batch_size: sequences at once.
        prompt_tokens_per_second: while reading, over all sequences.
        new_tokens_per_second: while writing, over all sequences.
        peak_bytes: most memory beside the weights; None where the system does not tell.
        kernel: what multiplies by the blocks' weights.
        dtype: of the activations.
        device: where.
    """

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    prompt_tokens_per_second: float
    new_tokens_per_second: float
    peak_bytes: int | None
    kernel: str
    dtype: str
    device: str

    @property
    def circumstances(self) -> str:
        """What a speed belongs to, beside the kernel."""
        tokens = f"{self.prompt_tokens} tokens read and {self.new_tokens} written"
        return f"{tokens}, batch {self.batch_size}, {self.dtype} on {self.device}"


def scaled_protocol(language_model: LanguageModel) -> GenerationConfig:
    """256 tokens read and 512 written, or as much less as the model's positions and size ask for."""
    whole = PROMPT_TOKENS + NEW_TOKENS
    most = min(whole, max_length_of(language_model))
    if language_model.model.device.type == "cpu":
        parameters = sum(parameter.numel() for parameter in language_model.model.parameters())
        most = min(most, max(_FEWEST_TOKENS, int(_MOST_WORK / max(parameters, 1))))
    prompt = max(1, most * PROMPT_TOKENS // whole)
    return GenerationConfig(prompt_tokens=prompt, new_tokens=max(1, most - prompt))


def measure_generation(language_model: LanguageModel, config: GenerationConfig | None = None) -> GenerationSpeed:
    """Time a model's reading and writing.

    Args:
        language_model: the model.
        config: what is timed; by default `scaled_protocol`.

    Raises:
        PerplabError: prompt and answer do not fit the model's positions.
    """
    config = config or scaled_protocol(language_model)
    model, total = language_model.model, config.prompt_tokens + config.new_tokens
    if total > max_length_of(language_model):
        raise PerplabError(
            f"{total} tokens do not fit the model's {max_length_of(language_model)} positions", "time fewer tokens"
        )
    generator = torch.Generator().manual_seed(0)
    shape = config.batch_size, config.prompt_tokens
    prompt = torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
    _, peak = with_peak_memory(lambda: _seconds(language_model, prompt, config.new_tokens), model.device)
    rounds = [_seconds(language_model, prompt, config.new_tokens) for _ in range(config.rounds)]
    reading, writing = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return GenerationSpeed(
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        batch_size=config.batch_size,
        prompt_tokens_per_second=prompt.numel() / reading,
        new_tokens_per_second=config.batch_size * config.new_tokens / writing,
        peak_bytes=peak,
        kernel=_kernel(language_model),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
    )


@torch.inference_mode()
def _seconds(language_model: LanguageModel, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds for reading the prompt and for writing `new_tokens` tokens after it."""
    model = language_model.model
    started = _now(model.device)
    output = model(prompt, use_cache=True)
    read = _now(model.device)
    for _ in range(new_tokens):
        newest = output.logits[:, -1:].argmax(dim=-1)
        output = model(newest, past_key_values=output.past_key_values, use_cache=True)
    return read - started, _now(model.device) - read


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _kernel(language_model: LanguageModel) -> str:
    """The modules that multiply by the blocks' weights, with their bits."""
    modules = [
        projection.module
        for block in anatomy(language_model.model).blocks
        for role, projection in block.projections.items()
        if role != "router"
    ]
    names = {
        f"{type(module).__name__} {module.bits} bit" if isinstance(module, QuantizedLinear) else type(module).__name__
        for module in modules
    }
    return ", ".join(sorted(names))
