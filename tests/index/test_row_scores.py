"""Scores by row, compared with dicts that are filled in the same order: equal to the last bit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.row_scores import RowScores

ROWS = st.integers(0, 9) | st.integers(0, 2**31 - 1)
PAIRS = st.lists(st.tuples(ROWS, st.floats(-100, 100, width=16)), max_size=60)


def to_dict(scores):
    return dict(zip(scores.rows.tolist(), scores.scores.tolist(), strict=True))


@given(PAIRS, PAIRS, st.lists(st.floats(0, 2), min_size=3, max_size=3), st.sampled_from([np.float16, np.float32]))
def test_values_and_segments_are_summed_in_their_order(pairs, table, factors, dtype):
    expected = {}
    for row, value in pairs:
        expected[row] = expected.get(row, 0.0) + value
    bounds = [0, len(table) // 3, len(table) // 2, len(table)]
    for start, end, factor in zip(bounds, bounds[1:], factors, strict=False):
        for row, value in table[start:end]:
            expected[row] = expected.get(row, 0.0) + value * factor
    scores = RowScores(len(pairs) + len(table))
    scores.add(np.array([row for row, _ in pairs], dtype=np.int64), np.array([value for _, value in pairs], float))
    rows, values = (np.array(column) for column in zip(*table, strict=True)) if table else (np.empty(0), np.empty(0))
    segments = np.array(bounds[:-1]), np.array(bounds[1:])
    scores.add_segments(rows.astype(np.int32), values.astype(dtype), segments, np.array(factors))
    assert list(to_dict(scores).items()) == list(expected.items())
    sought = [*expected, 2**40, 11]
    has_score, found = scores.look_up(np.array(sought))
    assert has_score.tolist() == [row in expected for row in sought]
    assert found.tolist() == [expected.get(row, 0.0) for row in sought]


@given(st.lists(st.lists(ROWS, max_size=20), max_size=4))
def test_rows_of_segments_are_counted(lists):
    expected, rows = {}, [row for part in lists for row in part]
    for row in rows:
        expected[row] = expected.get(row, 0) + 1
    bounds = np.cumsum([0, *map(len, lists)])
    scores = RowScores(int(bounds[-1]))
    scores.count(np.array(rows, dtype=np.int32), (bounds[:-1].copy(), bounds[1:].copy()))
    assert to_dict(scores) == expected


@given(st.lists(st.tuples(st.lists(st.integers(0, 20), unique=True), st.floats(0.01, 9)), max_size=5), st.booleans())
def test_ranks_are_fused_in_their_order(rankings, is_sum):
    scores, expected = RowScores(sum(len(rows) for rows, _ in rankings)), {}
    for rows, weight in rankings:
        array = np.array(rows, dtype=np.int64)
        scores.add_ranks(array, weight, 60) if is_sum else scores.raise_by_ranks(array, weight)
        for rank, row in enumerate(rows, 1):
            value = expected.get(row, 0.0)
            expected[row] = value + weight / (60 + rank) if is_sum else max(value, weight / rank)
    assert to_dict(scores) == expected
