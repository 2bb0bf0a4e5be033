"""A history of item vectors as one vector. No encoder sees a candidate, so a user is encoded once for all items."""

import torch
from torch import Tensor, nn

from vecall.towers.blocks import Mlp
from vecall.towers.settings import HistorySettings

# Weight of an item against the next newer one. 1 is the plain mean; the others favour the newest 10 and 3 or so.
DECAYS = (1.0, 0.9, 0.7)


def history_encoder(settings: HistorySettings, dim: int, dropout: float) -> nn.Module | None:
    """The encoder that the settings name: ([B, L, D] vectors, [B] lengths) → [B, D]; None for "none"."""
    match settings.encoder:
        case "none":
            return None
        case "mean":
            return MeanHistory(dim, dropout)
        case "attention":
            return AttentionHistory(dim, dropout)


def ages_and_mask(vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """How many newer items each place has, [B, L] float (0 for the newest), and which places are filled, [B, L]."""
    places = torch.arange(vectors.shape[1], device=vectors.device).unsqueeze(0)  # [1, L]
    filled = places < lengths.unsqueeze(1)  # [B, L]
    ages = (lengths.unsqueeze(1) - 1 - places).clamp(min=0).to(vectors.dtype)
    return ages, filled


class MeanHistory(nn.Module):
    """Means that forget at different speeds, joined by a residual MLP."""

    log_decays: Tensor

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("log_decays", torch.tensor(DECAYS).log(), persistent=False)
        self.join = nn.Linear(dim * len(DECAYS), dim)
        self.refine = Mlp(dim * len(DECAYS), [2 * dim], dim, norm="layer", dropout=dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        ages, filled = ages_and_mask(vectors, lengths)
        weights = torch.exp(ages.unsqueeze(1) * self.log_decays.view(1, -1, 1))  # [B, decays, L]
        weights = weights * filled.unsqueeze(1).to(vectors.dtype)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        means = (weights @ vectors).flatten(1)  # [B, decays · D]
        return self.join(means) + self.refine(means)  # type: ignore[no-any-return]


class AttentionHistory(nn.Module):
    """A mean weighted by a learned query and by age, refined by a residual MLP."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.importance = nn.Linear(dim, 1)
        self.forgetting = nn.Parameter(torch.tensor(0.1))
        self.join = nn.Linear(dim, dim)
        self.refine = Mlp(dim, [2 * dim], dim, norm="layer", dropout=dropout)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, oldest first and padded at the end, and [B] lengths → [B, D]."""
        ages, filled = ages_and_mask(vectors, lengths)
        logits = self.importance(vectors).squeeze(-1) - self.forgetting * ages  # [B, L]
        weights = logits.masked_fill(~filled, -1e4).softmax(-1) * filled.to(vectors.dtype)  # all 0 for no history
        mean = (weights.unsqueeze(1) @ vectors).squeeze(1)  # [B, D]
        return self.join(mean) + self.refine(mean)  # type: ignore[no-any-return]
