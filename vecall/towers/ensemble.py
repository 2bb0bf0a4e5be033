"""Several models side by side in one vector: an ensemble that is searched as a single dot product.

Members differ by what they began with and by what dropout took from them, so that their errors differ too, and the mean
of their scores is better than each. Every member reads and is judged by its own part of the vectors.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vecall.towers.blocks import unit


def parts(vectors: Tensor, members: int) -> tuple[Tensor, ...]:
    """[..., D] vectors of length 1 → each member's [..., D / members], of length 1 too."""
    return (vectors * math.sqrt(members)).chunk(members, dim=-1) if members > 1 else (vectors,)


def unit_parts(vectors: Tensor, members: int) -> Tensor:
    """[B, D] at length 1, to which every member's part adds the same."""
    if members == 1:
        return unit(vectors)
    apart = vectors.reshape(-1, members, vectors.shape[-1] // members)  # [B, members, D / members]
    return unit(apart).reshape(vectors.shape) / math.sqrt(members)


class HistoryMembers(nn.Module):
    """A history encoder for each member, over its part of the item vectors."""

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        return torch.cat([encoder(part, lengths) for encoder, part in self._each(vectors)], dim=-1)

    def everywhere(self, vectors: Tensor) -> Tensor:
        """Of causal encoders: [B, L, D] → [B, L + 1, D]; place t has read the first t items."""
        return torch.cat([encoder.everywhere(part) for encoder, part in self._each(vectors)], dim=-1)

    def _each(self, vectors: Tensor) -> Iterator[tuple[Any, Tensor]]:
        return zip(self.encoders, parts(vectors, len(self.encoders)), strict=True)
