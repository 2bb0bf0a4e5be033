"""Encoders of a user's history of item vectors as one vector.

No encoder reads a candidate item, so a user is encoded once for all items.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vecall.towers.blocks import FastDropout
from vecall.towers.causal import CausalHistoryEncoder
from vecall.towers.settings import HistorySettings

# Ratio of the weight of an item to that of the next newer item. 1 is the plain mean; the others give most of the weight
# to about the newest 20, 5 and 2 items.
DECAYS = (1.0, 0.95, 0.8, 0.5)
_INIT_STD = 0.01  # of a constant that is added to a sum of vectors of length 1


def build_history_encoder(settings: HistorySettings, dim: int, dropout: float) -> nn.Module | None:
    """Build the encoder that the settings name.

    Args:
        settings: Names the encoder and its options.
        dim: D, width of the item vectors and of the output.
        dropout: Probability of dropout in the encoder.

    Returns:
        Module ([B, L, D] vectors, [B] lengths) → [B, D]; None for the encoder "none".
    """
    match settings.encoder:
        case "none":
            return None
        case "mean":
            return MeanHistoryEncoder(dim, dropout)
        case "attention":
            return AttentionHistoryEncoder(dim, dropout)
        case "set":
            return SetHistoryEncoder(dim, dropout)
        case "causal":
            return CausalHistoryEncoder(
                dim, dropout, max_length=settings.length, layers=settings.layers, heads=settings.heads
            )


def compute_ages_and_mask(vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the age of each item of a batch of histories, and mark the padding.

    Args:
        vectors: [B, L, D] item vectors, oldest first, padded at the end.
        lengths: [B] number of items of each history.

    Returns:
        [B, L] float number of newer items (0 for the newest), and [B, L] bool, true for an item, false for padding.
    """
    positions = torch.arange(vectors.shape[1], device=vectors.device).unsqueeze(0)  # [1, L]
    is_item = positions < lengths.unsqueeze(1)  # [B, L]
    ages = (lengths.unsqueeze(1) - 1 - positions).clamp(min=0).to(vectors.dtype)
    return ages, is_item


def sum_items(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Sum up [B, L, D] item vectors of histories of [B] lengths, without the padding at the end → [B, D]."""
    _, is_item = compute_ages_and_mask(vectors, lengths)
    return (is_item.unsqueeze(1).to(vectors.dtype) @ vectors).squeeze(1)  # [B, 1, L] @ [B, L, D] -> [B, D]


class MeanHistoryEncoder(nn.Module):
    """Learned mixture of exponentially decaying means (see `DECAYS`), plus a residual MLP of all of them.

    An empty history gives a constant, the output of the MLP for zeros: 0 at first, learned in training.
    """

    log_decays: Tensor

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("log_decays", torch.tensor(DECAYS).log(), persistent=False)
        self.mixture_logits = nn.Parameter(torch.zeros(len(DECAYS)))
        self.residual_mlp = build_residual_mlp(dim * len(DECAYS), dim, dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode [B, L, D] item vectors, oldest first and padded at the end, of [B] lengths → [B, D]."""
        ages, is_item = compute_ages_and_mask(vectors, lengths)
        weights = torch.exp(ages.unsqueeze(1) * self.log_decays.view(1, -1, 1))  # [B, decays, L]
        weights = weights * is_item.unsqueeze(1).to(vectors.dtype)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        means = normalize(weights @ vectors, dim=-1)  # [B, decays, D]
        mixed = (means * self.mixture_logits.softmax(0).view(1, -1, 1)).sum(1)  # [B, D]
        return mixed + self.residual_mlp(means.flatten(1))  # type: ignore[no-any-return]


def build_residual_mlp(in_features: int, dim: int, dropout: float) -> nn.Sequential:
    """Build the branch that a residual connection adds: an MLP [B, in_features] → [B, dim] without the connection.

    Its initial output is 0, so that training starts from the mean.
    """
    last = nn.Linear(2 * dim, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(in_features, 2 * dim), nn.GELU(), FastDropout(dropout), last)


class AttentionHistoryEncoder(nn.Module):
    """Mean weighted by attention with a learned query and by age, plus a residual MLP of it.

    An empty history gives a constant, the output of the MLP for zeros: 0 at first, learned in training.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_query = nn.Linear(dim, 1, bias=False)  # softmax is invariant to a bias
        self.recency_decay = nn.Parameter(torch.tensor(0.1))
        self.residual_mlp = build_residual_mlp(dim, dim, dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode [B, L, D] item vectors, oldest first and padded at the end, of [B] lengths → [B, D]."""
        ages, is_item = compute_ages_and_mask(vectors, lengths)
        logits = self.attention_query(vectors).squeeze(-1) - self.recency_decay * ages  # [B, L]
        # The product with the mask makes all weights of an empty history 0.
        weights = logits.masked_fill(~is_item, -1e4).softmax(-1) * is_item.to(vectors.dtype)  # [B, L]
        mean = normalize((weights.unsqueeze(1) @ vectors).squeeze(1), dim=-1)  # [B, D]
        return mean + self.residual_mlp(mean)  # type: ignore[no-any-return]


class SetHistoryEncoder(nn.Module):
    """Sum of the items divided by the square root of their number, plus a linear map of it and a learned constant.

    The order of the items does not matter. So divided, a sum of unrelated items has about length 1, and one of related
    items is longer: against the constant, which stands for what is popular, a long and a clear history counts for more.
    An empty history gives the constant, which is small at first, so that it has a direction.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.constant = nn.Parameter(_INIT_STD * torch.randn(dim))
        self.linear = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.dropout = FastDropout(dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode [B, L, D] item vectors, padded at the end, of [B] lengths → [B, D]."""
        return self.encode_sums(sum_items(vectors, lengths), lengths)

    def encode_sums(self, sums: Tensor, lengths: Tensor) -> Tensor:
        """Encode histories by the [B, D] sums of their item vectors and their [B] lengths → [B, D]."""
        scaled = sums / lengths.clamp(min=1).to(sums.dtype).sqrt().unsqueeze(1)
        scaled = self.dropout(scaled)
        return scaled + self.linear(scaled) + self.constant  # type: ignore[no-any-return]
