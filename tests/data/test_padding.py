import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import padding
from vecall.data.padding import pad_lists
from vecall.data.ragged import RaggedArray


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=9), st.integers(1, 3), st.integers(1, 5))
def test_lists_are_padded_to_the_longest_of_all_chunks(lists, chunk_rows, block_rows):
    cells = pl.Series(lists, dtype=pl.List(pl.Int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding, "_CHUNK_ROWS", chunk_rows)
        patch.setattr(padding, "_BLOCK_ROWS", block_rows)
        table = pad_lists(cells, lambda chunk: RaggedArray.from_lists(chunk.to_list()))
    width = max([1, *map(len, lists)])
    assert table.tolist() == [rows + [0] * (width - len(rows)) for rows in lists]
    assert table.shape == (len(lists), width)
    assert table.dtype == np.int32
