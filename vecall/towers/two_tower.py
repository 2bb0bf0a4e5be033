"""The user tower and the item tower: what each reads, and the vectors that they are compared by."""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from vecall.data.feature_encoder import Shape
from vecall.towers.blocks import Mlp
from vecall.towers.causal import CausalHistory
from vecall.towers.ensemble import HistoryMembers, unit_parts
from vecall.towers.features import ConcatenatedInputs, SummedInputs, embedding
from vecall.towers.history import history_encoder
from vecall.towers.settings import ModelSettings

Shapes = Mapping[str, Shape]
Features = Mapping[str, Tensor]


class Combiner(nn.Module):
    """A ready vector (id or history) and features to one vector: summed, or side by side through an MLP."""

    def __init__(self, settings: ModelSettings, shapes: Shapes, *, has_vector: bool) -> None:
        super().__init__()
        self.inputs: ConcatenatedInputs | SummedInputs | None = None
        self.mlp: Mlp | None = None
        if settings.hidden:
            self.inputs = ConcatenatedInputs(shapes, settings.init_scale) if shapes else None
            width = (self.inputs.width if self.inputs else 0) + (settings.dim if has_vector else 0)
            self.mlp = Mlp(width, settings.hidden, settings.dim, norm=settings.norm, dropout=settings.dropout)
        elif shapes:
            self.inputs = SummedInputs(shapes, settings.dim, settings.init_scale)

    def forward(self, vector: Tensor | None, features: Features) -> Tensor:
        """[B, D] or None, and encoded features of B rows → [B, D]."""
        parts = [] if vector is None else [vector]
        if self.inputs is not None:
            parts.append(self.inputs(features))
        if self.mlp is not None:
            return self.mlp(torch.cat(parts, dim=1))  # type: ignore[no-any-return]
        return reduce(torch.add, parts)


class ItemTower(nn.Module):
    """An item's id vector and features to its place in the space that is searched."""

    def __init__(self, settings: ModelSettings, shapes: Shapes) -> None:
        super().__init__()
        self.members = settings.members
        self.combine = Combiner(settings, shapes, has_vector=settings.item_id)

    def forward(self, id_vectors: Tensor | None, features: Features) -> Tensor:
        """[B, D] id vectors (None without) and encoded features of B items → [B, D] of length 1."""
        return unit_parts(self.combine(id_vectors, features), self.members)


def _history(settings: ModelSettings) -> nn.Module | None:
    width = settings.dim // settings.members
    made = [history_encoder(settings.history, width, settings.dropout) for _ in range(settings.members)]
    encoders = [one for one in made if one is not None]
    return HistoryMembers(encoders) if len(encoders) > 1 else made[0]


class UserTower(nn.Module):
    """A history of served item vectors and user features to a place in the same space."""

    def __init__(self, settings: ModelSettings, shapes: Shapes) -> None:
        super().__init__()
        self.members = settings.members
        self.history = _history(settings)
        self.combine = Combiner(settings, shapes, has_vector=self.history is not None)

    def forward(self, history: Tensor | None, lengths: Tensor | None, features: Features) -> Tensor:
        """History [B, L, D] with [B] lengths (both None without) and features of B users → [B, D] of length 1."""
        summary = None if self.history is None else self.history(history, lengths)
        return self.finish(summary, features)

    def finish(self, summary: Tensor | None, features: Features) -> Tensor:
        """What a history came to, [B, D], and features of B users → [B, D] of length 1."""
        return unit_parts(self.combine(summary, features), self.members)


