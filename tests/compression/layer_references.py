"""Layers to solve, and solvers as the papers write them: one weight or one column at a time, everything recomputed."""

import torch
from hypothesis import strategies as st

from perplab.compression.grid import GridOptions
from perplab.compression.solvers import InputMoments


def correlated_layer(out, inputs, *, seed=0, tokens=None, rank=4, dtype=torch.float64):
    """A random weight and the moments of inputs that share a few directions and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tokens or 4 * inputs

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    signal = normal(inputs, rank) @ normal(rank, tokens) + 0.5 * normal(inputs, tokens)
    signal *= normal(inputs, 1).mul(0.5).exp()
    return normal(out, inputs).to(dtype), moments_of(signal.to(dtype))


def moments_of(inputs):
    """Moments of (in, tokens) inputs."""
    return InputMoments(inputs @ inputs.T, inputs.abs().mean(dim=1), inputs.shape[1])


def exact(**options):
    """Grid options whose scales are not rounded."""
    return GridOptions(scale_dtype=torch.float64, **options)


def output_error(weight, rounded, second):
    change = rounded - weight
    return torch.trace(change @ second @ change.T).item()


def column_values(grid, column):
    """The grid values of each row in one column, (out, codes)."""
    group = column // grid.group_size
    steps = torch.arange(2**grid.bits) - grid.zero[:, group].unsqueeze(1).long()
    return steps * grid.scale[:, group].double().unsqueeze(1)


def nearest(grid, column, values):
    """What `values`, (out,), of a column are rounded to."""
    group = column // grid.group_size
    scale, zero = grid.scale[:, group].to(values), grid.zero[:, group].to(values)
    return scale * ((values / scale).round().add(zero).clamp(0, 2**grid.bits - 1) - zero)


def textbook_gptq(weight, second, grid, order, damping=0.01, threshold=None):
    """GPTQ with the factor of the inverse, one column after the other; with a threshold, SpQR's outliers stay."""
    work = weight[:, order].clone()
    hessian = second[order][:, order].clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    limit = torch.inf if threshold is None else threshold * (work.var(0, correction=0) / factor.diagonal() ** 2).mean()
    rounded = torch.empty_like(weight)
    for visit, column in enumerate(order.tolist()):
        rounded[:, column] = nearest(grid, column, work[:, visit])
        error = (work[:, visit] - rounded[:, column]) / factor[visit, visit]
        stays = error**2 > limit
        rounded[stays, column], error[stays] = work[stays, visit], 0.0
        work[:, visit:] -= torch.outer(error, factor[visit, visit:])
    return rounded


def naive_sweep(current, target, second, grid, order, free=False):
    """One sweep of coordinate descent that recomputes the whole product for each column; `current` is changed."""
    for column in order.tolist():
        if second[column, column] > 0:
            change = current - target
            change[:, column] = 0
            lowest = target[:, column] - change @ second[:, column] / second[column, column]
        else:
            lowest = current[:, column]
        current[:, column] = lowest if free else nearest(grid, column, lowest)


@st.composite
def small_layers(draw, out=(1, 5), inputs=(1, 9)):
    """Weights and moments of every rank, some inputs always 0."""
    rows, columns = draw(st.integers(*out)), draw(st.integers(*inputs))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tokens = draw(st.integers(1, 2 * columns))
    signal = torch.randn(columns, tokens, generator=generator, dtype=torch.float64)
    signal[torch.rand(columns, generator=generator) < draw(st.sampled_from([0.0, 0.3]))] = 0.0
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), moments_of(signal)
