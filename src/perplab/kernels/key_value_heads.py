"""Grouped-query heads: how the heads of keys and values are checked against those of the queries, and shared out."""

from torch import Tensor

from perplab.errors import PerplabError


def shared_out(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with one head for each of the query's: head h of the query reads head h // (heads / key heads).

    Args:
        query: (batch, heads, queries, head_dim).
        key: (batch, key_value_heads, keys, head_dim).
        value: as `key`.

    Returns:
        Keys and values, (batch, heads, keys, head_dim); the same tensors where nothing has to be repeated.

    Raises:
        PerplabError: the shapes do not belong together.
    """
    if key.shape != value.shape:
        raise PerplabError(
            f"keys are {tuple(key.shape)} and values {tuple(value.shape)}", "give one value of the same width a key"
        )
    if query.shape[-1] != key.shape[-1] or query.shape[0] != key.shape[0]:
        raise PerplabError(
            f"queries are {tuple(query.shape)} and keys {tuple(key.shape)}", "give both one batch and one head size"
        )
    groups, rest = divmod(query.shape[1], key.shape[1])
    if rest:
        raise PerplabError(
            f"{query.shape[1]} query heads cannot share {key.shape[1]} heads of keys",
            "take a number of query heads that the number of key heads divides",
        )
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
