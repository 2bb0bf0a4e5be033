"""Lookups of table rows, and their sums, whose gradients are computed by a kernel on a CPU.

PyTorch's own gradients sort the rows first, or visit the padding too: they take several times as long.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vecall.runtime.kernel_threads import run_on_threads
from vecall.runtime.numba_cache import compile_cached

_MIN_NUMBERS_PER_THREAD = 2**16  # below, starting a thread takes longer than the work


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Look up [...] rows of a table [R, D] → [..., D]."""
    if not _has_kernel(table):
        return F.embedding(rows, table)
    return _KernelGradient.apply(table, partial(F.embedding, rows), rows.flatten(), torch.arange(rows.numel()))  # type: ignore[no-untyped-call,no-any-return]


def sum_padded_rows(table: Tensor, rows: Tensor, is_row: Tensor) -> Tensor:
    """Sum up rows of a table [R, D]: [B, T] rows, and [B, T] bool that is false for padding → [B, D]; T is above 0."""
    # Weights do what `padding_idx` would, five times as fast: it takes a slow path.
    look_up = partial(F.embedding_bag, rows, mode="sum", per_sample_weights=is_row.to(table.dtype))
    if not _has_kernel(table):
        return look_up(table)
    entries = map(torch.from_numpy, _list_entries(rows.numpy(), is_row.numpy()))
    return _KernelGradient.apply(table, look_up, *entries)  # type: ignore[no-untyped-call,no-any-return]


def sum_listed_rows(table: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Sum up rows of a table [R, D]: [I] rows, of B lists after each other, and their [B] lengths → [B, D]."""
    look_up = partial(F.embedding_bag, rows, offsets=lengths.cumsum(0) - lengths, mode="sum")  # of no rows: 0
    if not _has_kernel(table):
        return look_up(table)
    owners = torch.arange(len(lengths)).repeat_interleave(lengths)
    return _KernelGradient.apply(table, look_up, rows, owners)  # type: ignore[no-untyped-call,no-any-return]


def _has_kernel(table: Tensor) -> bool:
    needs_gradient = torch.is_grad_enabled() and table.requires_grad and not torch.compiler.is_compiling()
    return needs_gradient and table.device.type == "cpu" and table.dtype == torch.float32


class _KernelGradient(torch.autograd.Function):
    """A lookup in a table [R, D], of which row rows[i] is a summand of the output's row owners[i]."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context
        table: Tensor,
        look_up: Callable[[Tensor], Tensor],
        rows: Tensor,
        owners: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows, owners)
        ctx.table_shape = table.shape
        return look_up(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        rows, owners = ctx.saved_tensors
        n_rows, dim = ctx.table_shape
        total = np.zeros((n_rows, dim), dtype=np.float32)
        arrays = total, rows.numpy(), gradient.reshape(-1, dim).contiguous().numpy(), owners.numpy()
        # Each thread adds up the gradients of a range of rows, so the result does not depend on their number.
        n_threads = min(torch.get_num_threads(), 1 + len(rows) * dim // _MIN_NUMBERS_PER_THREAD)
        bounds = [n_rows * thread // n_threads for thread in range(n_threads + 1)]
        run_on_threads(add_rows, [(*arrays, *bounds[thread : thread + 2]) for thread in range(n_threads)])
        return torch.from_numpy(total), None, None, None


@compile_cached()
def _list_entries(rows: NDArray[np.int64], is_row: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the [B, T] rows that are no padding, and for each the number of its list."""
    listed, owners = np.empty(rows.size, dtype=np.int64), np.empty(rows.size, dtype=np.int64)
    count = 0
    for b in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            if is_row[b, t]:
                listed[count], owners[count] = rows[b, t], b
                count += 1
    return listed[:count], owners[:count]


@compile_cached(error_model="numpy")
def add_rows(
    total: NDArray[np.float32],
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    positions: NDArray[np.int64],
    start: int,
    stop: int,
) -> None:
    """Add values[positions[i]] to total[rows[i]] for each i whose row is in start .. stop - 1.

    Args:
        total: [R, D] changed.
        rows: [n] rows of `total`.
        values: [M, D].
        positions: [n] rows of `values`.
        start: First row of `total` to change.
        stop: End of the rows to change.
    """
    for i in range(len(rows)):
        row, position = rows[i], positions[i]
        if start <= row < stop:
            for column in range(total.shape[1]):
                total[row, column] += values[position, column]
