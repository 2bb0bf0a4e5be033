"""Samples of rows: spread evenly, or random and reproducible."""

import numpy as np

from vecall.arrays import Rows
from vecall.index.bitmap import Bitmap


def evenly_spaced_rows(n: int, max_rows: int) -> Rows:
    """Up to `max_rows` of the rows 0 .. n - 1, ascending, evenly spaced from the first to the last."""
    rows: Rows = np.linspace(0, max(0, n - 1), min(n, max_rows)).astype(np.int64)
    return rows


def sample_rows(n: int, max_rows: int, seed: int) -> Rows:
    """Draw up to `max_rows` distinct rows of 0 .. n - 1; they ascend."""
    rows: Rows = np.sort(np.random.default_rng(seed).choice(n, min(n, max_rows), replace=False))
    return rows


def sample_bitmap(size: int, count: int) -> Bitmap:
    """Draw `count` of `size` rows as a bitmap; the same arguments give the same bitmap."""
    mask = np.zeros(size, dtype=np.bool_)
    mask[sample_rows(size, count, seed=0)] = True
    return Bitmap.from_mask(mask)
