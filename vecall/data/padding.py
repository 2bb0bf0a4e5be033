"""Lists of rows as a padded matrix, encoded chunk by chunk so that all lists are not in memory twice."""

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.ragged import RaggedArray, offsets_from_lengths

_CHUNK_ROWS = 2**14  # cells encoded at a time: few enough for the arrays of a chunk to stay small
# Lists held together until they are copied. An array of many megabytes goes back to the system when it is freed.
_BLOCK_ROWS = 2**20


def pad_lists(cells: pl.Series, encode: Callable[[pl.Series], RaggedArray]) -> NDArray[np.int32]:
    """Encode B cells to lists of numbers above 0, as a matrix.

    Args:
        cells: [B] The cells.
        encode: Takes n cells to n lists.

    Returns:
        [B, T] The lists, left-aligned and padded with 0; T is the largest length, at least 1.
    """
    blocks = list(_encode_blocks(cells, encode)) if len(cells) > _CHUNK_ROWS else [encode(cells)]
    width = max([1, *(int(block.lengths.max(initial=0)) for block in blocks)])
    table = np.zeros((len(cells), width), dtype=np.int32)  # takes memory only as it is filled
    start = 0
    blocks.reverse()
    while blocks:  # each is freed once it is copied
        block = blocks.pop()
        is_value = np.arange(width) < block.lengths[:, None]
        table[start : start + len(block)][is_value] = block.values
        start += len(block)
    return table


def _encode_blocks(cells: pl.Series, encode: Callable[[pl.Series], RaggedArray]) -> Iterator[RaggedArray]:
    for start in range(0, len(cells), _BLOCK_ROWS):
        block = cells.slice(start, _BLOCK_ROWS)
        chunks = [encode(block.slice(offset, _CHUNK_ROWS)) for offset in range(0, len(block), _CHUNK_ROWS)]
        lengths = np.concatenate([chunk.lengths for chunk in chunks])
        yield RaggedArray(offsets_from_lengths(lengths), np.concatenate([chunk.values for chunk in chunks]))
