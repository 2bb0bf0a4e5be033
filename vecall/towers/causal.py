"""A causal transformer over a history of item vectors: one pass gives the user as of every position."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from vecall.towers.blocks import FastDropout
from vecall.towers.features import build_embedding

MIN_TRACE_LENGTH = 2  # items of the history that an export is traced with: a length of 1 would be taken for a constant
_INIT_STD = 0.1  # standard deviation; of an item's vector it is 1


class CausalHistoryEncoder(nn.Module):
    """Pre-norm transformer blocks in which a place sees itself and what came before.

    A learned start token stands before the first item, so that an empty history has a vector too. Places are counted
    from the oldest item that is read. Padding lies at the end, where no real place looks. Beside the blocks a linear
    map of the mean of what was read leads straight to the end: it speaks for a taste that does not depend on order.
    """

    def __init__(self, dim: int, dropout: float, *, max_length: int, layers: int, heads: int) -> None:
        super().__init__()
        self.start_token = nn.Parameter(_INIT_STD * torch.randn(dim))
        self.position_embedding = build_embedding(max(max_length, MIN_TRACE_LENGTH) + 1, dim, _INIT_STD)
        self.dropout = FastDropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(dim, dropout, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.mean_skip = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.mean_skip.weight)

    def encode_all_positions(self, vectors: Tensor) -> Tensor:
        """[B, L, D] item vectors of length 1, oldest first → [B, L + 1, D]; place t has read the first t items."""
        batch, _, dim = vectors.shape
        start = self.start_token.expand(batch, 1, dim)
        x = torch.cat([start, vectors * math.sqrt(dim)], dim=1)  # [B, L + 1, D]
        x = self.dropout(x + self.position_embedding(torch.arange(x.shape[1], device=x.device)))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()  # [L + 1, L + 1]
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x) + self.mean_skip(_compute_prefix_means(vectors))  # type: ignore[no-any-return]

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        every = self.encode_all_positions(vectors)
        last = lengths.view(-1, 1, 1).expand(-1, 1, every.shape[2])  # [B, 1, D]
        return every.gather(1, last).squeeze(1)


def _compute_prefix_means(vectors: Tensor) -> Tensor:
    """[B, L, D] → [B, L + 1, D]: place t has the mean of the first t, zeros for none."""
    sums = pad(vectors.cumsum(1), (0, 0, 1, 0))  # [B, L + 1, D]
    counts = torch.arange(sums.shape[1], device=sums.device).clamp(min=1)
    return sums / counts.view(1, -1, 1)


class TransformerBlock(nn.Module):
    """Attention, then an MLP, each on a normalised copy and added to what came in: [B, T, D] → [B, T, D]."""

    def __init__(self, dim: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), FastDropout(dropout), nn.Linear(4 * dim, dim))
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        """`attn_mask` [T, T]: which places (columns) each place (row) looks at."""
        x = x + self.dropout(self._attend(self.attention_norm(x), attn_mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        batch, places, dim = x.shape
        parts = self.qkv_proj(x).view(batch, places, 3, self.heads, dim // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, D / heads] each
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, places, dim))  # type: ignore[no-any-return]
