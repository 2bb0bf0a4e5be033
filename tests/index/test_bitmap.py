import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.bitmap import Bitmap

masks = st.integers(0, 70).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n))


def of(marked):
    return Bitmap.from_mask(np.array(marked, dtype=np.bool_))


def assert_holds(bitmap, size, rows):
    """In every way of reading it, the bitmap over `size` rows holds just these."""
    everything = np.arange(size)
    assert (bitmap.size, bitmap.count) == (size, len(rows))
    assert (bitmap.bits.dtype, len(bitmap.bits)) == (np.uint8, -(-size // 8))
    assert np.flatnonzero(bitmap.mask()).tolist() == sorted(rows)
    assert bitmap.has(everything).tolist() == [row in rows for row in range(size)]
    assert int(np.bitwise_count(bitmap.bits).sum()) == bitmap.count  # so nothing is set beyond N


@given(masks, st.data())
def test_a_bitmap_is_a_set_of_rows(marked, data):
    size, rows = len(marked), {row for row, one in enumerate(marked) if one}
    bitmap = of(marked)
    before = bitmap.bits.copy()
    assert_holds(bitmap, size, rows)

    others = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    assert_holds(bitmap & of(others), size, {row for row in rows if others[row]})

    gone = data.draw(st.lists(st.integers(0, size - 1), max_size=90)) if size else []  # some of them twice
    assert_holds(bitmap.exclude(np.array(gone, dtype=np.int64)), size, rows - set(gone))
    np.testing.assert_array_equal(bitmap.bits, before)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1000])
def test_all_of_them(size):
    assert_holds(Bitmap.full(size), size, set(range(size)))


def test_rows_are_asked_for_in_any_order():
    assert of([True, False, True, True]).contains(np.array([3, 0, 1, 1, 2])).tolist() == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_the_mask_is_the_callers_to_change():
    bitmap = Bitmap.full(10)
    bitmap.to_mask()[:] = False
    assert bitmap.count == bitmap.to_mask().sum() == 10


def test_faiss_reads_it_likewise():
    marked = np.random.default_rng(0).random(99) < 0.5
    selector = faiss.IDSelectorBitmap(Bitmap.from_mask(marked).bits)
    assert [selector.is_member(row) for row in range(99)] == marked.tolist()
    assert not any(selector.is_member(row) for row in range(99, 200))


@given(st.integers(1, 100), st.integers(0, 12), st.integers(0, 14), st.integers(0, 2**32 - 1))
def test_between_keeps_what_lies_there(size, start, stop, seed):
    mask = np.random.default_rng(seed).random(size) < 0.5
    kept = Bitmap.from_mask(mask).restrict_to_range(8 * start, 8 * stop)
    rows = np.arange(size)
    expected = mask & (rows >= 8 * start) & (rows < 8 * stop)
    assert kept.to_mask().tolist() == expected.tolist()
    assert kept.count == expected.sum()
