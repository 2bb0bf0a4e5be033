"""A history of item vectors as one vector. No encoder sees a candidate, so a user is encoded once for all items."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vecall.towers.blocks import FastDropout
from vecall.towers.causal import CausalHistoryEncoder
from vecall.towers.settings import HistorySettings

# Weight of an item against the next newer one. 1 is the plain mean; the others favour the newest 20, 5 and 2 or so.
DECAYS = (1.0, 0.95, 0.8, 0.5)


def build_history_encoder(settings: HistorySettings, dim: int, dropout: float) -> nn.Module | None:
    """The encoder that the settings name: ([B, L, D] vectors, [B] lengths) → [B, D]; None for "none"."""
    match settings.encoder:
        case "none":
            return None
        case "mean":
            return MeanHistoryEncoder(dim, dropout)
        case "attention":
            return AttentionHistoryEncoder(dim, dropout)
        case "causal":
            return CausalHistoryEncoder(
                dim, dropout, max_length=settings.length, layers=settings.layers, heads=settings.heads
            )


def compute_ages_and_mask(vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """How many newer items each place has, [B, L] float (0 for the newest), and which places are filled, [B, L]."""
    places = torch.arange(vectors.shape[1], device=vectors.device).unsqueeze(0)  # [1, L]
    filled = places < lengths.unsqueeze(1)  # [B, L]
    ages = (lengths.unsqueeze(1) - 1 - places).clamp(min=0).to(vectors.dtype)
    return ages, filled


class MeanHistoryEncoder(nn.Module):
    """Means that forget at different speeds, in a learned mixture and refined by an MLP that begins at nothing."""

    log_decays: Tensor

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("log_decays", torch.tensor(DECAYS).log(), persistent=False)
        self.mixture_logits = nn.Parameter(torch.zeros(len(DECAYS)))
        self.residual_mlp = build_residual_mlp(dim * len(DECAYS), dim, dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        ages, filled = compute_ages_and_mask(vectors, lengths)
        weights = torch.exp(ages.unsqueeze(1) * self.log_decays.view(1, -1, 1))  # [B, decays, L]
        weights = weights * filled.unsqueeze(1).to(vectors.dtype)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        means = normalize(weights @ vectors, dim=-1)  # [B, decays, D]
        mixed = (means * self.mixture_logits.softmax(0).view(1, -1, 1)).sum(1)
        return mixed + self.residual_mlp(means.flatten(1))  # type: ignore[no-any-return]


def build_residual_mlp(in_features: int, dim: int, dropout: float) -> nn.Sequential:
    """[B, inputs] → [B, dim], zeros at first: training begins from the plain mean and departs as far as it pays."""
    last = nn.Linear(2 * dim, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(in_features, 2 * dim), nn.GELU(), FastDropout(dropout), last)


class AttentionHistoryEncoder(nn.Module):
    """A mean weighted by a learned query and by age, refined likewise."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_query = nn.Linear(dim, 1, bias=False)  # a softmax does not see what all have
        self.recency_decay = nn.Parameter(torch.tensor(0.1))
        self.residual_mlp = build_residual_mlp(dim, dim, dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        ages, filled = compute_ages_and_mask(vectors, lengths)
        logits = self.attention_query(vectors).squeeze(-1) - self.recency_decay * ages  # [B, L]
        weights = logits.masked_fill(~filled, -1e4).softmax(-1) * filled.to(vectors.dtype)  # all 0 for no history
        mean = normalize((weights.unsqueeze(1) @ vectors).squeeze(1), dim=-1)  # [B, D]
        return mean + self.residual_mlp(mean)  # type: ignore[no-any-return]
