"""What is learned from, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vecall.data.feature_encoder import Encoded, Encoders, Shape
from vecall.data.interactions import Catalogue
from vecall.data.ragged import Rows, Sequences
from vecall.data.split import Pairs


@dataclass(frozen=True)
class Problem:
    """Histories to learn from, with the encoded features of all items and users.

    Attributes:
        train: U histories of item rows, oldest first.
        negatives: pairs known not to be liked.
        n_items: N.
        item_features: encoded, [N, ...] each.
        user_features: encoded, [U, ...] each.
        item_shapes: what the item features look like.
        user_shapes: what the user features look like.
        learned_before: item rows that an older model starts this one with.
    """

    train: Sequences
    negatives: Pairs
    n_items: int
    item_features: Encoded
    user_features: Encoded
    item_shapes: Mapping[str, Shape]
    user_shapes: Mapping[str, Shape]
    learned_before: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @cached_property
    def met(self) -> Rows:
        """[M] ascending rows of the items of which some user's opinion is known.

        The others are new, or the test's. As negatives they would teach that nobody wants what nobody has seen yet.
        """
        return np.unique(np.concatenate([self.train.rows, self.negatives.items, self.learned_before]))

    @classmethod
    def encoded(
        cls, catalogue: Catalogue, encoders: tuple[Encoders, Encoders], train: Sequences, negatives: Pairs
    ) -> "Problem":
        """Histories of a catalogue's users, with all of its items and users encoded by (item, user) encoders."""
        items, users = encoders
        return cls(
            train=train,
            negatives=negatives,
            n_items=len(catalogue.items),
            item_features=items.encode(catalogue.item_features),
            user_features=users.encode(catalogue.user_features),
            item_shapes=items.shapes,
            user_shapes=users.shapes,
        )


def tensors(encoded: Encoded, device: torch.device) -> dict[str, Tensor]:
    """Encoded features on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in encoded.items()}


def take(features: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The features of some rows."""
    return {name: values[rows] for name, values in features.items()}
