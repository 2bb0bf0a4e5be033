import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=8)


def lists_of(sequences):
    return [sequences[place].tolist() for place in range(len(sequences))]


@given(LISTS, st.integers(0, 7), st.data())
def test_every_view_is_what_plain_lists_give(lists, count, data):
    sequences = RaggedArray.from_lists(lists)
    assert lists_of(sequences) == lists
    assert sequences.lengths.tolist() == [len(one) for one in lists]
    assert sequences.segment_ids.tolist() == [place for place, one in enumerate(lists) for _ in one]
    assert lists_of(sequences.take_last(count)) == [one[max(0, len(one) - count) :] for one in lists]
    assert lists_of(RaggedArray.from_groups(sequences.segment_ids, sequences.values, len(lists))) == lists
    table, lengths = sequences.to_padded(fill_value=-7)
    longest = max(map(len, lists), default=0)
    assert table.tolist() == [one + [-7] * (longest - len(one)) for one in lists]
    assert lengths.tolist() == sequences.lengths.tolist()
    places = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)) if lists else []
    assert lists_of(sequences.take(np.array(places, dtype=np.int64))) == [lists[place] for place in places]


def test_a_list_that_is_not_there_is_an_error():
    with pytest.raises(IndexError):
        RaggedArray.from_lists([[1]])[1]
