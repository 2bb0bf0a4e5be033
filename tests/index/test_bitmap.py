import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.bitmap import Bitmap

masks = st.integers(0, 70).flatmap(lambda size: st.lists(st.booleans(), min_size=size, max_size=size))


def make_bitmap(mask):
    return Bitmap.from_mask(np.array(mask, dtype=np.bool_))


def assert_holds(bitmap, size, rows):
    """Every way of reading the bitmap over `size` rows gives exactly `rows`."""
    all_rows = np.arange(size)
    assert (bitmap.size, bitmap.count) == (size, len(rows))
    assert (bitmap.bits.dtype, len(bitmap.bits)) == (np.uint8, -(-size // 8))
    assert np.flatnonzero(bitmap.to_mask()).tolist() == sorted(rows)
    assert bitmap.contains(all_rows).tolist() == [row in rows for row in range(size)]
    assert int(np.bitwise_count(bitmap.bits).sum()) == bitmap.count  # no bit is set beyond N


@given(masks, st.data())
def test_bitmap_is_a_set_of_rows(mask, data):
    size, rows = len(mask), {row for row, is_in in enumerate(mask) if is_in}
    bitmap = make_bitmap(mask)
    bits_before = bitmap.bits.copy()
    assert_holds(bitmap, size, rows)

    other_mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    assert_holds(bitmap & make_bitmap(other_mask), size, {row for row in rows if other_mask[row]})

    excluded = data.draw(st.lists(st.integers(0, size - 1), max_size=90)) if size else []  # with repetitions
    assert_holds(bitmap.exclude(np.array(excluded, dtype=np.int64)), size, rows - set(excluded))
    np.testing.assert_array_equal(bitmap.bits, bits_before)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1000])
def test_full_bitmap_holds_all_rows(size):
    assert_holds(Bitmap.full(size), size, set(range(size)))


def test_contains_accepts_rows_in_any_order_with_repetitions():
    rows = np.array([3, 0, 1, 1, 2])
    assert make_bitmap([True, False, True, True]).contains(rows).tolist() == [True, True, False, False, True]


def test_writing_to_the_mask_does_not_change_the_bitmap():
    bitmap = Bitmap.full(10)
    bitmap.to_mask()[:] = False
    assert bitmap.count == bitmap.to_mask().sum() == 10


def test_faiss_reads_the_same_rows():
    mask = np.random.default_rng(0).random(99) < 0.5
    selector = faiss.IDSelectorBitmap(Bitmap.from_mask(mask).bits)
    assert [selector.is_member(row) for row in range(99)] == mask.tolist()
    assert not any(selector.is_member(row) for row in range(99, 200))


@given(st.integers(1, 100), st.integers(0, 12), st.integers(0, 14), st.integers(0, 2**32 - 1))
def test_rows_of_a_range_are_those_of_the_set_in_it(size, start, stop, seed):
    mask = np.random.default_rng(seed).random(size) < 0.5
    rows = np.arange(size)
    expected = rows[mask & (rows >= 8 * start) & (rows < 8 * stop)]
    assert Bitmap.from_mask(mask).list_rows(8 * start, 8 * stop).tolist() == expected.tolist()
