"""The layers that both towers are made of."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["layer", "batch", "none"]


def norm_layer(norm: Norm, width: int) -> nn.Module:
    """A normalisation over vectors [B, width]."""
    match norm:
        case "layer":
            return nn.LayerNorm(width)
        case "batch":
            return nn.BatchNorm1d(width)
        case "none":
            return nn.Identity()


class Mlp(nn.Module):
    """Linear layers with normalisation, ReLU and dropout between them: [B, inputs] → [B, outputs]."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, *, norm: Norm, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), norm_layer(norm, next_width), nn.ReLU(), nn.Dropout(dropout)]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] → [B, outputs]."""
        return self.layers(x)  # type: ignore[no-any-return]
