"""Vectors of two parts: one that is trained, and one of spectral vectors, which are computed and never trained.

A vector is the concatenation of both, so that a search by one dot product ranks by a weighted mean of their cosines.
The spectral part of a user is the direction of the sum of those of the history. What it knows of pairs of items that
are taken together is finer than what the trained part has learned; see docs/decisions/0018-spectral-part.md.
"""

import torch
from torch import Tensor, nn

from vecall.towers.blocks import l2_normalize
from vecall.towers.settings import ModelSettings

DEFAULT_SHARE = 0.35


class VectorParts(nn.Module):
    """How vectors are divided into their parts.

    Args:
        settings: Dimensions of the parts.

    Attributes:
        trained_dim: Dimensions of the trained part, which comes first.
        spectral_dim: Dimensions of the spectral part; 0: the trained part is the whole vector.
        share: Weight of the cosine of the spectral parts in a score, in (0, 1); None without them.
    """

    share: Tensor | None

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.trained_dim, self.spectral_dim = settings.trained_dim, settings.spectral_dim
        self.register_buffer("share", torch.tensor(DEFAULT_SHARE) if self.spectral_dim else None)

    def split(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Split [..., D] vectors into [..., trained_dim] and [..., spectral_dim] parts, each of length 1 or 0."""
        return l2_normalize(vectors[..., : self.trained_dim]), l2_normalize(vectors[..., self.trained_dim :])

    def join(self, trained: Tensor, spectral: Tensor) -> Tensor:
        """Join the parts of B vectors.

        A vector without spectral part, such as that of an item without interactions, is all trained part.

        Args:
            trained: [B, trained_dim] vectors of length 1.
            spectral: [B, spectral_dim] vectors of any length, or 0.

        Returns:
            [B, D] vectors of length 1.
        """
        if self.share is None:
            return trained
        weighted = ((1 - self.share).sqrt() * trained, self.share.sqrt() * l2_normalize(spectral))
        return l2_normalize(torch.cat(weighted, dim=-1))
