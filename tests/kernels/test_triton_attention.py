import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perplab.kernels.triton_attention import first_visible, fits, last_seeing


@pytest.fixture(scope="module")
def interpreted():
    """Relative errors of output and gradients by case, from a process in which Triton interprets."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("triton_attention_cases.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_output_and_gradients_are_those_of_the_reference(interpreted):
    assert len(interpreted) == 6
    for name, errors in interpreted.items():
        assert max(errors) < 2e-6, name


def test_first_visible_key_is_where_the_document_or_the_window_begins():
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [4, 5, 0, 1, 2, 3, 4]])
    assert first_visible(position_ids, None).tolist() == [[0, 0, 0, 3, 3, 3, 3], [0, 0, 2, 2, 2, 2, 2]]
    assert first_visible(position_ids, 2).tolist() == [[0, 0, 1, 3, 3, 4, 5], [0, 0, 2, 2, 3, 4, 5]]


@pytest.mark.parametrize("window", [None, 1, 3])
def test_last_query_that_sees_a_key_is_found(window):
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0]])
    first = first_visible(position_ids, window)[0]
    places = torch.arange(8)
    sees = (places[None, :] >= first[:, None]) & (places[None, :] <= places[:, None])
    expected = [int(sees[:, key].nonzero().max()) for key in range(8)]
    assert last_seeing(first[None])[0].tolist() == expected


def test_shapes_that_the_kernels_do_not_serve_go_elsewhere():
    pytest.importorskip("triton")
    good = torch.zeros(1, 4, 8, 64), torch.zeros(1, 2, 8, 64)
    assert fits(*good)
    assert not fits(torch.zeros(1, 4, 8, 48), torch.zeros(1, 2, 8, 48))
    assert not fits(torch.zeros(1, 4, 8, 256), torch.zeros(1, 2, 8, 256))
    assert not fits(torch.zeros(1, 4, 1, 64), good[1])
    assert not fits(good[0].double(), good[1].double())
