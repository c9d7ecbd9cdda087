"""A model as a loss that can be differentiated twice, and the parameters it is differentiated in.

- Evaluation mode, float32 or wider, attention by its definition: dropout makes another function at each call, and no
  fused attention has a second derivative. What is changed on the model is put back when the block ends.
- A parameter that two modules share counts once.
- Vectors over the parameters are flat, in the order of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.kernels.attention import packed_mask
from perplab.laws.flatness.batches import Batch
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.mixers.context import SequenceContext
from perplab.models.packed_linear import quantized_layers

ParameterFilter = Callable[[str], bool]
"""From a parameter's name to whether it is looked at."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Some parameters of a model, as one flat vector.

    Attributes:
        names: of the parameters.
        tensors: the parameters.
    """

    names: Sequence[str]
    tensors: Sequence[nn.Parameter]

    @classmethod
    def of(cls, model: nn.Module, chosen: ParameterFilter | None = None) -> "Parameters":
        """Those whose name is `chosen`; all for None.

        Raises:
            PerplabError: none is chosen, a weight is quantised, or one is narrower than float32.
        """
        packed = next(iter(quantized_layers(model)), None)
        if packed is not None:
            raise PerplabError(
                f"the weight of {packed} is packed into few bits and has no gradient",
                "measure the model that was quantised",
            )
        named = dict(model.named_parameters())
        kept = {name: tensor for name, tensor in named.items() if chosen is None or chosen(name)}
        if not kept:
            raise PerplabError(
                f"none of the model's {len(named)} parameters is chosen",
                f"choose by names such as {next(iter(named), 'weight')}",
            )
        for name, tensor in kept.items():
            if tensor.dtype not in (torch.float32, torch.float64):
                raise PerplabError(f"{name} is {tensor.dtype}", "load the model with dtype float32")
        return cls(list(kept), list(kept.values()))

    def __len__(self) -> int:
        """Numbers in a vector."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter."""
        return [tensor.numel() for tensor in self.tensors]

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors."""
        return self.tensors[0].dtype

    def gradient(self, output: Tensor, *, retain_graph: bool = False, create_graph: bool = False) -> Tensor:
        """The gradient of a number, (parameters,); 0 where a parameter has no part in it."""
        if not output.requires_grad:
            return torch.zeros(len(self), device=self.device, dtype=self.dtype)
        gradients = torch.autograd.grad(
            output,
            list(self.tensors),
            retain_graph=retain_graph or create_graph,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([gradient.flatten() for gradient in gradients])

    def sums(self, vector: Tensor) -> Tensor:
        """The sum over each parameter's part of a (parameters,) vector, (names,) in float64."""
        return torch.stack([part.sum() for part in torch.split(vector.double(), self.sizes)]).cpu()


@contextmanager
def differentiable(model: nn.Module, parameters: Parameters) -> Iterator[None]:
    """Make `model` a function of `parameters` with second derivatives while the block runs.

    Raises:
        PerplabError: a kernel of the model has no second derivative.
    """
    training = model.training
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = set(parameters.tensors)
    try:
        model.eval()
        for parameter in before:
            parameter.requires_grad_(parameter in chosen)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _eager_attention(model):
            yield
    except (NotImplementedError, RuntimeError) as error:
        if not _says_no_derivative(error):
            raise
        raise PerplabError(
            f"a part of this model cannot be differentiated twice ({str(error).splitlines()[0]})",
            "use what takes one derivative: the method fisher, and no eigenvalues",
        ) from error
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
        model.train(training)


def predicted_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits where a label is to be predicted, (predictions, vocabulary), and the labels, (predictions,).

    Raises:
        PerplabError: the vocabulary has one token.
    """
    batch = batch.to(next(model.parameters()).device)
    logits = _logits(model, batch)[batch.predicted]
    if logits.shape[-1] < 2:
        raise PerplabError("a vocabulary of one token has a loss of 0 everywhere", "use a model of two tokens or more")
    return logits, batch.labels[batch.predicted]


def costs(model: nn.Module, batch: Batch) -> Tensor:
    """What each label costs in nats, (predictions,)."""
    logits, labels = predicted_logits(model, batch)
    return F.cross_entropy(logits, labels, reduction="none")


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    if isinstance(model, DecoderForCausalLM):
        return _decoder_logits(model, batch)
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    logits: Tensor = model(input_ids=batch.input_ids, use_cache=False, **positions).logits
    return logits


def _decoder_logits(model: DecoderForCausalLM, batch: Batch) -> Tensor:
    """Logits of packed rows with the mask written out, because the kernel for packed rows has no second derivative."""
    positions = batch.position_ids
    if positions is None:
        positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
    mask = packed_mask(positions) if model.config.attends else None
    context = SequenceContext(positions, None, True, mask, None, None, batch.input_ids)
    hidden_states, _ = model.model(model.model.embed_tokens(batch.input_ids), context)
    logits: Tensor = model.lm_head(hidden_states)
    return logits


@contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """Attention by its definition, where transformers can exchange it."""
    if not (isinstance(model, PreTrainedModel) and model._supports_attention_backend):
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _says_no_derivative(error: Exception) -> bool:
    message = str(error)
    return "derivative" in message or "autograd formula" in message or "double backward" in message.lower()
