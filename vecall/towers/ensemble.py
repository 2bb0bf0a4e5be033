"""Several models side by side in one vector: an ensemble that is searched as a single dot product.

Members differ by what they began with and by what dropout took from them, so that their errors differ too, and the mean
of their scores is better than each. Every member reads and is judged by its own part of the vectors.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vecall.towers.blocks import l2_normalize


def split_ensemble(vectors: Tensor, ensemble_size: int) -> tuple[Tensor, ...]:
    """[..., D] vectors of length 1 → each member's [..., D / members], of length 1 too."""
    return (vectors * math.sqrt(ensemble_size)).chunk(ensemble_size, dim=-1) if ensemble_size > 1 else (vectors,)


def normalize_per_member(vectors: Tensor, ensemble_size: int) -> Tensor:
    """[B, D] at length 1, to which every member's part adds the same."""
    if ensemble_size == 1:
        return l2_normalize(vectors)
    apart = vectors.reshape(-1, ensemble_size, vectors.shape[-1] // ensemble_size)  # [B, members, D / members]
    return l2_normalize(apart).reshape(vectors.shape) / math.sqrt(ensemble_size)


class EnsembleHistoryEncoder(nn.Module):
    """A history encoder for each member, over its part of the item vectors."""

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        return torch.cat([encoder(part, lengths) for encoder, part in self._zip_members(vectors)], dim=-1)

    def encode_all_positions(self, vectors: Tensor) -> Tensor:
        """Of causal encoders: [B, L, D] → [B, L + 1, D]; place t has read the first t items."""
        return torch.cat([encoder.everywhere(part) for encoder, part in self._zip_members(vectors)], dim=-1)

    def _zip_members(self, vectors: Tensor) -> Iterator[tuple[Any, Tensor]]:
        return zip(self.encoders, split_ensemble(vectors, len(self.encoders)), strict=True)
