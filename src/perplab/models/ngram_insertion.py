"""N-gram heads put into a model that exists: the model computes what it computed, until the heads are trained.

- A Llama, Qwen3 or Mistral becomes this package's decoder around the same parameters, with heads of its own; any other
  family is read by `NGramForCausalLM`.
"""

from collections.abc import Sequence
from typing import overload

from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.language_model import LanguageModel
from perplab.models.ngram_heads import NGramHeads
from perplab.models.ngram_model import NGramConfig, NGramForCausalLM
from perplab.models.packed_linear import quantized_layers
from perplab.models.stock import to_decoder


@overload
def insert_ngram_heads(
    subject: LanguageModel, orders: Sequence[int], after_layer: int, *, separator: int | None = None
) -> LanguageModel: ...
@overload
def insert_ngram_heads(
    subject: PreTrainedModel, orders: Sequence[int], after_layer: int, *, separator: int | None = None
) -> PreTrainedModel: ...
def insert_ngram_heads(
    subject: LanguageModel | PreTrainedModel, orders: Sequence[int], after_layer: int, *, separator: int | None = None
) -> LanguageModel | PreTrainedModel:
    """Put heads that add nothing yet behind a layer, around the model's own parameters.

    Args:
        subject: a causal LM of a known family; one of this package's decoders is changed in place.
        orders: of the heads, one after another; each is how many tokens have to match.
        after_layer: from 0.
        separator: the token id that n-grams do not reach back over; None where there is none.

    Returns:
        A model with the same logits, or a language model around it with the lineage that says so.

    Raises:
        PerplabError: there is no such layer, an order is below 1, the layer has heads already, the family is unknown,
            or the model is quantised and not a plain decoder.
    """
    if isinstance(subject, LanguageModel):
        model = insert_ngram_heads(subject.model, orders, after_layer, separator=separator)
        choices = {"orders": list(orders), "after_layer": after_layer, "separator": separator}
        return subject.derive(model, "insert_ngram_heads", config=choices)
    layers = subject.config.num_hidden_layers
    if not 0 <= after_layer < layers:
        raise PerplabError(f"there is no layer {after_layer} to put heads behind", f"choose from 0 to {layers - 1}")
    if not orders or min(orders) < 1:
        raise PerplabError(f"n-gram heads of the orders {list(orders)}", "give one order or more, each 1 or more")
    decoder = _as_decoder(subject)
    if decoder is not None:
        return _into_decoder(decoder, list(orders), after_layer, separator)
    if quantized_layers(subject):
        raise PerplabError(f"this {subject.config.model_type} model is quantised", "insert the heads before quantising")
    places = [list(orders) if index == after_layer else [] for index in range(layers)]
    config = NGramConfig.for_base(subject, places, separator)
    return NGramForCausalLM(config, subject).train(subject.training)


def _as_decoder(model: PreTrainedModel) -> DecoderForCausalLM | None:
    """This package's decoder around the model's parameters; None where there is none."""
    if isinstance(model, DecoderForCausalLM):
        return model
    try:
        return to_decoder(model)
    except PerplabError:  # it has parts that the decoder cannot express
        return None


def _into_decoder(
    decoder: DecoderForCausalLM, orders: list[int], after_layer: int, separator: int | None
) -> DecoderForCausalLM:
    block = decoder.model.layers[after_layer]
    if hasattr(block, "ngram_heads"):
        raise PerplabError(f"layer {after_layer} has n-gram heads already", "choose another layer")
    places = [list(heads) for heads in decoder.config.ngram_heads]
    places[after_layer] = orders
    decoder.config.ngram_heads = places
    if separator is not None:
        decoder.config.ngram_separator = separator
    heads = NGramHeads(decoder.config, after_layer)
    heads.set_to_zero()
    block.ngram_heads = heads.to(decoder.device, decoder.dtype)
    return decoder
