"""States that tokens write to and read from, over whole sequences: the operator behind the delta rule and its kin.

Decisions:
- The mathematics of a block of chunks is in `chunk_scan`; here blocks follow each other, and autograd is told.
- The backward pass keeps the state before each chunk and the inverse of each chunk's system, about as much memory as
  the inputs, and computes scores and corrections again.
- On CUDA what needs no gradient takes a Triton kernel where Triton is installed.
- The operator is opaque to `torch.compile`: the scan is a loop in Python, and cutting at borders depends on the data.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.kernels.chunk_scan import block_gradients, block_inverse, scan_block
from perplab.kernels.chunks import Sequences, block_places, from_chunks, row_groups, to_chunks

SMALLEST_CHUNK = 16
"""Shorter sequences are filled up to it."""


def chunkwise_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    position_ids: Tensor | None = None,
    decay: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """What every token of every head reads, and the final states.

    Args:
        query: (batch, heads, length, key_dim).
        key: as `query`.
        value: (batch, heads, length, value_dim); products are taken in its dtype, float16 in float32.
        beta: (batch, heads, length), or None for linear attention.
        scale: factor on what is read; None for key_dim ** -0.5.
        initial_state: (batch, heads, key_dim, value_dim); None for zeros.
        position_ids: (batch, length); 0 opens a document, which finds the state empty. None: no borders.
        decay: (batch, heads, length) finite logarithms, or None.
        chunk_size: tokens that are worked on together; None for what is fastest, less for a short sequence.

    Returns:
        The output (batch, heads, length, value_dim), dtype of `value`, and the final state, float32 or wider.
    """
    dtype = torch.float32 if value.dtype == torch.float16 else value.dtype
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    state = empty_state(query, value) if initial_state is None else initial_state
    if chunk_size is None:
        fastest = 64 if dtype == torch.bfloat16 else 32
        chunk_size = min(fastest, max(SMALLEST_CHUNK, 1 << (query.shape[2] - 1).bit_length()))
    inputs = (query.to(dtype), key.to(dtype), value.to(dtype), beta, decay)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, state))
    if query.device.type == "cuda" and not keep and dtype != torch.float64 and find_spec("triton"):
        from perplab.kernels.triton_delta_rule import triton_chunkwise_state

        output, final_state = triton_chunkwise_state(*inputs, position_ids, state, scale)
        return output.to(value.dtype), final_state
    output, final_state, _, _ = _chunkwise_state(*inputs, position_ids, state, scale, chunk_size, keep)
    return output.to(value.dtype), final_state


def empty_state(query: Tensor, value: Tensor) -> Tensor:
    """The (batch, heads, key_dim, value_dim) state before the first token, float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1], dtype=wide)


def check_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    *,
    initial_state: Tensor | None,
    position_ids: Tensor | None,
    decay: Tensor | None,
    chunk_size: int | None,
) -> None:
    """Refuse inputs that do not fit each other.

    Raises:
        PerplabError: naming the input and the shape it should have.
    """
    if query.ndim != 4:
        raise PerplabError(
            f"query has {query.ndim} axes", "give (batch, heads, length, key_dim), as key, and value likewise"
        )
    batch, heads, length, key_dim = query.shape
    expected = {
        "key": (key, query.shape),
        "value": (value, (batch, heads, length, value.shape[-1])),
        "beta": (beta, (batch, heads, length)),
        "decay": (decay, (batch, heads, length)),
        "position_ids": (position_ids, (batch, length)),
        "initial_state": (initial_state, (batch, heads, key_dim, value.shape[-1])),
    }
    for name, (given, shape) in expected.items():
        if given is not None and given.shape != torch.Size(shape):
            raise PerplabError(
                f"{name} is {tuple(given.shape)} beside a query of {tuple(query.shape)}", f"give {tuple(shape)}"
            )
    if not length:
        raise PerplabError("a sequence of no tokens", "give at least one")
    if chunk_size is not None and chunk_size < 1:
        raise PerplabError(f"chunk_size {chunk_size}", "give at least 1")


