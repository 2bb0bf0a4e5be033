import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.repeats import select_distinct

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
