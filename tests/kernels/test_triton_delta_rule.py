import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPARE = """
import torch
import torch.nn.functional as F
from perplab.kernels import delta_rule_reference, linear_attention_reference
from perplab.kernels.triton_delta_rule import triton_chunkwise_state

generator = torch.Generator().manual_seed(0)
for batch, heads, length, key_dim, value_dim in ((1, 2, 70, 8, 5), (2, 1, 32, 16, 80), (1, 1, 1, 3, 2)):
    query, key = (
        F.normalize(torch.randn(batch, heads, length, key_dim, generator=generator), dim=-1) for _ in range(2)
    )
    value = torch.randn(batch, heads, length, value_dim, generator=generator)
    beta = torch.rand(batch, heads, length, generator=generator)
    state = torch.randn(batch, heads, key_dim, value_dim, generator=generator)
    decay = -torch.rand(batch, heads, length, generator=generator)
    positions = torch.cat([torch.arange(3, 23), torch.arange(30), torch.arange(20)])[:length].expand(batch, -1)
    for strengths in (beta, None):
        for extra in ({}, {"decay": decay}, {"position_ids": positions}, {"decay": decay, "position_ids": positions}):
            given = (extra.get("decay"), extra.get("position_ids"), state, 0.5)
            found = triton_chunkwise_state(query, key, value, strengths, *given)
            if strengths is None:
                wanted = linear_attention_reference(query, key, value, scale=0.5, initial_state=state, **extra)
            else:
                wanted = delta_rule_reference(query, key, value, beta, scale=0.5, initial_state=state, **extra)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
print("agreed")
"""


def test_triton_kernel_gives_the_recurrence_under_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.endswith("agreed\n"), done.stderr[-2000:]
