"""Linear layers whose weight stays quantised in memory.

- A layer's state dict is the form that `compressed-tensors` stores, whatever the layer keeps for its kernel: saving a
  model saves a checkpoint of that format, and a copy of the state survives a change of processor.
- `weight` spreads the matrix out anew at each access, for code that asks for its shape or type. It is a copy: nothing
  that is written to it reaches the layer.
- Some layers are not replaced: one whose weight another module shares would be untied from it, and beside stacks of
  experts transformers reads no packed layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.kernels.packed_matmul import PackedMatrix, kernel_tables, pack, packed_matmul
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models.compressed_form import TENSOR_NAMES, compressed_form, matrix_of

OUTLIER_THRESHOLD = 6.0
"""Magnitude from which LLM.int8() keeps an input feature out of the 8-bit product."""


class QuantizedLinear(nn.Module, ABC):
    """A linear layer around a `QuantizedMatrix`.

    Args:
        matrix: the weight, (out, in).
        bias: (out,) or None.
    """

    def __init__(self, matrix: QuantizedMatrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.codes.shape
        self.bits = matrix.bits
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._hold(matrix)

    @property
    @abstractmethod
    def quantized(self) -> QuantizedMatrix:
        """The weight, exactly as it was given."""

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, spread out: (out, in)."""
        return self.quantized.dequantized()

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` prints them, and the width of a code."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"

    @abstractmethod
    def _hold(self, matrix: QuantizedMatrix) -> None:
        """Keep the matrix in buffers that are not part of the state dict."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in compressed_form(self.quantized).items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        form = {name: state_dict[prefix + name] for name in TENSOR_NAMES if prefix + name in state_dict}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        unexpected_keys[:] = [key for key in unexpected_keys if key.removeprefix(prefix) not in form]
        lacking = [name for name in TENSOR_NAMES if name not in form and name != "weight_zero_point"]
        if lacking:
            missing_keys.extend(prefix + name for name in lacking)
        else:
            self._hold(matrix_of(form, self.bits))


class PackedLinear(QuantizedLinear):
    """A linear layer of 1 to 8 bits a weight, in the dtype of its input; differentiable in it."""

    planes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    tables: torch.Tensor | None

    @property
    def quantized(self) -> QuantizedMatrix:
        """The weight, exactly as it was given."""
        return self._packed.unpacked()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        product = packed_matmul(x, self._packed)
        return product if self.bias is None else product + self.bias

    def _hold(self, matrix: QuantizedMatrix) -> None:
        self._use(pack(matrix))

    def _use(self, packed: PackedMatrix) -> None:
        for name in ("planes", "scale", "zero", "tables"):
            self.register_buffer(name, getattr(packed, name), persistent=False)
        self._packed = packed  # building it from the buffers in each call would cost as much as a small product

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = replace(self._packed, planes=self.planes, scale=self.scale, zero=self.zero)
        self._use(replace(moved, tables=kernel_tables(moved)))
        return self


class LLMInt8Linear(QuantizedLinear):
    """The mixed decomposition of LLM.int8(): inputs are rounded to 8 bits too, but for features with outliers.

    A feature of which any row of the input reaches the threshold is multiplied in the input's dtype, the others as
    integers: rows of the input and rows of the weight each have one scale, absmax / 127.

    Args:
        matrix: of 8 bits, symmetric, with one group a row.
        bias: (out,) or None.
        threshold: inf rounds every input, 0 none.

    Raises:
        PerplabError: the matrix has another form.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, matrix: QuantizedMatrix, bias: torch.Tensor | None = None, threshold: float = OUTLIER_THRESHOLD
    ) -> None:
        if matrix.bits != 8 or matrix.scale.shape[1] != 1 or bool((matrix.zero != 128).any()):
            raise PerplabError(
                f"LLM.int8() cannot use a {matrix.bits}-bit weight of {matrix.scale.shape[1]} groups a row",
                "round to 8 bits on a symmetric grid with one scale a row",
            )
        super().__init__(matrix, bias)
        self.threshold = threshold

    @property
    def quantized(self) -> QuantizedMatrix:
        """The weight, exactly as it was given."""
        codes = self.codes.view(torch.uint8) + 128
        return QuantizedMatrix(codes, self.scale, torch.full_like(self.scale, 128, dtype=torch.uint8), 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        rows = x.reshape(-1, self.in_features)
        outlying = (rows.abs() >= self.threshold).any(dim=0)
        regular = rows.masked_fill(outlying, 0).float()
        scale = regular.abs().amax(dim=1, keepdim=True) / 127
        codes = (regular / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        product = _integer_product(codes, self.codes) * scale * self.scale.float().T
        (columns,) = outlying.nonzero(as_tuple=True)
        if len(columns):
            weight = self.codes[:, columns].to(self.scale.dtype) * self.scale
            product = product + rows[:, columns] @ weight.to(x.dtype).T
        product = product.to(x.dtype)
        return (product if self.bias is None else product + self.bias).view(*x.shape[:-1], self.out_features)

    def _hold(self, matrix: QuantizedMatrix) -> None:
        self.register_buffer("codes", (matrix.codes - 128).view(torch.int8), persistent=False)
        self.register_buffer("scale", matrix.scale, persistent=False)


def packable(model: nn.Module, path: str) -> bool:
    """Whether `replace_linear` can put a `QuantizedMatrix` of its shape at `path`.

    It must be a linear layer that shares its weight with no other, in a model without stacks of experts: transformers
    reads no checkpoint that has those beside packed layers.
    """
    module = model.get_submodule(path)
    if not isinstance(module, nn.Linear):
        return False
    held = [parameter for holder in model.modules() for parameter in holder.parameters(recurse=False)]
    return sum(parameter is module.weight for parameter in held) == 1 and all(parameter.ndim < 3 for parameter in held)


def replace_linear(model: nn.Module, path: str, replacement: QuantizedMatrix | QuantizedLinear) -> None:
    """Put a quantised layer in the place of the linear layer at `path`, with its bias where a matrix is given.

    Raises:
        PerplabError: the module there is not `packable`, or has another shape.
    """
    if not packable(model, path):
        raise PerplabError(
            f"{path} is not a linear layer with a weight of its own in a model without stacks of experts",
            "write the rounded values into its weight instead",
        )
    linear: Any = model.get_submodule(path)
    layer = replacement if isinstance(replacement, QuantizedLinear) else PackedLinear(replacement, linear.bias)
    shape, needed = (layer.out_features, layer.in_features), tuple(linear.weight.shape)
    if shape != needed:
        raise PerplabError(f"a matrix of {shape} does not fit {path}, which has {needed}", "give it one of its shape")
    model.set_submodule(path, layer.train(linear.training))


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Every quantised layer by its path, in the order of the model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def _integer_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`rows @ weight.T` of int8 matrices, exactly."""
    if rows.device.type == "cpu":
        return torch._int_mm(rows, weight.T)
    return rows.double() @ weight.double().T  # other devices' integer product asks for certain shapes
