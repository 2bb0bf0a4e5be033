"""Positions of rows, against a dictionary."""

import numpy as np
import pytest

from vecall.index.row_positions import RowPositions


@pytest.mark.parametrize("n", [0, 1, 7, 500])
@pytest.mark.parametrize("largest", [600, 2**40])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_positions_equal_those_of_a_dictionary(n, largest, dtype):
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(min(largest, np.iinfo(dtype).max), size=2 * n))
    rows = rng.permutation(rows)[:n].astype(dtype)
    sought = np.concatenate([rows, rng.integers(600, size=100).astype(dtype), rows[:3]])
    positions = {row: position for position, row in enumerate(rows.tolist())}
    assert RowPositions(rows).find(sought).tolist() == [positions.get(row, -1) for row in sought.tolist()]


def test_negative_rows_are_not_found():
    found = RowPositions(np.array([-1, 5, -1, 0])).find(np.array([-1, 0, 5, 9]))
    assert found.tolist() == [-1, 3, 1, -1]
