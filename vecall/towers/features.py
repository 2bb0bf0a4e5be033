"""Encoded features to vectors, either summed into one or laid side by side."""

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from vecall.data.feature_encoder import NEVER_SEEN, Shape

# Width of an embedding that is laid beside others; summed ones are as wide as the tower.
SIDE_BY_SIDE_WIDTH = 32
_HUSHED = 0.01  # not 0: a sum of nothing but zeros has no direction to begin from


def part_name(feature: str) -> str:
    """The name of a feature's layer: torch forbids dots in it, and names of its own such as `type` or `values`."""
    return "of_" + feature.replace("%", "%25").replace(".", "%2E")


class Bag(nn.Module):
    """Embeddings of a padded list, summed and divided by √T, so that many are as loud as one: [B, T] → [B, width]."""

    def __init__(self, size: int, width: int, scale: float) -> None:
        super().__init__()
        self.table = embedding(size, width, scale)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T] rows, 0 is padding → [B, width]; zeros for an empty list."""
        given = (rows > 0).to(self.table.weight.dtype)  # [B, T]
        if torch.compiler.is_compiling() or not rows.shape[1]:  # ONNX has no such bags, and torch no empty ones
            total: Tensor = (self.table(rows) * given.unsqueeze(-1)).sum(1)
        else:  # without [B, T, width] in memory, sixteen times as fast where T is 9
            total = embedding_bag(rows, self.table.weight, mode="sum", padding_idx=0)
        return total / given.sum(1, keepdim=True).clamp(min=1.0).sqrt()


def embedding(size: int, width: int, scale: float, *, without_gradient: int | None = None) -> nn.Embedding:
    """A table whose vectors begin small: in a sum that is normalised, small ones turn fast and large ones slowly."""
    table = nn.Embedding(size, width, padding_idx=without_gradient)
    nn.init.normal_(table.weight, std=scale)
    return table


def value_embedding(size: int, width: int, scale: float) -> nn.Embedding:
    """A table of values, in which those that training never saw hardly speak, for good.

    They could be learned only from items that stand in the catalogue and that no one took: as a sign of what no one
    wants. Missing ones begin like them, as training may not meet them either.
    """
    table = embedding(size, width, scale, without_gradient=NEVER_SEEN)
    with torch.no_grad():
        table.weight[: NEVER_SEEN + 1] *= _HUSHED
    return table


def _as_loud(linear: nn.Linear, scale: float) -> nn.Linear:
    """Of standardised inputs its outputs have the scale of an embedding."""
    nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))
    nn.init.zeros_(linear.bias)
    return linear


class SummedInputs(nn.Module):
    """Every feature as a vector of the tower's width, added up: → [B, dim]."""

    def __init__(self, shapes: Mapping[str, Shape], dim: int, scale: float) -> None:
        super().__init__()
        self._names = list(shapes)
        self.parts = nn.ModuleDict({part_name(name): self._part(shape, dim, scale) for name, shape in shapes.items()})

    @staticmethod
    def _part(shape: Shape, dim: int, scale: float) -> nn.Module:
        match shape.kind:
            case "dense":
                return _as_loud(nn.Linear(shape.size, dim), scale)
            case "one":
                return value_embedding(shape.size, dim, scale)
            case "bag":
                return Bag(shape.size, dim, scale)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Encoded features of B rows → [B, dim]. Not called without features."""
        parts = (self.parts[part_name(name)](features[name]) for name in self._names)
        return reduce(torch.add, parts)  # type: ignore[no-any-return]


class ConcatenatedInputs(nn.Module):
    """Dense features as they are, embeddings for the others, side by side: → [B, width]."""

    def __init__(self, shapes: Mapping[str, Shape], scale: float) -> None:
        super().__init__()
        self._names = list(shapes)
        self.parts = nn.ModuleDict({part_name(name): self._part(shape, scale) for name, shape in shapes.items()})
        self.width = sum(shape.size if shape.kind == "dense" else SIDE_BY_SIDE_WIDTH for shape in shapes.values())

    @staticmethod
    def _part(shape: Shape, scale: float) -> nn.Module:
        match shape.kind:
            case "dense":
                return nn.Identity()
            case "one":
                return value_embedding(shape.size, SIDE_BY_SIDE_WIDTH, scale)
            case "bag":
                return Bag(shape.size, SIDE_BY_SIDE_WIDTH, scale)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Encoded features of B rows → [B, width]. Not called without features."""
        return torch.cat([self.parts[part_name(name)](features[name]) for name in self._names], dim=1)
