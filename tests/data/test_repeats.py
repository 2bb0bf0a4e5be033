import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import repeats
from vecall.data.ragged import RaggedArray
from vecall.data.repeats import measure_repeat_share, select_distinct

ROWS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30)


@given(ROWS)
def test_first_or_last_of_equal_rows_is_kept(rows):
    users, items, kinds = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
    first = {row: position for position, row in reversed(list(enumerate(rows)))}
    last = {row: position for position, row in enumerate(rows)}
    assert select_distinct(users, items, kinds, "first").tolist() == sorted(first.values())
    assert select_distinct(users, items, kinds, "last").tolist() == sorted(last.values())


def test_no_rows_have_no_repeats():
    empty = np.empty(0, dtype=np.int32)
    assert len(select_distinct(empty, empty, empty, "first")) == 0


def test_share_of_repeats_is_of_each_history(monkeypatch):
    histories = RaggedArray.from_lists([[1, 2, 1, 1], [], [2, 1], [3, 3]])
    assert measure_repeat_share(histories) == 3 / 8
    assert measure_repeat_share(RaggedArray.from_lists([[], []])) == 0
    assert measure_repeat_share(RaggedArray.from_lists([])) == 0
    monkeypatch.setattr(repeats, "_MAX_USERS", 2)
    assert measure_repeat_share(histories) == 2 / 6  # of the first and the third user
