"""User tower and item tower: what each reads, and the vectors whose dot product is the score."""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from vecall.data.feature_encoder import FeatureSpec
from vecall.towers.blocks import MLP
from vecall.towers.causal import CausalHistoryEncoder
from vecall.towers.ensemble import EnsembleHistoryEncoder, normalize_per_member
from vecall.towers.features import ConcatenatedFeatures, SummedFeatures, build_embedding
from vecall.towers.history import SetHistoryEncoder, build_history_encoder, sum_items
from vecall.towers.row_lookup import sum_listed_rows, take_rows
from vecall.towers.settings import ModelSettings
from vecall.towers.spectral_part import VectorParts

_CHUNK_ROWS = 100_000  # of a table that is compared at a time

FeatureSpecs = Mapping[str, FeatureSpec]
FeatureTensors = Mapping[str, Tensor]


class FeatureCombiner(nn.Module):
    """Combines an id or history vector with features: by a sum, or by an MLP over their concatenation.

    Args:
        settings: With `hidden` layers the combination is an MLP, else a sum.
        specs: Features by name; may be empty.
        has_vector: Whether there is a vector beside the features.
    """

    def __init__(self, settings: ModelSettings, specs: FeatureSpecs, *, has_vector: bool) -> None:
        super().__init__()
        self.feature_embedding: ConcatenatedFeatures | SummedFeatures | None = None
        self.mlp: MLP | None = None
        if settings.hidden:
            self.feature_embedding = ConcatenatedFeatures(specs, settings.init_std) if specs else None
            in_features = settings.trained_dim if has_vector else 0
            if self.feature_embedding is not None:
                in_features += self.feature_embedding.output_dim
            self.mlp = MLP(
                in_features, settings.hidden, settings.trained_dim, norm=settings.norm, dropout=settings.dropout
            )
        elif specs:
            self.feature_embedding = SummedFeatures(specs, settings.trained_dim, settings.init_std)

    def forward(self, vector: Tensor | None, features: FeatureTensors) -> Tensor:
        """Combine [B, D] trained parts of vectors (or None) with the encoded features of B rows → [B, D]."""
        inputs = [] if vector is None else [vector]
        if self.feature_embedding is not None:
            inputs.append(self.feature_embedding(features))
        if self.mlp is not None:
            return self.mlp(torch.cat(inputs, dim=1))  # type: ignore[no-any-return]
        return reduce(torch.add, inputs)


class ItemTower(nn.Module):
    """Maps an item's id vector and features to the item vector."""

    def __init__(self, settings: ModelSettings, specs: FeatureSpecs) -> None:
        super().__init__()
        self.ensemble_size, self.parts = settings.ensemble_size, VectorParts(settings)
        self.combiner = FeatureCombiner(settings, specs, has_vector=settings.item_id)

    def forward(self, id_vectors: Tensor | None, features: FeatureTensors) -> Tensor:
        """Encode B items.

        Args:
            id_vectors: [B, D], the spectral part included; None for a model without item ids.
            features: Encoded features of the B items.

        Returns:
            [B, D] vectors of length 1.
        """
        if id_vectors is None or not self.parts.spectral_dim:
            return self.encode_trained_part(id_vectors, features)
        trained_dim = self.parts.trained_dim
        trained = self.encode_trained_part(id_vectors[:, :trained_dim], features)
        return self.parts.join(trained, id_vectors[:, trained_dim:])

    def encode_trained_part(self, id_vectors: Tensor | None, features: FeatureTensors) -> Tensor:
        """Encode B items from their [B, trained_dim] id vectors (or None) → [B, trained_dim] of length 1."""
        return normalize_per_member(self.combiner(id_vectors, features), self.ensemble_size)


def _build_ensemble_history_encoder(settings: ModelSettings) -> nn.Module | None:
    """Build a history encoder per member, each for its share of the columns of the trained part, as one module.

    Returns:
        Module ([B, L, D] vectors, [B] lengths) → [B, D], the members' outputs concatenated; None for the encoder
        "none".
    """
    member_dim = settings.trained_dim // settings.ensemble_size
    encoders = [
        encoder
        for _ in range(settings.ensemble_size)
        if (encoder := build_history_encoder(settings.history, member_dim, settings.dropout)) is not None
    ]
    if not encoders:
        return None
    return EnsembleHistoryEncoder(encoders) if len(encoders) > 1 else encoders[0]


