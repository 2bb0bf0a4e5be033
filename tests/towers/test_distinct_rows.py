"""Distinct rows: equal to `torch.unique`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vecall.towers.distinct_rows import find_distinct_rows

MAX_ROW = 2**31  # of an item


@given(st.lists(st.one_of(st.integers(0, 9), st.integers(0, MAX_ROW)), max_size=40))
def test_distinct_rows_are_those_of_unique(values):
    rows = torch.tensor(values, dtype=torch.int64)
    distinct, index = find_distinct_rows(rows)
    expected_distinct, expected_index = torch.unique(rows, return_inverse=True)
    assert torch.equal(distinct, expected_distinct)
    assert torch.equal(index, expected_index)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(3, 4), (2, 0), (1, 1, 5)])
def test_index_has_the_shape_of_the_rows(shape, dtype):
    rows = torch.randint(7, shape).to(dtype)
    distinct, index = find_distinct_rows(rows)
    assert index.shape == rows.shape
    assert index.dtype == torch.int64
    assert torch.equal(distinct[index], rows.to(torch.int64))


def test_rows_need_not_be_contiguous():
    rows = torch.randint(7, (5, 6)).T
    distinct, index = find_distinct_rows(rows)
    assert torch.equal(distinct[index], rows)
