import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.hashing import hash_strings, pack_strings

MASK = 2**64 - 1
PINNED = ["f52a15e9a9b5e89b", "02c0bdbf481420f8", "e1747db7a7f6135a", "8f539c9b4033d1e2", "c2f81037f9845d8a"]


def one_by_one(text):
    """The same formula, a byte at a time."""
    value = 0xCBF29CE484222325
    for byte in text.encode("utf-8", "surrogatepass"):
        value = (value ^ byte) * 0x100000001B3 & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def test_hashes_are_pinned():
    """Embedding rows of every release made so far hang on these numbers."""
    got = hash_strings(["", "a", "vecall", "矢量召回", "<ve"])
    assert [f"{value:016x}" for value in got.tolist()] == PINNED


@given(st.lists(st.text(max_size=12), max_size=20))
def test_many_at_once_are_hashed_as_one_by_one(texts):
    assert hash_strings(texts).tolist() == [one_by_one(text) for text in texts]


def test_half_a_surrogate_pair_is_hashed_too():
    assert hash_strings(["\ud800"]).tolist() == [one_by_one("\ud800")]


def test_pack_lays_bytes_end_to_end():
    blob, offsets = pack_strings(["ab", "", "é"])
    assert (blob.tobytes(), offsets.tolist()) == ("abé".encode(), [0, 2, 2, 4])
    assert offsets.dtype == np.int64
    assert pack_strings([])[1].tolist() == [0]
