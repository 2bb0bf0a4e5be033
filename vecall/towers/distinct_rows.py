"""The distinct ones of some rows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecall.runtime.numba_cache import compile_cached


def find_distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the distinct ones of [...] integer rows, which are not negative.

    On a CPU several times as fast as `torch.unique`: rows and their positions are sorted together, as integers.

    Returns:
        [M] distinct rows, ascending, and the int64 index [...] of each of `rows` in them.
    """
    if rows.device.type != "cpu":
        distinct_rows, inverse = torch.unique(rows, return_inverse=True)
        return distinct_rows, inverse
    flat = rows.reshape(-1).numpy().astype(np.int64, copy=False)
    position_bits = len(flat).bit_length()
    ordered = flat << position_bits
    ordered |= np.arange(len(flat))
    ordered.sort()
    distinct, index = np.empty_like(flat), np.empty_like(flat)
    count = _number_in_order(ordered, position_bits, distinct, index)
    return torch.from_numpy(distinct[:count]), torch.from_numpy(index).view(rows.shape)


@compile_cached()
def _number_in_order(
    ordered: NDArray[np.int64], position_bits: int, distinct: NDArray[np.int64], index: NDArray[np.int64]
) -> int:
    """Write the distinct rows, and each position's index in them; return how many there are.

    Args:
        ordered: [n] rows, shifted by the bits of the positions, plus positions; ascending.
        position_bits: Bits of a position.
        distinct: [n] its beginning is overwritten.
        index: [n] overwritten.
    """
    mask = (1 << position_bits) - 1
    count, previous = 0, -1
    for value in ordered:
        row = value >> position_bits
        if row != previous:
            distinct[count] = row
            count, previous = count + 1, row
        index[value & mask] = count - 1
    return count
