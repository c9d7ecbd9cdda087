"""The longest sequence a model can read."""

from transformers import PreTrainedConfig

from perplab.models.decoder_config import DecoderConfig


def position_limit(config: PreTrainedConfig) -> int | None:
    """Positions of a model; None where it has no limit, because nothing in it knows of positions, or names none."""
    if isinstance(config, DecoderConfig):
        return config.position_limit
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit
