import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data import ordering
from vecall.data.ordering import order_by_user_and_time

ROWS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 65535, 65536, 65537, 2**31 - 1]), st.integers(0, 4)), max_size=40)


@given(ROWS, st.booleans(), st.integers(1, 5))
def test_order_is_that_of_a_stable_sort(rows, is_float, block_rows):
    users = np.array([user for user, _ in rows], dtype=np.int32)
    times = np.array([time for _, time in rows], dtype=np.float64 if is_float else np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "_BLOCK_ROWS", block_rows)
        assert order_by_user_and_time(users, times).tolist() == np.lexsort((times, users)).tolist()
        ascending = np.sort(times)
        assert order_by_user_and_time(users, ascending).tolist() == np.lexsort((ascending, users)).tolist()
    assert order_by_user_and_time(users, None).tolist() == np.argsort(users, kind="stable").tolist()
