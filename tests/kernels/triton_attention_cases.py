"""Run under Triton's interpreter, which has to be chosen before Triton is imported: prints relative errors as JSON."""

import json

import torch

from perplab.kernels import packed_attention_reference
from perplab.kernels.triton_attention import fits, triton_attention

CASES = {
    "shared heads": ((75,), 4, 2, 16, None),
    "packed documents": ((20, 40, 15), 1, 1, 32, None),
    "window": ((100,), 1, 1, 16, 9),
    "window over packed documents": ((70, 5, 30), 2, 1, 16, 33),
    "one token": ((1,), 1, 1, 16, None),
    "whole tiles": ((64, 64), 1, 1, 64, None),
}


def errors(documents, heads, key_value_heads, head_dim, window):
    """Largest difference from the reference in float64, as a share of its largest number: output and gradients."""
    generator = torch.Generator().manual_seed(0)
    position_ids = torch.cat([torch.arange(length) for length in documents])[None].expand(2, -1)
    shapes = [(2, number, sum(documents), head_dim) for number in (heads, key_value_heads, key_value_heads, heads)]
    *inputs, upstream = [torch.randn(shape, generator=generator) for shape in shapes]
    assert fits(*inputs[:2])
    results = []
    for attention, dtype in ((triton_attention, torch.float32), (packed_attention_reference, torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        output = attention(*leaves, position_ids, scale=0.3, sliding_window=window)
        results.append([output, *torch.autograd.grad(output, leaves, upstream.to(dtype))])
    return [float((ours - true).abs().max() / true.abs().max()) for ours, true in zip(*results, strict=True)]


if __name__ == "__main__":
    print(json.dumps({name: errors(*case) for name, case in CASES.items()}))
