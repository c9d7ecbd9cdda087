"""The Triton programs behind `triton_attention.py`; its docstring says how they work.

All tensors are contiguous: queries (batch, heads, length, head_dim), keys and values (batch, key heads, length,
head_dim), logsumexp (base 2) and offsets (batch, heads, length), first and last visible (batch, length).
"""

# ruff: noqa: ANN001, ANN201, ANN202, D103 (Triton's programs have types of their own)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, import-untyped, import-not-found"

import triton
import triton.language as tl


@triton.jit
def _tile(base, places, length, head_dim: tl.constexpr):
    """Rows `places` of a (length, head_dim) matrix, 0 past its end."""
    columns = tl.arange(0, head_dim)
    return tl.load(base + places[:, None] * head_dim + columns[None, :], mask=places[:, None] < length, other=0.0)


@triton.jit
def _store_tile(base, places, tile, length, head_dim: tl.constexpr):
    columns = tl.arange(0, head_dim)
    pointers = base + places[:, None] * head_dim + columns[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=places[:, None] < length)


@triton.jit
def _bases(heads, key_heads, length, head_dim: tl.constexpr):
    """The program's row of the batch, and where its vectors, its queries and its keys begin, in elements."""
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    key_head = row * key_heads + head // (heads // key_heads)
    vectors = tl.program_id(1).to(tl.int64) * length
    return row, vectors, vectors * head_dim, key_head.to(tl.int64) * length * head_dim


@triton.jit
def forward_kernel(
    query, key, value, first, output, logsumexp,
    scale, heads, key_heads, length, head_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, vectors, query_base, key_base = _bases(heads, key_heads, length, head_dim)
    places = tl.program_id(0) * block + tl.arange(0, block)
    queries = _tile(query + query_base, places, length, head_dim)
    begins = tl.load(first + row * length + places, mask=places < length, other=length)
    largest = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    mixed = tl.zeros((block, head_dim), tl.float32)
    end = tl.minimum(length, (tl.program_id(0) + 1) * block)
    for start in range(tl.min(begins) // block * block, end, block):
        keys = start + tl.arange(0, block)
        scores = tl.dot(queries, tl.trans(_tile(key + key_base, keys, length, head_dim)), input_precision="ieee")
        visible = (keys[None, :] >= begins[:, None]) & (keys[None, :] <= places[:, None])
        scores = tl.where(visible, scores * scale, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        reference = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores - reference[:, None])
        shrunk = tl.exp2(largest - reference)
        values = _tile(value + key_base, keys, length, head_dim)
        total = shrunk * total + tl.sum(weights, axis=1)
        mixed = shrunk[:, None] * mixed + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        largest = new_largest
    total = tl.where(total == 0.0, 1.0, total)  # rows past the end
    _store_tile(output + query_base, places, mixed / total[:, None], length, head_dim)
    tl.store(logsumexp + vectors + places, largest + tl.log2(total), mask=places < length)


@triton.jit
def _weights_and_gradient(queries, keys, values, grad_mixed, sums, offsets, visible, scale):
    """Weights of a tile, and the gradient of its scaled scores."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * 1.4426950408889634)
    weights = tl.where(visible, tl.exp2(scores - sums[:, None]), 0.0)
    grad_weights = tl.dot(grad_mixed, tl.trans(values), input_precision="ieee")
    return weights, weights * (grad_weights - offsets[:, None])


@triton.jit
def query_gradient_kernel(
    query, key, value, grad_output, logsumexp, offset, first, grad_query,
    scale, heads, key_heads, length, head_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, vectors, query_base, key_base = _bases(heads, key_heads, length, head_dim)
    places = tl.program_id(0) * block + tl.arange(0, block)
    queries = _tile(query + query_base, places, length, head_dim)
    grad_mixed = _tile(grad_output + query_base, places, length, head_dim)
    begins = tl.load(first + row * length + places, mask=places < length, other=length)
    sums = tl.load(logsumexp + vectors + places, mask=places < length, other=0.0)
    offsets = tl.load(offset + vectors + places, mask=places < length, other=0.0)
    gradient = tl.zeros((block, head_dim), tl.float32)
    end = tl.minimum(length, (tl.program_id(0) + 1) * block)
    for start in range(tl.min(begins) // block * block, end, block):
        seen = start + tl.arange(0, block)
        keys = _tile(key + key_base, seen, length, head_dim)
        values = _tile(value + key_base, seen, length, head_dim)
        visible = (seen[None, :] >= begins[:, None]) & (seen[None, :] <= places[:, None])
        _, grad_scores = _weights_and_gradient(queries, keys, values, grad_mixed, sums, offsets, visible, scale)
        gradient += tl.dot(grad_scores.to(keys.dtype), keys, input_precision="ieee")
    _store_tile(grad_query + query_base, places, gradient * scale, length, head_dim)


@triton.jit
def key_gradient_kernel(
    query, key, value, grad_output, logsumexp, offset, first, last, grad_key, grad_value,
    scale, heads, key_heads, length, head_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, vectors, query_base, key_base = _bases(heads, key_heads, length, head_dim)
    seen = tl.program_id(0) * block + tl.arange(0, block)
    keys = _tile(key + key_base, seen, length, head_dim)
    values = _tile(value + key_base, seen, length, head_dim)
    seeing = tl.load(last + row * length + seen, mask=seen < length, other=-1)
    key_gradient = tl.zeros((block, head_dim), tl.float32)
    value_gradient = tl.zeros((block, head_dim), tl.float32)
    for start in range(tl.program_id(0) * block, tl.max(seeing) + 1, block):
        places = start + tl.arange(0, block)
        queries = _tile(query + query_base, places, length, head_dim)
        grad_mixed = _tile(grad_output + query_base, places, length, head_dim)
        begins = tl.load(first + row * length + places, mask=places < length, other=length)
        sums = tl.load(logsumexp + vectors + places, mask=places < length, other=0.0)
        offsets = tl.load(offset + vectors + places, mask=places < length, other=0.0)
        visible = (seen[None, :] >= begins[:, None]) & (seen[None, :] <= places[:, None])
        weights, grad_scores = _weights_and_gradient(queries, keys, values, grad_mixed, sums, offsets, visible, scale)
        value_gradient += tl.dot(tl.trans(weights).to(grad_mixed.dtype), grad_mixed, input_precision="ieee")
        key_gradient += tl.dot(tl.trans(grad_scores).to(queries.dtype), queries, input_precision="ieee")
    _store_tile(grad_key + query_base, seen, key_gradient * scale, length, head_dim)
    _store_tile(grad_value + query_base, seen, value_gradient, length, head_dim)
