"""How a masked model reads text: its mask token, and the tokens that stand around what it reads.

A diffusion model that was trained here reads the text alone. A masked language model from elsewhere reads what its
tokenizer puts around a text, such as [CLS] and [SEP], which is given and costs nothing.
"""

from typing import NamedTuple

from perplab.errors import PerplabError
from perplab.models.diffusion.absorbing import AbsorbingDiffusion
from perplab.models.diffusion.network import DiffusionModel
from perplab.models.language_model import LanguageModel
from perplab.models.position_limit import position_limit
from perplab.text import text_encoder

_UNSET_MAX_LENGTH = int(1e30)  # transformers' model_max_length where a tokenizer knows none


class Reader(NamedTuple):
    """A masked model with what it needs around a text."""

    diffusion: AbsorbingDiffusion
    opening: list[int]
    closing: list[int]
    longest: int | None
    """Tokens of text that it reads at once; None without a limit."""

    @classmethod
    def of(cls, language_model: LanguageModel) -> "Reader":
        """The reader of a masked model.

        Raises:
            PerplabError: the tokenizer has no mask token, or the model cannot be used as a diffusion model.
        """
        model, tokenizer = language_model.model.eval(), language_model.tokenizer
        limit = position_limit(model.config)
        if isinstance(model, DiffusionModel):
            if len(tokenizer) > model.config.vocab_size:
                raise PerplabError(
                    f"the tokenizer of {language_model.name} has {len(tokenizer)} tokens, the last of them the model's "
                    f"mask token {model.config.mask_token_id}",
                    "use the tokenizer that the model was trained with",
                )
            return cls(AbsorbingDiffusion(model), [], [], limit)
        if tokenizer.mask_token_id is None:
            raise PerplabError(f"the tokenizer of {language_model.name} has no mask token", "set tokenizer.mask_token")
        around = text_encoder(tokenizer).encode("a", add_special_tokens=True)
        first = around.special_tokens_mask.index(0)
        last = len(around.ids) - around.special_tokens_mask[::-1].index(0)
        opening, closing = around.ids[:first], around.ids[last:]
        limits = [n for n in (limit, tokenizer.model_max_length) if n is not None and n < _UNSET_MAX_LENGTH]
        longest = min(limits) - len(opening) - len(closing) if limits else None
        return cls(AbsorbingDiffusion(model, tokenizer.mask_token_id), opening, closing, longest)
