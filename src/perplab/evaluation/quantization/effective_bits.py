"""How many bits a weight takes, by the method's own account and in the checkpoint.

Decisions:
- Of the matrices inside the blocks, which is what the methods round; embeddings, norms and head are counted in the
  bytes of the whole checkpoint.
- The nominal figure is what codes, scales, zero points and outliers need. A method whose format no tool reads keeps its
  rounded values in ordinary weights: the stored figure is then that of the dtype, and nothing was saved.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from perplab.models import LanguageModel, Lineage
from perplab.models.anatomy import anatomy
from perplab.models.packed_linear import QuantizedLinear

_NOMINAL = "bits per weight"
"""Figure of the lineage of what `quantize` made."""


@dataclass(frozen=True)
class EffectiveBits:
    """Bits a weight.

    Attributes:
        nominal: of codes, scales, zero points and outliers.
        stored: in the checkpoint.
        checkpoint_bytes: of the whole model.
    """

    nominal: float
    stored: float
    checkpoint_bytes: int

    @property
    def is_simulated(self) -> bool:
        """Whether the rounded values lie in ordinary weights, so that neither memory nor time was saved."""
        return self.stored > self.nominal + 1


def effective_bits(language_model: LanguageModel) -> EffectiveBits:
    """Count the bits of a model.

    Args:
        language_model: quantised or not; where its lineage tells no nominal figure, it is the stored one.

    Raises:
        PerplabError: the model's family is unknown.
    """
    sizes, weights = zip(*_matrices(language_model.model), strict=True)
    stored = 8 * sum(sizes) / sum(weights)
    nominal = _recorded(language_model.lineage)
    return EffectiveBits(
        nominal=stored if nominal is None else nominal,
        stored=stored,
        checkpoint_bytes=_bytes_of(language_model.model.state_dict().values()),
    )


def _matrices(model: PreTrainedModel) -> Iterator[tuple[int, int]]:
    """Bytes in the checkpoint, and weights, of each matrix in the blocks."""
    for block in anatomy(model).blocks:
        for role, projection in block.projections.items():
            if role == "router":
                continue
            module = projection.module
            if isinstance(module, QuantizedLinear):
                parts = {name: tensor for name, tensor in module.state_dict().items() if name != "bias"}
                yield _bytes_of(parts.values()), module.in_features * module.out_features
            else:
                yield projection.weight.nbytes, projection.weight.numel()


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of tensors, those that share memory counted once."""
    return sum({(tensor.data_ptr(), tensor.nbytes): tensor.nbytes for tensor in tensors}.values())


def _recorded(lineage: Lineage | None) -> float | None:
    """The nominal figure of the last rounding."""
    while lineage is not None:
        if _NOMINAL in lineage.figures:
            return float(lineage.figures[_NOMINAL])
        lineage = lineage.parent.lineage if lineage.parent else None
    return None
