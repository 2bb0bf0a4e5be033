"""The user tower and the item tower: what each reads, and the vectors that they are compared by."""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from vecall.data.feature_encoder import FeatureSpec
from vecall.towers.blocks import MLP
from vecall.towers.causal import CausalHistoryEncoder
from vecall.towers.ensemble import EnsembleHistoryEncoder, normalize_per_member
from vecall.towers.features import ConcatenatedFeatures, SummedFeatures, build_embedding
from vecall.towers.history import build_history_encoder
from vecall.towers.settings import ModelSettings

FeatureSpecs = Mapping[str, FeatureSpec]
FeatureTensors = Mapping[str, Tensor]


class FeatureCombiner(nn.Module):
    """A ready vector (id or history) and features to one vector: summed, or side by side through an MLP."""

    def __init__(self, settings: ModelSettings, specs: FeatureSpecs, *, has_vector: bool) -> None:
        super().__init__()
        self.feature_embedding: ConcatenatedFeatures | SummedFeatures | None = None
        self.mlp: MLP | None = None
        if settings.hidden:
            self.feature_embedding = ConcatenatedFeatures(specs, settings.init_std) if specs else None
            width = (self.feature_embedding.output_dim if self.feature_embedding else 0) + (
                settings.dim if has_vector else 0
            )
            self.mlp = MLP(width, settings.hidden, settings.dim, norm=settings.norm, dropout=settings.dropout)
        elif specs:
            self.feature_embedding = SummedFeatures(specs, settings.dim, settings.init_std)

    def forward(self, vector: Tensor | None, features: FeatureTensors) -> Tensor:
        """[B, D] or None, and encoded features of B rows → [B, D]."""
        parts = [] if vector is None else [vector]
        if self.feature_embedding is not None:
            parts.append(self.feature_embedding(features))
        if self.mlp is not None:
            return self.mlp(torch.cat(parts, dim=1))  # type: ignore[no-any-return]
        return reduce(torch.add, parts)


class ItemTower(nn.Module):
    """An item's id vector and features to its place in the space that is searched."""

    def __init__(self, settings: ModelSettings, specs: FeatureSpecs) -> None:
        super().__init__()
        self.ensemble_size = settings.ensemble_size
        self.combiner = FeatureCombiner(settings, specs, has_vector=settings.item_id)

    def forward(self, id_vectors: Tensor | None, features: FeatureTensors) -> Tensor:
        """[B, D] id vectors (None without) and encoded features of B items → [B, D] of length 1."""
        return normalize_per_member(self.combiner(id_vectors, features), self.ensemble_size)


def _build_ensemble_history_encoder(settings: ModelSettings) -> nn.Module | None:
    width = settings.dim // settings.ensemble_size
    made = [build_history_encoder(settings.history, width, settings.dropout) for _ in range(settings.ensemble_size)]
    encoders = [one for one in made if one is not None]
    return EnsembleHistoryEncoder(encoders) if len(encoders) > 1 else made[0]


class UserTower(nn.Module):
    """A history of served item vectors and user features to a place in the same space."""

    def __init__(self, settings: ModelSettings, specs: FeatureSpecs) -> None:
        super().__init__()
        self.ensemble_size = settings.ensemble_size
        self.history_encoder = _build_ensemble_history_encoder(settings)
        self.combiner = FeatureCombiner(settings, specs, has_vector=self.history_encoder is not None)

    def forward(self, history: Tensor | None, lengths: Tensor | None, features: FeatureTensors) -> Tensor:
        """History [B, L, D] with [B] lengths (both None without) and features of B users → [B, D] of length 1."""
        summary = None if self.history_encoder is None else self.history_encoder(history, lengths)
        return self.to_user_vector(summary, features)

    def to_user_vector(self, history_vector: Tensor | None, features: FeatureTensors) -> Tensor:
        """What a history came to, [B, D], and features of B users → [B, D] of length 1."""
        return normalize_per_member(self.combiner(history_vector, features), self.ensemble_size)


