"""Operations on the lists of item rows of a training step."""

import torch
from torch import Tensor

from vecall.towers.distinct_rows import find_distinct_rows


def fill_padding_with_targets(histories: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Return the [P, L] histories of [P] lengths with each padding entry replaced by the target [P] of the same row."""
    positions = torch.arange(histories.shape[1], device=histories.device)  # [L]
    return torch.where(positions < lengths.unsqueeze(1), histories, targets.unsqueeze(1))


def deduplicate_rows(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Renumber the item rows of several tensors as 0 .. M - 1.

    Returns:
        [M] distinct item rows, and each tensor with its item rows replaced by their index in 0 .. M - 1.
    """
    distinct, index = find_distinct_rows(torch.cat([rows.flatten() for rows in tensors]))
    parts = torch.split(index, [rows.numel() for rows in tensors])
    return distinct, [part.view_as(rows) for part, rows in zip(parts, tensors, strict=True)]


def mark_listed_items(listed: Tensor, candidates: Tensor, n_items: int) -> Tensor:
    """Mark the candidates that are in a list.

    Args:
        listed: [P, K] items in 0 .. n_items - 1, of P lists.
        candidates: [C] items in 0 .. n_items - 1; one may occur several times.
        n_items: Number of items.

    Returns:
        [P, C] bool, true where list p has candidate c.
    """
    count = len(candidates)
    column = candidates.new_full((n_items,), count)  # [n_items] a column of each candidate; C for all other items
    column[candidates] = torch.arange(count, device=candidates.device)
    marks = torch.zeros(len(listed), count + 1, dtype=torch.bool, device=listed.device)  # [P, C + 1]
    return marks.scatter_(1, column[listed], value=True)[:, column[candidates]]
