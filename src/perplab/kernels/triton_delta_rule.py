"""The chunkwise state in Triton, for reading without a gradient on a GPU; training takes the products of `chunk_scan`.

Decisions:
- A program carries the state of one head and one block of value components through the sequence, a chunk at a time;
  nothing but the outputs and the last state is written.
- The inverse of a chunk's system is found by substitution, a row at a time, in float32. Products take the inputs' dtype
  and are summed in float32.
- What runs on the device is not Python, so the kernel's arguments have no annotations but `constexpr`.
- A token's document is its number, and the number of the token before the sequence is 0: what is left of the state or
  of another token's writing is nothing where the numbers differ.
"""

# ruff: noqa: ANN001

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32
VALUE_BLOCK = 64


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]  # noqa: ANN202
    query,
    key,
    value,
    beta,
    decay,
    document,
    initial_state,
    output,
    final_state,
    heads,
    length,
    scale,
    key_dim: tl.constexpr,
    value_dim: tl.constexpr,
    has_beta: tl.constexpr,
    chunk: tl.constexpr,
    key_block: tl.constexpr,
    value_block: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    tokens = tl.arange(0, chunk)
    key_columns = tl.arange(0, key_block)
    value_columns = tl.program_id(1) * value_block + tl.arange(0, value_block)
    in_key, in_value = key_columns < key_dim, value_columns < value_dim
    earlier = tokens[:, None] > tokens[None, :]
    state_place = head * key_dim * value_dim + key_columns[:, None] * value_dim + value_columns[None, :]
    in_state = in_key[:, None] & in_value[None, :]
    state = tl.load(initial_state + state_place, mask=in_state, other=0.0)
    state_document = tl.zeros((), dtype=tl.int32)

    for start in range(0, length, chunk):
        place = start + tokens
        inside = place < length
        key_place = (head * length + place)[:, None] * key_dim + key_columns[None, :]
        value_place = (head * length + place)[:, None] * value_dim + value_columns[None, :]
        in_keys, in_values = inside[:, None] & in_key[None, :], inside[:, None] & in_value[None, :]
        q = tl.load(query + key_place, mask=in_keys, other=0.0)
        k = tl.load(key + key_place, mask=in_keys, other=0.0)
        v = tl.load(value + value_place, mask=in_values, other=0.0)
        total = tl.cumsum(tl.load(decay + head * length + place, mask=inside, other=0.0).to(tl.float32), axis=0)
        last = tl.minimum(length - start, chunk) - 1
        # Places after the end belong to the last document.
        owner = tl.load(document + (head // heads) * length + tl.minimum(place, length - 1))
        last_owner = tl.sum(tl.where(tokens == last, owner, 0), axis=0)
        last_total = tl.sum(tl.where(tokens == last, total, 0.0), axis=0)

        visible = (tokens[:, None] >= tokens[None, :]) & (owner[:, None] == owner[None, :])
        pairs = tl.where(visible, tl.exp(tl.where(visible, total[:, None] - total[None, :], 0.0)), 0.0)
        into = tl.where(owner == state_document, tl.exp(total), 0.0)
        out = tl.where(owner == last_owner, tl.exp(last_total - total), 0.0)

        updates = v
        found = state.to(k.dtype)
        if has_beta:
            strength = tl.load(beta + head * length + place, mask=inside, other=0.0).to(tl.float32)
            products = tl.dot(k, tl.trans(k), input_precision="ieee")
            inverse = tl.where(earlier, -products * pairs * strength[:, None], 0.0)
            for row in range(1, chunk):
                this = tl.sum(tl.where((tokens == row)[:, None], inverse, 0.0), axis=0)
                this += tl.sum(this[:, None] * inverse, axis=0)
                inverse = tl.where((tokens == row)[:, None], this[None, :], inverse)
            inverse += tl.where(tokens[:, None] == tokens[None, :], 1.0, 0.0)
            known = tl.dot(k, found, input_precision="ieee") * into[:, None]
            missing = (v.to(tl.float32) - known) * strength[:, None]
            updates = tl.dot(inverse.to(k.dtype), missing.to(k.dtype), input_precision="ieee").to(k.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * pairs
        read = tl.dot(q, found, input_precision="ieee") * into[:, None]
        read += tl.dot(scores.to(k.dtype), updates, input_precision="ieee")
        tl.store(output + value_place, (read * scale).to(output.dtype.element_ty), mask=in_values)
        kept = tl.where(last_owner == state_document, tl.exp(last_total), 0.0)
        written = (k.to(tl.float32) * out[:, None]).to(k.dtype)
        state = state * kept + tl.dot(tl.trans(written), updates, input_precision="ieee")
        state_document = last_owner
    tl.store(final_state + state_place, state, mask=in_state)


def triton_chunkwise_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    position_ids: Tensor | None,
    initial_state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and final state; arguments as for `chunkwise_state`, in float32 or bfloat16."""
    batch, heads, length, key_dim = query.shape
    value_dim = value.shape[-1]
    opens = torch.zeros(batch, length, device=query.device) if position_ids is None else position_ids == 0
    strengths = query.new_zeros(()) if beta is None else beta.contiguous()
    decays = torch.zeros(batch, heads, length, device=query.device) if decay is None else decay.contiguous()
    output, final_state = value.new_empty(value.shape), torch.empty_like(initial_state)
    key_block = max(16, triton.next_power_of_2(key_dim))
    value_block = min(VALUE_BLOCK, max(16, triton.next_power_of_2(value_dim)))
    _kernel[(batch * heads, triton.cdiv(value_dim, value_block))](
        *(states.contiguous() for states in (query, key, value)),
        strengths,
        decays,
        opens.cumsum(dim=1).to(torch.int32),
        initial_state.contiguous(),
        output,
        final_state,
        heads,
        length,
        scale,
        key_dim,
        value_dim,
        beta is not None,
        CHUNK,
        key_block,
        value_block,
    )
    return output, final_state
