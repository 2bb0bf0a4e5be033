"""Merging of rankings, compared with cases worked by hand and with a loop over items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.channels.merge_plan import MergePlan
from vecall.recall.merging import merge_rankings


def merge(rankings, method, weights):
    plan = MergePlan(method=method, weights=weights)
    arrays = {name: np.array(rows, dtype=np.int64) for name, rows in rankings.items()}
    rows, scores = merge_rankings(arrays, plan)
    return dict(zip(rows.tolist(), scores.tolist(), strict=True))


def test_reciprocal_ranks_are_weighted_and_summed():
    merged = merge({"vector": [7, 3], "similar": [3, 9]}, "rrf", {"vector": 1.0, "similar": 0.5})
    assert merged == pytest.approx({7: 1 / 61, 3: 1 / 62 + 0.5 / 61, 9: 0.5 / 62})


def test_quota_gives_each_channel_its_share_of_any_prefix():
    weights = {"vector": 0.75, "similar": 0.25}
    merged = merge({"vector": range(100), "similar": range(100, 200)}, "quota", weights)
    best = sorted(merged, key=lambda row: -merged[row])
    for length in (4, 20, 100):
        assert abs(sum(row >= 100 for row in best[:length]) - length / 4) <= 1


def test_item_of_several_channels_has_its_best_quota_score():
    merged = merge({"vector": [5, 6], "similar": [6]}, "quota", {"vector": 0.8, "similar": 0.3})
    assert merged == pytest.approx({5: 0.8, 6: 0.4})  # 0.8 / 2 > 0.3 / 1


def test_channels_that_did_not_answer_contribute_nothing():
    assert merge({"vector": [1], "similar": []}, "rrf", {"vector": 1.0, "similar": 2.0}) == pytest.approx({1: 1 / 61})
    assert merge({}, "rrf", {"vector": 1.0}) == {}


@given(
    st.dictionaries(st.sampled_from(["vector", "similar", "repeat"]), st.lists(st.integers(0, 20), unique=True)),
    st.sampled_from(["rrf", "quota"]),
)
def test_merging_equals_a_loop_over_items(rankings, method):
    weights = {"vector": 1.0, "similar": 0.5, "repeat": 0.25}
    expected = {}
    for name, rows in rankings.items():
        for rank, row in enumerate(rows, 1):
            if method == "rrf":
                expected[row] = expected.get(row, 0.0) + weights[name] / (60 + rank)
            else:
                expected[row] = max(expected.get(row, 0.0), weights[name] / rank)
    assert merge(rankings, method, weights) == pytest.approx(expected)
