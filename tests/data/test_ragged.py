import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ragged import to_lists

from vecall.data import ragged
from vecall.data.ragged import RaggedArray, RaggedView, count_rows, count_users, offsets_from_lengths

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=8)


@given(LISTS, st.integers(0, 7), st.data())
def test_ragged_array_equals_plain_lists(lists, count, data):
    array = RaggedArray.from_lists(lists)
    assert to_lists(array) == lists
    assert array.lengths.tolist() == [len(rows) for rows in lists]
    assert array.segment_ids.tolist() == [index for index, rows in enumerate(lists) for _ in rows]
    assert to_lists(array.truncate_to_last(count)) == [rows[max(0, len(rows) - count) :] for rows in lists]
    assert to_lists(RaggedArray.from_sorted_pairs(array.segment_ids, array.values, len(lists))) == lists
    table, lengths = array.to_padded(fill_value=-7)
    longest = max(map(len, lists), default=0)
    assert table.tolist() == [rows + [-7] * (longest - len(rows)) for rows in lists]
    assert lengths.tolist() == array.lengths.tolist()
    indices = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)) if lists else []
    assert to_lists(array.take(np.array(indices, dtype=np.int64))) == [lists[index] for index in indices]


@given(LISTS, st.integers(0, 7), st.data())
def test_view_equals_the_copied_lists(lists, count, data):
    source = RaggedArray.from_lists(lists)
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, len(rows))] * 2))) for rows in lists]
    expected = [rows[start:end] for rows, (start, end) in zip(lists, bounds, strict=True)]
    starts, ends = (np.array([bound[side] for bound in bounds], dtype=np.int64) for side in (0, 1))
    view = RaggedView(source.values, source.offsets[:-1] + starts, ends - starts)
    copy = RaggedArray.from_lists(expected)
    assert len(view) == len(lists)
    assert to_lists(view) == expected
    assert view.lengths.tolist() == copy.lengths.tolist()
    indices = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)) if lists else [], dtype=np.int64)
    assert to_lists(view.take(indices)) == [expected[index] for index in indices]
    assert to_lists(view.truncate_to_last(count)) == to_lists(copy.truncate_to_last(count))
    assert view.segment_ids.tolist() == copy.segment_ids.tolist()
    assert view.to_padded()[0].tolist() == copy.to_padded()[0].tolist()
    assert (view.offsets.tolist(), view.values.tolist()) == (copy.offsets.tolist(), copy.values.tolist())


@given(st.lists(st.lists(st.integers(0, 4), max_size=8), max_size=5))
def test_of_repeats_the_last_one_is_kept(lists):
    newest_first = [list(dict.fromkeys(reversed(rows))) for rows in lists]
    assert to_lists(RaggedArray.from_lists(lists).drop_repeats()) == [rows[::-1] for rows in newest_first]


@given(st.lists(st.integers(0, 6), max_size=20))
def test_rows_are_counted(rows):
    assert count_rows(np.array(rows, dtype=np.int32), 7).tolist() == [rows.count(row) for row in range(7)]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@given(lists=st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=5))
def test_users_of_an_item_are_counted_once_whatever_the_chunk(chunk, lists):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "_COUNTED_CHUNK", chunk)
        counts = count_users(RaggedArray.from_lists(lists), 7)
    assert counts.tolist() == [sum(row in rows for rows in lists) for row in range(7)]


def test_index_beyond_the_lists_raises_index_error():
    with pytest.raises(IndexError):
        RaggedArray.from_lists([[1]])[1]


def test_offsets_are_the_bounds_of_segments():
    assert offsets_from_lengths(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]
    assert offsets_from_lengths(np.array([], dtype=np.int64)).tolist() == [0]
