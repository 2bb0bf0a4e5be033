"""Comparisons of candidates with the newest items of the history, against a computation value by value."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from vecall.ranking.history_columns import list_history_columns

RNG = np.random.default_rng(0)


@dataclass
class Items:
    attributes: pl.DataFrame
    vectors: np.ndarray

    def __len__(self):
        return len(self.attributes)

    def get_values(self, name):
        return self.attributes[name]


def build_history_columns(candidates, newest, history_length):
    columns = list_history_columns(candidates.attributes.schema, candidates, newest, history_length)
    return {name: pl.Series(compute(), dtype=pl.Float32, nan_to_null=True) for name, compute in columns.items()}


def describe(n, seed=0):
    rng = np.random.default_rng(seed)

    def choose(values):
        return [values[i] for i in rng.integers(len(values), size=n)]

    attributes = pl.DataFrame(
        {
            "brand": choose(["a", "b", "c", None]),
            "size": choose([1, 2, 3, None]),
            "used": choose([True, False, None]),
            "price": choose([1.5, 2.5, 9.0, None, float("nan")]),
            "created": choose([datetime(2024, 1, day, tzinfo=UTC) for day in (1, 5)] + [None]),
            "tags": choose([["x"], ["x", "y"], ["z", "x", "z"], [], None]),
            "embedding": choose([[0.5, 1.0]]),
        },
        schema_overrides={"price": pl.Float64, "size": pl.Int64, "tags": pl.List(pl.String)},
    )
    return Items(attributes, rng.standard_normal((n, 4)).astype(np.float32))


def share(values, value):
    known = [other for other in values if other is not None]
    return None if value is None or not known else sum(other == value for other in known) / len(known)


def tag_share(lists, tags):
    known = [other for other in lists if other]
    if not tags or not known:
        return None
    return sum(sum(tag in other for other in known) / len(known) for tag in tags) / len(tags)


def overlap(tags, others):
    """Jaccard index of two lists of tags."""
    return None if not tags or not others else len(set(tags) & set(others)) / len(set(tags) | set(others))


def difference(values, value):
    known = [other for other in values if other is not None and other == other]
    return None if value is None or value != value or not known else value - sum(known) / len(known)


@pytest.mark.parametrize("n_history", [0, 1, 7, 30])
def test_columns_equal_those_of_a_computation_value_by_value(n_history):
    candidates, newest = describe(40), describe(n_history, seed=1)
    columns = build_history_columns(candidates, newest, 99)
    assert set(columns) == {
        *("history.length", "history.cosine_last", "history.cosine_max", "history.cosine_mean"),
        *("history.share.brand", "history.share.size", "history.share.used", "history.share.tags"),
        *("history.overlap_last.tags", "history.overlap_max.tags", "history.overlap_mean.tags"),
        *("history.difference.size", "history.difference.price", "history.difference.created"),
    }
    assert columns["history.length"].to_list() == [99] * 40
    for row in range(40):
        item = candidates.attributes.row(row, named=True)
        history = newest.attributes.to_dict(as_series=False)
        expected = {f"history.share.{name}": share(history[name], item[name]) for name in ("brand", "size", "used")}
        expected["history.share.tags"] = tag_share(history["tags"], item["tags"])
        overlaps = [overlap(item["tags"], tags) for tags in history["tags"][-10:]]
        known = [value for value in overlaps if value is not None]
        expected["history.overlap_last.tags"] = overlaps[-1] if overlaps else None
        expected["history.overlap_max.tags"] = max(known, default=None)
        expected["history.overlap_mean.tags"] = sum(known) / len(known) if known else None
        expected |= {f"history.difference.{name}": difference(history[name], item[name]) for name in ("size", "price")}
        days = [None if time is None else time.timestamp() / 86_400 for time in (*history["created"], item["created"])]
        expected["history.difference.created"] = difference(days[:-1], days[-1])
        vectors = newest.vectors[-10:].astype(np.float64)
        vector = candidates.vectors[row].astype(np.float64)
        cosines = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
        for name, compute in (("last", lambda c: c[-1]), ("max", np.max), ("mean", np.mean)):
            expected[f"history.cosine_{name}"] = float(compute(cosines)) if n_history else None
        for name, value in expected.items():
            actual = columns[name][row]
            assert actual == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-4)), (name, row)


def test_vector_of_zeros_has_cosine_zero():
    attributes = pl.DataFrame(height=1)
    zeros, ones = (Items(attributes, np.full((1, 3), value, dtype=np.float32)) for value in (0, 1))
    assert build_history_columns(zeros, ones, 1)["history.cosine_max"].to_list() == [0]


def test_no_candidates_have_columns_without_rows():
    columns = build_history_columns(describe(0), describe(3), 3)
    assert {len(column) for column in columns.values()} == {0}
