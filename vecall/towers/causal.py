"""A causal transformer over a history of item vectors: one pass gives the user as of every position."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from vecall.towers.blocks import Dropout
from vecall.towers.features import embedding

SHORTEST_TRACED = 2  # items of the history that an export is traced with: a length of 1 would be taken for a constant
_BEGINS_AT = 0.1  # standard deviation; of an item's vector it is 1


class CausalHistory(nn.Module):
    """Pre-norm transformer blocks in which a place sees itself and what came before.

    A learned start token stands before the first item, so that an empty history has a vector too. Places are counted
    from the oldest item that is read. Padding lies at the end, where no real place looks. Beside the blocks a linear
    map of the mean of what was read leads straight to the end: it speaks for a taste that does not depend on order.
    """

    def __init__(self, dim: int, dropout: float, *, length: int, layers: int, heads: int) -> None:
        super().__init__()
        self.start = nn.Parameter(_BEGINS_AT * torch.randn(dim))
        self.places = embedding(max(length, SHORTEST_TRACED) + 1, dim, _BEGINS_AT)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, dropout, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.of_mean = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.of_mean.weight)

    def everywhere(self, vectors: Tensor) -> Tensor:
        """[B, L, D] item vectors of length 1, oldest first → [B, L + 1, D]; place t has read the first t items."""
        batch, _, dim = vectors.shape
        start = self.start.expand(batch, 1, dim)
        x = torch.cat([start, vectors * math.sqrt(dim)], dim=1)  # [B, L + 1, D]
        x = self.dropout(x + self.places(torch.arange(x.shape[1], device=x.device)))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()  # [L + 1, L + 1]
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x) + self.of_mean(_means(vectors))  # type: ignore[no-any-return]

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        every = self.everywhere(vectors)
        last = lengths.view(-1, 1, 1).expand(-1, 1, every.shape[2])  # [B, 1, D]
        return every.gather(1, last).squeeze(1)


def _means(vectors: Tensor) -> Tensor:
    """[B, L, D] → [B, L + 1, D]: place t has the mean of the first t, zeros for none."""
    sums = pad(vectors.cumsum(1), (0, 0, 1, 0))  # [B, L + 1, D]
    counts = torch.arange(sums.shape[1], device=sums.device).clamp(min=1)
    return sums / counts.view(1, -1, 1)


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised copy and added to what came in: [B, T, D] → [B, T, D]."""

    def __init__(self, dim: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_attend, self.attended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), Dropout(dropout), nn.Linear(4 * dim, dim))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """`seen` [T, T]: which places (columns) each place (row) looks at."""
        x = x + self.dropout(self._attend(self.attention_norm(x), seen))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, seen: Tensor) -> Tensor:
        batch, places, dim = x.shape
        parts = self.to_attend(x).view(batch, places, 3, self.heads, dim // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, D / heads] each
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        return self.attended(mixed.transpose(1, 2).reshape(batch, places, dim))  # type: ignore[no-any-return]
