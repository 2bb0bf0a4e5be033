"""What is learned from, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vecall.arrays import Rows
from vecall.data.feature_encoder import EncodedFeatures, FeatureEncoder, FeatureSpec
from vecall.data.interactions import Catalogue
from vecall.data.ragged import RaggedArray
from vecall.data.split import LabeledNegatives


@dataclass(frozen=True)
class TrainingData:
    """Histories to learn from, with the encoded features of all items and users.

    Attributes:
        histories: U histories of item rows, oldest first.
        hard_negatives: pairs known not to be liked.
        n_items: N.
        item_features: encoded, [N, ...] each.
        user_features: encoded, [U, ...] each.
        item_specs: what the item features look like.
        user_specs: what the user features look like.
        warm_started_items: item rows that an older model starts this one with.
    """

    histories: RaggedArray
    hard_negatives: LabeledNegatives
    n_items: int
    item_features: EncodedFeatures
    user_features: EncodedFeatures
    item_specs: Mapping[str, FeatureSpec]
    user_specs: Mapping[str, FeatureSpec]
    warm_started_items: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @cached_property
    def observed_items(self) -> Rows:
        """[M] ascending rows of the items of which some user's opinion is known.

        The others are new, or the test's. As negatives they would teach that nobody wants what nobody has seen yet.
        """
        return np.unique(np.concatenate([self.histories.values, self.hard_negatives.items, self.warm_started_items]))

    @classmethod
    def from_catalogue(
        cls,
        catalogue: Catalogue,
        encoders: tuple[FeatureEncoder, FeatureEncoder],
        histories: RaggedArray,
        hard_negatives: LabeledNegatives,
    ) -> "TrainingData":
        """Histories of a catalogue's users, with all of its items and users encoded by (item, user) encoders."""
        items, users = encoders
        return cls(
            histories=histories,
            hard_negatives=hard_negatives,
            n_items=len(catalogue.items),
            item_features=items.encode(catalogue.item_features),
            user_features=users.encode(catalogue.user_features),
            item_specs=items.specs,
            user_specs=users.specs,
        )


def to_tensors(features: EncodedFeatures, device: torch.device) -> dict[str, Tensor]:
    """Encoded features on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in features.items()}


def take(features: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The features of some rows."""
    return {name: values[rows] for name, values in features.items()}