class TwoTower(nn.Module):
    """Both towers and the table of item ids.

    The table has N + 1 rows; the last one stands for items that training never saw. It is kept out of the item
    tower, so that the exported tower does not grow with the catalogue and takes items that are added later.
    """

    def __init__(
        self, settings: ModelSettings, item_specs: FeatureSpecs, user_specs: FeatureSpecs, n_items: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.n_items = n_items
        self.item_id_embedding = (
            build_embedding(n_items + 1, settings.dim, settings.init_std) if settings.item_id else None
        )
        # Without features there is nothing to speak for an item whose id is hidden.
        self._id_dropout = settings.id_dropout if item_specs else 0.0
        if self.item_id_embedding is not None and self._id_dropout == 0:  # training will never meet an unknown item
            nn.init.zeros_(self.item_id_embedding.weight[-1:].detach())
        self.item_tower = ItemTower(settings, item_specs)
        self.user_tower = UserTower(settings, user_specs)

    @property
    def reads_history(self) -> bool:
        """Whether the user tower looks at histories at all."""
        return self.user_tower.history_encoder is not None

    @property
    def uses_id_dropout(self) -> bool:
        """Whether training teaches what an item without an id of its own is like."""
        return self._id_dropout > 0

    def encode_items(self, rows: Tensor, features: FeatureTensors) -> Tensor:
        """[B] rows in 0 .. N (N is the unknown item) and their encoded features → [B, D]."""
        id_vectors = None if self.item_id_embedding is None else self.item_id_embedding(self._apply_id_dropout(rows))
        return self.item_tower(id_vectors, features)  # type: ignore[no-any-return]

    def _apply_id_dropout(self, rows: Tensor) -> Tensor:
        """In training, a share of the ids replaced by the unknown one, so that features learn to speak alone."""
        if not self.training or self._id_dropout == 0:
            return rows
        hidden = torch.rand(rows.shape, device=rows.device) < self._id_dropout
        return torch.where(hidden, self.n_items, rows)

    @torch.no_grad()
    def reset_item_ids(self, item_mask: Tensor) -> None:
        """Give the marked ones of the N items, [N] bool, the unknown item's id; without features it would be none."""
        if self.item_id_embedding is not None:
            self.item_id_embedding.weight[:-1][item_mask] = self.item_id_embedding.weight[-1]

    def encode_users(
        self, item_vectors: Tensor, histories: Tensor, lengths: Tensor, features: FeatureTensors
    ) -> Tensor:
        """User vectors from item vectors that are at hand.

        Args:
            item_vectors: [M, D] vectors of the items that occur.
            histories: [B, L] places in `encode_all_items`, oldest first, padded at the end with any place.
            lengths: [B] how many places of each history count.
            features: encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        if not self.reads_history:
            return self.user_tower(None, None, features)  # type: ignore[no-any-return]
        return self.user_tower(self._gather_history_vectors(item_vectors, histories), lengths, features)  # type: ignore[no-any-return]

    def _gather_history_vectors(self, item_vectors: Tensor, histories: Tensor) -> Tensor:
        """[B, L, D] vectors of [B, L] places; in training a share of them is nothing, so that none is leant on."""
        vectors = item_vectors[histories]
        share = self.settings.history.item_dropout
        if not self.training or share == 0:
            return vectors
        return vectors * (torch.rand(histories.shape, device=vectors.device) >= share).unsqueeze(-1)

    @property
    def is_causal(self) -> bool:
        """Whether one pass over a history gives the user as of each of its places."""
        return self.settings.history.encoder == "causal"

    def encode_positions(
        self,
        item_vectors: Tensor,
        histories: Tensor,
        sequence_index: Tensor,
        positions: Tensor,
        features: FeatureTensors,
    ) -> Tensor:
        """The user as of P places of B histories, all in one pass; only where the history is read causally.

        Args:
            item_vectors: [M, D] vectors of the items that occur.
            histories: [B, L] places in `encode_all_items`, oldest first, padded at the end with any place.
            sequence_index: [P] which history each place is of.
            positions: [P] how many of its items are read, 0 .. L.
            features: encoded features of the B users.

        Returns:
            [P, D] vectors of length 1.
        """
        assert isinstance(self.user_tower.history_encoder, CausalHistoryEncoder | EnsembleHistoryEncoder)  # noqa: S101 - as said; tells mypy
        every = self.user_tower.history_encoder.encode_all_positions(
            self._gather_history_vectors(item_vectors, histories)
        )  # [B, L + 1, D]
        return self.user_tower.to_user_vector(
            every[sequence_index, positions], {name: x[sequence_index] for name, x in features.items()}
        )
