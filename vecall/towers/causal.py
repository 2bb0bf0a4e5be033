"""Causal transformer over a history of item vectors: one pass encodes every prefix of the history."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from vecall.towers.blocks import FastDropout
from vecall.towers.features import build_embedding

MIN_TRACE_LENGTH = 2  # history length of the example of an export, at least: torch takes a length of 1 for a constant
_INIT_STD = 0.1  # of the start token and the positions; the components of a scaled item vector have 1


class CausalHistoryEncoder(nn.Module):
    """Pre-norm transformer whose output at position t depends on the first t items only.

    A learned start token comes before the first item, so position 0 encodes the empty history. Positions count from
    the oldest item read. Padding is at the end, where the causal mask hides it from every real position.

    A skip connection adds a linear map of the mean of the items read. It carries the taste that does not depend on the
    order of the items.

    Args:
        dim: D, width of the item vectors and of the output.
        dropout: Probability of dropout after the embedding, the attention and in the MLPs.
        max_length: L, longest history.
        layers: Number of transformer blocks.
        heads: Number of attention heads; divides `dim`.
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
        """Encode every prefix of the histories.

        Args:
            vectors: [B, L, D] item vectors of length 1, oldest first.

        Returns:
            [B, L + 1, D]; position t encodes the first t items.
        """
        batch_size, _, dim = vectors.shape
        start = self.start_token.expand(batch_size, 1, dim)
        x = torch.cat([start, vectors * math.sqrt(dim)], dim=1)  # [B, L + 1, D]
        x = self.dropout(x + self.position_embedding(torch.arange(x.shape[1], device=x.device)))
        causal_mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()  # [L + 1, L + 1]
        for block in self.blocks:
            x = block(x, causal_mask)
        return self.norm(x) + self.mean_skip(_compute_prefix_means(vectors))  # type: ignore[no-any-return]

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode whole histories.

        Args:
            vectors: [B, L, D] item vectors of length 1, oldest first, padded at the end.
            lengths: [B] number of items of each history.

        Returns:
            [B, D].
        """
        all_positions = self.encode_all_positions(vectors)  # [B, L + 1, D]
        last = lengths.view(-1, 1, 1).expand(-1, 1, all_positions.shape[2])  # [B, 1, D]
        return all_positions.gather(1, last).squeeze(1)


def _compute_prefix_means(vectors: Tensor) -> Tensor:
    """Average the prefixes of [B, L, D]: → [B, L + 1, D], position t has the mean of the first t vectors (0 at 0)."""
    sums = pad(vectors.cumsum(1), (0, 0, 1, 0))  # [B, L + 1, D]
    counts = torch.arange(sums.shape[1], device=sums.device).clamp(min=1)
    return sums / counts.view(1, -1, 1)


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each behind a layer norm and with a residual connection: [B, T, D] → [B, T, D]."""

    def __init__(self, dim: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), FastDropout(dropout), nn.Linear(4 * dim, dim))
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        """Transform [B, T, D] → [B, T, D].

        Args:
            x: [B, T, D].
            attn_mask: [T, T] bool, true where the position of the row attends to the position of the column.
        """
        x = x + self.dropout(self._attend(self.attention_norm(x), attn_mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        batch_size, length, dim = x.shape
        qkv = self.qkv_proj(x).view(batch_size, length, 3, self.heads, dim // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, D / heads] each
        attended = scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)  # [B, heads, T, D / heads]
        return self.out_proj(attended.transpose(1, 2).reshape(batch_size, length, dim))  # type: ignore[no-any-return]