@torch.library.custom_op("perplab::chunkwise_state", mutates_args=())
def _chunkwise_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    position_ids: Tensor | None,
    initial_state: Tensor,
    scale: float,
    chunk_size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, final state, and with `keep` the states before each chunk and the inverses of the chunks' systems."""
    outputs = _outputs_like(query, key, value, beta, decay, position_ids, initial_state, scale, chunk_size, keep)
    output, final_state, states, inverses = outputs
    sequences = Sequences(query, key, value, beta, decay, position_ids)
    with torch.autocast(query.device.type, enabled=False):  # dtypes are chosen here
        for rows, heads in row_groups(query):
            inputs = sequences.rows(rows)
            state = initial_state[rows].flatten(0, 1)
            for chunks, tokens in block_places(query[rows], chunk_size):
                block = inputs.block(tokens, chunk_size)
                inverse = block_inverse(block)
                read, before, state = scan_block(block, inverse, state)
                place = output[rows, :, tokens]
                torch.mul(from_chunks(read, place), scale, out=place)
                if keep:
                    states[chunks, heads] = before.view_as(states[chunks, heads])
                if keep and inverse is not None:
                    inverses[chunks, heads] = inverse.view_as(inverses[chunks, heads])
            final_state[rows] = state.view_as(final_state[rows])
    return outputs


@torch.library.custom_op("perplab::chunkwise_state_backward", mutates_args=())
def _chunkwise_state_backward(
    grad_output: Tensor,
    grad_final_state: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    position_ids: Tensor | None,
    states: Tensor,
    inverses: Tensor,
    scale: float,
    chunk_size: int,
) -> list[Tensor]:
    """Gradients of query, key, value, of beta and decay where they are there, and of the initial state."""
    given = [inputs for inputs in (query, key, value, beta, decay) if inputs is not None]
    grads, grad_initial_state = [torch.empty_like(inputs) for inputs in given], torch.empty_like(grad_final_state)
    sequences = Sequences(query, key, value, beta, decay, position_ids)
    with torch.autocast(query.device.type, enabled=False):  # dtypes are chosen here
        for rows, heads in row_groups(query):
            inputs = sequences.rows(rows)
            grad_state = grad_final_state[rows].flatten(0, 1)
            for chunks, tokens in reversed(block_places(query[rows], chunk_size)):
                block = inputs.block(tokens, chunk_size)
                before = states[chunks, heads].flatten(0, 1)
                inverse = None if beta is None else inverses[chunks, heads].flatten(0, 1)
                grad_read = to_chunks(grad_output[rows, :, tokens] * scale, chunk_size)
                pieces, grad_state = block_gradients(block, before, inverse, grad_read, grad_state)
                for grad, piece in zip(grads, pieces, strict=True):
                    grad[rows, :, tokens] = from_chunks(piece, grad[rows, :, tokens])
            grad_initial_state[rows] = grad_state.view_as(grad_initial_state[rows])
    return [*grads, grad_initial_state]


@_chunkwise_state.register_fake
def _outputs_like(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    position_ids: Tensor | None,
    initial_state: Tensor,
    scale: float,
    chunk_size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, value_dim = value.shape
    # Laid out (batch, length, heads, value_dim), which is how the projection after it reads it.
    output = value.new_empty(batch, length, heads, value_dim).transpose(1, 2)
    chunks, sequences = (-(-length // chunk_size), batch * heads) if keep else (0, 0)
    states = query.new_empty(chunks, sequences, *initial_state.shape[2:])
    inverses = query.new_empty(chunks, 0 if beta is None else sequences, chunk_size, chunk_size)
    return output, torch.empty_like(initial_state, memory_format=torch.contiguous_format), states, inverses


@_chunkwise_state_backward.register_fake
def _gradients_like(
    grad_output: Tensor,
    grad_final_state: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    position_ids: Tensor | None,
    states: Tensor,
    inverses: Tensor,
    scale: float,
    chunk_size: int,
) -> list[Tensor]:
    given = (query, key, value, beta, decay, grad_final_state)
    return [torch.empty_like(inputs) for inputs in given if inputs is not None]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, scale, chunk_size, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.constants = scale, chunk_size
    ctx.final_state = output[1].shape, output[1].dtype
    ctx.set_materialize_grads(False)  # zeros for what was kept would be as large as it


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_final_state: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    _, _, value, beta, decay = ctx.saved_tensors[:5]
    if grad_output is None:
        grad_output = torch.zeros_like(value)
    if grad_final_state is None:
        shape, dtype = ctx.final_state
        grad_final_state = value.new_zeros(shape, dtype=dtype)
    grads = iter(_chunkwise_state_backward(grad_output, grad_final_state, *ctx.saved_tensors, *ctx.constants))
    places = (True, True, True, beta is not None, decay is not None, False, True)
    return *(next(grads) if filled else None for filled in places), None, None, None


_chunkwise_state.register_autograd(_backward, setup_context=_keep_for_backward)
