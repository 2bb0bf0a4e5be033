import numpy as np
import pytest

from vecall.index.sampling import evenly_spaced_rows, sample_bitmap, sample_rows


@pytest.mark.parametrize(
    ("n", "max_rows", "expected"),
    [
        (0, 5, []),
        (1, 5, [0]),
        (4, 4, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (101, 11, list(range(0, 101, 10))),
        (6, 3, [0, 2, 5]),  # 2.5 is truncated
        (6, 1, [0]),
    ],
)
def test_evenly_spaced_rows_by_hand(n, max_rows, expected):
    rows = evenly_spaced_rows(n, max_rows)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


@pytest.mark.parametrize(("n", "max_rows"), [(1001, 1000), (12_345, 300), (20_001, 20_000), (999_983, 1000), (77, 77)])
def test_evenly_spaced_rows_are_distinct_and_reach_both_ends(n, max_rows):
    rows = evenly_spaced_rows(n, max_rows)
    assert (len(rows), rows[0], rows[-1]) == (max_rows, 0, n - 1)
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(("n", "max_rows", "count"), [(5, 9, 5), (100, 30, 30), (1, 1, 1)])
def test_sampled_rows_are_distinct_and_ascend(n, max_rows, count):
    rows = sample_rows(n, max_rows, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == count
    assert rows[0] >= 0
    assert rows[-1] < n
    np.testing.assert_array_equal(rows, sample_rows(n, max_rows, seed=3))


def test_sampled_bitmap_holds_the_count_and_is_reproducible():
    bitmap = sample_bitmap(1000, 300)
    assert (bitmap.size, bitmap.count) == (1000, 300)
    assert bitmap.to_mask()[:500].any()
    assert bitmap.to_mask()[500:].any()
    np.testing.assert_array_equal(bitmap.bits, sample_bitmap(1000, 300).bits)
