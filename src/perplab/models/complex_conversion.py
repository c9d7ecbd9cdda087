"""Giving a trained rotary model phases that can be adapted, without changing what it says.

- Every delta begins at 1 and every b at 0, which is rotary attention to the bit. What comes of training them, alone or
  with the rest, is an experiment; the paper behind it is withdrawn (see `perplab.models.mixers.complex`).
- A plain Llama or Qwen3 becomes this package's decoder with the mixer `complex`, so whatever works on decoders works on
  it. Other rotary families keep their own code, inside a `PhasedForCausalLM`. Both save and load like any model.
- The map is not linear, so it cannot be folded back into the projections.
"""

from contextlib import suppress
from dataclasses import asdict

from torch import nn
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.mixers.complex import ComplexAttention, ComplexOptions, EulerPhase, PhaseSharing
from perplab.models.phased_model import PhasedForCausalLM
from perplab.models.stock import to_decoder

_DECODER_LIKE = ("llama", "qwen3")


def convert_to_complex(
    model: PreTrainedModel, *, per: PhaseSharing = "pair", learn_bias: bool = True
) -> PreTrainedModel:
    """The same model with phases to adapt; its logits are unchanged.

    Args:
        model: a rotary causal LM. The result shares its parameters and takes its place.
        per: one delta and b for each `pair` of each head, for each `head`, or one `shared` by all heads of a layer.
        learn_bias: have b.

    Raises:
        PerplabError: the model has phases already, or its queries and keys are not turned by half-split rotary
            positions.
    """
    if any(isinstance(module, EulerPhase) for module in model.modules()):
        raise PerplabError("this model has phases already", "train them, or convert the model it was made from")
    options = ComplexOptions(per=per, init="rope", learn_bias=learn_bias)
    if isinstance(model, DecoderForCausalLM):
        return _with_complex_mixers(model, options)
    if model.config.model_type in _DECODER_LIKE:
        with suppress(PerplabError):  # biases, scaled positions, and whatever else a decoder does not have
            return _with_complex_mixers(to_decoder(model), options)
    return PhasedForCausalLM.around(model, options)


def train_only_phases(model: PreTrainedModel) -> list[nn.Parameter]:
    """Mark delta and b as all that is trained, and return them.

    Raises:
        PerplabError: the model has none.
    """
    phases = [module for module in model.modules() if isinstance(module, EulerPhase)]
    if not phases:
        raise PerplabError("this model has no phases", "convert it with convert_to_complex first")
    model.requires_grad_(False)
    for phase in phases:
        phase.requires_grad_(True)
    return [parameter for phase in phases for parameter in phase.parameters()]


def _with_complex_mixers(decoder: DecoderForCausalLM, options: ComplexOptions) -> DecoderForCausalLM:
    """The decoder with its full softmax attentions replaced, around their own projections."""
    config = decoder.config
    if config.position_encoding != "rotary" or "softmax" not in config.token_mixers:
        raise PerplabError(
            f"a decoder of {', '.join(sorted({*config.token_mixers}))} with {config.position_encoding} positions",
            "convert one with softmax attention and rotary positions",
        )
    config.token_mixers = ["complex" if name == "softmax" else name for name in config.token_mixers]
    config.mixer_options = {**config.mixer_options, "complex": asdict(options)}
    for index, layer in enumerate(decoder.model.layers):
        if config.token_mixers[index] == "complex":
            layer.self_attn = _complex_around(decoder, layer.get_submodule("self_attn"), index)
    return decoder


def _complex_around(decoder: DecoderForCausalLM, attention: nn.Module, layer_index: int) -> ComplexAttention:
    complex_attention = ComplexAttention(decoder.config, layer_index)
    for name, part in attention.named_children():
        complex_attention.set_submodule(name, part)
    complex_attention.phase.to(decoder.device)
    return complex_attention.train(attention.training)
