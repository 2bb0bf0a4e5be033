import numpy as np
import pytest

from vecall.pipeline import catalogue_encoding
from vecall.pipeline.catalogue_encoding import find_unstorable_rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 6, 7])
def test_rows_that_cannot_be_stored_are_found_across_chunks(monkeypatch, dtype, n):
    monkeypatch.setattr(catalogue_encoding, "_CHECKED_ROWS", 3)
    vectors = np.ones((n, 2), dtype=dtype)
    vectors[3:4], vectors[4:5] = np.nan, np.inf
    vectors[6:, 0] = -np.inf
    vectors[5:6] = -65504
    if dtype != np.float16:
        vectors[2:3, 1] = 65505
    is_storable = (np.abs(vectors.astype(np.float64)) <= 65504).all(axis=1)
    np.testing.assert_array_equal(find_unstorable_rows(vectors), np.flatnonzero(~is_storable))
