import pytest

from vecall.training.lr_schedule import build_cosine_schedule


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    multiplier = build_cosine_schedule(100)
    multipliers = [multiplier(step) for step in range(101)]
    assert multipliers[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert multipliers[5] == pytest.approx(1)
    assert multipliers[5:] == sorted(multipliers[5:], reverse=True)
    assert multipliers[52] == pytest.approx(0.02 + 0.98 * 0.5, abs=0.01)
    assert multipliers[100] == pytest.approx(0.02)
    assert build_cosine_schedule(1)(0) == 1
