"""The paired bootstrap's interval against the normal approximation."""

import numpy as np
import pytest

from vecall.evaluation.paired_bootstrap import bootstrap_differences


def test_interval_of_many_differences_is_that_of_the_normal_approximation():
    differences = np.random.default_rng(1).normal(0.3, 1.0, 2_000)
    interval = bootstrap_differences(differences)
    half_width = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    assert interval.mean == differences.mean()
    assert interval.low == pytest.approx(differences.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(differences.mean() + half_width, abs=0.1 * half_width)
    assert interval == bootstrap_differences(differences)


def test_equal_models_have_no_difference():
    assert bootstrap_differences(np.zeros(3)) == (0, 0, 0)
