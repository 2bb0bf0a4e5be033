"""Merging of many cases at once, compared with the merging of a request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.channels.merge_plan import MergePlan
from vecall.data.ragged import RaggedArray
from vecall.evaluation.channel_metrics import NOT_FOUND
from vecall.index.topk import sort_hits
from vecall.pipeline import rank_table
from vecall.pipeline.rank_table import RankTable
from vecall.recall.merging import merge_rankings

CHANNELS = ("vector", "similar", "repeat")
N_ITEMS, K = 15, 6


def merge_one(rankings, plan, k):
    """The answer of a request: each channel's items, merged, in the order of answers."""
    by_channel = {name: rankings[name] for name in plan.weights if name in rankings}
    rows, scores = merge_rankings(by_channel, plan)
    hits = sort_hits(rows[None], scores[None], len(rows))
    return hits.rows[0][:k].tolist()


def to_matrix(lists):
    matrix = np.full((len(lists), K), -1, dtype=np.int32)
    for case, rows in enumerate(lists):
        matrix[case, : len(rows)] = rows
    return matrix


case = st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=K).map(lambda rows: np.array(rows, dtype=np.int64))


@given(
    st.lists(st.fixed_dictionaries(dict.fromkeys(CHANNELS, case)), min_size=1, max_size=7),
    st.dictionaries(st.sampled_from(CHANNELS), st.sampled_from([0.1, 0.5, 1.0, 2.0]), min_size=1),
    st.sampled_from(["rrf", "quota"]),
    st.integers(1, K),
)
def test_cases_are_merged_as_requests_are(cases, weights, method, k):
    plan = MergePlan(method=method, weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_table, "_BLOCK_CASES", 3)
        table = RankTable({name: to_matrix([rankings[name] for rankings in cases]) for name in CHANNELS})
    merged = [[row for row in rows if row >= 0] for rows in table.merge(plan, k).tolist()]
    assert merged == [merge_one(rankings, plan, k) for rankings in cases]
    targets = [[number % N_ITEMS, (number + 4) % N_ITEMS] for number in range(len(cases))]
    ranks = table.rank_targets(plan, table.locate(RaggedArray.from_lists(targets)))
    full = [merge_one(rankings, plan, N_ITEMS) for rankings in cases]
    expected = [
        rows.index(target) if target in rows else NOT_FOUND
        for rows, own in zip(full, targets, strict=True)
        for target in own
    ]
    assert ranks.tolist() == expected


def test_channel_of_the_plan_that_recalled_nothing_changes_nothing():
    table = RankTable({"vector": to_matrix([[3, 1]]), "similar": to_matrix([[]])})
    plan = MergePlan(weights={"vector": 1.0, "similar": 2.0, "fresh": 1.0})
    assert table.merge(plan, 2).tolist() == [[3, 1]]


def test_rankings_of_many_thousand_items_keep_their_order():
    """A rank beyond 2^15 does not fit into 16 bits."""
    rows = np.arange(40_000, dtype=np.int32)[None, ::-1]
    table = RankTable({"vector": rows})
    plan = MergePlan(method="rrf", weights={"vector": 1.0})
    assert table.merge(plan, rows.size).tolist() == rows.tolist()
    assert table.rank_targets(plan, table.locate(RaggedArray.from_lists([[0, 39_999]]))).tolist() == [39_999, 0]
