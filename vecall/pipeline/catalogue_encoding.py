"""Encoding of all items of a release by its exported item tower, and the check of item vectors. Loads no torch."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Rows, Vectors
from vecall.index.scan import MAX_STORED_VALUE
from vecall.release.encoder import OnnxEncoder

_BATCH_SIZE = 8192  # items
_CHECKED_ROWS = 2**16  # vectors checked at a time, to bound memory


def encode_catalogue(encoder: OnnxEncoder, features: pl.DataFrame) -> Vectors:
    """Encode all items with the exported item tower: [N] rows of features -> [N, D] vectors."""
    rows = np.arange(len(features))
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32)
    with progress.track("encoding items", len(rows)) as advance:
        for start in range(0, len(rows), _BATCH_SIZE):
            batch = slice(start, start + _BATCH_SIZE)
            vectors[batch] = encoder.encode_items(features[batch], rows[batch])
            advance(len(rows[batch]))
    return vectors


def find_unstorable_rows(vectors: NDArray[Any]) -> Rows:
    """Return the ascending rows of [N, D] vectors that hold NaN or numbers beyond half precision, read in chunks."""
    rows = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(vectors), _CHECKED_ROWS):
        is_valid = (np.abs(vectors[start : start + _CHECKED_ROWS]) <= MAX_STORED_VALUE).all(axis=1)
        rows.append(start + np.flatnonzero(~is_valid))
    return np.concatenate(rows)
