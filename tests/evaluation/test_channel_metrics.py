"""Metrics of channels, on rankings worked by hand."""

import math

import numpy as np
import pytest

from vecall.channels.merge_plan import MergePlan
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.channel_metrics import (
    NOT_FOUND,
    ChannelEvaluation,
    ChannelResult,
    compute_channel_metrics,
    compute_merged_metrics,
    rank_targets,
    select_targets,
)
from vecall.evaluation.channel_table import build_channel_table

N_ITEMS = 10
VECTOR_ROWS = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 2, 3]])
ROWS = np.array([[9, 2, 1, -1], [5, 0, -1, -1], [-1, -1, -1, -1]])
TARGETS = RaggedArray.from_lists([[1, 9], [0], [7]])


def test_targets_are_ranked_within_their_case():
    assert rank_targets(ROWS, TARGETS, N_ITEMS).tolist() == [2, 0, 1, NOT_FOUND]


def test_channel_is_measured_alone_and_beside_the_vectors():
    metrics = compute_channel_metrics(ROWS, VECTOR_ROWS, TARGETS, N_ITEMS, (1, 3))
    assert metrics == pytest.approx(
        {
            "recall@1": 1 / 6,  # of the three users, the first has one of two
            "added@1": 1 / 6,
            "overlap@1": 1 / 2,  # of the two users for whom it recalls anything
            "recall@3": 2 / 3,
            "added@3": (1 / 2 + 1) / 3,  # item 1 of the first user is among the vectors'
            "overlap@3": (2 / 3 + 1 / 2) / 2,
        }
    )


def test_metrics_without_targets_or_rows_are_undefined():
    nothing = RaggedArray.from_lists([[], []])
    metrics = compute_channel_metrics(np.full((2, 3), -1), VECTOR_ROWS[:2, :3], nothing, N_ITEMS, (3,))
    assert all(math.isnan(value) for value in metrics.values())


def test_merged_rankings_have_the_metrics_of_models():
    merged = {2: VECTOR_ROWS[:, :2], 10: np.pad(VECTOR_ROWS, ((0, 0), (0, 6)), constant_values=-1)}
    metrics = compute_merged_metrics(merged, RaggedArray.from_lists([[2], [8], [9]]), N_ITEMS, (2,))
    ndcg = (1 / math.log2(3) + 1 / math.log2(5)) / 3
    assert metrics == pytest.approx({"recall@2": 1 / 3, "ndcg@10": ndcg, "coverage@10": 0.9})


def test_targets_of_the_history_cannot_be_recalled_without_it():
    cases = EvalCases(np.arange(2), RaggedArray.from_lists([[1, 3], [2]]), RaggedArray.from_lists([[3, 4], [2]]))
    assert select_targets(cases, N_ITEMS, exclude_seen=False) is cases.targets
    targets = select_targets(cases, N_ITEMS, exclude_seen=True)
    assert (targets.values.tolist(), targets.lengths.tolist()) == ([4], [1, 0])


def make_evaluation(excluded=0.25):
    recalls = {"recall@5": excluded, "added@5": excluded, "overlap@5": excluded}
    channel = ChannelResult(recalls, {"recall@5": 0.5, "added@5": 0.125, "overlap@5": 1.0}, 0.5, 1.25, None)
    merged = ({"recall@5": excluded, "ndcg@10": excluded}, {"recall@5": 0.75, "ndcg@10": 0.5})
    return ChannelEvaluation(MergePlan(), merged, {"vector": channel, "repeat": channel}, "note")


def test_table_tells_of_repeats_what_they_recall_with_seen_items_included():
    table = build_channel_table(make_evaluation(), "recall@5")
    assert table.title == "channels, seen items excluded"
    assert dict(table.rows) == {
        "vector": ("0.250", "–", "–", "0.50", "1.25", "–"),
        "repeat (seen included)": ("0.500", "0.125", "1.000", "0.50", "1.25", "–"),
        "merged": ("0.250", "–", "–", "–", "–", "–"),
    }


def test_seen_items_are_included_where_no_other_target_exists():
    evaluation = make_evaluation(excluded=math.nan)
    table = build_channel_table(evaluation, "recall@5")
    assert (table.title, table.rows[1][0]) == ("channels, seen items included", "repeat")
    assert table.rows[-1] == ("merged", ("0.750", "–", "–", "–", "–", "–"))
    assert evaluation.merged_excluded_or_included["recall@5"] == 0.75
    assert evaluation.as_json()["channels"]["vector"]["seen_excluded"]["recall@5"] is None
