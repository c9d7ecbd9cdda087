"""The baselines are what they say."""

import numpy as np
import pytest

from perplab.laws import PowerLaw, Run, Runs, StraightLine, error_baselines, loss_baselines
from perplab.laws.baselines import LAST_VALUE, POWER_LAW, STRAIGHT_LINE

LAW = PowerLaw(irreducible=1.9, scale=500.0, eta=0.14)


def run(params, multiplier, **columns):
    loss = float(LAW.predict(params=params, multiplier=multiplier))
    return Run(params=params, tokens=params * multiplier, **{"loss": loss} | columns)


TARGET = Runs([run(10**10, 80)])


def test_the_last_value_is_that_of_the_run_with_the_most_compute():
    fitted = Runs([run(10**7, 20, loss=4.0, error=0.8), run(10**8, 20, loss=3.0, error=0.6), run(10**7, 80, error=0.7)])
    assert loss_baselines(fitted, TARGET)[LAST_VALUE].tolist() == [3.0]
    assert error_baselines(fitted, TARGET, 2.5)[LAST_VALUE].tolist() == [0.6]


def test_the_power_law_is_of_the_multiplier_with_the_most_runs():
    others = [run(10**7, 320, loss=9.0), run(10**8, 320, loss=9.5)]
    fitted = Runs([run(10**7, 20), run(10**8, 20), run(10**9, 20), *others])
    assert loss_baselines(fitted, TARGET)[POWER_LAW] == pytest.approx(LAW.predict(params=1e10, multiplier=80))
    assert POWER_LAW not in loss_baselines(fitted[1:], TARGET)


def test_the_straight_line_is_over_the_loss():
    fitted = Runs(
        [run(10**7, 20, loss=5.0, error=0.6), run(10**8, 20, loss=3.0, error=0.4), run(10**9, 20, loss=2.0, error=0.3)]
    )
    assert error_baselines(fitted, TARGET, 1.0)[STRAIGHT_LINE] == pytest.approx(0.2)


def test_a_straight_line_read_back_is_the_line_that_was_saved(tmp_path):
    line = StraightLine.fit([2, 3, 5], [0.3, 0.4, 0.6])
    assert line.predict([0, 10]) == pytest.approx(np.array([0.1, 1.1]))
    line.save(tmp_path / "line.json")
    assert StraightLine.load(tmp_path / "line.json") == line
