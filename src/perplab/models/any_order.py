"""Which models predict hidden tokens from all others, in place of the next token from those before it.

They are the masked language models of `transformers`, of which this package's diffusion network is one. Such a model
has no exact log-probability of a text, only an upper bound on its cost; this is the one place that knows them.
"""

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from perplab.errors import PerplabError


def is_any_order(model: PreTrainedModel) -> bool:
    """Whether a model predicts what is hidden from both sides."""
    family = type(model.config)
    return family in MODEL_FOR_MASKED_LM_MAPPING and isinstance(model, MODEL_FOR_MASKED_LM_MAPPING[family])


def was_any_order(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint was saved as one; some families also have a causal class, which reads other weights."""
    family = type(config)
    if family not in MODEL_FOR_MASKED_LM_MAPPING or not config.architectures:
        return False
    return bool(config.architectures[0] == MODEL_FOR_MASKED_LM_MAPPING[family].__name__)


def refuse_any_order(model: PreTrainedModel, name: str) -> None:
    """See that a model predicts the next token.

    Raises:
        PerplabError: it predicts what is hidden.
    """
    if is_any_order(model):
        raise PerplabError(
            f"{name} is a masked diffusion model, which has no exact log-probability of a text",
            "take the upper bound of perplab score, or name a causal language model",
        )