class UserTower(nn.Module):
    """Maps a history of item vectors and user features to the user vector."""

    def __init__(self, settings: ModelSettings, specs: FeatureSpecs) -> None:
        super().__init__()
        self.ensemble_size, self.parts = settings.ensemble_size, VectorParts(settings)
        self.history_encoder = _build_ensemble_history_encoder(settings)
        self.combiner = FeatureCombiner(settings, specs, has_vector=self.history_encoder is not None)

    def forward(self, history: Tensor | None, lengths: Tensor | None, features: FeatureTensors) -> Tensor:
        """Encode B users.

        Args:
            history: [B, L, D] item vectors, oldest first, padded at the end; None for a model without histories.
            lengths: [B] number of items of each history; None for a model without histories.
            features: Encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        if history is None or lengths is None or self.history_encoder is None:
            return self.to_user_vector(None, features)
        if not self.parts.spectral_dim:
            return self.to_user_vector(self.history_encoder(history, lengths), features)
        trained, spectral = self.parts.split(history)
        user_vectors = self.to_user_vector(self.history_encoder(trained, lengths), features)
        return self.parts.join(user_vectors, sum_items(spectral, lengths))

    def to_user_vector(self, history_vector: Tensor | None, features: FeatureTensors) -> Tensor:
        """Combine [B, D] encoded histories (or None) with features of B users → [B, D] of length 1.

        D is that of the trained part.
        """
        return normalize_per_member(self.combiner(history_vector, features), self.ensemble_size)


class TwoTower(nn.Module):
    """Both towers and the embedding of item ids.

    The table of ids has N + 1 rows; the last row represents items unknown to training. The table is not part of the
    item tower: the exported tower does not grow with the catalogue, and encodes items that are added later.

    With a spectral part, vectors are the trained part alone in training mode: nothing else is learned.

    Args:
        settings: Architecture.
        item_specs: Item features by name.
        user_specs: User features by name.
        n_items: N, number of items of the catalogue.
    """

    def __init__(
        self, settings: ModelSettings, item_specs: FeatureSpecs, user_specs: FeatureSpecs, n_items: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.n_items = n_items
        self.item_id_embedding = (
            build_embedding(n_items + 1, settings.trained_dim, settings.init_std) if settings.item_id else None
        )
        self.spectral_vectors: Tensor | None
        self.register_buffer(
            "spectral_vectors", torch.zeros(n_items + 1, settings.spectral_dim) if settings.spectral_dim else None
        )
        # Id dropout needs item features: without them a hidden item would have no input at all.
        self._id_dropout = settings.id_dropout if item_specs else 0.0
        if self.item_id_embedding is not None and self._id_dropout == 0:  # training never reads the unknown item
            nn.init.zeros_(self.item_id_embedding.weight[-1:].detach())
        self.item_tower = ItemTower(settings, item_specs)
        self.user_tower = UserTower(settings, user_specs)

    @property
    def spectral_share(self) -> float | None:
        """Weight of the spectral part in a score; None without that part."""
        share = self.item_tower.parts.share
        return None if share is None else float(share)

    def set_spectral_share(self, share: float) -> None:
        """Set the weight of the spectral part in a score, in (0, 1); there must be one."""
        for parts in (self.item_tower.parts, self.user_tower.parts):
            assert parts.share is not None  # noqa: S101 - for mypy
            parts.share.fill_(share)

    @property
    def reads_history(self) -> bool:
        """Whether the user tower reads histories."""
        return self.user_tower.history_encoder is not None

    @property
    def uses_id_dropout(self) -> bool:
        """Whether training hides ids, and so learns to encode items without an id vector of their own."""
        return self._id_dropout > 0

    @property
    def is_causal(self) -> bool:
        """Whether the history encoder gives, in one pass, the user's vector after each item of the history."""
        return self.settings.history.encoder == "causal"

    @property
    def reads_sets(self) -> bool:
        """Whether the history encoder reads the sum of a history alone, and is trained on hidden parts of it."""
        return self.settings.history.encoder == "set"

    def encode_items(self, rows: Tensor, features: FeatureTensors) -> Tensor:
        """Encode B items.

        Args:
            rows: [B] item rows in 0 .. N; N is the unknown item.
            features: Encoded features of the B items.

        Returns:
            [B, D] vectors of length 1.
        """
        id_vectors = None if self.item_id_embedding is None else self.item_id_embedding(self._apply_id_dropout(rows))
        if self.training:
            return self.item_tower.encode_trained_part(id_vectors, features)
        if id_vectors is not None and self.spectral_vectors is not None:
            id_vectors = torch.cat([id_vectors, self.spectral_vectors[rows]], dim=1)
        return self.item_tower(id_vectors, features)  # type: ignore[no-any-return]

    def _apply_id_dropout(self, rows: Tensor) -> Tensor:
        """Replace a share of the ids by the unknown item, in training only, so that features are learned alone too."""
        if not self.training or self._id_dropout == 0:
            return rows
        is_hidden = torch.rand(rows.shape, device=rows.device) < self._id_dropout
        return torch.where(is_hidden, self.n_items, rows)

    @torch.no_grad()
    def reset_item_ids(self, item_mask: Tensor) -> None:
        """Set the id vectors of some items to that of the unknown item.

        Args:
            item_mask: [N] bool, true for the items to reset.
        """
        if self.item_id_embedding is not None:
            weight = self.item_id_embedding.weight
            weight[:-1][item_mask.to(weight.device)] = weight[-1]

    @torch.no_grad()
    def mark_items_with_ids(self) -> Tensor:
        """Return [N] bool, true for the items whose id vector is not that of the unknown item, as of untrained ones."""
        if self.item_id_embedding is None:
            return torch.zeros(self.n_items, dtype=torch.bool)
        weight = self.item_id_embedding.weight
        chunks = torch.split(weight[:-1], _CHUNK_ROWS)
        return torch.cat([(chunk != weight[-1]).any(dim=1) for chunk in chunks])

    def encode_users(
        self, item_vectors: Tensor, histories: Tensor, lengths: Tensor, features: FeatureTensors
    ) -> Tensor:
        """Encode B users.

        Args:
            item_vectors: [M, D] item vectors.
            histories: [B, L] index into `item_vectors` of each item, oldest first; padding at the end may be any index
                in 0 .. M - 1 and is ignored.
            lengths: [B] number of items of each history.
            features: Encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        if not self.reads_history:
            return self.user_tower(None, None, features)  # type: ignore[no-any-return]
        return self.user_tower(self._gather_with_item_dropout(item_vectors, histories), lengths, features)  # type: ignore[no-any-return]

    def _gather_with_item_dropout(self, item_vectors: Tensor, histories: Tensor) -> Tensor:
        """Look up [B, L] rows → [B, L, D]; in training, item dropout sets a share of the vectors to 0."""
        vectors = take_rows(item_vectors, histories)
        item_dropout = self.settings.history.item_dropout
        if not self.training or item_dropout == 0:
            return vectors
        return vectors * (torch.rand(histories.shape, device=vectors.device) >= item_dropout).unsqueeze(-1)

    def encode_users_at_positions(
        self,
        item_vectors: Tensor,
        histories: Tensor,
        history_index: Tensor,
        positions: Tensor,
        features: FeatureTensors,
    ) -> Tensor:
        """Encode users at P chosen positions of B histories in one pass; needs a causal history encoder.

        Args:
            item_vectors: [M, D] item vectors.
            histories: [B, L] index into `item_vectors` of each item, oldest first; padding at the end may be any index
                in 0 .. M - 1 and is ignored.
            history_index: [P] index in 0 .. B - 1 of each position's history.
            positions: [P] number of items read at each position, 0 .. L.
            features: Encoded features of the user at each position, [P, ...] each.

        Returns:
            [P, D] vectors of length 1.
        """
        history_encoder = self.user_tower.history_encoder
        assert isinstance(history_encoder, CausalHistoryEncoder | EnsembleHistoryEncoder)  # noqa: S101 - for mypy
        all_positions = history_encoder.encode_all_positions(
            self._gather_with_item_dropout(item_vectors, histories)
        )  # [B, L + 1, D]
        return self.user_tower.to_user_vector(all_positions[history_index, positions], features)

    def encode_users_by_sets(
        self, item_vectors: Tensor, items: Tensor, lengths: Tensor, features: FeatureTensors
    ) -> Tensor:
        """Encode B users by the sets of their items, without padding; needs the history encoder "set".

        Args:
            item_vectors: [M, D] item vectors.
            items: [I] index into `item_vectors` of each item, user by user.
            lengths: [B] number of items of each user.
            features: Encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        history_encoder = self.user_tower.history_encoder
        assert isinstance(history_encoder, SetHistoryEncoder | EnsembleHistoryEncoder)  # noqa: S101 - for mypy
        parts = self.user_tower.parts
        if self.training or not parts.spectral_dim:
            sums = sum_listed_rows(item_vectors, items, lengths)  # [B, D]
            return self.user_tower.to_user_vector(history_encoder.encode_sums(sums, lengths), features)
        trained, spectral = (sum_listed_rows(part, items, lengths) for part in parts.split(item_vectors))
        user_vectors = self.user_tower.to_user_vector(history_encoder.encode_sums(trained, lengths), features)
        return parts.join(user_vectors, spectral)
