"""Ensemble of towers in one vector, so that a search for the mean of their scores is one dot product.

A vector is the concatenation of its members' parts. The members differ in their initial weights and in their dropout,
hence in their errors, and the mean of their scores is better than the score of each. A member reads only its own part
of the item vectors and has a loss of its own.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vecall.towers.blocks import l2_normalize


def split_ensemble(vectors: Tensor, ensemble_size: int) -> tuple[Tensor, ...]:
    """Split [..., D] vectors of length 1 into the vectors of the members.

    Returns:
        `ensemble_size` tensors [..., D / ensemble_size] of vectors of length 1.
    """
    return (vectors * math.sqrt(ensemble_size)).chunk(ensemble_size, dim=-1) if ensemble_size > 1 else (vectors,)


def normalize_per_member(vectors: Tensor, ensemble_size: int) -> Tensor:
    """Scale [B, D] vectors to length 1, with parts of equal length for all members.

    The dot product of two such vectors is the mean of the cosines of the members.
    """
    if ensemble_size == 1:
        return l2_normalize(vectors)
    by_member = vectors.reshape(-1, ensemble_size, vectors.shape[-1] // ensemble_size)  # [B, members, D / members]
    return l2_normalize(by_member).reshape(vectors.shape) / math.sqrt(ensemble_size)


class EnsembleHistoryEncoder(nn.Module):
    """Applies the history encoder of each member to the member's part of the item vectors.

    Args:
        encoders: One for each member: ([B, L, D / members] vectors, [B] lengths) → [B, D / members].
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode whole histories.

        Args:
            vectors: [B, L, D] item vectors, oldest first, padded at the end.
            lengths: [B] number of items of each history.

        Returns:
            [B, D].
        """
        return torch.cat([encoder(part, lengths) for encoder, part in self._zip_members(vectors)], dim=-1)

    def encode_all_positions(self, vectors: Tensor) -> Tensor:
        """Encode every prefix of the histories; the encoders must be causal.

        Args:
            vectors: [B, L, D] item vectors, oldest first.

        Returns:
            [B, L + 1, D]; position t encodes the first t items.
        """
        return torch.cat([encoder.encode_all_positions(part) for encoder, part in self._zip_members(vectors)], dim=-1)

    def encode_sums(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Encode histories by the [B, D] sums of their item vectors and [B] lengths → [B, D]; for encoders of sets."""
        return torch.cat([encoder.encode_sums(part, lengths) for encoder, part in self._zip_members(sums)], dim=-1)

    def _zip_members(self, vectors: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Yield each encoder with its [..., D / members] part of [..., D] vectors."""
        return zip(self.encoders, split_ensemble(vectors, len(self.encoders)), strict=True)
