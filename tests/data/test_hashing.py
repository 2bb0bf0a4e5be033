import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import hashing
from vecall.data.hashing import hash_strings, pack_column, pack_strings, unpack_column

MASK = 2**64 - 1
EXPECTED = ["f52a15e9a9b5e89b", "02c0bdbf481420f8", "e1747db7a7f6135a", "8f539c9b4033d1e2", "c2f81037f9845d8a"]


def hash_bytewise(text):
    """The same formula, computed byte by byte."""
    value = 0xCBF29CE484222325
    for byte in text.encode("utf-8", "surrogatepass"):
        value = (value ^ byte) * 0x100000001B3 & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def test_hashes_are_the_same_in_every_version():
    """The embedding rows of existing releases depend on these numbers."""
    hashes = hash_strings(["", "a", "vecall", "矢量召回", "<ve"])
    assert [f"{value:016x}" for value in hashes.tolist()] == EXPECTED


@given(st.lists(st.text(max_size=12), max_size=20))
def test_vectorized_hash_equals_the_bytewise_hash(texts):
    assert hash_strings(texts).tolist() == [hash_bytewise(text) for text in texts]


@given(st.lists(st.text(max_size=12), max_size=20), st.integers(1, 3))
def test_column_is_packed_and_unpacked(texts, chunk_rows):
    column = pl.Series(texts, dtype=pl.String)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_CHUNK_ROWS", chunk_rows)
        blob, offsets = pack_column(column)
    expected_blob, expected_offsets = pack_strings(texts)
    assert (blob.tolist(), offsets.tolist()) == (expected_blob.tolist(), expected_offsets.tolist())
    assert unpack_column(blob, offsets).to_list() == texts


def test_strings_beyond_the_radix_sort_are_hashed():
    texts = ["a" * 70_000, "b", "", "é" * 40_000]
    assert hash_strings(texts).tolist() == [hash_bytewise(text) for text in texts]


def test_unpaired_surrogate_is_hashed():
    assert hash_strings(["\ud800"]).tolist() == [hash_bytewise("\ud800")]


def test_pack_strings_concatenates_utf8_bytes():
    blob, offsets = pack_strings(["ab", "", "é"])
    assert (blob.tobytes(), offsets.tolist()) == ("abé".encode(), [0, 2, 2, 4])
    assert offsets.dtype == np.int64
    assert pack_strings([])[1].tolist() == [0]


def test_few_long_strings_take_no_step_of_numpy_for_each_byte():
    """The hashes are those of the same bytes among many strings, and 200,000 bytes take far less than a second."""
    texts = ["x" * 200_000, "y" * 199_999 + "z", "short"]
    start = time.process_time()
    hashes = hash_strings(texts)
    assert time.process_time() - start < 0.5
    assert (hashes == hash_strings(texts + [text + "q" * i for text in texts for i in range(8)])[:3]).all()
