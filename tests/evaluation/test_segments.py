"""Metrics by segment: how targets are divided, and that a segment's metrics are those of its targets alone."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from support.dense_evaluation import to_blocks

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.segment_tables import build_segment_tables
from vecall.evaluation.segments import Segment, build_segments, divide_by_value
from vecall.evaluation.settings import BUILT_IN_SEGMENTS
from vecall.schema import Schema

ITEMS = 30


def make_cases(histories, targets, users=None):
    users = np.arange(len(histories)) if users is None else np.array(users)
    return EvalCases(users, RaggedArray.from_lists(histories), RaggedArray.from_lists(targets))


def to_dict(segments, name):
    """Return the indices of the targets in each bucket of a segment."""
    return {
        segment.bucket: np.flatnonzero(segment.target_mask).tolist() for segment in segments if segment.name == name
    }


def make_dataset(users=(), times=(), **columns):
    """Make a data set whose positives have these users and times, with tables of users and items."""
    positives = SimpleNamespace(users=np.array(users, dtype=np.int32), times=np.array(times))
    schema = Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i"},
            "items": {
                "id": "i",
                "id_type": "integer",
                "attributes": {"price": "number"},
                "features": {"genres": {"kind": "tags"}, "look": {"kind": "vector", "size": 2}},
            },
            "users": {"id": "u", "id_type": "integer", "features": {"region": {"kind": "category"}}},
        }
    )
    catalogue = SimpleNamespace(
        users=range(int(max(users, default=0)) + 2),
        user_features=pl.DataFrame({"region": columns.get("region", [])}),
        item_features=pl.DataFrame({"genres": columns.get("genres", [])}),
        item_attributes=pl.DataFrame({"price": columns.get("price", [])}),
    )
    interactions = SimpleNamespace(positives=positives)
    return SimpleNamespace(schema=schema, catalogue=catalogue, interactions=interactions, has_timestamps=len(times) > 0)


def test_history_lengths_have_fixed_edges():
    lengths = [0, 1, 4, 5, 9, 10, 19, 20, 49, 50, 199, 200, 500]
    cases = make_cases([[0] * length for length in lengths], [[1, 2]] + [[1]] * 12)
    segments = build_segments(("history_length",), make_dataset(), None, cases, np.ones(3))
    assert to_dict(segments, "history_length") == {
        "0": [0, 1],
        "1-4": [2, 3],
        "5-9": [4, 5],
        "10-19": [6, 7],
        "20-49": [8, 9],
        "50-199": [10, 11],
        "200+": [12, 13],
    }


def test_popularity_is_of_the_target_and_equal_counts_share_a_bucket():
    # 100 interactions: 40, then 10 + 10 to half, four times 5 + 10 to four fifths, and the rest.
    counts = np.array([40, 10, 10, 10, 10, 5, 5, 5, 3, 2, 0], dtype=np.float32)
    cases = make_cases([[], []], [[0, 5, 10], [1, 4, 9]])
    segments = build_segments(("item_popularity",), make_dataset(), None, cases, counts)
    assert to_dict(segments, "item_popularity") == {"head": [0, 3, 4], "tail": [1, 5], "untrained": [2]}


def test_user_age_is_the_time_since_the_first_training_positive():
    # User 0 has no training positive; the first ones of users 1 to 4 are at 10, 20, 30 and 40; the last is at 50.
    dataset = make_dataset(users=[0, 1, 1, 2, 3, 4, 4], times=[5, 10, 50, 20, 30, 40, 60])
    split = SimpleNamespace(positive_parts=np.array([2, 0, 0, 0, 0, 0, 2], dtype=np.int8))
    cases = make_cases([[0]] * 5, [[1], [1, 2], [1], [1], [1]])
    segments = build_segments(("user_age",), dataset, split, cases, np.ones(3))
    assert to_dict(segments, "user_age") == {
        "untrained": [0],
        "newest quarter": [5],
        "second quarter": [4],
        "third quarter": [3],
        "oldest quarter": [1, 2],
    }


def test_user_age_is_left_out_without_times():
    dataset = make_dataset(users=[0, 1])
    assert build_segments(("user_age",), dataset, None, make_cases([[0]], [[1]]), np.ones(3)) == []


def test_columns_are_those_of_the_user_or_of_the_target():
    dataset = make_dataset(region=["n", "s", None], genres=[["a"], ["a", "b"], []], price=[1.0, 2.0, None])
    cases = make_cases([[0], [0]], [[1, 2], [0]], users=[2, 1])
    segments = build_segments(("region", "items.genres", "price"), dataset, None, cases, np.ones(3))
    assert to_dict(segments, "region") == {"s": [2], "missing": [0, 1]}
    assert to_dict(segments, "items.genres") == {"a": [0, 2], "b": [0], "missing": [1]}
    assert to_dict(segments, "price") == {"1.0": [2], "2.0": [0], "missing": [1]}


def test_values_that_cannot_be_grouped_are_left_out_with_a_warning(caplog):
    cases = make_cases([[0]], [[1, 2]], users=[0])
    for values in ([[[1.0]], [[2.0]], None], [b"a", b"b", None]):
        assert build_segments(("price",), make_dataset(price=values), None, cases, np.ones(3)) == []
        assert "'price' has values of type" in caplog.text
        caplog.clear()
    arrays = pl.Series([["a"], ["b"], ["b"]], dtype=pl.Array(pl.String, 1))
    segments = build_segments(("price",), make_dataset(price=arrays), None, cases, np.ones(3))
    assert to_dict(segments, "price") == {"b": [0, 1]}


def to_indices(buckets):
    return {label: np.flatnonzero(mask).tolist() for label, mask in buckets.items() if mask.any()}


def test_rare_values_are_other_and_so_are_values_of_that_name():
    values = pl.Series(["a"] * 3 + ["other"] * 3 + ["b", "c", "d", "e", "f", "missing", None])
    buckets = to_indices(divide_by_value(values))
    assert list(buckets) == ["a", "b", "c", "d", "e", "other", "missing"]
    assert buckets["other"] == [3, 4, 5, 10, 11]
    assert buckets["missing"] == [12]


def test_numbers_and_dates_are_divided_into_quarters():
    numbers = pl.Series([8, 7, 6, 5, None, 4, 3, 2, 1])
    assert to_indices(divide_by_value(numbers)) == {
        "1 to 2": [7, 8],
        "3 to 4": [5, 6],
        "5 to 6": [2, 3],
        "7 to 8": [0, 1],
        "missing": [4],
    }
    with_nan = pl.Series([8.0, 7, 6, 5, float("nan"), 4, 3, 2, 1])
    assert to_indices(divide_by_value(with_nan)) == to_indices(divide_by_value(numbers))
    ratings = pl.Series([1.0, 2, 3, 4, 5, None, float("nan")])  # five values, and missing ones
    assert list(to_indices(divide_by_value(ratings))) == ["1.0", "2.0", "3.0", "4.0", "5.0", "missing"]
    dates = numbers.cast(pl.Date)
    assert next(iter(to_indices(divide_by_value(dates)))) == "1970-01-02 to 1970-01-03"
    flags = to_indices(divide_by_value(pl.Series([True, False, True])))
    assert flags == {"true": [0, 2], "false": [1]}
    assert to_indices(divide_by_value(pl.Series([None, None], dtype=pl.List(pl.String)))) == {"missing": [0, 1]}


def score_randomly(cases):
    return np.random.default_rng(5).random((100, ITEMS)).astype(np.float32)[cases.users]


def test_metrics_of_a_segment_are_those_of_cases_with_its_targets_alone():
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(ITEMS) for _ in range(20)]
    histories = [row[:5] for row in drawn]
    targets = [np.sort(row[4 : 7 + user % 3]) for user, row in enumerate(drawn)]  # the first of them is seen
    cases = make_cases(histories, targets)
    is_even = cases.targets.values % 2 == 0
    segments = [Segment("parity", "even", is_even), Segment("parity", "odd", ~is_even)]
    result = evaluate_scorer(to_blocks(score_randomly), cases, ITEMS, (3, 10), segments=segments)
    for remainder, bucket in enumerate(("even", "odd")):
        kept = [row[row % 2 == remainder] for row in targets]
        users = [user for user, row in enumerate(kept) if len(set(row) - set(histories[user]))]
        alone = evaluate_scorer(
            to_blocks(score_randomly),
            make_cases([histories[user] for user in users], [kept[user] for user in users], users),
            ITEMS,
            (3, 10),
        )
        segment = result.segment_metrics["parity", bucket]
        assert segment.user_count == len(users)
        # A seen target takes no part. Other targets keep their ranks, so they are competitors in both.
        assert segment.metrics == pytest.approx(
            {name: value for name, value in alone.seen_excluded.items() if name != "coverage@10"}
        )


def test_recall_of_a_segment_by_hand():
    cases = make_cases([[5], [5]], [[0, 9], [1, 8]])
    descending = to_blocks(lambda batch: np.tile(np.arange(10, 0, -1, dtype=np.float32), (len(batch), 1)))
    masks = {"front": [True, False, True, False], "one": [False, True, False, False], "none": [False] * 4}
    segments = [Segment("s", bucket, np.array(mask)) for bucket, mask in masks.items()]
    results = {"model": evaluate_scorer(descending, cases, 10, (1, 2), segments=segments)}
    values = results["model"].segment_metrics
    assert (values["s", "front"].user_count, values["s", "front"].target_count) == (2, 2)
    assert values["s", "front"].metrics == pytest.approx(
        {"recall@1": 0.5, "recall@2": 1.0, "ndcg@10": (1 + 1 / np.log2(3)) / 2}
    )
    assert values["s", "one"].as_json() == {"recall@1": 0.0, "recall@2": 0.0, "ndcg@10": pytest.approx(1 / np.log2(10))}
    assert values["s", "none"].as_json() == {"recall@1": None, "recall@2": None, "ndcg@10": None}
    (table,) = build_segment_tables(results | {"index": results["model"]})
    assert (table.name, table.columns) == ("s", ("recall@2, model", "ndcg@10, model"))
    assert table.rows[0] == ("front", 2, (1.0, values["s", "front"].metrics["ndcg@10"]))
    assert [row[0] for row in table.rows] == ["front", "one", "none"]


def test_all_built_in_segments_divide_every_target():
    dataset = make_dataset(users=[0, 1, 2], times=[1, 2, 3])
    split = SimpleNamespace(positive_parts=np.zeros(3, dtype=np.int8))
    cases = make_cases([[0], [0, 1], []], [[1], [2, 0], [0]])
    segments = build_segments(BUILT_IN_SEGMENTS, dataset, split, cases, np.array([2, 1, 0], dtype=np.float32))
    for name in BUILT_IN_SEGMENTS:
        counts = np.sum([segment.target_mask for segment in segments if segment.name == name], axis=0)
        assert counts.tolist() == [1, 1, 1, 1], name
