"""Rows that pass, compared with sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.bitmap import Bitmap
from vecall.index.row_filter import RowFilter

N = 300


@given(
    allowed=st.none() | st.sets(st.integers(0, N - 1)),
    excluded=st.sets(st.integers(0, N - 1)),
    further=st.lists(st.booleans(), max_size=9),
    data=st.data(),
)
def test_rows_pass_that_are_allowed_and_not_excluded(allowed, excluded, further, data):
    rows = data.draw(st.lists(st.integers(0, N + len(further) - 1), max_size=200))
    count = data.draw(st.integers(0, 210))
    bitmap = None if allowed is None else Bitmap.from_mask(np.isin(np.arange(N), sorted(allowed)))
    row_filter = RowFilter(bitmap, np.array(sorted(excluded), dtype=np.int64), N, np.array(further, dtype=bool))
    expected = [
        further[row - N] if row >= N else row not in excluded and (allowed is None or row in allowed) for row in rows
    ]
    array, scores = np.array(rows, dtype=np.int64), np.arange(len(rows), dtype=np.float64)
    assert row_filter.mark(array).tolist() == expected
    assert row_filter.find_first(array, count).tolist() == np.flatnonzero(expected)[:count].tolist()
    kept_rows, kept_scores = row_filter.select(array, scores)
    np.testing.assert_array_equal(kept_rows, array[np.array(expected, dtype=bool)])
    np.testing.assert_array_equal(kept_scores, np.flatnonzero(expected))
