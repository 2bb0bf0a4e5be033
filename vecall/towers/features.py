"""Encoded features to vectors, either summed into one or laid side by side."""

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from vecall.data.feature_encoder import OOV, FeatureSpec

# Width of an embedding that is laid beside others; summed ones are as wide as the tower.
CONCAT_EMBEDDING_DIM = 32
_OOV_INIT_SCALE = 0.01  # not 0: a sum of nothing but zeros has no direction to begin from


def to_module_key(feature: str) -> str:
    """The name of a feature's layer: torch forbids dots in it, and names of its own such as `type` or `values`."""
    return "feature_" + feature.replace("%", "%25").replace(".", "%2E")


class SqrtNEmbeddingBag(nn.Module):
    """Embeddings of a padded list, summed and divided by √T, so that many are as loud as one: [B, T] → [B, width]."""

    def __init__(self, num_embeddings: int, dim: int, init_std: float) -> None:
        super().__init__()
        self.table = build_embedding(num_embeddings, dim, init_std)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, T] rows, 0 is padding → [B, width]; zeros for an empty list."""
        given = (rows > 0).to(self.table.weight.dtype)  # [B, T]
        if torch.compiler.is_compiling() or not rows.shape[1]:  # ONNX has no such bags, and torch no empty ones
            total: Tensor = (self.table(rows) * given.unsqueeze(-1)).sum(1)
        else:  # without [B, T, width] in memory, sixteen times as fast where T is 9
            total = embedding_bag(rows, self.table.weight, mode="sum", padding_idx=0)
        return total / given.sum(1, keepdim=True).clamp(min=1.0).sqrt()


def build_embedding(num_embeddings: int, dim: int, init_std: float, *, padding_idx: int | None = None) -> nn.Embedding:
    """A table whose vectors begin small: in a sum that is normalised, small ones turn fast and large ones slowly."""
    table = nn.Embedding(num_embeddings, dim, padding_idx=padding_idx)
    nn.init.normal_(table.weight, std=init_std)
    return table


def build_categorical_embedding(num_embeddings: int, dim: int, init_std: float) -> nn.Embedding:
    """A table of values, in which those that training never saw hardly speak, for good.

    They could be learned only from items that stand in the catalogue and that no one took: as a sign of what no one
    wants. Missing ones begin like them, as training may not meet them either.
    """
    table = build_embedding(num_embeddings, dim, init_std, padding_idx=OOV)
    with torch.no_grad():
        table.weight[: OOV + 1] *= _OOV_INIT_SCALE
    return table


def _init_linear(linear: nn.Linear, init_std: float) -> nn.Linear:
    """Of standardised inputs its outputs have the scale of an embedding."""
    nn.init.normal_(linear.weight, std=init_std / math.sqrt(linear.in_features))
    nn.init.zeros_(linear.bias)
    return linear


class SummedFeatures(nn.Module):
    """Every feature as a vector of the tower's width, added up: → [B, dim]."""

    def __init__(self, specs: Mapping[str, FeatureSpec], dim: int, init_std: float) -> None:
        super().__init__()
        self._feature_names = list(specs)
        self.layers = nn.ModuleDict(
            {to_module_key(name): self._build_layer(shape, dim, init_std) for name, shape in specs.items()}
        )

    @staticmethod
    def _build_layer(spec: FeatureSpec, dim: int, init_std: float) -> nn.Module:
        match spec.kind:
            case "dense":
                return _init_linear(nn.Linear(spec.size, dim), init_std)
            case "categorical":
                return build_categorical_embedding(spec.size, dim, init_std)
            case "multi_value":
                return SqrtNEmbeddingBag(spec.size, dim, init_std)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Encoded features of B rows → [B, dim]. Not called without features."""
        parts = (self.layers[to_module_key(name)](features[name]) for name in self._feature_names)
        return reduce(torch.add, parts)  # type: ignore[no-any-return]


class ConcatenatedFeatures(nn.Module):
    """Dense features as they are, embeddings for the others, side by side: → [B, width]."""

    def __init__(self, specs: Mapping[str, FeatureSpec], init_std: float) -> None:
        super().__init__()
        self._feature_names = list(specs)
        self.layers = nn.ModuleDict(
            {to_module_key(name): self._build_layer(shape, init_std) for name, shape in specs.items()}
        )
        self.output_dim = sum(shape.size if shape.kind == "dense" else CONCAT_EMBEDDING_DIM for shape in specs.values())

    @staticmethod
    def _build_layer(spec: FeatureSpec, init_std: float) -> nn.Module:
        match spec.kind:
            case "dense":
                return nn.Identity()
            case "categorical":
                return build_categorical_embedding(spec.size, CONCAT_EMBEDDING_DIM, init_std)
            case "multi_value":
                return SqrtNEmbeddingBag(spec.size, CONCAT_EMBEDDING_DIM, init_std)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Encoded features of B rows → [B, width]. Not called without features."""
        return torch.cat([self.layers[to_module_key(name)](features[name]) for name in self._feature_names], dim=1)
