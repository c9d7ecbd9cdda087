"""One block of chunks of a state that tokens write to and read from: what comes out of it, and its gradients.

A head keeps a matrix S. Token t finds it decayed, S' = exp(decay_t) S, writes S = S' + k_t u_t^T, and reads
o_t = scale * S^T q_t. With `beta` what it writes is the delta rule's correction, u_t = beta_t (v_t - S'^T k_t); without
it is v_t, which is linear attention.

Decisions:
- Inside a chunk the corrections solve a unit lower triangular system, (I + A) U = beta (V - K S), A_ij =
  beta_i k_i k_j for j < i. Its inverse is taken for a block at once; what is left to do one chunk after another are
  three matrix products.
- The inverse is put together from halves, [[X, 0], [-Y B X, Y]], down to blocks small enough for substitution: nearly
  all of it is matrix products. The series I - A + A^2 - ..., which is nothing but products, overflows when keys repeat.
- The state, the system and its inverse are float32 also where the inputs are bfloat16; other products are taken in the
  inputs' dtype.
"""

import torch
from torch import Tensor

from perplab.kernels.chunk_factors import decay_gradient
from perplab.kernels.chunks import Block

SUBSTITUTED = 16
"""Largest triangular matrix that is inverted by substitution."""


def block_inverse(block: Block) -> Tensor | None:
    """(n, chunk_size, chunk_size) inverses of I + A in the inputs' dtype; None for linear attention."""
    if block.beta is None:
        return None
    key = block.key.to(block.factors.pairs.dtype)
    system = torch.bmm(key, key.mT).mul_(block.beta)
    if block.factors.out is not None:
        system.mul_(block.factors.pairs)
    return unit_lower_inverse(system).to(block.key.dtype)


def unit_lower_inverse(matrices: Tensor) -> Tensor:
    """Inverses of I + the part below the diagonal of (n, c, c) matrices, of which nothing else is read."""
    size = matrices.shape[-1]
    if size <= SUBSTITUTED or size % 2:
        identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
        return torch.linalg.solve_triangular(matrices, identity, upper=False, unitriangular=True)
    half = size // 2
    first, second = unit_lower_inverse(torch.cat((matrices[:, :half, :half], matrices[:, half:, half:]))).chunk(2)
    inverses = torch.zeros_like(matrices)
    inverses[:, :half, :half], inverses[:, half:, half:] = first, second
    inverses[:, half:, :half] = torch.bmm(second, torch.bmm(matrices[:, half:, :half], first)).neg_()
    return inverses


def scan_block(block: Block, inverse: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pass a state through a block.

    Args:
        block: the inputs.
        inverse: of `block_inverse`.
        state: (sequences, key_dim, value_dim), float32 or wider.

    Returns:
        What is read, before the scale (n, chunk_size, value_dim); the state before each chunk (n, key_dim, value_dim),
        in the inputs' dtype; and the state after the block.
    """
    _, into, out, across = block.factors
    read_key, written_key = _scaled(block.key, into), _scaled(block.key, out)
    before = block.key.new_empty(len(block.key), *state.shape[1:])
    updates, writer = block.value, None
    if inverse is not None and block.beta is not None:
        updates, writer = torch.empty_like(block.value), _scaled(inverse, block.beta.mT)
    for found, read, written, value, update, kept, solve in block.steps(
        before, read_key, written_key.mT, block.value, updates, across, writer
    ):
        found.copy_(state)
        if solve is not None:
            torch.bmm(solve, torch.baddbmm(value, read, found, alpha=-1), out=update)
        state = torch.bmm(written, update).add(state if kept is None else state * kept)
    read = torch.bmm(_scaled(block.query, into), before)
    return read.baddbmm_(_scores(block), updates), before, state


def block_gradients(
    block: Block, before: Tensor, inverse: Tensor | None, grad_read: Tensor, grad_state: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Gradients of a block.

    Args:
        block: the inputs.
        before: the state before each chunk, as `scan_block` returned it.
        inverse: of `block_inverse`.
        grad_read: (n, chunk_size, value_dim), of what was read, before the scale.
        grad_state: (sequences, key_dim, value_dim), of the state after the block.

    Returns:
        Gradients of query, key and value, and of beta and decay where the block has them; and of the state before it.
    """
    query, key, value, beta, (pairs, into, out, across) = block[2:]
    read_key, written_key = _scaled(key, into), _scaled(key, out)
    scores = _scores(block)
    updates, solver = value, None
    if beta is not None and inverse is not None:
        solver = inverse.mT
        missing = torch.baddbmm(value, read_key, before, alpha=-1)
        updates = torch.bmm(inverse, _scaled(missing, beta))

    grad_updates = torch.bmm(scores.mT, grad_read)
    grad_before = torch.bmm(_scaled(query, into).mT, grad_read)
    grad_solved = torch.empty_like(value)  # of the right-hand side beta (V - K S)
    grad_after = torch.empty_like(before)
    for after, written, update, kept, reading, read, solved, solve, strength in reversed(
        block.steps(grad_after, written_key, grad_updates, across, grad_before, read_key.mT, grad_solved, solver, beta)
    ):
        after.copy_(grad_state)
        update.baddbmm_(written, after)
        if strength is not None:
            torch.bmm(solve, update, out=solved)
            reading = torch.baddbmm(reading, read, _scaled(solved, strength), alpha=-1)
        grad_state = reading.add(grad_state if kept is None else grad_state * kept)

    grad_pairs = torch.bmm(grad_read, updates.mT)
    grad_scores = _scaled(grad_pairs, pairs)
    query_reading = _scaled(torch.bmm(grad_read, before.mT), into)
    key_writing = _scaled(torch.bmm(updates, grad_after.mT), out)
    grad_query = torch.baddbmm(query_reading, grad_scores, key)
    grad_key = torch.baddbmm(key_writing, grad_scores.mT, query)
    grads = [grad_query, grad_key, grad_updates]
    if block.has_decay and across is not None:
        by_pair, by_read = _product(grad_pairs, scores), _product(query_reading, query).sum(dim=-1)
        by_write = _product(key_writing, key).sum(dim=-1)
        by_passing = (_product(grad_after, before) * across).sum(dim=(1, 2))
    if beta is not None:
        grad_value = _scaled(grad_solved, beta)
        key_reading = _scaled(torch.bmm(grad_value, before.mT), into)
        products = torch.bmm(key, key.mT)
        grad_system = _scaled(torch.bmm(grad_solved, updates.mT), pairs).tril_(-1).neg_()
        grad_products = _scaled(grad_system, beta)
        grad_beta = (grad_solved * missing).sum(dim=-1) + (grad_system * products).sum(dim=-1)
        grad_key = torch.baddbmm(grad_key.sub_(key_reading), grad_products + grad_products.mT, key)
        grads = [grad_query, grad_key, grad_value, grad_beta]
        if block.has_decay:
            by_pair += _product(grad_products, products)
            by_read -= _product(key_reading, key).sum(dim=-1)
    if block.has_decay:
        grads.append(decay_gradient(by_pair, by_read, by_write, by_passing))
    return grads, grad_state


def _scores(block: Block) -> Tensor:
    """q_i k_j, times what is left of token j's writing when token i reads."""
    return _scaled(torch.bmm(block.query, block.key.mT), block.factors.pairs)


def _scaled(states: Tensor, factor: Tensor | None) -> Tensor:
    return states if factor is None else states * factor.to(states.dtype)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """In float32 or wider, as what is summed cancels."""
    return one.to(torch.promote_types(one.dtype, torch.float32)) * other
