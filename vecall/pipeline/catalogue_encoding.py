"""Encoding of all items of a release by its exported item tower. Loads no torch."""

import numpy as np
import polars as pl

from vecall import progress
from vecall.arrays import Vectors
from vecall.release.encoder import OnnxEncoder

_BATCH_SIZE = 8192  # items


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
