"""The layers that both towers are made of."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, normalize

NormType = Literal["layer", "batch", "none"]


def build_norm_layer(norm: NormType, dim: int) -> nn.Module:
    """A normalisation over vectors [B, width]."""
    match norm:
        case "layer":
            return nn.LayerNorm(dim)
        case "batch":
            return SingletonSafeBatchNorm(dim)
        case "none":
            return nn.Identity()


class SingletonSafeBatchNorm(nn.BatchNorm1d):
    """As torch's; in training a batch of one, which has no deviation, is normalised by what was learned so far."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] → [B, width]."""
        if self.training and len(x) == 1:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class MLP(nn.Module):
    """Linear layers with normalisation, ReLU and dropout between them: [B, inputs] → [B, outputs]."""

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int], out_features: int, *, norm: NormType, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_features
        for next_width in hidden_dims:
            layers += [
                nn.Linear(width, next_width),
                build_norm_layer(norm, next_width),
                nn.ReLU(),
                FastDropout(dropout),
            ]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] → [B, outputs]."""
        return self.layers(x)  # type: ignore[no-any-return]


class FastDropout(nn.Module):
    """As `nn.FastDropout`, a third of its time on a CPU: torch draws a float there sooner than a coin."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """In training a share of the values becomes 0, and the others so much larger that the mean stays."""
        if not self.training or self.p == 0:
            return x
        return x * (torch.rand_like(x) >= self.p).to(x.dtype).div_(1 - self.p)


def l2_normalize(vectors: Tensor) -> Tensor:
    """[B, D] vectors at length 1, zeros as they are; as `normalize`, with a third of its time for the gradient."""
    if torch.compiler.is_compiling():  # what is exported has no gradient
        return normalize(vectors, dim=-1)
    scaled: Tensor = _L2Normalize.apply(vectors)  # type: ignore[no-untyped-call]
    return scaled


class _L2Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=1e-12)
        scaled = vectors / lengths
        ctx.save_for_backward(scaled, lengths)
        return scaled

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        """What would only change the length is taken off."""
        scaled, lengths = ctx.saved_tensors
        along = (grad_outputs[0] * scaled).sum(-1, keepdim=True)
        return torch.addcmul(grad_outputs[0], scaled, along, value=-1).div_(lengths)
