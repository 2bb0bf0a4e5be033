"""Lookups of table rows: outputs and gradients equal those of PyTorch's own operations, on any number of threads."""

import pytest
import torch
from torch.nn import functional as F

from vecall.towers import row_lookup
from vecall.towers.row_lookup import sum_listed_rows, sum_padded_rows, take_rows

R, D = 37, 5


@pytest.fixture(params=[1, 2])
def n_threads(request, monkeypatch):
    monkeypatch.setattr(row_lookup, "_MIN_NUMBERS_PER_THREAD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(threads)


def make_table():
    return torch.randn(R, D, generator=torch.Generator().manual_seed(0)).requires_grad_()


def assert_like(look_up, reference):
    """Compare a lookup of a table, and the gradient of a random function of it, with a reference."""
    results = []
    for function in (look_up, reference):
        table = make_table()
        output = function(table)
        output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
        results.append((output.detach(), table.grad))
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("shape", [(4, 7), (9,), (0,), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_are_taken_as_by_an_embedding(shape, dtype):
    rows = torch.randint(R, shape).to(dtype)
    assert_like(lambda table: take_rows(table, rows), lambda table: F.embedding(rows, table))


@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_padding_is_not_summed(dtype):
    rows = torch.randint(R, (6, 9)).to(dtype)
    is_row = torch.rand(rows.shape) < 0.5
    is_row[2] = False  # an empty list
    assert_like(
        lambda table: sum_padded_rows(table, rows, is_row),
        lambda table: (F.embedding(rows, table) * is_row.unsqueeze(-1)).sum(1),
    )


@pytest.mark.usefixtures("n_threads")
def test_lists_are_summed_one_by_one():
    lengths = torch.tensor([3, 0, 5, 1, 0])
    rows = torch.randint(R, (9,))
    assert_like(
        lambda table: sum_listed_rows(table, rows, lengths),
        lambda table: torch.stack([part.sum(0) for part in F.embedding(rows, table).split(lengths.tolist())]),
    )


def test_gradient_has_the_same_bits_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(row_lookup, "_MIN_NUMBERS_PER_THREAD", 1)
    rows, gradients, threads = torch.randint(R, (500,)), [], torch.get_num_threads()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        table = make_table()
        (take_rows(table, rows) * torch.linspace(0, 1, 500).unsqueeze(1)).sum().backward()
        gradients.append(table.grad)
    torch.set_num_threads(threads)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(
    "make", [lambda table: table.detach(), lambda table: table.bfloat16(), lambda table: table.double()]
)
def test_tables_without_a_kernel_are_looked_up_too(make):
    table, rows = make(make_table()), torch.randint(R, (3, 4))
    assert torch.equal(take_rows(table, rows), table[rows])
    assert torch.equal(sum_padded_rows(table, rows, rows >= 0), F.embedding_bag(rows, table, mode="sum"))


def test_rows_beyond_the_table_raise():
    with pytest.raises(IndexError):
        take_rows(make_table(), torch.tensor([R]))
