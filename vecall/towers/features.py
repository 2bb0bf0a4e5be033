"""Encoded features as one vector, either the sum of the features' vectors or their concatenation."""

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from vecall.data.feature_encoder import FeatureSpec
from vecall.data.vocabulary import OOV
from vecall.towers.embedding import RowEmbedding
from vecall.towers.row_lookup import sum_padded_rows

# Width of a concatenated embedding. Summed embeddings are as wide as the tower.
CONCAT_EMBEDDING_DIM = 32
# Not 0: if all summed vectors were 0, normalizing the sum would divide by 0 and the gradient would explode.
_MISSING_AND_OOV_INIT_SCALE = 0.01


def to_module_key(feature: str) -> str:
    """Return the key of a feature's layer in an `nn.ModuleDict`.

    A key may hold no dot and must not equal an attribute of the dict, such as `type` or `values`; torch's exporter
    writes it in quotes into a program.
    """
    return "feature_" + feature.replace("%", "%25").replace(".", "%2E").replace('"', "%22")


class SqrtNEmbeddingBag(nn.Module):
    """Sum of the embeddings of a list, divided by √n, so that its scale does not depend on the length n of the list.

    Args:
        num_embeddings: Rows of the embedding table; row 0 is padding.
        dim: Width of an embedding.
        init_std: Standard deviation of the initial weights.
    """

    def __init__(self, num_embeddings: int, dim: int, init_std: float) -> None:
        super().__init__()
        self.table = build_embedding(num_embeddings, dim, init_std)

    def forward(self, rows: Tensor) -> Tensor:
        """Combine [B, T] rows of the table, padded with 0 → [B, dim]; zeros for an empty list."""
        is_value = rows > 0  # [B, T]
        if torch.compiler.is_compiling() or not rows.shape[1]:  # ONNX has no embedding_bag; torch's refuses T = 0
            total: Tensor = (self.table(rows) * is_value.unsqueeze(-1)).sum(1)
        else:  # no [B, T, dim] in memory: 16 times as fast at T = 9
            vectors, index = self.table.read_rows(rows)
            total = sum_padded_rows(vectors, index, is_value)
        return total / is_value.sum(1, keepdim=True).clamp(min=1).to(total.dtype).sqrt()


def build_embedding(num_embeddings: int, dim: int, init_std: float, *, frozen_row: int | None = None) -> RowEmbedding:
    """Build an embedding table with normally distributed initial weights.

    The sum of embeddings is normalized afterwards, so only its direction counts. A gradient step changes the direction
    of a short vector more: a small `init_std` learns faster.

    Args:
        num_embeddings: Rows of the table.
        dim: Width of an embedding.
        init_std: Standard deviation of the initial weights.
        frozen_row: Row that is never trained; it keeps its random initial weights, not zeros.
    """
    table = RowEmbedding(num_embeddings, dim, padding_idx=frozen_row)
    nn.init.normal_(table.weight, std=init_std)
    return table


def build_categorical_embedding(num_embeddings: int, dim: int, init_std: float) -> RowEmbedding:
    """Build the table of a categorical feature, whose rows of missing and of unseen (OOV) values are nearly 0.

    The OOV row gets no gradient. Only catalogue items that no user took have unseen values, so training would learn
    them as a sign of an unwanted item. The row of missing values starts like it because it too may not occur in
    training.
    """
    table = build_embedding(num_embeddings, dim, init_std, frozen_row=OOV)
    with torch.no_grad():
        table.weight[: OOV + 1] *= _MISSING_AND_OOV_INIT_SCALE
    return table


def _init_linear(linear: nn.Linear, output_std: float) -> nn.Linear:
    """Initialize a layer so that its outputs for standardized inputs have the standard deviation `init_std`."""
    nn.init.normal_(linear.weight, std=output_std / math.sqrt(linear.in_features))
    nn.init.zeros_(linear.bias)
    return linear


class SummedFeatures(nn.Module):
    """Sum of the vectors of all features, each of width `dim`.

    Args:
        specs: Features by name; at least one.
        dim: Width of the vectors.
        init_std: Standard deviation of the initial embeddings.
    """

    def __init__(self, specs: Mapping[str, FeatureSpec], dim: int, init_std: float) -> None:
        super().__init__()
        self._feature_names = list(specs)
        self.layers = nn.ModuleDict(
            {to_module_key(name): self._build_layer(spec, dim, init_std) for name, spec in specs.items()}
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
        """Combine the encoded features of B rows → [B, dim]."""
        vectors = (self.layers[to_module_key(name)](features[name]) for name in self._feature_names)
        return reduce(torch.add, vectors)  # type: ignore[no-any-return]


class ConcatenatedFeatures(nn.Module):
    """Concatenation of dense features as they are and of an embedding of each other feature.

    Args:
        specs: Features by name; at least one.
        init_std: Standard deviation of the initial embeddings.

    Attributes:
        output_dim: Width of the concatenation.
    """

    def __init__(self, specs: Mapping[str, FeatureSpec], init_std: float) -> None:
        super().__init__()
        self._feature_names = list(specs)
        self.layers = nn.ModuleDict(
            {to_module_key(name): self._build_layer(spec, init_std) for name, spec in specs.items()}
        )
        self.output_dim = sum(spec.size if spec.kind == "dense" else CONCAT_EMBEDDING_DIM for spec in specs.values())

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
        """Combine the encoded features of B rows → [B, output_dim]."""
        return torch.cat([self.layers[to_module_key(name)](features[name]) for name in self._feature_names], dim=1)
