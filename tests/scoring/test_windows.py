"""How sequences are cut into windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.scoring.conventions import CONVENTIONS, fitted_windows
from perplab.scoring.windows import FittedWindows, Windows, cut, fit


@given(
    st.integers(1, 60),
    st.integers(2, 12).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
    st.booleans(),
    st.sampled_from(["kept", "filled", "dropped"]),
)
def test_windows_reach_every_token_in_order_and_once(tokens, length_and_stride, keeps_last, tail):
    length, stride = length_and_stride
    windows = Windows(keeps_last_prediction=keeps_last, tail=tail)
    found = list(cut(tokens, FittedWindows(windows, length, stride)))
    span = length + keeps_last
    scored = [target for window in found for target in range(window.first, window.end)]
    assert scored == sorted(set(scored))
    assert all(window.begin < window.first < window.end <= window.begin + span for window in found)
    without_context = set(range(0, tokens, stride)) if stride == span else {0}
    if tail == "kept":
        assert set(scored) == set(range(tokens)) - without_context
    if tail == "filled":
        assert set(range(tokens)) - set(scored) <= without_context
        assert all(window.end - window.begin == min(span, tokens) for window in found)
    if tail == "dropped":
        assert all(window.end - window.begin == span for window in found)
        assert tokens - max((window.end for window in found), default=0) < span


def test_a_usual_length_gives_way_to_a_model_with_fewer_positions():
    numbers = {name: fitted_windows(convention, 100)[1:] for name, convention in CONVENTIONS.items()}
    assert numbers == {name: (100, 50 if name == "perplab" else 100) for name in CONVENTIONS}
    numbers = {name: fitted_windows(convention, 4096)[1:] for name, convention in CONVENTIONS.items()}
    assert numbers == {
        "perplab": (4096, 2048),
        "lm-eval": (4096, 4096),
        "nanochat": (2048, 2048),
        "hf-stride": (4096, 512),
        "gptq": (2048, 2048),
        "llamacpp": (512, 512),
    }


@pytest.mark.parametrize(
    ("windows", "length", "stride", "message"),
    [
        (
            Windows(),
            25,
            None,
            "window of 25 tokens is longer than the model's 24 positions: give a window of 24 or less",
        ),
        (Windows(), 0, None, "window of 0 tokens holds no token"),
        (Windows(stride=512), 8, 9, "stride of 9 is larger than the window of 8 tokens"),
        (Windows(stride="half"), None, 25, "stride of 25 is larger than the window of 24 tokens"),
        (Windows(stride="half"), None, 0, "stride of 0 does not move the window"),
        (Windows(), None, 4, "stride of 4 for windows that do not overlap"),
    ],
)
def test_numbers_of_the_user_that_do_not_fit_are_refused(windows, length, stride, message):
    with pytest.raises(PerplabError, match=message):
        fit(windows, 24, length, stride)