class TwoTower(nn.Module):
    """Both towers and the table of item ids.

    The table has N + 1 rows; the last one stands for items that training never saw. It is kept out of the item
    tower, so that the exported tower does not grow with the catalogue and takes items that are added later.
    """

    def __init__(self, settings: ModelSettings, item_shapes: Shapes, user_shapes: Shapes, n_items: int) -> None:
        super().__init__()
        self.settings = settings
        self.n_items = n_items
        self.item_ids = embedding(n_items + 1, settings.dim, settings.init_scale) if settings.item_id else None
        # Without features there is nothing to speak for an item whose id is hidden.
        self._hidden_share = settings.id_dropout if item_shapes else 0.0
        if self.item_ids is not None and self._hidden_share == 0:  # training will never meet an unknown item
            nn.init.zeros_(self.item_ids.weight[-1:].detach())
        self.item = ItemTower(settings, item_shapes)
        self.user = UserTower(settings, user_shapes)

    @property
    def reads_history(self) -> bool:
        """Whether the user tower looks at histories at all."""
        return self.user.history is not None

    @property
    def hides_ids(self) -> bool:
        """Whether training teaches what an item without an id of its own is like."""
        return self._hidden_share > 0

    def encode_items(self, rows: Tensor, features: Features) -> Tensor:
        """[B] rows in 0 .. N (N is the unknown item) and their encoded features → [B, D]."""
        id_vectors = None if self.item_ids is None else self.item_ids(self._some_hidden(rows))
        return self.item(id_vectors, features)  # type: ignore[no-any-return]

    def _some_hidden(self, rows: Tensor) -> Tensor:
        """In training, a share of the ids replaced by the unknown one, so that features learn to speak alone."""
        if not self.training or self._hidden_share == 0:
            return rows
        hidden = torch.rand(rows.shape, device=rows.device) < self._hidden_share
        return torch.where(hidden, self.n_items, rows)

    @torch.no_grad()
    def forget_ids(self, items: Tensor) -> None:
        """Give the marked ones of the N items, [N] bool, the unknown item's id; without features it would be none."""
        if self.item_ids is not None:
            self.item_ids.weight[:-1][items] = self.item_ids.weight[-1]

    def encode_users(self, item_vectors: Tensor, histories: Tensor, lengths: Tensor, features: Features) -> Tensor:
        """User vectors from item vectors that are at hand.

        Args:
            item_vectors: [M, D] vectors of the items that occur.
            histories: [B, L] places in `item_vectors`, oldest first, padded at the end with any place.
            lengths: [B] how many places of each history count.
            features: encoded features of the B users.

        Returns:
            [B, D] vectors of length 1.
        """
        if not self.reads_history:
            return self.user(None, None, features)  # type: ignore[no-any-return]
        return self.user(self._read(item_vectors, histories), lengths, features)  # type: ignore[no-any-return]

    def _read(self, item_vectors: Tensor, histories: Tensor) -> Tensor:
        """[B, L, D] vectors of [B, L] places; in training a share of them is nothing, so that none is leant on."""
        vectors = item_vectors[histories]
        share = self.settings.history.dropout
        if not self.training or share == 0:
            return vectors
        return vectors * (torch.rand(histories.shape, device=vectors.device) >= share).unsqueeze(-1)

    @property
    def is_causal(self) -> bool:
        """Whether one pass over a history gives the user as of each of its places."""
        return self.settings.history.encoder == "causal"

    def encode_places(
        self, item_vectors: Tensor, histories: Tensor, owners: Tensor, places: Tensor, features: Features
    ) -> Tensor:
        """The user as of P places of B histories, all in one pass; only where the history is read causally.

        Args:
            item_vectors: [M, D] vectors of the items that occur.
            histories: [B, L] places in `item_vectors`, oldest first, padded at the end with any place.
            owners: [P] which history each place is of.
            places: [P] how many of its items are read, 0 .. L.
            features: encoded features of the B users.

        Returns:
            [P, D] vectors of length 1.
        """
        assert isinstance(self.user.history, CausalHistory | HistoryMembers)  # noqa: S101 - as said; tells mypy
        every = self.user.history.everywhere(self._read(item_vectors, histories))  # [B, L + 1, D]
        return self.user.finish(every[owners, places], {name: x[owners] for name, x in features.items()})
